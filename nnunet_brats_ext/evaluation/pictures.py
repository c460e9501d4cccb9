"""What all pictures of cases share: upright reading, slices, grey values, contours, colours, and panels of slices.

Slices are shown as radiologists see them: the patient's right on the left of the picture, up is anterior or superior.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from contourpy import contour_generator
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.ndimage import binary_fill_holes

from nnunet_brats_ext.brats import to_regions
from nnunet_brats_ext.evaluation.boxes import Box, find_box, grow_box
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import LPS, Grid, read_image, turn

MARGIN = 3  # voxels around the head
WINDOW = (1, 99.5)  # percentiles of the head that become black and white
REGION_COLOURS = ("#4cc9f0", "#ffa01c", "#ff5fa8", "#a3e635", "#c4a5ff", "#fff07a")  # in the order of the regions
LABEL_COLOURS = ("#2ca02c", "#1f6fe0", "#e63946", "#f2c14e")  # of the labels as trained: ED, NCR, ET, a further one
FILLED_OPACITY = 0.6
PANEL_INCHES = 2.3

RegionLabels = Mapping[str, tuple[int, ...]]


# ---- reading --------------------------------------------------------------------------------------------------------


def read_upright(path: Path) -> tuple[np.ndarray, Grid]:
    """An image as (z, y, x) whose axes run to superior, posterior and left, however the file stores them."""
    found = read_image(path)
    if found.array.ndim != 3:
        raise UserError(f"{path} has {found.array.ndim} axes; a 3-D image is needed")
    turned = found.turned(LPS)
    return turned.array, turned.grid


def upright(volume: np.ndarray, grid: Grid) -> np.ndarray:
    """A volume (z, y, x) on a file's grid, turned as `read_upright` turns the file."""
    return turn(volume, grid.axes, LPS)


# ---- slices ---------------------------------------------------------------------------------------------------------


class AnatomicalPlane(NamedTuple):
    """How a plane cuts an upright volume. sides: of the patient, on the left and on the right of the picture."""

    name: str
    axis: int
    flip_rows: bool
    sides: tuple[str, str]

    def cut(self, volume: np.ndarray, index: int) -> np.ndarray:
        plane = volume.take(index, self.axis)
        return plane[::-1] if self.flip_rows else plane


AXIAL = AnatomicalPlane("axial", 0, False, ("R", "L"))
PLANES = (
    AXIAL,
    AnatomicalPlane("coronal", 1, True, ("R", "L")),
    AnatomicalPlane("sagittal", 2, True, ("A", "P")),
)


