"""The surface points of masks: every distance metric is a reduction of the distances between these.

A surface is a set of lattice points, under one of two conventions that give different numbers for the same masks:

voxels: the voxels of the mask that touch the outside with a face (MedPy, MONAI, panoptica).
surfels: the corners at which the eight voxels around disagree, each weighted by the area of the marching-cubes surface
    through it (Nikolov et al. 2021, https://doi.org/10.2196/26151; DeepMind's `surface-distance`; BraTS 2023-25).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import permutations, product

import numpy as np

# Marching cubes by symmetry. Bit 4i + 2j + k of a pattern is corner (i, j, k) of a cube; each pattern stands for its
# rotations, reflections and complement. Its triangles are given by the absolute components of their normals, in
# eighths; a normal's length at 1 mm spacing is the triangle's area. All other patterns are empty or full.
_TRIANGLES: dict[int, tuple[tuple[int, int, int], ...]] = {
    0b00000001: ((1, 1, 1),),
    0b00000011: ((2, 2, 0), (2, 2, 0)),
    0b00000110: ((1, 1, 1), (1, 1, 1)),
    0b00000111: ((1, 1, 1), (2, 2, 2), (4, 0, 0)),
    0b00001111: ((4, 0, 0), (4, 0, 0)),
    0b00010110: ((1, 1, 1), (1, 1, 1), (1, 1, 1)),
    0b00010111: ((1, 1, 1), (1, 1, 1), (2, 2, 2), (2, 2, 2)),
    0b00011000: ((1, 1, 1), (1, 1, 1)),
    0b00011001: ((0, 2, 2), (0, 2, 2), (1, 1, 1)),
    0b00011011: ((0, 2, 2), (1, 1, 1), (2, 0, 2), (3, 3, 3)),
    0b00011110: ((1, 1, 1), (1, 1, 1), (2, 2, 2), (4, 0, 0)),
    0b00111100: ((2, 2, 0), (2, 2, 0), (2, 2, 0), (2, 2, 0)),
    0b01101001: ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
}
_FULL = 255
_FIRST_VOXEL = np.array([(0, 0, 0)] * 256)  # of each pattern, the first corner that is filled
for _bit, _corner in reversed(list(enumerate(product((0, 1), repeat=3)))):
    _FIRST_VOXEL[[pattern for pattern in range(256) if pattern >> _bit & 1]] = _corner
MARGIN = 3  # voxels of background around a lattice, so that what is that near is looked up without a check


@dataclass(frozen=True)
class Surface:
    """The surface points of a mask whose parts are numbered.

    parts: at each surface point the number of its part, 0 elsewhere; the mask's lattice with a margin of `MARGIN`.
    points: where they are, as flat indices into `parts`, in array order. codes: of each (surfels only), as of
    `neighbour_codes`.
    """

    parts: np.ndarray
    points: np.ndarray
    codes: np.ndarray | None = None

    def places(self, numbers: Collection[int]) -> np.ndarray:
        """Which of the points belong to some parts, in array order."""
        return np.sort(np.concatenate([self._places_by_part[number] for number in numbers]), kind="stable")

    def at(self, places: np.ndarray) -> "Surface":
        """The surface of only these points."""
        return replace(self, points=self.points[places], codes=None if self.codes is None else self.codes[places])

    def areas_mm2(self, spacing_mm: Sequence[float]) -> np.ndarray | None:
        """The area of the surface at each point (surfels only)."""
        return None if self.codes is None else surfel_areas_mm2(spacing_mm)[self.codes]

    @cached_property
    def _places_by_part(self) -> list[np.ndarray]:
        numbers = self.parts.ravel()[self.points]
        return np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])


SurfaceKind = Callable[[np.ndarray], Surface]
"""The surface of numbered parts (z, y, x); beyond the array lies background.

Two parts never have voxels that touch, not even in a corner. A boolean mask is one part, with the number 1.
"""


def voxel_surface(numbers: np.ndarray) -> Surface:
    """The voxels that have a face on the outside; a `SurfaceKind`."""
    padded = np.pad(numbers, MARGIN)
    mask = padded != 0
    inside, flat = mask.copy(), mask.ravel()
    for step in flat_steps(padded.shape):
        inside.ravel()[step:] &= flat[:-step]  # what lies behind the end of a row is the margin of the next one
        inside.ravel()[:-step] &= flat[step:]
    points = np.flatnonzero(mask ^ inside)
    return Surface(_at(points, padded.ravel()[points], padded.shape), points)


def surfel_surface(numbers: np.ndarray) -> Surface:
    """The corners at which voxels disagree, each at the place of the voxel before it; a `SurfaceKind` of three axes."""
    padded = np.pad(numbers, MARGIN)
    codes = neighbour_codes(padded != 0).ravel()
    points = np.flatnonzero((codes != 0) & (codes != _FULL))
    codes = codes[points]
    filled = points + (_FIRST_VOXEL @ flat_steps(padded.shape))[codes]
    return Surface(_at(points, padded.ravel()[filled], padded.shape), points, codes)


def _at(points: np.ndarray, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    array = np.zeros(shape, values.dtype)
    array.ravel()[points] = values
    return array


def flat_steps(shape: tuple[int, ...]) -> np.ndarray:
    """How far apart neighbours along each axis are in a flat array."""
    return np.cumprod((1, *shape[:0:-1]))[::-1]


def neighbour_codes(mask: np.ndarray) -> np.ndarray:
    """Which of the eight voxels around the corner behind each voxel belong to a boolean mask, as one bit each.

    (z, y, x) -> uint8 (z, y, x). The mask has a margin of background. Bit 4i + 2j + k is the voxel that is i, j, k
    steps ahead. Doubling the pattern along one axis after the other takes three passes instead of eight.
    """
    codes = mask.astype(np.uint8)
    flat = codes.ravel()
    for step, shift in zip(flat_steps(mask.shape), (4, 2, 1), strict=True):
        flat[:-step] |= flat[step:] << np.uint8(shift)
    return codes


def surfel_areas_mm2(spacing_mm: Sequence[float]) -> np.ndarray:
    """The area of the surface through a cube of each of the 256 corner patterns (of `neighbour_codes`) -> (256,)."""
    # A normal's component along one axis is the extent of its triangle across the other two.
    scale = np.prod(spacing_mm) / np.asarray(spacing_mm)
    return np.linalg.norm(_surfel_normals() * scale, axis=2).sum(axis=1)


@cache
def _surfel_normals() -> np.ndarray:
    """Absolute normals of the triangles of each corner pattern at 1 mm spacing -> (256, 4, 3), padded with zeros."""
    normals = np.zeros((256, 4, 3))
    corners = np.array(list(product((0, 1), repeat=3)))
    for pattern, triangles in _TRIANGLES.items():
        filled = corners[[bool(pattern >> bit & 1) for bit in range(8)]]
        for axes, mirror in product(permutations(range(3)), corners):
            code = int((1 << ((filled[:, axes] ^ mirror) @ (4, 2, 1))).sum())
            normals[[code, _FULL - code], : len(triangles)] = np.array(triangles)[:, axes] / 8
    return normals
