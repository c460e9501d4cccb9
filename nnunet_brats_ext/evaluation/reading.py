"""A label map as it comes: any format, any orientation of its grid, labels or channels, turned into labels as trained.

Nothing is resampled. A 4-D file holds a mask or a probability per region or label, as MONAI writes them.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnunet_brats_ext.brats import BACKGROUND, LABEL_SCHEMES, LabelScheme
from nnunet_brats_ext.evaluation.boxes import find_box
from nnunet_brats_ext.evaluation.numbering import renumber
from nnunet_brats_ext.storage.errors import Notice, UserError
from nnunet_brats_ext.storage.images import LPS, Grid, Image, read_image, turn

OUTSIDE = 0.01  # of a region's voxels may lie outside the region around it, before it is said
HEAD_BACKGROUND = "background"
NUMBERING_ADVICE = "--labels says how the files number the labels"


class FileFacts(NamedTuple):
    """A file, so that it is found and recognised again: its path and the SHA-256 of its content."""

    path: str
    sha256: str


class LabelVolume(NamedTuple):
    """A label map as trained, uint8 (z, y, x), its grid, and the SHA-256 of its file.

    placed: whether the file says where its voxels lie.
    """

    path: Path
    labels: np.ndarray
    grid: Grid
    sha256: str
    placed: bool = True

    def on_grid_of(self, other: "LabelVolume") -> "LabelVolume":
        """The same voxels in the axes of another file's grid; two grids that differ in more are an error."""
        if not (self.placed and other.placed):
            if self.grid.size == other.grid.size:
                return self._replace(grid=other.grid)
            raise UserError(f"reference and prediction differ in size {other.grid.size} against {self.grid.size}")
        difference = other.grid.difference(self.grid)
        if difference is None:
            return self
        if (axes := other.grid.axes) != self.grid.axes:
            turned = self._replace(labels=turn(self.labels, self.grid.axes, axes), grid=self.grid.turned(axes))
            if (difference := other.grid.difference(turned.grid)) is None:
                return turned
        if other.grid.size == self.grid.size:
            advice = "where the voxels are the same ones, copy the header of the reference to the prediction"
        else:
            advice = "predict on the grid of the reference, or resample to it, each voxel as its nearest one"
        raise UserError(f"reference and prediction differ in {difference}; bring them to one grid", advice)

    def upright(self, grid: Grid) -> np.ndarray:
        """The labels in the axes left, posterior and superior, on a grid that has them; another one is an error."""
        if not self.placed:
            axes, own = LPS, grid if grid.size == self.grid.size else self.grid
        else:
            axes, own = self.grid.axes, self.grid.turned(LPS)
        if difference := grid.difference(own):
            raise UserError(f"differ in {difference}; bring them to one grid")
        return turn(self.labels, axes, LPS)

    @property
    def facts(self) -> FileFacts:
        return FileFacts(str(self.path.absolute()), self.sha256)

    @property
    def fingerprint(self) -> str:
        """A text that two label maps share if they hold the same tumour, in whatever file, numbering and axes."""
        tumour = self.labels[find_box(self.labels)]
        upright = turn(tumour, self.grid.axes, LPS) if self.grid.axes != LPS else np.ascontiguousarray(tumour)
        return hashlib.sha256(repr(upright.shape).encode() + upright.tobytes()).hexdigest()[:32]


def read_labels(
    path: Path,
    to_trained: Mapping[int, int],
    scheme: str,
    channels: Sequence[str] = (),
    right_angles: bool = False,
) -> LabelVolume:
    """Read a label map, or a file of channels, as labels as trained.

    to_trained: value in a label map -> value as trained. channels: what those of a 4-D file are, regions or labels of
    the scheme. right_angles: as of `read_image`. A value without a label, channels without names, or names that the
    scheme does not have are an error.
    """
    image = read_image(path, right_angles, any_form=True)
    if image.array.ndim == 3:
        return LabelVolume(path, _renumbered(path, image.array, to_trained), image.grid, image.sha256)
    if image.array.ndim != 4:
        raise UserError(f"{path} has {image.array.ndim} axes; a label map has three, and one of channels four")
    if not channels:
        names = ",".join(LABEL_SCHEMES[scheme].regions)
        raise UserError(f"{path} has four axes: say what its channels are, in their order, such as --channels {names}")
    stack, grid = _channels_first(path, image, len(channels))
    labels = paint_channels(stack, channels, LABEL_SCHEMES[scheme], path)
    return LabelVolume(path, labels, grid or _unplaced(image), image.sha256, placed=grid is not None)


