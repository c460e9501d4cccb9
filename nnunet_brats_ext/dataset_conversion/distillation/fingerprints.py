"""Telling the same images under other names, in other files: MSD Task01 holds cases of BraTS 2016 and 2017.

Two looks at one volume. The *content hash* says that two volumes hold the same values, whatever the header, axis order,
flips, number type, margins or intensity scale. The *pattern* says how alike two volumes look, flipped or not, which
survives resampling and lossy storage too; `benchmarks/duplicates.py` shows how well. Arrays are (z, y, x).
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import combinations, product

import numpy as np
from scipy.ndimage import gaussian_filter

DISTINCT = 16  # values other than the background that a volume needs to be told from others
CELLS = 24  # of a pattern along each axis: 6 to 7 mm of a brain
COARSE = 1.5  # cells; what is smoother than this all brains share


def content_hash(volume: np.ndarray) -> str | None:
    """A hash of how often each value occurs, from the lowest to the highest; None where too few values occur to tell.

    The values themselves do not count, and neither does the background, the commonest of them: equal are also volumes
    with a margin more or less, or with intensities on another (rising) scale. Two scans of one patient differ.
    """
    _, counts = np.unique(volume, return_counts=True)
    counts = np.delete(counts, counts.argmax())
    if len(counts) < DISTINCT:
        return None
    return hashlib.sha256(counts.astype("<i8").tobytes()).hexdigest()


def pattern(volume: np.ndarray) -> np.ndarray:
    """What sets a brain apart, as float16 (`CELLS`,) * 3 of length one; zeros where there is nothing to see.

    The box around all that is not background, averaged over a grid of cells, without all that is smooth: the shape of
    the head and the difference of white and grey matter, which are alike in everybody, weigh little.
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


def alike(patterns: Sequence[np.ndarray], threshold: float) -> Iterator[tuple[int, int, float]]:
    """The pairs of cases i < j that look alike, with their similarity, at least `threshold` and at most 1.

    patterns: of each case, (channel, `CELLS`, `CELLS`, `CELLS`) in one order of channels. The similarity is the mean
    correlation over the channels in which both cases show something, in the best of the eight flips of the axes.
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
