"""Damaged and contradictory files: every command on predictions names them and writes nothing."""

import gzip

import numpy as np
import pytest
import SimpleITK as sitk
from prediction_folders import PLAIN, REGIONS, SHAPE, softmax, write_member

from nnunet_brats_ext.cli import main

COMMANDS = {
    "mean": ["ensemble", "--method", "mean", "-i", "A", "B", "C"],
    "majority": ["ensemble", "--method", "majority", "-i", "A", "B", "C"],
    "two-pass": ["ensemble", "--method", "two-pass", "-i", "A", "B"],
    "nested": ["ensemble", "--method", "nested", "-i", "A", "B", "C"],
    "postprocess": ["postprocess", "-i", "A", "--rule", "small-et=5"],
    "postprocess by probabilities": ["postprocess", "-i", "A", "--rule", "unlikely-components:ET=0.5"],
    "uncertainty": ["uncertainty", "-i", "A", "B", "C"],
}
WITHOUT_PROBABILITIES = ("majority", "two-pass", "nested", "postprocess", "uncertainty")
WITH_PROBABILITIES = ("mean", "majority", "nested", "postprocess by probabilities", "uncertainty")
ON_LABEL_HEADS = ("mean", "majority", "postprocess by probabilities", "uncertainty")


def members(folder, dataset_json):
    rng = np.random.default_rng(0)
    channels = 3 if "regions_class_order" in dataset_json else 4
    for name in "ABC":
        cases = {case: rng.random((channels, *SHAPE), dtype=np.float32) for case in "ab"}
        cases = cases if channels == 3 else {case: softmax(p) for case, p in cases.items()}
        write_member(folder / name, cases, dataset_json)


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run a command in `tmp_path`, where A, B and C lie; its message, once it has failed and left nothing."""
    monkeypatch.chdir(tmp_path)

    def run(command):
        assert main([*COMMANDS[command], "-o", "out", "-np", "1"]) == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["A", "B", "C"], "no output, no leftovers"
        return capsys.readouterr().err

    return run


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])


def half_the_voxels(path):
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[: len(content) // 2]))


def nan_voxels(path):
    image = sitk.ReadImage(path)
    voxels = sitk.GetArrayFromImage(image).astype(np.float32)
    voxels[0] = np.nan
    spoilt = sitk.GetImageFromArray(voxels)
    spoilt.CopyInformation(image)
    sitk.WriteImage(spoilt, path)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, half_the_voxels, nan_voxels, empty])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_label_map_is_named(command, damage, tmp_path, refused):
    members(tmp_path, REGIONS)
    damage(tmp_path / "A" / "b.nii.gz")
    assert "A/b.nii.gz" in refused(command)


@pytest.mark.parametrize("damage", [cut, half_the_voxels, nan_voxels, empty])
@pytest.mark.parametrize("command", WITHOUT_PROBABILITIES)
def test_a_damaged_label_map_without_probabilities_is_named(command, damage, tmp_path, refused):
    members(tmp_path, REGIONS)
    for npz in tmp_path.glob("*/*.npz"):
        npz.unlink()
    damage(tmp_path / "A" / "b.nii.gz")
    assert "A/b.nii.gz" in refused(command)


@pytest.mark.parametrize("command", WITH_PROBABILITIES)
@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda p: p * 20 - 10, "which are no probabilities; are they logits?"),
        (lambda p: np.log(p / (1 - p)), "which are no probabilities; are they logits?"),
        (lambda p: p * np.nan, "not a number"),
        (lambda p: p.astype(complex), "instead of probabilities"),
        (lambda p: p[:, :-1], "its label map"),
    ],
)
def test_an_npz_without_probabilities_is_named(command, spoil, complaint, tmp_path, refused):
    members(tmp_path, REGIONS)
    npz = tmp_path / "A" / "b.npz"
    np.savez_compressed(npz, probabilities=spoil(np.load(npz)["probabilities"]))
    message = refused(command)
    assert "A/b.npz" in message
    assert complaint in message


@pytest.mark.parametrize("command", WITH_PROBABILITIES)
@pytest.mark.parametrize("damage", [cut, empty])
def test_a_damaged_npz_is_named(command, damage, tmp_path, refused):
    members(tmp_path, REGIONS)
    damage(tmp_path / "A" / "b.npz")
    assert "A/b.npz holds no array 'probabilities' that can be read" in refused(command)


@pytest.mark.parametrize("command", ON_LABEL_HEADS)
def test_a_softmax_that_does_not_sum_to_one_is_named(command, tmp_path, refused):
    members(tmp_path, PLAIN)
    npz = tmp_path / "A" / "b.npz"
    probabilities = np.load(npz)["probabilities"]
    np.savez_compressed(npz, probabilities=probabilities * 0.9)
    message = refused(command)
    assert "A/b.npz: the probabilities of the labels background, ED, NCR, ET sum to 0.9 to 0.9" in message


@pytest.mark.parametrize("command", ON_LABEL_HEADS)
def test_half_precision_sums_to_one(command, tmp_path, monkeypatch):
    members(tmp_path, PLAIN)
    for npz in tmp_path.glob("*/*.npz"):
        np.savez_compressed(npz, probabilities=np.load(npz)["probabilities"].astype(np.float16))
    monkeypatch.chdir(tmp_path)
    assert main([*COMMANDS[command], "-o", "out", "-np", "1"]) == 0


@pytest.mark.parametrize("command", WITH_PROBABILITIES)
def test_a_folder_with_some_of_its_probabilities_is_refused(command, tmp_path, refused):
    members(tmp_path, REGIONS)
    (tmp_path / "A" / "b.npz").unlink()
    message = refused(command)
    assert "A has probabilities, but none of b" in message or "A lacks the probabilities of b" in message
    assert "--save_probabilities" in message


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dataset_json_of_another_kind_is_named(command, tmp_path, refused):
    members(tmp_path, REGIONS)
    (tmp_path / "A" / "dataset.json").write_text('["a", "b"]')
    assert "A/dataset.json should hold an object, not list" in refused(command)


@pytest.mark.parametrize("command", WITH_PROBABILITIES)
@pytest.mark.parametrize(
    ("content", "key"),
    [
        ('{"labels": ["a", "b"]}', "labels"),
        ('{"labels": {"background": 0, "WT": [1, 2], "TC": 2}, "regions_class_order": 5}', "regions_class_order"),
        ('{"labels": {"background": 0, "WT": "1"}}', "labels['WT']"),
    ],
)
def test_a_wrong_type_in_dataset_json_is_quoted(command, content, key, tmp_path, refused):
    members(tmp_path, REGIONS)
    (tmp_path / "A" / "dataset.json").write_text(content)
    message = refused(command)
    assert "A/dataset.json" in message
    assert key in message
