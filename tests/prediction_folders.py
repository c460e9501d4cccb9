"""Prediction folders as nnU-Net writes them, for the tests of several packages."""

import json
import pickle

import numpy as np
import SimpleITK as sitk

from nnunet_brats_ext.brats import LABEL_SCHEMES
from nnunet_brats_ext.predictions.heads import paint
from nnunet_brats_ext.storage.datasets import DatasetDescription

REGIONS = {"labels": LABEL_SCHEMES["glioma_2017"].nnunet_labels(), "regions_class_order": [1, 2, 3]}
PLAIN = {"labels": {"background": 0, "ED": 1, "NCR": 2, "ET": 3}}
SHAPE = (4, 5, 6)
GEOMETRY = dict(spacing=(1.0, 1.5, 2.0), origin=(-3.0, 239.0, 7.0), direction=(0, 1, 0, 1, 0, 0, 0, 0, -1))


def head_of(dataset_json, channels):
    return DatasetDescription(dataset_json).head(channels)


def softmax(p):
    return p / p.sum(0)


def write_member(folder, cases, dataset_json=None, **geometry):
    """A prediction folder; `cases`: name -> probabilities (c, z, y, x) or label map (z, y, x)."""
    folder.mkdir()
    properties = GEOMETRY | geometry
    for case, array in cases.items():
        labels = array
        if array.ndim == 4:
            labels = paint(array, head_of(dataset_json, len(array)))
            np.savez_compressed(folder / f"{case}.npz", probabilities=array)
            (folder / f"{case}.pkl").write_bytes(pickle.dumps({"sitk_stuff": properties, "spacing": [2.0, 1.5, 1.0]}))
        image = sitk.GetImageFromArray(labels)
        image.SetSpacing(properties["spacing"])
        image.SetOrigin(properties["origin"])
        image.SetDirection(properties["direction"])
        sitk.WriteImage(image, folder / f"{case}.nii.gz")
    if dataset_json:
        content = {"file_ending": ".nii.gz", "channel_names": {"0": "T1"}, **dataset_json}
        (folder / "dataset.json").write_text(json.dumps(content))
        plans = {"image_reader_writer": "SimpleITKIO", "plans_name": "p", "dataset_name": "d", "configurations": {}}
        (folder / "plans.json").write_text(json.dumps(plans))
    return folder
