"""Scores from Python: metrics of two masks in one call, and cases and folders by name or by preset, without a word."""

from dataclasses import fields, replace
from inspect import signature
from math import inf, isnan

import numpy as np
import pytest
import SimpleITK as sitk
from label_maps import make_pair

from nnunet_brats_ext.brats import LABEL_SCHEMES, to_regions
from nnunet_brats_ext.evaluation import (
    dice,
    evaluate_case,
    evaluate_folders,
    find_preset,
    hd95,
    lesionwise,
    nsd,
    preset_names,
    sensitivity,
    specificity,
)
from nnunet_brats_ext.evaluation.evaluate import EvaluateOptions
from nnunet_brats_ext.evaluation.metric_facts import DETECTION
from nnunet_brats_ext.evaluation.presets import PRESETS
from nnunet_brats_ext.evaluation.ranking import RankOptions, rank_results

SPACING_MM = (3.0, 1.0, 0.5)


def box(*corners):
    mask = np.zeros((8, 9, 10), bool)
    mask[tuple(slice(*corner) for corner in corners)] = True
    return mask


NOTHING, CUBE, SHIFTED = box((0, 0)), box((2, 5), (2, 5), (2, 5)), box((3, 6), (2, 5), (2, 5))


def test_overlaps_by_hand():
    # two cubes of 27 voxels share 18; outside the reference lie 720 - 27, of which 9 are predicted
    assert dice(CUBE, SHIFTED) == pytest.approx(18 / 27)
    assert sensitivity(CUBE, SHIFTED) == pytest.approx(18 / 27)
    assert specificity(CUBE, SHIFTED) == pytest.approx(684 / 693)


def test_empty_masks_score_as_the_first_sentence_of_each_metric_says():
    assert (dice(NOTHING, NOTHING), dice(CUBE, NOTHING), dice(NOTHING, CUBE)) == (1, 0, 0)
    assert (sensitivity(NOTHING, NOTHING), sensitivity(CUBE, NOTHING), sensitivity(NOTHING, CUBE)) == (1, 0, 0)
    assert specificity(~NOTHING, NOTHING) == 1
    for variant in ("directed", "pooled", "surfels"):
        pairs = (NOTHING, NOTHING), (CUBE, NOTHING), (NOTHING, CUBE)
        assert [hd95(*pair, SPACING_MM, variant) for pair in pairs] == [0, inf, inf]
        assert hd95(CUBE, NOTHING, SPACING_MM, variant, penalty_mm=374) == 374
    for variant in ("surfels", "voxels", "balanced"):
        assert [nsd(*pair, SPACING_MM, variant=variant) for pair in pairs] == [1, 0, 0]


def test_distances_are_in_mm_along_the_axes_of_the_spacing():
    for variant in ("directed", "pooled", "surfels"):
        assert hd95(CUBE, SHIFTED, SPACING_MM, variant) == pytest.approx(3)
    assert nsd(CUBE, SHIFTED, SPACING_MM, tolerance_mm=3) == 1
    assert nsd(CUBE, SHIFTED, SPACING_MM, tolerance_mm=2.9) < 1


@pytest.mark.parametrize(
    ("metric", "preset", "name"),
    [
        (lambda *masks: hd95(*masks), "brats2020", "hd95"),
        (lambda *masks: hd95(*masks, "pooled"), "brats2020", "hd95_pooled"),
        (lambda *masks: hd95(*masks, "surfels"), "brats2023", "hd95"),
        (lambda *masks: nsd(*masks), "brats2023", "nsd_1mm"),
        (lambda *masks: nsd(*masks, 1.0, "voxels"), "brats2020", "nsd_1mm"),
    ],
)
def test_one_call_gives_what_the_challenge_of_that_variant_reports(metric, preset, name):
    pair = make_pair("glioma_2023")
    regions = [to_regions(labels, LABEL_SCHEMES["glioma_2023"].regions) for labels in pair]
    scores = evaluate_case(*pair, SPACING_MM, preset)
    for region in scores:
        assert metric(regions[0][region], regions[1][region], SPACING_MM) == pytest.approx(scores[region][name])


@pytest.mark.parametrize("preset", ["brats2023", "brats2026"])
def test_lesion_wise_scores_of_two_masks_are_those_of_the_region(preset):
    pair = make_pair(find_preset(preset).scheme)
    scores = evaluate_case(*pair, SPACING_MM, preset)
    for region in ("WT", "ET"):
        masks = [to_regions(labels, find_preset(preset).regions)[region] for labels in pair]
        alone = lesionwise(*masks, SPACING_MM, preset, region=region)
        assert set(alone) >= {"dice", "hd95", "n_tp", "n_fp", "n_fn", "lesion_f1"}
        assert any(name.startswith("nsd_") for name in alone)
        for name, value in alone.items():
            there = scores[region][name if name in scores[region] and name in DETECTION else f"lesionwise_{name}"]
            assert value == pytest.approx(there), (region, name)
    assert isnan(lesionwise(NOTHING, NOTHING, SPACING_MM, "brats2026")["dice"])


