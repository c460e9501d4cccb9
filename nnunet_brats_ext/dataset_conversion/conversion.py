"""`convert`: a BraTS release folder becomes an nnU-Net data set, all of it or nothing.

Every case is inspected before anything is written. The data set grows in a hidden folder beside its place and is moved
there when it is whole, so that an interrupted run leaves nothing that nnU-Net could take for a data set.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_brats_ext import __version__
from nnunet_brats_ext.brats import LABEL_SCHEMES
from nnunet_brats_ext.dataset_conversion.cases import (
    AXES,
    LINKS,
    Inspection,
    check_labels,
    inspect_case,
    label_mapping,
    write_case,
)
from nnunet_brats_ext.dataset_conversion.dataset_folder import (
    check_replaceable,
    dataset_json,
    is_finished,
    publish_folder,
    read_manifest,
)
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS, PRESENT_SCHEME, Layout, layout_of_manifest
from nnunet_brats_ext.dataset_conversion.scan import Source, SourceCase, scan
from nnunet_brats_ext.dataset_conversion.splits import (
    PublishedFolds,
    folds_in,
    group_patients,
    publish_splits,
    split_cases,
)
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import LPS, TOLERANCE_MM
from nnunet_brats_ext.storage.json_files import write_json
from nnunet_brats_ext.storage.nnunet import (
    MANIFEST,
    SPLITS,
    check_id_is_free,
    dataset_name,
    find_dataset,
    require_folder,
)
from nnunet_brats_ext.storage.options import Options, argument, option
from nnunet_brats_ext.storage.output import refuse_file, working_folder
from nnunet_brats_ext.storage.parallel import for_each
from nnunet_brats_ext.storage.shared_options import dataset_id_option, processes_option, scheme_option

PERCENTILE_MINMAX = "percentile-minmax"
NORMALISATIONS = (PERCENTILE_MINMAX,)
FORMAT = 1  # of the manifest; a data set of another format counts as different


@dataclass(frozen=True)
class ConvertOptions(Options):
    """Options of `convert`."""

    source: Path = argument("the unpacked release or an own folder, or one above it", metavar="SOURCE")
    dataset_id: int = dataset_id_option("of the data set, 1 to 999")
    name: str | None = option(
        metavar="NAME", default=None, help="what follows the ID in the folder's name (default: the release's name)"
    )
    out: Path | None = option("-o", metavar="FOLDER", default=None, help="instead of nnUNet_raw")
    release: str | None = option(
        metavar="NAME", default=None, help="which release it is, where names and folders leave it open"
    )
    layout: Path | None = option(
        metavar="FILE", default=None, help="the layout of an own folder, as `nnunet_brats layout` writes it"
    )
    scheme: str | None = scheme_option("how the label maps are numbered, where neither names nor values decide it")
    any_name: bool = option(
        default=False, help="cases have any names; with --release or --layout, which say how files are named"
    )
    overlays: tuple[Path, ...] = option(
        *("--overlay",),
        metavar="DIR",
        repeat=True,
        default=(),
        help="corrected labels or images that replace those of the same case (repeatable; the last wins)",
    )
    name_mapping: Path | None = option(
        metavar="CSV", default=None, help="table of patients and grades, where SOURCE has none"
    )
    link: str = option(
        choices=LINKS,
        default="auto",
        help="how images that need no change get there; auto: the first of these that works",
    )
    normalise: str | None = option(
        choices=NORMALISATIONS,
        default=None,
        help="write images clipped to their 1st to 99th percentile and scaled to 0..1 (Henry 2020); nnU-Net then "
        "leaves them as they are",
    )
    tolerance_mm: float = option(
        *("--tolerance",),
        metavar="MM",
        at_least=0,
        at_most=100,
        default=TOLERANCE_MM,
        help="how far apart the sequences of a case may lie; within it, headers are made equal",
    )
    axes: str = option(
        choices=AXES,
        default=LPS,
        help="turn images, without resampling, to LPS as BraTS has them, or only to those of the case's first image",
    )
    right_angles: bool = option(
        default=False, help="of affines whose axes are not at right angles, take the nearest that are"
    )
    folds: int = option(at_least=2, default=5, help="of the cross-validation; fewer where there are fewer patients")
    seed: int = option(default=12345, help="of the folds")
    same_patients_as: int | None = option(
        metavar="ID", at_least=1, at_most=999, default=None, help="keep patients in the folds of that data set"
    )
    skip_bad: bool = option(default=False, help="leave bad cases out; the manifest lists them")
    overwrite: bool = option(default=False, help="convert again, replacing the data set and folds that are there")
    processes: int | None = processes_option()

    @property
    def normalises(self) -> bool:
        return self.normalise == PERCENTILE_MINMAX


@dataclass(frozen=True)
class Conversion:
    """A converted source. folder: of the data set. unchanged: it was there, finished, and nothing had to be done."""

    folder: Path
    layout: Layout
    unchanged: bool
    folds: PublishedFolds

    @property
    def manifest(self) -> dict[str, Any]:
        """What the conversion noted about the release and every case."""
        return read_manifest(self.folder) or {}


def convert(source: Path | str, dataset_id: int, **options: Any) -> Conversion:
    """Make a data set in nnUNet_raw of a BraTS release; `options` are the fields of `ConvertOptions`.

    Bad cases are an error that lists all of them, or are left out with `skip_bad`. The same conversion again does
    nothing.
    """
    return convert_release(ConvertOptions(Path(source), dataset_id, **options))


def convert_release(options: ConvertOptions) -> Conversion:
    """The same with its options in one object."""
    raw = options.out or require_folder("nnUNet_raw", ", or name a folder with -o")
    if raw.resolve().is_relative_to(options.source.resolve()):
        raise UserError(
            f"{raw} lies in the release {options.source}, which stays as it is; name another folder with -o"
        )
    refuse_file(raw)
    source = find_source(options)
    name = dataset_name(options.dataset_id, options.name or _title(source))
    check_id_is_free(options.dataset_id, name, raw)
    model = None if options.same_patients_as is None else find_dataset(options.same_patients_as, raw)
    target, fingerprint = raw / name, _fingerprint(source, model, options)
    unchanged = not options.overwrite and is_finished(target, fingerprint)
    if not unchanged:
        files = [path for case in source.cases for path in case.files.values()]
        tables = [options.name_mapping] if options.name_mapping else []
        check_replaceable(target, options.overwrite, [source.root, *options.overlays, *tables, *files])
        source, good, bad = _inspect(source, options)
        _write(source, good, bad, target, model, fingerprint, options)
    layout = layout_of_manifest(read_manifest(target) or {})
    return Conversion(target, layout, unchanged, publish_splits(target, options.folds, options.overwrite))


def find_source(options: ConvertOptions) -> Source:
    """The cases of the source by the layout that the options name, or by the one that is recognised."""
    if options.layout and options.release:
        raise UserError("--layout FILE and --release NAME: name one of the two")
    asked = Layout.read(options.layout) if options.layout else options.release
    if isinstance(asked, Layout) and asked.name in LAYOUTS:
        raise UserError(f"{options.layout}: {asked.name} is the name of a known release; choose another name")
    source = scan(options.source, asked, options.overlays, options.name_mapping, options.any_name)
    return with_layout(source, source.layout.with_scheme(options.scheme)) if options.scheme else source


def with_layout(source: Source, layout: Layout, evidence: str = "") -> Source:
    """The same cases read by another layout."""
    for case in source.cases:
        case.layout = layout
    return replace(source, layout=layout, evidence=evidence or source.evidence)


def _title(source: Source) -> str:
    """What follows the ID in the data set's name; of a folder that could be anyone's, the folder's own name."""
    own = re.sub(r"[^A-Za-z0-9]", "", source.root.resolve().name)
    return own if source.layout.generic and own else source.layout.title


