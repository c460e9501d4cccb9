"""Intensities that are normalised while a data set is made, so that nnU-Net leaves them alone; by name."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from nnunet_brats_ext.storage.datasets import PERCENTILE_MINMAX

ZSCORE_NONZERO = "zscore-nonzero"


def min_max_of_percentiles(image: np.ndarray) -> np.ndarray:
    """Clip to the 1st and 99th percentile of the positive voxels, then scale to [0, 1]: Henry et al. 2020, pipeline A.

    https://arxiv.org/abs/2011.01045. All voxels are clipped, so the background becomes 0, and so does the darkest
    percent of the brain. An image without a positive voxel, or with one value only, becomes 0. Gives float32.
    """
    positive = image[image > 0]
    if positive.size == 0:
        return np.zeros(image.shape, np.float32)
    clipped = np.clip(image.astype(np.float64), *np.percentile(positive, (1, 99)))
    low, high = clipped.min(), clipped.max()
    return ((clipped - low) / (high - low) if high > low else np.zeros(image.shape)).astype(np.float32)


def z_scores_of_own_voxels(image: np.ndarray) -> np.ndarray:
    """Z-scores over the image's own non-zero voxels, 0 elsewhere: as the texts of Lyu & Shu, Henry, Lachinov say.

    https://arxiv.org/abs/2011.02881, https://arxiv.org/abs/2011.01045, https://arxiv.org/abs/2002.03688. nnU-Net's own
    are over the voxels where any sequence is not zero, and the holes among them. The same as MONAI's
    NormalizeIntensity(nonzero=True). An image without deviation becomes 0. Gives float32.
    """
    inside = image != 0
    return np.where(inside, _z_scores(image, inside), 0).astype(np.float32)


def z_scores_of_volume(image: np.ndarray) -> np.ndarray:
    """Z-scores over the whole volume, background included: Hashemi et al. 2021, https://github.com/Nima-Hs/BraTS.

    The background becomes one negative number, so nnU-Net crops nothing. An image without deviation becomes 0. Gives
    float32.
    """
    return _z_scores(image, np.ones(image.shape, bool)).astype(np.float32)


def _z_scores(image: np.ndarray, counted: np.ndarray) -> np.ndarray:
    values = image[counted].astype(np.float64)
    deviation = values.std() if values.size else 0.0
    return (image - values.mean()) / deviation if deviation > 0 else np.zeros(image.shape)


class Normalisation(NamedTuple):
    """A function of an image (z, y, x), what it does in a few words, and whether the background stays 0."""

    function: Callable[[np.ndarray], np.ndarray]
    what: str
    keeps_zeros: bool = True


NORMALISATIONS: Mapping[str, Normalisation] = {
    PERCENTILE_MINMAX: Normalisation(
        min_max_of_percentiles, "clipped to their 1st to 99th percentile and scaled to 0 to 1"
    ),
    ZSCORE_NONZERO: Normalisation(z_scores_of_own_voxels, "z-scores over each sequence's own non-zero voxels"),
    "zscore-volume": Normalisation(z_scores_of_volume, "z-scores over the whole volume", keeps_zeros=False),
}
"""What `convert --normalise` can write, and, where zeros stay zeros, what plans of imported models may name.
nnU-Net looks its schemes up in its own package alone, so none can be added to these."""
