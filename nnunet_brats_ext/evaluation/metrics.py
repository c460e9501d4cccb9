"""Reductions: from voxel counts and surface distances to the numbers that challenges report.

Distances are those of two masks that are not empty; what an empty mask scores is a rule of the preset.
"""

from typing import NamedTuple

import numpy as np

from nnunet_brats_ext.evaluation.surfaces import SurfaceDistances


class Overlap(NamedTuple):
    """How many voxels two masks share, hold alone and leave out."""

    tp: int
    fp: int
    fn: int
    tn: int

    @classmethod
    def of(cls, reference: np.ndarray, prediction: np.ndarray, voxels: int) -> "Overlap":
        """Count two boolean masks of one shape, cut out of a volume of so many voxels."""
        tp = int(np.count_nonzero(reference & prediction))
        fp, fn = int(np.count_nonzero(prediction)) - tp, int(np.count_nonzero(reference)) - tp
        return cls(tp, fp, fn, voxels - tp - fp - fn)

    @property
    def empty(self) -> str | None:
        """Which of the two masks is empty: "both", "reference", "prediction" or none of them."""
        reference, prediction = self.tp + self.fn == 0, self.tp + self.fp == 0
        if reference and prediction:
            return "both"
        return "reference" if reference else "prediction" if prediction else None


def dice(overlap: Overlap, agreed: float = 1.0) -> float:
    """Twice the shared voxels over the sum of both; two empty masks score `agreed`."""
    total = 2 * overlap.tp + overlap.fp + overlap.fn
    return 2 * overlap.tp / total if total else agreed


def sensitivity(overlap: Overlap) -> float:
    """Share of the reference that is found; of an empty reference nothing is found (0), unless both are empty (1)."""
    positives = overlap.tp + overlap.fn
    return overlap.tp / positives if positives else float(overlap.fp == 0)


def specificity(overlap: Overlap) -> float:
    """Share of the voxels outside the reference that the prediction leaves out; 1 where there is no outside."""
    negatives = overlap.tn + overlap.fp
    return overlap.tn / negatives if negatives else 1.0


def directed_hd95(distances: SurfaceDistances) -> float:
    """The larger of the two directed 95th percentiles, linearly interpolated (MONAI, MetricsReloaded)."""
    return float(max(np.percentile(distances.from_reference, 95), np.percentile(distances.from_prediction, 95)))


def pooled_hd95(distances: SurfaceDistances) -> float:
    """The 95th percentile of both directions in one list, linearly interpolated (MedPy, panoptica, nnU-Net v1)."""
    return float(np.percentile(np.hstack((distances.from_prediction, distances.from_reference)), 95))


def surfel_hd95(distances: SurfaceDistances) -> float:
    """The larger of the two distances within which 95 % of a surface's area lies (DeepMind, BraTS 2023-25)."""
    return max(
        _area_quantile(distances.from_reference, distances.reference_areas),
        _area_quantile(distances.from_prediction, distances.prediction_areas),
    )


def _area_quantile(distances: np.ndarray, areas: np.ndarray | None, share: float = 0.95) -> float:
    assert areas is not None, "voxel borders have no areas"
    order = np.argsort(distances)
    cumulative = np.cumsum(areas[order])
    return float(distances[order[np.searchsorted(cumulative / cumulative[-1], share)]])


def surfel_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Surface Dice: the share of both surfaces' area within the tolerance of the other (Nikolov et al. 2021)."""
    assert distances.reference_areas is not None and distances.prediction_areas is not None
    near = distances.reference_areas[distances.from_reference <= tolerance_mm].sum()
    near += distances.prediction_areas[distances.from_prediction <= tolerance_mm].sum()
    return float(near / (distances.reference_areas.sum() + distances.prediction_areas.sum()))


def border_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Surface Dice over border voxels: the share of both borders within the tolerance of the other (MONAI)."""
    return float(np.mean(np.hstack((distances.from_reference, distances.from_prediction)) <= tolerance_mm))


def balanced_border_dice(distances: SurfaceDistances, tolerance_mm: float | None) -> float:
    """As `border_dice`, but the mean of the two borders' shares (nnU-Net v1, BraTS 2024, panoptica).

    A tolerance of None is the finest spacing.
    """
    tolerance_mm = min(distances.spacing_mm) if tolerance_mm is None else tolerance_mm
    return (
        float(np.mean(distances.from_reference <= tolerance_mm) + np.mean(distances.from_prediction <= tolerance_mm))
        / 2
    )
