"""Finding the files of a data set in a folder, whatever it is nested in, and grouping them into cases.

Only names are read. One image header is opened where names and folders leave two releases possible.
"""

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NoReturn

from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS, STACK, Layout, Match, find_layout, find_role
from nnunet_brats_ext.storage.errors import UserError, shorten
from nnunet_brats_ext.storage.images import NIFTI_ENDINGS, ending, read_grid

GRADES = {"HG": "HGG", "HGG": "HGG", "LG": "LGG", "LGG": "LGG"}
JUNK = "__MACOSX"  # beside dot files, which include `._*` and `.DS_Store`


@dataclass
class SourceCase:
    """The files of one case, by role.

    source: the number of its folder among those that are converted together. twins: a file with the same name and
    another compression beside that of the role. held_out: labelled, and kept to test on. remarks: what is unusual and
    does no harm. problems: what must be solved before the case can be converted.
    """

    name: str
    layout: Layout
    source: int = 0
    files: dict[str, Path] = field(default_factory=dict)
    twins: dict[str, Path] = field(default_factory=dict)
    patient: str = ""
    known_as: list[str] = field(default_factory=list)  # the patient's names in other releases
    grade: str | None = None
    site: str | None = None
    held_out: bool = False
    remarks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def noted_files(self) -> dict[str, str]:
        """Role -> file, as it is noted beside what was made of the case."""
        return {role: str(path.resolve()) for role, path in self.files.items()}

    def other_file(self, noted: Mapping[str, str] | None) -> tuple[str, str, str] | None:
        """The first role whose file is not the noted one, with the file noted and that of now; nothing noted is none.

        What is there under the name of the case may then be of another patient.
        """
        now = self.noted_files
        before = now if noted is None else {role: str(Path(path).resolve()) for role, path in noted.items()}
        role = next((role for role in {**now, **before} if now.get(role) != before.get(role)), None)
        return None if role is None else (role, before.get(role, "missing"), now.get(role, "missing"))

    @property
    def missing(self) -> list[str]:
        """The sequences that it lacks."""
        return [role for role in self.layout.sequences if role not in self.files] if STACK not in self.files else []

    @property
    def labelled(self) -> bool:
        return LABEL in self.files

    @property
    def trains(self) -> bool:
        """Whether it lies in imagesTr, and not in imagesTs."""
        return self.labelled and not self.held_out


@dataclass(frozen=True)
class Source:
    """A folder and the layout found in it; `evidence` says how it was recognised."""

    root: Path
    layout: Layout
    evidence: str
    cases: list[SourceCase]
    unrecognised: list[Path]


@dataclass(frozen=True)
class _File:
    path: Path  # from the root it was found under
    root: Path
    rank: int  # the overlay it comes from; 0 is the source itself
    with_root: bool = False  # whether the path begins with the root's own name

    @property
    def absolute(self) -> Path:
        return self.root.joinpath(*self.path.parts[self.with_root :])


def scan(
    root: Path,
    layout: str | Layout | None = None,
    overlays: Sequence[Path] = (),
    name_mapping: Path | None = None,
    any_name: bool = False,
    allow_missing: bool = False,
) -> Source:
    """Every case below `root`, in the order of their names. An overlay's files replace those of the same case and role.

    A folder that holds no known layout, several, or one of several that it might be, is an error that says what was
    seen. layout: its name, or one of the user's own; with a name, files that belong to another release by their own
    name or a folder in `root` are left out. any_name: cases may have other names than the layout gives them.
    allow_missing: a case that lacks sequences is no bad case, as long as it has one.
    """
    tables: list[Path] = []
    files = image_files(root, tables)
    seen = [file.path for file in files]
    if any_name and layout is None:
        raise UserError("--any-name needs the layout of the files: name it with --release, or --layout FILE")
    asked = find_layout(layout) if isinstance(layout, str) else layout
    chosen, evidence = (asked, "as asked") if asked else decide(root, files, allow_missing)
    if any_name:
        chosen = chosen.with_any_name()
    others = _of_others(seen, chosen) if isinstance(layout, str) and not any_name and not chosen.generic else {}
    unrecognised = [file.absolute for file in files if file.path in others]
    files = [file for file in files if file.path not in others]
    for rank, overlay in enumerate(overlays, start=1):
        files += _files(overlay, rank, tables)
    cases, left = _group(files, chosen, allow_missing)
    if not cases and others:
        path, other = next(iter(others.items()))
        raise UserError(
            f"no case in {root} belongs to {chosen.name}; {path}, for example, is of {other} by its name or folder. "
            "If that is wrong, convert that folder itself"
        )
    if not cases and not chosen.files:
        raise UserError(f"no file in {root} says by its name which sequence it is; {_sample(seen)}")
    if not cases:
        raise UserError(f"no file in {root} is named as in {chosen.name} ({_example(chosen)}); {_sample(seen)}")
    _remark_lost_labels(cases, root)
    _describe_patients(cases, chosen, _patient_rows(tables, name_mapping))
    return Source(root, chosen, evidence, cases, unrecognised + left)


