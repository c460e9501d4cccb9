"""Predictions as targets of a training: their confidence, and their probabilities as soft targets."""

from pathlib import Path

import numpy as np

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import PROBABILITIES, read_stored_probabilities
from nnunet_brats_ext.storage.output import writing

SOFT_TARGETS = "soft_targets"  # the folder beside imagesTr, and our key in dataset.json
LEVELS = 255  # a probability is stored as a whole number of these
AGAIN = "run `nnunet_brats distill` again, with --overwrite"


def confidence(regions: np.ndarray) -> float:
    """The confidence of a prediction, from 0 to 1: the mean of |2p - 1| over its tumour voxels and all regions.

    regions: probabilities (region, z, y, x). A tumour voxel is one where a region is above 0.5. Without any, it is the
    confidence in that: 1 - 2p at the voxel of the highest probability.
    """
    highest = regions.max(0)
    tumour = highest > 0.5
    if not tumour.any():
        return float(1 - 2 * highest.max())
    return float(np.abs(2 * regions[:, tumour] - 1).mean(dtype=np.float64))


def write_soft_target(path: Path, regions: np.ndarray) -> None:
    """Store probabilities (region, z, y, x) in uint8, within 1/510 of what they were; compressed some 20-fold."""
    levels = np.rint(np.clip(regions, 0, 1) * LEVELS).astype(np.uint8)
    with writing(path):
        np.savez_compressed(path, **{PROBABILITIES: levels})


def read_soft_target(path: Path) -> np.ndarray:
    """What `write_soft_target` stored: uint8 (region, z, y, x), in which LEVELS means a probability of 1."""
    try:
        levels = read_stored_probabilities(path)
    except UserError as error:
        raise UserError(f"{error}; {AGAIN}") from error
    if levels.dtype != np.uint8 or levels.ndim != 4:
        raise UserError(
            f"{path} holds {levels.dtype} numbers of shape {levels.shape}, which are no soft target; {AGAIN}"
        )
    return levels
