"""Directed distances between the surfaces of two masks, of the wholes and part by part.

Every distance metric of every preset is a reduction of these arrays (see `metrics`). A surface is a set of lattice
points, under one of two conventions that give different numbers for the same masks:

voxels: the voxels of the mask that touch the outside with a face (MedPy, MONAI, panoptica).
surfels: the corners at which the eight voxels around disagree, each weighted by the area of the marching-cubes surface
    through it (Nikolov et al. 2021, https://doi.org/10.2196/26151; DeepMind's `surface-distance`; BraTS 2023-25).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from itertools import permutations, product
from math import inf

import numpy as np
from scipy.spatial import cKDTree

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
_NEAR = 3  # voxels: within this radius a nearest point is looked up directly, farther away it is searched


@dataclass(frozen=True)
class Surface:
    """The surface points of a mask whose parts are numbered.

    parts: at each surface point the number of its part, 0 elsewhere; the mask's lattice with a margin of `_NEAR`.
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
    padded = np.pad(numbers, _NEAR)
    mask = padded != 0
    inside, flat = mask.copy(), mask.ravel()
    for step in _steps(padded.shape):
        inside.ravel()[step:] &= flat[:-step]  # what lies behind the end of a row is the margin of the next one
        inside.ravel()[:-step] &= flat[step:]
    points = np.flatnonzero(mask ^ inside)
    return Surface(_at(points, padded.ravel()[points], padded.shape), points)


def surfel_surface(numbers: np.ndarray) -> Surface:
    """The corners at which voxels disagree, each at the place of the voxel before it; a `SurfaceKind` of three axes."""
    padded = np.pad(numbers, _NEAR)
    codes = neighbour_codes(padded != 0).ravel()
    points = np.flatnonzero((codes != 0) & (codes != _FULL))
    codes = codes[points]
    filled = points + (_FIRST_VOXEL @ _steps(padded.shape))[codes]
    return Surface(_at(points, padded.ravel()[filled], padded.shape), points, codes)