def image_files(root: Path, tables: list[Path] | None = None) -> list["_File"]:
    """The image files below a folder; none at all is an error. tables: gets the tables among them.

    Where their names say nothing but what they hold, as t1.nii.gz does, the folder is a patient's own: paths begin with
    its name.
    """
    files = list(_files(root, 0, [] if tables is None else tables))
    if not files:
        raise UserError(f"{root} has no .nii.gz, .nii or .mha file at all{_dicom_hint(root)}")
    if not any(len(file.path.parts) == 1 and _is_bare(file.path) for file in files):
        return files
    return [replace(file, path=root.absolute().name / file.path, with_root=True) for file in files]


def _is_bare(path: Path) -> bool:
    """Whether the name of a file is that of a sequence and nothing else."""
    stem = path.name[: -len(ending(path))]
    found = find_role(stem)
    return found is not None and found[0] != LABEL and found[1][0] == stem


def _dicom_hint(root: Path) -> str:
    """What to do with the DICOM files that lie in a folder, whatever their names; only some files are looked at."""
    files = (Path(folder, name) for folder, _, names in os.walk(root) for name in names[:20])
    for path in islice(files, 200):
        with suppress(OSError), path.open("rb") as stream:
            stream.seek(128)
            if stream.read(4) == b"DICM":
                return (
                    f", but DICOM files such as {path.relative_to(root)}; `dcm2niix -z y -f %i/%d -o NIFTI {root}` "
                    "makes NIfTI of them. Then name the files of each patient t1, t1ce, t2 and flair"
                )
    return ""


