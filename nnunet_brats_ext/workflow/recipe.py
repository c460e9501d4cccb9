"""Recipes as data: what a YAML file asks to train, to combine and to score, with every name in it checked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from nnunet_brats_ext import papers
from nnunet_brats_ext.evaluation.presets import find_preset
from nnunet_brats_ext.predictions.ensemble import METHODS
from nnunet_brats_ext.predictions.rule_sets import collect_rules, needs_probabilities, parse_rule
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.workflow.recipe_text import HERE, KeyPath, RecipeText

COMPARE = HERE / "compare.yaml"
PLANS = "BraTSPlans"
NNUNETS_OWN = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")  # configurations, which PLANS take over
AVERAGING = ("mean", "nested")  # the methods that work on probabilities
MEMBERS = {"two-pass": 2, "nested": 3}


@dataclass(frozen=True)
class Data:
    """A data set made of the source; with `distill`, of another one and of what is predicted for unlabelled cases."""

    name: str
    normalise: str | None = None
    folds: int = 5
    distill: str | None = None


@dataclass(frozen=True)
class Resources:
    """What a recipe asks for in each training of a model, on all its GPUs; None is the default of `resources`."""

    cpus: int | None = None
    memory_gb: float | None = None
    hours: float | None = None


@dataclass(frozen=True)
class Model:
    """A trainer on a configuration; `folds`, whose cases are scored, None is every fold of its data.

    filtered: a model of the same data; the cases that it could not learn are left out, by `filter-cases`.
    maps: epochs whose snapshots of the previous stage each give a map per case. checkpoints: `final`, `best`, epochs.
    """

    name: str
    trainer: str
    configuration: str
    data: str
    plans: str = PLANS
    folds: tuple[int, ...] | None = None
    previous_stage: str | None = None
    filtered: str | None = None
    epochs: int | None = None
    gpus: int = 1
    maps: tuple[int, ...] = ()
    checkpoints: tuple[str | int, ...] = ()
    combine: str | None = None
    tiling: str | None = None
    tta: str | None = None
    resources: Resources = Resources()


@dataclass(frozen=True)
class Ensemble:
    """Several predictions as one. best: a pool of models, of which each fold's `best` by validation enter."""

    name: str
    of: tuple[str, ...]
    method: str
    weights: tuple[float, ...] = ()
    space: str | None = None
    best: int | None = None


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
        """A ValueError tells of rules that are not there, or are none."""
        if self.tune is None:
            return collect_rules(self.rules, self.rule).needs_probabilities
        return any(needs_probabilities(parse_rule(step.split(",")[0])) for step in self.tune.get("grid", ()))


@dataclass(frozen=True)
class Recipe:
    """What to train, to combine and to score. In a recipe that includes others, their names carry a prefix."""

    title: str
    data: Mapping[str, Data]
    models: Mapping[str, Model]
    ensembles: Mapping[str, Ensemble]
    postprocessing: Mapping[str, Postprocessing]
    preset: str
    cohort: str
    evaluated: tuple[str, ...]
    submissions: tuple[str, ...]
    gpu_memory_gb: float | None = None
    paper: str = ""

    def sources_of(self, prediction: str) -> tuple[str, ...]:
        """The predictions that a prediction is made of; none for a model of its own."""
        if prediction in self.models:
            model = self.models[prediction]
            return tuple(name for name in (model.previous_stage, model.filtered) if name)
        if prediction in self.ensembles:
            return self.ensembles[prediction].of
        return (self.postprocessing[prediction].of,)

    def paper_configuration(self, model: Model) -> str | None:
        """What a model trains on, if `nnunet_brats plan` fits it to a GPU's memory; the whole, of filtered cases."""
        whole = self.models.get(model.filtered or "", model)
        return whole.configuration if model.plans == PLANS and whole.configuration in papers.configurations() else None

    def models_of(self, prediction: str) -> tuple[Model, ...]:
        """The models whose probabilities end up in a prediction."""
        if prediction in self.models:
            return (self.models[prediction],)
        return tuple(model for source in self.sources_of(prediction) for model in self.models_of(source))

    def has_probabilities(self, prediction: str) -> bool:
        """Whether a prediction can have more than label maps."""
        if prediction in self.models:
            return self.models[prediction].combine != "vote"
        return prediction in self.ensembles and self.ensembles[prediction].method in AVERAGING


# ---- reading ------------------------------------------------------------------------------------------------------


def published_recipes() -> dict[str, Path]:
    """Name -> file: one per paper, and `compare`."""
    own = {key: paper.recipe for key, paper in papers.find_papers().items() if paper.recipe}
    return {**own, COMPARE.stem: COMPARE}


