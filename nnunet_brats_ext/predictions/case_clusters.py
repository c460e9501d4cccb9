"""Groups of similar cases, each with rules of its own: Parida et al. 2025, https://arxiv.org/abs/2512.14937.

A case belongs to the nearest centre by a few features of its prediction and, on request, of its images. The paper
clusters radiomic features; here they are few and simple, so that they can be computed anywhere without a library.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.cluster.vq import kmeans2

from nnunet_brats_ext.predictions.rules import CONNECTIVITY, RuleInput
from nnunet_brats_ext.storage.errors import UserError

KEYS = ("images", "mean", "scale", "centres")
MM3_PER_ML = 1000
FLAT = 1e-6  # a feature that varies less is the same for all cases
STARTS = 10  # of k-means, of which the best counts


@dataclass(frozen=True)
class CaseClusters:
    """Centres in the space of features that were brought to mean 0 and deviation 1.

    images: whether the images' features are among them. mean, scale: of each feature. centres: one row per cluster.
    """

    images: bool
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    centres: tuple[tuple[float, ...], ...] = ()

    def of(self, case: RuleInput) -> int:
        """The cluster of a case."""
        features = features_of(case, self.images)
        if len(features) != len(self.mean):
            raise UserError(
                f"the clusters are of {len(self.mean)} features, and this case has {len(features)}: its regions or "
                "its number of images are not those that the rules were tuned on"
            )
        return int(self.nearest(features[None])[0])

    def nearest(self, features: np.ndarray) -> np.ndarray:
        """The cluster of each row of features (case, feature)."""
        scaled = (features - self.mean) / np.array(self.scale)
        return np.square(scaled[:, None] - np.array(self.centres)).sum(2).argmin(1)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_clusters(content: Any) -> CaseClusters:
    """Clusters from JSON, checked."""
    try:
        if not isinstance(content, Mapping) or set(content) != set(KEYS):
            raise ValueError(f"expected {', '.join(KEYS)}")
        mean, scale, centres = (np.array(content[key], dtype=float) for key in KEYS[1:])
        if centres.shape != (len(centres), *mean.shape) or mean.shape != scale.shape or not (scale > 0).all():
            raise ValueError("mean, scale and every row of centres should be numbers of the same count")
        rows = tuple(tuple(map(float, row)) for row in centres)
        return CaseClusters(content["images"] is True, tuple(map(float, mean)), tuple(map(float, scale)), rows)
    except (TypeError, ValueError) as error:
        raise UserError(f'"clusters" cannot be used: {error}') from error


def features_of(case: RuleInput, images: bool) -> np.ndarray:
    """What a case is grouped by: the volume of every region and the number of its components, as logarithms.

    images: also, for each sequence, how much brighter the tumour is than the rest of the brain, in deviations of that.
    """
    features = []
    for region in case.scheme.regions:
        mask = case.mask(region)
        _, components = ndimage.label(mask, CONNECTIVITY)
        features += [np.log1p(mask.sum() * case.voxel_volume_mm3 / MM3_PER_ML), np.log1p(components)]
    if images:
        if case.images is None:
            raise UserError("the clusters look at images: give --images")
        features += _contrasts(case.images, case.labels != 0)
    return np.array(features, dtype=np.float64)


def _contrasts(images: np.ndarray, tumour: np.ndarray) -> list[float]:
    brain = (images != 0).any(0)
    inside, outside = brain & tumour, brain & ~tumour
    if not inside.any() or not outside.any():
        return [0.0] * len(images)
    return [float((one[inside].mean() - one[outside].mean()) / max(one[outside].std(), 1e-6)) for one in images]


def fit_clusters(features: np.ndarray, number: int, images: bool) -> CaseClusters:
    """Clusters of cases (case, feature) by k-means, the same every time; as many as asked for, or fewer."""
    mean, scale = features.mean(0), features.std(0)
    scale = np.where(scale > FLAT, scale, 1.0)
    scaled = (features - mean) / scale
    starts = [_k_means(scaled, min(number, len(scaled)), seed) for seed in range(STARTS)]
    _, centres = min(starts, key=lambda start: start[0])
    return CaseClusters(images, _numbers(mean), _numbers(scale), tuple(map(_numbers, centres)))


def _k_means(points: np.ndarray, number: int, seed: int) -> tuple[float, np.ndarray]:
    """The squared distance of all points to their centres, and the centres that have points."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a centre that no point is near, which is left out
        centres, groups = kmeans2(points, number, minit="++", seed=seed)
    return float(np.square(points - centres[groups]).sum()), centres[np.unique(groups)]


def _numbers(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 9) for value in values)
