"""`nnunet_brats pool`: of several models the best of each fold, and the mean of the probabilities of all of these.

Henry et al. 2020 (https://arxiv.org/abs/2011.01045) train three candidates per fold and keep two of them.
"""

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Column, Table

from nnunet_brats_ext.inference.cases import find_images, is_complete
from nnunet_brats_ext.inference.models import TrainedModel
from nnunet_brats_ext.inference.predict import Mode, claim, console, described, predict
from nnunet_brats_ext.inference.validations import Scores, read_scores, refuse_without_probabilities, validation_folder
from nnunet_brats_ext.predictions.ensemble import ensemble
from nnunet_brats_ext.predictions.folders import find_cases
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.nnunet import FINAL, trained_folds

POOL = "pool.json"


def choose(scores: Scores, best: int) -> dict[int, list[str]]:
    """Fold -> the names of its `best` models by score, the best first; of equals those that are given first."""
    if not 1 <= best <= len(scores):
        raise UserError(f"--best {best} of {len(scores)} models: choose 1 to {len(scores)}")
    folds = next(iter(scores.values()))
    return {fold: sorted(scores, key=lambda name: -scores[name][fold])[:best] for fold in folds}


def pool(
    models: Sequence[TrainedModel],
    out: Path,
    images: Path | None,
    mode: Mode,
    best: int = 2,
    folds: Sequence[int] = (),
    save_probabilities: bool = False,
    overwrite: bool = False,
    keep_members: bool = False,
) -> None:
    """Average the probabilities of the `best` models of each fold into `out`, each chosen model and fold alike.

    models: their folders; which folds of each enter is chosen here, among `folds` or all that any of them has.
    images: a folder that all chosen ones predict; None averages what they have predicted for the cases of their own
    folds, the cross-validation. `out/pool.json` tells the choice and the scores. An interrupted run goes on.
    """
    mode = replace(mode, combine="probabilities")
    models = [replace(model, checkpoints=(FINAL,)) for model in models]  # the one that nnU-Net's validation is of
    if len({model.folder for model in models}) < len(models):
        raise UserError(f"a model is given twice among {', '.join(_shown(model.folder.name) for model in models)}")
    folds = sorted({*folds} or {fold for model in models for fold in trained_folds(model.folder)})
    scores = read_scores(models, folds, [] if images else ["--npz"])
    chosen = choose(scores, best)
    members = [replace(model, folds=tuple(f for f in folds if model.folder.name in chosen[f])) for model in models]
    members = [member for member in members if member.folds]
    if images is None:
        refuse_without_probabilities(members)
    cases = find_images(images, read_json(models[0].folder / "dataset.json")) if images else {}
    settings = {
        "images": str(images.resolve()) if images else None,
        "best": best,
        "scores": scores,
        "chosen": chosen,
        "models": [described(member) for member in members],
        **(mode.deciding if images else {}),
    }
    claim(out / POOL, settings, overwrite)
    show_choice(scores, chosen)
    if images:
        predict_pool(images, cases, out, members, mode, save_probabilities, keep_members)
    else:
        average_validations(out, members, folds, mode.processes or 1, save_probabilities)


def predict_pool(
    images: Path,
    cases: Collection[str],
    out: Path,
    members: Sequence[TrainedModel],
    mode: Mode,
    save_probabilities: bool,
    keep_members: bool,
) -> None:
    """Each model once, by the mean over its folds; then their mean, where each counts as often as it has folds."""
    ending = members[0].file_ending
    if all(is_complete(out, case, ending, save_probabilities) for case in cases):
        console.print(f"{len(cases)} cases are in {out} already; --overwrite predicts them anew")
        return
    folders = [out / "members" / member.folder.name for member in members]
    for member, folder in zip(members, folders, strict=True):
        previous = member.previous_model() if member.previous_stage else None
        predict(images, folder, member, mode, previous, save_probabilities=True)
    weights = [len(member.folds) for member in members]
    options = dict(weights=weights, save_probabilities=save_probabilities, processes=mode.processes or 1)
    ensemble(folders, out, **options)
    if not keep_members:
        shutil.rmtree(out / "members")
    console.print(f"{len(cases)} cases by the mean of {sum(weights)} folds of {len(members)} models, in {out}")


def average_validations(
    out: Path, members: Sequence[TrainedModel], folds: Sequence[int], processes: int, save_probabilities: bool
) -> None:
    """The cases of each fold by the mean over the models chosen in it, none of which has trained on them."""
    ending = members[0].file_ending
    for fold in folds:
        validations = [validation_folder(member, fold) for member in members if fold in member.folds]
        cases = find_cases(validations[0], ending)
        if all(is_complete(out, case, ending, save_probabilities) for case in cases):
            console.print(f"fold {fold}: {len(cases)} cases are in {out} already")
            continue
        part = out / "members" / f"fold_{fold}"
        ensemble(validations, part, save_probabilities=save_probabilities, processes=processes)
        for path in part.iterdir():
            if path.suffix != ".json":
                path.replace(out / path.name)
    shutil.rmtree(out / "members", ignore_errors=True)
    for name in ("dataset.json", "plans.json"):
        shutil.copyfile(members[0].folder / name, out / name)


def show_choice(scores: Scores, chosen: Mapping[int, Sequence[str]]) -> None:
    folds = (f"fold {fold}" for fold in chosen)
    table = Table(Column("model", overflow="fold"), *folds, title="Dice in validation; * enters the pool")
    for name, dice in scores.items():
        marks = {fold: " *" if name in names else "  " for fold, names in chosen.items()}
        table.add_row(_shown(name), *(f"{dice[fold]:.4f}{mark}" for fold, mark in marks.items()))
    console.print(table)


def _shown(model: str) -> str:
    """A model's folder as the command names it."""
    trainer, _, configuration = model.split("__")
    return f"{trainer}:{configuration}"
