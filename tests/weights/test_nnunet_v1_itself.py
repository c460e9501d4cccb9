"""Imported models of nnU-Net v1 predict a part of a real patient as v1's own package does.

It needs real patients beside the project, and an environment with nnunet 1.7.1, whose Python NNUNET_V1_PYTHON names;
it worked with Python 3.9, torch 1.12.1, numpy 1.23.5 and batchgenerators 0.23.
"""

import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from released_weights import folder_of_v1

from nnunet_brats_ext.brats import SEQUENCES
from nnunet_brats_ext.inference.prediction import predict
from nnunet_brats_ext.weights.importing import ImportOptions, import_weights
from nnunet_brats_ext.weights.reading import read_pickle

V1 = os.environ.get("NNUNET_V1_PYTHON", "")
CASE = "BraTS2021_00002"
PATIENT = Path(__file__).parents[3] / "shared" / "real_patients" / "BraTS2021_Training_Data" / CASE
PART = (slice(70, 130), slice(94, 154), slice(60, 104))  # x, y, z: brain throughout, so that nothing is cropped

pytestmark = pytest.mark.skipif(not V1 or not PATIENT.is_dir(), reason="needs nnU-Net v1 and real patients")


def images(folder: Path, order: tuple[str, ...]) -> Path:
    folder.mkdir()
    for channel, sequence in enumerate(order):
        image = sitk.ReadImage(str(PATIENT / f"{CASE}_{sequence.lower()}.nii.gz"))
        sitk.WriteImage(image[PART], str(folder / f"{CASE}_{channel:04d}.nii.gz"))
    return folder


def by_v1(kind: str, folder: Path, source: Path, out: Path, *maps: Path) -> np.ndarray:
    """Write the model into `folder`, as v1 has it, and predict by v1 itself."""
    folder_of_v1(kind, folder)
    file = folder / "fold_0" / "model_final_checkpoint.model.pkl"
    info = read_pickle(file)
    info["plans"]["plans_per_stage"][0]["current_spacing"] = np.ones(3)
    info["init"] = (str(folder / "plans.pkl"), 0, str(folder), str(folder), *info["init"][4:])
    for place, content in ((folder / "plans.pkl", info["plans"]), (file, info)):
        place.write_bytes(pickle.dumps(content, protocol=2).replace(b"numpy._core", b"numpy.core"))  # its numpy is old
    weights = torch.load(file.with_suffix(""), weights_only=False)["state_dict"]
    rest = {"optimizer_state_dict": None, "plot_stuff": ([], [], [], []), "best_stuff": (None, None, None)}
    torch.save({"epoch": 0, "state_dict": weights, **rest}, file.with_suffix(""))
    words = [V1, "-W", "ignore", str(Path(__file__).with_name("predict_with_v1.py")), folder, source, out, *maps]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    return labels(out)


def labels(folder: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{CASE}.nii.gz")))


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """The share of voxels in the tumour of either that have the same label in both."""
    tumour = (one > 0) | (other > 0)
    return float((one == other)[tumour].mean())


def ours(folder: Path, out: Path, source: Path, dataset: str = "Dataset901_V1") -> np.ndarray:
    done = import_weights(ImportOptions(source=folder, out=str(out.parent / dataset)))
    predict(source, out, done.folder, device="cpu", processes=0, trusted=True)
    return labels(out)


def test_regions_and_labels(tmp_path):
    as_we_have_them = images(tmp_path / "images", SEQUENCES)
    for kind, order in (("regions", SEQUENCES), ("softmax", ("FLAIR", "T1", "T1ce", "T2"))):
        source = images(tmp_path / f"{kind}_images", order)
        expected = by_v1(kind, tmp_path / kind, source, tmp_path / f"{kind}_v1")
        found = ours(tmp_path / kind, tmp_path / f"{kind}_out", as_we_have_them, f"Dataset901_{kind}")
        assert agreement(found, expected) >= 0.999


def test_a_cascade(tmp_path):
    """Both stages at 1 mm: where v1 resamples, it normalises behind it, and resamples probabilities, not logits."""
    source = images(tmp_path / "images", ("FLAIR", "T1", "T1ce", "T2"))
    first = by_v1("lowres", tmp_path / "lowres", source, tmp_path / "first_v1")
    expected = by_v1("cascade", tmp_path / "cascade", source, tmp_path / "second_v1", tmp_path / "first_v1")
    as_we_have_them = images(tmp_path / "ours", SEQUENCES)
    assert agreement(ours(tmp_path / "lowres", tmp_path / "first", as_we_have_them), first) >= 0.999
    assert agreement(ours(tmp_path / "cascade", tmp_path / "second", as_we_have_them), expected) >= 0.999
