"""Rows per lesion: their means are the scores, their volumes add up, and the servers' own numbers come out."""

import csv
import json
from math import inf, nan
from pathlib import Path

import numpy as np
import pandas
import pytest
import SimpleITK as sitk
from label_maps import make_pair

from nnunet_brats_ext.brats import ED, ET
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.evaluation import (
    case_table,
    detection_table,
    evaluate_case,
    evaluate_folders,
    find_preset,
    lesion_table,
    lesions_of,
    nsd,
    region_table,
    summary_table,
    volume_table,
)
from nnunet_brats_ext.evaluation.presets import PRESETS
from nnunet_brats_ext.evaluation.results import read_results, save_results

REAL_SCORES = Path(__file__).parents[3] / "shared" / "real_scores"
WITH_LESIONS = [(year, cohort) for year, cohorts in PRESETS.items() for cohort in cohorts if cohorts[cohort].lesions]
SPACING_MM = (2.0, 1.0, 0.5)
WHOLE = {"dice": "global_bin_dsc", "hd95": "global_bin_hd95", "nsd_0.5voxel": "global_bin_nsd"}
COUNTED = {"n_tp": "tp", "n_fp": "fp", "n_fn": "fn", "lesion_precision": "prec", "lesion_recall": "rec"}
BY_LESION = {"dice": "sq_dsc", "hd95": "sq_hd95", "nsd_1voxel": "sq_nsd"}

# n_tp, n_fp, n_fn, precision, recall, F1 of large and of small lesions of `make_pair` at 1 mm, as measured with
# `brats-parse-metrics mets --vol_threshold 27 --overlap_threshold 0.2` of BraTS_evaluation 0.0.10.
OFFICIAL_BY_SIZE = {
    "WT": ((2, 2, 0, 0.5, 1, 2 / 3), (0, 2, 3, 0, 0, 0)),
    "TC": ((1, 1, 1, 0.5, 0.5, 0.5), (1, 1, 1, 0.5, 0.5, 0.5)),
    "ET": ((1, 1, 1, 0.5, 0.5, 0.5), (1, 1, 1, 0.5, 0.5, 0.5)),
    "RC": ((1, 1, 1, 0.5, 0.5, 0.5), (nan,) * 6),
}


# The columns of ET in the table that `brats-parse-metrics` (`mets` as above, and `seg`) makes of `make_pair`.
SERVER_TABLES = {
    "met": {
        "all_instance_tp_et": 3.0, "all_instance_fp_et": 1.0, "all_instance_fn_et": 1.0, "all_instance_prec_et": 0.75,
        "all_instance_rec_et": 0.75, "all_instance_f1_et": 0.75, "large_instance_tp_et": 1.0,
        "large_instance_fp_et": 1.0, "large_instance_fn_et": 1.0, "large_instance_prec_et": 0.5,
        "large_instance_rec_et": 0.5, "large_instance_f1_et": 0.5, "lesionwise_dsc_mean_et": 0.2476566236250598,
        "lesionwise_dsc_std_et": 0.3155449425278271, "lesionwise_hd95_mean_et": 125.95817732107628,
        "lesionwise_hd95_std_et": 174.68589705112677, "lesionwise_nsd_mean_et": 0.40605492503853163,
        "lesionwise_nsd_std_et": 0.3585078980960252, "small_instance_tp_et": 1.0, "small_instance_fn_et": 1.0,
        "small_instance_fp_et": 1.0, "small_instance_prec_et": 0.5, "small_instance_rec_et": 0.5,
        "small_instance_f1_et": 0.5, "global_dsc_et": 0.6585858585858586, "global_nsd_et": 0.3721969801275873,
        "global_hd95_et": 2.23606797749979,
    },
    "gli": {
        "all_instance_tp_et": 3.0, "all_instance_fp_et": 1.0, "all_instance_fn_et": 1.0, "all_instance_prec_et": 0.75,
        "all_instance_rec_et": 0.75, "all_instance_f1_et": 0.75, "global_dsc_et": 0.6585858585858586,
        "global_nsd_et": 0.3721969801275873, "global_hd95_et": 2.23606797749979,
        "lesionwise_dsc_mean_et": 0.38098995695839316, "lesionwise_dsc_std_et": 0.2628353096721012,
        "lesionwise_nsd_mean_et": 0.6653141842977909, "lesionwise_nsd_std_et": 0.22893589026717084,
        "lesionwise_hd95_mean_et": 2.0962485085339675, "lesionwise_hd95_std_et": 0.7510912916295238,
    },
}  # fmt: skip
SERVER_REGIONS = {"met": ["et", "rc", "tc", "wt"], "gli": ["snfh", "et", "netc", "rc", "tc", "wt"]}