def test_two_dimensional_masks_are_measured_over_voxels():
    first, second = np.zeros((2, 9, 9), bool)
    first[2:5, 2:5] = second[4:7, 2:5] = True
    assert hd95(first, second, (2.0, 1.0)) == 4
    with pytest.raises(ValueError, match="surfels need masks of three axes"):
        nsd(first, second, (2.0, 1.0))


def test_what_cannot_be_compared_is_quoted():
    with pytest.raises(ValueError, match=r"dice compares boolean masks, not uint8; cut one out with `labels == 3`"):
        dice(CUBE, CUBE.astype(np.uint8))
    with pytest.raises(ValueError, match=r"hd95: the reference has shape \(8, 9, 10\), but the prediction \(8, 9, 9\)"):
        hd95(CUBE, CUBE[..., 1:], SPACING_MM)
    for spacing in ((1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 1.0, float("nan"))):
        with pytest.raises(ValueError, match="should be 3 positive numbers"):
            nsd(CUBE, CUBE, spacing)
    with pytest.raises(ValueError, match="no variant 'median'; there are directed, pooled, surfels"):
        hd95(CUBE, CUBE, SPACING_MM, "median")
    with pytest.raises(ValueError, match="brats2020 gli has no lesions of 'WT'; presets with lesions: brats2023 gli"):
        lesionwise(CUBE, CUBE, SPACING_MM, "brats2020")


@pytest.mark.parametrize("year", ["brats2015", "brats2020", "brats2024"])
def test_a_case_may_be_numbered_as_released_on_either_side(year):
    preset = find_preset(year)
    pair = make_pair(preset.scheme)
    expected = evaluate_case(*pair, SPACING_MM, preset)
    table = np.array([LABEL_SCHEMES[preset.scheme].trained.get(value, 0) for value in range(5)], np.uint8)
    released = [table[labels] for labels in pair]
    for labels in ("released", preset.scheme, ["released", "released"]):
        np.testing.assert_equal(evaluate_case(*released, SPACING_MM, preset, labels=labels), expected)
    mixed = evaluate_case(released[0], pair[1], SPACING_MM, year, labels="released,trained")
    np.testing.assert_equal(mixed, expected)
    with pytest.raises(ValueError, match="no numbering 'brats'; there are trained, released, glioma_2012"):
        evaluate_case(*pair, labels="brats")


@pytest.mark.parametrize("labels", ["trained", "released"])
@pytest.mark.parametrize("year", preset_names())
def test_a_preset_by_name_is_the_preset_itself(year, labels, tmp_path):
    cohort = next(iter(PRESETS[year]))
    preset = find_preset(year, cohort)
    pair = make_pair(preset.scheme)
    if labels == "released":
        trained = LABEL_SCHEMES[preset.scheme].trained
        table = np.array([trained.get(value, 0) for value in range(5)], np.uint8)
        pair = tuple(table[one] for one in pair)
    by_name, by_itself = (evaluate_case(*pair, preset=one, cohort=cohort, labels=labels) for one in (year, preset))
    np.testing.assert_equal(by_name, by_itself)
    folders = [tmp_path / "references", tmp_path / "predictions"]
    for folder, one in zip(folders, pair, strict=True):
        folder.mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(one), str(folder / "case.nii.gz"))
    by_name, by_itself = (
        evaluate_folders(*folders, preset=one, cohort=cohort, labels=labels) for one in (year, preset)
    )
    assert by_name == by_itself
    assert by_name["preset"] == year


def test_folders_take_paths_as_text_and_a_preset_of_ones_own_and_print_nothing(tmp_path, capsys):
    for folder, labels in zip(("references", "predictions"), make_pair("glioma_2017"), strict=True):
        (tmp_path / folder).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / folder / "case.nii.gz"))
    folders = [str(tmp_path / name) for name in ("references", "predictions")]
    core = replace(find_preset("brats2020"), regions={"TC": (2, 3)}, name="core", cohort="mine")
    alone = evaluate_folders(*folders, core, labels="trained")
    assert (alone["preset"], alone["cohort"], list(alone["summary"])) == ("core", "mine", ["TC"])
    whole = evaluate_folders(*folders, labels=["trained", "trained"], processes=2)
    assert whole["cases"]["case"]["TC"] == alone["cases"]["case"]["TC"]
    assert rank_results([folders[1], folders[0]], reference=folders[0], labels="trained").entries == (
        "predictions",
        "references",
    )
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("function", "options"), [(evaluate_folders, EvaluateOptions), (rank_results, RankOptions)])
def test_the_command_and_the_function_have_the_same_defaults(function, options):
    parameters = signature(function).parameters
    shared = [field for field in fields(options) if field.name in parameters and field.name != "processes"]
    assert len(shared) == len(parameters) - 1
    given = {field.name: field.default for field in shared if "default" in repr(field)}
    for name, default in given.items():
        if parameters[name].default is not parameters[name].empty:
            assert default == parameters[name].default, name
