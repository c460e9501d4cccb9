"""`distill`: manual labels, labels of others and predictions become one data set in nnUNet_raw.

Everything is read before anything is written. The data set grows in a hidden folder beside its place and is moved there
when it is whole. Images are linked, label maps copied: a new prediction must not change what was trained on.
"""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from nnunet_brats_ext.brats import Head, derive_channel, remap
from nnunet_brats_ext.dataset_conversion.cases import LINKS, link_file
from nnunet_brats_ext.dataset_conversion.dataset_folder import (
    RawDataset,
    check_replaceable,
    is_finished,
    publish_folder,
    read_manifest,
)
from nnunet_brats_ext.dataset_conversion.distillation.examination import Examination, examine_case, region_probabilities
from nnunet_brats_ext.dataset_conversion.distillation.folds import manual_splits, student_splits
from nnunet_brats_ext.dataset_conversion.distillation.provenance import FORMAT, distillation_manifest
from nnunet_brats_ext.dataset_conversion.distillation.selection import Selection, find_duplicates, select
from nnunet_brats_ext.dataset_conversion.distillation.sources import (
    FOREIGN,
    MANUAL,
    PSEUDO,
    Candidate,
    Exclusion,
    excluded,
    labelled_cases,
    predicted_cases,
)
from nnunet_brats_ext.dataset_conversion.distillation.targets import SOFT_TARGETS, write_soft_target
from nnunet_brats_ext.dataset_conversion.splits import PublishedFolds, group_patients, publish_splits
from nnunet_brats_ext.predictions.heads import check_convertible
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError, shorten
from nnunet_brats_ext.storage.images import read_grid, read_image, read_label_map, write_image, write_label_map
from nnunet_brats_ext.storage.json_files import write_json
from nnunet_brats_ext.storage.nnunet import (
    MANIFEST,
    SPLITS,
    Split,
    check_id_is_free,
    dataset_name,
    find_dataset,
    read_splits,
    require_folder,
)
from nnunet_brats_ext.storage.options import Options, option
from nnunet_brats_ext.storage.output import check_output, working_folder, writing
from nnunet_brats_ext.storage.parallel import for_each_case
from nnunet_brats_ext.storage.shared_options import dataset_id_option, processes_option


@dataclass(frozen=True)
class DistillOptions(Options):
    """Options of `distill`."""

    dataset_id: int = dataset_id_option("of the new data set, 1 to 999")
    labelled: int = option(metavar="ID", at_least=1, at_most=999, help="data set with manual labels")
    pseudo: tuple[tuple[Path, Path], ...] = option(
        metavar=("PREDICTIONS", "IMAGES"),
        repeat=True,
        default=(),
        help="a folder of predictions and that of the images predicted (repeatable; of the same images the first wins)",
    )
    foreign: tuple[int, ...] = option(
        metavar="ID",
        repeat=True,
        at_least=1,
        at_most=999,
        default=(),
        help="data set with labels of others, such as a converted MSD Task01 or BraTS 2015 (repeatable)",
    )
    name: str | None = option(
        metavar="NAME",
        default=None,
        help="what follows the ID in the folder's name (default: the labelled one's, with Distilled added)",
    )
    exclude: tuple[Path, ...] = option(
        metavar="PATH",
        repeat=True,
        default=(),
        help="what to evaluate on: a folder of images or label maps, a release, or a list of cases (repeatable)",
    )
    targets: Literal["hard", "soft"] = option(
        default="hard",
        help="label maps alone, as in the paper, or probabilities beside them, for students that train on such",
    )
    min_confidence: float | None = option(
        metavar="C", at_least=0, at_most=1, default=None, help="leave out predictions less sure, 0 to 1 (needs .npz)"
    )
    near_duplicates: Literal["drop", "report", "off"] = option(
        default="drop",
        help="cases that look the same but are stored differently; report keeps them, in folds that cannot leak",
    )
    similarity: float = option(
        metavar="S",
        at_least=0,
        at_most=1,
        default=0.8,
        help="from which value on they look the same; different people stay well below the default",
    )
    link: str = option(choices=LINKS, default="auto", help="how images get there; auto: the first of these that works")
    folds: int = option(at_least=2, default=5, help="where the labelled data set has none")
    seed: int = option(default=12345, help="of such folds")
    overwrite: bool = option(default=False, help="replace another data set of that name, and its folds")
    processes: int | None = processes_option()

    @property
    def soft(self) -> bool:
        return self.targets == "soft"

    @property
    def needs_probabilities(self) -> bool:
        return self.soft or self.min_confidence is not None

    @property
    def deciding(self) -> dict[str, Any]:
        """Those that decide what is in the data set, for the manifest and to compare distillations."""
        irrelevant = ("overwrite", "processes", "name")
        values = {key: value for key, value in asdict(self).items() if key not in irrelevant}
        return json.loads(json.dumps(values, default=lambda path: str(Path(path).resolve())))