def _inspect(source: Source, options: ConvertOptions) -> tuple[Source, list[Inspection], dict[str, list[str]]]:
    """The source with its numbering, the good cases, and the problems of the bad ones.

    Bad cases are an error unless they are to be left out.
    """
    look = partial(
        inspect_case,
        normalise=options.normalises,
        tolerance_mm=options.tolerance_mm,
        axes=options.axes,
        right_angles=options.right_angles,
    )
    inspected = for_each(look, source.cases, "Inspecting", options.processes, lambda case: case.name)
    if source.layout.scheme is None:
        name, why = decide_numbering(inspected, source)
        layout = source.layout.with_scheme(name)
        source = with_layout(source, layout, f"{source.evidence}; {why}")
        for found in inspected:
            found.case.layout = layout  # of the copy that a worker has sent back
            check_labels(found)
    good = [found for found in inspected if not found.case.problems]
    bad = {found.case.name: found.case.problems for found in inspected if found.case.problems}
    if bad and (not options.skip_bad or not good):
        advice = "\nNothing was written." + (" --skip-bad leaves them out." if good else "")
        raise UserError(describe_bad_cases(bad) + advice)
    return source, good, bad


def decide_numbering(inspected: Sequence[Inspection], source: Source) -> tuple[str, str]:
    """The numbering of the label maps by their values, and why; an error asks where the values fit several.

    Only the glioma labels of 2017 to 2022 have a 4 and no 3. Without any label map there is nothing to read, and
    predictions are written as BraTS numbers them since 2023.
    """
    values = sorted({value for found in inspected for value in found.label_counts})
    shown = ", ".join(map(str, values))
    if not values:
        return PRESENT_SCHEME, f"no label maps; predictions are numbered as in {PRESENT_SCHEME}"
    if 4 in values and set(values) <= {0, 1, 2, 4}:
        return "glioma_2017", f"labels {shown}, as in glioma_2017"
    fitting = {name: scheme for name, scheme in LABEL_SCHEMES.items() if set(values) <= set(scheme.released)}
    choices = "".join(f"\n  --scheme {name:<18} {scheme.numbers}" for name, scheme in fitting.items())
    if not fitting:
        raise UserError(
            f"{source.root} has the labels {shown}, which no numbering has; state them in a layout, as a table "
            f"[labels]: `nnunet_brats layout {source.root}` writes one"
        )
    raise UserError(
        f"{source.root} has the labels {shown}, which fit several numberings; name the one that it is:{choices}\n"
        "Another numbering is stated in a layout, as a table [labels]: `nnunet_brats layout` writes one."
    )


