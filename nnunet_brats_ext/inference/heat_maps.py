"""Pictures of maps over an image, on axial slices: figure 5 of Lyu & Shu 2020 and what else needs such panels.

Slices are shown as radiologists see them, the patient's right on the left, and counted from 1 at the feet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.ndimage import binary_fill_holes

from nnunet_brats_ext.brats import to_regions
from nnunet_brats_ext.evaluation.boxes import Box, find_box, grow_box
from nnunet_brats_ext.evaluation.report.overlays import find_slices, read_upright
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import Grid

COLOURS = "turbo"  # blue is low, red is high, as in the paper
OPACITY = 0.7  # of the colours over the image
WINDOW = (1, 99.5)  # percentiles of the head that become black and white
REGION_COLOURS = ("gold", "tomato", "deepskyblue", "violet")
PANEL_INCHES = 2.3
MARGIN = 3  # voxels around the head

Regions = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Row:
    """What one checkpoint makes of a case; files on the grid of the image."""

    label: str
    segmentation: Path
    maps: Sequence[Path]


@dataclass(frozen=True)
class Panel:
    """A map (rows, columns) to be drawn over the image, or the bare image; with the outlines of a label map.

    scale: of the colours; None is that of the whole picture.
    """

    title: str = ""
    heat: np.ndarray | None = None
    labels: np.ndarray | None = None
    scale: Normalize | None = None


@dataclass(frozen=True)
class Head:
    """The image behind the maps, upright (z, y, x), and the box in which the head lies."""

    name: str
    image: np.ndarray
    spacing_mm: tuple[float, ...]  # x, y, z
    box: Box
    window: tuple[float, float]

    @classmethod
    def read(cls, name: str, path: Path) -> "Head":
        image, geometry = read_upright(path)
        filled = image[image != 0]
        box = find_box(image) if filled.size else tuple(slice(0, size) for size in image.shape)
        low, high = np.percentile(filled, WINDOW) if filled.size else (0, 1)
        window = (float(low), float(max(high, low + 1e-6)))
        return cls(name, image, geometry.spacing_mm, grow_box(box, MARGIN, image.shape), window)

    def check_slices(self, numbers: Sequence[int]) -> None:
        if outside := [number for number in numbers if not 1 <= number <= len(self.image)]:
            raise UserError(f"--slices {outside[0]}: {self.name} has axial slices 1 to {len(self.image)}")

    def choose_slices(self, numbers: Sequence[int], label_maps: Sequence[np.ndarray]) -> list[int]:
        """Indices of the slices with these numbers; without any, of the one with most tumour, or of the middle.

        label_maps: upright, those first that shall decide.
        """
        return [number - 1 for number in numbers] or [find_slices(list(label_maps), self.box)[0]]

    def crop(self, plane: np.ndarray) -> np.ndarray:
        """The part of an axial slice (rows, columns) that shows the head."""
        return plane[self.box[1:]]


def draw_rows(
    head: Head, rows: Sequence[Row], titles: Sequence[str], regions: Regions, out: Path, numbers: Sequence[int]
) -> None:
    """Write slice_NNN.png for each of the numbers, by default for one: checkpoints in rows, maps in columns.

    titles: of the image and of the maps. regions: the labels of each, to outline in the first column.
    """
    segmentations = [read_upright(row.segmentation)[0] for row in rows]
    indices = head.choose_slices(numbers, segmentations[::-1])
    # One volume in memory at a time: [row][map][slice]
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
    head: Head,
    index: int,
    row_labels: Sequence[str],
    panels: Sequence[Sequence[Panel]],
    regions: Regions,
    note: str = "",
) -> Figure:
    """A picture of one slice, (rows, columns) of panels; maps without a scale of their own share one, with a bar.

    Rows may differ in length. note: what follows the case's name.
    """
    image = head.crop(head.image[index])
    inside = binary_fill_holes(image != 0)  # single voxels of the head can be 0, too
    grey = np.clip((image - head.window[0]) / (head.window[1] - head.window[0]), 0, 1) * inside
    every = [panel for line in panels for panel in line]
    shared = colour_scale([panel.heat[inside] for panel in every if panel.heat is not None and panel.scale is None])
    aspect = head.spacing_mm[1] / head.spacing_mm[0]
    columns = max(len(line) for line in panels)
    size = (
        PANEL_INCHES * columns + 1,
        PANEL_INCHES * image.shape[0] / image.shape[1] * aspect * len(panels) + 0.7,
    )
    figure = Figure(figsize=size, dpi=130, layout="constrained", facecolor="white")
    figure.suptitle(f"{head.name}, axial slice {index + 1} of {len(head.image)}{note}", fontsize=10)
    axes = figure.subplots(len(panels), columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for line, label, its_axes in zip(panels, row_labels, axes, strict=True):
        its_axes[0].set_ylabel(label, fontsize=9)
        for panel, axis in zip(line, its_axes, strict=False):
            picture = np.repeat(grey[..., None], 3, axis=2)
            if panel.heat is not None:
                picture = blend(grey, panel.heat, inside, panel.scale or shared)
            axis.imshow(picture, aspect=aspect)
            axis.set_title(panel.title, fontsize=9)
            if panel.labels is not None:
                outline(axis, panel.labels, regions)
    if any(panel.heat is not None and panel.scale is None for panel in every):
        bar = figure.colorbar(ScalarMappable(shared, COLOURS), ax=axes, shrink=0.8, pad=0.01, aspect=30)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
    return figure


def colour_scale(values: Sequence[np.ndarray]) -> Normalize:
    """A scale over all values, its ends rounded outward to tenths, so that pictures of like maps are alike."""
    filled = [part for part in values if part.size]
    low, high = (min(part.min() for part in filled), max(part.max() for part in filled)) if filled else (0, 1)
    low, high = np.floor(10 * low) / 10, np.ceil(10 * high) / 10
    return Normalize(low, high if high > low else low + 0.1)


def blend(grey: np.ndarray, heat: np.ndarray, inside: np.ndarray, scale: Normalize) -> np.ndarray:
    """A map in colour over a grey image: (rows, columns) -> (rows, columns, 3) in [0, 1], black outside the head."""
    colours = colormaps[COLOURS](scale(heat))[..., :3]
    return ((1 - OPACITY) * grey[..., None] + OPACITY * colours) * inside[..., None]


def outline(axis: Axes, labels: np.ndarray, regions: Regions) -> None:
    """The contours of the regions of a label map, and a legend of those that there are."""
    handles = []
    for (name, mask), colour in zip(to_regions(labels, regions).items(), REGION_COLOURS, strict=False):
        if mask.any():
            axis.contour(mask, levels=[0.5], colors=[colour], linewidths=0.9)
            handles.append(Line2D([], [], color=colour, label=name))
    if handles:
        axis.legend(handles=handles, loc="lower left", fontsize=6, frameon=False, labelcolor="white", handlelength=1)


def upright(volume: np.ndarray, geometry: Grid) -> np.ndarray:
    """A volume (z, y, x) as `read_upright` would give it, had it been read from a file."""
    image = sitk.GetImageFromArray(volume)
    image.SetDirection(geometry.direction)
    return sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))


def _cut_each(head: Head, path: Path, indices: Sequence[int]) -> list[np.ndarray]:
    volume, _ = read_upright(path)
    return [head.crop(volume[index]).copy() for index in indices]