@dataclass(frozen=True)
class Distillation:
    """A distilled data set. folder: of the data set. unchanged: it was there, finished, and nothing had to be done.

    unknown_names: list of names to exclude -> the names in it that match no case.
    """

    folder: Path
    unchanged: bool
    folds: PublishedFolds
    unknown_names: Mapping[Path, Sequence[str]]

    @property
    def manifest(self) -> dict[str, Any]:
        """Where every case comes from, and what was left out and why."""
        return read_manifest(self.folder) or {}


@dataclass(frozen=True)
class DistillationPlan:
    """What a distillation would write: the cases that stay, what was read of them, and their patients and folds."""

    kept: Mapping[str, Candidate]
    examined: Mapping[str, Examination]
    selection: Selection
    patients: Mapping[str, str]
    splits: Sequence[Split]
    folds_from: str


def distill(dataset_id: int, labelled: int, **options: Any) -> Distillation:
    """Build a data set for a student: Lachinov et al. 2019, https://arxiv.org/abs/2002.03688.

    dataset_id: of the new data set. labelled: of that with manual labels. options: the fields of `DistillOptions`.
    The same distillation again does nothing.
    """
    return distill_dataset(DistillOptions(dataset_id, labelled, **options))


def distill_dataset(options: DistillOptions) -> Distillation:
    """The same with its options in one object."""
    if not options.pseudo and not options.foreign:
        raise UserError("nothing to distill: name predictions with --pseudo, or a data set with --foreign")
    raw = require_folder("nnUNet_raw")
    check_output("nnUNet_raw", raw, "folder")
    labelled = RawDataset.open(find_dataset(options.labelled, raw))
    name = dataset_name(options.dataset_id, options.name or f"{labelled.folder.name[11:]}Distilled")
    target = raw / name
    if target == labelled.folder:
        raise UserError(f"{target} is the labelled data set itself; choose another ID with -d")
    check_id_is_free(options.dataset_id, name, raw)
    candidates, exclusion = _gather(options, labelled, raw)
    fingerprint = _fingerprint(candidates, exclusion, options)
    unchanged = not options.overwrite and is_finished(target, fingerprint)
    if not unchanged:
        folders = {folder for case in candidates.values() for folder in (case.source, *(p.parent for p in case.images))}
        check_replaceable(target, options.overwrite, [*sorted(folders), *options.exclude])
        regions = _region_head(labelled, options)
        plan = _plan(labelled, candidates, exclusion, regions, options)
        _write(target, labelled, plan, regions, fingerprint, options)
    wanted = len(read_splits(target / SPLITS)) if (target / SPLITS).is_file() else options.folds
    folds = publish_splits(target, wanted, options.overwrite)
    return Distillation(target, unchanged, folds, exclusion.unknown(candidates.values()))


# ---- what goes in ---------------------------------------------------------------------------------------------------


def _gather(options: DistillOptions, labelled: RawDataset, raw: Path) -> tuple[dict[str, Candidate], Exclusion]:
    """All cases by the name they would get, and what must stay out."""
    found = labelled_cases(labelled, MANUAL, labelled)
    for number in options.foreign:
        found += labelled_cases(RawDataset.open(find_dataset(number, raw)), FOREIGN, labelled)
    probabilities = "needed" if options.needs_probabilities else "if complete"
    for predictions, images in options.pseudo:
        found += predicted_cases(predictions, images, labelled, probabilities)
    return unique_names(found), excluded(options.exclude, labelled)


