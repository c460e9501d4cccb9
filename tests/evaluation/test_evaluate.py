"""`nnunet_brats evaluate` on folders: which files belong together, what cannot be scored, and what is written."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_brats_ext.brats import ED, ET, LABEL_SCHEMES, NCR
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.dataset_conversion.scan import scan
from nnunet_brats_ext.evaluation import evaluate, evaluate_folders, label_maps
from nnunet_brats_ext.evaluation.label_maps import find_label_maps
from nnunet_brats_ext.evaluation.results import summarise_scores

REAL_CASE = Path(__file__).parents[3] / "shared" / "real_case"


def write(path: Path, labels: np.ndarray, spacing_xyz=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(spacing_xyz)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path))
    return path


def make_case(seed: int = 0, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """A tumour of nested boxes as trained, and the same shifted by a voxel along a direction."""
    reference = np.zeros((size, size, size), np.uint8)
    for label, margin in ((ED, 3), (NCR, 5), (ET, 6)):
        reference[margin : size - margin, margin:-margin, margin:-margin] = label
    return reference, np.roll(reference, 1, axis=seed % 3)


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Three cases as nnU-Net lays them out, with the dataset.json that says how labels are numbered."""
    reference, prediction = tmp_path / "labelsTr", tmp_path / "predictions"
    for seed in range(3):
        labels = make_case(seed)
        write(reference / f"case_{seed}.nii.gz", labels[0])
        write(prediction / f"case_{seed}.nii.gz", labels[1])
    dataset = {"labels": LABEL_SCHEMES["glioma_2017"].nnunet_labels()}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    return reference, prediction


def test_the_command_writes_what_the_function_returns(folders, tmp_path, capsys):
    out = tmp_path / "scores" / "results.json"
    assert main(["evaluate", *map(str, folders), "--preset", "brats2020", "-o", str(out), "-np", "2"]) == 0
    results = json.loads(out.read_text())
    assert results == evaluate_folders(*folders)
    assert list(results["cases"]) == ["case_0", "case_1", "case_2"]
    assert set(results["cases"]["case_0"]["WT"]) >= {"dice", "hd95", "hd95_pooled", "sensitivity", "specificity"}
    # WT is a box of 10³ shifted by 1: they share 9 * 10 * 10 voxels of 1000.
    assert results["cases"]["case_0"]["WT"]["dice"] == pytest.approx(0.9)
    assert results["summary"]["WT"]["dice"]["mean"] == pytest.approx(0.9)
    rows = list(csv.DictReader((out.parent / "results.csv").open()))
    assert len(rows) == 9
    assert float(rows[0]["dice"]) == results["cases"]["case_0"]["WT"]["dice"]
    summary = list(csv.DictReader((out.parent / "results_summary.csv").open()))
    assert {"region", "metric", "mean", "std", "ci_low", "ci_high", "median", "q1", "q3", "n"} == set(summary[0])
    shown = capsys.readouterr().out
    assert "brats2020 (gli), 3 cases" in shown
    assert "0.900 ± 0.000 (0.900)" in shown