def _at(points: np.ndarray, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    array = np.zeros(shape, values.dtype)
    array.ravel()[points] = values
    return array


def _steps(shape: tuple[int, ...]) -> np.ndarray:
    """How far apart neighbours along each axis are in a flat array."""
    return np.cumprod((1, *shape[:0:-1]))[::-1]


def neighbour_codes(mask: np.ndarray) -> np.ndarray:
    """Which of the eight voxels around the corner behind each voxel belong to a boolean mask, as one bit each.

    (z, y, x) -> uint8 (z, y, x). The mask has a margin of background. Bit 4i + 2j + k is the voxel that is i, j, k
    steps ahead. Doubling the pattern along one axis after the other takes three passes instead of eight.
    """
    codes = mask.astype(np.uint8)
    flat = codes.ravel()
    for step, shift in zip(_steps(mask.shape), (4, 2, 1), strict=True):
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


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in mm from each surface point of one mask to the surface of the other, in both directions.

    If a mask is empty, it has no points, and the distances to it are infinite. Areas are mm² per point (surfels only).
    """

    from_reference: np.ndarray
    from_prediction: np.ndarray
    spacing_mm: tuple[float, ...]
    reference_areas: np.ndarray | None = None
    prediction_areas: np.ndarray | None = None


class Surfaces:
    """The surfaces of a reference and a prediction whose parts are numbered, and the distances between them.

    within_mm: distances that are larger may be infinite.

    Distances equal those of SciPy's Euclidean distance transform, bit for bit where multiples of the spacing are exact,
    as those of 1 mm are; elsewhere, up to the rounding of points that are equally far.
    """

    def __init__(self, reference: Surface, prediction: Surface, spacing_mm: Sequence[float], within_mm: float = inf):
        self.reference, self.prediction, self.spacing_mm = reference, prediction, tuple(spacing_mm)
        self._from_reference = _Directed(self.reference, self.prediction, self.spacing_mm, within_mm)
        self._from_prediction = _Directed(self.prediction, self.reference, self.spacing_mm, within_mm)

    @cached_property
    def whole(self) -> SurfaceDistances:
        """The distances of all parts together."""
        distances = self._from_reference.to_all(), self._from_prediction.to_all()
        return self._with_areas(*distances, self.reference, self.prediction)

    def of_parts(self, reference: Collection[int], prediction: Collection[int]) -> SurfaceDistances:
        """The distances between some parts of each, as if there were no others."""
        ours, theirs = self.reference.places(reference), self.prediction.places(prediction)
        here, there = self.reference.at(ours), self.prediction.at(theirs)
        from_reference = self._from_reference.to_parts(ours, there, prediction)
        return self._with_areas(from_reference, self._from_prediction.to_parts(theirs, here, reference), here, there)

    def _with_areas(
        self, from_reference: np.ndarray, from_prediction: np.ndarray, reference: Surface, prediction: Surface
    ) -> SurfaceDistances:
        areas = reference.areas_mm2(self.spacing_mm), prediction.areas_mm2(self.spacing_mm)
        return SurfaceDistances(from_reference, from_prediction, self.spacing_mm, *areas)


class _Directed:
    """The distances in mm from the points of one surface to another one, and the part of it that each is nearest to.

    Most points of two segmentations of one tumour lie within a few voxels of each other, so the neighbourhood is tried
    in shells of equal distance, from the nearest on; a k-d tree finds the rest when it is asked for. On a tumour's crop
    this is some five times faster than a distance transform, which measures all voxels where only the surface counts.
    """

    def __init__(self, here: Surface, there: Surface, spacing_mm: tuple[float, ...], within_mm: float):
        self.here, self.there, self.spacing_mm = here, there, spacing_mm
        points, lattice, left = here.points, there.parts.ravel(), np.arange(len(here.points))
        self.mm, self.part = np.full(len(points), inf), np.zeros(len(points), lattice.dtype)  # until they are found
        for distance, offsets in _near_shells(spacing_mm, there.parts.shape):
            if distance > within_mm or not len(left):
                break
            nearest = lattice[offsets[:, None] + points[left]].max(axis=0)
            found = nearest != 0
            self.mm[left[found]], self.part[left[found]] = distance, nearest[found]
            left = left[~found]
        self.rest_counts = within_mm > _NEAR * min(spacing_mm)

    def to_all(self) -> np.ndarray:
        """From all points to all parts."""
        left = np.flatnonzero(self.part == 0)
        if self.rest_counts and len(left) and len(self.there.points):
            self.mm[left], nearest = _search(self.here.points[left], self.there, self.spacing_mm)
            self.part[left] = self.there.parts.ravel()[nearest]
        return self.mm

    def to_parts(self, places: np.ndarray, there: Surface, parts: Collection[int]) -> np.ndarray:
        """From some of the points to some parts, whose surface is `there`.

        A point whose nearest one is in these parts keeps its distance; only for the others the search is repeated.
        """
        mm, part = self.mm[places], self.part[places]
        again = ~np.isin(part, list(parts))
        if not self.rest_counts:
            again &= part != 0
        if again.any():
            mm[again], _ = _search(self.here.points[places[again]], there, self.spacing_mm)
        return mm


def _search(points: np.ndarray, surface: Surface, spacing_mm: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Of each of `points`, flat indices, the distance in mm to the nearest point of a surface, and which one it is."""
    here, there = (np.stack(np.unravel_index(some, surface.parts.shape), axis=1) for some in (points, surface.points))
    scale = np.asarray(spacing_mm)
    tree = cKDTree(there * scale, leafsize=32, balanced_tree=False, compact_nodes=False)
    nearest = tree.query(here * scale)[1]
    return np.sqrt((((there[nearest] - here) * scale) ** 2).sum(axis=1)), surface.points[nearest]


@lru_cache
def _near_shells(spacing_mm: tuple[float, ...], shape: tuple[int, ...]) -> list[tuple[float, np.ndarray]]:
    """Lattice offsets within `_NEAR` times the finest spacing: each distance in mm, and its steps in a flat array."""
    steps = np.array(list(product(range(-_NEAR, _NEAR + 1), repeat=len(shape))))
    distances = np.sqrt(((steps * np.asarray(spacing_mm)) ** 2).sum(axis=1))
    offsets = steps @ _steps(shape)
    return [(float(d), offsets[distances == d]) for d in np.unique(distances[distances <= _NEAR * min(spacing_mm)])]
