"""`nnunet_brats distill`: manual labels, labels of others and predictions become one data set in nnUNet_raw.

Everything is read before anything is written. The data set grows in a hidden folder beside its place and is moved there
when it is whole. Images are linked, label maps copied: whoever predicts again must not change what was trained on.
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
from typing import Any

from rich.console import Console

from nnunet_brats_ext.brats import Head
from nnunet_brats_ext.dataset_conversion.cases import place
from nnunet_brats_ext.dataset_conversion.dataset_folder import check_replaceable, is_finished, publish_folder
from nnunet_brats_ext.dataset_conversion.distillation.examination import examine, region_probabilities
from nnunet_brats_ext.dataset_conversion.distillation.folds import manual_splits, student_splits
from nnunet_brats_ext.dataset_conversion.distillation.provenance import FORMAT, manifest, summarise
from nnunet_brats_ext.dataset_conversion.distillation.selection import Selection, find_twins, select
from nnunet_brats_ext.dataset_conversion.distillation.sources import (
    FOREIGN,
    MANUAL,
    PSEUDO,
    Candidate,
    Dataset,
    Exclusion,
    excluded,
    labelled_cases,
    predicted_cases,
)
from nnunet_brats_ext.dataset_conversion.distillation.targets import SOFT_TARGETS, write_soft_target
from nnunet_brats_ext.dataset_conversion.splits import group_patients, publish_splits
from nnunet_brats_ext.predictions.heads import check_convertible
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import write_json
from nnunet_brats_ext.storage.nnunet import (
    MANIFEST,
    SPLITS,
    check_id_is_free,
    dataset_name,
    find_dataset,
    read_splits,
    require_folder,
)
from nnunet_brats_ext.storage.output import working_folder
from nnunet_brats_ext.storage.parallel import for_each_case


@dataclass(frozen=True)
class Options:
    """What can be asked of a distillation; each is an option of the command.

    pseudo: folders of predictions, each with the folder of the images that were predicted.
    similarity: from where on two cases look alike; different people stay well below it (see `fingerprints`).
    """

    dataset_id: int
    labelled: int
    pseudo: Sequence[tuple[Path, Path]] = ()
    foreign: Sequence[int] = ()
    name: str | None = None
    exclude: Sequence[Path] = ()
    targets: str = "hard"
    min_confidence: float | None = None
    near_duplicates: str = "drop"
    similarity: float = 0.8
    link: str = "auto"
    folds: int = 5
    seed: int = 12345
    overwrite: bool = False
    processes: int | None = None

    @property
    def soft(self) -> bool:
        return self.targets == "soft"


def distill(options: Options, console: Console | None = None) -> Path:
    """Build the data set; gives its folder. The same distillation again is no work.

    Lachinov et al. 2019, https://arxiv.org/abs/2002.03688.
    """
    console = console or Console()
    if not options.pseudo and not options.foreign:
        raise UserError("nothing to distill: name predictions with --pseudo, or a data set with --foreign")
    raw = require_folder("nnUNet_raw")
    labelled = Dataset.open(find_dataset(options.labelled, raw))
    name = dataset_name(options.dataset_id, options.name or f"{labelled.folder.name[11:]}Distilled")
    target = raw / name
    if target == labelled.folder:
        raise UserError(f"{target} is the labelled data set itself; choose another ID with -d")
    check_id_is_free(options.dataset_id, name, raw)
    candidates, exclusion = _gather(options, labelled, raw)
    fingerprint = _fingerprint(candidates, exclusion, options)
    for path, names in exclusion.unknown(candidates.values()).items():
        console.print(f"{path}: {len(names)} names match no case, such as {names[0]!r}", markup=False, soft_wrap=True)
    if not options.overwrite and is_finished(target, fingerprint):
        console.print(f"{target} is this very distillation, finished; nothing to do", markup=False)
    else:
        folders = {folder for case in candidates.values() for folder in (case.source, *(p.parent for p in case.images))}
        check_replaceable(target, options.overwrite, [*sorted(folders), *options.exclude])
        _distill(target, labelled, candidates, exclusion, fingerprint, options, console)
    wanted = len(read_splits(target / SPLITS)) if (target / SPLITS).is_file() else options.folds
    summarise(target, publish_splits(target, wanted, options.overwrite), console)
    return target


def _gather(options: Options, labelled: Dataset, raw: Path) -> tuple[dict[str, Candidate], Exclusion]:
    """All cases by the name they would get, and what must stay out."""
    found = labelled_cases(labelled, MANUAL, labelled)
    for number in options.foreign:
        found += labelled_cases(Dataset.open(find_dataset(number, raw)), FOREIGN, labelled)
    needed = "needed" if options.soft or options.min_confidence is not None else "if complete"
    for predictions, images in options.pseudo:
        found += predicted_cases(predictions, images, labelled, needed)
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


def _distill(
    target: Path,
    labelled: Dataset,
    candidates: Mapping[str, Candidate],
    exclusion: Exclusion,
    fingerprint: str,
    options: Options,
    console: Console,
) -> None:
    everything = {f"{case.source}/{case.case}": case for case in exclusion.images} | dict(candidates)
    regions = _region_head(labelled, options)
    _require_convertible(candidates.values(), regions)
    look = partial(examine, everything, frozenset(labelled.labels), regions)
    examined = for_each_case(look, list(everything), "Reading", options.processes)
    with console.status("Comparing"):
        twins = find_twins(examined, None if options.near_duplicates == "off" else options.similarity)
    selection = select(
        everything, exclusion, examined, twins, options.near_duplicates == "drop", options.min_confidence
    )
    kept = {key: candidates[key] for key in selection.kept}
    manual = {key: case for key, case in candidates.items() if case.kind == MANUAL}
    extra = [key for key in kept if key not in manual]
    if not extra or len(extra) == len(kept):
        reasons = Counter(dropped.reason for dropped in selection.dropped)
        raise UserError(
            f"no case {'with manual labels' if extra else 'to distill'} is left: "
            + ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        )
    patients = _patients(candidates, everything, selection)
    strata = {key: case.described.get("grade") or case.described.get("site") or "" for key, case in manual.items()}
    splits, origin = manual_splits(
        labelled.folder, {key: patients[key] for key in manual}, strata, options.folds, options.seed
    )
    splits = student_splits(splits, kept, extra, patients)
    described = manifest(labelled, kept, patients, examined, selection, origin, fingerprint, _told(options))
    _write(target, labelled, kept, regions if options.soft else None, splits, described, options)


def _write(
    target: Path,
    labelled: Dataset,
    kept: Mapping[str, Candidate],
    soft_regions: Head | None,
    splits: Sequence[Mapping],
    described: Mapping[str, Any],
    options: Options,
) -> None:
    with working_folder(target) as scratch:
        growing = scratch / target.name
        for folder in ("imagesTr", "labelsTr", *([SOFT_TARGETS] if soft_regions else [])):
            (growing / folder).mkdir(parents=True)
        work = partial(_lay, kept, growing, labelled.ending, soft_regions, options.link)
        for_each_case(work, list(kept), "Writing", options.processes)
        write_json(growing / "dataset.json", _dataset_json(labelled, target.name, kept, soft_regions))
        write_json(growing / MANIFEST, described)
        if splits:
            write_json(growing / SPLITS, splits)
        publish_folder(growing, target, options.overwrite, described["fingerprint"])


def _lay(
    kept: Mapping[str, Candidate], folder: Path, ending: str, soft_regions: Head | None, link: str, key: str
) -> None:
    case = kept[key]
    for channel, image in enumerate(case.images):
        place(image, folder / "imagesTr" / f"{key}_{channel:04d}{ending}", link)
    assert case.label is not None, "only excluded cases have none"
    shutil.copyfile(case.label, folder / "labelsTr" / f"{key}{ending}")
    if soft_regions and case.kind == PSEUDO:
        write_soft_target(folder / SOFT_TARGETS / f"{key}.npz", region_probabilities(case, soft_regions))


def _dataset_json(
    labelled: Dataset, name: str, kept: Mapping[str, Candidate], soft_regions: Head | None
) -> dict[str, Any]:
    """That of the labelled data set, of more cases; `brats_soft_targets` tells trainers that there are such."""
    inherited = {
        key: value for key, value in labelled.dataset_json.items() if key not in ("dataset", "numTest", "test")
    }
    soft = {}
    if soft_regions:
        number = sum(case.kind == PSEUDO for case in kept.values())
        soft = {f"brats_{SOFT_TARGETS}": {"regions": list(soft_regions.names), "cases": number}}
    own = {"name": name, "numTraining": len(kept), "brats_distilled_from": labelled.folder.name}
    return {**inherited, **own, **soft}


def _region_head(labelled: Dataset, options: Options) -> Head | None:
    """The data set's regions, in which confidence is measured and soft targets are kept."""
    labels = labelled.dataset_json["labels"]
    description = DatasetDescription(labelled.dataset_json, labelled.folder / "dataset.json")
    if description.nested:
        return description.head()
    if options.soft or options.min_confidence is not None:
        raise UserError(
            f"{labelled.folder.name} has no nested regions ({labels}), which soft targets and confidence need"
        )
    return None


