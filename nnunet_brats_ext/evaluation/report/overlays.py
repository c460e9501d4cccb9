"""The pictures of a case in a report: three planes through what went wrong, contours, and the uncertainty in colour.

A slice is encoded once per sequence; contours are vector paths over it, so that a further model costs a few kilobytes.
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from PIL import Image

from nnunet_brats_ext.brats import to_regions
from nnunet_brats_ext.evaluation.boxes import Box, find_box, grow_box, join_boxes
from nnunet_brats_ext.evaluation.pictures import (
    PLANES,
    AnatomicalPlane,
    HeadImage,
    PicturePanel,
    RegionLabels,
    blend,
    find_contours,
    find_slices,
    read_upright,
)
from nnunet_brats_ext.evaluation.reading import NUMBERING_ADVICE, LabelVolume, read_labels
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import LPS, Grid

QUALITY = 70  # of WebP
UNCERTAINTY_COLOURS, MOST_OPACITY = "plasma", 0.85  # of the most uncertain voxel
DIMMED = 0.6  # the picture under the colours, or bright tumours would outshine them
AROUND = 12  # voxels around the tumour, where there is no image of the head
WITHOUT_IMAGE = "label map"
AS_SCORED = "the results say how the files are numbered: score them with the `evaluate --labels` that fits them"
OUTSIDE, INSIDE = 0.12, 0.42  # grey values of label maps: around the tumour, and in its innermost region


class LabelFile(NamedTuple):
    """A label map to draw. to_trained, channels: how to read it, as of `read_labels`.

    sha256, tumour: of the file that was scored and of what it shows; empty if not known.
    """

    path: Path
    to_trained: Mapping[int, int]
    channels: tuple[str, ...] = ()
    sha256: str = ""
    tumour: str = ""


@dataclass(frozen=True)
class CaseFiles:
    """All files of one case that there are. scheme: of the labels. failing: the region where predictions are worst."""

    case: str
    regions: RegionLabels  # labels as trained
    images: Mapping[str, Path]  # sequence -> file
    reference: LabelFile | None
    predictions: Mapping[str, LabelFile]  # model -> file
    uncertainty: tuple[Path, ...] = ()
    scheme: str = "glioma_2017"
    failing: str = ""


class RegionOutline(NamedTuple):
    """The outlines of one region in a slice: an SVG path in half voxels."""

    region: int  # its number, for its colour
    path: str


@dataclass(frozen=True)
class SlicePicture:
    """One slice: pictures as data URIs, and contours over them.

    panels, sequences: the same for a file, by model and without contours by sequence.
    """

    name: str
    sides: tuple[str, str]  # what lies on its left and on its right
    number: int  # of the slice, from 1
    slices: int
    shape: tuple[int, int]  # rows, columns in voxels
    size_mm: tuple[float, float]  # height, width
    images: dict[str, str]
    reference: list[RegionOutline]
    predictions: dict[str, list[RegionOutline]]
    uncertainty: str | None
    panels: Mapping[str, PicturePanel] = field(default_factory=dict)
    sequences: Mapping[str, PicturePanel] = field(default_factory=dict)


def draw_case(files: CaseFiles, with_panels: bool = False) -> list[SlicePicture]:
    """The three planes of a case where the failing region differs most, or else where the tumour is largest.

    Without images, the label map of the reference is shown in grey. Files that do not lie on the grid of the first one,
    or that are not those that were scored, are an error that names them. with_panels: for figures, too.
    """
    heads, grid = _read_images(files.images)
    first = next(iter(files.images.values()), None)
    maps: dict[str, np.ndarray] = {}
    for name, one in ({"": files.reference} | dict(files.predictions)).items():
        if one is None:
            continue
        volume = _read(one, files.scheme)
        grid = grid or (volume.grid.turned(LPS) if volume.placed else volume.grid)
        first = first or one.path
        maps[name] = _upright(volume, first, grid)
    assert grid is not None and first is not None, "a case has an image or a label map"
    reference = maps.pop("", None)
    uncertainties = [_on_grid(path, first, grid) for path in files.uncertainty]
    uncertainty = np.maximum.reduce(uncertainties) if uncertainties else None
    known = [labels for labels in (reference, *maps.values()) if labels is not None]
    box = next(iter(heads.values())).box if heads else _box_of(known, grid)
    indices = find_slices([*_differences(reference, maps, files), *known], box)

    def draw_plane(plane: AnatomicalPlane, index: int) -> SlicePicture:
        def cut(volume: np.ndarray) -> np.ndarray:
            return plane.cut(volume[box], index - box[plane.axis].start)

        def outline(labels: np.ndarray) -> list[RegionOutline]:
            masks = to_regions(cut(labels), files.regions).values()
            return [RegionOutline(i, trace(mask)) for i, mask in enumerate(masks) if mask.any()]

        greys = {sequence: head.grey(cut(head.image)) for sequence, head in heads.items()}
        greys = greys or {WITHOUT_IMAGE: _grey_labels(cut(known[0]), files.regions)}
        first_grey = next(iter(greys.values()))
        rows, columns = (grid.spacing_mm[::-1][axis] for axis in range(3) if axis != plane.axis)
        shown = {"reference": reference, **maps} if reference is not None else maps
        panels = {name: PicturePanel(first_grey, name, cut(labels), plane.sides) for name, labels in shown.items()}
        return SlicePicture(
            plane.name,
            plane.sides,
            index + 1,
            grid.shape[plane.axis],
            first_grey.shape,
            (first_grey.shape[0] * rows, first_grey.shape[1] * columns),
            {sequence: encode(grey) for sequence, grey in greys.items()},
            outline(reference) if reference is not None else [],
            {name: outline(labels) for name, labels in maps.items()},
            encode(_colour_uncertainty(first_grey, cut(uncertainty))) if uncertainty is not None else None,
            panels if with_panels else {},
            {name: PicturePanel(grey, name, None, plane.sides) for name, grey in greys.items()} if with_panels else {},
        )

    return [draw_plane(plane, index) for plane, index in zip(PLANES, indices, strict=True)]


def _read_images(images: Mapping[str, Path]) -> tuple[dict[str, HeadImage], Grid | None]:
    """Sequence -> image, all on the grid of the first, which is returned as well."""
    heads: dict[str, HeadImage] = {}
    grid = None
    for sequence, path in images.items():
        if grid is None:
            first = path
            image, grid = read_upright(path)
        else:
            image = _on_grid(path, first, grid)
        heads[sequence] = HeadImage.of(sequence, image, grid.spacing_mm)
    return heads, grid


def _box_of(label_maps: list[np.ndarray], grid: Grid) -> Box:
    """Some room around the tumours of all label maps; the whole volume where there is none."""
    if not any(labels.any() for labels in label_maps):
        return tuple(slice(0, size) for size in grid.shape)
    return grow_box(join_boxes([find_box(labels) for labels in label_maps]), AROUND, grid.shape)


def _differences(reference: np.ndarray | None, maps: Mapping[str, np.ndarray], files: CaseFiles) -> list[np.ndarray]:
    """Where any prediction is wrong in the failing region."""
    if reference is None or files.failing not in files.regions:
        return []
    region = {files.failing: files.regions[files.failing]}
    wanted = to_regions(reference, region)[files.failing]
    wrong = [to_regions(labels, region)[files.failing] ^ wanted for labels in maps.values()]
    return [np.logical_or.reduce(wrong)] if wrong else []


def _grey_labels(labels: np.ndarray, regions: RegionLabels) -> np.ndarray:
    """A label map in grey: the brighter, the more regions a voxel belongs to."""
    masks = to_regions(labels, regions).values()
    depth = np.sum([mask.astype(np.float32) for mask in masks], axis=0)
    return OUTSIDE + (INSIDE - OUTSIDE) * depth / max(len(masks), 1)


def trace(mask: np.ndarray) -> str:
    """The outlines of a mask (rows, columns) as an SVG path in half voxels, holes included."""
    parts = []
    for outline in find_contours(mask):
        points = np.rint(2 * outline + 1).astype(int)  # the centre of the first voxel lies at one half voxel
        moves = " ".join(f"{x} {y}" for x, y in np.diff(points, axis=0))
        parts.append(f"M{points[0][0]} {points[0][1]}l{moves}z")
    return "".join(parts)


def encode(picture: np.ndarray) -> str:
    """A picture (rows, columns) or (rows, columns, 3) in [0, 1] as a data URI."""
    content = io.BytesIO()
    pixels = np.ascontiguousarray((255 * picture).astype(np.uint8))
    Image.fromarray(pixels).save(content, "WEBP", quality=QUALITY, method=6)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def _on_grid(path: Path, first: Path, grid: Grid) -> np.ndarray:
    array, own = read_upright(path)
    if difference := grid.difference(own):
        raise UserError(f"{first} and {path} differ in {difference}; bring them to one grid")
    return array


def _read(file: LabelFile, scheme: str) -> LabelVolume:
    try:
        volume = read_labels(file.path, file.to_trained, scheme, file.channels, right_angles=True)
    except UserError as error:
        known = error.advice != NUMBERING_ADVICE
        raise UserError(error.problem, error.advice if known else AS_SCORED) from error
    other_file = file.sha256 and volume.sha256 != file.sha256
    if other_file or (file.tumour and volume.fingerprint != file.tumour):
        raise UserError(
            f"{file.path} is not what was scored: its {'content' if other_file else 'tumour'} is another",
            "give the label maps that the results are about, or score these with `evaluate`",
        )
    return volume


def _upright(volume: LabelVolume, first: Path, grid: Grid) -> np.ndarray:
    try:
        return volume.upright(grid)
    except UserError as error:
        raise UserError(f"{first} and {volume.path} {error}") from error


def _colour_uncertainty(grey: np.ndarray, uncertainty: np.ndarray) -> np.ndarray:
    """Uncertainty from 0 to 100 in colour over a dimmed grey picture; what is certain stays grey."""
    share = np.clip(uncertainty.astype(np.float32) / 100, 0, 1)
    return blend(DIMMED * grey, colormaps[UNCERTAINTY_COLOURS](share)[..., :3], MOST_OPACITY * np.sqrt(share))
