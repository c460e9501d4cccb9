"""Recipes as files: published ones and the user's own, read and checked, also those that include others."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from nnunet_brats_ext import papers
from nnunet_brats_ext.storage.errors import UserError, did_you_mean
from nnunet_brats_ext.storage.nnunet import ALL
from nnunet_brats_ext.workflow.recipe_checks import problems_of_names, problems_of_parts, problems_of_whole
from nnunet_brats_ext.workflow.recipe_parts import (
    Choice,
    Data,
    Ensemble,
    Model,
    ModelPrediction,
    Postprocessing,
    Recipe,
    Resources,
)
from nnunet_brats_ext.workflow.recipe_text import HERE, NAME, RULE_OF_NAMES, RecipeText

COMPARE, TODAY = HERE / "compare.yaml", HERE / "today.yaml"  # recipes of several papers
SUFFIXES = (".yaml", ".yml")
OF_PREDICTION = ("checkpoints", "combine", "ties", "tiling", "tta")  # words of a model that do not concern its training


def published_recipes() -> dict[str, Path]:
    """Name -> file: one per paper that has a recipe, the user's own papers included, and those of several papers."""
    return {**_recipes_of_papers(), **{path.stem: path for path in (COMPARE, TODAY)}}


def _recipes_of_papers() -> dict[str, Path]:
    return {key: paper.recipe for key, paper in papers.find_papers().items() if paper.recipe}


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a published recipe or of the user's own."""
    path = Path(name_or_path)
    if path.suffix in SUFFIXES:
        if path.is_file():
            return path
        raise UserError(f"there is no recipe {path}; `nnunet_brats run baseline --copy {path}` writes one to edit")
    known = published_recipes()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    hint = did_you_mean(str(name_or_path), known)
    raise UserError(f"no recipe {str(name_or_path)!r}; there are {', '.join(known)}, or give a YAML file{hint}")


def load_recipe(path: Path) -> Recipe:
    """A recipe, checked: its form against the schema, that every name stands for something, that jobs can do it."""
    text = RecipeText(path)
    text.raise_problems(text.problems_of_form())
    if "include" in text.content:
        return _load_included(text)
    recipe = _read(text.content, path.parent)
    for problems in (problems_of_names, problems_of_parts, problems_of_whole):
        text.raise_problems(problems(recipe, text.content))
    return recipe


def _read(content: Mapping[str, Any], folder: Path) -> Recipe:
    data = {name: _data(name, given or {}) for name, given in content.get("data", {"brats": {}}).items()}
    models, predictions = {}, {}
    for name, given in content["models"].items():
        resources = Resources(**given.get("resources", {}))
        training = {key: value for key, value in given.items() if key not in OF_PREDICTION}
        training = {"data": next(iter(data)), **training, "resources": resources}
        if training.get("folds") == ALL:
            training["folds"] = (ALL,)
        models[name] = Model(name, **_frozen(training))
        predictions[name] = ModelPrediction(name, name, **_words_of_prediction(given))
    for name, given in content.get("predictions", {}).items():
        same = predictions.get(given["of"], ModelPrediction(name, given["of"]))
        words = {key: given[key] for key in ("folds", "previous_stage", "each") if key in given}
        if given.get("combine", "vote") != "vote":
            same = replace(same, ties=None)
        predictions[name] = replace(same, name=name, **_words_of_prediction(given), **_frozen(words))
    ensembles = {name: Ensemble(name, **_frozen(given)) for name, given in content.get("ensembles", {}).items()}
    rules = {}
    for name, given in content.get("postprocessing", {}).items():
        # A file is meant from the recipe, but jobs run in the folder of the run.
        files = [str(file.resolve()) if (file := folder / one).is_file() else one for one in given.get("rules", ())]
        rules[name] = Postprocessing(name, **_frozen({**given, "rules": files}))
    evaluation = content.get("evaluation", {})
    one_per_region = _frozen(evaluation.get("one_per_region", {}))
    return Recipe(
        content["title"], data, models, predictions, ensembles, rules,
        evaluation.get("preset", "brats2020"),
        evaluation.get("cohort", "gli"),
        (*evaluation.get("of", (*predictions, *ensembles, *rules)), *one_per_region),
        (content["submission"],),
        content.get("gpu_memory_gb"),
        content.get("paper", ""),
        evaluation.get("compared", ""),
        one_per_region,
    )  # fmt: skip


