"""What the commands after the network share: files, their checks, and runs that finish as a whole or not at all."""

import os
import signal

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_brats_ext.predictions.folders import open_folders
from nnunet_brats_ext.storage.images import (
    probabilities_shape,
    read_grid,
    read_label_map,
    read_probabilities,
    write_label_map,
)
from nnunet_brats_ext.storage.output import staged, write_text
from nnunet_brats_ext.storage.parallel import for_each_case


def image_file(path, array, **geometry):
    image = sitk.GetImageFromArray(array)
    for name, value in geometry.items():
        getattr(image, f"Set{name}")(value)
    sitk.WriteImage(image, path)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_label_maps_of_any_number_type_are_read_alike(tmp_path, dtype):
    labels = np.arange(24).reshape(2, 3, 4) % 4
    found, geometry = read_label_map(image_file(tmp_path / "a.nii.gz", labels.astype(dtype), Spacing=(1.0, 2.0, 3.0)))
    np.testing.assert_array_equal(found, labels)
    assert found.dtype == np.uint8
    assert geometry.shape == (2, 3, 4)
    assert geometry.voxel_volume_mm3 == pytest.approx(6)


def test_probabilities_that_are_no_numbers_are_refused(tmp_path):
    probabilities = np.full((3, 2, 2, 2), 0.5, np.float16)
    probabilities[1, 0, 0, 0] = np.nan  # what an overflow in half precision leaves
    np.savez_compressed(tmp_path / "a.npz", probabilities=probabilities)
    with pytest.raises(ValueError, match=r"a.npz holds probabilities that are not a number"):
        read_probabilities(tmp_path / "a.npz")


@pytest.mark.parametrize("value", [0.5, -1, 256])
def test_a_value_that_is_no_label_is_quoted(tmp_path, value):
    path = image_file(tmp_path / "a.nii.gz", np.full((2, 2, 2), value, np.float32))
    with pytest.raises(ValueError, match=rf"a.nii.gz is no label map: it holds {value:.1f}"):
        read_label_map(path)


def test_what_is_written_is_read_back_with_its_geometry(tmp_path):
    turned = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
    source = image_file(
        tmp_path / "a.nii.gz",
        np.ones((2, 3, 4), np.uint8),
        Spacing=(1.0, 2.0, 3.0),
        Origin=(5.0, -6.0, 7.0),
        Direction=turned,
    )
    labels, geometry = read_label_map(source)
    write_label_map(tmp_path / "b.nii.gz", labels, geometry)
    assert read_grid(tmp_path / "b.nii.gz") == geometry
    assert geometry.direction == turned


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"no image")
    (tmp_path / "a.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "b.npz", softmax=np.zeros((2, 2)))
    for read, name in ((read_label_map, "a.nii.gz"), (read_grid, "a.nii.gz")):
        with pytest.raises(OSError, match=f"{name} is no readable image"):
            read(tmp_path / name)
    for read in (read_probabilities, probabilities_shape):
        for name in ("a.npz", "b.npz"):
            with pytest.raises(ValueError, match=f"{name} holds no array 'probabilities'"):
                read(tmp_path / name)


def test_the_shape_of_probabilities_is_known_without_reading_them(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", probabilities=np.zeros((3, 4, 5, 6), np.float16))
    assert probabilities_shape(tmp_path / "a.npz") == (3, 4, 5, 6)
    assert read_probabilities(tmp_path / "a.npz").dtype == np.float32


def test_a_reader_that_turns_images_is_refused_for_probabilities(tmp_path):
    image_file(tmp_path / "a.nii.gz", np.zeros((2, 2, 2), np.uint8))
    np.savez(tmp_path / "a.npz", probabilities=np.zeros((2, 2, 2, 2)))
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "WT": 1}}')
    (tmp_path / "plans.json").write_text('{"image_reader_writer": "NibabelIOWithReorient"}')
    with pytest.raises(ValueError, match="predicted through NibabelIOWithReorient"):
        open_folders([tmp_path], "needed")
    assert open_folders([tmp_path], "ignored")[0].head is None


def test_validation_folders_are_explained_by_their_trained_model(tmp_path):
    validation = tmp_path / "fold_0" / "validation"
    validation.mkdir(parents=True)
    image_file(validation / "a.nii.gz", np.zeros((2, 2, 2), np.uint8))
    np.savez(validation / "a.npz", probabilities=np.zeros((2, 2, 2, 2)))
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "WT": 1}}')
    assert open_folders([validation], "needed")[0].head.names == ("background", "WT")


def test_a_run_that_fails_leaves_nothing_and_one_that_ends_well_all(tmp_path):
    with pytest.raises(OSError, match="disk full"), staged(tmp_path / "out", ["a"]) as stage:
        (stage / "a.nii.gz").touch()
        raise OSError("disk full")
    assert not list(tmp_path.iterdir())
    with staged(tmp_path / "deep" / "out", ["a"]) as stage:
        (stage / "a.nii.gz").touch()
    assert [path.name for path in (tmp_path / "deep" / "out").iterdir()] == ["a.nii.gz"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_a_text_file_replaces_the_old_one_as_a_whole(tmp_path):
    for text in ("old", "new"):
        write_text(tmp_path / "deep" / "a.json", text)
    assert [(path.name, path.read_text()) for path in (tmp_path / "deep").iterdir()] == [("a.json", "new")]


def double(case: str) -> str:
    if case == "bad" or case == "worse":
        raise ValueError(f"{case} is bad")
    if case == "killer":
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * case


@pytest.mark.parametrize("processes", [1, 2])
def test_results_keep_the_order_of_cases_and_all_failures_are_named(processes):
    cases = ["c", "a", "b"]
    assert list(for_each_case(double, cases, "Double", processes).items()) == [("c", "cc"), ("a", "aa"), ("b", "bb")]
    with pytest.raises(
        ValueError, match=r"cannot double; nothing was written:\n  bad: bad is bad\n  worse: worse is bad"
    ):
        for_each_case(double, ["a", "bad", "c", "worse"], "Double", processes)


def test_a_killed_process_ends_the_run_with_advice():
    with pytest.raises(RuntimeError, match="for want of memory; use fewer with -np"):
        for_each_case(double, ["killer", "a"], "Double", 2)
