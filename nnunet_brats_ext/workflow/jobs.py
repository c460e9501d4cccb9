"""What all jobs of a recipe are made from: names and places of data, models and predictions. Free of files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_brats_ext import papers
from nnunet_brats_ext.dataset_conversion.splits import number_of_folds
from nnunet_brats_ext.papers import TrainerFacts
from nnunet_brats_ext.storage.nnunet import ALL, dataset_name, model_name
from nnunet_brats_ext.workflow.recipe_parts import Data, Model, ModelPrediction, Recipe
from nnunet_brats_ext.workflow.resources import KINDS, SMOKE, Needs
from nnunet_brats_ext.workflow.state import Job

CROSS_VALIDATION, TEST = "cv", "test"  # predictions of each fold's own cases; of the cases without label
# `test-NAME`: of the cases without label of another data set
BASE_PLANS = "nnUNetPlans"  # from which `nnunet_brats plan` makes PLANS
SMOKE_EPOCHS, SMOKE_ITERATIONS, SMOKE_FOLDS, SMOKE_CASES, SMOKE_UNLABELLED = 2, 1, 2, 4, 2


@dataclass(frozen=True)
class Setting:
    """Where and how a recipe runs. Paths in the folder of the run are relative to it: jobs run in it, and it may move.

    source: the release; None makes phantoms. release: its name, for names of data sets. gpus: the most that one
    training gets; 0 on a CPU. cpus: cores that a job may have with each of its GPUs. patients: with labels, in the
    source; None for as many as there may be. datasets, splits: names and numbers of folds that data sets have already,
    by ID. also: further folders, by the names that the recipe has for them.
    """

    raw: Path
    preprocessed: Path
    results: Path
    dataset_id: int
    release: str
    unlabelled: bool
    source: Path | None = None
    smoke: bool = False
    device: str = "cuda"
    gpus: int = 1
    cpus: int = 8
    folds: tuple[int, ...] | None = None
    gpu_memory_gb: float | None = None
    patients: int | None = None
    datasets: Mapping[int, str] = field(default_factory=dict)
    splits: Mapping[int, int] = field(default_factory=dict)
    also: Mapping[str, Path] = field(default_factory=dict)
    folder: Path = Path()  # the folder of the run, from where jobs see it


def with_probabilities(recipe: Recipe) -> Iterator[str]:
    """The predictions of which something needs more than label maps."""
    for ensemble in recipe.ensembles.values():
        if ensemble.averages:
            yield from ensemble.of
    yield from (rules.of for rules in recipe.postprocessing.values() if rules.needs_probabilities)


class Jobs:
    """The jobs of a recipe so far, and what there is to say about each: its needs, its folders, its options."""

    def __init__(self, recipe: Recipe, setting: Setting):
        self.recipe, self.setting = recipe, setting
        self.jobs: dict[str, Job] = {}
        self.ids = {name: setting.dataset_id + i for i, name in enumerate(recipe.data)}
        self.averaged = set(with_probabilities(recipe))
        self.facts: dict[str, TrainerFacts] = {}

    def add(
        self, name: str, command: Sequence[object], result: Path, after: Sequence[str] = (), needs: Needs | None = None,
        environment: dict[str, str] | None = None, facts: dict[str, object] | None = None,
    ) -> str:  # fmt: skip
        words = tuple(map(str, command))
        self.jobs[name] = Job(
            name, words, result, tuple(dict.fromkeys(after)), needs or self.needs(name.split("/")[0]),
            environment or {}, facts or {},
        )  # fmt: skip
        return name

    def needs(self, kind: str) -> Needs:
        wanted = SMOKE if self.setting.smoke else KINDS[kind]
        gpus = KINDS[kind].gpus if self.setting.device == "cuda" else 0
        return Needs(min(wanted.cpus, self.setting.cpus), wanted.memory_gb, wanted.hours, gpus)

    # ---- data and models --------------------------------------------------------------------------------------------

    def dataset(self, data: str) -> str:
        number = self.ids[data]
        suffix = "" if data == next(iter(self.ids)) else f"_{data}"
        return self.setting.datasets.get(number) or dataset_name(number, self.setting.release + suffix)

    def data_of(self, prediction: str) -> Data:
        """The data set that a prediction's first model was trained on."""
        return self.recipe.data[self.recipe.models_of(prediction)[0].data]

    def base_of(self, data: Data) -> Data:
        """The data set whose labels and unlabelled images a distilled one takes over."""
        return self.data_of(data.distill) if data.distill else data

    def shown(self, data: Data, branch: str) -> Data:
        """The data set whose images a branch predicts by models of `data`: its own, or that which the branch names."""
        _, _, other = branch.partition("-")
        return self.recipe.data[other] if other else self.base_of(data)

    def images(self, data: Data, branch: str) -> Path:
        place = self.setting.raw / self.dataset(self.shown(data, branch).name)
        return place / ("imagesTr" if branch == CROSS_VALIDATION else "imagesTs")

    def labels(self, data: Data, branch: str) -> Path:
        place = self.setting.raw / self.dataset(self.base_of(data).name)
        return place / ("labelsTr" if branch == CROSS_VALIDATION else "labelsTs")

    @property
    def scored_data(self) -> Data:
        """The data set whose label maps everything is scored by."""
        return self.base_of(self.data_of(self.recipe.evaluated[0]))

    @property
    def scored_branch(self) -> str:
        """The predictions that are scored: of the cases that are held out, where the data hold out some."""
        return TEST if self.scored_data.hold_out else CROSS_VALIDATION

    def folds(self, model: Model) -> tuple[int | str, ...]:
        """Those that are trained; of a model that another one refines, all: they hold every case between them."""
        if model.on_all:
            return (ALL,)
        if self.recipe.stages_after(model):
            return self.every_fold(model)
        return self._of(self.setting.folds or model.folds, self.every_fold(model))

    def scored_folds(self, one: ModelPrediction) -> tuple[int | str, ...]:
        """Those that were asked for; a short run has fewer than the recipe may name."""
        model = self.recipe.model_of(one)
        if model.on_all:
            return (ALL,)
        return self._of(self.setting.folds or one.folds or model.folds, self.every_fold(model))

    def predicting_folds(self, one: ModelPrediction) -> tuple[int | str, ...]:
        """Those that predict cases which none was trained on."""
        return self._of(one.folds, self.folds(self.recipe.model_of(one)))

    @staticmethod
    def _of(asked: Sequence[int | str] | None, there: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(fold for fold in asked or there if fold in there) or there

    def every_fold(self, model: Model) -> tuple[int, ...]:
        """Those that the data set has, or that its conversion will make."""
        data, setting = self.base_of(self.recipe.data[model.data]), self.setting
        wanted = min(SMOKE_FOLDS, data.folds) if setting.smoke else data.folds
        first = next(iter(self.recipe.data.values()))
        followed = first if data.folds == first.folds else data
        if found := setting.splits.get(self.ids[followed.name]):
            return tuple(range(min(wanted, found)))
        return tuple(range(wanted if setting.patients is None else number_of_folds(wanted, setting.patients)))

    def gpus(self, model: Model) -> int:
        return min(model.gpus, self.setting.gpus) if self.setting.device == "cuda" else 0

    def model_folder(self, model: Model) -> Path:
        name = model_name(model.trainer, model.plans, model.configuration)
        return self.setting.results / self.dataset(model.data) / name

    def trainer(self, model: Model) -> TrainerFacts:
        """What is known of a model's trainer; nnU-Net searches for one that no paper has, which takes its time."""
        if model.trainer not in self.facts:
            self.facts[model.trainer] = papers.find_trainer(model.trainer)
        return self.facts[model.trainer]

    def checkpoints(self, names: Sequence[str | int]) -> list[str]:
        """File names; a number is the snapshot after that epoch."""
        named = (f"epoch_{name}" if isinstance(name, int) else name for name in self.kept(names))
        return [f"checkpoint_{name}.pth" for name in named]

    def kept(self, names: Sequence[str | int]) -> list[str | int]:
        """What stands for these checkpoints in a short run, which has few epochs to name."""
        if not self.setting.smoke:
            return list(names)
        numbers = [name for name in names if isinstance(name, int)]
        short = {name: name if name <= SMOKE_EPOCHS else 1 + i % SMOKE_EPOCHS for i, name in enumerate(numbers)}
        return list(dict.fromkeys(short[name] if isinstance(name, int) else name for name in names))

    def model_words(self, model: Model, folds: Sequence[int | str]) -> list[object]:
        """How `predict` names a model and some of its folds."""
        words = ["-d", self.ids[model.data], "-tr", model.trainer, "-c", model.configuration, "-p", model.plans]
        return [*words, "-f", *folds, "-device", self.setting.device]

    def workers(self, kind: str) -> int:
        return 0 if self.setting.smoke else max(self.needs(kind).cpus // 2, 1)

    def folder(self, prediction: str, branch: str) -> Path:
        return self.setting.folder / "predictions" / branch / prediction
