"""Prediction folders, looked at in full before anything is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_brats_ext.brats import Head
from nnunet_brats_ext.predictions.heads import check_convertible
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError, refuse
from nnunet_brats_ext.storage.images import probabilities_shape, read_grid, read_label_map
from nnunet_brats_ext.storage.json_files import read_json


@dataclass(frozen=True)
class Member:
    """One prediction folder of an ensemble.

    cases: case -> label map. head: of its probabilities; None for a member of which only label maps are used.
    """

    folder: Path
    cases: Mapping[str, Path]
    dataset_json: Mapping[str, Any] | None = None
    head: Head | None = None

    def label_map(self, case: str) -> np.ndarray:
        return read_label_map(self.cases[case])[0]

    def npz(self, case: str) -> Path:
        return self.folder / f"{case}.npz"

    def has_probabilities(self) -> bool:
        return all(self.npz(case).is_file() for case in self.cases)


def open_members(folders: Sequence[Path], probabilities: str) -> list[Member]:
    """Look at every file of every member before anything is computed; one error names all that does not fit.

    probabilities: `needed`, `ignored`, or `if complete`: used if every member has them for all its cases.

    Checked are: the same cases, the same grids, and with probabilities that each case has some, on its label map's
    grid, with channels that its dataset.json explains.
    """
    if len(folders) != len({folder.resolve() for folder in folders}):
        raise UserError(f"a folder is given twice among {', '.join(map(str, folders))}")
    members = []
    for folder in folders:
        dataset_json = _settings(folder, "dataset.json")
        ending = (dataset_json or {}).get("file_ending", ".nii.gz")
        members.append(Member(folder, find_cases(folder, ending), dataset_json))
    complete = all(member.dataset_json and member.has_probabilities() for member in members)
    problems: list[str] = []
    if probabilities == "needed" or (probabilities == "if complete" and complete):
        for i, member in enumerate(members):
            members[i], found = _with_head(member)
            problems += found
    problems += problems_between({str(member.folder): member.cases for member in members})
    refuse(problems, "use these folders")
    return members


def find_cases(folder: Path, ending: str = ".nii.gz") -> dict[str, Path]:
    """Case name -> file, for the files of a folder with this ending; none at all is an error."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
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
            problems.append(f"{name} lacks {len(missing)} of {len(every)} cases: {', '.join(missing)}")
    for case in every:
        holders = [name for name in folders if case in folders[name]]
        reference = read_grid(folders[holders[0]][case])
        for name in holders[1:]:
            if difference := reference.difference(read_grid(folders[name][case])):
                problems.append(f"{case}: {holders[0]} and {name} differ in {difference}")
    return problems


def images_of_cases(member: Member, images: Path, purpose: str) -> dict[str, list[Path]]:
    """Case -> its image files CASE_0000.nii.gz and so on, channel by channel, on the grid of the label maps.

    purpose: what an error says cannot be done.
    """
    found = {case: sorted(images.glob(f"{case}_[0-9][0-9][0-9][0-9].nii.gz")) for case in member.cases}
    counts = {len(paths) for paths in found.values()}
    if len(counts) > 1 or not min(counts):
        few = [case for case, paths in found.items() if len(paths) < max(1, *counts)]
        raise UserError(f"{images} lacks images CASE_0000.nii.gz and so on of {', '.join(few)}")
    channels = {f"channel {i}": {case: paths[i] for case, paths in found.items()} for i in range(counts.pop())}
    refuse(problems_between({str(member.folder): member.cases, **channels}), purpose)
    return found


def problems_with_heads(members: Sequence[Member], target: Head) -> list[str]:
    """The members whose probabilities cannot be brought to a common head."""
    problems = []
    for member in members:
        if member.head:
            try:
                check_convertible(member.head, target)
            except UserError as error:
                problems.append(f"{member.folder}: {error}")
    return problems


def _with_head(member: Member) -> tuple[Member, list[str]]:
    """The member with the head of its probabilities, and what is wrong with them."""
    folder = member.folder
    if member.dataset_json is None:
        return member, [f"{folder} has no dataset.json, which tells what the channels of its probabilities are"]
    if missing := [case for case in member.cases if not member.npz(case).is_file()]:
        hint = "predict with --save_probabilities"
        return member, [f"{folder} lacks the probabilities of {', '.join(missing)}: {hint}"]
    plans = _settings(folder, "plans.json") or {}
    reader = member.dataset_json.get("overwrite_image_reader_writer") or plans.get("image_reader_writer", "")
    if "Reorient" in reader:
        return member, [f"{folder} was predicted through {reader}, so its .npz lie on another grid than its label maps"]
    shapes = {case: probabilities_shape(member.npz(case)) for case in member.cases}
    problems = []
    for case, shape in shapes.items():
        if shape[1:] != (expected := read_grid(member.cases[case]).shape):
            problems.append(f"{member.npz(case)} has probabilities of shape {shape[1:]}, its label map {expected}")
    if len(channels := sorted({shape[0] for shape in shapes.values()})) > 1:
        return member, [*problems, f"{folder} mixes probabilities of {channels} channels"]
    try:
        head = DatasetDescription(member.dataset_json, folder / "dataset.json").head(channels[0])
    except UserError as error:
        return member, [*problems, str(error)]
    return replace(member, head=head), problems


def _settings(folder: Path, name: str) -> dict[str, Any] | None:
    """dataset.json or plans.json of a folder; for fold_0/validation and the like, that of the trained model."""
    fold = folder.absolute().parent
    model = [fold.parent] if folder.name == "validation" and fold.name.startswith("fold_") else []
    for place in (folder, *model):
        if (place / name).is_file():
            return read_json(place / name)
    return None
