"""Whether the channels of a case show what the model was trained on: found by their contrasts, not by their names.

MR intensities have no unit, and every scanner scales every sequence in its own way. So BraTS's four sequences are known
by contrasts of the brain, which no scale changes; other channels by the range of intensities in the training data.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from nnunet_brats_ext.brats import SEQUENCES

SAMPLE = 20_000  # voxels of a case
FEWEST = 1_000  # below, contrasts say nothing
BRAIN = (0.02, 0.95)  # the share of the volume that a brain without skull may take; with skull, contrasts are others
# How clearly another channel must look like a sequence than the one that should. Real and synthetic cases stay below.
CLEAR_TAIL, CLEAR_CORRELATION, CLEAR_EXTREMES = 1.3, 0.2, 1.5

Ranges = Sequence[tuple[float, float]]
"""Of each channel the intensities within which nearly all foreground of the training data lies."""


def ranges_of_training(plans: Mapping[str, Any], channels: int) -> Ranges:
    """Those that nnU-Net's fingerprint has left in the plans; empty where there are none."""
    noted: Any = plans.get("foreground_intensity_properties_per_channel")
    try:
        return [
            (float(noted[str(channel)]["percentile_00_5"]), float(noted[str(channel)]["percentile_99_5"]))
            for channel in range(channels)
        ]
    except (TypeError, KeyError, ValueError):
        return []


def likely_order(images: Sequence[np.ndarray], sequences: Sequence[str], ranges: Ranges = ()) -> list[str]:
    """What each channel seems to show; `sequences` itself unless another order fits clearly better.

    images: of a case, one array per channel, all of one shape.
    """
    brain = np.logical_and.reduce([image != 0 for image in images])
    share, count = brain.mean(), np.count_nonzero(brain)
    if count < FEWEST:
        return list(sequences)
    step = max(1, count // SAMPLE)
    values = np.stack([image[brain][::step] for image in images]).astype(np.float64)
    if not np.ptp(values, axis=1).all():
        return list(sequences)  # a channel without contrast
    if sorted(sequences) == sorted(SEQUENCES):
        if not BRAIN[0] < share < BRAIN[1]:
            return list(sequences)
        found = _sequences_by_contrast(values, {sequence: sequences.index(sequence) for sequence in SEQUENCES})
        channels = {channel: sequence for sequence, channel in found.items()}
        return [channels[number] for number in range(len(sequences))]
    return _exchanged_by_range(values, list(sequences), ranges)


def _sequences_by_contrast(values: np.ndarray, named: Mapping[str, int]) -> dict[str, int]:
    """Sequence -> channel; `named` as far as no other channel is clearly more like a sequence.

    Fluid gives T2 alone a long bright tail. FLAIR goes along with T2, the two T1 against it. Of these, the one with
    contrast agent has the brighter extremes: vessels and enhancing tumour.
    """
    q5, q10, q50, q90, q99 = np.percentile(values, [5, 10, 50, 90, 99.5], axis=1)
    tiny = np.finfo(np.float64).tiny
    tail = (q90 - q50) / np.maximum(q50 - q10, tiny)
    extremes = (q99 - q50) / np.maximum(q50 - q5, tiny)

    left, found = list(range(len(values))), dict[str, int]()

    def find(sequence: str, score: np.ndarray, clear: float) -> int:
        best = max(left, key=lambda channel: score[channel])
        own = named[sequence] if named[sequence] in left else min(left, key=lambda channel: score[channel])
        found[sequence] = best if score[best] > score[own] + clear else own
        left.remove(found[sequence])
        return found[sequence]

    from scipy.stats import rankdata  # which takes half a second

    t2 = find("T2", np.log(np.maximum(tail, tiny)), np.log(CLEAR_TAIL))
    find("FLAIR", np.corrcoef(rankdata(values, axis=1))[t2], CLEAR_CORRELATION)
    find("T1ce", np.log(np.maximum(extremes, tiny)), np.log(CLEAR_EXTREMES))
    return {**found, "T1": left[0]}


def _exchanged_by_range(values: np.ndarray, names: list[str], ranges: Ranges) -> list[str]:
    """Two channels are exchanged where each lies outside its own range and within that of the other."""
    medians = np.median(values, axis=1)

    def within(channel: int, name: int) -> bool:
        low, high = ranges[name]
        return bool(low <= medians[channel] <= high)

    for a, b in combinations(range(len(ranges)), 2):
        if within(a, b) and within(b, a) and not within(a, a) and not within(b, b):
            names[a], names[b] = names[b], names[a]
            break
    return names