def test_a_cross_validation_in_one_folder_is_of_the_folds_of_a_splits_file(folders, tmp_path, capsys):
    reference, prediction = folders
    folds = [{"train": [], "val": ["case_0", "case_2"]}, {"train": [], "val": ["case_1"]}]
    (splits := tmp_path / "splits_final.json").write_text(json.dumps(folds))
    command = ["evaluate", str(reference), str(prediction), "--splits", str(splits), "-o", str(tmp_path / "r.json")]
    assert main([*command, "-np", "1"]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["folds"] == {"case_0": "0", "case_1": "1", "case_2": "0"}
    assert "folds_std" in (tmp_path / "r_summary.csv").read_text()
    splits.write_text(json.dumps(folds[:1]))
    assert main([*command, "-np", "1"]) == 1
    assert "holds out none of case_1, predicted in" in capsys.readouterr().err
    (prediction / "case_1.nii.gz").unlink()
    assert main([*command, "-np", "1"]) == 1
    assert "1 cases in" in capsys.readouterr().err, "one that lacks a prediction is missed as ever"


def test_several_predictions_make_one_table_with_a_column_of_models(folders, tmp_path, monkeypatch, capsys):
    reference, prediction = folders
    shutil.copytree(reference, tmp_path / "exact")
    read = []
    real = evaluate.read_labels
    monkeypatch.setattr(evaluate, "read_labels", lambda path, *given: read.append(path) or real(path, *given))
    out = tmp_path / "results.json"
    command = ["evaluate", str(reference), str(prediction), str(tmp_path / "exact"), "--preset", "brats2023"]
    assert main([*command, "-o", str(out), "-np", "1"]) == 0
    assert len(read) == len(set(read)) == 9, "every image is read once"
    models = json.loads(out.read_text())["models"]
    alone = [evaluate_folders(reference, folder, "brats2023") for folder in (prediction, tmp_path / "exact")]
    assert [models[name]["cases"] for name in ("predictions", "exact")] == [one["cases"] for one in alone]
    for table, rows in (("results.csv", 18), ("results_lesions.csv", 18)):
        found = list(csv.DictReader((tmp_path / table).open()))
        assert next(iter(found[0])) == "model" and {row["model"] for row in found} == {"predictions", "exact"}
        assert len(found) == rows
    summary = [row for row in csv.DictReader((tmp_path / "results_summary.csv").open()) if row["metric"] == "dice"]
    means = {row["model"]: float(row["mean"]) for row in summary if row["region"] == "WT"}
    assert means == pytest.approx({"predictions": 0.9, "exact": 1.0, "mean of 2 models": 0.95})
    assert "exact" in capsys.readouterr().out
    names = ["--names", "a", "a"]
    assert main([*command, *names, "-o", str(out), "-np", "1"]) == 1
    assert "a is given twice" in capsys.readouterr().err


def test_tables_are_as_wide_as_they_are_when_piped_and_as_asked(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    command = ["evaluate", *map(str, folders), "--preset", "brats2024", "-o", str(tmp_path / "r.json"), "-np", "1"]
    assert main(command) == 0
    wide = capsys.readouterr().out
    assert max(map(len, wide.splitlines())) > 150 and wide.count("hd95 (mm)") == 2
    monkeypatch.setenv("COLUMNS", "90")
    assert main(command) == 0
    narrow = capsys.readouterr().out
    assert max(len(line) for line in narrow.splitlines() if "written" not in line) <= 90
    assert narrow.count("hd95 (mm)") > 2


def test_repeating_the_command_replaces_its_files_and_leaves_no_others(folders, tmp_path):
    command = ["evaluate", *map(str, folders), "-o", str(tmp_path / "out" / "results.json"), "-np", "1"]
    assert main(command) == main(command) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "results.json",
        "results.csv",
        "results_summary.csv",
    }


def test_released_numbering_gives_the_scores_of_the_trained_one(folders, tmp_path):
    expected = evaluate_folders(*folders, labels="trained")
    back = np.array([0, 2, 1, 4], np.uint8)  # as trained -> as released until 2022
    for folder in folders:
        for path in folder.iterdir():
            write(
                tmp_path / "released" / folder.name / path.name, back[sitk.GetArrayFromImage(sitk.ReadImage(str(path)))]
            )
    released = [tmp_path / "released" / folder.name for folder in folders]
    results = evaluate_folders(*released, labels="released")
    assert results["cases"] == expected["cases"]
    assert evaluate_folders(*released, preset="brats2023", labels="glioma_2017")["labels"] == "glioma_2017"


def test_without_a_dataset_json_the_numbering_must_be_given(folders, tmp_path):
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(ValueError, match="add --labels trained"):
        evaluate_folders(*folders)
    # The one that comes with the downloads of 2020 says nothing about regions.
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "necrosis"}}))
    with pytest.raises(ValueError, match=r"no dataset\.json beside"):
        evaluate_folders(*folders)
    # Names of regions do not matter; nnU-Net's own conversion of 2021 calls them otherwise.
    labels = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert evaluate_folders(*folders)["labels"] == "trained"


def test_what_one_side_says_of_its_numbering_does_not_count_for_the_other(folders, tmp_path, capsys):
    reference, prediction = folders
    expected = evaluate_folders(*folders)["cases"]
    back = LABEL_SCHEMES["glioma_2023"].trained
    release, elsewhere = tmp_path / "release", tmp_path / "elsewhere" / "deep" / "down"
    for path in sorted(reference.iterdir()):
        labels = np.array([back[value] for value in range(4)], np.uint8)[sitk.GetArrayFromImage(sitk.ReadImage(path))]
        case = path.name.removesuffix(".nii.gz")
        (release / case).mkdir(parents=True)
        write(release / case / f"{case}-seg.nii.gz", labels)  # below the same dataset.json, in a release's form
    shutil.copytree(prediction, elsewhere)  # without one
    for pair in ((release, prediction), (reference, elsewhere)):
        with pytest.raises(ValueError, match=r"no dataset\.json beside \S+ says how .* --labels released,trained"):
            evaluate_folders(*pair, preset="brats2023")
    out = str(tmp_path / "results.json")
    command = ["evaluate", str(release), str(prediction), "--preset", "brats2023", "-np", "1", "-o", out]
    assert main([*command, "--labels", "released,trained"]) == 0
    results = json.loads(Path(out).read_text())
    assert results["labels"] == "released and trained"
    assert {case: regions["TC"]["dice"] for case, regions in results["cases"].items()} == {
        case: regions["TC"]["dice"] for case, regions in expected.items()
    }
    assert main([*command, "--labels", "released,trained,trained"]) == 1
    assert "one for all files, or one for references" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["results.csv", "results", "folder.json"])
