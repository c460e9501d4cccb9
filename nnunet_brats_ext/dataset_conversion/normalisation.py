"""Intensities that are normalised while a data set is made, so that nnU-Net leaves them alone."""

import numpy as np


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