def unique_names(cases: Iterable[Candidate]) -> dict[str, Candidate]:
    """Case by the name that it gets: its own; with its source's before it, and then a number, where that is taken."""
    named: dict[str, Candidate] = {}
    for case in cases:
        source = re.sub(r"[^A-Za-z0-9-]+", "_", case.source.name)
        name, number = case.case, 1
        while name in named:
            name = f"{source}_{case.case}" if number == 1 else f"{source}{number}_{case.case}"
            number += 1
        named[name] = case
    return named


def _region_head(labelled: RawDataset, options: DistillOptions) -> Head | None:
    """The data set's regions, in which confidence is measured and soft targets are kept."""
    description = labelled.description
    if description.nested:
        return description.head()
    if options.needs_probabilities:
        raise UserError(
            f"{labelled.folder.name} has no nested regions ({description.declared}), which soft targets and confidence "
            "need"
        )
    return None


def _fingerprint(candidates: Mapping[str, Candidate], exclusion: Exclusion, options: DistillOptions) -> str:
    """Changes with every option, every name and every file, by size and time: reading them all takes long."""
    files = []
    for key, case in [*candidates.items(), *((case.case, case) for case in exclusion.images)]:
        for path in (*case.images, case.label, case.npz):
            if path is not None:
                status = path.stat()
                files.append([key, str(path.resolve()), status.st_size, status.st_mtime_ns])
    content = json.dumps([FORMAT, options.deciding, files, sorted(exclusion.names)])
    return hashlib.sha256(content.encode()).hexdigest()


# ---- what stays -----------------------------------------------------------------------------------------------------


def _plan(
    labelled: RawDataset,
    candidates: Mapping[str, Candidate],
    exclusion: Exclusion,
    regions: Head | None,
    options: DistillOptions,
) -> DistillationPlan:
    """Read everything and decide which cases stay, and which folds they train."""
    everything = {f"{case.source}/{case.case}": case for case in exclusion.images} | dict(candidates)
    _require_convertible(candidates.values(), regions)
    examine = partial(examine_case, everything, labelled.description.labels, regions)
    examined = for_each_case(examine, list(everything), "Reading", options.processes)
    duplicates = find_duplicates(examined, None if options.near_duplicates == "off" else options.similarity)
    drop = options.near_duplicates == "drop"
    selection = select(everything, exclusion, examined, duplicates, drop, options.min_confidence)
    kept = {key: candidates[key] for key in selection.kept}
    manual = {key: case for key, case in candidates.items() if case.kind == MANUAL}
    extra = [key for key in kept if key not in manual]
    if not extra or len(extra) == len(kept):
        kind = "with manual labels" if extra else "to distill"
        raise UserError(nothing_left(kind, Counter(dropped.reason for dropped in selection.dropped)))
    require_axes(labelled, kept, examined)
    patients = _patients(candidates, everything, selection)
    strata = {key: case.described.get("grade") or case.described.get("site") or "" for key, case in manual.items()}
    splits, folds_from = manual_splits(
        labelled.folder, {key: patients[key] for key in manual}, strata, options.folds, options.seed
    )
    return DistillationPlan(
        kept, examined, selection, patients, student_splits(splits, kept, extra, patients), folds_from
    )


def nothing_left(kind: str, reasons: Mapping[str, int]) -> str:
    """What is wrong where no case of a kind stays. reasons: why cases were left out, and how many."""
    return f"no case {kind} is left: " + ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def require_axes(labelled: RawDataset, kept: Mapping[str, Candidate], examined: Mapping[str, Examination]) -> None:
    """An error where images have other axes than the labelled data set notes: they are linked as they are."""
    noted = labelled.description.axes
    others = {key: axes for key in kept if noted and (axes := examined[key].grid.axes) != noted}
    if others:
        shown = shorten([f"{kept[key].case} of {kept[key].source} has {axes}" for key, axes in others.items()], 5)
        raise UserError(
            f"{labelled.folder.name} has images with the axes {noted}, and these are not so: {shown}; turn them with "
            "`nnunet_brats convert`, predict what was turned again, or leave them out with --exclude"
        )


