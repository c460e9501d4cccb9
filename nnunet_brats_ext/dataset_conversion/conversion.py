"""`convert`: a BraTS release folder becomes an nnU-Net data set, all of it or nothing.

Every case is inspected before anything is written. The data set grows in a hidden folder beside its place and is moved
there when it is whole, so that an interrupted run leaves nothing that nnU-Net could take for a data set.
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from nnunet_brats_ext import __version__
from nnunet_brats_ext.brats import DERIVED_CHANNELS
from nnunet_brats_ext.dataset_conversion.cases import (
    AXES,
    LINKS,
    Inspection,
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
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS, Layout, layout_of_manifest
from nnunet_brats_ext.dataset_conversion.normalisation import NORMALISATIONS
from nnunet_brats_ext.dataset_conversion.scan import Source, SourceCase
from nnunet_brats_ext.dataset_conversion.sources import (
    DatasetFacts,
    find_source,
    keep_once,
    refuse_same_names,
    sources_of,
    unite,
    with_numbering,
)
from nnunet_brats_ext.dataset_conversion.splits import (
    PublishedFolds,
    coarse_stratum,
    folds_in,
    group_patients,
    held_out_in,
    hold_out,
    number_of_cases,
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
from nnunet_brats_ext.storage.output import check_output, working_folder
from nnunet_brats_ext.storage.parallel import for_each
from nnunet_brats_ext.storage.shared_options import dataset_id_option, processes_option, scheme_option

MISSING = ("zero",)
FORMAT = 1  # of the manifest; a data set of another format counts as different


@dataclass(frozen=True)
class ConvertOptions(Options):
    """Options of `convert`."""

    sources: tuple[Path, ...] = argument(
        "the unpacked release or an own folder, or one above it; several become one data set", metavar="SOURCE"
    )
    dataset_id: int = dataset_id_option("of the data set, 1 to 999")
    name: str | None = option(
        metavar="NAME", default=None, help="what follows the ID in the folder's name (default: the release's name)"
    )
    out: Path | None = option("-o", writes="folder", metavar="FOLDER", default=None, help="instead of nnUNet_raw")
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
    missing: str | None = option(
        choices=MISSING,
        default=None,
        help="take cases that lack sequences; zero: write them as zeros, which they stay in nnU-Net's normalisation",
    )
    add: tuple[str, ...] = option(
        choices=tuple(map(str.lower, DERIVED_CHANNELS)),
        repeat=True,
        default=(),
        help="a further channel, computed from the sequences, also by `nnunet_brats predict` (Kim 2024)",
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
        help="write images that nnU-Net then leaves as they are: clipped to their 1st to 99th percentile and scaled to "
        "0..1 (Henry 2020), z-scores over each sequence's own non-zero voxels (Lyu 2020, Henry 2020, Lachinov 2019), "
        "or over the whole volume (Hashemi 2021)",
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
    hold_out: float = option(
        metavar="N",
        at_least=0,
        default=0.0,
        help="keep labelled cases to test on, in imagesTs and labelsTs: a share such as 0.1, or a number; by patient, "
        "and as mixed in grade, site and tumour volume as all",
    )
    validation: float = option(
        metavar="N",
        at_least=0,
        default=0.0,
        help="a single fold instead of --folds, with such a share of all labelled cases, or a number, for validation",
    )
    seed: int = option(default=12345, help="of the folds and of what is held out")
    same_patients_as: int | None = option(
        metavar="ID", at_least=1, at_most=999, default=None, help="keep patients in the folds of that data set"
    )
    skip_bad: bool = option(default=False, help="leave bad cases out; the manifest lists them")
    overwrite: bool = option(default=False, help="convert again, replacing the data set and folds that are there")
    processes: int | None = processes_option()

    @property
    def derived(self) -> list[str]:
        """The names of the channels to add, of `DERIVED_CHANNELS`."""
        return [name for name in DERIVED_CHANNELS if name.lower() in self.add]


@dataclass(frozen=True)
class Conversion:
    """What was converted. folder: of the data set. layouts: of each source.

    unchanged: it was there, finished, and nothing had to be done.
    """

    folder: Path
    layouts: Sequence[Layout]
    unchanged: bool
    folds: PublishedFolds

    @property
    def manifest(self) -> dict[str, Any]:
        """What the conversion noted about the release and every case."""
        return read_manifest(self.folder) or {}


def convert(source: Path | str | Sequence[Path | str], dataset_id: int, **options: Any) -> Conversion:
    """Make a data set in nnUNet_raw of a BraTS release, of an own folder, or of several of them.

    options: the fields of `ConvertOptions`. Bad cases are an error that lists all of them, or are left out with
    `skip_bad`. The same conversion again does nothing.
    """
    sources = (source,) if isinstance(source, Path | str) else tuple(source)
    return convert_sources(ConvertOptions(tuple(map(Path, sources)), dataset_id, **options))


def convert_sources(options: ConvertOptions) -> Conversion:
    """The same with its options in one object."""
    raw = options.out or require_folder("nnUNet_raw", ", or name a folder with -o")
    for root in options.sources:
        if raw.resolve().is_relative_to(root.resolve()):
            raise UserError(f"{raw} lies in the release {root}, which stays as it is; name another folder with -o")
    check_output("nnUNet_raw", raw, "folder")
    sources = find_sources(options)
    name = dataset_name(options.dataset_id, options.name or "".join(dict.fromkeys(map(_title, sources))))
    check_id_is_free(options.dataset_id, name, raw)
    model = None if options.same_patients_as is None else find_dataset(options.same_patients_as, raw)
    if model and (options.hold_out or options.validation):
        given = "--hold-out" if options.hold_out else "--validation"
        raise UserError(f"{given}: {model.name}, which --same-patients-as follows, decides it; leave it out")
    target, fingerprint = raw / name, _fingerprint(sources, model, options)
    unchanged = not options.overwrite and is_finished(target, fingerprint)
    if not unchanged:
        files = [path for source in sources for case in source.cases for path in case.files.values()]
        tables = [options.name_mapping] if options.name_mapping else []
        check_replaceable(target, options.overwrite, [*options.sources, *options.overlays, *tables, *files])
        _write(_inspect(sources, options), target, model, fingerprint, options)
    layouts = tuple(map(layout_of_manifest, sources_of(read_manifest(target) or {})))
    return Conversion(
        target,
        layouts,
        unchanged,
        publish_splits(target, 1 if options.validation else options.folds, options.overwrite),
    )


def find_sources(options: ConvertOptions) -> list[Source]:
    """The cases of each folder."""
    sources = []
    for number, root in enumerate(options.sources):
        source = find_source(
            *(root, options.release, options.layout, options.scheme, options.any_name),
            overlays=options.overlays,
            name_mapping=options.name_mapping,
            allow_missing=options.missing is not None,
        )
        for case in source.cases:
            case.source = number
        sources.append(source)
    return sources


def _title(source: Source) -> str:
    """What follows the ID in the data set's name; of a folder that could be anyone's, the folder's own name."""
    own = re.sub(r"[^A-Za-z0-9]", "", source.root.resolve().name)
    return own if source.layout.generic and own else source.layout.title