def _require_convertible(cases: Iterable[Candidate], regions: Head | None) -> None:
    for source, head in {case.source: case.head for case in cases if case.head}.items():
        try:
            check_convertible(head, regions or head)
        except ValueError as error:
            raise UserError(f"{source}: {error}") from error


def _patients(
    candidates: Mapping[str, Candidate], everything: Mapping[str, Candidate], selection: Selection
) -> dict[str, str]:
    """Case -> patient, across all sources: cases of one name, and cases that look alike, are one patient."""
    alike = {key: (everything[other].identities for other in twins) for key, twins in selection.same_patient.items()}
    return group_patients({key: case.identities.union(*alike.get(key, ())) for key, case in candidates.items()})


def _told(options: Options) -> dict[str, Any]:
    """The options that decide what is in the data set, for the manifest and to tell one distillation from another."""
    irrelevant = ("overwrite", "processes", "name")
    told = {key: value for key, value in asdict(options).items() if key not in irrelevant}
    return json.loads(json.dumps(told, default=lambda path: str(Path(path).resolve())))


def _fingerprint(candidates: Mapping[str, Candidate], exclusion: Exclusion, options: Options) -> str:
    """Changes with every file (by size and time, for reading them all takes long), every name and every option."""
    files = []
    for key, case in [*candidates.items(), *((case.case, case) for case in exclusion.images)]:
        for path in (*case.images, case.label, case.npz):
            if path is not None:
                status = path.stat()
                files.append([key, str(path.resolve()), status.st_size, status.st_mtime_ns])
    content = json.dumps([FORMAT, _told(options), files, sorted(exclusion.names)])
    return hashlib.sha256(content.encode()).hexdigest()
