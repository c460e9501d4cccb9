"""`nnunet_brats convert`: a BraTS release folder becomes an nnU-Net data set, all of it or nothing.

Every case is inspected before anything is written. The data set grows in a hidden folder beside its place and is moved
there when it is whole, so that an interrupted run leaves nothing behind that nnU-Net could take for a data set.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from nnunet_brats_ext import __version__
from nnunet_brats_ext.dataset_conversion.cases import Inspection, inspect, lay, numbering
from nnunet_brats_ext.dataset_conversion.dataset_folder import (
    check_replaceable,
    dataset_json,
    is_finished,
    publish_folder,
)
from nnunet_brats_ext.dataset_conversion.releases import LABEL
from nnunet_brats_ext.dataset_conversion.scan import Case, Source, scan
from nnunet_brats_ext.dataset_conversion.splits import folds_in, group_patients, publish_splits, split_cases
from nnunet_brats_ext.dataset_conversion.summary import describe_bad, summarise
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import write_json
from nnunet_brats_ext.storage.nnunet import (
    MANIFEST,
    SPLITS,
    check_id_is_free,
    dataset_name,
    find_dataset,
    require_folder,
)
from nnunet_brats_ext.storage.output import working_folder
from nnunet_brats_ext.storage.parallel import for_each

PERCENTILE_MINMAX = "percentile-minmax"
FORMAT = 1  # of the manifest; a data set of another format counts as different


@dataclass(frozen=True)
class Options:
    """What can be asked of a conversion; for_each is an option of the command."""

    dataset_id: int
    name: str | None = None
    output: Path | None = None
    release: str | None = None
    overlays: Sequence[Path] = ()
    name_mapping: Path | None = None
    normalise: str | None = None
    tolerance_mm: float = 0.1
    link: str = "auto"
    folds: int = 5
    seed: int = 12345
    same_patients_as: int | None = None
    skip_bad: bool = False
    overwrite: bool = False
    processes: int = 1


def convert(source_folder: Path, options: Options, console: Console | None = None) -> Path:
    """Convert a release folder; gives the folder of the data set. Says on the console what it found and what is next.

    Bad cases are an error that lists all of them, or are left out with `skip_bad`. The same conversion again is no
    work.
    """
    console = console or Console()
    raw = options.output or require_folder("nnUNet_raw", ", or name a folder with -o")
    source = scan(source_folder, options.release, options.overlays, options.name_mapping)
    name = dataset_name(options.dataset_id, options.name or source.release.name.replace("-", ""))
    check_id_is_free(options.dataset_id, name, raw)
    model = None if options.same_patients_as is None else find_dataset(options.same_patients_as, raw)
    target, fingerprint = raw / name, _fingerprint(source, model, options)
    console.print(f"{source.root}: {source.release.name}, {source.evidence}; {len(source.cases)} cases", markup=False)
    if not options.overwrite and is_finished(target, fingerprint):
        console.print(f"{target} is this very conversion, finished; nothing to do", markup=False)
    else:
        files = [path for case in source.cases for path in case.files.values()]
        tables = [options.name_mapping] if options.name_mapping else []
        check_replaceable(target, options.overwrite, [source.root, *options.overlays, *tables, *files])
        _convert(source, target, model, fingerprint, options)
    summarise(target, publish_splits(target, options.folds, options.overwrite), source.release, console)
    return target


def _convert(source: Source, target: Path, model: Path | None, fingerprint: str, options: Options) -> None:
    normalise = options.normalise == PERCENTILE_MINMAX
    look = partial(inspect, normalise=normalise, tolerance_mm=options.tolerance_mm)
    inspected = for_each(look, source.cases, "Inspecting", options.processes, lambda case: case.name)
    good = [found for found in inspected if not found.case.problems]
    bad = {found.case.name: found.case.problems for found in inspected if found.case.problems}
    if bad and (not options.skip_bad or not good):
        raise UserError(describe_bad(bad) + "\nNothing was written." + (" --skip-bad leaves them out." if good else ""))
    cases = [found.case for found in good]
    patients = group_patients(_identities(good))
    splits = split_cases(cases, patients, options.folds, options.seed, model)
    target.parent.mkdir(parents=True, exist_ok=True)
    _check_space(target.parent, good, copies=options.link == "copy")

    with working_folder(target) as scratch:
        growing = scratch / target.name
        for folder in ("imagesTr", "labelsTr", *(["imagesTs"] if any(not case.labelled for case in cases) else [])):
            (growing / folder).mkdir(parents=True)
        work = partial(lay, folder=growing, link=options.link, normalise=normalise)
        for_each(work, good, "Writing", options.processes, lambda found: found.case.name)
        training = sum(case.labelled for case in cases)
        write_json(growing / "dataset.json", dataset_json(source.release, target.name, training, normalise))
        write_json(growing / MANIFEST, _manifest(source, good, bad, patients, fingerprint, options))
        if splits:
            write_json(growing / SPLITS, splits)
        publish_folder(growing, target, options.overwrite, fingerprint)


def _fingerprint(source: Source, model: Path | None, options: Options) -> str:
    """Changes with every file of the source (by size and time, for reading them all takes long) and every option."""
    files = []
    for case in source.cases:
        for role, path in sorted(case.files.items()):
            path = path.resolve()
            status = path.stat() if path.exists() else None  # a broken link is reported with all other bad files
            files.append([case.name, role, str(path), status and status.st_size, status and status.st_mtime_ns])
    asked = [options.normalise, options.tolerance_mm, options.folds, options.seed, options.same_patients_as]
    number, folds = folds_in(model) if model else (0, {})
    followed = [number, sorted((name, sorted(found)) for name, found in folds.items())]
    tables = [[case.patient, case.known_as, case.grade, case.site] for case in source.cases]
    content = json.dumps([FORMAT, source.release.name, asked, options.link, followed, options.skip_bad, files, tables])
    return hashlib.sha256(content.encode()).hexdigest()


def _identities(inspected: Sequence[Inspection]) -> Mapping[str, Sequence[str]]:
    """Case -> the names of its patient. Cases that share an image are one patient, and perhaps one case too many."""
    first: dict[str, Case] = {}
    identities = {}
    for found in inspected:
        case = found.case
        holders = [first.setdefault(digest, case) for digest in found.identifying]
        twins = {holder.name: holder.patient for holder in holders if holder is not case}
        case.remarks += [f"duplicate image in {twin}" for twin in twins]
        identities[case.name] = [case.patient, *case.known_as, *twins.values()]
    return identities


def _check_space(folder: Path, inspected: Sequence[Inspection], copies: bool) -> None:
    needed, free = sum(found.bytes_to_write for found in inspected), shutil.disk_usage(folder).free
    if copies:
        needed += sum(
            path.stat().st_size for found in inspected for role, path in found.case.files.items() if role != LABEL
        )
    if needed > free:
        raise UserError(
            f"{folder} has {free / 1e9:.2f} GB free, and the files to be written may take {needed / 1e9:.2f} GB; "
            "make room, or choose another disk with -o. Nothing was written."
        )


def _manifest(
    source: Source,
    inspected: Sequence[Inspection],
    bad: dict[str, list[str]],
    patients: dict[str, str],
    fingerprint: str,
    options: Options,
) -> dict[str, Any]:
    root = source.root.resolve()
    cases = {}
    for found in inspected:
        case, grid = found.case, found.grid
        files = {
            role: {"path": _relative(path, root), "sha256": found.sha256[role]} for role, path in case.files.items()
        }
        names = {case.patient, *case.known_as, patients[case.name]}
        cases[case.name] = {
            "labelled": case.labelled,
            "patient": patients[case.name],
            "known_as": sorted(names - {patients[case.name]}),
            "grade": case.grade,
            "site": case.site,
            "files": files,
            "labels": found.labels,
            "grid": grid.to_json() if grid else None,
            "remarks": case.remarks,
        }
    return {
        "format": FORMAT,
        "made_by": f"nnunet-brats-ext {__version__}",
        "fingerprint": fingerprint,
        "release": source.release.name,
        "recognised": source.evidence,
        "source": str(root),
        "overlays": [str(overlay.resolve()) for overlay in options.overlays],
        "label_mapping": {str(old): new for old, new in numbering(source.release).items()},
        "normalise": options.normalise,
        "skipped": bad,
        "unrecognised": [_relative(path, root) for path in source.unrecognised],
        "cases": cases,
    }


def _relative(path: Path, root: Path) -> str:
    """From the source's root; a file of an overlay elsewhere keeps its whole path."""
    path = path.absolute() if path.absolute().is_relative_to(root) else path.resolve()
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
