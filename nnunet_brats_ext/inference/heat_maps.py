"""Pictures of maps over an image, on axial slices: figure 5 of Lyu & Shu 2020 and what else needs such panels.

Slices are counted from 1 at the feet.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from nnunet_brats_ext.evaluation.pictures import (
    HeadImage,
    PicturePanel,
    RegionLabels,
    blend,
    draw_grid,
    find_slices,
    read_upright,
)
from nnunet_brats_ext.storage.errors import UserError

COLOURS = "turbo"  # blue is low, red is high, as in the paper
OPACITY = 0.7  # of the colours over the image


@dataclass(frozen=True)
class Row:
    """What one checkpoint makes of a case; files on the grid of the image."""

    label: str
    segmentation: Path
    maps: Sequence[Path]


@dataclass(frozen=True)
class Panel:
    """A map (rows, columns) to be drawn over the image, or the bare image; with the outlines of a label map.

    heat: NaN where there is nothing to show. scale: of the colours; None is that of the whole picture.
    """

    title: str = ""
    heat: np.ndarray | None = None
    labels: np.ndarray | None = None
    scale: Normalize | None = None


def check_slices(head: HeadImage, numbers: Sequence[int]) -> None:
    """An error where an image has no axial slice of that number."""
    if outside := [number for number in numbers if not 1 <= number <= len(head.image)]:
        raise UserError(f"--slices {outside[0]}: {head.name} has axial slices 1 to {len(head.image)}")


def choose_slices(head: HeadImage, numbers: Sequence[int], label_maps: Sequence[np.ndarray]) -> list[int]:
    """Indices of the slices with these numbers; without any, of the one with most tumour, or of the middle.

    label_maps: upright; the first one with any tumour decides.
    """
    return [number - 1 for number in numbers] or [find_slices(label_maps, head.box)[0]]


def draw_rows(
    head: HeadImage,
    rows: Sequence[Row],
    titles: Sequence[str],
    regions: RegionLabels,
    out: Path,
    numbers: Sequence[int],
) -> None:
    """Write slice_NNN.png for each of the numbers, by default for one: checkpoints in rows, maps in columns.

    titles: of the image and of the maps. regions: the labels of each, to outline in the first column.
    """
    segmentations = [read_upright(row.segmentation)[0] for row in rows]
    indices = choose_slices(head, numbers, segmentations[::-1])
    # One volume in memory at a time: [row][map][slice]; coefficients are above 0 wherever a network has looked.
    maps = [[_cut_each(head, path, indices) for path in row.maps] for row in rows]
    for i, index in enumerate(indices):
        panels = [
            [Panel(labels=head.crop(segmentation[index])), *(Panel(heat=heat[i]) for heat in heats)]
            for segmentation, heats in zip(segmentations, maps, strict=True)
        ]
        panels[0] = [replace(panel, title=title) for panel, title in zip(panels[0], titles, strict=True)]
        labels = [row.label for row in rows]
        figure = draw_panels(head, index, labels, panels, regions, "; coefficients of attention gates")
        figure.savefig(out / f"slice_{index + 1:03d}.png")


def draw_panels(
    head: HeadImage,
    index: int,
    row_labels: Sequence[str],
    panels: Sequence[Sequence[Panel]],
    regions: RegionLabels,
    note: str = "",
) -> Figure:
    """A picture of one slice, (rows, columns) of panels; maps without a scale of their own share one, with a bar.

    Rows may differ in length. note: what follows the case's name.
    """
    image = head.crop(head.image[index])
    inside, grey = head.inside(image), head.grey(image)
    every = [panel for line in panels for panel in line]
    shared = colour_scale([panel.heat[inside] for panel in every if panel.heat is not None and panel.scale is None])

    def drawn(panel: Panel) -> PicturePanel:
        picture = grey if panel.heat is None else heat_over(grey, panel.heat, inside, panel.scale or shared)
        return PicturePanel(picture, panel.title, panel.labels)

    title = f"{head.name}, axial slice {index + 1} of {len(head.image)}{note}"
    figure = draw_grid([list(map(drawn, line)) for line in panels], row_labels, regions, title, head.aspect)
    if any(panel.heat is not None and panel.scale is None for panel in every):
        bar = figure.colorbar(ScalarMappable(shared, COLOURS), ax=figure.axes, shrink=0.8, pad=0.01, aspect=30)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
    return figure


def colour_scale(values: Sequence[np.ndarray]) -> Normalize:
    """A scale over all values, its ends rounded outward to tenths, so that pictures of similar maps share it."""
    filled = [part[np.isfinite(part)] for part in values if np.isfinite(part).any()]
    low, high = (min(part.min() for part in filled), max(part.max() for part in filled)) if filled else (0, 1)
    low, high = np.floor(10 * low) / 10, np.ceil(10 * high) / 10
    return Normalize(low, high if high > low else low + 0.1)


def heat_over(grey: np.ndarray, heat: np.ndarray, inside: np.ndarray, scale: Normalize) -> np.ndarray:
    """A map in colour over a grey image: (rows, columns) -> (rows, columns, 3) in [0, 1], black outside the head.

    Where the map is NaN, the image is bare.
    """
    opacity = np.where(np.isfinite(heat), OPACITY, 0)
    return blend(grey, colormaps[COLOURS](scale(np.nan_to_num(heat)))[..., :3], opacity) * inside[..., None]


def _cut_each(head: HeadImage, path: Path, indices: Sequence[int]) -> list[np.ndarray]:
    volume, _ = read_upright(path)
    planes = [head.crop(volume[index]) for index in indices]
    return [np.where(plane > 0, plane, np.nan) for plane in planes]
