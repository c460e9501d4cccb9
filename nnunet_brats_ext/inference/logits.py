"""The logits of a case, and what becomes of them on the grid of its image files, by nnU-Net's own functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunet_brats_ext.brats import Head
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.images import turn

TURNED = "turned"
"""Of the properties of a case whose image files have other axes than the training data: theirs, and the latter."""

Box = tuple[slice, ...]
"""A part of a volume (z, y, x)."""


class ModelDescription(NamedTuple):
    """How a model was planned, as nnU-Net has it: what is needed to prepare its images and to read its logits."""

    plans: PlansManager
    configuration: ConfigurationManager
    dataset_json: dict[str, Any]

    @property
    def label_manager(self) -> LabelManager:
        return self.plans.get_label_manager(self.dataset_json)

    @property
    def description(self) -> DatasetDescription:
        return DatasetDescription(self.dataset_json)

    @property
    def head(self) -> Head:
        return self.description.head(self.label_manager.num_segmentation_heads)


@dataclass(frozen=True)
class Logits:
    """What a network gives for a case. values: (k, z, y, x) on the grid that the case was preprocessed to.

    properties: nnU-Net's, of the case.
    """

    values: np.ndarray
    properties: dict[str, Any]
    model: ModelDescription

    @cached_property
    def in_box(self) -> np.ndarray:
        """(k, z, y, x) in the voxels of the image files, within the box that nnU-Net crops images to."""
        resampled = resample(self.values, self.properties, self.model)
        return resampled.transpose(0, *(axis + 1 for axis in self.model.plans.transpose_backward))

    def probabilities(self, box: Box = ()) -> np.ndarray:
        """The same as probabilities, in fp32; box: of a part of them."""
        part = (slice(None), *box)
        return self.model.label_manager.apply_inference_nonlin(_tensor(self.in_box[part])).numpy()

    def labels(self, probabilities: np.ndarray) -> np.ndarray:
        """The label map of probabilities, or of a part of them."""
        segmented = self.model.label_manager.convert_probabilities_to_segmentation(_tensor(probabilities))
        return segmented.numpy().astype(np.uint8)

    def segmentation(self) -> "Segmentation":
        """The label map, without the probabilities that it was made of."""
        return Segmentation(self.labels(self.probabilities()), None, self.properties, self.model)

    def box_of_labels(self) -> Box:
        """The smallest box outside which the label map is background; an empty one if it is so throughout."""
        values = _tensor(self.in_box)
        has_regions = self.model.label_manager.has_regions
        return bounding_box((values.amax(0) > 0 if has_regions else values.float().argmax(0) != 0).numpy())


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def bounding_box(mask: np.ndarray) -> Box:
    """The smallest box that holds all true voxels; an empty one where there is none."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        occupied = np.flatnonzero(mask.any(others))
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1) if len(occupied) else slice(0, 0))
    return tuple(box)


def resample(values: np.ndarray, properties: dict[str, Any], model: ModelDescription) -> np.ndarray:
    """(n, z, y, x) from the planned spacing to that of the image files, by the plans' function for probabilities."""
    spacing_mm = [properties["spacing"][axis] for axis in model.plans.transpose_forward]
    shape = properties["shape_after_cropping_and_before_resampling"]
    # A 2-D configuration leaves the distance of the slices alone.
    planned_mm = [*spacing_mm[: len(shape) - len(model.configuration.spacing)], *model.configuration.spacing]
    resampled = model.configuration.resampling_fn_probabilities(values, shape, planned_mm, spacing_mm)
    return resampled if isinstance(resampled, np.ndarray) else resampled.numpy()


@dataclass(frozen=True)
class Segmentation:
    """A label map, and probabilities where they are wanted, within the box that nnU-Net crops images to.

    labels: (z, y, x) and probabilities: (k, z, y, x) in the voxels of the image files. properties and model:
    of any of the members that it was made of.
    """

    labels: np.ndarray
    probabilities: np.ndarray | None
    properties: dict[str, Any]
    model: ModelDescription

    @property
    def whole_labels(self) -> np.ndarray:
        """The label map on the whole grid of the image files."""
        return self._in_image(self.labels, 0)

    @property
    def whole_probabilities(self) -> np.ndarray | None:
        """The probabilities there; what was cropped is in no region, or is background."""
        if self.probabilities is None:
            return None
        background = None if self.model.label_manager.has_regions else 0
        return np.stack([self._in_image(one, float(i == background)) for i, one in enumerate(self.probabilities)])

    def _in_image(self, part: np.ndarray, outside: float) -> np.ndarray:
        backward: Sequence[int] = self.model.plans.transpose_backward
        shape, box = self.properties["shape_before_cropping"], self.properties["bbox_used_for_cropping"]
        whole = np.full([shape[axis] for axis in backward], outside, part.dtype)
        whole[tuple(slice(*box[axis]) for axis in backward)] = part
        return in_file_axes(whole, self.properties)


def in_file_axes(array: np.ndarray, properties: dict[str, Any]) -> np.ndarray:
    """(..., z, y, x) in the axes of the training data, as `read_images` gives them, in those of the image files."""
    return turn(array, *reversed(properties[TURNED])) if TURNED in properties else array
