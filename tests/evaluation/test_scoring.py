"""Scores of one case: against the official scripts of each challenge, and on the edges, where a rule defines them."""

from math import isnan, nan

import numpy as np
import pytest
from label_maps import make_pair

from nnunet_brats_ext.brats import ED, ET, LABEL_SCHEMES, NCR
from nnunet_brats_ext.evaluation.presets import PRESETS, find_preset
from nnunet_brats_ext.evaluation.scoring import evaluate_case

ALL_PRESETS = [(year, cohort) for year, cohorts in PRESETS.items() for cohort in cohorts]

# lesionwise_dice, lesionwise_hd95, in 2024 lesionwise_nsd_1mm and lesionwise_nsd_0.5mm, then n_tp, n_fp, n_fn of
# `make_pair` at 1 mm, as measured with the official scripts (BraTS-2023-Metrics, BraTS-2024-Metrics; cc3d 4.1.1).
OFFICIAL_BY_DILATION = {
    ("brats2023", "gli"): {
        "WT": (0.378144, 188.250000, 2, 2, 0),
        "TC": (0.374706, 187.866025, 1, 1, 0),
        "ET": (0.343904, 187.866025, 1, 1, 0),
    },
    ("brats2023", "met"): {
        "WT": (0.302515, 225.400000, 2, 2, 1),
        "TC": (0.199853, 188.183013, 2, 1, 1),
        "ET": (0.184452, 188.183013, 2, 1, 1),
    },
    ("brats2024", "gli"): {
        "WT": (0.504192, 114.000000, 0.483551, 0.178380, 2, 1, 0),
        "TC": (0.374706, 169.366025, 0.373126, 0.093907, 1, 0, 1),
        "NETC": (0.882562, 1.000000, 0.958114, 0.701590, 1, 0, 0),
        "SNFH": (0.420191, 114.000000, 0.532127, 0.213961, 2, 1, 0),
        "ET": (0.229269, 225.244017, 0.287990, 0.130211, 1, 0, 2),
        "RC": (0.205882, 225.138071, 0.280864, 0.108642, 1, 1, 1),
    },
    ("brats2024", "ped"): {
        "WT": (0.373893, 189.826656, 0.359389, 0.133240, 2, 2, 0),
        "TC": (0.234531, 253.666667, 0.240715, 0.068676, 1, 1, 1),
        "ET": (0.229269, 249.910684, 0.287990, 0.130211, 1, 0, 2),
        "NETC": (0.882562, 1.000000, 0.958114, 0.701590, 1, 0, 0),
        "CC": (0.205882, 249.804738, 0.280864, 0.108642, 1, 1, 1),
        "ED": (0.420191, 126.333333, 0.532127, 0.213961, 2, 1, 0),
    },
    ("brats2024", "met"): {
        "WT": (0.378144, 43.202354, 0.362663, 0.133785, 2, 1, 1),
        "TC": (0.199853, 43.135367, 0.273101, 0.072594, 2, 1, 1),
        "ET": (0.184452, 43.135367, 0.302531, 0.123300, 2, 1, 1),
        "RC": (0.205882, 56.407876, 0.280864, 0.108642, 1, 1, 1),
    },
    ("brats2024", "ssa"): {
        "WT": (0.756288, 2.500000, 0.725326, 0.267571, 2, 0, 0),
        "TC": (0.749412, 1.732051, 0.746252, 0.187814, 1, 0, 0),
        "ET": (0.687808, 1.732051, 0.863971, 0.390634, 1, 0, 0),
    },
    ("brats2024", "men"): {
        "WT": (0.378144, 188.250000, 0.362663, 0.133785, 2, 2, 0),
        "TC": (0.374706, 187.866025, 0.373126, 0.093907, 1, 1, 0),
        "ET": (0.343904, 187.866025, 0.431985, 0.195317, 1, 1, 0),
    },
    ("brats2024", "men-rt"): {
        "GTV": (0.756288, 2.500000, 0.725326, 0.267571, 2, 0, 0),
    },
}