def find_slices(label_maps: Sequence[np.ndarray], box: Box) -> tuple[int, ...]:
    """The slice along each axis with the most tumour, of the first label map that has any; else the box's middle."""
    for labels in label_maps:
        tumour = labels != 0
        if tumour.any():
            others = [tuple(other for other in range(3) if other != axis) for axis in range(3)]
            # Several slices can be equal: the middle one of them lies inside, the first at the rim.
            counts = [tumour.sum(axis) for axis in others]
            best = [np.flatnonzero(count == count.max()) for count in counts]
            return tuple(int(found[len(found) // 2]) for found in best)
    return tuple((side.start + side.stop) // 2 for side in box)


@dataclass(frozen=True)
class HeadImage:
    """An upright image (z, y, x) to draw: the box in which the head lies, and the values that are black and white."""

    name: str
    image: np.ndarray
    spacing_mm: tuple[float, ...]  # x, y, z
    box: Box
    window: tuple[float, float]

    @classmethod
    def read(cls, name: str, path: Path) -> "HeadImage":
        image, grid = read_upright(path)
        return cls.of(name, image, grid.spacing_mm)

    @classmethod
    def of(cls, name: str, image: np.ndarray, spacing_mm: tuple[float, ...]) -> "HeadImage":
        filled = image[image != 0]
        box = find_box(image) if filled.size else tuple(slice(0, size) for size in image.shape)
        low, high = np.percentile(filled, WINDOW) if filled.size else (0, 1)
        window = (float(low), float(max(high, low + 1e-6)))
        return cls(name, image, spacing_mm, grow_box(box, MARGIN, image.shape), window)

    @property
    def aspect(self) -> float:
        """Height over width of a voxel in an axial slice."""
        return self.spacing_mm[1] / self.spacing_mm[0]

    def crop(self, plane: np.ndarray) -> np.ndarray:
        """The part of an axial slice (rows, columns) that shows the head."""
        return plane[self.box[1:]]

    def inside(self, plane: np.ndarray) -> np.ndarray:
        """Where a slice of the image shows the head; single voxels of it can be 0, too."""
        return binary_fill_holes(plane != 0)

    def grey(self, plane: np.ndarray) -> np.ndarray:
        """A slice of the image as grey values in [0, 1], 0 outside the head."""
        low, high = self.window
        return np.clip((plane.astype(np.float32) - low) / (high - low), 0, 1) * self.inside(plane)


# ---- colours and contours -------------------------------------------------------------------------------------------


def blend(grey: np.ndarray, colours: np.ndarray, opacity: np.ndarray | float) -> np.ndarray:
    """Colours (rows, columns, 3) over grey values (rows, columns), all in [0, 1]."""
    share = np.broadcast_to(opacity, grey.shape)[..., None]
    return (1 - share) * grey[..., None] + share * colours


def fill(grey: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A label map as trained, in colours over grey values: (rows, columns) both -> (rows, columns, 3) in [0, 1]."""
    colours = np.array([to_rgb(colour) for colour in ("black", *LABEL_COLOURS)])[labels]
    return blend(grey, colours, FILLED_OPACITY * (labels > 0))


def find_contours(mask: np.ndarray) -> list[np.ndarray]:
    """The outlines of a mask (rows, columns), holes included, closed at the rim: points (x, y) on a polygon each.

    In voxels, the centre of the first one at (0, 0). Points on a straight line are left out; the first is not repeated.
    """
    padded = np.pad(mask.astype(np.float32), 1)
    outlines = []
    for line in contour_generator(z=padded).lines(0.5):
        points = np.asarray(line)[:-1] - 1
        steps = np.diff(points, axis=0, append=points[:1])
        outlines.append(points[(steps != np.roll(steps, 1, axis=0)).any(1)])
    return outlines


# ---- panels ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PicturePanel:
    """A picture (rows, columns) or (rows, columns, 3) in [0, 1], and a label map (rows, columns) to outline on it.

    sides: what lies on its left and on its right.
    """

    picture: np.ndarray
    title: str = ""
    labels: np.ndarray | None = None
    sides: tuple[str, str] = ("", "")


def draw_grid(
    rows: Sequence[Sequence[PicturePanel]],
    row_labels: Sequence[str],
    regions: RegionLabels,
    title: str = "",
    aspect: float = 1.0,
) -> Figure:
    """Panels in rows, which may differ in length. regions: name -> labels, outlined in the colours of their order."""
    columns = max(map(len, rows))
    height, width = rows[0][0].picture.shape[:2]
    size = PANEL_INCHES * columns + 1, PANEL_INCHES * height / width * aspect * len(rows) + 0.7
    figure = Figure(figsize=size, dpi=130, layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for row, label, its_axes in zip(rows, row_labels, axes, strict=True):
        its_axes[0].set_ylabel(label, fontsize=9)
        for panel, axis in zip(row, its_axes, strict=False):
            picture = panel.picture
            axis.imshow(picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2), aspect=aspect)
            axis.set_title(panel.title, fontsize=9)
            if panel.labels is not None:
                _outline(axis, panel.labels, regions)
            for side, x, aligned in zip(panel.sides, (0.02, 0.98), ("left", "right"), strict=True):
                axis.text(x, 0.98, side, transform=axis.transAxes, ha=aligned, va="top", color="white", fontsize=8)
    return figure


def _outline(axis: Axes, labels: np.ndarray, regions: RegionLabels) -> None:
    """The contours of the regions of a label map, and a legend of those that there are."""
    handles = []
    for (name, mask), colour in zip(to_regions(labels, regions).items(), REGION_COLOURS, strict=False):
        for points in find_contours(mask):
            axis.plot(*np.vstack([points, points[:1]]).T, color=colour, linewidth=0.9)
        if mask.any():
            handles.append(Line2D([], [], color=colour, label=name))
    if handles:
        axis.legend(handles=handles, loc="lower left", fontsize=6, frameon=False, labelcolor="white", handlelength=1)