@dataclass(frozen=True)
class Inspected:
    """The sources with their numberings, the good cases, the problems of bad ones, and cases that are there twice.

    same_images: case that was left out -> the one with the same images that is kept.
    """

    sources: Sequence[Source]
    facts: DatasetFacts
    good: Sequence[Inspection]
    bad: Mapping[str, Sequence[str]]
    same_images: Mapping[str, str]


def _inspect(sources: Sequence[Source], options: ConvertOptions) -> Inspected:
    """Read every file of every case; bad cases are an error unless they are to be left out."""
    look = partial(
        inspect_case,
        normalise=options.normalise,
        tolerance_mm=options.tolerance_mm,
        axes=options.axes,
        right_angles=options.right_angles,
    )
    cases = [case for source in sources for case in source.cases]
    inspected = for_each(look, cases, "Inspecting", options.processes, lambda case: case.name)
    sources = [
        with_numbering(source, [found for found in inspected if found.case.source == number])
        for number, source in enumerate(sources)
    ]
    facts = unite(sources)
    for name in options.derived:
        if lacking := [one for one in DERIVED_CHANNELS[name] if one not in facts.sequences]:
            raise UserError(f"--add {name.lower()}: {facts.name} has no {' and no '.join(lacking)}")
    good = [found for found in inspected if not found.case.problems]
    bad = {found.case.name: found.case.problems for found in inspected if found.case.problems}
    if bad and (not options.skip_bad or not good):
        advice = "\nNothing was written." + (" --skip-bad leaves them out." if good else "")
        raise UserError(describe_bad_cases(bad) + advice)
    good, same_images = keep_once(good, options.sources)
    refuse_same_names(good, options.sources)
    return Inspected(sources, facts, good, bad, same_images)