# dice, hd95, nsd, the three by lesion, n_tp, n_fp, n_fn of `make_pair`, as measured with BraTS_evaluation 0.0.10 on
# panoptica 2.1.7; men-rt with a spacing (z, y, x) of (0.5, 1, 1.5) mm, the others at 1 mm.
OFFICIAL_BY_MATCHING = {
    "gli": {
        "WT": (0.827218, 2.236068, 0.246237, 0.770846, 1.984059, 0.746094, 2, 2, 3),
        "TC": (0.722537, 2.449490, 0.177524, 0.398700, 2.264254, 0.584561, 3, 1, 1),
        "ET": (0.658586, 2.236068, 0.372197, 0.380990, 2.096249, 0.665314, 3, 1, 1),
        "RC": (0.396226, 31.784418, 0.213889, 0.617647, 1.732051, 0.842593, 1, 1, 1),
        "NETC": (0.882562, 1.000000, 0.701590, 0.546465, 1.207107, 0.633333, 2, 0, 0),
        "SNFH": (0.699531, 2.023607, 0.241319, 0.643352, 1.707107, 0.814806, 2, 2, 2),
    },
    "met": {
        "WT": (0.827218, 2.236068, 0.246237, 0.385423, 187.492030, 0.373047, 2, 2, 3),
        "TC": (0.722537, 2.449490, 0.177524, 0.269071, 126.126183, 0.367894, 3, 1, 1),
        "ET": (0.658586, 2.236068, 0.372197, 0.247657, 125.958177, 0.406055, 3, 1, 1),
        "RC": (0.396226, 31.784418, 0.213889, 0.205882, 249.244017, 0.280864, 1, 1, 1),
    },
    "ped": {
        "WT": (0.810548, 7.211103, 0.244364, 0.768255, 1.984059, 0.753121, 2, 3, 4),
        "TC": (0.677543, 13.928388, 0.192398, 0.477404, 2.264254, 0.642331, 3, 2, 2),
        "ET": (0.658586, 2.236068, 0.372197, 0.380990, 2.096249, 0.665314, 3, 1, 1),
        "CC": (0.396226, 31.784418, 0.213889, 0.617647, 1.732051, 0.842593, 1, 1, 1),
        "NETC": (0.882562, 1.000000, 0.701590, 0.546465, 1.207107, 0.633333, 2, 0, 0),
        "ED": (0.699531, 2.023607, 0.241319, 0.643352, 1.707107, 0.814806, 2, 2, 2),
    },
    "men-rt": {
        "GTV": (0.827218, 2.236068, 0.246237, 0.770846, 1.901388, 0.563139, 2, 2, 3),
    },
}


@pytest.mark.parametrize(("year", "cohort"), OFFICIAL_BY_DILATION)
def test_lesion_wise_scores_equal_the_official_scripts(year, cohort):
    scores = evaluate_case(*make_pair(find_preset(year, cohort).scheme), preset=year, cohort=cohort)
    names = ["lesionwise_dice", "lesionwise_hd95"]
    names += ["lesionwise_nsd_1mm", "lesionwise_nsd_0.5mm"] if year == "brats2024" else []
    for region, expected in OFFICIAL_BY_DILATION[year, cohort].items():
        found = [scores[region][name] for name in (*names, "n_tp", "n_fp", "n_fn")]
        assert found == pytest.approx(expected, abs=1e-6), region
    assert set(scores) == set(OFFICIAL_BY_DILATION[year, cohort])


