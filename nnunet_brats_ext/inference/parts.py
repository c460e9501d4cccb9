"""The parts of a prediction, such as the folds of a cross-validation, and the steps of work that they come to."""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_brats_ext import papers
from nnunet_brats_ext.inference.case_files import CaseFiles, check_images, find_image_files, missing_sequences
from nnunet_brats_ext.inference.cases import ImageCases
from nnunet_brats_ext.inference.models import Fold, TrainedModel
from nnunet_brats_ext.inference.networks import Networks
from nnunet_brats_ext.inference.options import InferenceOptions
from nnunet_brats_ext.inference.outputs import MEMBERS, PREVIOUS_STAGE, PredictionTarget
from nnunet_brats_ext.inference.systems import Member, System
from nnunet_brats_ext.inference.work import PredictionStep
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import Notice, UserError, shorten
from nnunet_brats_ext.storage.nnunet import SPLITS, find_splits
from nnunet_brats_ext.training.sequence_dropout import SequenceDropout


@dataclass(frozen=True)
class Part:
    """Cases and the system that predicts them. fold: of a cross-validation, whose cases they are."""

    files: CaseFiles
    system: System
    fold: int | None = None

    @property
    def description(self) -> str:
        return "Predict" if self.fold is None else f"Fold {self.fold}: Predict"


def files_asked_for(options: InferenceOptions, images: Path, description: DatasetDescription) -> CaseFiles:
    """The images of a folder, or what is left of them with `--sequences`."""
    return find_image_files(images, description, options.missing, options.sequences)


def files_by_fold(
    options: InferenceOptions, model: TrainedModel, folds: Sequence[Fold], images: Path
) -> Iterator[tuple[int, CaseFiles]]:
    """For each of these folds the images of the cases that a model of it was validated on."""
    found = find_splits(model.dataset, images.parent)
    if found is None:
        raise UserError(f"{SPLITS} of {model.dataset} is missing; nnUNetv2_train or `nnunet_brats convert` makes it")
    place, splits = found
    files = files_asked_for(options, images, model.description)
    for fold in folds:
        if not isinstance(fold, int) or fold >= len(splits):
            raise UserError(f"-f {fold}: only folds 0 to {len(splits) - 1} of {place} have cases of their own")
        own = splits[fold]["val"]
        if missing := [case for case in own if case not in files]:
            raise UserError(f"{images} lacks the images of {shorten(missing)}, which are in fold {fold} of {place}")
        yield fold, {case: files[case] for case in own}


def parts_of_fold(fold: int, files: CaseFiles, system: Callable[[tuple[int, str]], System]) -> list[Part]:
    """The cases of a fold by the system of each: one for all, unless checkpoints were chosen by other cases of it.

    system: of a fold and one of its cases.
    """
    systems: dict[System, dict[str, Mapping[int, Path]]] = {}
    for case in files:
        systems.setdefault(system((fold, case)), {})[case] = files[case]
    return [Part(cases, one, fold) for one, cases in systems.items()]


def missing_in(parts: Sequence[Part]) -> dict[str, Any]:
    """What cases lack, as the notes beside predictions have it; empty where none lacks anything."""
    description = parts[0].system.members[0].model.description
    lacking = [missing_sequences(part.files, description) for part in parts]
    found = {case: names for one in lacking for case, names in one.items()}
    return {"missing": found} if found else {}


def _warn_of_missing(parts: Sequence[Part]) -> None:
    """A Notice where cases lack sequences, and trainers have never taken any away."""
    if not missing_in(parts):
        return
    names = dict.fromkeys(member.model.names[0] for part in parts for member in part.system.members)
    untrained = [name for name in names if not issubclass(papers.find_trainer_class(name), SequenceDropout)]
    if untrained:
        warnings.warn(
            f"{', '.join(untrained)} was not trained without sequences, and may be far off for cases that lack some. "
            "BraTSBaselineSequenceDropoutTrainer was, and any trainer with the mixin SequenceDropout",
            Notice,
            stacklevel=2,
        )


def plan_steps(
    parts: Sequence[Part],
    missing: Collection[str],
    target: PredictionTarget,
    networks: Networks,
    kept_in: Path | None = None,
) -> list[PredictionStep]:
    """Predict those cases of the parts that are missing in a folder; models are loaded and images examined here.

    networks: where models are loaded that are not there yet. kept_in: the output folder, if what members predict is to
    stay there.
    """
    left = [replace(part, files={case: part.files[case] for case in part.files if case in missing}) for part in parts]
    left = [part for part in left if part.files]
    if not left:
        return []
    networks.load([part.system for part in left])
    folders = [folder for part in left for folder in part.system.folders]
    files = {case: part.files[case] for part in left for case in part.files}
    model = left[0].system.members[0].model
    _warn_of_missing(left)
    check_images(files, model, list(dict.fromkeys(folders)), networks.machine.processes or 1)
    return [
        PredictionStep(
            part.description,
            ImageCases(part.files),
            {part.system: target},
            networks,
            target.out,
            {} if kept_in is None else dict(_kept(part, target, kept_in)),
        )
        for part in left
    ]


def _kept(part: Part, target: PredictionTarget, out: Path) -> Iterator[tuple[Member, PredictionTarget]]:
    """Where members and the label maps that they refine are kept."""
    system = part.system
    for source in system.sources:
        name = source.model.label if len(system.sources) > 1 else source.model.names[2]
        yield source, PredictionTarget(out / PREVIOUS_STAGE / name, target.ending)
    if len(system.members) == 1:
        return
    place = out / MEMBERS / ("" if part.fold is None else f"fold_{part.fold}")
    several_models = len({member.model.folder for member in system.members}) > 1
    for number, member in enumerate(system.members):  # numbered, because sources in two places may share a name
        name = member.model.folder.name if several_models else f"{number:02d}__{member.name}"
        yield member, PredictionTarget(place / name, target.ending, probabilities=True, half=target.half)
