"""The largest diameters of a region in axial slices, as response criteria for gliomas measure them.

RANO (Wen et al. 2010, https://doi.org/10.1200/JCO.2009.26.3541; RANO 2.0, Wen et al. 2023,
https://doi.org/10.1200/JCO.23.01059): the longest diameter of a lesion in one axial slice, the longest one
perpendicular to it in the same slice, and their product.
"""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import find_objects, label
from scipy.spatial import ConvexHull, QhullError

MEASURABLE_MM = 10.0  # RANO: both diameters of a measurable lesion are at least this long
EDGES = ((0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5))  # of a voxel, from its centre
CONNECTED = np.ones((3, 3), int)


class Diameters(NamedTuple):
    """The longest diameter, the longest perpendicular to it, and their product; all zero where there is no region.

    slice_number: the axial slice, counted from 0 at the feet; None where there is none.
    """

    longest_mm: float = 0.0
    perpendicular_mm: float = 0.0
    product_mm2: float = 0.0
    slice_number: int | None = None


def axial_diameters(mask: np.ndarray, spacing_mm: tuple[float, ...]) -> Diameters:
    """Diameters of a mask (z, y, x), z along the patient's axis: of the connected part whose diameter is longest.

    spacing_mm: x, y, z. Distances are between the edges of voxels. A part is connected within its slice, diagonals
    included; the perpendicular runs within its convex hull.
    """
    found = Diameters()
    for number in np.flatnonzero(mask.any((1, 2))):
        parts, _ = label(mask[number], CONNECTED)
        for part, box in enumerate(find_objects(parts), 1):
            sides = [(side.stop - side.start) * mm for side, mm in zip(box, spacing_mm[1::-1], strict=True)]
            if np.hypot(*sides) <= found.longest_mm:
                continue  # no diameter is longer than the diagonal of its box
            longest, perpendicular = plane_diameters(parts[box] == part, spacing_mm[:2])
            if longest > found.longest_mm:
                found = Diameters(longest, perpendicular, longest * perpendicular, int(number))
    return found


def plane_diameters(mask: np.ndarray, spacing_mm: tuple[float, ...]) -> tuple[float, float]:
    """The longest diameter in mm of a mask (y, x) that is not empty, and the longest chord perpendicular to it.

    spacing_mm: x, y.
    """
    points = np.argwhere(mask).astype(float)
    edges = (points[:, None] + np.array(EDGES)).reshape(-1, 2) * (spacing_mm[1], spacing_mm[0])
    try:
        hull = edges[ConvexHull(edges).vertices]
    except QhullError:  # never of voxels' edges, which span both axes
        return 0.0, 0.0
    between = hull[:, None] - hull[None]
    squares = (between**2).sum(-1)
    one, other = np.unravel_index(np.argmax(squares), squares.shape)
    longest = float(np.sqrt(squares[one, other]))
    along = between[one, other] / longest
    across = np.array((-along[1], along[0]))
    return longest, _longest_chord(hull @ along, hull @ across)


def _longest_chord(u: np.ndarray, v: np.ndarray) -> float:
    """The longest chord along v of a convex polygon with the corners (u, v): its height is linear between corners."""
    first, last = int(np.argmin(u)), int(np.argmax(u))
    n = len(u)
    one = [(first + step) % n for step in range((last - first) % n + 1)]
    other = [(first - step) % n for step in range((first - last) % n + 1)]
    heights = [np.interp(u, u[side], v[side]) for side in (one, other)]
    return float(np.abs(heights[0] - heights[1]).max())
