"""Boxes: parts of a volume as one slice per axis, so that work is done only where there is a tumour."""

from collections.abc import Sequence

import numpy as np

Box = tuple[slice, ...]


def find_box(labels: np.ndarray) -> Box:
    """The smallest box around everything that is not zero; an empty box where nothing is."""
    if not labels.ndim:
        return ()
    filled = np.flatnonzero(labels.any(axis=tuple(range(1, labels.ndim))))
    side = slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(0, 0)
    return side, *find_box(np.logical_or.reduce(labels[side], axis=0))  # the other axes, in the shadow along this one


def join_boxes(boxes: Sequence[Box]) -> Box:
    """The smallest box around several; empty ones do not count."""
    filled = [box for box in boxes if all(side.stop > side.start for side in box)] or boxes[:1]
    return tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*filled, strict=True)
    )


def grow_box(box: Box, margin: int, shape: Sequence[int]) -> Box:
    """The box with a margin on all sides, as far as the volume goes."""
    return tuple(
        slice(max(side.start - margin, 0), min(side.stop + margin, size)) for side, size in zip(box, shape, strict=True)
    )


def share_boxes(first: Box, second: Box) -> Box:
    """The box that two boxes have in common; it may be empty."""
    sides = ((max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(first, second, strict=True))
    return tuple(slice(start, max(start, stop)) for start, stop in sides)


def cut_box(array: np.ndarray, box: Box, part: Box) -> np.ndarray:
    """The part of an array that covers `box`, both in the coordinates of the volume."""
    return array[tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(part, box, strict=True))]


def shift_box(box: Box, part: Box) -> Box:
    """A box in the coordinates of a part of the volume, in those of the volume."""
    return tuple(slice(b.start + p.start, b.stop + p.start) for b, p in zip(box, part, strict=True))