def find_recipe(name_or_path: str) -> Path:
    """The file of a published recipe or of the user's own."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise UserError(f"there is no recipe {path}")
    if published := published_recipes().get(name_or_path):
        return published
    raise UserError(f"no recipe {name_or_path!r}; there are {', '.join(published_recipes())}, or give a YAML file")


def load_recipe(path: Path) -> Recipe:
    """A recipe, checked: its form against the schema, that every name stands for something, that jobs can do it."""
    text = RecipeText(path)
    text.raise_problems(text.problems_of_form())
    content = text.content
    if "include" in content:
        return _join(text, content)
    recipe = _read(content, path.parent)
    text.raise_problems(_problems_of_names(recipe, content))
    text.raise_problems(_problems_of_parts(recipe))
    text.raise_problems(_problems_of_the_whole(recipe))
    return recipe


def _read(content: Mapping[str, Any], folder: Path) -> Recipe:
    data = {name: Data(name, **(given or {})) for name, given in content.get("data", {"brats": {}}).items()}
    models = {}
    for name, given in content["models"].items():
        resources = Resources(**given.get("resources", {}))
        models[name] = Model(name, **({"data": next(iter(data))} | _frozen(given) | {"resources": resources}))
    ensembles = {name: Ensemble(name, **_frozen(given)) for name, given in content.get("ensembles", {}).items()}
    rules = {}
    for name, given in content.get("postprocessing", {}).items():
        # A file is meant from the recipe, but jobs run in the folder of the run.
        files = [str(file.resolve()) if (file := folder / one).is_file() else one for one in given.get("rules", ())]
        rules[name] = Postprocessing(name, **_frozen({**given, "rules": files}))
    evaluation = content.get("evaluation", {})
    return Recipe(
        content["title"], data, models, ensembles, rules,
        evaluation.get("preset", "brats2020"),
        evaluation.get("cohort", "gli"),
        tuple(evaluation.get("of", (*models, *ensembles, *rules))),
        (content["submission"],),
        content.get("gpu_memory_gb"),
        content.get("paper", ""),
    )  # fmt: skip


def _frozen(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}


# ---- checking names ------------------------------------------------------------------------------------------------


def _problems_of_names(recipe: Recipe, content: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    predictions = [*recipe.models, *recipe.ensembles, *recipe.postprocessing]
    for section in ("ensembles", "postprocessing"):
        for name in content.get(section, {}):
            if predictions.count(name) > 1:
                yield (section, name), f"{name!r} is the name of two predictions"
    unknown = False
    for path, name, known in _references(recipe, content, predictions):
        if name not in known:
            unknown = True
            yield path, f"{name!r} is none of {', '.join(known)}{_hint(name, known)}"
    if not unknown:
        for section, names in (("models", recipe.models), ("ensembles", recipe.ensembles),
                               ("postprocessing", recipe.postprocessing)):  # fmt: skip
            for name in names:
                if name in _ancestors(recipe, name, ()):
                    yield (section, name), f"{name!r} would be made of itself"


def _references(
    recipe: Recipe, content: Mapping[str, Any], predictions: Sequence[str]
) -> Iterator[tuple[KeyPath, str, Sequence[str]]]:
    """Every name that stands for something else: where it is said, and what it may be."""
    for name, model in recipe.models.items():
        yield ("models", name, "data"), model.data, list(recipe.data)
        for key, other in (("previous_stage", model.previous_stage), ("filtered", model.filtered)):
            if other:
                yield ("models", name, key), other, list(recipe.models)
    for name, ensemble in recipe.ensembles.items():
        for i, member in enumerate(ensemble.of):
            yield ("ensembles", name, "of", i), member, predictions
    for name, rules in recipe.postprocessing.items():
        yield ("postprocessing", name, "of"), rules.of, predictions
    for name, data in recipe.data.items():
        if data.distill:
            yield ("data", name, "distill"), data.distill, predictions
    for i, name in enumerate(content.get("evaluation", {}).get("of", ())):
        yield ("evaluation", "of", i), name, predictions
    yield ("submission",), content["submission"], predictions


def _ancestors(recipe: Recipe, prediction: str, below: tuple[str, ...]) -> set[str]:
    if prediction in below:
        return set()
    sources = recipe.sources_of(prediction)
    return {*sources, *(name for one in sources for name in _ancestors(recipe, one, (*below, prediction)))}


def _hint(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


# ---- checking that jobs can do it ----------------------------------------------------------------------------------


def _problems_of_parts(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """What the command of a single model, ensemble or post-processing would refuse, hours later."""
    for model in recipe.models.values():
        yield from _problems_of_model(recipe, model)
    for ensemble in recipe.ensembles.values():
        yield from _problems_of_ensemble(recipe, ensemble)
    for name, rules in recipe.postprocessing.items():
        try:
            if rules.needs_probabilities and not recipe.has_probabilities(rules.of):
                words = f"the rules need probabilities, and {rules.of} has only label maps"
                yield ("postprocessing", name), words
        except ValueError as error:
            yield ("postprocessing", name), str(error)


def _problems_of_model(recipe: Recipe, model: Model) -> Iterator[tuple[KeyPath, str]]:
    here, folds = ("models", model.name), recipe.data[model.data].folds
    if model.folds and max(model.folds) >= folds:
        yield (*here, "folds"), f"fold {max(model.folds)} of {folds}: they count from 0"
    known = [*papers.configurations(), *NNUNETS_OWN]
    known += [f"{recipe.models[model.filtered].configuration}_filtered"] if model.filtered else []
    if model.plans == PLANS and model.configuration not in known:
        words = f"{model.configuration!r} is no configuration of {PLANS}, which has {', '.join(known)}"
        yield (*here, "configuration"), words + _hint(model.configuration, known)
    previous = recipe.models.get(model.previous_stage or "", model)
    for key, one, epochs in (("checkpoints", model, model.checkpoints), ("maps", previous, model.maps)):
        for epoch in epochs:
            if isinstance(epoch, int) and one.epochs and epoch > one.epochs:
                yield (*here, key), f"epoch {epoch} is beyond the `epochs` of {one.name}, {one.epochs}"


def _problems_of_ensemble(recipe: Recipe, ensemble: Ensemble) -> Iterator[tuple[KeyPath, str]]:
    here, method, number = ("ensembles", ensemble.name), ensemble.method, len(ensemble.of)
    for key in ("weights", "space"):
        if getattr(ensemble, key) and key not in METHODS[method].takes:
            yield (*here, key), f"method {method} takes no `{key}`"
    if ensemble.weights and len(ensemble.weights) != number:
        yield (*here, "weights"), f"{len(ensemble.weights)} weights for {number} members"
    if number != MEMBERS.get(method, number):
        yield (*here, "of"), f"{method} takes {MEMBERS[method]} members, not {number}"
    for i, member in enumerate(ensemble.of):
        if method in AVERAGING and not recipe.has_probabilities(member):
            yield (*here, "of", i), f"{member} has no probabilities to average, only label maps"
    if ensemble.best is not None:
        yield from _problems_of_pool(recipe, ensemble, ensemble.best)
    for i, words in _other_folds(recipe, ensemble.of):
        yield (*here, "of", i), f"{words}; an ensemble wants the same cases of all its members"


def _problems_of_pool(recipe: Recipe, pool: Ensemble, best: int) -> Iterator[tuple[KeyPath, str]]:
    """What `nnunet_brats pool` could not do: it chooses among models that are alike but for what they have learnt."""
    here = ("ensembles", pool.name)
    if pool.method != "mean":
        yield (*here, "best"), f"`best` is of method mean, not of {pool.method}"
    if best >= len(pool.of):
        yield (*here, "best"), f"the best {best} of {len(pool.of)} members are all of them"
    for key in ("weights", "space"):
        if getattr(pool, key):
            yield (*here, key), f"`{key}` does not go with `best`: all that are chosen count alike"
    models = [recipe.models[name] for name in pool.of if name in recipe.models]
    for i, name in enumerate(pool.of):
        model = recipe.models.get(name)
        if model is None:
            yield (*here, "of", i), f"{name} is no model; `best` chooses among those"
            continue
        if model.previous_stage or model.checkpoints:
            yield (*here, "of", i), f"{name} has a previous stage or checkpoints of its own; `best` takes neither"
        for key in ("data", "plans", "folds", "tiling", "tta"):
            if (value := getattr(model, key)) != (first := getattr(models[0], key)):
                words = f"`{key}` {value} of {name} is not that of {models[0].name}, {first}"
                yield (*here, "of", i), f"{words}; `best` compares like with like"


def _problems_of_the_whole(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """What does not go together, also of recipes that are included in one."""
    firsts: dict[tuple[str, str], Model] = {}
    for name, model in recipe.models.items():
        folder = f"{model.trainer}__{model.plans}__{model.configuration}"
        if (first := firsts.setdefault((folder, model.data), model)) != model:
            words = f"{name} and {first.name} would both be trained in {folder} of {model.data}"
            yield ("models", name), f"{words}; give one of them another configuration, other plans or other data"
    yield from _problems_of_gpus(recipe)
    try:
        find_preset(recipe.preset, recipe.cohort)
    except ValueError as error:
        yield ("evaluation",), str(error)
    for i, words in _other_folds(recipe, recipe.evaluated):
        advice = "give them the same folds, or leave some out of what is scored"
        yield ("evaluation", "of", i), f"{words}; a ranking wants the same cases of all: {advice}"


def _other_folds(recipe: Recipe, predictions: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The predictions whose cross-validation holds other cases than that of the first."""
    models = [(i, model) for i, name in enumerate(predictions) for model in recipe.models_of(name)]
    for i, model in models:
        shown, first = (_shown_folds(recipe, one) for one in (model, models[0][1]))
        if shown != first and not (shown.startswith("all") and first.startswith("all")):
            yield i, f"{model.name} has folds {shown}, {models[0][1].name} {first}"