def holds_channels(path: Path) -> bool:
    """Whether a file has more than one value per voxel; reads it in full, because every format says so differently."""
    return read_image(path, right_angles=True, any_form=True).array.ndim == 4


def paint_channels(
    stack: np.ndarray, channels: Sequence[str], scheme: LabelScheme, path: Path | str = "an array"
) -> np.ndarray:
    """The label map as trained, uint8 (z, y, x), of masks or probabilities (channel, z, y, x).

    channels: regions of the scheme, where a voxel belongs to those above 0.5 and inner regions are painted over outer
    ones; or labels of the scheme, where with `background` among them the largest value decides. path: for messages.
    """
    low, high = float(stack.min(initial=0)), float(stack.max(initial=0))
    if low < 0 or high > 1:
        raise UserError(f"{path} holds values from {low:g} to {high:g}; channels are masks or probabilities, 0 to 1")
    labels = {name: value for value, name in scheme.names.items()} | {HEAD_BACKGROUND: BACKGROUND}
    known = [*scheme.regions, *(name for name in labels if name not in scheme.regions)]
    if unknown := [name for name in channels if name not in known]:
        raise UserError(f"--channels {','.join(channels)}: no {', '.join(unknown)} here; there are {', '.join(known)}")
    if len(set(channels)) != len(channels):
        raise UserError(f"--channels {','.join(channels)}: a name is given twice")
    if HEAD_BACKGROUND in channels:
        return np.array([labels[name] for name in channels], np.uint8)[stack.argmax(0)]
    masks = {name: channel > 0.5 for name, channel in zip(channels, stack, strict=True)}
    painted = np.zeros(stack.shape[1:], np.uint8)
    if not set(channels) <= set(scheme.regions):
        for name in channels:
            painted[masks[name]] = labels[name]
        return painted
    _check_nesting(masks, scheme, path)
    for (name, _), label in zip(scheme.regions.items(), scheme.paint, strict=True):
        if name in masks:
            painted[masks[name]] = label
    return painted


def _check_nesting(masks: Mapping[str, np.ndarray], scheme: LabelScheme, path: Path | str) -> None:
    """Say where regions are not nested as the scheme has them; an error where another order of the names is."""
    names = list(masks)
    pairs = [(a, b) for a in names for b in names if set(scheme.regions[a]) < set(scheme.regions[b])]
    channels = list(masks.values())
    sizes = [np.count_nonzero(one) for one in channels]
    outside = {
        (i, j): np.count_nonzero(channels[i] & ~channels[j]) / sizes[i] if sizes[i] else 0.0
        for i in range(len(names)) for j in range(len(names)) if i != j
    }  # fmt: skip

    def worst(order: Sequence[str]) -> float:
        return max((outside[order.index(a), order.index(b)] for a, b in pairs), default=0.0)

    if worst(names) <= OUTSIDE:
        return
    given = ",".join(names)
    if fitting := [order for order in permutations(names) if worst(order) <= OUTSIDE]:
        instead = " or ".join(",".join(order) for order in fitting)
        raise UserError(f"{path}: the channels are not nested as {given}, but as {instead}", "check --channels")
    inner, outer = max(pairs, key=lambda pair: outside[names.index(pair[0]), names.index(pair[1])])
    share = outside[names.index(inner), names.index(outer)]
    warnings.warn(
        f"{path}: {share:.0%} of the voxels of {inner} lie outside {outer}; they are counted as {outer} too",
        Notice,
        stacklevel=2,
    )


def _channels_first(path: Path, image: Image, number: int) -> tuple[np.ndarray, Grid | None]:
    """The channels (channel, z, y, x), and their grid where the file says it.

    NIfTI has a place for channels, its fourth axis or beyond. Files with the channels as their first axis describe
    that axis where others describe x, so nothing is known of where their voxels lie.
    """
    array = image.array
    if array.shape[0] == number:
        return array, image.grid if len(image.grid.size) == 3 else image.grid.of_one_volume
    if array.shape[-1] == number:
        return np.moveaxis(array, -1, 0), None
    found = " x ".join(map(str, array.shape[::-1]))
    raise UserError(f"{path} has {found} voxels, so neither its first nor its last axis is of {number} channels")


def _unplaced(image: Image) -> Grid:
    """A grid of the right size and spacing, at the origin."""
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    return Grid(image.grid.size[1:], image.grid.spacing_mm[1:], (0.0, 0.0, 0.0), identity)


def _renumbered(path: Path, values: np.ndarray, to_trained: Mapping[int, int]) -> np.ndarray:
    try:
        return renumber(values, to_trained)
    except UserError as error:
        raise UserError(f"{path}: {error}", NUMBERING_ADVICE) from error