@pytest.mark.parametrize("cohort", OFFICIAL_BY_MATCHING)
def test_matched_scores_equal_panoptica(cohort):
    spacing_mm = (0.5, 1.0, 1.5) if cohort == "men-rt" else (1.0, 1.0, 1.0)
    scores = evaluate_case(*make_pair(find_preset("brats2026", cohort).scheme), spacing_mm, "brats2026", cohort)
    names = ("dice", "hd95", "nsd_0.5voxel", "lesionwise_dice", "lesionwise_hd95", "lesionwise_nsd_1voxel")
    names += ("n_tp", "n_fp", "n_fn")
    for region, expected in OFFICIAL_BY_MATCHING[cohort].items():
        assert [scores[region][name] for name in names] == pytest.approx(expected, abs=1e-6), region
    assert set(scores) == set(OFFICIAL_BY_MATCHING[cohort])


@pytest.mark.parametrize(("year", "cohort"), ALL_PRESETS)
def test_a_perfect_prediction_has_perfect_scores(year, cohort):
    preset = find_preset(year, cohort)
    reference, _ = make_pair(preset.scheme)
    for region, scores in evaluate_case(reference, reference, (1, 2, 0.5), year, cohort).items():
        # In 2024 small lesions of the prediction are removed, so that a whole region with some is not reproduced.
        removes = getattr(preset.lesions.get(region), "filter_prediction", None)
        for name in scores if not removes else [name for name in scores if name.startswith(("lesionwise", "n_"))]:
            if name in ("reference_ml", "prediction_ml") or name.endswith("n_tp"):
                continue
            best = 0 if "hd95" in name or name.endswith(("n_fp", "n_fn", "error_ml")) else 1
            nothing = name.startswith(("large_", "small_")) and np.isnan(scores[name])  # no lesion of this size
            assert scores[name] == pytest.approx(best) or nothing, (region, name)


@pytest.mark.parametrize(("year", "cohort"), ALL_PRESETS)
def test_empty_regions_score_by_the_rule_of_the_year(year, cohort):
    preset = find_preset(year, cohort)
    lesion, nothing = np.zeros((2, 240, 240, 155), np.uint8)
    lesion[50:60, 50:60, 50:60] = ET if ET in LABEL_SCHEMES[preset.scheme].names else 1
    region = list(preset.regions)[0]  # noqa: RUF015
    # The diagonal: sqrt(240² + 240² + 155²) = 373.12866; MEN-RT and MET have it in 2024, too. The others are constants.
    diagonal = 373.1286640
    penalty = {"brats2023": 374, "brats2025": 374, "brats2026": 373}.get(year, diagonal)
    if year == "brats2024" and cohort not in ("met", "men-rt"):
        penalty = 337 if cohort == "gli" else 374
    by_lesion = year >= "brats2023"
    nsd = next(name for name in preset.measures if name.startswith("nsd_"))

    missed = evaluate_case(lesion, nothing, preset=year, cohort=cohort)[region]
    assert (missed["dice"], missed["hd95"], missed[nsd]) == (0, pytest.approx(penalty), 0)
    if by_lesion:
        assert (missed["lesionwise_dice"], missed["lesionwise_hd95"]) == (0, pytest.approx(penalty))
        assert (missed["n_tp"], missed["n_fp"], missed["n_fn"]) == (0, 0, 1)

    only_predicted = evaluate_case(nothing, lesion, preset=year, cohort=cohort)[region]
    assert (only_predicted["dice"], only_predicted["hd95"], only_predicted[nsd]) == (0, pytest.approx(penalty), 0)
    if by_lesion:
        assert (only_predicted["n_tp"], only_predicted["n_fp"], only_predicted["n_fn"]) == (0, 1, 0)

    agreed = evaluate_case(nothing, nothing, preset=year, cohort=cohort)[region]
    expected = (nan, nan, nan) if year == "brats2026" else (1, 0, 1)
    assert [agreed[name] for name in ("dice", "hd95", nsd)] == pytest.approx(expected, nan_ok=True)
    if by_lesion:
        for name in (name for name in agreed if name.startswith("lesionwise_")):
            assert agreed[name] == pytest.approx(expected[1 if "hd95" in name else 0], nan_ok=True), name
        assert agreed["n_tp"] == agreed["n_fp"] == agreed["n_fn"] == 0


