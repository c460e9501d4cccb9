"""The pictures of a case in a report: three planes through the tumour, contours, and the uncertainty in colour.

A slice is encoded once per sequence; contours are vector paths over it, so that a further model costs a few kilobytes.
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from PIL import Image

from nnunet_brats_ext.brats import to_regions
from nnunet_brats_ext.evaluation.numbering import renumber
from nnunet_brats_ext.evaluation.pictures import (
    PLANES,
    AnatomicalPlane,
    HeadImage,
    RegionLabels,
    blend,
    find_contours,
    find_slices,
    read_upright,
)
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import Grid

QUALITY = 70  # of WebP
UNCERTAINTY_COLOURS, MOST_OPACITY = "plasma", 0.85  # of the most uncertain voxel
DIMMED = 0.6  # the picture under the colours, or bright tumours would outshine them


@dataclass(frozen=True)
class CaseFiles:
    """All files of one case that there are; `to_trained` reads the numberings of its reference and predictions."""

    case: str
    regions: RegionLabels  # labels as trained
    to_trained: tuple[Mapping[int, int], Mapping[int, int]]
    images: Mapping[str, Path]  # sequence -> file
    reference: Path | None
    predictions: Mapping[str, Path]  # model -> file
    uncertainty: tuple[Path, ...] = ()


class RegionOutline(NamedTuple):
    """The outlines of one region in a slice: an SVG path in half voxels."""

    region: int  # its number, for its colour
    path: str


@dataclass(frozen=True)
class SlicePicture:
    """One slice: pictures as data URIs, and contours over them."""

    name: str
    number: int  # of the slice, from 1
    slices: int
    shape: tuple[int, int]  # rows, columns in voxels
    size_mm: tuple[float, float]  # height, width
    images: dict[str, str]
    reference: list[RegionOutline]
    predictions: dict[str, list[RegionOutline]]
    uncertainty: str | None


def draw_case(files: CaseFiles) -> list[SlicePicture]:
    """The three planes of a case where the tumour is largest: the reference's, or else any prediction's.

    Files that do not lie on the grid of the first image are an error that names both.
    """
    (sequence, first), *others = files.images.items()
    image, grid = read_upright(first)
    heads = {sequence: HeadImage.of(sequence, image, grid.spacing_mm)}
    for sequence, path in others:
        heads[sequence] = HeadImage.of(sequence, _on_grid(path, first, grid), grid.spacing_mm)
    as_reference, as_prediction = files.to_trained
    reference = _labels(files.reference, as_reference, first, grid) if files.reference else None
    predictions = {name: _labels(path, as_prediction, first, grid) for name, path in files.predictions.items()}
    uncertainties = [_on_grid(path, first, grid) for path in files.uncertainty]
    uncertainty = np.maximum.reduce(uncertainties) if uncertainties else None
    box = heads[next(iter(heads))].box
    indices = find_slices([labels for labels in (reference, *predictions.values()) if labels is not None], box)

    def draw_plane(plane: AnatomicalPlane, index: int) -> SlicePicture:
        def cut(volume: np.ndarray) -> np.ndarray:
            return plane.cut(volume[box], index - box[plane.axis].start)

        def outline(labels: np.ndarray) -> list[RegionOutline]:
            masks = to_regions(cut(labels), files.regions).values()
            return [RegionOutline(i, trace(mask)) for i, mask in enumerate(masks) if mask.any()]

        greys = {sequence: head.grey(cut(head.image)) for sequence, head in heads.items()}
        first_grey = next(iter(greys.values()))
        rows, columns = (grid.spacing_mm[::-1][axis] for axis in range(3) if axis != plane.axis)
        return SlicePicture(
            plane.name,
            index + 1,
            grid.shape[plane.axis],
            first_grey.shape,
            (first_grey.shape[0] * rows, first_grey.shape[1] * columns),
            {sequence: encode(grey) for sequence, grey in greys.items()},
            outline(reference) if reference is not None else [],
            {name: outline(labels) for name, labels in predictions.items()},
            encode(_colour_uncertainty(first_grey, cut(uncertainty))) if uncertainty is not None else None,
        )

    return [draw_plane(plane, index) for plane, index in zip(PLANES, indices, strict=True)]


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


def _labels(path: Path, to_trained: Mapping[int, int], first: Path, grid: Grid) -> np.ndarray:
    values = _on_grid(path, first, grid)
    try:
        return renumber(values, to_trained)
    except UserError as error:
        advice = "the results say how the files are numbered: score them with the `evaluate --labels` that fits them"
        raise UserError(f"{path}: {error}", advice) from error


def _colour_uncertainty(grey: np.ndarray, uncertainty: np.ndarray) -> np.ndarray:
    """Uncertainty from 0 to 100 in colour over a dimmed grey picture; what is certain stays grey."""
    share = np.clip(uncertainty.astype(np.float32) / 100, 0, 1)
    return blend(DIMMED * grey, colormaps[UNCERTAINTY_COLOURS](share)[..., :3], MOST_OPACITY * np.sqrt(share))
