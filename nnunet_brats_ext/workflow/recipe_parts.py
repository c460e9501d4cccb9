"""What a recipe consists of: data sets, models, predictions, ensembles, post-processing, evaluation, submission."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from nnunet_brats_ext import papers
from nnunet_brats_ext.papers import Paper
from nnunet_brats_ext.predictions.ensemble import METHODS
from nnunet_brats_ext.predictions.rule_sets import collect_rules, needs_probabilities, parse_rule
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.nnunet import ALL

PLANS = "BraTSPlans"
DEFAULT_FOLDS = 5


@dataclass(frozen=True)
class Data:
    """A data set made of the source; with `distill`, of another one and of what is predicted for unlabelled cases.

    hold_out, validation: as of `nnunet_brats convert`, a share or a number of the labelled cases; with validation there
    is one fold. source: instead of the source, a further folder, which `run --also` gives by this name. With `distill`:
    unlabelled, the data sets whose cases without label are learnt from, by default the one that is extended; foreign,
    those whose labels are taken as they are; exclude, further folders with cases that must not be learnt from.
    """

    name: str
    normalise: str | None = None
    folds: int = DEFAULT_FOLDS
    hold_out: float = 0
    validation: float = 0
    distill: str | None = None
    source: str | None = None
    unlabelled: tuple[str, ...] | None = None
    foreign: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Resources:
    """What a recipe asks for in each training of a model, on all its GPUs; None is the default of `resources`."""

    cpus: int | None = None
    memory_gb: float | None = None
    hours: float | None = None


@dataclass(frozen=True)
class Choice:
    """How many checkpoints of each fold predict, and by what score `choose` takes them; `of` these, or all there are.

    of: `final`, `best`, epochs.
    """

    best: int
    by: str = "dice"
    of: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Model:
    """A training: a trainer on a configuration; `folds`, None is every fold of its data, `all` one on all cases.

    previous_stage: the prediction that it refines, whose model is trained before. filtered: a model of the same data;
    the cases that it could not learn are left out, by `filter-cases`. maps: epochs whose snapshots of the previous
    stage each give a map per case.
    """

    name: str
    trainer: str
    configuration: str
    data: str
    plans: str = PLANS
    folds: tuple[int | str, ...] | None = None
    previous_stage: str | None = None
    filtered: str | None = None
    epochs: int | None = None
    gpus: int = 1
    maps: tuple[int, ...] = ()
    resources: Resources = Resources()

    @property
    def on_all(self) -> bool:
        """Whether it trains on all cases, so that none is left for a cross-validation."""
        return self.folds == (ALL,)


@dataclass(frozen=True)
class ModelPrediction:
    """A trained model and how it predicts. Every model has one of its own name; others share its training.

    folds: whose cases are scored, or which predict cases that are held out; None is those of the model.
    previous_stage: the prediction that it refines; None is that of the model. checkpoints: `final`, `best`, epochs; or
    with `choice`, which a recipe gives in their place, those that are best in each fold. each: every checkpoint, on
    each of the previous stage, is a prediction of its own, and they are scored side by side.
    """

    name: str
    of: str
    folds: tuple[int, ...] | None = None
    previous_stage: str | None = None
    checkpoints: tuple[str | int, ...] = ()
    choice: Choice | None = None
    combine: str | None = None
    ties: str | None = None
    tiling: str | None = None
    tta: str | None = None
    each: bool = False


@dataclass(frozen=True)
class Ensemble:
    """Several predictions as one. best: so many models enter, those that are best in each fold; by: this score."""

    name: str
    of: tuple[str, ...]
    method: str
    weights: tuple[float, ...] = ()
    space: str | None = None
    ties: str | None = None
    best: int | None = None
    by: str = "dice"

    @property
    def averages(self) -> bool:
        """Whether its method works on probabilities, and saves them on request."""
        return "save_probabilities" in METHODS[self.method].takes


@dataclass(frozen=True)
class Postprocessing:
    """Rules on a prediction: published or of a file, given one by one, or tuned on the cross-validation."""

    name: str
    of: str
    rules: tuple[str, ...] = ()
    rule: tuple[str, ...] = ()
    tune: Mapping[str, Any] | None = None

    @property
    def needs_probabilities(self) -> bool:
        """A UserError where rules do not exist or cannot be read."""
        if self.tune is None:
            return collect_rules(self.rules, self.rule).needs_probabilities
        return any(needs_probabilities(parse_rule(step.split(",")[0])) for step in self.tune.get("grid", ()))


@dataclass(frozen=True)
class Recipe:
    """What to train, to predict, to combine and to score. In one that includes others, their names carry a prefix.

    predictions: of models, those of their own names first. submissions: what is restored to the release's labels.
    compared: what stands for the recipe where it is included; empty is what it submits. one_per_region: name -> a
    prediction per region of the preset, scored as one, each by its own region; they are among `evaluated`.
    """

    title: str
    data: Mapping[str, Data]
    models: Mapping[str, Model]
    predictions: Mapping[str, ModelPrediction]
    ensembles: Mapping[str, Ensemble]
    postprocessing: Mapping[str, Postprocessing]
    preset: str
    cohort: str
    evaluated: tuple[str, ...]
    submissions: tuple[str, ...]
    gpu_memory_gb: float | None = None
    paper: str = ""
    compared: str = ""
    one_per_region: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def published(self) -> Paper | None:
        """The paper whose experiment it is, if its rows are known."""
        every = papers.find_papers().values()
        return next((one for one in every if one.results and one.link == self.paper), None)

    @property
    def further_folders(self) -> tuple[str, ...]:
        """The names that `run --also` gives folders to."""
        every = self.data.values()
        sources = [one.source for one in every if one.source]
        return tuple(dict.fromkeys([*sources, *(name for one in every for name in one.exclude)]))

    @property
    def names(self) -> list[str]:
        """Of all that is predicted: by models, by ensembles, by post-processing."""
        return [*self.predictions, *self.ensembles, *self.postprocessing]

    def sources_of(self, name: str) -> tuple[str, ...]:
        """What a prediction or a row of scores is made of; a model's own, of the models that it is trained after."""
        if name in self.models:
            model = self.models[name]
            start = self.start_of(model)
            return tuple(one for one in (model.previous_stage, model.filtered, start and start.name) if one)
        if name in self.predictions:
            one = self.predictions[name]
            return tuple(source for source in (one.of, one.previous_stage) if source)
        if name in self.ensembles:
            return self.ensembles[name].of
        if name in self.one_per_region:
            return self.one_per_region[name]
        return (self.postprocessing[name].of,)

    def model_of(self, prediction: ModelPrediction) -> Model:
        return self.models[prediction.of]

    def refined_by(self, one: Model | ModelPrediction) -> ModelPrediction | None:
        """The prediction of the previous stage that a model, or a prediction by it, refines."""
        name = one.previous_stage
        if name is None and isinstance(one, ModelPrediction):
            name = self.models[one.of].previous_stage
        return self.predictions[name] if name else None

    def stages_after(self, model: Model) -> list[Model]:
        """The models that refine what a model predicts."""
        return [one for one in self.models.values() if (before := self.refined_by(one)) and before.of == model.name]

    def epochs_of(self, model: Model) -> set[int]:
        """The epochs of a model whose snapshots something names."""
        every: list[tuple[str | int, ...]] = [one.maps for one in self.stages_after(model)]
        for one in self.predictions.values():
            if one.of == model.name:
                every += [one.checkpoints, one.choice.of if one.choice else ()]
        return {epoch for epochs in every for epoch in epochs if isinstance(epoch, int)}

    def choices_of(self, model: Model) -> list[tuple[ModelPrediction, Choice]]:
        """The predictions by a model that take what `choose` has chosen, with how much of it."""
        return [(one, one.choice) for one in self.predictions.values() if one.of == model.name and one.choice]

    def paper_configuration(self, model: Model) -> str | None:
        """What a model trains on, if `nnunet_brats plan` fits it to a GPU's memory; the whole, of filtered cases."""
        whole = self.models.get(model.filtered or "", model)
        return whole.configuration if model.plans == PLANS and whole.configuration in papers.configurations() else None

    def start_of(self, model: Model) -> Model | None:
        """The model whose weights a model starts from, fold by fold, if its trainer starts from those of another."""
        trainer = _starts_from(model.trainer, os.environ.get(papers.EXTERNAL, ""))
        wanted = (trainer, model.data, model.plans, model.configuration)
        models = self.models.values()
        return next((one for one in models if (one.trainer, one.data, one.plans, one.configuration) == wanted), None)

    def leaves_of(self, name: str) -> tuple[ModelPrediction, ...]:
        """The predictions by models that end up in a prediction."""
        if name in self.predictions:
            return (self.predictions[name],)
        return tuple(leaf for source in self.sources_of(name) for leaf in self.leaves_of(source))

    def models_of(self, name: str) -> tuple[Model, ...]:
        """The models whose probabilities end up in a prediction."""
        return tuple(self.models[leaf.of] for leaf in self.leaves_of(name))

    def has_probabilities(self, name: str) -> bool:
        """Whether a prediction can have more than label maps."""
        if name in self.predictions:
            return self.predictions[name].combine != "vote"
        return name in self.ensembles and self.ensembles[name].averages


@lru_cache(maxsize=64)
def _starts_from(trainer: str, external: str) -> str | None:
    """The trainer that one starts from; `external` is where it was searched for, which takes seconds."""
    try:
        return papers.find_trainer(trainer).starts_from
    except UserError:  # which checking the recipe reports
        return None


def base_data(recipe: Recipe, model: Model) -> Data:
    """The data set that a model trains on; of a distilled one, that whose labels it takes over."""
    data = recipe.data[model.data]
    return base_data(recipe, recipe.models_of(data.distill)[0]) if data.distill else data
