"""A bundled system at work: a case goes through its predictions in order, by the functions of the commands."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from nnunet_brats_ext import __version__, papers
from nnunet_brats_ext.bundles.archive import Bundle
from nnunet_brats_ext.bundles.contents import (
    BundledSystem,
    EnsemblePrediction,
    NetworkPrediction,
    Networks,
    RulesPrediction,
)
from nnunet_brats_ext.inference.case_files import CaseFiles
from nnunet_brats_ext.inference.models import TrainedModel
from nnunet_brats_ext.inference.networks import Machine
from nnunet_brats_ext.inference.networks import Networks as LoadedNetworks
from nnunet_brats_ext.inference.outputs import PredictionTarget
from nnunet_brats_ext.inference.parts import Part, plan_steps
from nnunet_brats_ext.inference.systems import Passes, System, pooled, system_of
from nnunet_brats_ext.inference.work import Outcome
from nnunet_brats_ext.predictions.ensemble import ensemble
from nnunet_brats_ext.predictions.postprocess import apply_rules
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import raise_problems


@dataclass(frozen=True)
class SystemOutput:
    """What a system made of a case. label_map: as trained, on the grid of the images. probabilities: where kept."""

    label_map: Path
    probabilities: Path | None
    network_seconds: float


@dataclass(frozen=True)
class SystemAtWork:
    """A system whose weights are in a bundle, and the machine that it runs on.

    precision: of its networks, instead of what the bundle says; `default` is that.
    """

    bundle: Bundle
    machine: Machine
    precision: str = "default"

    @cached_property
    def loaded(self) -> LoadedNetworks:
        """The networks that are in memory, once each."""
        return LoadedNetworks(self.machine)

    @property
    def description(self) -> DatasetDescription:
        """The data set of the first model: what a case consists of."""
        first = next(iter(self.bundle.system.models))
        return DatasetDescription.read(self.bundle.model_folder(first))

    def predict(self, files: CaseFiles, images: Path, work: Path, system: BundledSystem | None = None) -> SystemOutput:
        """Predict one case into folders below `work`, one for each prediction.

        files: of the case, by channel. images: the folder of the same files as nnU-Net names them, for rules. system:
        another one of the same models, such as one of `smaller_systems`.
        """
        system = system or self.bundle.system
        (case,) = files
        outcome = Outcome()
        for name, one in system.predictions.items():
            out = work / name
            if isinstance(one, NetworkPrediction):
                target = PredictionTarget(out, self.description.ending, one.probabilities)
                for step in plan_steps([Part(files, self.system_of(one))], [case], target, self.loaded):
                    step.run(self.machine, None, outcome)
            elif isinstance(one, EnsemblePrediction):
                options: dict[str, Any] = dict(one.options, method=one.method, save_probabilities=one.probabilities)
                ensemble([work / source for source in one.of], out, processes=1, **options)
            else:
                assert isinstance(one, RulesPrediction)
                apply_rules(work / one.of, out, one.rule_set, images, processes=1)
        kept = system.probabilities_of
        npz = work / kept / f"{case}.npz" if kept else None
        label_map = work / system.result / f"{case}{self.description.ending}"
        seconds = sum(profile.cases[case]["predict"][0] for _, profile in outcome.profiles)
        return SystemOutput(label_map, npz if npz and npz.is_file() else None, seconds)

    def system_of(self, one: NetworkPrediction) -> System:
        """The members of a prediction, as `predict` makes them of its options."""
        passes = passes_of(one.passes)
        if self.precision != "default":
            passes = replace(passes, precision=self.precision)
        if len(one.networks) == 1:
            (networks,), (previous,) = one.networks, one.previous
            return system_of(self._model(networks), self._model(previous) if previous else None, passes)
        pairs = zip(one.networks, one.previous, strict=True)
        return pooled(
            [
                (self._model(networks), self._model(previous) if previous else None, networks.weight)
                for networks, previous in pairs
            ],
            passes,
        )

    def _model(self, networks: Networks) -> TrainedModel:
        model = TrainedModel(self.bundle.model_folder(networks.model), networks.weights)
        model.check()
        return model

    def passes_per_case(self, system: BundledSystem) -> int:
        """How many times networks see a case."""
        found = [self.system_of(one) for one in system.predictions.values() if isinstance(one, NetworkPrediction)]
        return sum(member.passes_per_case for one in found for member in (*one.sources, *one.members))


def require_trainers(system: BundledSystem) -> None:
    """A UserError that names each trainer which nnU-Net does not find here, and the package that has it."""
    problems = []
    for model in system.models.values():
        package, version = model.package
        try:
            papers.find_trainer_class(model.trainer)
        except RuntimeError:  # which is what it raises
            problems.append(f"{model.trainer} of {package} {version}".rstrip())
    here = f"here are {PACKAGE} {__version__} and nnU-Net {metadata.version('nnunetv2')}"
    raise_problems(f"this system needs trainers that are not there; {here}", problems)


PACKAGE = "nnunet-brats-ext"


def passes_of(content: Mapping[str, Any]) -> Passes:
    """How networks see a case, as bundle.json has it."""
    given = dict(content)
    if "patch_size" in given:
        given["patch_size"] = tuple(given["patch_size"])
    return Passes(**given)