def test_an_output_that_cannot_be_is_refused_before_scoring(out, folders, tmp_path, capsys):
    (tmp_path / "folder.json").mkdir()
    for verb in ("evaluate", "rank", "tune"):
        assert main([verb, *map(str, folders), "-o", str(tmp_path / out)]) == 1
        said = capsys.readouterr().err
        assert f"-o {tmp_path / out}" in said
        assert "a file that ends in .json" in said


def test_copies_of_a_release_with_folders_named_like_files_are_read(tmp_path):
    labels, _ = make_case()
    released = LABEL_SCHEMES["glioma_2017"].trained
    labels = np.array([released[value] for value in range(4)], np.uint8)[labels]
    for number, name in ((1, "BraTS20_Training_001_seg.nii"), (355, "W39_1998.09.19_Segm.nii")):
        case = tmp_path / "MICCAI_BraTS2020_TrainingData" / f"BraTS20_Training_{number:03}"
        inside = case / name if number == 1 else case  # as a copy on Kaggle has them
        inside.mkdir(parents=True)
        write(inside / name, labels)
        for sequence in ("t1", "t1ce", "t2", "flair"):
            write(case / f"BraTS20_Training_{number:03}_{sequence}.nii", labels)
    cases = find_label_maps(tmp_path / "MICCAI_BraTS2020_TrainingData").files
    assert sorted(cases) == ["BraTS20_Training_001", "BraTS20_Training_355"]


def test_what_a_release_holds_twice_or_under_other_names_is_not_passed_over(tmp_path):
    labels, _ = make_case()
    release = tmp_path / "MICCAI_BraTS2020_TrainingData"
    for case in ("BraTS20_Training_001", "House_007"):
        write(release / case / f"{case}_seg.nii.gz", labels)
        for sequence in ("t1", "t1ce", "t2", "flair"):
            write(release / case / f"{case}_{sequence}.nii.gz", labels)
    assert sorted(find_label_maps(release).files) == ["BraTS20_Training_001", "House_007"]
    write(release / "again" / "BraTS20_Training_001" / "BraTS20_Training_001_seg.nii.gz", labels)
    with pytest.raises(ValueError, match="two label maps of case BraTS20_Training_001"):
        find_label_maps(release)


def test_a_link_to_nothing_is_an_error_and_not_left_out(folders):
    (folders[0] / "case_1.nii.gz").unlink()
    (folders[0] / "case_1.nii.gz").symlink_to("nowhere.nii.gz")
    with pytest.raises(ValueError, match=r"case_1: .*case_1.nii.gz does not exist"):
        evaluate_folders(*folders, partial=True)


def test_a_release_of_case_folders_is_found_and_its_images_are_not_taken_for_labels(tmp_path):
    labels, _ = make_case()
    for grade, case in (("HGG", "Brats18_A_1"), ("LGG", "Brats18_B_1")):
        for sequence in ("flair", "t1", "seg"):
            write(tmp_path / grade / case / f"{case}_{sequence}.nii.gz", labels)
        (tmp_path / grade / case / f"._{case}_seg.nii.gz").write_bytes(b"left by a Mac")
    assert list(find_label_maps(tmp_path).files) == ["Brats18_A_1", "Brats18_B_1"]


def test_a_release_is_looked_through_once(tmp_path, monkeypatch):
    labels, _ = make_case()
    for side in ("references", "predictions"):
        for sequence in ("t1", "t1ce", "t2", "flair", "seg"):
            case = tmp_path / side / "BraTS20_Training_001"
            write(case / f"BraTS20_Training_001_{sequence}.nii.gz", labels)
    looked_through = []
    monkeypatch.setattr(label_maps, "scan", lambda folder: looked_through.append(folder) or scan(folder))
    folders = [tmp_path / side for side in ("references", "predictions")]
    with pytest.raises(ValueError, match="add --labels trained"):
        evaluate_folders(*folders)
    assert looked_through == folders