def describe_bad_cases(cases: Mapping[str, Sequence[str]]) -> str:
    """Every problem of every bad case, a line each."""
    lines = [f"\n  {case}: {problem}" for case, problems in cases.items() for problem in problems]
    return f"{len(cases)} bad case{'s' if len(cases) > 1 else ''}:" + "".join(lines)


def _write(inspected: Inspected, target: Path, model: Path | None, fingerprint: str, options: ConvertOptions) -> None:
    good = inspected.good
    cases = [found.case for found in good]
    patients = group_patients(_identities(good))
    contents = {found.case.name: found.identifying for found in good}
    labelled = sum(case.labelled for case in cases)
    held_out, validation = number_of_cases(options.hold_out, labelled), number_of_cases(options.validation, labelled)
    for flag, asked, number in (
        ("--hold-out", options.hold_out, held_out),
        ("--validation", options.validation, validation),
    ):
        if asked and not number:
            raise UserError(f"{flag} {asked:g}: of {labelled} labelled cases that is none; ask for a number, such as 1")
    if held_out + validation >= max(labelled, 1):
        raise UserError(
            f"--hold-out and --validation leave none of {labelled} labelled cases to train on; ask for less"
        )
    strata = _strata(good) if options.hold_out or options.validation else None
    if model or held_out:
        hold_out(cases, patients, strata or {}, held_out, options.seed, model, contents)
    splits = split_cases(cases, patients, options.folds, options.seed, model, contents, strata, validation)
    target.parent.mkdir(parents=True, exist_ok=True)
    _check_space(target.parent, good, options.derived, copies=options.link == "copy")
    with working_folder(target) as scratch:
        growing = scratch / target.name
        folders = ["imagesTr", "labelsTr"]
        folders += ["imagesTs"] if not all(case.trains for case in cases) else []
        folders += ["labelsTs"] if any(case.held_out for case in cases) else []
        for folder in folders:
            (growing / folder).mkdir(parents=True)
        derived = options.derived
        write = partial(write_case, folder=growing, link=options.link, normalise=options.normalise, derived=derived)
        for_each(write, good, "Writing", options.processes, lambda found: found.case.name)
        training = sum(case.trains for case in cases)
        missing = {case.name: case.missing for case in cases if case.missing}
        axes = {found.grid.axes for found in good if found.grid}
        description = dataset_json(inspected.facts, target.name, training, options.normalise, missing, axes, derived)
        write_json(growing / "dataset.json", description)
        write_json(growing / MANIFEST, _manifest(inspected, patients, fingerprint, options))
        if splits:
            write_json(growing / SPLITS, splits)
        publish_folder(growing, target, options.overwrite, fingerprint)


def _fingerprint(sources: Sequence[Source], model: Path | None, options: ConvertOptions) -> str:
    """Changes with every option and every file of the source, by size and time: reading them all takes long."""
    files = []
    cases = [case for source in sources for case in source.cases]
    for case in cases:
        for role, path in sorted(case.files.items()):
            path = path.resolve()
            status = path.stat() if path.exists() else None  # a broken link is reported with all other bad files
            files.append([case.name, role, str(path), status and status.st_size, status and status.st_mtime_ns])
    asked = [options.normalise, options.tolerance_mm, options.folds, options.seed, options.same_patients_as]
    number, folds = folds_in(model) if model else (0, {})
    followed = [number, sorted((name, sorted(found)) for name, found in folds.items())]
    tables = [[case.patient, case.known_as, case.grade, case.site] for case in cases]
    parts = [FORMAT, sources[0].layout.name, asked, options.link, followed, options.skip_bad, files, tables]
    parts += [source.layout.to_toml() for source in sources if LAYOUTS.get(source.layout.name) != source.layout]
    parts += [[source.layout.name, str(source.root.resolve())] for source in sources[1:]]
    if options.axes != LPS or options.right_angles:
        parts.append([options.axes, options.right_angles])
    if options.missing:
        parts.append(options.missing)
    if options.derived:
        parts.append(options.derived)
    if options.hold_out or options.validation:
        parts.append([options.hold_out, options.validation])
    if model and (held_out := held_out_in(model)):
        parts.append(sorted(held_out))
    content = json.dumps(parts)
    return hashlib.sha256(content.encode()).hexdigest()


