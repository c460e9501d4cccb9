"""A prediction as a plan of work, made in full before anything is written, and the one loop that does it.

A plan is a list of steps: one model over some cases, or several folders of predictions into one. Cascades, votes,
pools, cross-validation and the maps for a next stage differ in their plans alone.
"""

import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from nnunet_brats_ext.inference.cases import CaseSource
from nnunet_brats_ext.inference.choices import FROM_TRAINER, NONE
from nnunet_brats_ext.inference.models import TrainedModel
from nnunet_brats_ext.inference.options import PredictOptions
from nnunet_brats_ext.inference.outputs import PredictionTarget, RunSettings, Target, locked
from nnunet_brats_ext.inference.predictor import BraTSPredictor, find_device
from nnunet_brats_ext.inference.profiling import Profile
from nnunet_brats_ext.inference.validations import Choice
from nnunet_brats_ext.inference.workers import workers
from nnunet_brats_ext.predictions.ensemble import ensemble
from nnunet_brats_ext.predictions.postprocess import Changes, apply_rules
from nnunet_brats_ext.predictions.rule_sets import RuleSet
from nnunet_brats_ext.storage.parallel import progress_bar
from nnunet_brats_ext.training.seams import fastest_memory_format


@dataclass(frozen=True)
class Passes:
    """How a model sees a case, which decides the result; fields as in `PredictOptions`."""

    tiling: str = FROM_TRAINER
    symmetries: str = FROM_TRAINER
    combine: str = "logits"
    step_size: float = 0.5
    patch_size: tuple[int, ...] = ()

    @classmethod
    def from_options(cls, options: PredictOptions) -> "Passes":
        symmetries = NONE if options.disable_tta else options.symmetries
        return cls(options.tiling, symmetries, options.combine, options.step_size, options.patch_size)

    def predictor(self, machine: "Machine") -> BraTSPredictor:
        return BraTSPredictor(
            self.tiling,
            self.symmetries,
            "probabilities" if self.combine == "probabilities" else "logits",
            self.patch_size,
            machine.low_memory_mb,
            torch.device(machine.device),
            tile_step_size=self.step_size,
            perform_everything_on_device=machine.device != "cpu" and machine.low_memory_mb is None,
        )

    @property
    def of_previous_stage(self) -> "Passes":
        """Those of the stage before: what its own trainer names, not what is asked for the last one."""
        return replace(self, tiling=FROM_TRAINER, symmetries=FROM_TRAINER, patch_size=())

    @property
    def settings(self) -> dict[str, Any]:
        """The same under the names that predict.json has had from the first version on."""
        return {
            "tiling": self.tiling,
            "test_time_augmentation": self.symmetries,
            "combine": self.combine,
            "tile_step_size": self.step_size,
            "patch_size": self.patch_size or None,
        }


@dataclass(frozen=True)
class Machine:
    """What a prediction runs on, which does not change its result.

    low_memory_mb: results stay off the device, one set of weights is in memory while it predicts, and for a 2-D
    network as many slices as fit, of a volume that lies in a file in the output folder. profile: measure time and
    memory of every step; all of them are then done in this process. processes: that preprocess, and as many that write;
    0 is this one.
    """

    device: str
    low_memory_mb: float | None = None
    profile: bool = False
    processes: int = 3

    @classmethod
    def from_options(cls, options: PredictOptions) -> "Machine":
        device = find_device(options.device).type
        return cls(device, options.low_memory_mb, options.profile, options.processes)

    @property
    def workers(self) -> int:
        return 0 if self.profile else min(self.processes, 1) if self.low_memory_mb else self.processes


@dataclass
class Outcome:
    """What came of a plan.

    label_maps: case -> file. maps: folders of maps for a next stage. finished_before: cases that were there already.
    notes: sentences that the user should read. profiles: what was measured of each model, by a title. changes: what
    post-processing changed.
    """

    out: Path | None = None
    label_maps: dict[str, Path] = field(default_factory=dict)
    maps: list[Path] = field(default_factory=list)
    finished_before: int = 0
    notes: list[str] = field(default_factory=list)
    profiles: list[tuple[str, Profile]] = field(default_factory=list)
    changes: Changes | None = None


def check_models(models: Iterable[tuple[TrainedModel, Passes]]) -> None:
    """A UserError that names the checkpoints which cannot be used, and options that do not fit their models."""
    for model, passes in models:
        passes.predictor(Machine("cpu")).load(model.folder, model.folds, model.checkpoints)


class Step(Protocol):
    """A part of a plan. What an interrupted run has finished of it is not done again."""

    def run(self, machine: Machine, settings: RunSettings | None, outcome: Outcome) -> None: ...


