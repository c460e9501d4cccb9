"""Metrics: of two masks in one call each, and the reductions of counts and surface distances behind them."""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Literal, NamedTuple

import numpy as np

from nnunet_brats_ext.evaluation.boxes import find_box
from nnunet_brats_ext.evaluation.distances import Distances, SurfaceDistances, Surfaces, distances_for_quantile
from nnunet_brats_ext.evaluation.surfaces import SurfaceKind, surfel_surface, voxel_surface
from nnunet_brats_ext.storage.errors import UserError

# ---- metrics of two masks -------------------------------------------------------------------------------------------


def dice(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Dice of two masks; two empty masks agree (1), one empty mask scores 0, as BraTS has them.

    reference, prediction: boolean masks of one shape. Dice 1945, https://doi.org/10.2307/1932409.
    """
    return _count("dice", reference, prediction).dice()


def sensitivity(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Share of the reference that is predicted; of an empty reference 0, or 1 if the prediction is empty too.

    reference, prediction: boolean masks of one shape. Also called recall or true positive rate.
    """
    return _count("sensitivity", reference, prediction).sensitivity()


def ppv(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Share of the prediction that is right; of an empty prediction 0, or 1 if the reference is empty too.

    reference, prediction: boolean masks of one shape. The positive predictive value, also called precision.
    """
    return _count("ppv", reference, prediction).ppv()


def specificity(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Share of the voxels outside the reference that are not predicted; 1 where the reference fills the array.

    reference, prediction: boolean masks of one shape. It depends on how much background surrounds the tumour.
    """
    return _count("specificity", reference, prediction).specificity()


def hd95(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float],
    variant: Literal["directed", "pooled", "surfels"] = "directed",
    penalty_mm: float = inf,
) -> float:
    """95th percentile of the Hausdorff distance in mm; 0 for two empty masks, `penalty_mm` if only one is empty.

    reference, prediction: boolean masks of one shape, (z, y, x). spacing_mm: of the same axes.
    variant: `directed` is the larger of the two directed percentiles over border voxels (MONAI, CaPTk, BraTS 2017-21);
        `pooled` the percentile of both directions in one list (MedPy, panoptica, nnU-Net v1, BraTS 2026); `surfels`
        weighs surface elements by their area (DeepMind's surface-distance, BraTS 2023-25), in three axes only.
    penalty_mm: in BraTS the diagonal of the volume until 2021, 374 in 2023; later years are in `presets`.

    The variants differ by more than rounding: Maier-Hein et al. 2024, https://doi.org/10.1038/s41592-023-02151-z.
    """
    return _measure("hd95", HD95, variant, reference, prediction, spacing_mm, agreed=0.0, missed=penalty_mm)


def nsd(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float],
    tolerance_mm: float = 1.0,
    variant: Literal["surfels", "voxels", "balanced"] = "surfels",
) -> float:
    """Normalised surface Dice, the share of both surfaces within `tolerance_mm`; 1 for two empty masks, 0 for one.

    Nikolov et al. 2021, https://doi.org/10.2196/26151.

    reference, prediction: boolean masks of one shape, (z, y, x). spacing_mm: of the same axes.
    variant: `surfels` weighs surface elements by their area (the paper, DeepMind's surface-distance), in three axes
        only; `voxels` counts border voxels (MONAI); `balanced` is the mean of the two borders' shares (nnU-Net v1,
        panoptica, BraTS 2024 and 2026).
    """
    return _measure(
        "nsd", NSD, variant, reference, prediction, spacing_mm, agreed=1.0, missed=0.0, tolerance_mm=tolerance_mm
    )


def _count(name: str, reference: np.ndarray, prediction: np.ndarray) -> "Overlap":
    reference, prediction = check_masks(name, reference, prediction)
    return Overlap.of(reference, prediction, reference.size)


def _measure(
    name: str,
    variants: Mapping[str, tuple[SurfaceKind, Callable[..., float]]],
    variant: str,
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float],
    agreed: float,
    missed: float,
    **parameters: float,
) -> float:
    reference, prediction = check_masks(name, reference, prediction)
    if variant not in variants:
        raise UserError(f"{name}: no variant {variant!r}; there are {', '.join(variants)}")
    spacing = tuple(map(float, spacing_mm))
    if len(spacing) != reference.ndim or not all(0 < size < inf for size in spacing):
        raise UserError(f"{name}: spacing_mm {spacing} should be {reference.ndim} positive numbers, one for each axis")
    kind, reduce = variants[variant]
    if kind is surfel_surface and reference.ndim != 3:
        raise UserError(f"{name}: surfels need masks of three axes, these have {reference.ndim}")
    box = find_box(reference | prediction)
    reference, prediction = reference[box], prediction[box]
    filled = reference.any(), prediction.any()
    if not all(filled):
        return missed if any(filled) else agreed
    return reduce(Surfaces(kind(reference), kind(prediction), spacing).whole, **parameters)