def real_metastases() -> tuple[list[np.ndarray], tuple[float, ...]]:
    names = [f"{side}_BraTS-MET-01352-000.nii.gz" for side in ("reference", "prediction")]
    images = [sitk.ReadImage(str(REAL_SCORES / "met" / name)) for name in names]
    return [sitk.GetArrayFromImage(image) for image in images], images[0].GetSpacing()[::-1]


@pytest.mark.skipif(not REAL_SCORES.exists(), reason="needs the real label maps")
@pytest.mark.parametrize("year", ["2025", "2026"])
def test_metastases_score_as_panoptica_scores_them(year):
    pair, spacing_mm = real_metastases()
    golden = json.loads((REAL_SCORES / f"met_golden_{year}.json").read_text())
    golden = golden["metrics"][0] if year == "2026" else golden
    scores = evaluate_case(*pair, spacing_mm, f"brats{year}", "met", "released")
    rows = lesion_table(*pair, spacing_mm, f"brats{year}", "met", "released")
    for region, found in scores.items():
        expected = golden[region.lower()]
        for ours, theirs in (WHOLE | COUNTED).items():
            assert found[ours] == pytest.approx(expected.get(theirs, nan), abs=1e-6, nan_ok=True), (region, ours)
        matched = [row for row in rows if row["region"] == region and row["outcome"] == "found"]
        for ours, theirs in BY_LESION.items() if matched else ():
            mean, spread = (function([row[ours] for row in matched]) for function in (np.mean, np.std))
            assert [mean, spread] == pytest.approx([expected[theirs], expected[f"{theirs}_std"]], abs=1e-6)
        if year == "2025":
            for ours, theirs in BY_LESION.items():
                assert found[f"lesionwise_{ours}"] == pytest.approx(expected[theirs], abs=1e-6), (region, ours)
        else:  # every lesion by itself, in whatever order
            instances = expected["reference_instances"]
            theirs = sorted((one["volume"], one.get("sq_dsc", 0), one.get("sq_hd95", 373)) for one in instances)
            mine = [row for row in rows if row["region"] == region and row["lesion"]]
            ours = sorted((1000 * row["reference_ml"], row["dice"], row["hd95"]) for row in mine)
            assert np.array(ours) == pytest.approx(np.array(theirs), abs=1e-6)


def test_large_and_small_lesions_are_counted_as_by_the_parser_of_2026():
    rows = detection_table(*make_pair("resected_2024"), preset="brats2026", cohort="met")
    found = {(row["region"], row["lesions"]): list(row.values())[2:] for row in rows}
    for region, by_size in OFFICIAL_BY_SIZE.items():
        for size, expected in zip(("large", "small"), by_size, strict=True):
            assert found[region, size] == pytest.approx(expected, nan_ok=True), (region, size)
    assert {row["lesions"] for row in detection_table(*make_pair("glioma_2023"), preset="brats2023")} == {"all"}


@pytest.mark.parametrize(("year", "cohort"), WITH_LESIONS)
def test_means_of_rows_are_the_scores_and_volumes_add_up(year, cohort):
    pair = make_pair(find_preset(year, cohort).scheme)
    scores = evaluate_case(*pair, SPACING_MM, year, cohort)
    rows = lesion_table(*pair, SPACING_MM, year, cohort)
    for region, found in scores.items():
        of_region = [row for row in rows if row["region"] == region]
        counted = [row for row in of_region if row["counts"]]
        assert counted, region
        for name in (name.removeprefix("lesionwise_") for name in found if name.startswith("lesionwise_")):
            assert np.mean([row[name] for row in counted]) == pytest.approx(found[f"lesionwise_{name}"], abs=1e-12)
        assert sum(row["reference_ml"] for row in of_region) == pytest.approx(found["reference_ml"])
        numbers = [row["lesion"] for row in of_region if row["lesion"]]
        assert numbers == list(range(1, len(numbers) + 1))  # from the largest on
        volumes = [row["reference_ml"] for row in of_region if row["lesion"]]
        assert volumes == sorted(volumes, reverse=True)
        predicted = {number for row in of_region for number in row["predicted_lesions"]}
        assert predicted == set(range(1, len(predicted) + 1)) or year in ("brats2024", "brats2025")
        outcomes = [row["outcome"] for row in of_region if row["counts"] or row["outcome"] == "only predicted"]
        assert outcomes.count("only predicted") == found["n_fp"]
        if (year, cohort) != ("brats2026", "met"):  # whose counts take the small ones in
            everything = [row["outcome"] for row in of_region if row["size"] != "small"]
            assert (everything.count("found"), everything.count("missed")) == (found["n_tp"], found["n_fn"])


