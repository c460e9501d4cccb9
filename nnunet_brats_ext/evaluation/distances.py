"""Directed distances between two surfaces, of the wholes and of parts of them.

Most points of two segmentations of one tumour lie within a few voxels of each other, so the neighbourhood is tried in
shells of equal distance, from the nearest on. On a tumour's crop this is some five times faster than a distance
transform, which measures all voxels where only the surface counts. A k-d tree finds the rest, if anything depends on
it: not so where 95 % of a surface are near, or where it is asked what lies within a small tolerance.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from math import inf

import numpy as np
from scipy.spatial import cKDTree

from nnunet_brats_ext.evaluation.surfaces import MARGIN, Surface, flat_steps


class Target:
    """A surface to which distances in mm are searched; a k-d tree of its points is made when it is needed."""

    def __init__(self, surface: Surface, spacing_mm: tuple[float, ...]):
        self.surface, self.spacing_mm, self.scale = surface, spacing_mm, np.asarray(spacing_mm)

    def __len__(self) -> int:
        return len(self.surface.points)

    def nearest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of some points, flat indices, the distance to the nearest one of the surface, and the part of that."""
        here = self._voxels(points)
        found = self._tree.query(here * self.scale)[1]
        mm = np.sqrt((((self._candidates[found] - here) * self.scale) ** 2).sum(axis=1))
        return mm, self.surface.parts.ravel()[self.surface.points[found]]

    def _voxels(self, points: np.ndarray) -> np.ndarray:
        return np.stack(np.unravel_index(points, self.surface.parts.shape), axis=1)

    @cached_property
    def _candidates(self) -> np.ndarray:
        return self._voxels(self.surface.points)

    @cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(self._candidates * self.scale, leafsize=64, balanced_tree=False, compact_nodes=False)


class Distances:
    """The distances in mm from some points to a surface, infinite if that is empty.

    part: of the surface that is nearest to each point; 0 where it is not known yet. bounds: the distances; lower bounds
    of them where they are not known.
    """

    def __init__(self, points: np.ndarray, target: Target, bounds: np.ndarray, part: np.ndarray):
        self.points, self.target, self.bounds, self.part = points, target, bounds, part

    @classmethod
    def near(cls, points: np.ndarray, target: Target) -> "Distances":
        """Those within `MARGIN` times the finest spacing; others are farther."""
        lattice, left = target.surface.parts.ravel(), np.arange(len(points))
        bounds = np.full(len(points), np.nextafter(MARGIN * min(target.spacing_mm), inf))
        part = np.zeros(len(points), lattice.dtype)
        for distance, offsets in _near_shells(target.spacing_mm, target.surface.parts.shape):
            if not len(left):
                break
            nearest = lattice[offsets[:, None] + points[left]].max(axis=0)
            found = nearest != 0
            bounds[left[found]], part[left[found]] = distance, nearest[found]
            left = left[~found]
        return cls(points, target, bounds, part)

    def to_parts(self, places: np.ndarray, target: Target, parts: Collection[int]) -> "Distances":
        """From some of the points to some parts of the surface, which are the target given.

        A point whose nearest one is in these parts keeps its distance; for others it is a lower bound.
        """
        points, bounds, part = self.points[places], self.bounds[places], self.part[places]
        if len(target) == len(self.target):
            return Distances(points, self.target, bounds, part)
        return Distances(points, target, bounds, np.where(np.isin(part, list(parts)), part, 0))

    @property
    def mm(self) -> np.ndarray:
        """All distances."""
        return self.known_to(inf)

    def known_to(self, most_mm: float) -> np.ndarray:
        """The distances; of those that are larger than this, perhaps lower bounds that are larger, too."""
        places = np.flatnonzero((self.part == 0) & (self.bounds <= most_mm))
        if not len(self.target):
            self.bounds[places] = inf
        elif len(places):
            self.bounds[places], self.part[places] = self.target.nearest(self.points[places])
        return self.bounds


def distances_for_quantile(sides: Sequence[Distances], weights: np.ndarray, share: float) -> np.ndarray:
    """All distances in one list, exact as far as their quantile of this share, interpolated or not, depends on them.

    weights: of all points. Where the known distances reach the quantile by themselves, the others only lie above it.
    """
    known = np.hstack([side.part for side in sides]) != 0
    most = np.hstack([side.bounds for side in sides])[known].max(initial=0)
    enough = weights[known].sum() >= share * weights.sum() + 2 * weights.max(initial=0)
    return np.hstack([side.known_to(most if enough else inf) for side in sides])


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in mm from each surface point of one mask to the surface of the other, in both directions.

    If a mask is empty, it has no points, and the distances to it are infinite. Areas are mm² per point (surfels only).
    """

    reference: Distances
    prediction: Distances
    spacing_mm: tuple[float, ...]
    reference_areas: np.ndarray | None = None
    prediction_areas: np.ndarray | None = None

    @property
    def from_reference(self) -> np.ndarray:
        return self.reference.mm

    @property
    def from_prediction(self) -> np.ndarray:
        return self.prediction.mm


class Surfaces:
    """The surfaces of a reference and a prediction whose parts are numbered, and the distances between them.

    Distances equal those of SciPy's Euclidean distance transform, bit for bit where multiples of the spacing are exact,
    as those of 1 mm are; elsewhere, up to the rounding of points that are equally far.
    """

    def __init__(self, reference: Surface, prediction: Surface, spacing_mm: Sequence[float]):
        self.reference, self.prediction, self.spacing_mm = reference, prediction, tuple(spacing_mm)
        targets = Target(reference, self.spacing_mm), Target(prediction, self.spacing_mm)
        self.whole = SurfaceDistances(
            Distances.near(reference.points, targets[1]),
            Distances.near(prediction.points, targets[0]),
            self.spacing_mm,
            reference.areas_mm2(self.spacing_mm),
            prediction.areas_mm2(self.spacing_mm),
        )
        """The distances of all parts together."""

    def of_parts(self, reference: Collection[int], prediction: Collection[int]) -> SurfaceDistances:
        """The distances between some parts of each, as if there were no others."""
        ours, theirs = self.reference.places(reference), self.prediction.places(prediction)
        if len(ours) == len(self.reference.points) and len(theirs) == len(self.prediction.points):
            return self.whole
        here, there = self.reference.at(ours), self.prediction.at(theirs)
        return SurfaceDistances(
            self.whole.reference.to_parts(ours, Target(there, self.spacing_mm), prediction),
            self.whole.prediction.to_parts(theirs, Target(here, self.spacing_mm), reference),
            self.spacing_mm,
            here.areas_mm2(self.spacing_mm),
            there.areas_mm2(self.spacing_mm),
        )


@lru_cache
def _near_shells(spacing_mm: tuple[float, ...], shape: tuple[int, ...]) -> list[tuple[float, np.ndarray]]:
    """Lattice offsets within `MARGIN` times the finest spacing: each distance in mm, and its steps in a flat array."""
    steps = np.array(list(product(range(-MARGIN, MARGIN + 1), repeat=len(shape))))
    distances = np.sqrt(((steps * np.asarray(spacing_mm)) ** 2).sum(axis=1))
    offsets = steps @ flat_steps(shape)
    return [(float(d), offsets[distances == d]) for d in np.unique(distances[distances <= MARGIN * min(spacing_mm)])]