def describe_bad_cases(cases: Mapping[str, Sequence[str]]) -> str:
    """Every problem of every bad case, a line each."""
    lines = [f"\n  {case}: {problem}" for case, problems in cases.items() for problem in problems]
    return f"{len(cases)} bad case{'s' if len(cases) > 1 else ''}:" + "".join(lines)


def _write(
    source: Source,
    good: Sequence[Inspection],
    bad: Mapping[str, Sequence[str]],
    target: Path,
    model: Path | None,
    fingerprint: str,
    options: ConvertOptions,
) -> None:
    cases = [found.case for found in good]
    patients = group_patients(_identities(good))
    splits = split_cases(cases, patients, options.folds, options.seed, model)
    target.parent.mkdir(parents=True, exist_ok=True)
    _check_space(target.parent, good, copies=options.link == "copy")
    with working_folder(target) as scratch:
        growing = scratch / target.name
        for folder in ("imagesTr", "labelsTr", *(["imagesTs"] if any(not case.labelled for case in cases) else [])):
            (growing / folder).mkdir(parents=True)
        write = partial(write_case, folder=growing, link=options.link, normalise=options.normalises)
        for_each(write, good, "Writing", options.processes, lambda found: found.case.name)
        training = sum(case.labelled for case in cases)
        write_json(growing / "dataset.json", dataset_json(source.layout, target.name, training, options.normalises))
        write_json(growing / MANIFEST, _manifest(source, good, bad, patients, fingerprint, options))
        if splits:
            write_json(growing / SPLITS, splits)
        publish_folder(growing, target, options.overwrite, fingerprint)


def _fingerprint(source: Source, model: Path | None, options: ConvertOptions) -> str:
    """Changes with every option and every file of the source, by size and time: reading them all takes long."""
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
    parts = [FORMAT, source.layout.name, asked, options.link, followed, options.skip_bad, files, tables]
    if LAYOUTS.get(source.layout.name) != source.layout:
        parts.append(source.layout.to_toml())
    if options.axes != LPS or options.right_angles:
        parts.append([options.axes, options.right_angles])
    content = json.dumps(parts)
    return hashlib.sha256(content.encode()).hexdigest()


def _identities(inspected: Sequence[Inspection]) -> Mapping[str, Sequence[str]]:
    """Case -> the names of its patient. Cases that share an image are one patient; the later one gets a remark."""
    first: dict[str, SourceCase] = {}
    identities = {}
    for found in inspected:
        case = found.case
        holders = [first.setdefault(digest, case) for digest in found.identifying]
        duplicates = {holder.name: holder.patient for holder in holders if holder is not case}
        case.remarks += [f"duplicate image in {name}" for name in duplicates]
        identities[case.name] = [case.patient, *case.known_as, *duplicates.values()]
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
    bad: Mapping[str, Sequence[str]],
    patients: Mapping[str, str],
    fingerprint: str,
    options: ConvertOptions,
) -> dict[str, Any]:
    root = source.root.resolve()
    return {
        "format": FORMAT,
        "made_by": f"nnunet-brats-ext {__version__}",
        "fingerprint": fingerprint,
        "release": source.layout.name,
        **({} if LAYOUTS.get(source.layout.name) == source.layout else {"layout": source.layout.to_toml()}),
        "recognised": source.evidence,
        "source": str(root),
        "overlays": [str(overlay.resolve()) for overlay in options.overlays],
        "label_mapping": {str(old): new for old, new in label_mapping(source.layout).items()},
        "normalise": options.normalise,
        "skipped": bad,
        "unrecognised": [_relative(path, root) for path in source.unrecognised],
        "cases": {found.case.name: _manifest_entry(found, patients[found.case.name], root) for found in inspected},
    }


def _manifest_entry(found: Inspection, patient: str, root: Path) -> dict[str, Any]:
    case = found.case
    turned = found.source_grid != found.grid
    files = {role: {"path": _relative(path, root), "sha256": found.sha256[role]} for role, path in case.files.items()}
    return {
        "labelled": case.labelled,
        "patient": patient,
        "known_as": sorted({case.patient, *case.known_as} - {patient}),
        "grade": case.grade,
        "site": case.site,
        "files": files,
        "labels": found.labels,
        "grid": found.grid.to_json() if found.grid else None,
        **({"source_grid": found.source_grid.to_json()} if turned and found.source_grid else {}),
        "remarks": case.remarks,
    }


def _relative(path: Path, root: Path) -> str:
    """From the source's root; a file of an overlay elsewhere keeps its whole path."""
    path = path.absolute() if path.absolute().is_relative_to(root) else path.resolve()
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