def check_masks(name: str, reference: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, if they are boolean and of one shape. name: of the metric, for the error."""
    masks = np.asarray(reference), np.asarray(prediction)
    for mask in masks:
        if mask.dtype != bool:
            raise UserError(f"{name} compares boolean masks, not {mask.dtype}; cut one out with `labels == 3`")
    if masks[0].shape != masks[1].shape:
        raise UserError(f"{name}: the reference has shape {masks[0].shape}, but the prediction {masks[1].shape}")
    return masks


# ---- counts ---------------------------------------------------------------------------------------------------------


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
        """Which of the two masks is empty: "both", "reference", "prediction" or None."""
        reference, prediction = self.tp + self.fn == 0, self.tp + self.fp == 0
        if reference and prediction:
            return "both"
        return "reference" if reference else "prediction" if prediction else None

    def dice(self, agreed: float = 1.0) -> float:
        """Twice the shared voxels over the sum of both; two empty masks score `agreed`."""
        total = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / total if total else agreed

    def sensitivity(self) -> float:
        """Share of the reference that is found; of an empty reference 0, or 1 if both are empty."""
        positives = self.tp + self.fn
        return self.tp / positives if positives else float(self.fp == 0)

    def ppv(self) -> float:
        """Share of the prediction that is right; of an empty prediction 0, or 1 if both are empty."""
        predicted = self.tp + self.fp
        return self.tp / predicted if predicted else float(self.fn == 0)

    def specificity(self) -> float:
        """Share of the voxels outside the reference that the prediction leaves out; 1 where there is no outside."""
        negatives = self.tn + self.fp
        return self.tn / negatives if negatives else 1.0


# ---- reductions of the surface distances of two masks that are not empty --------------------------------------------


def directed_hd95(distances: SurfaceDistances) -> float:
    """The larger of the two directed 95th percentiles, linearly interpolated (MONAI, MetricsReloaded)."""
    return max(_percentile(distances.reference), _percentile(distances.prediction))


def pooled_hd95(distances: SurfaceDistances) -> float:
    """The 95th percentile of both directions in one list, linearly interpolated (MedPy, panoptica, nnU-Net v1)."""
    return _percentile(distances.prediction, distances.reference)


def surfel_hd95(distances: SurfaceDistances) -> float:
    """The larger of the two distances within which 95 % of a surface's area lies (DeepMind, BraTS 2023-25)."""
    return max(
        _area_quantile(distances.reference, distances.reference_areas),
        _area_quantile(distances.prediction, distances.prediction_areas),
    )


def _percentile(*sides: Distances, share: float = 0.95) -> float:
    weights = np.ones(sum(len(side.points) for side in sides))
    return float(np.percentile(distances_for_quantile(sides, weights, share), 100 * share))


def _area_quantile(distances: Distances, areas: np.ndarray | None, share: float = 0.95) -> float:
    assert areas is not None, "voxel borders have no areas"
    mm = distances_for_quantile([distances], areas, share)
    order = np.argsort(mm)
    cumulative = np.cumsum(areas[order])
    return float(mm[order[np.searchsorted(cumulative / cumulative[-1], share)]])


def surfel_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Surface Dice: the share of both surfaces' area within the tolerance of the other (Nikolov et al. 2021)."""
    assert distances.reference_areas is not None and distances.prediction_areas is not None
    near = distances.reference_areas[distances.reference.known_to(tolerance_mm) <= tolerance_mm].sum()
    near += distances.prediction_areas[distances.prediction.known_to(tolerance_mm) <= tolerance_mm].sum()
    return float(near / (distances.reference_areas.sum() + distances.prediction_areas.sum()))


def border_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Surface Dice over border voxels: the share of both borders within the tolerance of the other (MONAI)."""
    sides = distances.reference, distances.prediction
    return float(np.mean(np.hstack([side.known_to(tolerance_mm) for side in sides]) <= tolerance_mm))


def balanced_border_dice(distances: SurfaceDistances, tolerance_mm: float | None) -> float:
    """As `border_dice`, but the mean of the two borders' shares (nnU-Net v1, BraTS 2024, panoptica).

    A tolerance of None is the finest spacing.
    """
    tolerance_mm = min(distances.spacing_mm) if tolerance_mm is None else tolerance_mm
    near = [side.known_to(tolerance_mm) <= tolerance_mm for side in (distances.reference, distances.prediction)]
    return float(np.mean(near[0]) + np.mean(near[1])) / 2


HD95: Mapping[str, tuple[SurfaceKind, Callable[..., float]]] = {
    "directed": (voxel_surface, directed_hd95),
    "pooled": (voxel_surface, pooled_hd95),
    "surfels": (surfel_surface, surfel_hd95),
}
NSD: Mapping[str, tuple[SurfaceKind, Callable[..., float]]] = {
    "surfels": (surfel_surface, surfel_dice),
    "voxels": (voxel_surface, border_dice),
    "balanced": (voxel_surface, balanced_border_dice),
}