def test_a_lesion_is_matched_with_all_that_touches_it_and_what_touches_none_is_only_predicted():
    reference, prediction = np.zeros((2, 30, 30, 40), np.uint8)
    reference[5:15, 5:15, 5:15] = ET
    prediction[5:15, 5:15, 5:9] = prediction[5:15, 5:15, 11:15] = ET  # two parts of it: 400 voxels each
    prediction[25:28, 25:28, 30:33] = ET
    first, second = (row for row in lesion_table(reference, prediction, (1, 1, 2)) if row["region"] == "ET")
    assert (first["lesion"], first["predicted_lesions"], first["outcome"]) == (1, (1, 2), "found")
    assert (first["reference_ml"], first["prediction_ml"], first["dice"]) == (2, 1.6, pytest.approx(8 / 9))
    assert (first["x_mm"], first["y_mm"], first["z_mm"]) == (19, 9.5, 9.5)
    assert (second["lesion"], second["predicted_lesions"], second["outcome"]) == (None, (3,), "only predicted")
    assert (second["dice"], second["hd95"], second["prediction_ml"]) == (0, 374, 0.054)
    matched = [row for row in lesion_table(reference, prediction, preset="brats2026") if row["region"] == "ET"]
    assert [row["predicted_lesions"] for row in matched] == [(1,), (2,), (3,)]  # one to one


@pytest.mark.parametrize(("year", "cohort"), [("brats2020", "gli"), ("brats2023", "men"), ("brats2026", "gli")])
def test_tolerances_of_nsd_are_columns_beside_those_of_the_preset(year, cohort):
    pair = make_pair(find_preset(year, cohort).scheme)
    plain, more = (evaluate_case(*pair, SPACING_MM, year, cohort, nsd_mm=nsd_mm) for nsd_mm in ((), (0.5, 1, 2.5)))
    variant = {"brats2020": "voxels", "brats2023": "surfels", "brats2026": "balanced"}[year]
    for region, scores in more.items():
        assert {name: scores[name] for name in plain[region]} == pytest.approx(plain[region], nan_ok=True)
        masks = [np.isin(labels, find_preset(year, cohort).regions[region]) for labels in pair]
        for tolerance in (0.5, 1, 2.5):
            expected = nsd(*masks, SPACING_MM, tolerance, variant)
            assert scores[f"nsd_{tolerance:g}mm"] == pytest.approx(expected), (region, tolerance)
            assert f"lesionwise_nsd_{tolerance:g}mm" in scores or year == "brats2020"
    for wrong in (0, -1, inf, nan):
        with pytest.raises(ValueError, match="should be positive numbers of mm"):
            evaluate_case(*pair, nsd_mm=[wrong])


def test_volumes_and_their_errors_are_those_of_the_label_maps():
    reference, prediction = np.zeros((2, 9, 9, 9), np.uint8)
    reference[1:6, 1:5, 1:3], prediction[1:4, 1:5, 1:3] = ED, ET
    rows = {row.pop("region"): row for row in volume_table(reference, prediction, (2.0, 5.0, 0.1), "brats2024")}
    assert list(rows["WT"].values()) == pytest.approx([0.04, 0.024, -0.016, 0.016])
    assert list(rows["ET"].values()) == pytest.approx([0, 0.024, 0.024, 0.024])


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    """Two cases whose voxels are 0.5 x 1 x 2 mm (x, y, z), whose x runs to the left and whose first voxel is at 10."""
    for case, flipped in (("case_a", False), ("case_b", True)):
        for folder, labels in zip(("references", "predictions"), make_pair("resected_2024"), strict=True):
            image = sitk.GetImageFromArray(labels[:, :, ::-1] if flipped else labels)
            image.SetSpacing(SPACING_MM[::-1])
            image.SetOrigin((10.0, 20.0, 30.0))
            (tmp_path / folder).mkdir(exist_ok=True)
            sitk.WriteImage(image, str(tmp_path / folder / f"{case}.nii.gz"))
    return [tmp_path / "references", tmp_path / "predictions"]


def test_lesions_are_files_beside_the_results(folders, tmp_path, capsys):
    out = tmp_path / "scores" / "met.json"
    command = ["evaluate", *map(str, folders), "--labels", "trained", "--cohort", "met", "-np", "1", "-o", str(out)]
    assert main([*command, "--preset", "brats2026", "--nsd", "2"]) == 0
    rows = list(csv.DictReader((out.parent / "met_lesions.csv").open()))
    records = json.loads((out.parent / "met_lesions.json").read_text())
    assert [float(row["dice"]) for row in rows] == [one["dice"] for one in records]
    assert [row["predicted_lesions"] for row in rows] == [" ".join(map(str, r["predicted_lesions"])) for r in records]
    assert "lesions" not in json.loads(out.read_text())
    scores = read_results(out)["cases"]["case_a"]["WT"]
    table = pandas.read_csv(out.parent / "met_lesions.csv")
    counted = table[table.counts & (table.case == "case_a") & (table.region == "WT")]
    for name in ("dice", "hd95", "nsd_1voxel", "nsd_2mm"):
        assert counted[name].mean() == pytest.approx(scores[f"lesionwise_{name}"], abs=1e-12)
    assert len(pandas.read_json(out.parent / "met_lesions.json")) == len(table)
    assert str(out.parent / "met_lesions.csv") in capsys.readouterr().out
    # Other results in this place leave none of these behind.
    assert main([*command, "--preset", "brats2026", "--no-lesions"]) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["met.csv", "met.json", "met_summary.csv"]