def test_sensitivity_ppv_and_specificity_of_empty_masks():
    full, nothing = np.full((2, 3, 4), ET), np.zeros((2, 3, 4), int)
    scores = evaluate_case(nothing, nothing)["ET"]
    assert (scores["sensitivity"], scores["specificity"]) == (1, 1)
    assert scores["ppv"] == 1
    scores = evaluate_case(full, nothing)["ET"]
    assert (scores["ppv"], evaluate_case(full, full)["ET"]["ppv"]) == (0, 1)
    assert (scores["sensitivity"], scores["specificity"]) == (0, 1)  # there is no outside to leave alone
    scores = evaluate_case(nothing, full)["ET"]
    assert (scores["sensitivity"], scores["specificity"]) == (0, 0)


def test_false_positive_lesions_count_in_2023_of_any_size_in_2024_above_the_threshold_and_never_for_radiotherapy():
    reference = np.zeros((30, 30, 30), np.uint8)
    reference[5:10, 5:10, 5:10] = 1
    prediction = reference.copy()
    prediction[25, 25, 25] = 1
    prediction[20:24, 5:9, 20:24] = 1  # 64 voxels
    scores = {
        cohort: evaluate_case(reference, prediction, preset=year, cohort=cohort)
        for year, cohort in (("brats2023", "gli"), ("brats2024", "ssa"), ("brats2024", "men-rt"))
    }
    assert (scores["gli"]["WT"]["n_fp"], scores["gli"]["WT"]["lesionwise_dice"]) == (2, pytest.approx(1 / 3))
    assert (scores["ssa"]["WT"]["n_fp"], scores["ssa"]["WT"]["lesionwise_dice"]) == (1, pytest.approx(1 / 2))
    assert (scores["men-rt"]["GTV"]["n_fp"], scores["men-rt"]["GTV"]["lesionwise_dice"]) == (1, 1)


def test_lesions_within_the_dilation_are_one_and_a_lesion_at_the_threshold_does_not_count():
    reference = np.zeros((12, 12, 60), np.uint8)
    reference[3:9, 3:9, 4:10] = ED
    reference[3:9, 3:9, 16:22] = ED  # six voxels between: three dilations of each meet
    reference[3:5, 3:8, 40:45] = ED  # 50 mm³, not more
    scores = evaluate_case(reference, np.zeros_like(reference), preset="brats2023")["WT"]
    assert scores["n_fn"] == 1
    reference[3:9, 3:9, 16] = 0  # seven between
    assert evaluate_case(reference, np.zeros_like(reference), preset="brats2023")["WT"]["n_fn"] == 2
    reference[5, 5, 45] = ED  # 51
    assert evaluate_case(reference, np.zeros_like(reference), preset="brats2023")["WT"]["n_fn"] == 3


def test_dilation_stops_at_the_wall_of_the_volume():
    """Two lesions in corners that only dilations outside the volume would join stay two; the scores stay finite."""
    reference = np.zeros((4, 20, 20), np.uint8)
    reference[:, :5, :5] = ED
    reference[:, -5:, -5:] = ED
    scores = evaluate_case(reference, reference, preset="brats2023")["WT"]
    assert (scores["n_tp"], scores["lesionwise_dice"], scores["hd95"]) == (2, 1, 0)


def test_the_typo_of_2024_dilates_oedema_less_than_the_necrotic_core():
    """With eight voxels between, five dilations join two lesions and three do not."""
    labels = np.zeros((10, 10, 60), np.uint8)
    labels[2:8, 2:8, 5:10] = labels[2:8, 2:8, 18:23] = 1
    nothing = np.zeros_like(labels)
    oedema = evaluate_case(labels * np.uint8(ED), nothing, preset="brats2024")["SNFH"]
    necrosis = evaluate_case(labels * np.uint8(NCR), nothing, preset="brats2024")["NETC"]
    assert (oedema["n_fn"], necrosis["n_fn"]) == (2, 1)