def _files(root: Path, rank: int, tables: list[Path]) -> Iterator[_File]:
    """The image files below a folder; tables go into `tables`. Links are followed, each folder once."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; unpack it first" if root.is_file() else f"{root} does not exist")
    visited: set[str] = set()
    for folder, folders, names in os.walk(root, onerror=_fail, followlinks=True):
        if (real := os.path.realpath(folder)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if name != JUNK and not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() == ".csv":
                tables.append(path)
            elif ending(path):
                yield _File(path.relative_to(root), root, rank)


def _fail(error: OSError) -> NoReturn:
    """A folder that cannot be read may hold cases, so it is an error and not skipped."""
    raise error


def _of_others(paths: Sequence[Path], asked: Layout) -> Mapping[Path, str]:
    """File -> the releases that it belongs to by its own name or a folder's, where the one asked for is none of them.

    The name of the source folder itself does not count: the user has said what it holds.
    """
    others = {}
    for path in paths:
        candidates = frozenset(_candidates(path))
        named, _ = _by_folder(candidates, path.parent.parts)
        if named and asked.name not in named:
            others[path] = " or ".join(sorted(named))
    return others


def _candidates(path: Path) -> dict[str, Match]:
    """Release -> what the file is there, for all releases and public data sets that give out such a name."""
    posix = PurePosixPath(path)
    found = {layout.name: layout.recognise(posix) for layout in LAYOUTS.values() if not layout.generic}
    return {name: match for name, match in found.items() if match}


def decide(root: Path, files: Sequence["_File"], allow_missing: bool = False) -> tuple[Layout, str]:
    """The one layout that all cases belong to, with the evidence for it."""
    found: dict[tuple[str, Path], tuple[frozenset[str], Path]] = {}  # case and folder -> releases, a file of it
    for file in files:
        candidates = _candidates(file.path)
        for match in candidates.values():
            found.setdefault((match.case, file.path.parent), (frozenset(candidates), file.path))
    if not found:
        return _decide_by_form(root, files, allow_missing)
    verdicts: dict[frozenset[str], set[str]] = defaultdict(set)  # releases -> their cases
    for (case, _), (names, path) in found.items():
        left, evidence = _narrow(root, names, path)
        verdicts[left].add(case)
    if len(verdicts) > 1:
        seen = ", ".join(f"{len(cases)} cases of {' or '.join(sorted(names))}" for names, cases in verdicts.items())
        raise UserError(f"{root} holds {seen}: convert each on its own, or name the one you want with --release")
    ((possible, cases),) = verdicts.items()
    if len(possible) > 1:
        choices = "".join(
            f"\n  --release {name:<18} labels {LAYOUTS[name].numbering.numbers}" for name in sorted(possible)
        )
        raise UserError(
            f"cases like {min(cases)} exist in several releases, and no folder name says which these are; name one:"
            f"{choices}"
        )
    return LAYOUTS[min(possible)], evidence


def _decide_by_form(root: Path, files: Sequence["_File"], allow_missing: bool) -> tuple[Layout, str]:
    """The layout whose form of names gives most cases with every sequence, where no name belongs to a release."""
    grouped = {layout.name: _group(files, layout, allow_missing)[0] for layout in LAYOUTS.values() if layout.generic}
    complete = {name: [case for case in cases if not case.problems] for name, cases in grouped.items()}
    best = max(complete, key=lambda name: len(complete[name]))
    if not complete[best]:
        known = ", ".join(layout.name for layout in LAYOUTS.values())
        raise UserError(
            f"no case of any known release in {root}; {_sample([file.path for file in files])}"
            f"{_nearest([case for cases in grouped.values() for case in cases])} `nnunet_brats layout {root}` proposes "
            f"a layout for an own folder. Known are {known}"
        )
    if LAYOUTS[best].case == "{patient}" and len(above := _folders_above(complete[best], root)) > 1:
        raise UserError(
            f"{root} has cases in {len(above)} folders, such as {shorten(above, 2)}, which may be patients with "
            f"several time points: `nnunet_brats layout {root}` proposes a layout that tells them apart"
        )
    return LAYOUTS[best], f"by the form of its names, such as {_shown_files(complete[best][0], root)}"


def _nearest(cases: Sequence[SourceCase]) -> str:
    """What the case lacks that has most sequences."""
    best = max(cases, key=lambda case: len(case.files), default=None)
    return f" Read as the layout {best.layout.name!r}, {best.name} has {'; '.join(best.problems)}." if best else ""


PARTS = re.compile(r"[HL]GG?|(train|val|test|images?|labels?)\w*", re.IGNORECASE)  # folders that are no patients


def _folders_above(cases: Sequence[SourceCase], root: Path) -> list[str]:
    """The folders that hold the folders of the cases, without those that sort cases into grades or parts."""
    folders = {next(iter(case.files.values())).parent for case in cases}
    if len(folders) == 1:
        return ["."]
    found = set()
    for folder in folders:
        parts = [part for part in folder.relative_to(root).parts[:-1] if not PARTS.fullmatch(part)]
        found.add("/".join(parts) or ".")
    return sorted(found)


def _shown_files(case: SourceCase, root: Path) -> str:
    role, path = next(iter(case.files.items()))
    return f"{path.relative_to(root)} for {role}"


def _narrow(root: Path, candidates: frozenset[str], path: Path) -> tuple[frozenset[str], str]:
    """The candidates that are left by folder names or, without such names, by the grid; and the evidence in words.

    The nearest folder wins; folders above the source do not count. A grid decides only where the grids of all
    candidates are known and one fits.
    """
    if len(candidates) == 1:
        return candidates, "by the names of its files"
    named, folder = _by_folder(candidates, (root.resolve().name, *path.parent.parts))
    if folder:
        return named, f"by the folder {folder!r}"
    layouts = [LAYOUTS[name] for name in candidates]
    if all(layout.shape for layout in layouts):
        shape = _shape(root / path)
        fitting = [layout for layout in layouts if layout.shape == shape]
        if len(fitting) == 1:
            return frozenset({fitting[0].name}), f"by the size of its images, {'x'.join(map(str, shape or ()))}"
    return candidates, ""


def _by_folder(candidates: frozenset[str], folders: Sequence[str]) -> tuple[frozenset[str], str]:
    """The one candidate that the nearest folder name hints at, and that folder; without a hint, all and no folder."""
    for folder in reversed(folders):
        hints = {name: LAYOUTS[name].hint for name in candidates}
        hinted = [name for name, hint in hints.items() if hint and re.search(hint, folder, re.IGNORECASE)]
        if len(hinted) == 1:
            return frozenset(hinted), folder
    return candidates, ""


def _shape(path: Path) -> tuple[int, ...] | None:
    try:
        return read_grid(path).size
    except UserError:  # the case itself is reported later, with all others
        return None


@dataclass(frozen=True)
class _Match:
    """A file that holds a role of a case. rank: the higher one wins."""

    file: _File
    rank: tuple[int, ...]


def _group(found: Sequence[_File], layout: Layout, allow_missing: bool = False) -> tuple[list[SourceCase], list[Path]]:
    """Cases by name, and the files that belong to none."""
    matches: dict[str, dict[str, list[_Match]]] = defaultdict(lambda: defaultdict(list))
    unrecognised = []
    for file in found:
        match = layout.recognise(PurePosixPath(file.path))
        if match is None:
            unrecognised.append(file.absolute)
            continue
        corrected = layout.superseding and re.search(layout.superseding, file.path.parent.as_posix(), re.IGNORECASE)
        rank = (file.rank, int(bool(corrected)), -match.rank)
        matches[match.case][match.role].append(_Match(file, rank))
    for name, roles in list(matches.items()):
        if all(match.file.rank > 0 for files in roles.values() for match in files):
            # An overlay corrects cases of the source; a case that only the overlay has is not converted.
            unrecognised += [match.file.absolute for files in matches.pop(name).values() for match in files]
    beside: dict[Path, list[Path]] = defaultdict(list)
    for path in unrecognised:
        beside[path.parent].append(path)
    return [_choose(name, layout, matches[name], beside, allow_missing) for name in sorted(matches)], unrecognised


def _choose(
    name: str,
    layout: Layout,
    matches: dict[str, list[_Match]],
    beside: Mapping[Path, Sequence[Path]],
    allow_missing: bool,
) -> SourceCase:
    """The file of each role: an overlay or a correction wins; two files of one rank are a problem.

    beside: folder -> files in it that were not recognised, among which may be one that is missing.
    """
    case = SourceCase(name, layout)
    for role, files in matches.items():
        files, twin = _without_twin(files)
        *others, chosen = sorted(files, key=lambda match: match.rank)
        path = chosen.file.path
        case.files[role] = chosen.file.absolute
        if twin:
            case.twins[role] = twin
        if others and others[-1].rank == chosen.rank:
            paths = ", ".join(str(match.file.path) for match in (*others, chosen) if match.rank == chosen.rank)
            case.problems.append(f"duplicate {role}: {paths}; keep one")
        elif others:
            case.remarks.append(f"{role} from {path} supersedes {others[-1].file.path}")
        elif path.name in layout.misnamed:
            case.remarks.append(f"{role} was misnamed {path.name}")
    if missing := [role for role in layout.roles if role not in case.files and role != LABEL]:
        near = [_near_miss(role, case, layout, beside) for role in missing]
        hint = f"; did you mean {' and '.join(filter(None, near))}?" if any(near) else ""
        if allow_missing and not hint and len(missing) < len(layout.roles) - 1:
            case.remarks.append(f"without {' and '.join(missing)}")
        else:
            case.problems.append(f"no {' and no '.join(missing)}{hint}")
    return case


def _without_twin(files: list[_Match]) -> tuple[list[_Match], Path | None]:
    """The files of a role, where the same name is there as .nii.gz and as .nii only the first; and the second."""
    if len(files) == 2:
        packed, plain = sorted(files, key=lambda match: not match.file.path.name.lower().endswith(NIFTI_ENDINGS[0]))
        if str(packed.file.absolute)[: -len(".gz")].casefold() == str(plain.file.absolute).casefold():
            return [packed], plain.file.absolute
    return files, None


CLOSE = 0.75
"""How much of the letters of two names has to agree for one to be suggested for the other, from 0 to 1."""


def _near_miss(role: str, case: SourceCase, layout: Layout, beside: Mapping[Path, Sequence[Path]]) -> str | None:
    """The file that may be the missing one of a role: its name is close to what the layout expects."""
    expected = layout.path(case.name, role).name.casefold() if layout.is_case(case.name) else role.casefold()
    close: dict[Path, float] = {}
    for folder in {path.parent for path in case.files.values()}:
        for path in beside.get(folder, ()):
            said = find_role(path.name[: -len(ending(path))])
            ratio = SequenceMatcher(None, expected, path.name.casefold()).ratio()
            if said[0] == role if said else ratio >= CLOSE:
                close[path] = ratio
    best = max(close, key=lambda path: close[path], default=None)
    return f"{best.name} for {role}" if best else None


def _remark_lost_labels(cases: Sequence[SourceCase], root: Path) -> None:
    """Remark on cases of a training folder that have no label while others have one."""
    above = str(root.resolve())
    if any(case.labelled for case in cases):
        for case in cases:
            places = (str(path.resolve()).removeprefix(above).lower() for path in case.files.values())
            if not case.labelled and any("train" in place for place in places):
                case.remarks.append("no label although it lies in a training folder")


def _describe_patients(cases: Sequence[SourceCase], layout: Layout, rows: Sequence[dict[str, str]]) -> None:
    """Patient, grade and site of each case: from its name, its folders, and the tables that come with a release."""
    by_case: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        for value in set(row.values()):
            by_case[value].append(row)
    for case in cases:
        groups = layout.groups_of(case.name)
        folders = [part for path in case.files.values() for part in path.parts[-4:-1]]
        grades = [groups.get("grade"), *(part for part in folders if part.upper() in layout.grades)]
        sites = [groups.get("site")]
        known_as = set()
        for row in by_case[case.name]:
            known_as |= {patient_id(value) for column, value in row.items() if column.endswith("subject_ID")}
            grades.append(row.get("Grade"))
            sites.append(row.get("Partition_ID"))
        case.patient = layout.patient_of(case.name)
        case.known_as = sorted(known_as - {case.patient})
        case.grade = next((GRADES[grade.upper()] for grade in grades if grade and grade.upper() in GRADES), None)
        case.site = next((site for site in sites if site), None)


def patient_id(case: str) -> str:
    """The patient of a case name of any release; the name itself where it belongs to none."""
    known = (layout for layout in LAYOUTS.values() if not layout.generic and layout.is_case(case))
    return next((layout.patient_of(case) for layout in known), case)


def _patient_rows(tables: Sequence[Path], name_mapping: Path | None) -> list[dict[str, str]]:
    """The rows of all tables of patients, those of the one that the user has named last."""
    rows = []
    for table in tables:
        with suppress(UserError):  # the user did not name it, so it need not be a table of patients
            rows += _rows(table)
    if name_mapping:
        if not name_mapping.is_file():
            raise UserError(f"--name-mapping {name_mapping}: no such file")
        if not (mapped := _rows(name_mapping)):
            raise UserError(f"{name_mapping} has no column such as BraTS_2020_subject_ID, or no row")
        rows += mapped
    return rows


def _rows(table: Path) -> list[dict[str, str]]:
    """The rows of a `name_mapping*.csv` or `partitioning_*.csv`, without their empty cells; of other tables none."""
    with table.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
        reader = csv.DictReader(line.replace("\0", "") for line in stream)
        try:
            names, rows = [name or "" for name in reader.fieldnames or ()], list(reader)
        except csv.Error as error:
            raise UserError(f"{table} is no CSV table: {error}; save it as .csv again") from error
    if not any(re.fullmatch(r"Subject_ID|BraTS_20\d\d_subject_ID", name) for name in names):
        return []
    cells = ({key: value.strip() for key, value in row.items() if key and value} for row in rows)
    return [{key: value for key, value in row.items() if value not in ("", "NA")} for row in cells]


def _example(layout: Layout) -> str:
    return next(pattern for patterns in layout.files.values() for pattern in patterns) + layout.ending


def _sample(paths: Sequence[Path]) -> str:
    if not paths:
        return "it has none of its own."
    return f"it has {len(paths)} image files, such as {', '.join(map(str, paths[:3]))}."
