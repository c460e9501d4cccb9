"""Brains for phantoms: a template of tissue probabilities, made individual by warping and folding.

Lengths are millimetres and fields are functions of position, so a case keeps its anatomy at every image size. Arrays
are indexed x (to the left), y (to the back), z (up), as BraTS stores them; template positions are MNI's (x right, y
front, z up).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import ceil

import numpy as np
from scipy import ndimage
from scipy.special import expit

from nnunet_brats_ext.storage.errors import UserError

FIELD_MM = (160, 192, 155)  # room for the largest head; the last is the height of a BraTS volume
HALF_LATTICE_MM = 104  # smooth noise lives in +- this around the centre of the field, a little more than the field

CSF, GM, WM = 0, 1, 2
ANATOMIES = ("auto", "mni152", "procedural")


@dataclass(frozen=True)
class VoxelGrid:
    """Isotropic voxels around the origin of the head, which is the middle of the array."""

    shape: tuple[int, ...]
    spacing_mm: float

    def refined(self, factor: int) -> "VoxelGrid":
        """The same box in voxels of a fraction of the size."""
        return VoxelGrid(tuple(n * factor for n in self.shape), self.spacing_mm / factor)

    def axes_mm(self) -> list[np.ndarray]:
        """Position along each axis, to the right, front and top of the head, shaped to broadcast over the grid."""
        signs = (-1, -1, 1)
        lines = [s * (np.arange(n) - (n - 1) / 2) * self.spacing_mm for s, n in zip(signs, self.shape, strict=True)]
        return [line.astype(np.float32) for line in np.ix_(*lines)]


def field_grid(shape: Sequence[int]) -> VoxelGrid:
    """The whole image: the finest voxels, not under 1 mm, with which the field of view holds a head.

    240 x 240 x 155 gives the 1 mm of BraTS. Rounded up to 0.01 mm.
    """
    finest = max(field / n for field, n in zip(FIELD_MM, shape, strict=True))
    return VoxelGrid(tuple(shape), max(1.0, ceil(round(finest * 100, 6)) / 100))


def head_grid(image: VoxelGrid) -> tuple[VoxelGrid, tuple[slice, ...]]:
    """The part of the image that can hold the head, with the same middle, and where it lies in the image."""
    inner = [min(n, ceil(field / image.spacing_mm)) for field, n in zip(FIELD_MM, image.shape, strict=True)]
    margins = [(n - m) // 2 for n, m in zip(image.shape, inner, strict=True)]
    shape = tuple(n - 2 * margin for n, margin in zip(image.shape, margins, strict=True))
    return VoxelGrid(shape, image.spacing_mm), tuple(slice(m, m + n) for m, n in zip(margins, shape, strict=True))


def smooth_noise(rng: np.random.Generator, grid: VoxelGrid, scale_mm: float) -> np.ndarray:
    """A random field of zero mean and unit variance everywhere, smooth over `scale_mm`: cubic B-splines on a lattice.

    The lattice does not depend on the grid, so the same generator gives the same field at any resolution.
    """
    nodes = np.arange(-(HALF_LATTICE_MM // scale_mm) - 2, HALF_LATTICE_MM // scale_mm + 3)
    field = rng.standard_normal((len(nodes),) * 3, dtype=np.float32)
    for line in grid.axes_mm():
        t = np.abs(line.ravel()[:, None] / scale_mm - nodes)
        basis = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6)
        basis /= np.sqrt((basis**2).sum(1, keepdims=True))  # unit variance between the nodes as well as on them
        field = np.tensordot(field, basis.astype(np.float32), ([0], [1]))  # consumes an axis, appends its successor
    return field


@dataclass(frozen=True, eq=False)
class Template:
    """Tissue probabilities of an average brain on a 1 mm grid: (3, x, y, z) for CSF, GM, WM; all 0 outside the brain.

    origin_mm: position of voxel 0; the axes run to the right, front and top.
    """

    tissues: np.ndarray
    origin_mm: np.ndarray

    @cached_property
    def brain(self) -> np.ndarray:
        """1 within the brain, 0 outside."""
        return self.tissues.sum(0)

    @cached_property
    def centre_mm(self) -> np.ndarray:
        """Middle of the bounding box of the brain."""
        box = ndimage.find_objects((self.brain > 0.5).astype(np.uint8))[0]
        return self.origin_mm + [(s.start + s.stop - 1) / 2 for s in box]

    @cached_property
    def white_matter_mm(self) -> np.ndarray:
        """Positions (n, 3) within the white matter of the hemispheres, well above cerebellum and brainstem."""
        x, y, z = (
            o + line for o, line in zip(self.origin_mm, np.ix_(*map(range, self.tissues.shape[1:])), strict=True)
        )
        hemispheres = (np.abs(x) > 10) & (z > np.where(y < -30, 5, -15))
        return self._positions_mm((ndimage.gaussian_filter(self.tissues[WM], 3) > 0.6) & hemispheres)

    @cached_property
    def surface_mm(self) -> np.ndarray:
        """Positions (n, 3) at the upper surface of the brain."""
        brain = self.brain > 0.5
        z = self.origin_mm[2] + np.arange(brain.shape[2])
        return self._positions_mm(brain & ~ndimage.binary_erosion(brain, iterations=4) & (z > 0))

    def _positions_mm(self, mask: np.ndarray) -> np.ndarray:
        return self.origin_mm + 3 * np.argwhere(mask[::3, ::3, ::3])


def sample(maps: np.ndarray, origin_mm: np.ndarray, positions_mm: Sequence[np.ndarray]) -> np.ndarray:
    """Values of maps (n, x, y, z) of a template at positions in it, by linear interpolation; 0 outside."""
    index = [p - np.float32(o) for p, o in zip(positions_mm, origin_mm, strict=True)]
    return np.stack([ndimage.map_coordinates(values, index, order=1) for values in maps])


def load_template(anatomy: str = "auto") -> Template:
    """The template of one of ANATOMIES; `auto` is MNI152 where nilearn is installed."""
    if anatomy not in ANATOMIES:
        raise UserError(f"anatomy {anatomy!r} is not among {', '.join(ANATOMIES)}")
    if anatomy == "procedural":
        return procedural_template()
    try:
        return mni152_template()
    except ImportError as error:
        if anatomy == "auto":
            return procedural_template()
        raise UserError("anatomy 'mni152' needs nilearn: pip install 'nnunet-brats-ext[phantom]'") from error


@lru_cache(maxsize=1)
def mni152_template() -> Template:
    """ICBM 152 nonlinear 2009 (Fonov et al. 2011, https://doi.org/10.1016/j.neuroimage.2010.07.033), from nilearn."""
    from nilearn import datasets

    loaders = datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template
    images = [load(resolution=1) for load in loaders]
    head, gm, wm = (np.asarray(image.dataobj, np.float32) for image in images)
    inside = ndimage.binary_fill_holes(head > 0.2)
    return Template(np.stack([np.clip(1 - gm - wm, 0, 1), gm, wm]) * inside, images[0].affine[:3, 3])


@lru_cache(maxsize=1)
def procedural_template() -> Template:
    """A brain of ellipsoids: cortex, white matter, deep grey nuclei, ventricles, cerebellum, brainstem, fissure.

    Sizes and places after the MNI brain; the cortex is folded where an individual is made.
    """
    origin = np.array([-98.0, -134.0, -72.0])
    x, y, z = (o + line for o, line in zip(origin, np.ix_(range(197), range(233), range(189)), strict=True))
    side = np.abs(x)

    def depth(centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
        """About the depth in mm below the surface of an ellipsoid (mirrored left and right), negative outside."""
        offsets = [line - c for line, c in zip((side, y, z), centre, strict=True)]
        radius = np.sqrt(sum((offset / r) ** 2 for offset, r in zip(offsets, radii, strict=True)))
        return ((1 - radius) * min(radii)).astype(np.float32)

    cerebrum = np.maximum(depth((14, -17, 18), (56, 88, 62)), depth((40, -8, -18), (28, 42, 28)))
    cerebellum = depth((22, -64, -42), (32, 29, 26))
    stem = depth((0, -30, -50), (15, 14, 44))
    head = np.maximum.reduce([cerebrum, cerebellum, stem])
    nuclei = [depth((11, -18, 8), (9, 15, 9)), depth((27, 2, 2), (7, 18, 10)), depth((13, 12, 10), (5, 12, 9))]
    ventricles = [depth((8, -8, 20), (6, 28, 8)), depth((22, -42, 14), (6, 14, 14)), depth((2, -16, 4), (2, 14, 9))]
    fissure = (side < 1.5) & (z > 24 - 0.003 * (y + 18) ** 2) & (cerebrum < 30)
    # Down to some 20 mm the cortex may fold, so its probabilities fade slowly into each other there.
    wm = np.maximum.reduce([expit((cerebrum - 14) / 3.5), expit((cerebellum - 10) / 3), expit((stem - 3) / 1)])
    wm = np.where(np.maximum.reduce(nuclei) > 0, 0.05, wm)
    csf = np.maximum(0.25 * expit(-(cerebrum - 8) / 4) * (cerebellum < 0) * (stem < 0), expit(-(head - 1.5) / 0.7))
    csf = np.where((np.maximum.reduce(ventricles) > 0) | fissure, 1, csf)
    wm = np.minimum(wm, 1 - csf)
    tissues = np.stack([ndimage.gaussian_filter(t.astype(np.float32), 1) for t in (csf, 1 - csf - wm, wm)])
    return Template(tissues * (head > 0), origin)


@dataclass(frozen=True)
class Pose:
    """Where a head lies in its field: template position = matrix @ head position + offset_mm."""

    matrix: np.ndarray
    offset_mm: np.ndarray

    def to_head(self, positions_mm: np.ndarray) -> np.ndarray:
        """Head positions of template positions (n, 3)."""
        return (positions_mm - self.offset_mm) @ np.linalg.inv(self.matrix).T


def draw_pose(rng: np.random.Generator, template: Template) -> Pose:
    """A head of 1.2 to 1.6 litres (MNI152 has 1.9), a few degrees and millimetres off."""
    scale = 1 / (rng.uniform(0.86, 0.94) * (1 + rng.normal(0, 0.015, 3)))
    a, b, c = np.radians(rng.uniform(-5, 5, 3))
    pitch = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    roll = [[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]]
    yaw = [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
    matrix = np.array(pitch) @ np.array(roll) @ np.array(yaw) * scale
    return Pose(matrix, template.centre_mm + rng.uniform((-4, -4, -1), (4, 4, 1)))


@dataclass(frozen=True)
class Push:
    """Mass effect: tissue around a centre moves outward, by up to `strength` of its distance."""

    centre_mm: np.ndarray
    radius_mm: float
    strength: float


def grow_brain(
    rng: np.random.Generator, grid: VoxelGrid, template: Template, pose: Pose, pushes: Sequence[Push] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """An individual brain: tissue fractions (3, *shape) that sum to 1 (CSF outside the brain), and its mask."""
    bends, wiggles, folds = rng.spawn(3)
    axes = grid.axes_mm()
    matrix = pose.matrix.astype(np.float32)
    positions = [sum(m * line for m, line in zip(row, axes, strict=True)) for row in matrix]
    positions = [
        p + offset + 3.5 * smooth_noise(bends, grid, 40) + 1.2 * smooth_noise(wiggles, grid, 15)
        for p, offset in zip(positions, pose.offset_mm.astype(np.float32), strict=True)
    ]
    (brain,) = sample(template.brain[None], template.origin_mm, positions)
    pieces, _ = ndimage.label(ndimage.binary_fill_holes(brain > 0.5))
    mask = pieces == np.argmax(np.bincount(pieces.ravel())[1:]) + 1
    for push in pushes:  # the skull stays where it is, and with it the mask
        away = [line - c for line, c in zip(axes, push.centre_mm.astype(np.float32), strict=True)]
        gain = push.strength * np.exp(-sum(a**2 for a in away) / (2 * push.radius_mm**2))
        positions = [
            p - gain * sum(m * a for m, a in zip(row, away, strict=True))
            for p, row in zip(positions, matrix, strict=True)
        ]
    priors = sample(template.tissues, template.origin_mm, positions)
    return fold(folds, grid, priors, mask), mask


def fold(rng: np.random.Generator, grid: VoxelGrid, priors: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draw one brain's tissue from the probabilities of an average brain.

    Where the average is undecided (the cortex), the sheets on which a smooth field is zero become sulci, and the
    middle between them white matter; where it is certain, nothing changes.
    """
    sheets = np.abs(smooth_noise(rng, grid, 8)) + 0.35 * np.abs(smooth_noise(rng, grid, 4)) - 1.0
    age = rng.normal(0, 0.5)  # wider or narrower sulci and ventricles
    logits = np.log(priors + 0.02)
    logits[CSF] += age + 0.1 - 1.7 * sheets
    logits[WM] += 1.3 * sheets
    logits *= 1.7  # one brain is sharper than the average
    logits -= logits.max(0)
    fractions = np.exp(logits, out=logits)
    fractions /= fractions.sum(0)
    fractions[:, ~mask] = np.array([1, 0, 0], np.float32)[:, None]
    return fractions