def _words_of_prediction(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a model or a prediction says of how it predicts; checkpoints that are chosen are its `choice`."""
    words = {key: given[key] for key in OF_PREDICTION if key in given}
    if isinstance(chosen := words.get("checkpoints"), dict):
        words |= {"checkpoints": (), "choice": Choice(**_frozen(chosen))}
    elif chosen:
        words["choice"] = None
    return _frozen(words)


def _data(name: str, given: Mapping[str, Any]) -> Data:
    return Data(name, **{**({"folds": 1} if "validation" in given else {}), **_frozen(given)})


def _frozen(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}


def with_folders(recipe: Recipe, given: Collection[str]) -> Recipe:
    """A recipe that uses, of its further folders, those that are given; a model that needs another one is an error."""
    for model in recipe.models.values():
        if (needed := recipe.data[model.data].source) and needed not in given:
            raise UserError(f"{model.name} trains on {needed!r}: name its folder with --also {needed}=FOLDER")

    def there(name: str) -> bool:
        return recipe.data[name].source in (None, *given)

    data = {
        name: replace(
            one,
            unlabelled=one.unlabelled and tuple(filter(there, one.unlabelled)),
            foreign=tuple(filter(there, one.foreign)),
            exclude=tuple(folder for folder in one.exclude if folder in given),
        )
        for name, one in recipe.data.items()
    }
    return replace(recipe, data=data)


def restricted(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """A recipe of which only some predictions are scored, and restored where it submits them: `run --only`."""
    known = [*recipe.names, *recipe.one_per_region]
    if unknown := [name for name in names if name not in known]:
        hint = did_you_mean(unknown[0], known)
        raise UserError(f"--only {unknown[0]}: the recipe predicts {', '.join(known)}{hint}")
    evaluated = tuple(dict.fromkeys(names))
    recipe = replace(
        recipe, evaluated=evaluated, submissions=tuple(one for one in recipe.submissions if one in evaluated)
    )
    for _, problem in chain(problems_of_parts(recipe, {}), problems_of_whole(recipe, {})):
        raise UserError(f"--only {' '.join(names)}: {problem}")
    return recipe


# ---- recipes that include others -----------------------------------------------------------------------------------


def _load_included(text: RecipeText) -> Recipe:
    """The included recipes as one: names prefixed, equal data sets only once, what stands for them scored."""
    content = text.content
    evaluation = content.get("evaluation", {})
    whole = Recipe(
        content["title"],
        {}, {}, {}, {}, {},
        evaluation.get("preset", "brats2020"),
        evaluation.get("cohort", "gli"),
        (), (),
        content.get("gpu_memory_gb"),
    )  # fmt: skip
    problems = []
    prefixes: dict[str, str] = {}
    for i, (name, path) in enumerate(_included(content["include"], text.path)):
        prefix = path.stem if name.endswith(SUFFIXES) else name
        if "include" in RecipeText(path).content:
            problems.append((("include", i), f"{name} includes recipes itself, which an included one cannot"))
        elif prefix in prefixes:
            words = f"{name} is called {prefix!r} like {prefixes[prefix]}, and so would be what they predict"
            problems.append((("include", i), f"{words}; rename the file"))
        elif not re.fullmatch(NAME, prefix):
            problems.append((("include", i), f"{name}: {RULE_OF_NAMES}; rename the file"))
        else:
            prefixes[prefix] = name
            recipe = load_recipe(path)
            whole = _with(whole, _on_folds(recipe, content["folds"]) if "folds" in content else recipe, prefix)
    text.raise_problems(problems)
    whole = replace(whole, evaluated=tuple(evaluation.get("of", whole.submissions)))
    known = whole.names
    unknown = [(("evaluation", "of", i), name) for i, name in enumerate(whole.evaluated) if name not in known]
    text.raise_problems(
        (path, f"{name!r} is none of {', '.join(known)}{did_you_mean(name, known)}") for path, name in unknown
    )
    text.raise_problems(problems_of_whole(whole, content))
    return whole


def _included(names: str | list[str], including: Path) -> list[tuple[str, Path]]:
    """Names and files of recipes. `all`: every paper's."""
    if names == ALL:
        return list(_recipes_of_papers().items())
    own = {name: including.parent / name for name in names}  # a path is meant from the recipe that includes it
    return [
        (name, own[name] if own[name].suffix in SUFFIXES and own[name].is_file() else find_recipe(name))
        for name in names
    ]


def _on_folds(recipe: Recipe, folds: int) -> Recipe:
    """A recipe whose data sets are cross-validated in so many folds, whatever else it does with their cases."""
    data = {name: replace(one, folds=folds, hold_out=0, validation=0) for name, one in recipe.data.items()}
    return replace(recipe, data=data)


def _with(whole: Recipe, recipe: Recipe, prefix: str) -> Recipe:
    """A recipe with another one added, whose names get a prefix."""
    data, renamed = dict(whole.data), {}
    for name, one in recipe.data.items():
        distill = f"{prefix}.{one.distill}" if one.distill else None
        equal = [other for other in data.values() if replace(other, name=name) == replace(one, distill=distill)]
        free = name if name not in data else f"{prefix}-{name}"
        renamed[name] = equal[0].name if equal else free
        data.setdefault(renamed[name], replace(one, name=free, distill=distill))
    for name in (renamed[name] for name in recipe.data if not whole.data.get(renamed[name])):
        unlabelled, foreign = data[name].unlabelled, data[name].foreign
        unlabelled = unlabelled and tuple(renamed[other] for other in unlabelled)
        data[name] = replace(data[name], unlabelled=unlabelled, foreign=tuple(renamed[other] for other in foreign))

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
    predictions = {
        new(name): replace(
            one, name=new(name), of=new(one.of), previous_stage=one.previous_stage and new(one.previous_stage)
        )
        for name, one in recipe.predictions.items()
    }
    ensembles = {
        new(name): replace(one, name=new(name), of=tuple(map(new, one.of))) for name, one in recipe.ensembles.items()
    }
    rules = {new(name): replace(one, name=new(name), of=new(one.of)) for name, one in recipe.postprocessing.items()}
    return replace(
        whole,
        data=data,
        models={**whole.models, **models},
        predictions={**whole.predictions, **predictions},
        ensembles={**whole.ensembles, **ensembles},
        postprocessing={**whole.postprocessing, **rules},
        submissions=(*whole.submissions, *map(new, [recipe.compared] if recipe.compared else recipe.submissions)),
        gpu_memory_gb=whole.gpu_memory_gb or recipe.gpu_memory_gb,
    )
