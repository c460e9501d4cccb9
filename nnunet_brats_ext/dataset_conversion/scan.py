"""Finding the files of a release in a folder, whatever it is nested in, and grouping them into cases.

Only names are read. One image header is opened where names and folders leave two releases possible.
"""

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NoReturn

from nnunet_brats_ext.dataset_conversion.releases import LABEL, RELEASES, Release, find_release
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import ending, read_grid

GRADES = {"HG": "HGG", "HGG": "HGG", "LG": "LGG", "LGG": "LGG"}
JUNK = "__MACOSX"  # beside dot files, which include `._*` and `.DS_Store`


@dataclass
class ReleaseCase:
    """The files of one case of a release, by role.

    remarks: what is unusual and does no harm. problems: what must be solved before the case can be converted.
    """

    name: str
    release: str
    files: dict[str, Path] = field(default_factory=dict)
    patient: str = ""
    known_as: list[str] = field(default_factory=list)  # the patient's names in other releases
    grade: str | None = None
    site: str | None = None
    remarks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def labelled(self) -> bool:
        return LABEL in self.files


@dataclass(frozen=True)
class ReleaseFolder:
    """A folder and the release found in it; `evidence` says how the release was recognised."""

    root: Path
    release: Release
    evidence: str
    cases: list[ReleaseCase]
    unrecognised: list[Path]


@dataclass(frozen=True)
class _File:
    path: Path  # from the root it was found under
    root: Path
    rank: int  # the overlay it comes from; 0 is the source itself

    @property
    def absolute(self) -> Path:
        return self.root / self.path


def scan(
    root: Path, release: str | None = None, overlays: Sequence[Path] = (), name_mapping: Path | None = None
) -> ReleaseFolder:
    """Every case below `root`, in the order of their names. An overlay's files replace those of the same case and role.

    A folder that holds no release, several, or one of several that it might be, is an error that says what was seen.
    With `release`, files that belong to another one by their own name or a folder in `root` are left out.
    """
    tables: list[Path] = []
    files = list(_files(root, 0, tables))
    seen = [file.path for file in files]
    chosen, evidence = (find_release(release), "as asked") if release else _decide(root, seen)
    others = _of_others(seen, chosen) if release else {}
    unrecognised = [file.absolute for file in files if file.path in others]
    files = [file for file in files if file.path not in others]
    for rank, overlay in enumerate(overlays, start=1):
        files += _files(overlay, rank, tables)
    cases, left = _group(files, chosen)
    if not cases and others:
        path, other = next(iter(others.items()))
        raise UserError(
            f"no case in {root} belongs to {chosen.name}; {path}, for example, is of {other} by its name or folder. "
            "If that is wrong, convert that folder itself"
        )
    if not cases:
        raise UserError(f"no file in {root} is named as in {chosen.name} ({_example(chosen)}); {_sample(seen)}")
    _remark_lost_labels(cases, root)
    _describe_patients(cases, chosen, _patient_rows(tables, name_mapping))
    return ReleaseFolder(root, chosen, evidence, cases, unrecognised + left)


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


def _of_others(paths: Sequence[Path], asked: Release) -> Mapping[Path, str]:
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


def _candidates(path: Path) -> dict[str, str]:
    """Release -> the case that the file belongs to there, for all releases that give out such a name."""
    return {
        release.name: match[0]
        for release in RELEASES.values()
        if (match := release.recognise(PurePosixPath(path))) and release.gives_out(match[0])
    }


def _decide(root: Path, paths: Sequence[Path]) -> tuple[Release, str]:
    """The one release that all cases belong to, with the evidence for it."""
    found: dict[tuple[str, Path], tuple[frozenset[str], Path]] = {}  # case and folder -> releases, a file of it
    for path in paths:
        candidates = _candidates(path)
        for case in candidates.values():
            found.setdefault((case, path.parent), (frozenset(candidates), path))
    if not found:
        known = "".join(f"\n  {release.name:<18} {_example(release)}" for release in RELEASES.values())
        raise UserError(f"no case of any known release in {root}; {_sample(paths)} Known are:{known}")
    verdicts: dict[frozenset[str], set[str]] = defaultdict(set)  # releases -> their cases
    for (case, _), (names, path) in found.items():
        left, evidence = _narrow(root, names, path)
        verdicts[left].add(case)
    if len(verdicts) > 1:
        seen = ", ".join(f"{len(cases)} cases of {' or '.join(sorted(names))}" for names, cases in verdicts.items())
        raise UserError(f"{root} holds {seen}: convert each on its own, or name the one you want with --release")
    ((possible, cases),) = verdicts.items()
    if len(possible) > 1:
        choices = "".join(f"\n  --release {name:<18} labels {_numbering(RELEASES[name])}" for name in sorted(possible))
        raise UserError(
            f"cases like {min(cases)} exist in several releases, and no folder name says which these are; name one:"
            f"{choices}"
        )
    return RELEASES[min(possible)], evidence


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
    releases = [RELEASES[name] for name in candidates]
    if all(release.shape for release in releases):
        shape = _shape(root / path)
        fitting = [release for release in releases if release.shape == shape]
        if len(fitting) == 1:
            return frozenset({fitting[0].name}), f"by the size of its images, {'x'.join(map(str, shape or ()))}"
    return candidates, ""


