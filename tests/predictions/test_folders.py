"""Prediction folders: what explains the channels of their probabilities."""

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_brats_ext.predictions.folders import open_folders
from nnunet_brats_ext.storage.errors import UserError


def image_file(path, array, **geometry):
    image = sitk.GetImageFromArray(array)
    for name, value in geometry.items():
        getattr(image, f"Set{name}")(value)
    sitk.WriteImage(image, path)
    return path


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


@pytest.mark.parametrize("channels", [{"a": (1, 2, 3)}, {"a": (0, 1), "b": (0, 2)}], ids=["T1 is missing", "others"])
def test_images_are_known_by_their_channel_and_not_by_their_place(channels, tmp_path):
    (images := tmp_path / "images").mkdir()
    (maps := tmp_path / "maps").mkdir()
    for case, numbers in channels.items():
        image_file(maps / f"{case}.nii.gz", np.zeros((2, 2, 2), np.uint8))
        for number in numbers:
            image_file(images / f"{case}_{number:04d}.nii.gz", np.zeros((2, 2, 2), np.float32))
    with pytest.raises(UserError, match="channel by channel, of"):
        open_folders([maps], "ignored")[0].with_images(images, "look at images")
