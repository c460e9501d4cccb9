"""Directed distances between two surfaces, of the wholes and of parts of them; each is searched only if it decides.

Most points of two segmentations of one tumour lie within a few voxels of each other, so the neighbourhood is tried in
shells of equal distance, from the nearest on. On a tumour's crop this is some five times faster than a distance
transform, which measures all voxels where only the surface counts. Of a point that is farther away, no metric needs
more than whether it is within a tolerance, or on which side of a percentile. A k-d tree finds what is left.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from math import inf

import numpy as np
from scipy.spatial import cKDTree

from nnunet_brats_ext.evaluation.surfaces import MARGIN, Surface, flat_steps

_CELL = 4  # voxels along each side, whose centre bounds the distances of all points in it
_MANY = 1000  # points from which on it saves time to bound them first
_ROUNDING_MM = 1e-6


class Distances:
    """The distances in mm from some points to a surface, infinite if that is empty.

    low, high: bounds of each distance, which are the same where it is known.
    """

    def __init__(
        self, points: np.ndarray, surface: Surface, spacing_mm: Sequence[float], low: np.ndarray, known: np.ndarray
    ):
        self.points, self.surface, self.scale = points, surface, np.asarray(spacing_mm)
        self.low, self.high = low.copy(), np.where(known, low, inf)

    @property
    def mm(self) -> np.ndarray:
        """All distances."""
        self.search(self.unknown())
        return self.low

    def within(self, tolerance_mm: float) -> np.ndarray:
        """Whether each distance is at most this."""
        self.search(self.unknown(most=tolerance_mm))
        return self.low <= tolerance_mm

    def unknown(self, least: float = -inf, most: float = inf) -> np.ndarray:
        """The points whose distance is not known, but may be between the two."""
        return np.flatnonzero((self.low < self.high) & (self.low <= most) & (self.high >= least))

    def search(self, places: np.ndarray) -> None:
        """Find the distances of some of the points."""
        if not len(places):
            return
        if not len(self.surface.points):
            self.low[places] = inf
            return
        here = self._voxels(self.points[places])
        nearest = self._candidates[self._tree.query(here * self.scale)[1]]
        self.low[places] = np.sqrt((((nearest - here) * self.scale) ** 2).sum(axis=1))
        self.high[places] = self.low[places]

    def bound(self, places: np.ndarray) -> None:
        """Bound the distances of some of the points by that of the centre of their cell."""
        if len(places) < _MANY or not len(self.surface.points):
            return
        here = self._voxels(self.points[places])
        cells, cell = np.unique(here // _CELL @ flat_steps(self.surface.parts.shape), return_inverse=True)
        corners = np.stack(np.unravel_index(cells, self.surface.parts.shape), axis=1) * _CELL
        centres = (corners + (_CELL - 1) / 2) * self.scale
        off = np.sqrt(((here * self.scale - centres[cell]) ** 2).sum(axis=1)) + _ROUNDING_MM
        distances = self._tree.query(centres)[0][cell]
        self.low[places] = np.maximum(self.low[places], distances - off)
        self.high[places] = np.minimum(self.high[places], distances + off)

    def _voxels(self, points: np.ndarray) -> np.ndarray:
        return np.stack(np.unravel_index(points, self.surface.parts.shape), axis=1)

    @cached_property
    def _candidates(self) -> np.ndarray:
        return self._voxels(self.surface.points)

    @cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(self._candidates * self.scale, leafsize=32, balanced_tree=False, compact_nodes=False)


def distances_for_quantile(sides: Sequence[Distances], weights: np.ndarray, share: float) -> np.ndarray:
    """All distances in one list, of which the quantile of this share is right, however it lies between two points.

    weights: of all points. What does not decide the quantile is not searched, but given as some value on its side.
    """
    goal, slack = share * weights.sum(), 2 * weights.max(initial=0)
    for sharpen in (Distances.bound, Distances.search):
        low, high = np.hstack([side.low for side in sides]), np.hstack([side.high for side in sides])
        unknown = low < high
        known_weight, top = weights[~unknown].sum(), low[~unknown].max(initial=0)
        least, most = -inf, top  # where the known ones reach the goal alone, the quantile is among them
        if known_weight < goal + slack:
            most = max(_reached(high[unknown], weights[unknown], goal + slack - known_weight), top)
        if known_weight < goal - slack:
            least = _reached(low[unknown], weights[unknown], goal - slack - known_weight)
        for side in sides:
            sharpen(side, side.unknown(least if least > top else -inf, most))
    return np.hstack([side.low for side in sides])


def _reached(values: np.ndarray, weights: np.ndarray, goal: float) -> float:
    """The value up to which the weights sum up to a goal, or infinity."""
    order = np.argsort(values)
    place = int(np.searchsorted(np.cumsum(weights[order]), goal))
    return float(values[order][place]) if place < len(order) else inf


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
        self._from_reference = _Nearest(self.reference.points, self.prediction, self.spacing_mm)
        self._from_prediction = _Nearest(self.prediction.points, self.reference, self.spacing_mm)

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
        self, from_reference: Distances, from_prediction: Distances, reference: Surface, prediction: Surface
    ) -> SurfaceDistances:
        areas = reference.areas_mm2(self.spacing_mm), prediction.areas_mm2(self.spacing_mm)
        return SurfaceDistances(from_reference, from_prediction, self.spacing_mm, *areas)


class _Nearest:
    """The distances from some points to what is near of a surface, and the part of it that each is nearest to.

    mm: a lower bound where nothing is near. part: 0 there.
    """

    def __init__(self, points: np.ndarray, surface: Surface, spacing_mm: tuple[float, ...]):
        self.points, self.surface, self.spacing_mm = points, surface, spacing_mm
        lattice, left = surface.parts.ravel(), np.arange(len(points))
        self.mm = np.full(len(points), np.nextafter(MARGIN * min(spacing_mm), inf))
        self.part = np.zeros(len(points), lattice.dtype)
        for distance, offsets in _near_shells(spacing_mm, surface.parts.shape):
            if not len(left):
                break
            nearest = lattice[offsets[:, None] + points[left]].max(axis=0)
            found = nearest != 0
            self.mm[left[found]], self.part[left[found]] = distance, nearest[found]
            left = left[~found]

    def to_all(self) -> Distances:
        return Distances(self.points, self.surface, self.spacing_mm, self.mm, self.part != 0)

    def to_parts(self, places: np.ndarray, surface: Surface, parts: Collection[int]) -> Distances:
        """From some of the points to some parts, whose surface is given.

        A point whose nearest one is in these parts keeps its distance; for others it is a lower bound.
        """
        known = np.isin(self.part[places], list(parts))
        return Distances(self.points[places], surface, self.spacing_mm, self.mm[places], known)


@lru_cache
def _near_shells(spacing_mm: tuple[float, ...], shape: tuple[int, ...]) -> list[tuple[float, np.ndarray]]:
    """Lattice offsets within `MARGIN` times the finest spacing: each distance in mm, and its steps in a flat array."""
    steps = np.array(list(product(range(-MARGIN, MARGIN + 1), repeat=len(shape))))
    distances = np.sqrt(((steps * np.asarray(spacing_mm)) ** 2).sum(axis=1))
    offsets = steps @ flat_steps(shape)
    return [(float(d), offsets[distances == d]) for d in np.unique(distances[distances <= MARGIN * min(spacing_mm)])]
