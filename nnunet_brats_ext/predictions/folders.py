"""Prediction folders: opened and checked in full before anything is computed, then read case by case."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnunet_brats_ext.brats import Head
from nnunet_brats_ext.predictions.heads import check_convertible
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import Notice, UserError, refuse, shorten
from nnunet_brats_ext.storage.images import (
    Grid,
    probabilities_shape,
    read_grid,
    read_image,
    read_label_map,
    read_probabilities,
)
from nnunet_brats_ext.storage.json_files import read_json

ENDING = ".nii.gz"  # where no dataset.json names another
PLANS = "plans.json"


class CasePrediction(NamedTuple):
    """One case of a prediction folder: label map (z, y, x), grid, and probabilities (channel, z, y, x) if opened so."""

    labels: np.ndarray
    grid: Grid
    probabilities: np.ndarray | None


@dataclass(frozen=True)
class PredictionFolder:
    """A folder of label maps CASE.nii.gz, as nnU-Net writes it, perhaps with probabilities CASE.npz.

    cases: case -> label map. description: its dataset.json; in fold_N/validation, that of the trained model.
    head: of its probabilities; None if only label maps are used. images: case -> image files, channel by channel, once
    `with_images` has found them.
    """

    path: Path
    cases: Mapping[str, Path]
    description: DatasetDescription | None = None
    head: Head | None = None
    images: Mapping[str, Sequence[Path]] = field(default_factory=dict)

    @property
    def ending(self) -> str:
        declared = self.description is not None and "file_ending" in self.description.content
        return self.description.ending if self.description and declared else ENDING

    def npz(self, case: str) -> Path:
        return self.path / f"{case}.npz"

    @property
    def cases_without_probabilities(self) -> list[str]:
        return [case for case in self.cases if not self.npz(case).is_file()]

    @property
    def has_some_probabilities(self) -> bool:
        return 0 < len(self.cases_without_probabilities) < len(self.cases)

    def read(self, case: str) -> CasePrediction:
        """Every file of a case, each in full: damage is noticed also in one that a method could do without."""
        labels, grid = read_label_map(self.cases[case])
        return CasePrediction(labels, grid, read_probabilities(self.npz(case), self.head) if self.head else None)

    def read_images(self, case: str) -> np.ndarray:
        """The images of a case, (channel, z, y, x), as float32."""
        return np.stack([read_image(path).array.astype(np.float32, copy=False) for path in self.images[case]])

    def with_images(self, images: Path, purpose: str) -> "PredictionFolder":
        """The folder with its images CASE_0000.nii.gz and so on; they must be on the grids of the label maps.

        purpose: what an error says cannot be done.
        """
        pattern = f"_[0-9][0-9][0-9][0-9]{self.ending}"
        acquired = len(self.description.acquired) if self.description else None  # derived channels come behind
        found = {case: sorted(images.glob(f"{case}{pattern}"))[:acquired] for case in self.cases}
        counts = {len(paths) for paths in found.values()}
        names = [f"_{channel:04d}{self.ending}" for channel in range(max({1, *counts}))]
        few = [case for case, paths in found.items() if [path.name for path in paths] != [case + one for one in names]]
        if few:
            raise UserError(
                f"{images} lacks images CASE_0000{self.ending} and so on, channel by channel, of {shorten(few)}"
            )
        channels = {f"channel {i}": {case: paths[i] for case, paths in found.items()} for i in range(counts.pop())}
        refuse(problems_between({str(self.path): self.cases, **channels}), purpose)
        return replace(self, images=found)


def open_folders(folders: Sequence[Path], probabilities: str) -> list[PredictionFolder]:
    """Check every file of several prediction folders by its header; one error names all that does not fit.

    probabilities: `needed`; `if complete`, that is, used if all folders have them; or `ignored`. Where they may be
    used, a folder that has them for some of its cases only is an error.

    Checked are: the same cases, the same grids, and with probabilities that each case has some, on its label map's
    grid, with channels that dataset.json explains.
    """
    if not folders:
        raise UserError("no prediction folder is given")
    if len(folders) != len({folder.resolve() for folder in folders}):
        raise UserError(f"a folder is given twice among {', '.join(map(str, folders))}")
    opened = [_open(folder) for folder in folders]
    problems = [problem for one in opened for problem in _without_label_map(one)]
    used = probabilities == "needed"
    if probabilities == "if complete":
        problems += [_partly_missing(one) for one in opened if one.has_some_probabilities]
        complete = [bool(one.description) and not one.cases_without_probabilities for one in opened]
        used = all(complete)
        if any(complete) and not used and not any(one.has_some_probabilities for one in opened):
            without = shorten([str(one.path) for one, whole in zip(opened, complete, strict=True) if not whole])
            warnings.warn(
                f"{without} has no probabilities, so that those of the other folders are not used either: label maps "
                "are. Predict with --save_probabilities to use them",
                Notice,
                stacklevel=3,
            )
    if used:
        for i, one in enumerate(opened):
            opened[i], found = _with_head(one)
            problems += found
    problems += problems_between({str(one.path): one.cases for one in opened})
    refuse(problems, "use these folders")
    return opened


def find_cases(folder: Path, ending: str = ENDING) -> dict[str, Path]:
    """Case name -> file, for the files of a folder with this ending; none at all is an error."""
    if not folder.is_dir():
        raise UserError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    cases = {path.name.removesuffix(ending): path for path in sorted(folder.glob(f"[!.]*{ending}"))}
    if not cases:
        raise UserError(f"{folder} holds no file that ends in {ending}")
    return cases


def problems_between(folders: Mapping[str, Mapping[str, Path]]) -> list[str]:
    """All that keeps folders from being combined case by case: cases that one lacks, grids that differ.

    folders: what to call each folder in a message -> its label maps, as `find_cases` gives them.
    """
    every = sorted(set().union(*folders.values()))
    problems = []
    for name, cases in folders.items():
        if missing := [case for case in every if case not in cases]:
            problems.append(f"{name} lacks {len(missing)} of {len(every)} cases: {shorten(missing)}")
    for case in every:
        holders = [name for name in folders if case in folders[name]]
        reference = read_grid(folders[holders[0]][case])
        for name in holders[1:]:
            if difference := reference.difference(read_grid(folders[name][case])):
                problems.append(f"{case}: {holders[0]} and {name} differ in {difference}")
    return problems


def problems_with_heads(folders: Sequence[PredictionFolder], target: Head) -> list[str]:
    """The folders whose probabilities cannot be brought to a common head."""
    problems = []
    for folder in folders:
        if folder.head:
            try:
                check_convertible(folder.head, target)
            except UserError as error:
                problems.append(f"{folder.path}: {error}")
    return problems


def _open(path: Path) -> PredictionFolder:
    description = DatasetDescription.find(*_places(path))
    folder = PredictionFolder(path, {}, description)
    return replace(folder, cases=find_cases(path, folder.ending))


def _places(path: Path) -> list[Path]:
    """Where dataset.json and plans.json of a folder lie; of fold_0/validation and the like, in the trained model."""
    fold = path.absolute().parent
    return [path, fold.parent] if path.name == "validation" and fold.name.startswith("fold_") else [path]


def _without_label_map(folder: PredictionFolder) -> list[str]:
    """Probabilities whose label map is gone: that case would be left out of the result without a word."""
    alone = [path.stem for path in sorted(folder.path.glob("[!.]*.npz")) if path.stem not in folder.cases]
    return [f"{folder.path} has probabilities of {shorten(alone)}, but no {folder.ending} of it"] if alone else []


def _partly_missing(folder: PredictionFolder) -> str:
    missing = folder.cases_without_probabilities
    return (
        f"{folder.path} has probabilities, but none of {shorten(missing)}: predict with --save_probabilities, or move "
        "all .npz away to use label maps only"
    )


def _with_head(folder: PredictionFolder) -> tuple[PredictionFolder, list[str]]:
    """The folder with the head of its probabilities, and what is wrong with them."""
    path, description = folder.path, folder.description
    if description is None:
        return folder, [f"{path} has no dataset.json, which says what the channels of its probabilities are"]
    if missing := folder.cases_without_probabilities:
        return folder, [f"{path} lacks the probabilities of {shorten(missing)}: predict with --save_probabilities"]
    plans = [read_json(place / PLANS) for place in _places(path) if (place / PLANS).is_file()]
    reader = description.reader or str(plans[0].get("image_reader_writer") if plans else "")
    if "Reorient" in reader:
        return folder, [f"{path} was predicted through {reader}, so its .npz lie on another grid than its label maps"]
    shapes = {case: probabilities_shape(folder.npz(case)) for case in folder.cases}
    problems = []
    for case, shape in shapes.items():
        if shape[1:] != (expected := read_grid(folder.cases[case]).shape):
            problems.append(f"{folder.npz(case)} has probabilities of shape {shape[1:]}, its label map {expected}")
    if len(channels := sorted({shape[0] for shape in shapes.values()})) > 1:
        return folder, [*problems, f"{path} mixes probabilities of {channels} channels"]
    try:
        return replace(folder, head=description.head(channels[0])), problems
    except UserError as error:
        return folder, [*problems, str(error)]
