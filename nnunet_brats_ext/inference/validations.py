"""nnU-Net's own validations of a model's folds, and the choice among several models by their Dice in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import NamedTuple

from nnunet_brats_ext.inference.models import TrainedModel
from nnunet_brats_ext.storage.errors import UserError, refuse
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.nnunet import FINAL, train_command


class Validation(NamedTuple):
    dice: float  # mean over the foreground regions
    cases: frozenset[str]


CHOOSE = "choose in all of these folds (-f names fewer)"
DiceByFold = Mapping[str, Mapping[int, float]]
"""Model -> fold -> Dice of the foreground in its validation."""


@dataclass(frozen=True)
class Choice:
    """Of several models those that are best in each fold. chosen: fold -> names of models, the best first."""

    scores: DiceByFold
    chosen: Mapping[int, Sequence[str]]


def choose_best(scores: DiceByFold, best: int) -> Choice:
    """The `best` models of each fold by score; of equals those that are given first."""
    if not 1 <= best <= len(scores):
        raise UserError(f"--best {best} of {len(scores)} models: choose 1 to {len(scores)}")
    folds = next(iter(scores.values()))
    return Choice(scores, {fold: sorted(scores, key=lambda name: -scores[name][fold])[:best] for fold in folds})


def read_scores(models: Sequence[TrainedModel], folds: Sequence[int]) -> DiceByFold:
    """The Dice of each model and fold in nnU-Net's validation; one error lists what is missing, and its commands."""
    if not folds:
        raise UserError(f"no fold of {models[0].folder} holds {FINAL}; train it first")
    refuse([lack for model in models for fold in folds if (lack := _lack(model, fold))], CHOOSE)
    read = {model.folder.name: {fold: _read(model, fold) for fold in folds} for model in models}
    differing = [str(fold) for fold in folds if len({each[fold].cases for each in read.values()}) > 1]
    refuse([f"the models were validated on different cases in fold {fold}" for fold in differing], CHOOSE)
    return {name: {fold: one.dice for fold, one in each.items()} for name, each in read.items()}


def _read(model: TrainedModel, fold: int) -> Validation:
    file = validation_folder(model, fold) / "summary.json"
    summary = read_json(file)
    try:
        dice = float(summary["foreground_mean"]["Dice"])
        cases = frozenset(Path(one["prediction_file"]).name for one in summary["metric_per_case"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{file} is no summary of nnU-Net's validation: {error!r}; validate again with --val"
        ) from error
    if isnan(dice):
        raise UserError(
            f"{file} has no Dice of the foreground: one of the regions is in none of its cases; "
            "leave this fold out with -f"
        )
    return Validation(dice, cases)


def _lack(model: TrainedModel, fold: int) -> str | None:
    """What a fold of a model lacks to be chosen, with the command that makes it."""
    folder = model.folder / f"fold_{fold}"
    if not (folder / FINAL).is_file():
        begun = ["--c"] if any(folder.glob("checkpoint_*.pth")) else []
        return f"{folder} lacks {FINAL}: {_command(model, fold, *begun)}"
    if not (validation_folder(model, fold) / "summary.json").is_file():
        return f"{folder} lacks validation/summary.json: {_command(model, fold, '--val')}"
    return None


def _command(model: TrainedModel, fold: int | str, *options: str) -> str:
    trainer, plans, configuration = model.names
    return train_command(model.folder.parent.name, configuration, fold, trainer, plans, options)


def validation_folder(model: TrainedModel, fold: int | str) -> Path:
    return model.folder / f"fold_{fold}" / "validation"
