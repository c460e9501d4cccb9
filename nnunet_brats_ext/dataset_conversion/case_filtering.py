"""`nnunet_brats filter-cases`: train again without the cases that a complete training could not learn.

Henry et al. 2020 (https://arxiv.org/abs/2011.01045) call it patient removal; they give no rule, the one here is ours.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Column, Table

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json, write_json
from nnunet_brats_ext.storage.nnunet import SPLITS, find_dataset, model_name, read_splits, require_folder

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
            raise UserError(f"{path}, line {number}, is no epoch of case losses: {line[:80]!r}") from error
    if not any(losses.values()):
        raise UserError(f"{path} holds no losses: the training it belongs to has not finished an epoch")
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
    limit = fmean(means.values()) + deviations * pstdev(means.values())
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
        raise UserError(f"--last-epochs {last_epochs}: expected at least 1")
    preprocessed, results = (
        find_dataset(dataset_id, require_folder(name)) for name in ("nnUNet_preprocessed", "nnUNet_results")
    )
    plans_file = preprocessed / f"{plans_name}.json"
    plans = read_json(plans_file)
    configurations = plans["configurations"]
    if configuration not in configurations:
        raise UserError(f"{plans_file} has no configuration {configuration!r}, only {sorted(configurations)}")
    splits = read_splits(preprocessed / configurations[configuration].get(SPLITS_FILE, SPLITS))
    logs = _read_logs(results / model_name(trainer, plans_name, configuration), len(splits), folds)
    verdicts = {fold: judge(losses, last_epochs, deviations) for fold, losses in logs.items()}
    filtered = [without(split, verdicts.get(fold)) for fold, split in enumerate(splits)]

    name = f"{configuration}_filtered"
    target = preprocessed / f"splits_{name}.json"
    entry = {"inherits_from": configuration, SPLITS_FILE: target.name}
    if target.is_file() and read_json(target, list) != filtered and not overwrite:
        raise UserError(f"{target} holds other folds, which trainings may rest on; --overwrite replaces it")
    if configurations.get(name, entry) != entry:
        raise UserError(f"{plans_file} has another configuration {name!r}; rename it there")
    write_json(target, filtered)
    configurations[name] = entry
    write_json(plans_file, plans)
    _tell(verdicts, target)
    print(f"Next: nnUNetv2_train {dataset_id} {name} FOLD -tr {trainer} -p {plans_name}")
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


def _read_logs(model: Path, number_of_folds: int, folds: Sequence[int] | None) -> dict[int, Losses]:
    folds = range(number_of_folds) if folds is None else folds
    if strange := sorted(set(folds) - set(range(number_of_folds))):
        raise UserError(f"there is no fold {strange[0]}, only 0 to {number_of_folds - 1}")
    paths = {fold: model / f"fold_{fold}" / CASE_LOSSES for fold in folds}
    if missing := [path for path in paths.values() if not path.is_file()]:
        raise UserError(
            f"{len(missing)} folds have no log of case losses, such as {missing[0]}. Train them with a trainer that "
            "keeps one, such as BraTSDeepSupervisionTrainer, or name the folds that have one with -f"
        )
    return {fold: read_case_losses(path) for fold, path in paths.items()}


def _tell(verdicts: Mapping[int, Verdict], target: Path) -> None:
    removals = Column("removed", overflow="fold")
    table = Table("fold", "cases judged", "mean loss", "limit", removals, title=target.name)
    for fold, verdict in verdicts.items():
        removed = "\n".join(f"{case} {loss:.3f}" for case, loss in verdict.removed.items()) or "none"
        mean = fmean(verdict.losses.values())
        table.add_row(str(fold), str(len(verdict.losses)), f"{mean:.3f}", f"{verdict.limit:.3f}", removed)
    Console().print(table)