def _by_folder(candidates: frozenset[str], folders: Sequence[str]) -> tuple[frozenset[str], str]:
    """The one candidate that the nearest folder name hints at, and that folder; without a hint, all and no folder."""
    for folder in reversed(folders):
        hints = {name: RELEASES[name].hint for name in candidates}
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


def _group(found: Sequence[_File], release: Release) -> tuple[list[ReleaseCase], list[Path]]:
    """Cases by name, and the files that belong to none."""
    matches: dict[str, dict[str, list[_Match]]] = defaultdict(lambda: defaultdict(list))
    unrecognised = []
    order = {kind: number for number, kind in enumerate(release.kinds)}
    for file in found:
        match = release.recognise(PurePosixPath(file.path))
        if match is None:
            unrecognised.append(file.absolute)
            continue
        case, kind = match
        corrected = release.superseding and re.search(release.superseding, file.path.parent.as_posix(), re.IGNORECASE)
        rank = (file.rank, int(bool(corrected)), order[kind])
        matches[case][release.kinds[kind]].append(_Match(file, rank))
    for name, roles in list(matches.items()):
        if all(match.file.rank > 0 for files in roles.values() for match in files):
            # An overlay corrects cases of the source; a case that only the overlay has is not converted.
            unrecognised += [match.file.absolute for files in matches.pop(name).values() for match in files]
    return [_choose(name, release, matches[name]) for name in sorted(matches)], unrecognised


def _choose(name: str, release: Release, matches: dict[str, list[_Match]]) -> ReleaseCase:
    """The file of each role: an overlay or a correction wins; two files of one rank are a problem."""
    case = ReleaseCase(name, release.name)
    for role, files in matches.items():
        *others, chosen = sorted(files, key=lambda match: match.rank)
        path = chosen.file.path
        case.files[role] = chosen.file.absolute
        if others and others[-1].rank == chosen.rank:
            paths = ", ".join(str(match.file.path) for match in (*others, chosen) if match.rank == chosen.rank)
            case.problems.append(f"duplicate {role}: {paths}; keep one")
        elif others:
            case.remarks.append(f"{role} from {path} supersedes {others[-1].file.path}")
        elif path.name in release.misnamed:
            case.remarks.append(f"{role} was misnamed {path.name}")
    if missing := [role for role in release.roles if role not in case.files and role != LABEL]:
        case.problems.append(f"no {' and no '.join(missing)}")
    return case


def _remark_lost_labels(cases: Sequence[ReleaseCase], root: Path) -> None:
    """Remark on cases of a training folder that have no label while others have one."""
    above = str(root.resolve())
    if any(case.labelled for case in cases):
        for case in cases:
            places = (str(path.resolve()).removeprefix(above).lower() for path in case.files.values())
            if not case.labelled and any("train" in place for place in places):
                case.remarks.append("no label although it lies in a training folder")


def _describe_patients(cases: Sequence[ReleaseCase], release: Release, rows: Sequence[dict[str, str]]) -> None:
    """Patient, grade and site of each case: from its name, its folders, and the tables that come with a release."""
    by_case: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        for value in set(row.values()):
            by_case[value].append(row)
    for case in cases:
        groups = release.groups(case.name)
        folders = [part for path in case.files.values() for part in path.parts[-4:-1]]
        grades = [groups.get("grade"), *(part for part in folders if part in release.grades)]
        sites = [groups.get("site")]
        known_as = set()
        for row in by_case[case.name]:
            known_as |= {patient_id(value) for column, value in row.items() if column.endswith("subject_ID")}
            grades.append(row.get("Grade"))
            sites.append(row.get("Partition_ID"))
        case.patient = release.patient(case.name)
        case.known_as = sorted(known_as - {case.patient})
        case.grade = next((GRADES[grade] for grade in grades if grade in GRADES), None)
        case.site = next((site for site in sites if site), None)


def patient_id(case: str) -> str:
    """The patient of a case name of any release; the name itself where it belongs to none."""
    return next((release.patient(case) for release in RELEASES.values() if release.is_case(case)), case)


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


def _example(release: Release) -> str:
    return str(release.path(release.case_name(1), release.roles[0]))


def _numbering(release: Release) -> str:
    names = release.scheme.names
    return ", ".join(f"{old} {names[new]}" for old, new in release.scheme.released.items() if new)


def _sample(paths: Sequence[Path]) -> str:
    if not paths:
        return "it has no .nii.gz, .nii or .mha file at all."
    return f"it has {len(paths)} image files, such as {', '.join(map(str, paths[:3]))}."