def test_missing_and_surplus_cases_are_named_unless_partial(folders):
    reference, prediction = folders
    (prediction / "case_1.nii.gz").rename(prediction / "case_9.nii.gz")
    with pytest.raises(
        ValueError, match=r"(?s)missing in .*predictions: case_1\n.*missing in .*labelsTr: case_9\n.*--partial"
    ):
        evaluate_folders(*folders)
    assert list(evaluate_folders(*folders, partial=True)["cases"]) == ["case_0", "case_2"]
    for path in prediction.iterdir():
        path.rename(path.with_name(f"other_{path.name}"))
    with pytest.raises(ValueError, match="share no case; they hold, for example, case_0 and other_case_0"):
        evaluate_folders(*folders, partial=True)
    with pytest.raises(ValueError, match=r"there is no .*nowhere; give a label map"):
        evaluate_folders(reference, prediction / "nowhere")


def test_two_files_of_one_case_are_an_error(folders):
    write(folders[1] / "case_0.nii", make_case()[0])
    with pytest.raises(ValueError, match="two label maps of case case_0"):
        evaluate_folders(*folders)


def test_all_cases_that_cannot_be_scored_are_named_and_nothing_is_written(folders, tmp_path, capsys):
    _, prediction = folders
    labels = make_case()[1]
    write(prediction / "case_0.nii.gz", labels[:-1])
    write(prediction / "case_1.nii.gz", np.where(labels == ET, 9, labels))
    (prediction / "case_2.nii.gz").write_bytes((prediction / "case_2.nii.gz").read_bytes()[:40])
    assert main(["evaluate", *map(str, folders), "-o", str(tmp_path / "results.json"), "-np", "1"]) == 1
    said = capsys.readouterr().err
    assert "3 of 3 cases failed" in said
    assert "case_0: reference and prediction differ in size (16, 16, 16) against (16, 16, 15)" in said
    assert "case_1: " in said
    assert "labels [9.0] are not among [0, 1, 2, 3]" in said
    assert "case_2: " in said
    assert "is truncated or damaged" in said
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("geometry", "what"),
    [({"spacing_xyz": (1.0, 1.0, 2.0)}, "spacing"), ({"origin": (0.0, 0.0, 5.0)}, "origin")],
)
def test_files_on_different_grids_are_an_error(folders, geometry, what):
    write(folders[1] / "case_1.nii.gz", make_case(1)[1], **geometry)
    with pytest.raises(ValueError, match=f"case_1: reference and prediction differ in {what}"):
        evaluate_folders(*folders)


def test_a_header_that_differs_by_rounding_is_the_same_grid(folders):
    expected = evaluate_folders(*folders)
    write(folders[1] / "case_1.nii.gz", make_case(1)[1], spacing_xyz=(1.0, 1.0001, 1.0), origin=(0.001, 0.0, 0.0))
    assert evaluate_folders(*folders)["cases"] == expected["cases"]


def test_float_files_of_whole_numbers_are_labels_and_others_are_not(folders):
    expected = evaluate_folders(*folders)
    labels = make_case(0)[1].astype(np.float32)
    write(folders[1] / "case_0.nii.gz", labels)
    assert evaluate_folders(*folders)["cases"] == expected["cases"]
    labels[8, 8, 8] = 1.5
    write(folders[1] / "case_0.nii.gz", labels)
    with pytest.raises(ValueError, match=r"case_0: .*labels \[1.5\] are not among"):
        evaluate_folders(*folders)


def test_spacing_reaches_the_scores_in_the_order_of_the_axes(tmp_path):
    """A voxel of 1 x 1 x 4 mm (x, y, z): a step along z is 4 mm."""
    reference, prediction = np.zeros((2, 8, 8, 8), np.uint8)
    reference[4, 4, 4] = prediction[5, 4, 4] = ET
    paths = [
        write(tmp_path / name / "a.nii.gz", labels, spacing_xyz=(1.0, 1.0, 4.0))
        for name, labels in (("reference", reference), ("prediction", prediction))
    ]
    assert evaluate_folders(*paths, labels="trained")["cases"]["a"]["ET"]["hd95"] == 4


