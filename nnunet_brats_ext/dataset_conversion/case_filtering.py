"""`nnunet_brats filter-cases`: train again without the cases that a complete training could not learn.

Henry et al. 2020 (https://arxiv.org/abs/2011.01045) call it patient removal; they give no rule, the one here is ours.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from nnunet_brats_ext.dataset_conversion.folders import SPLITS, find_dataset, nnunet_folder, read_json, write_json

CASE_LOSSES = "case_losses.jsonl"  # in a fold's output folder, one line per epoch
SPLITS_FILE = "splits_file"  # key of a configuration in the plans, read by BraTSTrainer
Losses = dict[int, dict[str, float]]  # epoch -> case -> mean training loss


class Verdict(NamedTuple):
    """What the losses of a fold say: the mean of each case, the limit, and the cases above it."""

    losses: dict[str, float]
    limit: float
    removed: dict[str, float]


def case_losses_line(epoch: int, losses: Mapping[str, Sequence[float]]) -> str:
    """An epoch of the log: the mean over the draws of each case."""
    means = {case: round(fmean(draws), 6) for case, draws in sorted(losses.items())}
    return json.dumps({"epoch": epoch, "losses": means}) + "\n"


def read_case_losses(path: Path) -> Losses:
    """The log of a fold. An epoch that a resumed training ran again counts as it ran last; a torn line is an error."""
    losses: Losses = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            entry = json.loads(line)
            losses[entry["epoch"]] = entry["losses"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}, is no epoch of case losses: {line[:80]!r}") from error
    return losses


def judge(losses: Losses, last_epochs: int = 10, deviations: float = 2.0) -> Verdict:
    """Cases whose mean loss over the last logged epochs exceeds the mean of all cases by so many standard deviations.

    A case that none of these epochs drew is not judged, and stays.
    """
    drawn: dict[str, list[float]] = {}
    for epoch in sorted(losses)[-last_epochs:]:
        for case, loss in losses[epoch].items():
            drawn.setdefault(case, []).append(loss)
    means = {case: fmean(values) for case, values in sorted(drawn.items())}
    limit = fmean(means.values()) + deviations * pstdev(means.values()) if means else float("inf")
    return Verdict(means, limit, {case: loss for case, loss in means.items() if loss > limit})


def filter_cases(
    dataset_id: int,
    trainer: str,
    configuration: str,
    plans_name: str = "BraTSPlans",
    folds: Sequence[int] | None = None,
    last_epochs: int = 10,
    deviations: float = 2.0,
    overwrite: bool = False,
) -> Path:
    """Write the folds without the removed cases, and a configuration in the plans that trains on them.

    folds: those to filter, all by default; the others keep all cases. Validation cases are never touched: each fold
    judges its own training cases by the log of its own training. Gives the path of the new splits file.
    """
    if last_epochs < 1:
        raise ValueError(f"--last-epochs {last_epochs}: expected at least 1")
    preprocessed, results = (_folder(name, dataset_id) for name in ("nnUNet_preprocessed", "nnUNet_results"))
    plans_file = preprocessed / f"{plans_name}.json"
    plans, splits = _read(plans_file), _read(preprocessed / SPLITS)
    if configuration not in plans["configurations"]:
        raise ValueError(f"{plans_file} has no configuration {configuration!r}, only {sorted(plans['configurations'])}")
    folds = range(len(splits)) if folds is None else folds
    if beyond := [fold for fold in folds if fold >= len(splits)]:
        raise ValueError(f"{preprocessed / SPLITS} has {len(splits)} folds; there is no fold {beyond[0]}")
    logs = {
        fold: results / f"{trainer}__{plans_name}__{configuration}" / f"fold_{fold}" / CASE_LOSSES for fold in folds
    }
    if missing := [path for path in logs.values() if not path.is_file()]:
        raise FileNotFoundError(
            f"{len(missing)} folds have no log of case losses: {missing[0]}. Train them with a trainer that keeps one, "
            "such as BraTSDeepSupervisionTrainer, or name the folds that have one with -f"
        )
    verdicts = {fold: judge(read_case_losses(path), last_epochs, deviations) for fold, path in logs.items()}
    filtered = [without(split, verdicts.get(fold)) for fold, split in enumerate(splits)]

    name = f"{configuration}_filtered"
    target = preprocessed / f"splits_{name}.json"
    entry = {"inherits_from": configuration, SPLITS_FILE: target.name}
    _check_replaces(target, filtered, overwrite)
    if plans["configurations"].get(name, entry) != entry:
        raise ValueError(f"{plans_file} has another configuration {name!r}; rename it there")
    write_json(filtered, target)
    plans["configurations"][name] = entry
    write_json(plans, plans_file)
    _tell(verdicts, target, Console())
    print(f"nnUNetv2_train {dataset_id} {name} FOLD -tr {trainer} -p {plans_name}")
    return target


def without(split: Mapping[str, list[str]], verdict: Verdict | None) -> dict[str, Any]:
    """A fold in nnU-Net's form without the removed training cases, which it names with their losses."""
    removed = verdict.removed if verdict else {}
    return {
        "train": [case for case in split["train"] if case not in removed],
        "val": list(split["val"]),
        "removed": {case: loss for case, loss in removed.items() if case in split["train"]},
        "limit": verdict.limit if verdict else None,
    }


def _folder(variable: str, dataset_id: int) -> Path:
    folder = nnunet_folder(variable)
    if folder is None:
        raise ValueError(f"{variable} is not set")
    return find_dataset(dataset_id, folder)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; plan and train first")
    return read_json(path)


def _check_replaces(target: Path, content: Any, overwrite: bool) -> None:
    if target.is_file() and read_json(target) != content and not overwrite:
        raise ValueError(f"{target} holds other folds, which trainings may rest on; --overwrite replaces it")


def _tell(verdicts: Mapping[int, Verdict], target: Path, console: Console) -> None:
    table = Table("fold", "cases judged", "mean loss", "limit", "removed", title=str(target))
    for fold, verdict in verdicts.items():
        removed = "\n".join(f"{case} {loss:.3f}" for case, loss in verdict.removed.items()) or "none"
        mean = f"{fmean(verdict.losses.values()):.3f}" if verdict.losses else ""
        table.add_row(str(fold), str(len(verdict.losses)), mean, f"{verdict.limit:.3f}", removed)
    console.print(table)
