"""Tumours for phantoms: nested WT, TC and ET of irregular shape, grown into a given brain.

A tumour is first planned (what, where, how large, in mm of the head, so the same at every image size), then drawn as a
label map as trained. A region is the set of voxels of lowest cost from the foci, as many as its volume needs: rough
costs make the outline irregular, and grey matter costs more than the white matter that oedema follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_brats_ext.brats import BACKGROUND, ED, ET, EXTRA, NCR
from nnunet_brats_ext.dataset_conversion.phantoms.anatomy import CSF, WM, Push, VoxelGrid, smooth_noise

MULTIFOCAL = 0.2  # of all gliomas
INNERMOST = ("RC", "CC")  # further labels that take the middle of the core (resection cavity, cyst); NET takes its rest


@dataclass(frozen=True)
class TumourKind:
    """Ranges from which the tumours of one kind are drawn; fractions are of the region around.

    share: of all cases. grade: as `name_mapping.csv` has it. volume_ml: of WT, log-uniform.
    """

    share: float
    grade: str
    volume_ml: tuple[float, float]
    core_of_whole: tuple[float, float]
    enhancing_of_core: tuple[float, float]


# Shares and volumes as in the training cases of BraTS 2020: 293 of 369 high-grade; many of the others without ET.
GLIOMAS = (
    TumourKind(0.79, "HGG", (25, 190), (0.2, 0.6), (0.35, 0.85)),
    TumourKind(0.15, "LGG", (25, 160), (0.35, 0.85), (0, 0)),
    TumourKind(0.06, "LGG", (25, 160), (0.35, 0.85), (0.05, 0.3)),
)
MENINGIOMAS = (TumourKind(1, "", (5, 60), (1, 1), (1, 1)),)  # all of it enhances


@dataclass(frozen=True)
class Focus:
    """radius_mm: of the sphere that has the volume of the WT around this focus."""

    centre_mm: np.ndarray
    radius_mm: float


@dataclass(frozen=True)
class Tumour:
    """The plan of a tumour; a cohort's further label takes `extra_of_rest` of the core that does not enhance."""

    kind: TumourKind
    foci: tuple[Focus, ...]
    core_of_whole: float
    enhancing_of_core: float
    extra_of_rest: float

    @property
    def volume_mm3(self) -> float:
        return sum(4 / 3 * np.pi * focus.radius_mm**3 for focus in self.foci)

    def pushes(self, rng: np.random.Generator) -> list[Push]:
        """The mass effect of each focus."""
        return [Push(focus.centre_mm, 1.2 * focus.radius_mm, rng.uniform(0, 0.35)) for focus in self.foci]


def low_discrepancy(seed: int, index: int, step: float) -> float:
    """Number `index` of a low-discrepancy sequence in [0, 1): multiples of an irrational from a random start.

    A case depends on its own number alone, and any twelve consecutive cases include the rarer kinds.
    """
    return float((np.random.default_rng([seed, round(step * 1e6)]).random() + index * step) % 1)


def draw_kind(seed: int, index: int, kinds: Sequence[TumourKind] = GLIOMAS) -> TumourKind:
    """The kind of a case, in the shares of the table."""
    upper = np.cumsum([kind.share for kind in kinds])
    return kinds[
        min(int(np.searchsorted(upper, low_discrepancy(seed, index, 0.6180340), side="right")), len(kinds) - 1)
    ]


def is_multifocal(seed: int, index: int) -> bool:
    return low_discrepancy(seed, index, 0.4142136) < MULTIFOCAL