def test_empty_regions_are_flagged(tmp_path, capsys):
    labels = make_case()[0]
    without = np.where(labels == ET, NCR, labels)
    pairs = {"absent": (without, without), "extra": (without, labels), "missed": (labels, without)}
    for case, pair in pairs.items():
        for folder, values in zip(("reference", "prediction"), pair, strict=True):
            write(tmp_path / folder / f"{case}.nii.gz", values)
    command = [str(tmp_path / "reference"), str(tmp_path / "prediction"), "--labels", "trained"]
    assert main(["evaluate", *command, "-o", str(tmp_path / "results.json"), "-np", "1"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["empty"] == {
        "absent": {"ET": "both"},
        "extra": {"ET": "reference"},
        "missed": {"ET": "prediction"},
    }
    assert "missed altogether: ET in 1 of 3 cases" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["empty"] for row in rows if row["region"] == "ET"] == ["both", "reference", "prediction"]


def test_no_score_is_null_in_json_and_does_not_count(tmp_path):
    nothing = np.zeros((8, 8, 8), np.uint8)
    for folder in ("reference", "prediction"):
        write(tmp_path / folder / "empty.nii.gz", nothing)
        write(tmp_path / folder / "full.nii.gz", make_case()[0])
    command = [
        str(tmp_path / "reference"),
        str(tmp_path / "prediction"),
        "--preset",
        "brats2026",
        "--labels",
        "trained",
    ]
    assert main(["evaluate", *command, "-o", str(tmp_path / "results.json"), "-np", "1"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["cases"]["empty"]["WT"]["dice"] is None
    assert (results["summary"]["WT"]["dice"]["mean"], results["summary"]["WT"]["dice"]["n"]) == (1, 1)
    assert (results["summary"]["RC"]["dice"]["mean"], results["summary"]["RC"]["dice"]["n"]) == (None, 0)


def test_the_summary_is_that_of_its_definition():
    cases = {str(value): {"WT": {"dice": value}} for value in (0.0, 1.0, 2.0, 5.0)}
    # mean 8 / 4; variance of the sample (4 + 1 + 0 + 9) / 3; quartiles between the second and third values
    expected = {"mean": 2.0, "std": np.sqrt(14 / 3), "median": 1.5, "q1": 0.75, "q3": 2.75, "n": 4}
    found = summarise_scores(cases)["WT"]["dice"]
    low, high = found.pop("ci_low"), found.pop("ci_high")
    assert found == pytest.approx(expected)
    assert 0 <= low < 2 < high <= 5, "the interval of the mean, which tests/evaluation/test_statistics.py checks"
    assert summarise_scores({"a": {"WT": {"dice": 0.5}}})["WT"]["dice"]["std"] is None


@pytest.mark.parametrize(("processes", "preset"), [(1, "brats2020"), (2, "brats2026")])  # without and with lesions
def test_memory_does_not_grow_with_the_number_of_cases(tmp_path, processes, preset):
    """The real command on 500 cases peaks where it does on 50; kept label maps would be 500 * 2 * 0.25 MB more."""
    labels = [write(tmp_path / f"{name}.nii.gz", np.pad(labels, 24)) for name, labels in enumerate(make_case())]
    code = (
        "import resource, sys; from nnunet_brats_ext.cli import main; status = main(sys.argv[1:]);"
        "peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)];"
        "print('peak', max(peaks)); sys.exit(status)"
    )
    peaks = {}
    for count in (50, 500):
        folders = [tmp_path / f"{count}" / name for name in ("reference", "prediction")]
        for folder, path in zip(folders, labels, strict=True):
            folder.mkdir(parents=True)
            for number in range(count):
                os.link(path, folder / f"case_{number:03}.nii.gz")
        arguments = ["evaluate", *map(str, folders), "--labels", "trained", "-np", str(processes), "--preset", preset]
        arguments += ["-o", str(tmp_path / f"{count}.json")]
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks[count] = int(done.stdout.split()[-1])
        assert len(json.loads((tmp_path / f"{count}.json").read_text())["cases"]) == count
    assert peaks[500] - peaks[50] < 40_000  # kB


@pytest.mark.skipif(not REAL_CASE.exists(), reason="needs the real case")
@pytest.mark.parametrize("preset", ["brats2020", "brats2023", "brats2024", "brats2026"])
def test_candidates_for_a_real_case_are_scored_by_all_presets(preset, tmp_path):
    reference = REAL_CASE / "MICCAI_BraTS2020_TrainingData" / "BraTS20_Training_901" / "BraTS20_Training_901_seg.nii.gz"
    for candidate in sorted((REAL_CASE / "candidates").iterdir()):
        scores = evaluate_folders(reference, candidate, preset, labels="glioma_2017")["cases"]["BraTS20_Training_901"]
        assert 0.7 < scores["WT"]["dice"] < 1, candidate
        assert scores["WT"]["hd95"] < 40, candidate
