"""Fingerprints that find the same images under other names: MSD Task01 holds cases of BraTS 2016 and 2017.

A volume has two. Equal *content hashes* mean the same values, whatever the header, axis order, flips, number type,
margins or intensity scale. *Patterns* measure how similar two volumes look, flipped or not, also after resampling and
lossy storage; `benchmarks/duplicates.py` shows how well. Arrays are (z, y, x).
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import combinations, product

import numpy as np
from scipy.ndimage import gaussian_filter

DISTINCT = 16  # values other than the background that a volume needs to be identified by its content
CELLS = 24  # of a pattern along each axis: 6 to 7 mm of a brain
COARSE = 1.5  # cells; structures that are smoother than this are common to all brains


def content_hash(volume: np.ndarray) -> str | None:
    """A hash of how often each value occurs, from the lowest to the highest; None where too few values occur.

    The values themselves do not count, and neither does the background, the most frequent of them. So volumes with
    another margin, or with intensities on another (rising) scale, have the same hash. Two scans of one patient differ.
    """
    _, counts = np.unique(volume, return_counts=True)
    counts = np.delete(counts, counts.argmax())
    if len(counts) < DISTINCT:
        return None
    return hashlib.sha256(counts.astype("<i8").tobytes()).hexdigest()


def pattern(volume: np.ndarray) -> np.ndarray:
    """The individual structure of a brain, as float16 (`CELLS`,) * 3 of length one; zeros for an empty volume.

    The box around all that is not background, averaged over a grid of cells, without its smooth part: the shape of the
    head and the difference of white and grey matter, which are similar in everybody, count little.
    """
    values, counts = np.unique(volume, return_counts=True)
    inside = volume != values[counts.argmax()]
    if not inside.any():
        return np.zeros((CELLS,) * 3, np.float16)
    box = tuple(slice(where.min(), where.max() + 1) for where in np.nonzero(inside))
    inside, crop = inside[box], volume[box].astype(np.float32)
    low, high = np.percentile(crop[inside], (1, 99))
    crop = np.clip(crop, low, high)
    crop = np.where(inside, crop - crop[inside].mean(), 0)
    cells = _cell_means(crop)
    filled = _cell_means(inside.astype(np.float32))
    detail = np.where(filled > 0.5, cells - gaussian_filter(cells, COARSE), 0)
    length = np.linalg.norm(detail)
    return (detail / length if length > 0 else detail).astype(np.float16)


def _cell_means(volume: np.ndarray) -> np.ndarray:
    """The mean of each cell of a grid of `CELLS` along each axis; an axis with fewer voxels repeats them."""
    for axis, size in enumerate(volume.shape):
        starts = np.rint(np.arange(CELLS) * size / CELLS).astype(int).clip(max=size - 1)  # the same from either end
        lengths = np.maximum(np.diff(np.append(starts, size)), 1)
        shape = [-1 if i == axis else 1 for i in range(volume.ndim)]
        volume = np.add.reduceat(volume, starts, axis) / lengths.reshape(shape)
    return volume


def similar_pairs(patterns: Sequence[np.ndarray], threshold: float) -> Iterator[tuple[int, int, float]]:
    """The pairs of cases i < j that look the same, with their similarity, at least `threshold` and at most 1.

    patterns: of each case, (channel, `CELLS`, `CELLS`, `CELLS`) in one order of channels. The similarity is the mean
    correlation over the channels that are not empty in either case, in the best of the eight flips of the axes.
    """
    for start, other in product(range(0, len(patterns), _BLOCK), repeat=2):
        if start > other:
            continue
        ours, theirs = (np.stack(patterns[k : k + _BLOCK]).astype(np.float32) for k in (start, other))
        flat = theirs.reshape(len(theirs), -1).T
        channels = ours.any((2, 3, 4)).astype(int) @ theirs.any((2, 3, 4)).astype(int).T
        best = np.max([np.flip(ours, axes).reshape(len(ours), -1) @ flat for axes in _FLIPS], axis=0)
        best = best / np.maximum(channels, 1)
        for i, j in np.argwhere(best >= threshold):
            if start + i < other + j:
                yield int(start + i), int(other + j), min(float(best[i, j]), 1.0)


_BLOCK = 128  # cases compared at a time: some 60 MB
_FLIPS = [axes for number in range(4) for axes in combinations((2, 3, 4), number)]