def _shown_folds(recipe: Recipe, model: Model) -> str:
    every = recipe.data[model.data].folds
    chosen = sorted(model.folds or range(every))
    return f"all {every}" if len(chosen) == every else f"{', '.join(map(str, chosen))} of {every}"


def _problems_of_gpus(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """nnU-Net wants a sample for every GPU, and `nnunet_brats plan` fits a configuration to one number of them."""
    firsts: dict[tuple[str, str], Model] = {}
    for name, model in recipe.models.items():
        if (configuration := recipe.paper_configuration(model)) is None:
            continue
        here = ("models", name, "gpus")
        if model.gpus > (batch := papers.configurations()[configuration].batch_size):
            yield here, f"a batch of {configuration} has {batch} samples, too few for {model.gpus} GPUs"
        first = firsts.setdefault((model.data, configuration), model)
        if model.gpus != first.gpus:
            words = f"`gpus` {model.gpus} of {name} is not that of {first.name}, {first.gpus}"
            yield here, f"{words}; {configuration} is fitted to one number of them"


# ---- recipes that include others -----------------------------------------------------------------------------------


def _join(text: RecipeText, content: Mapping[str, Any]) -> Recipe:
    """The included recipes as one: names prefixed, data sets that are alike only once, what they submit scored."""
    joined = Recipe(
        content["title"],
        {}, {}, {}, {},
        content.get("evaluation", {}).get("preset", "brats2020"),
        content.get("evaluation", {}).get("cohort", "gli"),
        (), (),
        content.get("gpu_memory_gb"),
    )  # fmt: skip
    problems = []
    prefixes: dict[str, str] = {}
    for i, name in enumerate(content["include"]):
        own = text.path.parent / name  # a path is meant from the recipe that includes it
        path = own if own.suffix in (".yaml", ".yml") and own.is_file() else find_recipe(name)
        if "include" in RecipeText(path).content:
            problems.append((("include", i), f"{name} includes recipes itself, which an included one cannot"))
        elif path.stem in prefixes:
            words = f"{name} is called {path.stem!r} like {prefixes[path.stem]}, and so would be what they predict"
            problems.append((("include", i), f"{words}; rename the file"))
        else:
            prefixes[path.stem] = name
            joined = _with(joined, load_recipe(path), path.stem)
    text.raise_problems(problems)
    evaluated = content.get("evaluation", {}).get("of", joined.submissions)
    known = [*joined.models, *joined.ensembles, *joined.postprocessing]
    strangers = [(("evaluation", "of", i), name) for i, name in enumerate(evaluated) if name not in known]
    text.raise_problems((path, f"{name!r} is none of {', '.join(known)}") for path, name in strangers)
    joined = replace(joined, evaluated=tuple(evaluated))
    text.raise_problems(_problems_of_the_whole(joined))
    return joined


def _with(joined: Recipe, recipe: Recipe, prefix: str) -> Recipe:
    data, renamed = dict(joined.data), {}
    for name, one in recipe.data.items():
        distill = f"{prefix}.{one.distill}" if one.distill else None
        alike = [other for other in data.values() if replace(other, name=name) == replace(one, distill=distill)]
        free = name if name not in data else f"{prefix}-{name}"
        renamed[name] = alike[0].name if alike else free
        data.setdefault(renamed[name], replace(one, name=free, distill=distill))

    def new(name: str) -> str:
        return f"{prefix}.{name}"

    models = {
        new(name): replace(
            one,
            name=new(name),
            data=renamed[one.data],
            previous_stage=one.previous_stage and new(one.previous_stage),
            filtered=one.filtered and new(one.filtered),
        )
        for name, one in recipe.models.items()
    }
    ensembles = {
        new(name): replace(one, name=new(name), of=tuple(map(new, one.of))) for name, one in recipe.ensembles.items()
    }
    rules = {new(name): replace(one, name=new(name), of=new(one.of)) for name, one in recipe.postprocessing.items()}
    return replace(
        joined,
        data=data,
        models={**joined.models, **models},
        ensembles={**joined.ensembles, **ensembles},
        postprocessing={**joined.postprocessing, **rules},
        submissions=(*joined.submissions, *map(new, recipe.submissions)),
        gpu_memory_gb=joined.gpu_memory_gb or recipe.gpu_memory_gb,
    )
