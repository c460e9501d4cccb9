"""`filter-cases`: folds without the training cases that a complete training could not learn.

Henry et al. 2020 (https://arxiv.org/abs/2011.01045) call it patient removal; they give no rule, the one here is ours.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, NamedTuple

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json, to_json
from nnunet_brats_ext.storage.nnunet import SPLITS, Split, find_dataset, model_name, read_splits, require_folder
from nnunet_brats_ext.storage.options import Options, argument, option
from nnunet_brats_ext.storage.output import write_texts
from nnunet_brats_ext.storage.plans import find_configuration, read_plans

CASE_LOSSES = "case_losses.jsonl"  # in a fold's output folder, one line per epoch
SPLITS_FILE = "splits_file"  # key of a configuration in the plans, which trainings read
Losses = dict[int, dict[str, float]]  # epoch -> case -> mean training loss


@dataclass(frozen=True)
class FilterCasesOptions(Options):
    """Options of `filter-cases`."""

    dataset_id: int = argument("of the data set", metavar="ID", at_least=1, at_most=999)
    trainer: str = option("-tr", metavar="TRAINER", help="that was trained")
    configuration: str = option("-c", metavar="CONFIGURATION", help="it was trained on")
    plans_name: str = option("-p", metavar="PLANS", default="BraTSPlans", help="plans it was trained with")
    folds: tuple[int, ...] | None = option(
        "-f", metavar="FOLD", at_least=0, default=None, help="to filter (default: all)"
    )
    last_epochs: int = option(at_least=1, default=10, help="to average")
    deviations: float = option(at_least=0, default=2.0, help="standard deviations above the mean that are too much")
    overwrite: bool = option(default=False, help="replace an earlier selection")


class FilteredFold(NamedTuple):
    """The mean loss of each training case of a fold, the limit, and the cases above it."""

    losses: dict[str, float]
    limit: float
    removed: dict[str, float]


@dataclass(frozen=True)
class FilteredCases:
    """Folds without the removed cases. splits: their file. configuration: that of the plans that trains on them."""

    splits: Path
    configuration: str
    folds: Mapping[int, FilteredFold]


def case_losses_line(epoch: int, losses: Mapping[str, Sequence[float]]) -> str:
    """An epoch of the log: the mean over the draws of each case."""
    means = {case: round(fmean(draws), 6) for case, draws in sorted(losses.items())}
    return json.dumps({"epoch": epoch, "losses": means}) + "\n"


def read_case_losses(path: Path) -> Losses:
    """The log of a fold. Of an epoch that a resumed training ran again, the last line counts.

    A line that is not such an epoch, as one that was cut off, is an error.
    """
    losses: Losses = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            entry = json.loads(line)  # not read_json: each line is a JSON text of its own, and errors name the line
            losses[int(entry["epoch"])] = {case: float(loss) for case, loss in entry["losses"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, line {number}, is no epoch of case losses: {line[:80]!r}; remove it") from error
    if not any(losses.values()):
        raise UserError(f"{path} holds no losses: the training it belongs to has not finished an epoch")
    return losses


def judge(losses: Losses, last_epochs: int = 10, deviations: float = 2.0) -> FilteredFold:
    """Cases whose mean loss over the last logged epochs exceeds the mean of all cases by so many standard deviations.

    A case that none of these epochs drew is not judged, and stays.
    """
    drawn: dict[str, list[float]] = {}
    for epoch in sorted(epoch for epoch, cases in losses.items() if cases)[-last_epochs:]:
        for case, loss in losses[epoch].items():
            drawn.setdefault(case, []).append(loss)
    means = {case: fmean(values) for case, values in sorted(drawn.items())}
    if bad := [case for case, mean in means.items() if not isfinite(mean)]:
        raise UserError(
            f"the training loss of {bad[0]} is {means[bad[0]]:g}: this training has diverged; train that fold again"
        )
    limit = fmean(means.values()) + deviations * pstdev(means.values())
    return FilteredFold(means, limit, {case: loss for case, loss in means.items() if loss > limit})


def filter_cases(dataset_id: int, trainer: str, configuration: str, **options: Any) -> FilteredCases:
    """Write the folds without the removed cases, and a configuration in the plans that trains on them.

    options: the fields of `FilterCasesOptions`. Folds that are not filtered keep all cases. Validation cases are never
    removed: each fold judges its own training cases by the log of its own training.
    """
    return filter_folds(FilterCasesOptions(dataset_id, trainer, configuration, **options))


def filter_folds(options: FilterCasesOptions) -> FilteredCases:
    """The same with its options in one object."""
    advice = f"run: nnUNetv2_plan_and_preprocess -d {options.dataset_id}"
    preprocessed = find_dataset(options.dataset_id, require_folder("nnUNet_preprocessed"), advice)
    results = require_folder("nnUNet_results") / preprocessed.name
    plans_file = preprocessed / f"{options.plans_name}.json"
    plans = read_plans(plans_file)
    configurations = plans["configurations"]
    wanted = find_configuration(plans, options.configuration, plans_file)
    splits = read_splits(preprocessed / wanted.get(SPLITS_FILE, SPLITS))
    model = results / model_name(options.trainer, options.plans_name, options.configuration)
    folds = {
        fold: judge(losses, options.last_epochs, options.deviations)
        for fold, losses in _read_logs(model, len(splits), options.folds).items()
    }
    filtered = [without_removed(split, folds.get(fold)) for fold, split in enumerate(splits)]

    name = f"{options.configuration}_filtered"
    target = preprocessed / f"splits_{name}.json"
    entry = {"inherits_from": options.configuration, SPLITS_FILE: target.name}
    if target.is_file() and read_json(target, list) != filtered and not options.overwrite:
        raise UserError(f"{target} holds other folds, which trainings may rest on; --overwrite replaces it")
    if configurations.get(name, entry) != entry:
        raise UserError(f"{plans_file} has another configuration {name!r}; rename it there")
    configurations[name] = entry
    write_texts({target: to_json(filtered), plans_file: to_json(plans)})
    return FilteredCases(target, name, folds)


def without_removed(split: Split, fold: FilteredFold | None) -> dict[str, Any]:
    """A fold in nnU-Net's form without the removed training cases, which it names with their losses."""
    removed = fold.removed if fold else {}
    return {
        "train": [case for case in split["train"] if case not in removed],
        "val": list(split["val"]),
        "removed": {case: loss for case, loss in removed.items() if case in split["train"]},
        "limit": fold.limit if fold else None,
    }


def _read_logs(model: Path, number_of_folds: int, folds: Sequence[int] | None) -> dict[int, Losses]:
    folds = range(number_of_folds) if folds is None else folds
    if unknown := sorted(set(folds) - set(range(number_of_folds))):
        raise UserError(f"-f {unknown[0]}: there is no such fold, only 0 to {number_of_folds - 1}")
    paths = {fold: model / f"fold_{fold}" / CASE_LOSSES for fold in folds}
    if missing := [path for path in paths.values() if not path.is_file()]:
        raise UserError(
            f"{len(missing)} folds have no log of case losses, such as {missing[0]}. Train them with a trainer that "
            "keeps one, by the mixin CaseLosses of nnunet_brats_ext.training, or name the folds that have one with -f"
        )
    return {fold: read_case_losses(path) for fold, path in paths.items()}
