"""Patients as they come, in any layout that `convert` reads: found, examined, made ready for a network, and back.

Label maps and probabilities go back into the grid, the axes and the header of the patient's own first image.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from nnunet_brats_ext.dataset_conversion.cases import Inspection, inspect_case, write_case
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS, Layout, find_layout
from nnunet_brats_ext.dataset_conversion.proposal import find_layout_of
from nnunet_brats_ext.dataset_conversion.restoration import write_with_header_of
from nnunet_brats_ext.dataset_conversion.scan import Source, SourceCase, decide, image_files, scan
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError, raise_problems
from nnunet_brats_ext.storage.images import (
    NIFTI_ENDINGS,
    TOLERANCE_MM,
    Grid,
    ending,
    read_grid,
    turn,
    write_image,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMED_FILES = Layout("named files", "{patient}", {"T1": ("{patient}",)}, generic=True)


@dataclass(frozen=True)
class FoundPatients:
    """Cases to segment, one for each session of a patient. evidence: how each folder was read."""

    cases: Sequence[SourceCase]
    evidence: Sequence[str]


def find_patients(
    roots: Sequence[Path],
    release: str | None = None,
    layout: Path | None = None,
    any_name: bool = False,
    or_any: bool = False,
) -> FoundPatients:
    """The cases of some folders: of one patient or of many, by a known layout or by the words in their names.

    or_any: where the release asked for is not found, take any other.
    """
    asked = Layout.read(layout) if layout else find_layout(release) if release else None
    if any_name and asked is None:
        raise UserError("--any-name needs the layout of the files: name it with --release, or --layout FILE")
    sources = [_scan(root, asked, any_name, or_any) for root in roots]
    cases = [case for source in sources for case in source.cases]
    for case in cases:
        _read_session(case)
        case.files.pop(LABEL, None)
        case.twins.pop(LABEL, None)
        case.patient = case.patient or case.name
    twice = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
    raise_problems(
        "names that several cases have; segment them into different folders",
        [f"{name}: {', '.join(str(_folder(case)) for case in cases if case.name == name)}" for name in twice],
    )
    evidence = [f"{source.root}: {len(source.cases)} {_how_read(source)}" for source in sources]
    return FoundPatients(cases, evidence)


def _how_read(source: Source) -> str:
    known = source.layout.name in LAYOUTS and not source.layout.generic
    count = "case" if len(source.cases) == 1 else "cases"
    return f"{count}, named as in {source.layout.name}" if known else f"{count}, by the words in the names of the files"


TIME_POINT = re.compile(  # numbers alone are as often patients
    r"(19|20)\d\d[-_.]?\d\d[-_.]?\d\d|(pre|post|base|follow|fu|tp|time|ses|visit|week|month|day|scan)\w*?[-_ ]?\d*",
    re.IGNORECASE,
)


def _read_session(case: SourceCase) -> None:
    """Where a folder of images is named like a date or a time point, the patient is the folder above."""
    if case.layout.generic and case.patient == case.name and TIME_POINT.fullmatch(case.name):
        case.patient = _folder(case).parent.name
        case.name = f"{case.patient}_{case.name}"


def _folder(case: SourceCase) -> Path:
    return next((path.parent for path in case.files.values()), Path())


def _scan(root: Path, asked: Layout | None, any_name: bool, or_any: bool) -> Source:
    """The cases of a folder, read from one level above, so that its own name can be the patient's."""
    if not root.is_dir():
        what = "is a file; name its folder, or the files with --t1, --t1ce, --t2 and --flair"
        raise UserError(f"{root} {what if root.exists() else 'does not exist'}")
    real = root.resolve()
    with _one_level_above(real) as above:
        own = str(above / real.name)
        try:
            source = _asked_or_recognised(above, asked, any_name, or_any)
        except UserError as error:
            raise UserError(str(error).replace(own, str(root)).replace(str(above), str(root))) from None
        for case in source.cases:
            case.files = {role: real / path.relative_to(own) for role, path in case.files.items()}
            case.twins = {role: real / path.relative_to(own) for role, path in case.twins.items()}
            case.problems = [text.replace(own, str(root)) for text in case.problems]
    return replace(source, root=root)


def _asked_or_recognised(root: Path, asked: Layout | None, any_name: bool, or_any: bool) -> Source:
    if asked is None:
        return _recognised(root)
    try:
        return scan(root, asked, any_name=any_name, allow_missing=True)
    except UserError:
        if not or_any:
            raise
        return _recognised(root)