def _strata(inspected: Sequence[Inspection]) -> dict[str, str]:
    """Of each labelled case: its grade, site or source, and which third of these cases its tumour volume is in."""
    volumes: dict[str, dict[str, float]] = {}
    for found in inspected:
        if found.case.labelled and found.grid:
            tumour = sum(count for label, count in found.label_counts.items() if label)
            volumes.setdefault(coarse_stratum(found.case), {})[found.case.name] = tumour * prod(found.grid.spacing_mm)
    strata: dict[str, str] = {}
    for group, each in volumes.items():
        ordered = sorted(each, key=lambda case: (each[case], case))
        strata |= {case: f"{group} {3 * place // len(ordered)}" for place, case in enumerate(ordered)}
    return strata


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


def _check_space(folder: Path, inspected: Sequence[Inspection], derived: Sequence[str], copies: bool) -> None:
    needed, free = sum(found.bytes_to_write for found in inspected), shutil.disk_usage(folder).free
    needed += len(derived) * sum(4 * math.prod(found.grid.size) for found in inspected if found.grid)
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
    inspected: Inspected, patients: Mapping[str, str], fingerprint: str, options: ConvertOptions
) -> dict[str, Any]:
    sources = [_manifest_of_source(source, options) for source in inspected.sources]
    roots = [source.root.resolve() for source in inspected.sources]
    entries = {}
    for found in inspected.good:
        entry = _manifest_entry(found, patients[found.case.name], roots[found.case.source])
        entries[found.case.name] = entry if len(sources) == 1 else {"source": found.case.source, **entry}
    several = {"release": inspected.facts.name, "sources": sources, "same_images": inspected.same_images}
    return {
        "format": FORMAT,
        "made_by": f"nnunet-brats-ext {__version__}",
        "fingerprint": fingerprint,
        **(sources[0] if len(sources) == 1 else several),
        "normalise": options.normalise,
        "skipped": inspected.bad,
        "cases": entries,
    }


def _manifest_of_source(source: Source, options: ConvertOptions) -> dict[str, Any]:
    root = source.root.resolve()
    return {
        "release": source.layout.name,
        **({} if LAYOUTS.get(source.layout.name) == source.layout else {"layout": source.layout.to_toml()}),
        "recognised": source.evidence,
        "source": str(root),
        "overlays": [str(overlay.resolve()) for overlay in options.overlays],
        "label_mapping": {str(old): new for old, new in label_mapping(source.layout).items()},
        "unrecognised": [_relative(path, root) for path in source.unrecognised],
    }


def _manifest_entry(found: Inspection, patient: str, root: Path) -> dict[str, Any]:
    case = found.case
    turned = found.source_grid != found.grid
    files = {role: {"path": _relative(path, root), "sha256": found.sha256[role]} for role, path in case.files.items()}
    return {
        "labelled": case.labelled,
        **({"held_out": True} if case.held_out else {}),
        "patient": patient,
        "known_as": sorted({case.patient, *case.known_as} - {patient}),
        "grade": case.grade,
        "site": case.site,
        "files": files,
        "voxels": found.voxels,
        "labels": found.labels,
        "grid": found.grid.to_json() if found.grid else None,
        **({"source_grid": found.source_grid.to_json()} if turned and found.source_grid else {}),
        **({"missing": case.missing} if case.missing else {}),
        "remarks": case.remarks,
    }


def _relative(path: Path, root: Path) -> str:
    """From the source's root; a file of an overlay elsewhere keeps its whole path."""
    path = path.absolute() if path.absolute().is_relative_to(root) else path.resolve()
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
