"""Pictures of a case: three planes through the tumour, contours of reference and predictions, maps of doubt.

A slice is encoded once per sequence; contours are vector paths over it, so that a further model costs a few kilobytes.
Planes are shown as radiologists see them: the patient's right on the left of the picture, up is superior or anterior.
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from contourpy import contour_generator
from matplotlib import colormaps
from PIL import Image

from nnunet_brats_ext.brats import remap, to_regions
from nnunet_brats_ext.evaluation.boxes import Box, find_box, grow_box
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import Grid, read_image

MARGIN = 3  # voxels around the head
WINDOW = (1, 99.5)  # percentiles of the head that become black and white
QUALITY = 70  # of WebP
DOUBT_COLOURS, DOUBT_OPACITY = "plasma", 0.85  # of a voxel in full doubt
DIMMED = 0.6  # the picture under the colours, or bright tumours would outshine them


@dataclass(frozen=True)
class CaseFiles:
    """All files of one case that there are; `to_trained` reads the numberings of its reference and predictions."""

    case: str
    regions: Mapping[str, tuple[int, ...]]  # labels as trained
    to_trained: tuple[Mapping[int, int], Mapping[int, int]]
    images: Mapping[str, Path]  # sequence -> file
    reference: Path | None
    predictions: Mapping[str, Path]  # model -> file
    uncertainty: tuple[Path, ...] = ()


class Contour(NamedTuple):
    """The outlines of one region in a slice: an SVG path in half voxels."""

    region: int  # its number, for its colour
    path: str


@dataclass(frozen=True)
class Plane:
    """One slice: pictures as data URIs, and contours over them."""

    name: str
    number: int  # of the slice, from 1
    slices: int
    shape: tuple[int, int]  # rows, columns in voxels
    size_mm: tuple[float, float]  # height, width
    images: dict[str, str]
    reference: list[Contour]
    predictions: dict[str, list[Contour]]
    doubt: str | None


class View(NamedTuple):
    """How a plane cuts a volume (z, y, x) whose axes point to superior, posterior and left."""

    name: str
    axis: int
    flip_rows: bool

    def cut(self, volume: np.ndarray, number: int) -> np.ndarray:
        plane = volume.take(number, self.axis)
        return plane[::-1] if self.flip_rows else plane


VIEWS = (View("axial", 0, False), View("coronal", 1, True), View("sagittal", 2, True))


def draw_case(files: CaseFiles) -> list[Plane]:
    """The three planes of a case where the tumour is largest: the reference's, or else any prediction's.

    Files that do not lie on the grid of the first image are an error that names both.
    """
    first, *_ = files.images.values()
    geometry = read_upright(first)[1]
    images = {sequence: _on_grid(path, first, geometry) for sequence, path in files.images.items()}
    as_reference, as_prediction = files.to_trained
    reference = _labels(files.reference, as_reference, files, geometry) if files.reference else None
    predictions = {name: _labels(path, as_prediction, files, geometry) for name, path in files.predictions.items()}
    doubts = [_on_grid(path, first, geometry) for path in files.uncertainty]
    doubt = np.maximum.reduce(doubts) if doubts else None
    box = grow_box(_head(next(iter(images.values()))), MARGIN, geometry.shape)
    numbers = find_slices([labels for labels in (reference, *predictions.values()) if labels is not None], box)
    windows = {sequence: _window(image[box]) for sequence, image in images.items()}
    planes = []
    for view, number in zip(VIEWS, numbers, strict=True):
        rows, columns = (axis for axis in range(3) if axis != view.axis)

        def cut(volume: np.ndarray, view: View = view, number: int = number) -> np.ndarray:
            return view.cut(volume[box], number - box[view.axis].start)

        def outline(labels: np.ndarray, cut=cut) -> list[Contour]:
            masks = to_regions(cut(labels), files.regions).values()
            return [Contour(i, trace(mask)) for i, mask in enumerate(masks) if mask.any()]

        pictures = {sequence: _grey(cut(image), *windows[sequence]) for sequence, image in images.items()}
        shape = next(iter(pictures.values())).shape
        spacing_mm = geometry.spacing_mm[::-1]
        planes.append(
            Plane(
                view.name,
                number + 1,
                geometry.shape[view.axis],
                shape,
                (shape[0] * spacing_mm[rows], shape[1] * spacing_mm[columns]),
                {sequence: encode(picture) for sequence, picture in pictures.items()},
                outline(reference) if reference is not None else [],
                {name: outline(labels) for name, labels in predictions.items()},
                encode(_heat(next(iter(pictures.values())), cut(doubt))) if doubt is not None else None,
            )
        )
    return planes


def find_slices(label_maps: list[np.ndarray], box: Box) -> tuple[int, ...]:
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


def trace(mask: np.ndarray) -> str:
    """The outlines of a mask (rows, columns) as an SVG path in half voxels, holes included; points on a line merged."""
    padded = np.pad(mask.astype(np.float32), 1)  # closes outlines at the rim
    parts = []
    for line in contour_generator(z=padded).lines(0.5):
        # The centre of voxel i lies at i + 1 in the padded grid, and in the picture at i + 0.5.
        points = np.rint(2 * np.asarray(line) - 1).astype(int)[:-1]
        steps = np.diff(points, axis=0, append=points[:1])
        turns = (steps != np.roll(steps, 1, axis=0)).any(1)
        corners = points[turns]
        moves = " ".join(f"{x} {y}" for x, y in np.diff(corners, axis=0))
        parts.append(f"M{corners[0][0]} {corners[0][1]}l{moves}z")
    return "".join(parts)


def encode(picture: np.ndarray) -> str:
    """A picture (rows, columns) or (rows, columns, 3) in uint8 as a data URI."""
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(content, "WEBP", quality=QUALITY, method=6)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def read_upright(path: Path) -> tuple[np.ndarray, Grid]:
    """An image as (z, y, x) whose axes run to superior, posterior and left, however the file stores them."""
    found = read_image(path)
    if found.array.ndim != 3:
        raise UserError(f"{path} has {found.array.ndim} axes; a 3-D image is needed")
    image = sitk.DICOMOrient(found.to_itk(), "LPS")
    return sitk.GetArrayFromImage(image), Grid.of(image)


def _on_grid(path: Path, first: Path, geometry: Grid) -> np.ndarray:
    array, own = read_upright(path)
    if difference := geometry.difference(own):
        raise UserError(f"{first} and {path} differ in {difference}")
    return array


def _labels(path: Path, to_trained: Mapping[int, int], files: CaseFiles, geometry: Grid) -> np.ndarray:
    found = _on_grid(path, next(iter(files.images.values())), geometry)
    labels, box = np.zeros(found.shape, np.uint8), find_box(found)
    try:
        labels[box] = remap(found[box], to_trained)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return labels


def _head(image: np.ndarray) -> Box:
    box = find_box(image != 0)
    return box if image[box].size else tuple(slice(0, size) for size in image.shape)


def _window(image: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(image[image != 0], WINDOW) if image.any() else (0, 1)
    return float(low), float(max(high, low + 1e-6))


def _grey(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = np.clip((plane.astype(np.float32) - low) / (high - low), 0, 1)
    return np.where(plane == 0, 0, 255 * scaled).astype(np.uint8)


def _heat(grey: np.ndarray, doubt: np.ndarray) -> np.ndarray:
    """Doubt from 0 to 100 in colour over a dimmed grey picture; what is certain stays grey."""
    share = doubt.astype(np.float32)[..., None] / 100
    colours = 255 * colormaps[DOUBT_COLOURS](share[..., 0])[..., :3]
    opacity = DOUBT_OPACITY * np.sqrt(share)
    return (DIMMED * grey[..., None] * (1 - opacity) + colours * opacity).astype(np.uint8)
