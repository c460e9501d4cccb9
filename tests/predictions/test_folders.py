"""Prediction folders: what explains the channels of their probabilities."""

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_brats_ext.predictions.folders import open_folders


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