@contextmanager
def _one_level_above(folder: Path) -> Iterator[Path]:
    with TemporaryDirectory(prefix="nnunet_brats_") as place:
        above = Path(place).resolve()
        (above / folder.name).symlink_to(folder, target_is_directory=True)
        yield above


def _recognised(root: Path) -> Source:
    """By a known layout; where several fit, their names of files are the same, and numberings do not matter here."""
    try:
        return scan(root, decide(root, image_files(root), allow_missing=True)[0], allow_missing=True)
    except UserError as error:
        known = [layout for layout in LAYOUTS.values() if not layout.generic]
        same = [layout for layout in known if f"--release {layout.name} " in str(error)]
        if same:
            return scan(root, same[0], allow_missing=True)
    return find_layout_of(root)


def named_patient(files: Mapping[str, Path], name: str | None) -> SourceCase:
    """A patient whose files are named one by one. files: sequence -> file."""
    first = next(iter(files.values()))
    name = name or first.absolute().parent.name
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"--name {name!r}: name the patient by letters and digits")
    if missing := [str(path) for path in files.values() if not path.is_file()]:
        raise UserError(f"{missing[0]} does not exist")
    layout = replace(NAMED_FILES, files=dict.fromkeys(files, ("{patient}",)))
    return SourceCase(name, layout, files=dict(files), patient=name)


# ---- one patient ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadyPatient:
    """A patient's images as a model takes them.

    files: number of a channel -> image, without those that are missing. images: the folder in which all of them lie,
    missing ones as zeros. missing: sequences. donor: the patient's own first image, and its grid.
    """

    case: SourceCase
    files: Mapping[int, Path]
    images: Path
    missing: Sequence[str]
    donor: Path
    grid: Grid

    def write_back(self, array: np.ndarray, axes: str, target: Path) -> None:
        """Write an array (z, y, x), whose axes point to `axes`, in the patient's own grid, axes and header."""
        own = turn(array, axes, self.grid.axes)
        if own.shape != self.grid.shape:
            raise AssertionError(f"{own.shape} voxels were predicted for an image of {self.grid.shape}")
        if ending(self.donor) in NIFTI_ENDINGS and target.name.endswith(NIFTI_ENDINGS):
            write_with_header_of(self.donor, own, target)
        else:
            write_image(target, own, self.grid)


def make_ready(case: SourceCase, description: DatasetDescription, folder: Path, missing: bool = False) -> ReadyPatient:
    """Write a patient's images as a model takes them: LPS, one grid, CASE_0000.nii.gz in the order of its channels.

    Those of which no byte changes are linked. missing: take patients who lack sequences. A UserError lists what is
    wrong with the files.
    """
    wanted = description.acquired
    there = [name for name in case.layout.sequences if name in case.files or case.layout.stack]
    absent = [name for name in wanted if name not in there]
    if absent and (not missing or len(absent) == len(wanted)):
        advice = "" if len(absent) == len(wanted) else "; --missing segments without"
        raise UserError(f"{case.name} has no {' and no '.join(absent)}{advice}")
    if case.problems:
        raise UserError(f"{case.name}: {'; '.join(case.problems)}")
    found = inspect_case(case, description.normalisation, TOLERANCE_MM, right_angles=True)
    if case.problems:
        raise UserError(f"{case.name}: {'; '.join(case.problems)}")
    donor = next(case.files[role] for role in case.layout.roles if role in case.files)
    grid = read_grid(donor, right_angles=True)
    grid = grid.of_one_volume if len(grid.size) == 4 else grid
    images = _write(found, wanted, folder, description.normalisation)
    files = {number: images[name] for number, name in enumerate(wanted) if name not in absent}
    return ReadyPatient(case, files, folder / "images", absent, donor, grid)


def _write(found: Inspection, wanted: Sequence[str], folder: Path, normalise: str | None) -> dict[str, Path]:
    """The images of a case under the numbers that a model has for them; sequence -> file."""
    layout = found.case.layout
    complete = {name: layout.files.get(name, ()) for name in wanted} if not layout.stack else dict(layout.files)
    found.case.layout = replace(layout, files=complete)  # sequences that the model lacks are left out
    (folder / "imagesTs").mkdir(parents=True)
    (folder / "images").mkdir()
    write_case(found, folder, "symbolic", normalise)
    placed = {}
    for number, name in enumerate(wanted):
        source = folder / "imagesTs" / f"{found.case.name}_{found.case.layout.sequences.index(name):04d}.nii.gz"
        placed[name] = source.replace(folder / "images" / f"{found.case.name}_{number:04d}.nii.gz")
    return placed
