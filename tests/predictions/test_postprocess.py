"""Post-processing: every rule at its thresholds, on small tumours whose volumes are counted in the comments."""

import json
import re
import shutil
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from release_folders import SIZE, write_case

from nnunet_brats_ext.brats import ED, ET, LABEL_SCHEMES, NCR, remap
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.dataset_conversion.layouts import LAYOUTS
from nnunet_brats_ext.papers import published_rules
from nnunet_brats_ext.predictions.postprocess import postprocess
from nnunet_brats_ext.predictions.rule_sets import (
    RULES,
    RuleSet,
    collect_rules,
    find_rules,
    parse_rule,
    read_rules,
    save_rules,
)
from nnunet_brats_ext.predictions.rules import (
    RuleInput,
    oedema_to_core,
    small_components,
    small_region,
    unlikely_components,
)
from nnunet_brats_ext.storage.images import read_grid, read_image, read_label_map

REAL_CASE = Path(__file__).parents[3] / "shared" / "real_case"
EMPTY = np.zeros((12, 12, 12), np.uint8)


def rows(*volumes, label=ED, shape=(12, 12, 200)):
    """Straight lines of the given volumes in voxels, no two of which touch."""
    labels = np.zeros(shape, np.uint8)
    for i, volume in enumerate(volumes):
        labels[(i // 6) * 2, (i % 6) * 2, :volume] = label
    return labels


def fill(volume, label, inside):
    """`volume` voxels of a label, in a copy of an array of at least that many voxels."""
    labels = inside.copy()
    labels.flat[:volume] = label
    return labels


def apply(name, labels, **case):
    rules = find_rules(name) if isinstance(name, str) else RuleSet(tuple(name))
    return rules.apply(RuleInput(labels, **case))[0]


# --- a small region as a whole -------------------------------------------------------------------------------------


def test_lyu_relabels_499_voxels_of_et_as_ncr_and_leaves_500():
    tumour = np.full((12, 12, 12), ED, np.uint8)
    np.testing.assert_array_equal(apply("lyu2020", fill(499, ET, tumour)), fill(499, NCR, tumour))
    np.testing.assert_array_equal(apply("lyu2020", fill(500, ET, tumour)), fill(500, ET, tumour))


def test_lachinov_drops_32_voxels_of_et_and_keeps_33():
    tumour = np.full((12, 12, 12), ED, np.uint8)
    np.testing.assert_array_equal(apply("lachinov2019", fill(32, ET, tumour)), fill(32, NCR, tumour))
    np.testing.assert_array_equal(apply("lachinov2019", fill(33, ET, tumour)), fill(33, ET, tumour))


def test_a_volume_in_ml_counts_the_spacing_and_one_in_voxels_does_not():
    labels = fill(100, ET, EMPTY)  # 100 voxels of 8 mm^3 are 0.8 ml
    for min_ml, dropped in ((0.8, False), (0.801, True)):
        result = small_region(RuleInput(labels, voxel_volume_mm3=8.0), min_ml=min_ml)
        assert (NCR in result) == dropped
    assert NCR in small_region(RuleInput(labels, voxel_volume_mm3=8.0), min_voxels=101)


@pytest.mark.parametrize(("region", "labels", "becomes"), [("WT", (1, 2, 3), 0), ("TC", (2, 3), ED), ("ET", (3,), NCR)])
def test_a_dropped_region_goes_to_the_region_around_it(region, labels, becomes):
    tumour = rows(5, 6, 7, 8)
    tumour[tumour > 0] = np.arange(26) % 3 + 1
    expected = np.where(np.isin(tumour, labels), becomes, tumour)
    np.testing.assert_array_equal(small_region(RuleInput(tumour), region=region, min_voxels=100), expected)


@pytest.mark.parametrize(("scheme", "region", "becomes"), [("paediatric_2024", "CC", NCR), ("resected_2024", "RC", 0)])
def test_the_further_region_of_a_cohort_goes_to_the_core_or_to_the_background(scheme, region, becomes):
    labels = fill(5, 4, EMPTY)
    result = small_region(RuleInput(labels, scheme=LABEL_SCHEMES[scheme]), region=region, min_voxels=6)
    np.testing.assert_array_equal(result, fill(5, becomes, EMPTY))


def test_a_sure_network_keeps_its_small_region():
    labels = fill(10, ET, EMPTY)
    probabilities = {"ET": np.full(EMPTY.shape, 0.75)}
    for bar, kept in ((0.75, True), (0.76, False)):
        result = small_region(
            RuleInput(labels, probabilities=probabilities), min_voxels=500, unless_mean_probability=bar
        )
        assert (ET in result) == kept


def test_a_rule_on_probabilities_says_where_they_come_from():
    with pytest.raises(ValueError, match="needs the probabilities of ET: predict with --save_probabilities"):
        small_region(RuleInput(fill(10, ET, EMPTY)), min_voxels=500, unless_mean_probability=0.5)


# --- small components ----------------------------------------------------------------------------------------------


def test_lachinov_deletes_a_component_of_9_9_percent_and_keeps_one_of_10():
    # 99 of 1000 voxels go, 100 of 1000 stay; the others are 200 or more
    gone, stays = rows(99, 150, 180, 190, 190, 191), rows(100, 150, 180, 190, 190, 190)
    np.testing.assert_array_equal(apply("lachinov2019", gone), rows(0, 150, 180, 190, 190, 191))
    np.testing.assert_array_equal(apply("lachinov2019", stays), stays)


@pytest.mark.parametrize("tenth", range(1, 20))
def test_exactly_a_tenth_is_kept_whatever_rounding_does(tenth):
    labels = rows(*[tenth] * 10)  # 0.1 * (10 * 3) is 3.0000000000000004
    np.testing.assert_array_equal(apply("lachinov2019", labels), labels)


def test_om_net_takes_a_tenth_of_the_largest_component_below_20000_voxels_and_2000_above():
    labels = rows(150, 15, 14)
    np.testing.assert_array_equal(apply("zhou2020", labels), rows(150, 15))
    large = np.zeros((40, 40, 60), np.uint8)
    large[:30, :30, :30] = ED  # 27,000 voxels: a tenth would be 2,700
    for volume, kept in ((1999, False), (2000, True)):
        second = large.copy()
        block = np.zeros((8, 8, 60), np.uint8)  # 3,840 voxels of room
        block.flat[:volume] = ED
        second[32:, 32:, :] = block
        assert bool(apply("zhou2020", second)[32:, 32:].any()) == kept


def test_one_component_and_an_empty_map_stay_as_they_are():
    for name in ("lyu2020", "lachinov2019", "zhou2020"):
        np.testing.assert_array_equal(apply(name, EMPTY), EMPTY)
        np.testing.assert_array_equal(apply(name, rows(3)), rows(3))


def test_components_touch_by_their_corners():
    labels = EMPTY.copy()
    labels[0, 0, 0] = labels[1, 1, 1] = ED
    np.testing.assert_array_equal(small_components(RuleInput(labels), min_voxels=2), labels)


def test_a_component_of_a_tumour_may_hold_all_labels():
    labels = rows(3)
    labels[labels > 0] = [ED, NCR, ET]
    np.testing.assert_array_equal(small_components(RuleInput(labels), min_voxels=3), labels)
    assert not small_components(RuleInput(labels), min_voxels=4).any()


def test_the_smallest_of_several_thresholds_applies():
    labels = rows(100, 8)
    kept = small_components(RuleInput(labels), min_voxels=20, fraction_of_largest=0.08)
    np.testing.assert_array_equal(kept, labels)


def test_components_of_et_fall_one_by_one():
    labels = rows(10, 4, label=ET)
    result = small_components(RuleInput(labels), region="ET", min_voxels=5)
    np.testing.assert_array_equal(np.bincount(result.ravel(), minlength=4)[1:], [0, 4, 10])


def test_unlikely_components_fall_by_their_mean_probability():
    labels = rows(10, 4, label=ET)
    probability = np.where(np.arange(12).reshape(1, 12, 1) == 0, 0.7, 0.6) * np.ones(labels.shape)
    case = RuleInput(labels, probabilities={"ET": probability})
    result = unlikely_components(case, region="ET", min_mean_probability=0.65)
    np.testing.assert_array_equal(np.bincount(result.ravel(), minlength=4)[1:], [0, 4, 10])
    sure = small_components(case, region="ET", min_voxels=50, unless_mean_probability=0.65)
    np.testing.assert_array_equal(sure, result)
    np.testing.assert_array_equal(unlikely_components(RuleInput(EMPTY), region="ET", min_mean_probability=1), EMPTY)


@pytest.mark.parametrize(
    "rule", [rule for name in ("lyu2020", "lachinov2019", "zhou2020") for rule in published_rules()[name]]
)
def test_a_rule_applied_twice_changes_nothing_more(rule):
    # what is left keeps the largest component, and its sum is smaller: no threshold rises. (A chain is another thing:
    # Lachinov's second rule may leave less ET than his first asks for.)
    noise = np.random.default_rng(1).choice(np.uint8([0, 1, 2, 3]), (30, 30, 30), p=[0.985, 0.005, 0.007, 0.003])
    labels = np.maximum(noise, np.pad(np.full((9, 9, 9), NCR, np.uint8), (0, 21)))
    if rule["rule"] == "small-et":
        labels[labels == ET] = NCR
        labels[0, 0, :9] = ET
    once = apply([rule], labels)
    assert (once != labels).any()
    np.testing.assert_array_equal(apply([rule], once), once)


# --- K-means -------------------------------------------------------------------------------------------------------


def two_tone(volume=100):
    """A tumour of oedema, half of it dark on T1ce and bright elsewhere, in a noisy brain of four sequences."""
    rng = np.random.default_rng(2)
    labels = rows(volume)
    images = rng.normal(100, 1, (4, *labels.shape)).astype(np.float32)
    dark = np.zeros(labels.shape, bool)
    dark[0, 0, : volume // 2] = True
    images[1][dark] -= 50
    images[3][dark] += 50
    return labels, images, dark


def test_k_means_gives_the_cluster_that_is_darker_on_t1ce_to_the_core():
    labels, images, dark = two_tone()
    np.testing.assert_array_equal(oedema_to_core(RuleInput(labels, images=images)), np.where(dark, NCR, labels))
    swapped = images[[1, 0, 2, 3]]  # now channel 0 is T1ce
    np.testing.assert_array_equal(
        oedema_to_core(RuleInput(labels, images=swapped, t1ce=0)), np.where(dark, NCR, labels)
    )


@pytest.mark.parametrize(("et", "applies"), [(4, True), (5, False), (9, False), (10, False)])
def test_k_means_asks_for_less_than_5_percent_of_et_in_the_component(et, applies):
    labels, images, _ = two_tone(100)
    labels[0, 0, 100 - et : 100] = ET  # of 100 voxels
    assert (NCR in oedema_to_core(RuleInput(labels, images=images))) == applies


def test_k_means_asks_for_less_than_10_percent_of_et_in_the_case():
    for other, applies in ((9, True), (10, False)):
        labels, images, _ = two_tone(90)
        labels[4, 4, :other] = ET  # a second component: 9 of 99 voxels are less than a tenth, 10 of 100 are not
        assert (NCR in oedema_to_core(RuleInput(labels, images=images))) == applies


@pytest.mark.parametrize(("voxel_mm3", "volume"), [(1.0, 1000), (2.0, 500)])
def test_k_means_asks_for_less_than_1_ml_of_et_in_the_component(voxel_mm3, volume):
    labels = np.full((30, 30, 30), ED, np.uint8)  # 27,000 voxels: 1,000 are 3.7 %
    images = np.random.default_rng(3).normal(size=(4, *labels.shape)).astype(np.float32)
    for voxels, applies in ((volume - 1, True), (volume, False)):
        assert (NCR in oedema_to_core(RuleInput(fill(voxels, ET, labels), voxel_mm3, images=images))) == applies


def test_k_means_leaves_a_component_without_two_different_oedema_voxels():
    images = np.random.default_rng(4).normal(size=(4, *EMPTY.shape)).astype(np.float32)
    one = fill(1, ED, fill(30, NCR, EMPTY))
    np.testing.assert_array_equal(oedema_to_core(RuleInput(one, images=images)), one)
    flat = fill(30, ED, EMPTY)
    np.testing.assert_array_equal(oedema_to_core(RuleInput(flat, images=np.ones_like(images))), flat)
    np.testing.assert_array_equal(oedema_to_core(RuleInput(EMPTY, images=images)), EMPTY)
    two = fill(2, ED, EMPTY)
    assert np.bincount(oedema_to_core(RuleInput(two, images=images)).ravel(), minlength=4)[1:].tolist() == [1, 1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_k_means_leaves_wt_and_et_and_only_adds_to_tc(seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.uint8([0, 0, 0, 0, 1, 1, 1, 2, 3]), (16, 16, 16), p=[0.15] * 4 + [0.12] * 3 + [0.03, 0.01])
    case = RuleInput(labels, images=rng.normal(size=(4, *labels.shape)).astype(np.float32))
    result = oedema_to_core(case)
    assert (result != labels).any()
    np.testing.assert_array_equal(result > 0, labels > 0)
    np.testing.assert_array_equal(result == ET, labels == ET)
    assert np.isin(result, (NCR, ET))[np.isin(labels, (NCR, ET))].all()
    np.testing.assert_array_equal(oedema_to_core(case), result)


def test_k_means_without_images_says_so():
    with pytest.raises(ValueError, match="give --images"):
        oedema_to_core(RuleInput(rows(10)))


# --- rule files ----------------------------------------------------------------------------------------------------


def test_every_rule_states_what_it_needs():
    for name, rule in RULES.items():
        assert {*rule.fixed, *rule.thresholds, *rule.on_probabilities} <= set(signature(rule.function).parameters), name
    small, unlikely = {"rule": "small-et", "min_voxels": 5}, parse_rule("unlikely-components:ET=0.5")
    needs = [(one.needs_images, one.needs_probabilities) for one in map(RuleSet, [(small,), (unlikely,)])]
    assert needs == [(False, False), (False, True)]
    assert RuleSet(({**small, "unless_mean_probability": 0.5},)).needs_probabilities
    assert find_rules("zhou2020-kmeans").needs_images


def test_the_short_form_says_what_the_json_says():
    assert parse_rule("small-et=500") == {"rule": "small-et", "min_voxels": 500}
    assert parse_rule("small-et=0.5ml") == {"rule": "small-et", "min_ml": 0.5}
    assert parse_rule("small-components:WT=50") == {"rule": "small-components", "region": "WT", "min_voxels": 50}
    assert parse_rule("unlikely-components:ET=0.6")["min_mean_probability"] == 0.6
    assert parse_rule("oedema-to-core") == {"rule": "oedema-to-core"}


def test_rules_are_saved_beside_a_model_and_found_by_name(tmp_path):
    rules = collect_rules(["lachinov2019"], ["small-region:TC=20"])
    model, other = tmp_path / "model", tmp_path / "other"
    for folder in (model, other):
        folder.mkdir()
    path = save_rules(rules, model, "mine")
    assert path.name == "brats_rules_mine.json"
    assert find_rules("mine", model) == find_rules(str(path)) == read_rules(path) == rules
    assert len(rules.rules) == len(published_rules()["lachinov2019"]) + 1
    with pytest.raises(
        ValueError, match=r"no rules called 'yours': no file .*; there are mine, .*lachinov2019, .*lyu2020"
    ):
        find_rules("yours", model)
    with pytest.raises(ValueError, match=f"no file {re.escape(str(other / path.name))} .* by their path: {path}"):
        find_rules("mine", other)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[]", "should hold an object, not list"),
        ("{", "is not JSON"),
        ('{"rules": [{"rule": "tiny-et"}]}', "should be one of small-et, small-region"),
        ('{"rules": [{"rule": "small-et"}]}', "lacks a threshold: min_ml, min_voxels"),
        ('{"rules": [{"rule": "small-et", "min_voxel": 5}]}', "min_voxel is none of min_voxels, min_ml"),
        ('{"rules": [{"rule": "small-et", "region": "TC", "min_voxels": 5}]}', "region is none of"),
        ('{"rules": [{"rule": "small-et", "min_voxels": -5}]}', "min_voxels should be a number from 0 on"),
        ('{"rules": [{"rule": "small-et", "min_voxels": "5"}]}', "min_voxels should be a number from 0 on"),
        ('{"rules": [{"rule": "small-region", "region": "RC", "min_voxels": 5}]}', "no region 'RC' among WT, TC, ET"),
        ('{"rules": [{"rule": "unlikely-components", "min_mean_probability": 0.5}]}', "lacks a region"),
        ('{"rules": [], "scheme": "glioma_1999"}', "scheme 'glioma_1999' is none of"),
        ('{"rule": "small-et", "min_voxels": 5}', r"expected \{\"scheme\""),
        ('{"rules": {"rule": "small-et"}}', r"expected \{\"scheme\".*'small-et'"),
        ('{"rules": [], "scheme": 3}', "scheme 3 is none of"),
        ('{"rules": [], "scheme": ["x"]}', r"scheme \['x'\] is none of"),
        ('{"rules": [1]}', r'rule 1, 1: "rule" should be one of'),
        ('{"rules": [{"rule": ["a"]}]}', r"rule 1, \{'rule': \['a'\]\}: \"rule\" should be one of"),
        ('{"rules": [{"rule": "small-region", "region": ["WT"], "min_voxels": 5}]}', r"no region \['WT'\] among WT"),
        ('{"rules": [{"rule": "small-region", "region": 1, "min_voxels": 5}]}', "no region 1 among WT"),
        ('{"rules": [{"rule": "small-et", "min_voxels": [5]}]}', "min_voxels should be a number from 0 on, not"),
        ('{"rules": [{"rule": "small-et", "min_voxels": true}]}', "min_voxels should be a number from 0 on, not True"),
        ('{"rules": [{"rule": "small-et", "min_voxels": NaN}]}', "min_voxels should be a number from 0 on, not nan"),
        ('{"rules": [{"rule": "small-et", "min_voxels": 1e400}]}', "min_voxels should be a number from 0 on, not inf"),
        ('{"rules": [{"rule": "oedema-to-core", "max_et_fraction": "a"}]}', "max_et_fraction should be a number"),
        ('{"rules": [{"rule": "small-et", "min_ml": 1}, {"rule": "small-et"}]}', "rule 2, small-et: lacks a threshold"),
    ],
)
def test_a_wrong_rule_file_is_quoted(tmp_path, content, complaint):
    path = tmp_path / "rules.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=complaint) as error:
        read_rules(path)
    assert str(path) in str(error.value)


# --- folders -------------------------------------------------------------------------------------------------------


def write(path, array, spacing=(1.0, 1.0, 1.0)):
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, path)


def test_the_command_applies_rules_to_a_folder_and_saves_its_rules_beside_the_model(tmp_path, capsys):
    tumour = np.full((12, 12, 12), ED, np.uint8)
    for case, volume in (("a", 499), ("b", 500)):
        write(tmp_path / "in" / f"{case}.nii.gz", fill(volume, ET, tumour).astype(np.float64), (1.0, 1.0, 2.0))
    (tmp_path / "in" / "dataset.json").write_text("{}")
    (tmp_path / "model").mkdir()
    command = ["postprocess", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-np", "1"]
    model = ["-m", str(tmp_path / "model")]
    assert main([*command, "--rule", "small-et=500", *model, "--save", "et"]) == 0
    assert "499" in capsys.readouterr().out
    for case, volume, label in (("a", 499, NCR), ("b", 500, ET)):
        labels, geometry = read_label_map(tmp_path / "out" / f"{case}.nii.gz")
        np.testing.assert_array_equal(labels, fill(volume, label, tumour))
        assert geometry == read_grid(tmp_path / "in" / f"{case}.nii.gz")
    assert (tmp_path / "out" / "dataset.json").is_file()
    again = ["postprocess", str(tmp_path / "in"), "-o", str(tmp_path / "again"), "-np", "1", "--rules", "et", *model]
    assert main(again) == 0
    assert np.array_equal(*(read_label_map(tmp_path / o / "a.nii.gz")[0] for o in ("out", "again")))


def test_from_python_it_prints_nothing_and_says_what_changed(tmp_path, capsys):
    write(tmp_path / "in" / "a.nii.gz", fill(5, ET, EMPTY))
    changes = postprocess(str(tmp_path / "in"), str(tmp_path / "out"), rule=["small-et=6", "small-et=1"], processes=1)
    assert changes.voxels == {"a": [5, 0]}
    assert [rule["min_voxels"] for rule in changes.rule_set.rules] == [6, 1]
    assert capsys.readouterr() == ("", "")


def test_what_is_missing_is_said_before_the_work(tmp_path, capsys):
    write(tmp_path / "in" / "a.nii.gz", fill(5, ET, EMPTY))
    command = ["postprocess", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--rule", "small-et=5"]
    for options, complaint in (
        (["--save", "x"], "--save x needs -m"),
        (["--save", "x", "--model", str(tmp_path / "none")], "none is no folder of a trained model"),
        (["-np", "0"], "-np 0: expected at least 1"),
    ):
        assert main([*command, *options]) == 1
        assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        main(["postprocess", "-o", str(tmp_path / "out"), "--rule", "small-et=5"])
    assert "the following arguments are required: -i" in capsys.readouterr().err


def test_a_folder_called_validation_is_one_like_any_other(tmp_path, monkeypatch):
    write(tmp_path / "validation" / "a.nii.gz", fill(5, ET, EMPTY))
    monkeypatch.chdir(tmp_path)
    assert main(["postprocess", "validation", "-o", "out", "--rule", "small-et=5", "-np", "1"]) == 0


def test_tuned_rules_of_another_year_join_those_of_a_paper(tmp_path):
    tuned = tmp_path / "rules.json"
    tuned.write_text(RuleSet(({"rule": "small-components", "region": "WT", "min_voxels": 9},), "glioma_2023").to_json())
    assert [rule["rule"] for rule in collect_rules(["lyu2020", str(tuned)], []).rules][-1] == "small-components"
    tuned.write_text(
        RuleSet(({"rule": "small-components", "region": "RC", "min_voxels": 9},), "resected_2024").to_json()
    )
    with pytest.raises(ValueError, match="different schemes: glioma_2017, resected_2024"):
        collect_rules(["lyu2020", str(tuned)], [])


def test_label_maps_in_release_numbering_are_refused(tmp_path, capsys):
    write(tmp_path / "in" / "a.nii.gz", fill(5, 4, EMPTY))
    assert main(["postprocess", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--rule", "small-et=5"]) == 1
    error = capsys.readouterr().err
    assert "a.nii.gz holds labels [4], which are not among [0, 1, 2, 3]" in error
    assert "give the folder that `restore` was given" in error
    assert not (tmp_path / "out").exists()


def test_probabilities_of_any_head_reach_the_rules(tmp_path):
    labels = fill(10, ET, EMPTY)
    write(tmp_path / "in" / "a.nii.gz", labels)
    p = np.zeros((4, *EMPTY.shape), np.float16)
    p[3], p[0] = 0.75, 0.25
    np.savez_compressed(tmp_path / "in" / "a.npz", probabilities=p)
    plain = {"labels": {"background": 0, "ED": 1, "NCR": 2, "ET": 3}, "file_ending": ".nii.gz"}
    (tmp_path / "in" / "dataset.json").write_text(json.dumps(plain))
    for bar, kept in ((0.7, True), (0.8, False)):
        out = tmp_path / f"out{bar}"
        rule = f"unlikely-components:ET={bar}"
        assert main(["postprocess", str(tmp_path / "in"), "-o", str(out), "-np", "1", "--rule", rule]) == 0
        assert (ET in read_label_map(out / "a.nii.gz")[0]) == kept


def test_the_command_finds_images_and_their_t1ce(tmp_path, capsys):
    labels, images, dark = two_tone()
    write(tmp_path / "in" / "a.nii.gz", labels)
    names = {"0": "FLAIR", "1": "T1", "2": "t1-Gd", "3": "T2"}
    (tmp_path / "in" / "dataset.json").write_text(json.dumps({"channel_names": names, "file_ending": ".nii.gz"}))
    command = ["postprocess", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-np", "1", "--rule", "oedema-to-core"]
    assert main(command) == 1
    assert main([*command, "--images", str(tmp_path / "images")]) == 1
    assert "lacks images CASE_0000.nii.gz and so on, channel by channel, of a" in capsys.readouterr().err
    for channel, image in enumerate(images[[3, 0, 1, 2]]):
        write(tmp_path / "images" / f"a_{channel:04}.nii.gz", image)
    assert main([*command, "--images", str(tmp_path / "images")]) == 0
    np.testing.assert_array_equal(read_label_map(tmp_path / "out" / "a.nii.gz")[0], np.where(dark, NCR, labels))


def test_images_without_the_channel_of_t1ce_are_refused(tmp_path, capsys):
    labels, images, _ = two_tone()
    write(tmp_path / "in" / "a.nii.gz", labels)
    write(tmp_path / "images" / "a_0000.nii.gz", images[0])
    command = ["postprocess", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--rule", "oedema-to-core"]
    assert main([*command, "--images", str(tmp_path / "images"), "-np", "1"]) == 1
    assert "T1ce is channel 1 of" in capsys.readouterr().err
    for content, complaint in (
        ('{"channel_names": ["T1", "T1ce"]}', "dataset.json: channel_names is ['T1', 'T1ce']"),
        ('{"channel_names": ["T1"], "brats_sequences": ["T1ce"]}', "dataset.json: channel_names is ['T1']"),
        ('{"channel_names": {"0": "noNorm"}, "brats_sequences": "T1ce"}', "brats_sequences is 'T1ce'"),
        ('{"channel_names": {"0": "noNorm"}}', "no channel shows T1ce"),
    ):
        (tmp_path / "in" / "dataset.json").write_text(content)
        assert main([*command, "--images", str(tmp_path / "images"), "-np", "1"]) == 1
        assert complaint in capsys.readouterr().err


def test_images_that_came_normalised_are_known_by_their_sequences(tmp_path, monkeypatch):
    """nnU-Net calls all channels of a data set of `convert --normalise` noNorm."""
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    oedema = np.zeros(SIZE[::-1], np.uint8)
    oedema[2:7, 2:7, 2:7] = 2  # as released
    for number in (1, 2):
        write_case(tmp_path / "release", LAYOUTS["BraTS2020"], f"BraTS20_Training_{number:03}", labels=oedema)
    options = ("--normalise", "percentile-minmax", "--folds", "2", "-np", "1")
    assert main(["convert", str(tmp_path / "release"), "-d", "901", "--name", "N", *options]) == 0
    dataset = tmp_path / "Dataset901_N"
    assert set(json.loads((dataset / "dataset.json").read_text())["channel_names"].values()) == {"noNorm"}
    shutil.copy(dataset / "dataset.json", dataset / "labelsTr")  # a prediction that is right
    options = {"rules": ["zhou2020-kmeans"], "images": dataset / "imagesTr", "processes": 1}
    changes = postprocess(dataset / "labelsTr", tmp_path / "out", **options)
    case, (_, voxels) = next(iter(changes.voxels.items()))
    assert 0 < voxels < np.count_nonzero(oedema)
    result = read_label_map(tmp_path / "out" / f"{case}.nii.gz")[0]
    t1ce = read_image(dataset / "imagesTr" / f"{case}_0001.nii.gz").array
    assert t1ce[result == NCR].mean() < t1ce[result == ED].mean()


@pytest.mark.skipif(not REAL_CASE.is_dir(), reason="the real case is not here")
def test_the_rules_change_only_what_they_should_in_a_real_tumour():
    folder = REAL_CASE / "MICCAI_BraTS2020_TrainingData" / "BraTS20_Training_901"
    images = [read_image(folder / f"BraTS20_Training_901_{s}.nii.gz")[0] for s in ("t1", "t1ce", "t2", "flair")]
    released = read_label_map(folder / "BraTS20_Training_901_seg.nii.gz")[0]
    labels = remap(released, LABEL_SCHEMES["glioma_2017"].released)
    without_et = np.where(labels == ET, ED, labels).astype(np.uint8)  # so that K-means applies
    result = oedema_to_core(RuleInput(without_et, images=np.stack(images).astype(np.float32)))
    moved = (without_et == ED) & (result == NCR)
    assert 0.1 < moved.sum() / (without_et == ED).sum() < 0.9
    np.testing.assert_array_equal(result > 0, labels > 0)
    np.testing.assert_array_equal(apply("lyu2020", labels), labels)  # 6,840 voxels of ET


def test_a_scheme_without_a_rule_of_its_own_is_refused():
    with pytest.raises(ValueError, match="--scheme resected_2024: is for --rule"):
        collect_rules(["lyu2020"], [], scheme_name="resected_2024")
