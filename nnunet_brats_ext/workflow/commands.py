"""The commands of a paper or a trainer on a data set that is planned, to be typed one after the other.

They are the jobs of the paper's recipe, or of one made for the trainer, that lead to the submission: the graph has no
second home. Scores of the cross-validation come with `nnunet_brats run`.
"""

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_brats_ext import papers
from nnunet_brats_ext.planning.plan import Planned, folds_of, gpus_of
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.nnunet import MANIFEST, dataset_id, require_folder
from nnunet_brats_ext.storage.plans import read_plans, resolve
from nnunet_brats_ext.workflow.graph import build_graph
from nnunet_brats_ext.workflow.jobs import Setting
from nnunet_brats_ext.workflow.recipe import load_recipe, published_recipes
from nnunet_brats_ext.workflow.recipe_parts import PLANS, Data, Model, ModelPrediction, Recipe
from nnunet_brats_ext.workflow.run import datasets_there, scored_as
from nnunet_brats_ext.workflow.state import Job

RELEASE = "RELEASE"  # what stands for the folder of the release where nobody knows it


def commands_of_paper(paper: str, planned: Planned) -> list[str]:
    """What is left to type for a paper's submission, by its recipe."""
    recipe = load_recipe(published_recipes()[paper])
    return _commands(replace(recipe, evaluated=recipe.submissions), planned, paper)


def commands_of_trainer(name: str, planned: Planned) -> list[str]:
    """What is left to type for the submission of one trainer, and of the one that it goes on from."""
    facts = papers.find_trainer(name)
    entries = planned.plans["configurations"]
    if facts.configuration not in entries:
        raise UserError(
            f"-tr {name}: it is for the configuration {facts.configuration}, and {planned.file} has only "
            f"{', '.join(entries)}"
        )
    models = {"model": Model("model", name, facts.configuration, "brats")}
    if stage := resolve(entries, facts.configuration).get("previous_stage"):
        models["model"] = replace(models["model"], previous_stage="previous")
        models = {"previous": Model("previous", facts.previous_stage or name, stage, "brats"), **models}
    if facts.starts_from:
        models = {"start": replace(models["model"], name="start", trainer=facts.starts_from), **models}
    data = {"brats": Data("brats")}
    predictions = {one: ModelPrediction(one, one) for one in models}
    recipe = Recipe(name, data, models, predictions, {}, {}, "brats2020", "gli", ("model",), ("model",))
    return _commands(recipe, planned, name)


def _commands(recipe: Recipe, planned: Planned, folder: str) -> list[str]:
    dataset = planned.file.parent.name
    if description := DatasetDescription.find(planned.file.parent):
        recipe = scored_as(recipe, description.scheme_name, description.release or dataset)
    raw, first = require_folder("nnUNet_raw"), next(iter(recipe.data.values()))
    folds = len(folds_of(dataset, raw / dataset))
    # Other data sets of the recipe follow the first one, whatever the recipe says of its folds.
    data = {name: replace(one, folds=folds) if one.folds == first.folds else one for name, one in recipe.data.items()}
    models = {name: replace(one, gpus=_gpus(recipe, one, planned)) for name, one in recipe.models.items()}
    numbers = [dataset_id(dataset) + i for i in range(len(data))]
    setting = Setting(
        raw, planned.file.parents[1], require_folder("nnUNet_results"), numbers[0], dataset.split("_", 1)[1],
        unlabelled=True,
        source=_source(raw / dataset),
        gpus=max(model.gpus for model in models.values()),
        cpus=os.cpu_count() or 1,
        datasets={**datasets_there(raw, numbers), numbers[0]: dataset},
        folder=Path(folder),
    )  # fmt: skip
    recipe = replace(recipe, data=data, models=models)
    jobs = build_graph(recipe, setting)
    wanted = _with_all_before(jobs, [f"restore/{name}" for name in recipe.submissions])
    wanted -= {f"convert/{first.name}", f"configure/{first.name}"}
    left = [job for name, job in jobs.items() if name in wanted and not _is_there(job)]
    return list(_as_lines(left, planned.file.stem))


def _gpus(recipe: Recipe, model: Model, planned: Planned) -> int:
    configuration = recipe.paper_configuration(model)
    return gpus_of(planned, configuration) if configuration and configuration in planned.fits else 1


def _source(raw: Path) -> Path:
    """The release that a data set was made of, if its manifest knows it."""
    manifest = raw / MANIFEST
    source = read_json(manifest).get("source") if manifest.is_file() else None
    return Path(source) if isinstance(source, str) else Path(RELEASE)


def _with_all_before(jobs: dict[str, Job], names: Sequence[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += jobs[name].after
    return found


def _is_there(job: Job) -> bool:
    """Whether plans or preprocessed data are there already."""
    if job.kind == "plan":
        return job.result.is_file()
    if job.kind != "preprocess" or not (plans := Path(str(job.facts["plans"]))).is_file():
        return False
    entries, name = read_plans(plans)["configurations"], str(job.facts["configuration"])
    return name in entries and (plans.parent / resolve(entries, name)["data_identifier"]).is_dir()


def _as_lines(jobs: Sequence[Job], plans: str) -> Iterator[str]:
    """The commands as a shell takes them; trainings that differ in their fold alone are a loop."""
    loops: dict[tuple[str, ...], list[str]] = {}
    for job in jobs:
        loops.setdefault(_without_fold(job), []).append(str(job.facts.get("fold", "")))
    for words, folds in loops.items():
        line = shlex.join(plans if word == PLANS else word for word in words).replace("'$fold'", "$fold")
        yield f"for fold in {' '.join(folds)}; do {line}; done" if "$fold" in words else line


def _without_fold(job: Job) -> tuple[str, ...]:
    environment = tuple(f"{name}={value}" for name, value in job.environment.items())
    environment = ("env", *environment) if environment else ()
    if job.kind != "train":
        return (*environment, *job.command)
    program, dataset, configuration, _, *rest = job.command
    return (*environment, program, dataset, configuration, "$fold", *rest)