def draw_tumour(
    rng: np.random.Generator, kind: TumourKind, sites_mm: np.ndarray, multifocal: bool = False, extra: bool = False
) -> Tumour:
    """Draw sizes, and foci at some of the sites (n, 3) in mm of the head; further foci keep clear of the others."""
    volume_mm3 = 1000 * np.exp(rng.uniform(*np.log(kind.volume_ml)))
    shares = rng.dirichlet([3] * rng.integers(2, 4)) if multifocal else np.ones(1)
    radii = np.cbrt(volume_mm3 * np.sort(shares)[::-1] * 3 / (4 * np.pi))
    free = rng.permutation(sites_mm)
    foci: list[Focus] = []
    for radius in np.maximum(radii, 7):  # 1.4 ml: smaller ones vanish in a coarse phantom
        if not len(free):
            break
        foci.append(Focus(free[0], float(radius)))
        free = free[np.linalg.norm(free - free[0], axis=1) > 1.3 * (radius + radii[0])]
    return Tumour(
        kind=kind,
        foci=tuple(foci),
        core_of_whole=rng.uniform(*kind.core_of_whole),
        enhancing_of_core=rng.uniform(*kind.enhancing_of_core),
        extra_of_rest=rng.uniform(0.3, 0.8) if extra else 0,
    )


def reach(rng: np.random.Generator, grid: VoxelGrid, foci: Sequence[Focus], wander: float) -> np.ndarray:
    """Rough distance to the nearest focus in units of its radius, through ellipsoids turned at random.

    wander: how far the ellipsoid's centre may lie from the focus, in radii.
    """
    shapes, coarse, fine = rng.spawn(3)
    axes = grid.axes_mm()
    distances = []
    for focus in foci:
        turn, _ = np.linalg.qr(shapes.standard_normal((3, 3)))
        stretch = np.exp(shapes.normal(0, 0.22, 3))
        matrix = turn / stretch[:, None] / focus.radius_mm
        centre = focus.centre_mm + shapes.uniform(-wander, wander, 3) * focus.radius_mm
        squares = (
            sum(m * (line - c) for m, line, c in zip(row, axes, centre, strict=True)) ** 2
            for row in matrix.astype(np.float32)
        )
        distances.append(np.sqrt(sum(squares)))
    roughness = 0.22 * smooth_noise(coarse, grid, 13) + 0.1 * smooth_noise(fine, grid, 5)
    return np.minimum.reduce(distances).astype(np.float32) * np.exp(roughness)


def lowest_cost(cost: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    """Mask of the `count` voxels of lowest cost among the given ones; all of these where there are fewer."""
    candidates = cost[among]
    last = min(count, candidates.size) - 1
    return among & (cost <= np.partition(candidates, last)[last]) if last >= 0 else np.zeros_like(among)


def without_small_components(mask: np.ndarray) -> np.ndarray:
    """A mask without the components that have less than a twentieth of it."""
    components, number = ndimage.label(mask)
    if number < 2:
        return mask
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return (sizes >= mask.sum() / 20)[components]


def grow_tumour(
    rng: np.random.Generator, grid: VoxelGrid, tumour: Tumour, tissues: np.ndarray, mask: np.ndarray, extra: str | None
) -> np.ndarray:
    """Label map as trained, uint8: WT spares ventricles and sulci, TC lies within WT, ET is the outer shell of TC.

    extra: the name of the cohort's further label, or None; it takes its share of what does not enhance.
    """
    whole_rng, core_rng, shell_rng = rng.spawn(3)
    grey = 1 - tissues[WM] if tumour.core_of_whole < 1 else np.zeros_like(tissues[WM])
    cost = reach(whole_rng, grid, tumour.foci, 0) * (1 + 0.7 * grey)
    allowed = mask & (tissues[CSF] < 0.5)
    whole = without_small_components(lowest_cost(cost, allowed, round(tumour.volume_mm3 / grid.spacing_mm**3)))
    cost = reach(core_rng, grid, tumour.foci, 0.25)
    core = lowest_cost(cost, whole, round(tumour.core_of_whole * whole.sum()))
    cost *= np.exp(0.2 * smooth_noise(shell_rng, grid, 7))  # the shell is of uneven thickness, with gaps
    enhancing = lowest_cost(-cost, core, round(tumour.enhancing_of_core * core.sum()))
    labels = np.full(grid.shape, BACKGROUND, np.uint8)
    labels[whole], labels[core], labels[enhancing] = ED, NCR, ET
    if extra:
        rest = labels == NCR
        taken = lowest_cost(cost if extra in INNERMOST else -cost, rest, round(tumour.extra_of_rest * rest.sum()))
        labels[taken] = EXTRA
    return labels
