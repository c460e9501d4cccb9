"""How large voxels and brains were in a model's training data, by nnU-Net's fingerprint or plans; what is far from it.

Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunet_brats_ext.storage.json_files import read_json

FINGERPRINT = "dataset_fingerprint.json"
FAR = 1.25
"""How many times smaller or larger than in all training cases is far.

Of four patients of BraTS 2021 each is within 1.07 of the other three; brains fill 133 to 178 mm of images of 155 to
240 mm, which are full where the skull and the air around it are still there.
"""


class TrainingSizes(NamedTuple):
    """The smallest and the largest of the training data, in mm, along z, y, x.

    spacing_mm: of voxels. brain_mm: of the box around all that is not zero, which nnU-Net crops images to.
    """

    spacing_mm: np.ndarray
    brain_mm: np.ndarray

    @classmethod
    def of(cls, folder: Path, plans: Mapping[str, Any]) -> TrainingSizes | None:
        """Of the cases in the fingerprint in a model's folder; else the medians in its plans, if they have some."""
        if (folder / FINGERPRINT).is_file():
            noted = read_json(folder / FINGERPRINT)
            spacing, shape = noted.get("spacings"), noted.get("shapes_after_crop")
        else:
            backward = plans.get("transpose_backward", (0, 1, 2))
            names = ("original_median_spacing_after_transp", "original_median_shape_after_transp")
            spacing, shape = ([[plans[name][axis] for axis in backward]] if plans.get(name) else None for name in names)
        if not spacing or not shape:
            return None
        spacing_mm, voxels = np.array(spacing, float), np.array(shape, float)
        return cls(_extremes(spacing_mm), _extremes(spacing_mm * voxels))

    @property
    def slices(self) -> bool:
        """Whether the training data were single slices: nnU-Net says that they lie 999 pixels apart."""
        return bool(self.spacing_mm[1, 0] >= 999 * self.spacing_mm[0, 1:].min())

    def far_spacing(self, spacing_mm: Sequence[float]) -> str | None:
        """How a spacing (z, y, x) that is far from all of the training data is called; None for others."""
        return _in_mm(spacing_mm) if _is_far(self.spacing_mm, spacing_mm) else None

    def far_brain(self, brain_mm: Sequence[float]) -> str | None:
        """Likewise the box around all that is not zero."""
        return _in_mm(np.rint(brain_mm)) if _is_far(self.brain_mm, brain_mm) else None


def brain_size_mm(images: Sequence[np.ndarray], spacing_mm: Sequence[float]) -> list[float]:
    """The box around all that is not zero in any of the images (z, y, x); zeros where nothing is."""
    seen = np.logical_or.reduce([image != 0 for image in images])
    sides = [np.flatnonzero(seen.any(tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    return [float(np.ptp(side) + 1) * mm if side.size else 0.0 for side, mm in zip(sides, spacing_mm, strict=True)]


def describe(extremes: np.ndarray) -> str:
    """A range in words, along x, y, z."""
    low, high = (np.array([float(f"{mm:.3g}") for mm in ends]) for ends in extremes)
    return _in_mm(low) if np.array_equal(low, high) else f"{_in_mm(low)} to {_in_mm(high)}"


def _extremes(values: np.ndarray) -> np.ndarray:
    return np.stack([values.min(0), values.max(0)])


def _is_far(extremes: np.ndarray, sizes: Sequence[float]) -> bool:
    low, high = extremes
    return bool(np.any(np.array(sizes) * FAR < low) or np.any(np.array(sizes) > high * FAR))


def _in_mm(sizes: Sequence[float] | np.ndarray) -> str:
    """As all other sizes in messages: x, y, z."""
    return " x ".join(f"{mm:.3g}" for mm in reversed(list(sizes))) + " mm"
