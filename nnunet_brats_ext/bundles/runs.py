"""Which models, stages, ensembles and rules make a prediction of a run, read from the commands of its jobs.

Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_brats_ext.evaluation.results import read_models
from nnunet_brats_ext.inference.models import TrainedModel, fold_names, open_model
from nnunet_brats_ext.predictions.rule_sets import collect_rules
from nnunet_brats_ext.storage.errors import UserError, did_you_mean
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.nnunet import FINAL, find_dataset, model_name
from nnunet_brats_ext.workflow.state import DONE, GRAPH, Job, Run, open_run, states_of

POOL = "pool.json"  # what `predict --models` notes beside its label maps
Given = Mapping[str, Sequence[str]]
"""Flag -> its words."""


@dataclass(frozen=True)
class NamedNetworks:
    """A model with the one of the stage before that it refines. weight: in a mean of several."""

    model: TrainedModel
    previous: TrainedModel | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Leaf:
    """A prediction by networks. passes: as `inference.systems.Passes` names them, where they are not the default."""

    networks: tuple[NamedNetworks, ...]
    passes: Mapping[str, Any] = field(default_factory=dict)
    probabilities: bool = False


@dataclass(frozen=True)
class Combined:
    """An ensemble of predictions, by their names."""

    of: tuple[str, ...]
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    probabilities: bool = False


@dataclass(frozen=True)
class Ruled:
    """Rules on a prediction, by its name."""

    of: str
    rules: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a system is to be made of. predictions: in an order in which they can be made; the last is its result."""

    title: str
    predictions: Mapping[str, Leaf | Combined | Ruled]
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    raw: Path | None = None  # nnUNet_raw of the run


def is_run(folder: Path) -> bool:
    return (folder / GRAPH).is_file()


def plan_of_run(folder: Path, prediction: str | None = None) -> Plan:
    """The system of a run: of its first submission, or of the prediction of that name.

    Refused where a job that it depends on is not done as planned: what lies there may be of an earlier recipe.
    """
    run = open_run(folder)
    states = {name: state for name, (state, _) in states_of(run).items()}
    made = {str(job.result): job for job in run.jobs.values() if job.kind in ("predict", "ensemble", "postprocess")}
    ends = _ends_of(run)
    if not ends:
        raise UserError(f"{folder}: the run makes no prediction; name models instead")
    chosen = prediction or next(iter(ends))
    named = {**_by_name(made), **ends}
    if chosen not in named:
        raise UserError(f"--prediction {chosen}: the run has {', '.join(named)}{did_you_mean(chosen, named)}")
    if job := made.get(str(named[chosen])):
        _require_done(run, job, chosen, states)
    predictions: dict[str, Leaf | Combined | Ruled] = {}
    _add(run, made, named[chosen], predictions)
    recipe = Path(str((run.settings or {}).get("recipe") or folder.name)).stem
    title = recipe if chosen == recipe else f"{recipe}: {chosen}"
    raw = run.folder / run.environment["nnUNet_raw"] if "nnUNet_raw" in run.environment else None
    return Plan(
        title, predictions, {name: one for name, one in _scores(run, states).items() if name in predictions}, raw
    )


def _ends_of(run: Run) -> dict[str, Path]:
    """Prediction -> its folder, of what the run submits; of a run without cases to submit, of what it evaluates."""
    found = {}
    for kind, at in (("restore", 2), ("evaluate", 3)):
        for job in run.jobs.values():
            if job.kind == kind and job.command[at + 1].startswith("-"):  # not several single models, scored together
                found[job.name.split("/", 1)[1]] = Path(job.command[at])
        if found:
            break
    return found


def _require_done(run: Run, job: Job, prediction: str, states: Mapping[str, str]) -> None:
    """A UserError names the first job, in the order of the run, that a prediction is still waiting for."""
    needed, queue = {job.name}, [job.name]
    while queue:
        before = set(run.jobs[queue.pop()].after) - needed
        needed |= before
        queue.extend(before)
    if left := [name for name in run.jobs if name in needed and states[name] != DONE]:
        raise UserError(
            f"{run.folder}: {left[0]} is {states[left[0]]}, and {prediction} depends on it; finish the run with "
            "`nnunet_brats run`, then bundle it"
        )


def _by_name(made: Mapping[str, Job]) -> dict[str, Path]:
    """Every prediction by its name, those of test cases before those of the cross-validation."""
    found: dict[str, Path] = {}
    for job in sorted(made.values(), key=lambda job: "cross-validation" in " ".join(job.command)):
        found.setdefault(Path(job.result).name, Path(job.result))
    return found


