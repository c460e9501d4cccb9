"""The image files of cases, as nnU-Net names them: found, and read in full before anything is predicted.

Loads no torch, so that the processes that read them start at once.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnunet_brats_ext.inference.channel_order import Ranges, likely_order, ranges_of_training
from nnunet_brats_ext.inference.models import TrainedModel
from nnunet_brats_ext.inference.training_sizes import TrainingSizes, brain_size_mm, describe
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import Notice, UserError, shorten
from nnunet_brats_ext.storage.images import ENDINGS, Grid, read_image, read_label_map, require_labels
from nnunet_brats_ext.storage.parallel import for_each

CaseFiles = Mapping[str, Mapping[int, Path]]
"""Case name -> number of a channel -> its file; a channel that the case lacks has none."""


def find_image_files(
    folder: Path, description: DatasetDescription, missing: bool = False, sequences: Sequence[str] = ()
) -> CaseFiles:
    """The channel files CASE_0000.nii.gz, CASE_0001.nii.gz, ... of all cases, in order.

    Those of derived channels, as `convert --add` writes them, are left out: `read_images` computes these.

    missing: take cases that lack some of them; without, they are an error. sequences: look at no others than these.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of images; name one that exists")
    ending, channels = description.ending, len(description.acquired)
    expected = f"CASE_0000{ending}" + (f" to CASE_{channels - 1:04d}{ending}" if channels > 1 else "")
    files = sorted(path for path in folder.iterdir() if path.name.endswith(ending) and path.name[0] != ".")
    named = {path: re.fullmatch(rf"(.+)_(\d{{4}}){re.escape(ending)}", path.name) for path in files}
    if not files or not all(named.values()):
        others = [path.name for path in files if not named[path]] or sorted(path.name for path in folder.iterdir())
        there = f"it has {shorten(others, 3)}" if others else "it is empty"
        raise UserError(
            f"{folder} should hold images named {expected}, one file per channel "
            f"({', '.join(description.acquired)}); {there}. `nnunet_brats convert` names them so"
        )
    cases: dict[str, dict[int, Path]] = {}
    derived = range(channels, len(description.channel_names))
    for path, match in named.items():
        if match and int(match[2]) not in derived:
            cases.setdefault(match[1], {})[int(match[2])] = path
    for name in sequences:
        if weights := description.derived.get(name):
            raise UserError(f"--sequences {name}: it is computed from {' and '.join(weights)}; name these")
    every, wanted = set(range(channels)), [description.channel(name) for name in sequences] or range(channels)
    if wrong := [
        case for case, found in cases.items() if found.keys() != every and (not missing or found.keys() - every)
    ]:
        shown = [f"{case} ({', '.join(f'{number:04d}' for number in sorted(cases[case]))})" for case in wrong]
        raise UserError(
            f"{folder}: the model needs the channels {expected} of every case; not so: {shorten(shown)}. "
            "`predict --missing` takes cases that lack some"
        )
    kept = {
        case: {number: found[number] for number in sorted(wanted) if number in found} for case, found in cases.items()
    }
    if without := [case for case, found in kept.items() if not found]:
        raise UserError(f"{folder}: {shorten(without)} have none of {', '.join(sequences)}")
    return kept


def missing_sequences(cases: CaseFiles, description: DatasetDescription) -> dict[str, list[str]]:
    """Case -> the sequences that it lacks, of those that lack some."""
    sequences = description.acquired
    lacking = {
        case: [name for number, name in enumerate(sequences) if number not in files] for case, files in cases.items()
    }
    return {case: names for case, names in lacking.items() if names}


def check_images(
    cases: CaseFiles, model: TrainedModel, previous: Sequence[Path] = (), processes: int | None = None
) -> None:
    """A UserError that names every file that is damaged or does not lie on the grid of its case's first channel.

    A Notice each names the cases whose channels seem to be in another order than in the model's training data, whose
    axes point elsewhere, and whose voxels or brains are of quite another size. previous: folders of label maps that a
    second stage refines, named CASE + ending, of the model's labels.
    """
    description = model.description
    ending, sequences = description.ending, description.acquired
    missing = {folder: [case for case in cases if not (folder / f"{case}{ending}").is_file()] for folder in previous}
    for folder, lacking in missing.items():
        if lacking:
            raise UserError(f"{folder} lacks the previous stage's label maps of {shorten(lacking)}")
    maps = {case: [folder / f"{case}{ending}" for folder in previous] for case in cases}
    items = [(case, files, maps[case]) for case, files in cases.items()]
    trained = _Training(
        description.labels,
        sequences,
        ranges_of_training(model.plans, len(sequences)),
        axes_seen(description, str(model.plans.get("image_reader_writer"))),
        TrainingSizes.of(model.folder, model.plans),
    )
    found = for_each(partial(_check_case, trained), items, "Check images", processes, name=lambda item: item[0])
    by_case = {case: one for case, one in zip(cases, found, strict=True) if one}
    for notice in (_other_axes(by_case, trained), *_other_sizes(by_case, trained), _other_order(by_case, trained)):
        if notice:
            warnings.warn(notice, Notice, stacklevel=2)