@pytest.mark.parametrize("cohort", SERVER_TABLES)
def test_the_table_of_the_server_is_written_as_it_is(cohort, tmp_path):
    for folder, labels in zip("ab", make_pair("resected_2024"), strict=True):
        (tmp_path / folder).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / folder / "BraTS-00001-000.nii.gz"))
    results = evaluate_folders(tmp_path / "a", tmp_path / "b", "brats2026", cohort, "trained")
    save_results(results, tmp_path / "results.json")
    heading, *table = csv.reader((tmp_path / "results_server.csv").open())
    assert list(dict.fromkeys(name.rsplit("_", 1)[1] for name in heading[1:])) == SERVER_REGIONS[cohort]
    assert [row[0] for row in table] == ["BraTS-00001-000", "mean", "std", "median"]
    for row in (table[0], table[1], table[3]):  # of one case
        found = {name: float(value) for name, value in zip(heading, row, strict=True) if name.endswith("_et")}
        assert list(found) == list(SERVER_TABLES[cohort])
        assert found == pytest.approx(SERVER_TABLES[cohort], abs=1e-9)
    assert not any(table[2][1:])
    save_results(
        evaluate_folders(tmp_path / "a", tmp_path / "b", "brats2024", cohort, "trained"), tmp_path / "results.json"
    )
    assert not (tmp_path / "results_server.csv").exists()


def test_lesions_lie_where_a_viewer_shows_them(folders):
    results = evaluate_folders(*folders, "brats2024", labels="trained")
    plain, flipped = (
        next(row for row in lesions_of(results) if (row["case"], row["region"], row["lesion"]) == (case, "WT", 1))
        for case in ("case_a", "case_b")
    )
    reference, _ = make_pair("resected_2024")
    largest = np.argwhere(reference)[:, ::-1].mean(0)  # nearly all of it is the largest lesion
    right, front, top = np.array((10, 20, 30)) * (-1, -1, 1) + largest * SPACING_MM[::-1] * (-1, -1, 1)
    assert (plain["y_mm"], plain["z_mm"]) == pytest.approx((front, top), abs=15)
    assert plain["x_mm"] == pytest.approx(right, abs=5)
    ends = -10 - 55 * 0.5  # the last voxel along x
    assert flipped["x_mm"] == pytest.approx(ends - (plain["x_mm"] + 10), abs=1e-3)


def test_tables_are_taken_by_pandas_as_they_are(folders, tmp_path):
    pair = make_pair("resected_2024")
    results = evaluate_folders(*folders, "brats2026", "met", "trained")
    frames = {
        "regions": pandas.DataFrame(region_table(*pair, SPACING_MM, "brats2026", "met")),
        "volumes": pandas.DataFrame(volume_table(*pair, SPACING_MM, "brats2024")),
        "lesions": pandas.DataFrame(lesion_table(*pair, SPACING_MM, "brats2026", "met")),
        "detection": pandas.DataFrame(detection_table(*pair, SPACING_MM)),
        "cases": pandas.DataFrame(case_table(results)),
        "summary": pandas.DataFrame(summary_table(results)),
        "all lesions": pandas.DataFrame(lesions_of(results)),
    }
    save_results(results, tmp_path / "results.json")
    assert list(frames["cases"]) == list(pandas.read_csv(tmp_path / "results.csv"))
    assert list(frames["summary"]) == list(pandas.read_csv(tmp_path / "results_summary.csv"))
    assert list(frames["all lesions"]) == list(pandas.read_csv(tmp_path / "results_lesions.csv"))
    assert frames["regions"].set_index("region").loc["ET", "n_tp"] == 3
    assert len(frames["all lesions"]) == 2 * len(frames["lesions"])
    with pytest.raises(ValueError, match="brats2020 gli scores no lesions; brats2023, brats2024"):
        lesion_table(*pair, preset="brats2020")
    with pytest.raises(ValueError, match="these results have no lesions"):
        lesions_of(evaluate_folders(*folders, "brats2024", labels="trained", lesions=False))