def _require_convertible(cases: Iterable[Candidate], regions: Head | None) -> None:
    for source, head in {case.source: case.head for case in cases if case.head}.items():
        try:
            check_convertible(head, regions or head)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error


def _patients(
    candidates: Mapping[str, Candidate], everything: Mapping[str, Candidate], selection: Selection
) -> dict[str, str]:
    """Case -> patient, across all sources: cases of one name, and duplicates, are one patient."""
    others = {key: (everything[other].identities for other in same) for key, same in selection.same_patient.items()}
    return group_patients({key: case.identities.union(*others.get(key, ())) for key, case in candidates.items()})


# ---- what is written ------------------------------------------------------------------------------------------------


def _write(
    target: Path,
    labelled: RawDataset,
    plan: DistillationPlan,
    regions: Head | None,
    fingerprint: str,
    options: DistillOptions,
) -> None:
    soft_regions = regions if options.soft else None
    manifest = distillation_manifest(
        labelled,
        plan.kept,
        plan.patients,
        plan.examined,
        plan.selection,
        plan.folds_from,
        fingerprint,
        options.deciding,
    )
    with working_folder(target) as scratch:
        growing = scratch / target.name
        for folder in ("imagesTr", "labelsTr", *([SOFT_TARGETS] if soft_regions else [])):
            (growing / folder).mkdir(parents=True)
        write = partial(write_candidate, plan.kept, growing, labelled.description, soft_regions, options.link)
        for_each_case(write, list(plan.kept), "Writing", options.processes)
        write_json(growing / "dataset.json", _dataset_json(labelled, target.name, plan.kept, soft_regions))
        write_json(growing / MANIFEST, manifest)
        if plan.splits:
            write_json(growing / SPLITS, plan.splits)
        publish_folder(growing, target, options.overwrite, fingerprint)


def write_candidate(
    kept: Mapping[str, Candidate],
    folder: Path,
    description: DatasetDescription,
    soft_regions: Head | None,
    link: str,
    key: str,
) -> None:
    """Link the images of a case into a data set, copy its label map, and write its derived channels and soft targets.

    Probabilities are read here a second time, after the examination: which cases stay is known once all are examined,
    and they would not fit into memory.
    """
    case, ending = kept[key], description.ending
    targets = [folder / "imagesTr" / f"{key}_{channel:04d}{ending}" for channel in range(len(description.sequences))]
    for image, target in zip(case.images, targets, strict=False):
        link_file(image, target, link)
    if description.derived:
        arrays = {name: read_image(path).array for name, path in zip(description.acquired, case.images, strict=True)}
        for name, weights in description.derived.items():
            place = targets[description.channel(name)]
            write_image(place, derive_channel(arrays, weights), read_grid(case.images[0]))
    assert case.label is not None, "only excluded cases have none"
    target = folder / "labelsTr" / f"{key}{ending}"
    if case.joined:
        labels, grid = read_label_map(case.label)
        write_label_map(target, remap(labels, {label: label for label in description.labels} | {**case.joined}), grid)
    else:
        with writing(target):
            shutil.copyfile(case.label, target)
    if soft_regions and case.kind == PSEUDO:
        write_soft_target(folder / SOFT_TARGETS / f"{key}.npz", region_probabilities(case, soft_regions))


def _dataset_json(
    labelled: RawDataset, name: str, kept: Mapping[str, Candidate], soft_regions: Head | None
) -> dict[str, Any]:
    """That of the labelled data set, of more cases; trainers read `brats_soft_targets`."""
    content = labelled.description.content
    inherited = {key: value for key, value in content.items() if key not in ("dataset", "numTest", "test")}
    soft = {}
    if soft_regions:
        number = sum(case.kind == PSEUDO for case in kept.values())
        soft = {f"brats_{SOFT_TARGETS}": {"regions": list(soft_regions.names), "cases": number}}
    own = {"name": name, "numTraining": len(kept), "brats_distilled_from": labelled.folder.name}
    return {**inherited, **own, **soft}
