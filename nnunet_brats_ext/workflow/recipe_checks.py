"""What is wrong with a recipe beyond its form: names that stand for nothing, and what a job would refuse hours later.

Each check yields the place in the file and a sentence. `content` is the recipe as it stands in the file.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from nnunet_brats_ext import papers
from nnunet_brats_ext.dataset_conversion.normalisation import NORMALISATIONS
from nnunet_brats_ext.evaluation.presets import find_preset
from nnunet_brats_ext.evaluation.tune import columns_to_choose_by
from nnunet_brats_ext.inference.choices import FROM_TRAINER, symmetry_names, tiling_names
from nnunet_brats_ext.inference.options import COMBINATIONS
from nnunet_brats_ext.papers import Source
from nnunet_brats_ext.predictions.ensemble import METHODS, SPACES
from nnunet_brats_ext.storage.errors import UserError, did_you_mean
from nnunet_brats_ext.storage.nnunet import model_name
from nnunet_brats_ext.training.environment import EPOCHS, requested_number, requested_snapshots
from nnunet_brats_ext.workflow.recipe_parts import PLANS, Ensemble, Model, ModelPrediction, Recipe, base_data
from nnunet_brats_ext.workflow.recipe_text import KeyPath

Content = Mapping[str, Any]
Problems = Iterator[tuple[KeyPath, str]]


# ---- names -----------------------------------------------------------------------------------------------------------


def problems_of_names(recipe: Recipe, content: Content) -> Problems:
    """Names that are given twice, or stand for nothing, or for what would be made of itself."""
    sections = ("models", "predictions", "ensembles", "postprocessing")
    given = Counter(name for section in sections for name in content.get(section, {}))
    for name in recipe.one_per_region:
        if name in given:
            yield ("evaluation", "one_per_region", name), f"{name!r} is the name of a prediction as well"
    for section in sections[1:]:
        for name in content.get(section, {}):
            if given[name] > 1:
                yield (section, name), f"{name!r} is the name of two predictions"
    unknown = False
    for path, name, known in _references(recipe, content):
        if name not in known:
            unknown = True
            yield path, f"{name!r} is none of {', '.join(known)}{did_you_mean(name, known)}"
    if not unknown:
        for section in sections:
            for name in content.get(section, {}):
                if name in _ancestors(recipe, name, ()):
                    yield (section, name), f"{name!r} would be made of itself"


def _references(recipe: Recipe, content: Content) -> Iterator[tuple[KeyPath, str, Sequence[str]]]:
    """Every name that stands for something else: where it is said, and what it may be."""
    predictions = recipe.names
    of_models = [name for name, one in recipe.predictions.items() if not one.each]
    single = [*of_models, *recipe.ensembles, *recipe.postprocessing]
    for name, model in recipe.models.items():
        yield ("models", name, "data"), model.data, list(recipe.data)
        if model.previous_stage:
            yield ("models", name, "previous_stage"), model.previous_stage, of_models
        if model.filtered:
            yield ("models", name, "filtered"), model.filtered, list(recipe.models)
    for one in recipe.predictions.values():
        here = _place_of(recipe, one)
        yield (*here, "of"), one.of, list(recipe.models)
        for key, value, known in (
            ("previous_stage", one.previous_stage, of_models),
            ("combine", one.combine, COMBINATIONS),
            ("ties", one.ties, get_args(Source)),
            ("tiling", one.tiling, [FROM_TRAINER, *tiling_names()]),
            ("tta", one.tta, [FROM_TRAINER, *symmetry_names()]),
        ):
            if value:
                yield (*here, key), value, known
    for name, ensemble in recipe.ensembles.items():
        yield ("ensembles", name, "method"), ensemble.method, list(METHODS)
        if ensemble.space:
            yield ("ensembles", name, "space"), ensemble.space, SPACES
        if ensemble.ties:
            yield ("ensembles", name, "ties"), ensemble.ties, get_args(Source)
        for i, member in enumerate(ensemble.of):
            yield ("ensembles", name, "of", i), member, single
    for name, rules in recipe.postprocessing.items():
        yield ("postprocessing", name, "of"), rules.of, single
    for name, data in recipe.data.items():
        if data.normalise:
            yield ("data", name, "normalise"), data.normalise, list(NORMALISATIONS)
        for key, others in (("unlabelled", data.unlabelled or ()), ("foreign", data.foreign)):
            own = [one.name for one in recipe.data.values() if not one.distill]
            for i, other in enumerate(others):
                yield ("data", name, key, i), other, own
        if data.distill:
            yield ("data", name, "distill"), data.distill, single
    for i, name in enumerate(content.get("evaluation", {}).get("of", ())):
        yield ("evaluation", "of", i), name, predictions
    for row, members in recipe.one_per_region.items():
        for i, name in enumerate(members):
            yield ("evaluation", "one_per_region", row, i), name, single
    if recipe.compared:
        yield ("evaluation", "compared"), recipe.compared, single
    yield ("submission",), content["submission"], single


def _place_of(recipe: Recipe, one: ModelPrediction) -> tuple[str, str]:
    """Where a recipe says how a model predicts; what an entry takes over from its model is said there."""
    return ("models" if one.name in recipe.models else "predictions", one.name)


def _ancestors(recipe: Recipe, prediction: str, below: tuple[str, ...]) -> set[str]:
    if prediction in below:
        return set()
    sources = recipe.sources_of(prediction)
    return {*sources, *(name for one in sources for name in _ancestors(recipe, one, (*below, prediction)))}


# ---- what the jobs can do --------------------------------------------------------------------------------------------


def problems_of_parts(recipe: Recipe, content: Content) -> Problems:
    """What the command of a single model, ensemble or post-processing would refuse."""
    known: dict[str, str] = {}
    for model in recipe.models.values():
        if model.trainer not in known:
            known[model.trainer] = _problem_of_trainer(model.trainer)
        if problem := known[model.trainer]:
            yield ("models", model.name, "trainer"), problem
        elif (start := papers.find_trainer(model.trainer).starts_from) and recipe.start_of(model) is None:
            words = f"{model.trainer} starts from the weights of {start}: add a model of that trainer"
            yield ("models", model.name, "trainer"), f"{words} with the same data, plans and configuration"
        yield from _problems_of_model(recipe, model)
    for one in recipe.predictions.values():
        yield from _problems_of_prediction(recipe, one)
    yield from _problems_of_choices(recipe)
    for ensemble in recipe.ensembles.values():
        yield from _problems_of_ensemble(recipe, ensemble)
    for name, rules in recipe.postprocessing.items():
        try:
            if rules.needs_probabilities and not recipe.has_probabilities(rules.of):
                words = f"the rules need probabilities, and {rules.of} has only label maps"
                yield ("postprocessing", name), words
        except UserError as error:
            yield ("postprocessing", name), str(error)


def _problem_of_trainer(name: str) -> str:
    try:
        return papers.find_trainer(name).missing or ""
    except UserError as error:
        return str(error)


def _problems_of_model(recipe: Recipe, model: Model) -> Problems:
    here, folds = ("models", model.name), base_data(recipe, model).folds
    if model.on_all:
        yield from _problems_of_whole_data(recipe, model)
    elif (highest := max(map(int, model.folds or ()), default=0)) >= folds:
        yield (*here, "folds"), f"fold {highest} of {folds}: they count from 0"
    known = [*papers.configurations(), *papers.NNUNETS_OWN]
    known += [f"{recipe.models[model.filtered].configuration}_filtered"] if model.filtered else []
    if model.plans == PLANS and model.configuration not in known:
        words = f"{model.configuration!r} is no configuration of {PLANS}, which has {', '.join(known)}"
        yield (*here, "configuration"), words + did_you_mean(model.configuration, known)
    before = recipe.refined_by(model)
    yield from _beyond_the_end((*here, "maps"), recipe.model_of(before) if before else model, model.maps)


def _beyond_the_end(here: KeyPath, model: Model, epochs: Sequence[str | int]) -> Problems:
    last = max((epoch for epoch in epochs if isinstance(epoch, int)), default=0)
    if model.epochs and last > model.epochs:
        yield here, f"epoch {last} is beyond the `epochs` of {model.name}, {model.epochs}"


def _problems_of_prediction(recipe: Recipe, one: ModelPrediction) -> Problems:
    here, model = _place_of(recipe, one), recipe.model_of(one)
    yield from _beyond_the_end((*here, "checkpoints"), model, one.choice.of if one.choice else one.checkpoints)
    if one.choice:
        yield from _problems_of_score(recipe, (*here, "checkpoints"), one.choice.by)
        candidates = one.choice.of or _kept_checkpoints(recipe, model)
        if candidates and one.choice.best > len(candidates):
            words = f"the best {one.choice.best} of {len(candidates)} checkpoints, {', '.join(map(str, candidates))}"
            yield (*here, "checkpoints"), f"{words}; name more in `of`"
    every = model.folds or range(base_data(recipe, model).folds)
    if wrong := [fold for fold in one.folds or () if fold not in every]:
        yield (*here, "folds"), f"fold {wrong[0]} of {model.name}, which has {', '.join(map(str, every))}"
    before, stage = recipe.refined_by(one), recipe.refined_by(model)
    if before and (stage is None or before.of != stage.of):
        first = f"the previous stage of {model.name} is {stage.of}" if stage else f"{model.name} has no previous stage"
        yield (*here, "previous_stage"), f"{before.name} is a prediction of {before.of}; {first}"
    if one.ties and one.combine != "vote":
        yield (*here, "ties"), "`ties` are those of a vote; add `combine: vote`, or leave it out"
    if one.each and (one.choice or (before and before.choice)):
        yield (*here, "each"), "`each` needs checkpoints by name, of the previous stage as well: a choice has none"


def _kept_checkpoints(recipe: Recipe, model: Model) -> tuple[str | int, ...]:
    """What a training leaves: snapshots after some epochs, the best and the last; nothing of an unknown trainer."""
    if _problem_of_trainer(model.trainer):
        return ()
    epochs = {*papers.find_trainer(model.trainer).snapshot_epochs, *requested_snapshots(), *recipe.epochs_of(model)}
    last = model.epochs or requested_number(EPOCHS, 1, "for a full training")
    return (*sorted(epoch for epoch in epochs if epoch <= (last or epoch)), "best", "final")


def _problems_of_choices(recipe: Recipe) -> Problems:
    """A fold keeps one choice of its checkpoints, of which predictions take the best so many."""
    for model in recipe.models.values():
        every = recipe.choices_of(model)
        for one, choice in every[1:]:
            first, own = every[0]
            for key in ("of", "by"):
                if (value := getattr(choice, key)) != (other := getattr(own, key)):
                    words = f"`{key}` {_shown(value)} of {one.name} is not that of {first.name}, {_shown(other)}"
                    advice = f"a fold of {model.name} keeps one choice; say the same, or name checkpoints"
                    yield (*_place_of(recipe, one), "checkpoints"), f"{words}: {advice}"


def _shown(value: str | Sequence[str | int]) -> str:
    return value if isinstance(value, str) else ", ".join(map(str, value)) or "every checkpoint"


def _problems_of_whole_data(recipe: Recipe, model: Model) -> Problems:
    """What needs cases that a model was not trained on."""
    here = ("models", model.name, "folds")
    if recipe.choices_of(model):
        yield here, "all cases train, so none is left to choose checkpoints by; name those with `checkpoints`"
    if model.maps and (before := recipe.refined_by(model)) and not recipe.model_of(before).on_all:
        yield here, "`maps` are of the folds of the previous stage; train that on them, and this on the same"
    for other in recipe.stages_after(model):
        if other.maps:
            yield here, f"all cases train, so none has `maps` for {other.name} by a model that did not see it"
    for other in recipe.models.values():
        if other.filtered == model.name:
            yield here, f"`filtered` of {other.name} judges the training cases of folds"
    for name, rules in recipe.postprocessing.items():
        if rules.tune is not None and model in recipe.models_of(rules.of):
            yield here, f"all cases train, so none is left to tune {name} on"
    if (
        model in [one for name in recipe.evaluated for one in recipe.models_of(name)]
        and not base_data(recipe, model).hold_out
    ):
        yield here, "all cases train, so none is left to score; let its data `hold_out` some"


def _problems_of_score(recipe: Recipe, here: KeyPath, by: str) -> Problems:
    try:
        columns_to_choose_by(by, find_preset(recipe.preset, recipe.cohort))
    except UserError as error:
        yield here, str(error)


def _problems_of_ensemble(recipe: Recipe, ensemble: Ensemble) -> Problems:
    here, method, number = ("ensembles", ensemble.name), ensemble.method, len(ensemble.of)
    for key in ("weights", "space", "ties"):
        if getattr(ensemble, key) and key not in METHODS[method].takes:
            yield (*here, key), f"method {method} takes no `{key}`"
    if ensemble.weights and len(ensemble.weights) != number:
        yield (*here, "weights"), f"{len(ensemble.weights)} weights for {number} members"
    if (roles := METHODS[method].roles) and number != len(roles):
        yield (*here, "of"), f"{method} takes {len(roles)} members, not {number}"
    for i, member in enumerate(ensemble.of):
        if ensemble.averages and not recipe.has_probabilities(member):
            yield (*here, "of", i), f"{member} has no probabilities to average, only label maps"
    if ensemble.best is None and ensemble.by != "dice":
        yield (*here, "by"), "`by` is what `best` is chosen by; give that as well"
    if ensemble.best is not None:
        yield from _problems_of_pool(recipe, ensemble, ensemble.best)
    for i, words in _other_folds(recipe, ensemble.of):
        yield (*here, "of", i), f"{words}; an ensemble needs the same cases of all its members"


def _problems_of_pool(recipe: Recipe, pool: Ensemble, best: int) -> Problems:
    """What a pool cannot do: its models may differ only in what they have learnt."""
    here = ("ensembles", pool.name)
    yield from _problems_of_score(recipe, (*here, "by"), pool.by)
    if pool.method != "mean":
        yield (*here, "best"), f"`best` is of method mean, not of {pool.method}"
    if best >= len(pool.of):
        yield (*here, "best"), f"the best {best} of {len(pool.of)} members are all of them"
    for key in ("weights", "space"):
        if getattr(pool, key):
            yield (*here, key), f"`{key}` does not go with `best`: all that are chosen have the same weight"
    models = [recipe.models[name] for name in pool.of if name in recipe.models]
    for i, name in enumerate(pool.of):
        model = recipe.models.get(name)
        if model is None:
            yield (*here, "of", i), f"{name} is no model; `best` chooses among those"
            continue
        own = recipe.predictions[name]
        if model.previous_stage or own.checkpoints or own.choice:
            yield (*here, "of", i), f"{name} has a previous stage or checkpoints of its own; `best` takes neither"
        elif chosen := recipe.choices_of(model):
            words = f"{chosen[0][0].name} takes checkpoints of {name} that are chosen among these alone"
            yield (*here, "of", i), f"{words}, and a fold keeps one choice; name checkpoints there"
        first_own = recipe.predictions[models[0].name]
        pairs: list[tuple[str, Any, Any]] = [(key, model, models[0]) for key in ("data", "plans", "folds")]
        pairs += [(key, own, first_own) for key in ("tiling", "tta")]
        for key, this, other in pairs:
            if (value := getattr(this, key)) != (first := getattr(other, key)):
                words = f"`{key}` {value} of {name} is not that of {models[0].name}, {first}"
                yield (*here, "of", i), f"{words}; `best` compares models that have it in common"


# ---- what does not go together ---------------------------------------------------------------------------------------


def problems_of_whole(recipe: Recipe, content: Content) -> Problems:
    """What does not go together, also of recipes that are included in one."""
    if (data := next(iter(recipe.data.values()))).source:
        yield ("data", data.name, "source"), "the first data set is that of the source; name the further ones behind it"
    firsts: dict[tuple[str, str, bool], Model] = {}
    for name, model in recipe.models.items():
        folder = model_name(model.trainer, model.plans, model.configuration)
        if (first := firsts.setdefault((folder, model.data, model.on_all), model)) != model:
            words = f"{name} and {first.name} would both be trained in {folder} of {model.data}"
            yield ("models", name), f"{words}; give one of them another configuration, other plans or other data"
    yield from _problems_of_gpus(recipe)
    if all(leaf.each for name in recipe.evaluated for leaf in recipe.leaves_of(name)):
        words = f"{', '.join(recipe.evaluated)} is scored model by model; score another prediction beside it"
        yield ("evaluation", "of"), words
    try:
        regions = find_preset(recipe.preset, recipe.cohort).regions
    except UserError as error:
        yield ("evaluation",), str(error)
    else:
        for name, members in recipe.one_per_region.items():
            if len(members) != len(regions):
                words = f"{len(members)} predictions; {recipe.preset} scores {', '.join(regions)}: give one for each"
                yield ("evaluation", "one_per_region", name), words
    held_out = {base_data(recipe, model).hold_out for name in recipe.evaluated for model in recipe.models_of(name)}
    if len(held_out) > 1:
        words = "some of what is scored holds out cases to test on, and some does not"
        yield ("evaluation", "of"), f"{words}; a ranking needs the same cases of all"
    for i, words in _other_folds(recipe, recipe.evaluated) if held_out == {0} else ():
        advice = "give them the same folds, or leave some out of what is scored"
        yield ("evaluation", "of", i), f"{words}; a ranking needs the same cases of all: {advice}"


def _other_folds(recipe: Recipe, predictions: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The predictions whose cross-validation holds other cases than that of the first."""
    leaves = [(i, leaf) for i, name in enumerate(predictions) for leaf in recipe.leaves_of(name)]
    for i, leaf in leaves:
        shown, first = (_shown_folds(recipe, one) for one in (leaf, leaves[0][1]))
        if shown != first and not (shown.startswith("all") and first.startswith("all")):
            yield i, f"{leaf.name} has folds {shown}, {leaves[0][1].name} {first}"


def _shown_folds(recipe: Recipe, one: ModelPrediction) -> str:
    model = recipe.model_of(one)
    every = base_data(recipe, model).folds
    if model.on_all:
        return "all cases"
    chosen = sorted(one.folds or model.folds or range(every), key=int)
    return f"all {every}" if len(chosen) == every else f"{', '.join(map(str, chosen))} of {every}"


def _problems_of_gpus(recipe: Recipe) -> Problems:
    """nnU-Net needs a sample for every GPU, and `nnunet_brats plan` fits a configuration to one number of them."""
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
