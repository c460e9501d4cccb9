"""Directed distances between the surfaces of two masks.

Every distance metric of every preset is a reduction of these arrays (see `metrics`). A surface is a set of lattice
points, under one of two conventions that give different numbers for the same masks:

voxels: the voxels of the mask that touch the outside with a face (MedPy, MONAI, panoptica).
surfels: the corners at which the eight voxels around disagree, each weighted by the area of the marching-cubes surface
    through it (Nikolov et al. 2021, https://doi.org/10.2196/26151; DeepMind's `surface-distance`; BraTS 2023-25).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import permutations, product

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
_NEAR = 3  # voxels: within this radius a nearest point is looked up directly, farther away it is searched


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


def voxel_surface_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]
) -> SurfaceDistances:
    """Surface distances between the border voxels of two boolean masks (z, y, x); beyond the array lies background.

    The distances equal those of SciPy's Euclidean distance transform, bit for bit where `spacing_mm` is 1.
    """
    borders = voxel_border(reference), voxel_border(prediction)
    return SurfaceDistances(*_directed_distances(*borders, spacing_mm), tuple(spacing_mm))


def surfel_surface_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]
) -> SurfaceDistances:
    """Surface distances between the surface elements of two boolean masks (z, y, x), with the elements' areas."""
    codes = neighbour_codes(reference), neighbour_codes(prediction)
    borders = [(code != 0) & (code != _FULL) for code in codes]
    areas = surfel_areas_mm2(spacing_mm)
    return SurfaceDistances(
        *_directed_distances(borders[0], borders[1], spacing_mm),
        tuple(spacing_mm),
        *(areas[code[border]] for code, border in zip(codes, borders, strict=True)),
    )


def voxel_border(mask: np.ndarray) -> np.ndarray:
    """The voxels of a boolean mask that have a face on the outside; beyond the array lies background."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        part, whole = inside.swapaxes(0, axis), mask.swapaxes(0, axis)
        part[1:] &= whole[:-1]
        part[:-1] &= whole[1:]
        part[0] = part[-1] = False
    return mask ^ inside


def neighbour_codes(mask: np.ndarray) -> np.ndarray:
    """Which of the eight voxels around each corner belong to a boolean mask, as one bit each.

    (z, y, x) -> uint8 (z + 1, y + 1, x + 1). Beyond the array lies background. Doubling the pattern along one axis
    after the other takes three passes instead of eight.
    """
    codes = np.zeros([size + 2 for size in mask.shape], np.uint8)
    codes[1:-1, 1:-1, 1:-1] = mask
    for axis, weight in ((2, 2), (1, 4), (0, 16)):
        near, far = (np.moveaxis(codes, axis, 0)[side] for side in (slice(None, -1), slice(1, None)))
        codes = np.moveaxis(near | far * np.uint8(weight), 0, axis)
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


def _directed_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm from each point of one border to the nearest of the other, both ways, in array order; exact."""
    borders = [np.pad(border, _NEAR) for border in (reference, prediction)]
    points = [np.flatnonzero(border) for border in borders]
    spacing_mm = tuple(spacing_mm)
    return (
        _nearest_distances(points[0], borders[1], points[1], spacing_mm),
        _nearest_distances(points[1], borders[0], points[0], spacing_mm),
    )


def _nearest_distances(
    points: np.ndarray, border: np.ndarray, border_points: np.ndarray, spacing_mm: tuple[float, ...]
) -> np.ndarray:
    """Distance in mm from each of `points` to the nearest point of `border`; flat indices into that padded array.

    Most points of two segmentations of one tumour lie within a few voxels of each other, so the neighbourhood is tried
    in shells of equal distance, from the nearest on; a k-d tree finds the rest. On a tumour's crop this is some five
    times faster than a distance transform, which measures all voxels where only the surface is asked for.
    """
    distances = np.full(len(points), np.inf)
    if not len(points) or not len(border_points):
        return distances
    hits, left = border.ravel(), np.arange(len(points))
    for distance, offsets in _near_shells(spacing_mm, border.shape):
        found = hits[offsets[:, None] + points[left]].any(axis=0)
        distances[left[found]] = distance
        left = left[~found]
        if not len(left):
            return distances
    away, candidates = (
        np.stack(np.unravel_index(some, border.shape), axis=1) for some in (points[left], border_points)
    )
    tree = cKDTree(candidates * np.asarray(spacing_mm), leafsize=32, balanced_tree=False, compact_nodes=False)
    nearest = candidates[tree.query(away * np.asarray(spacing_mm))[1]]
    distances[left] = np.sqrt((((nearest - away) * np.asarray(spacing_mm)) ** 2).sum(axis=1))
    return distances


@lru_cache
def _near_shells(spacing_mm: tuple[float, ...], shape: tuple[int, ...]) -> list[tuple[float, np.ndarray]]:
    """Lattice offsets within `_NEAR` times the finest spacing: each distance in mm, and its steps in a flat array."""
    steps = np.array(list(product(range(-_NEAR, _NEAR + 1), repeat=len(shape))))
    distances = np.sqrt(((steps * np.asarray(spacing_mm)) ** 2).sum(axis=1))
    offsets = steps @ np.cumprod((1, *shape[:0:-1]))[::-1]
    return [(float(d), offsets[distances == d]) for d in np.unique(distances[distances <= _NEAR * min(spacing_mm)])]
