"""The demo, which runs every command of the way, and then what else nnU-Net's users do with a trained model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_brats_ext.cli import main
from nnunet_brats_ext.demo import BASELINE, CONFIGURATION, DATASET, NAME, OURS

pytestmark = pytest.mark.end_to_end
MODEL = ("-d", DATASET, "-c", CONFIGURATION, "-tr", OURS)
BRIEF = {"nnUNet_brats_epochs": "1", "nnUNet_brats_iterations": "2"}


def command(folder: Path, *words: str, **settings: str) -> str:
    """Run one of nnU-Net's commands in the demo's folder; its output."""
    ours = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    environment = {**os.environ, **ours, "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", **settings}
    done = subprocess.run(
        [Path(sys.executable).parent / words[0], *words[1:]],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}"
    return done.stdout


def labels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    brief = ("--cases", "8", "--held-out", "2", "--size", "32", "36", "32", "--epochs", "1", "--iterations", "2")
    assert main(["demo", str(folder / "demo"), *brief]) == 0
    return folder / "demo"


def test_the_demo_goes_all_the_way(demo):
    for entry in (OURS, f"{OURS}_fold0", f"{BASELINE}_fold0"):
        results = json.loads((demo / "scores" / f"{entry}.json").read_text())
        assert set(results["summary"]) == {"WT", "TC", "ET"}
        assert len(results["cases"]) == 2
        for case in results["cases"]:
            restored = labels(demo / "submission" / entry / f"{case}.nii.gz")
            reference = labels(demo / "references" / f"{case}.nii.gz")
            assert restored.shape == reference.shape
            assert set(np.unique(restored)) <= {0, 1, 2, 4}
    assert (demo / "predictions.png").stat().st_size > 10_000


def test_the_ensemble_is_the_mean_of_the_folds(demo):
    case = next((demo / "references").glob("*.nii.gz")).name.removesuffix(".nii.gz")
    folds = [np.load(demo / "predictions" / f"{OURS}_fold{fold}" / f"{case}.npz")["probabilities"] for fold in (0, 1)]
    mean = np.mean([fold.astype(np.float32) for fold in folds], axis=0)
    painted = np.zeros(mean.shape[1:], np.uint8)
    for label, region in enumerate(mean, start=1):
        painted[region > 0.5] = label
    assert np.mean(painted == labels(demo / "predictions" / OURS / f"{case}.nii.gz")) > 0.999  # ties in half precision


def test_a_folder_that_is_not_the_demos_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("ten years of work")
    assert main(["demo", str(tmp_path)]) == 1
    assert "not of an earlier demo" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_finished_fold_can_be_continued_and_validated_with_probabilities(demo):
    fold = demo / "nnUNet_results" / NAME / f"{OURS}__nnUNetPlans__{CONFIGURATION}" / "fold_0"
    before = (fold / "checkpoint_final.pth").read_bytes()
    said = command(
        demo, "nnUNetv2_train", DATASET, CONFIGURATION, "0", "-tr", OURS, "-device", "cpu", "--c", "--npz", **BRIEF
    )
    assert "Validation complete" in said
    assert list((fold / "validation").glob("*.npz"))
    assert len(before) == (fold / "checkpoint_final.pth").stat().st_size
    command(
        demo, "nnUNetv2_train", DATASET, CONFIGURATION, "1", "-tr", OURS, "-device", "cpu", "--val", "--npz", **BRIEF
    )
    command(
        demo, "nnUNetv2_find_best_configuration", DATASET, "-c", CONFIGURATION, "-tr", OURS, "-f", "0", "1", "-np", "1"
    )
    assert (demo / "nnUNet_results" / NAME / "inference_instructions.txt").exists()


def test_fold_all_trains(demo):
    command(demo, "nnUNetv2_train", DATASET, CONFIGURATION, "all", "-tr", OURS, "-device", "cpu", **BRIEF)


def test_an_exported_model_predicts_the_same_where_it_is_installed(demo, tmp_path):
    archive = str(tmp_path / "model.zip")
    command(demo, "nnUNetv2_export_model_to_zip", *MODEL, "-o", archive, "-f", "0")
    (tmp_path / "results").mkdir()
    elsewhere = dict(nnUNet_results=str(tmp_path / "results"))
    command(demo, "nnUNetv2_install_pretrained_model_from_zip", archive, **elsewhere)
    images = f"nnUNet_raw/{NAME}/imagesTs"
    predict = (
        "nnUNetv2_predict",
        "-i",
        images,
        *MODEL,
        "-f",
        "0",
        "-device",
        "cpu",
        "--disable_tta",
        "-npp",
        "1",
        "-nps",
        "1",
    )
    command(demo, *predict, "-o", str(tmp_path / "predictions"), **elsewhere)
    for prediction in (tmp_path / "predictions").glob("*.nii.gz"):
        assert np.array_equal(labels(prediction), labels(demo / "predictions" / f"{OURS}_fold0" / prediction.name))