@dataclass(frozen=True)
class PredictionStep:
    """Predict those of the cases that the target lacks, by the average over the folds and checkpoints of one model.

    as_in_training: with the network's memory laid out as in training, so that maps are those of the trainer's own
    validation, bit for bit.
    """

    description: str
    model: TrainedModel
    cases: CaseSource
    target: Target
    passes: Passes
    as_in_training: bool = False

    def run(self, machine: Machine, settings: RunSettings | None, outcome: Outcome) -> None:
        names = list(self.cases.names)
        outcome.notes += self.target.prepare(self.model, names)
        left = self.target.unfinished(names)
        if not left:
            return
        if len(left) < len(names):
            before = f"{len(names) - len(left)} of {len(names)}"
            outcome.notes.append(f"{self.description}: {before} cases were there already")
        predictor = self.passes.predictor(machine)
        profile = Profile(predictor.device, predictor.meter)
        with profile.step("load"):
            predictor.load(self.model.folder, self.model.folds, self.model.checkpoints)
            if self.as_in_training:
                spatial_axes = len(predictor.patch_size)
                predictor.network.to(memory_format=fastest_memory_format(predictor.device, spatial_axes))
        profile.finish_load()
        model = (predictor.configuration_manager, predictor.plans_manager, predictor.dataset_json)
        count = min(machine.workers, len(left))
        with (
            workers(count) as ahead,
            workers(count) as behind,
            progress_bar(self.description, len(left)) as advance,
        ):
            cases = iter(self.cases.read(predictor, left, ahead))
            for _ in left:
                with profile.step("preprocess"):
                    name, data, properties = next(cases)
                    data = predictor.stored(data, self.target.out)
                with profile.step("predict"):
                    logits = predictor.predict_average(data, properties).numpy()
                if settings:
                    settings.note()
                    settings = None
                with profile.step("write"):
                    behind.run(self.target.write, logits, properties, model, name)
                del logits  # which the next case would have beside its own
                profile.finish_case(name)
                advance()
        title = f"{self.description}: {self.model.folder.name}, {self.model.label}"
        outcome.profiles.append((title, profile))
        if machine.profile:
            profile.write(self.target.out / "profile.json", f"{self.model.folder.name}, {self.model.label}")


@dataclass(frozen=True)
class EnsembleStep:
    """Several folders of predictions of the same cases into one.

    model: one of those that made them. through: where the target holds other cases as well, a folder for these alone,
    from which they are moved there.
    """

    method: str
    folders: Sequence[Path]
    target: PredictionTarget
    model: TrainedModel
    weights: Sequence[float] | None = None
    through: Path | None = None

    def run(self, machine: Machine, settings: RunSettings | None, outcome: Outcome) -> None:
        # What an interrupted run has left is replaced; that it is none of other settings, `RunSettings` has checked.
        options: dict[str, Any] = {"weights": self.weights, "overwrite": True, "processes": machine.processes or 1}
        if self.target.probabilities:
            options["save_probabilities"] = True
        if settings:
            settings.note()
        ensemble(self.folders, self.through or self.target.out, method=self.method, **options)
        if self.through:
            self.target.prepare(self.model, [])
            for path in self.through.iterdir():
                if path.suffix != ".json":
                    path.replace(self.target.out / path.name)


@dataclass(frozen=True)
class RulesStep:
    """Post-processing of a folder of label maps into another."""

    source: Path
    out: Path
    rules: RuleSet
    images: Path

    def run(self, machine: Machine, settings: RunSettings | None, outcome: Outcome) -> None:
        outcome.changes = apply_rules(
            self.source, self.out, self.rules, self.images, overwrite=True, processes=machine.processes or 1
        )


@dataclass(frozen=True)
class WorkPlan:
    """All that is to be done for one prediction.

    folders: that this run alone may write into. outcome: what is known of its outcome beforehand. scratch: folders that
    are removed once all steps are done. choice: of a pool.
    """

    steps: Sequence[Step]
    machine: Machine
    outcome: Outcome
    folders: Sequence[Path]
    settings: RunSettings | None = None
    scratch: Sequence[Path] = ()
    choice: Choice | None = None

    def run(self) -> Outcome:
        """Do all steps in order. An interrupted run goes on when the same plan is made and run again."""
        if not self.steps:
            return self.outcome
        with ExitStack() as stack:
            for folder in self.folders:
                stack.enter_context(locked(folder))
            if self.settings:
                self.settings.check()  # again, now that no other run writes
                self.settings.clear()
            for step in self.steps:
                step.run(self.machine, self.settings, self.outcome)
            for folder in self.scratch:
                shutil.rmtree(folder, ignore_errors=True)
        return self.outcome