def axes_seen(description: DatasetDescription, reader: str) -> str | None:
    """The axes that images are turned to before a network sees them; None where they stay as they are.

    reader: the name of nnU-Net's; one that turns images by itself is left to it.
    """
    return None if "Reorient" in reader else description.axes


class _Training(NamedTuple):
    """What the images of a model's training data had in common. axes: as of `axes_seen`."""

    labels: frozenset[int]
    sequences: Sequence[str]
    ranges: Ranges
    axes: str | None
    sizes: TrainingSizes | None


class _Seen(NamedTuple):
    """What the images of a case show. order: the sequence of each channel. axes: of each file.

    far_spacing, far_brain: in words, where they are far from the training data's.
    """

    order: list[str]
    axes: list[str]
    far_spacing: str | None = None
    far_brain: str | None = None


def _other_order(cases: Mapping[str, _Seen], trained: _Training) -> str | None:
    others = {case: seen.order for case, seen in cases.items() if seen.order != list(trained.sequences)}
    if not others:
        return None
    shown = shorten([f"{case} ({', '.join(order)})" for case, order in others.items()], 3)
    return (
        f"the model was trained on channels in the order {', '.join(trained.sequences)}; the images of {len(others)} "
        f"of {len(cases)} cases look as if theirs were in another: {shown}. Compare them with their names _0000, "
        "_0001, ... before you trust the predictions"
    )


def _other_axes(cases: Mapping[str, _Seen], trained: _Training) -> str | None:
    others = {case: dict.fromkeys(seen.axes) for case, seen in cases.items() if set(seen.axes) - {trained.axes}}
    if not others or trained.axes is None:
        return None
    shown = shorten([f"{case} ({', '.join(axes)})" for case, axes in others.items()], 3)
    return (
        f"the model was trained on images with the axes {trained.axes}; those of {len(others)} of {len(cases)} cases "
        f"are turned to them, and what is predicted is turned back: {shown}"
    )


def _other_sizes(cases: Mapping[str, _Seen], trained: _Training) -> Iterator[str]:
    spacings = {case: seen.far_spacing for case, seen in cases.items() if seen.far_spacing}
    brains = {case: seen.far_brain for case, seen in cases.items() if seen.far_brain and not seen.far_spacing}
    for others, kind, known, advice in (
        (spacings, "voxels", "spacing_mm", "resample them to it, or look at the predictions"),
        (
            brains,
            "brains",
            "brain_mm",
            "is the skull there, or a part cut off? `nnunet_brats check` looks closer",
        ),
    ):
        if others:
            shown = shorten([f"{case} ({size})" for case, size in others.items()], 3)
            size = describe(getattr(trained.sizes, known))
            yield (
                f"the model was trained on {kind} of {size}; those of {len(others)} of {len(cases)} cases are of "
                f"quite another size: {shown}; {advice}"
            )


def _check_case(trained: _Training, item: tuple[str, Mapping[int, Path], list[Path]]) -> _Seen | None:
    """What the channels of a case seem to show; None of formats such as PNG and TIFF, which only nnU-Net reads."""
    _, images, maps = item
    if not all(path.name.endswith(ENDINGS) for path in images.values()):
        return None
    arrays: list[np.ndarray] = []
    axes: list[str] = []
    grids: dict[Path, Grid] = {}
    for path in images.values():
        image = read_image(path)
        if image.array.ndim > 3:
            raise UserError(f"{path} has {image.array.ndim} axes instead of 3; write each volume to a file of its own")
        if image.array.ndim < 3 and trained.sizes and not trained.sizes.slices:
            raise UserError(f"{path} has {image.array.ndim} axes instead of 3; write all slices to one file")
        if image.array.ndim == 3:
            axes.append(image.grid.axes)
            image = image.turned(trained.axes) if trained.axes else image
        arrays.append(image.array)
        grids[path] = image.grid
    for path in maps:
        array, grid = read_label_map(path)
        require_labels(array, trained.labels, path)
        grids[path] = grid.turned(trained.axes) if trained.axes and array.ndim == 3 else grid
    first, *others = grids
    for path in others:
        if difference := grids[first].difference(grids[path]):
            raise UserError(f"{first} and {path} differ in {difference}; bring them to one grid")
    sequences = list(trained.sequences)
    complete = len(arrays) == len(sequences)
    seen = _Seen(likely_order(arrays, sequences, trained.ranges) if complete else sequences, axes)
    if trained.sizes is None or arrays[0].ndim < 3:
        return seen
    spacing_mm = grids[first].spacing_mm[::-1]
    brain_mm = brain_size_mm(arrays, spacing_mm)
    return seen._replace(far_spacing=trained.sizes.far_spacing(spacing_mm), far_brain=trained.sizes.far_brain(brain_mm))
