"""Plans and data-set descriptions of nnU-Net v2 for models that it has not planned."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from nnunet_brats_ext import papers
from nnunet_brats_ext.brats import LABEL_SCHEMES
from nnunet_brats_ext.storage.datasets import AXES_KEY, NO_NORMALISATION
from nnunet_brats_ext.storage.images import LPS
from nnunet_brats_ext.weights.sources import REGIONS, ForeignModel

MEDIAN_BRAIN = (140, 171, 137)  # voxels of 1 mm along z, y, x: BraTS after nnU-Net's crop
RESAMPLING = "resample_data_or_seg_to_shape"


def configuration(
    patch_size: Sequence[int],
    strides: Sequence[Sequence[int]],
    channels: int = 4,
    batch_size: int = 2,
    network: str = "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    arguments: Mapping[str, Any] | None = None,
    imports: Sequence[str] = (),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    median: Sequence[float] = MEDIAN_BRAIN,
    normalisation: Sequence[str] = (),
    masked: Sequence[bool] = (),
    **more: Any,
) -> dict[str, Any]:
    """A configuration of nnU-Net's plans; by default z-scores within the brain, at 1 mm, and nnU-Net's resampling.

    arguments: of the network, besides its strides; imports: names of those that are classes.
    """
    axes = len(patch_size)
    return {
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": int(batch_size),
        "patch_size": [int(size) for size in patch_size],
        "median_image_size_in_voxels": [float(size) for size in median][-axes:],
        "spacing": [float(step) for step in spacing][-axes:],
        "normalization_schemes": list(normalisation) or ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": list(masked) or [True] * channels,
        "resampling_fn_data": RESAMPLING,
        "resampling_fn_seg": RESAMPLING,
        "resampling_fn_probabilities": RESAMPLING,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        "architecture": {
            "network_class_name": network,
            "arch_kwargs": {"strides": [list(map(int, stride)) for stride in strides], **(arguments or {})},
            "_kw_requires_import": list(imports),
        },
        "batch_dice": False,
        **more,
    }


def configuration_of_paper(name: str, **changes: Any) -> dict[str, Any]:
    """A configuration that a paper states; the trainer names the network."""
    paper = papers.configurations()[name]
    axes = 2 if paper.base == "2d" else 3
    strides = paper.strides or ((1,) * axes, *((2,) * axes,) * paper.poolings)
    patch_size = paper.patch_size or (240,) * axes
    return configuration(patch_size, strides, batch_size=paper.batch_size, **(papers.stages_of(name) | changes))


def plans_of(model: ForeignModel, dataset: str) -> dict[str, Any]:
    """A plans.json."""
    transpose = list(model.transpose)
    medians = [one["median_image_size_in_voxels"] for one in model.configurations.values()]
    channels = len(model.configurations[model.configuration]["normalization_schemes"])
    shape = max(medians, key=lambda median: (len(median), prod(median)))
    return {
        "dataset_name": dataset,
        "plans_name": model.plans_name,
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [
            int(size) for size in (shape if len(shape) == 3 else [MEDIAN_BRAIN[axis] for axis in transpose])
        ],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": transpose,
        "transpose_backward": [transpose.index(axis) for axis in range(3)],
        "configurations": {
            name: {"data_identifier": f"{model.plans_name}_{name}", **one} for name, one in model.configurations.items()
        },
        "experiment_planner_used": "nnunet_brats import",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": dict(model.intensities) or {str(n): {} for n in range(channels)},
    }


def dataset_of(model: ForeignModel, sequences: Sequence[str], outputs: Sequence[str], dataset: str) -> dict[str, Any]:
    """A dataset.json; sequences, outputs: in the order that the written weights have."""
    scheme = LABEL_SCHEMES["glioma_2017"]
    names = [NO_NORMALISATION if model.normalised_beforehand else sequence for sequence in sequences]
    description: dict[str, Any] = {
        "name": dataset,
        "channel_names": {str(number): name for number, name in enumerate(names)},
        "labels": {name: number for number, name in enumerate(outputs)},
        "numTraining": 0,
        "file_ending": ".nii.gz",
        AXES_KEY: LPS,
    }
    if model.normalised_beforehand:
        description["brats_sequences"] = list(sequences)
    if tuple(outputs) == REGIONS:
        description["labels"] = scheme.nnunet_labels()
        description["regions_class_order"] = list(scheme.paint)
    return description


def joined(plans: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, Any] | None:
    """Plans with the configurations of earlier ones beside their own; None where they differ in anything else."""
    configurations, earlier = plans["configurations"], there.get("configurations") or {}
    same = all(earlier.get(name, one) == one for name, one in configurations.items())
    if not same or {**there, "configurations": 0} != {**plans, "configurations": 0}:
        return None
    return {**plans, "configurations": {**earlier, **configurations}}