def _add(run: Run, made: Mapping[str, Job], result: Path, predictions: dict[str, Leaf | Combined | Ruled]) -> str:
    """Note a prediction after all that it is made of; its name."""
    job = made.get(str(result))
    if job is None:
        raise UserError(f"{run.folder}: no job makes {result}; run it again with this version")
    name = result.name
    if name in predictions:
        return name
    given = read_words(job.command[2:])
    if "-i" not in given:
        raise UserError(
            f"{run.folder} was planned by an older version; give the command of the run again, then bundle it"
        )
    if job.kind == "predict":
        predictions[name] = _leaf(run, given)
    elif job.kind == "ensemble":
        of = tuple(_add(run, made, Path(one), predictions) for one in given["-i"])
        options: dict[str, Any] = {}
        if "--weights" in given:
            options["weights"] = [float(word) for word in given["--weights"]]
        options |= {name: given[f"--{name}"][0] for name in ("space", "ties") if f"--{name}" in given}
        kept = "--save_probabilities" in given
        predictions[name] = Combined(of, given.get("--method", ["mean"])[0], options, kept)
    else:
        before = _add(run, made, Path(given["-i"][0]), predictions)
        names = [_rules_name(run, word) for word in given.get("--rules", ())]
        rules = collect_rules(names, given.get("--rule", ()))
        predictions[name] = Ruled(before, rules.as_json())
    return name


def read_words(words: Sequence[str]) -> Given:
    """The options of a command that `run` has planned: each flag with the words behind it."""
    given: dict[str, list[str]] = {}
    flag = ""
    for word in words:
        if word.startswith("-") and not word[1:2].isdecimal():
            flag = word
            given.setdefault(flag, [])
        else:
            given.setdefault(flag, []).append(word)
    return given


def _rules_name(run: Run, word: str) -> str:
    return str(run.folder / word) if (run.folder / word).is_file() else word


def _leaf(run: Run, given: Given) -> Leaf:
    results = run.folder / run.environment["nnUNet_results"]
    dataset = find_dataset(given["-d"][0], results)
    plans = given.get("-p", ["nnUNetPlans"])[0]
    passes = {name: given[flag][0] for name, flag in PASSES.items() if flag in given}
    kept = "--save_probabilities" in given
    if "--models" in given:
        return Leaf(pool_of(run.folder / given["-o"][0], dataset, plans), POOLED | passes, kept)
    folds = fold_names(given.get("-f", ()))
    folder = dataset / model_name(given["-tr"][0], plans, given["-c"][0])
    model = open_model(folder, folds, tuple(given.get("-chk", [FINAL])))
    previous = None
    if model.previous_stage:
        trainer = given.get("-prev_tr", [None])[0]
        chosen = tuple(given.get("-prev_chk", [FINAL]))
        previous = model.previous_model(trainer, fold_names(given.get("-prev_f", ())), chosen)
    return Leaf((NamedNetworks(model, previous),), passes, kept)


PASSES = {"tiling": "--tiling", "symmetries": "--tta", "combine": "--combine", "ties": "--ties"}
POOLED = {"combine": "probabilities"}


def pool_of(predicted: Path, dataset: Path, plans: str) -> tuple[NamedNetworks, ...]:
    """The models that `predict --models` has chosen in each fold, as pool.json beside its label maps names them."""
    weights: dict[Path, list[tuple[int, str]]] = {}
    for fold, names in read_json(predicted / POOL)["chosen"].items():
        for name in names:
            model, _, snapshot = name.partition(" ")
            trainer, _, configuration = model.partition(":")
            folder = dataset / model_name(trainer, plans, configuration)
            weights.setdefault(folder, []).append((int(fold), f"checkpoint_{snapshot}.pth" if snapshot else FINAL))
    found = []
    for folder, own in weights.items():
        model = TrainedModel(folder, tuple(own))
        previous = model.previous_model() if model.previous_stage else None
        found.append(NamedNetworks(model, previous, float(len(own))))
    return tuple(found)


def _scores(run: Run, states: Mapping[str, str]) -> Mapping[str, Mapping[str, Any]]:
    """The cross-validation's scores that the run has, by prediction: means of each region and metric."""
    found = {}
    for job in run.jobs.values():
        file = run.folder / job.result
        if job.kind == "evaluate" and states[job.name] == DONE and file.is_file():
            results, *others = read_models(file).values()
            if others:
                continue
            means = {
                region: {metric: values["mean"] for metric, values in metrics.items()}
                for region, metrics in results["summary"].items()
            }
            found[job.name.split("/", 1)[1]] = {
                "preset": results["preset"],
                "cases": len(results["cases"]),
                "mean": means,
            }
    return found