def test_touching_tissue_joins_lesions_in_2024():
    """Two ET lesions on one necrosis are one lesion; without the necrosis they are two."""
    labels = np.zeros((10, 10, 60), np.uint8)
    labels[2:8, 2:8, 5:10] = labels[2:8, 2:8, 25:30] = ET
    nothing = np.zeros_like(labels)
    apart = evaluate_case(labels, nothing, preset="brats2024")["ET"]
    labels[2:8, 2:8, 10:25] = NCR
    joined = evaluate_case(labels, nothing, preset="brats2024")["ET"]
    assert (apart["n_fn"], joined["n_fn"]) == (2, 1)


@pytest.mark.parametrize("at", [(5, 5, 5), (0, 0, 0)], ids=["inside", "in a corner of the volume"])
def test_regions_of_one_voxel(at):
    reference, prediction = np.zeros((2, 9, 9, 9), np.uint8)
    reference[at] = ET
    prediction[at[0] + 1, at[1], at[2] + 2] = ET
    scores = evaluate_case(reference, prediction, (3.0, 1.0, 2.0))["ET"]
    # one step of 3 mm along z and two of 2 mm along x: sqrt(3² + 4²) = 5
    assert (scores["dice"], scores["hd95"], scores["hd95_pooled"]) == (0, 5, 5)
    assert evaluate_case(reference, prediction, (3.0, 1.0, 2.0), "brats2023")["ET"]["hd95"] == pytest.approx(5)


@pytest.mark.parametrize(
    ("year", "cohort"),
    [name for name in ALL_PRESETS if find_preset(*name).penalty_mm is not None or not find_preset(*name).lesions],
)
def test_where_the_tumour_lies_in_the_volume_does_not_matter(year, cohort):
    """Scores do not depend on how much background surrounds the tumours, unless a penalty is the volume's diagonal."""
    preset = find_preset(year, cohort)
    reference, prediction = make_pair(preset.scheme)
    wide = [np.pad(labels, ((7, 3), (0, 5), (11, 0))) for labels in (reference, prediction)]
    for region, scores in evaluate_case(*wide, preset=year, cohort=cohort).items():
        alone = evaluate_case(reference, prediction, preset=year, cohort=cohort)[region]
        for name in set(scores) - {"specificity"}:
            assert scores[name] == pytest.approx(alone[name], nan_ok=True), (region, name)


def test_what_cannot_be_scored_is_quoted():
    labels = np.zeros((3, 3, 3), np.uint8)
    with pytest.raises(ValueError, match=r"reference has shape \(3, 3, 3\), but the prediction \(3, 3, 2\)"):
        evaluate_case(labels, labels[..., :2])
    with pytest.raises(ValueError, match=r"labels \[7\] are not among \[0, 1, 2, 3\]"):
        evaluate_case(labels, np.full_like(labels, 7))
    with pytest.raises(ValueError, match=r"labels \[-1\]"):
        evaluate_case(labels, np.full((3, 3, 3), -1))
    with pytest.raises(ValueError, match="integers, not float64"):
        evaluate_case(labels, labels * 0.5)
    with pytest.raises(ValueError, match="no preset 'brats1999'"):
        evaluate_case(labels, labels, preset="brats1999")
    with pytest.raises(ValueError, match="brats2023 has no cohort 'men-rt'; it has gli, ssa, ped, men, met"):
        evaluate_case(labels, labels, preset="brats2023", cohort="men-rt")


def test_every_region_of_a_preset_has_labels_of_its_scheme_and_a_rule_if_any_has():
    for year, cohort in ALL_PRESETS:
        preset = find_preset(year, cohort)
        names = LABEL_SCHEMES[preset.scheme].names
        for region, labels in {**preset.regions, **preset.unscored}.items():
            assert set(labels) <= set(names), (year, cohort, region)
            assert not preset.lesions or region in preset.lesions
        assert not any(isnan(measure.missed) for measure in preset.measures.values())
