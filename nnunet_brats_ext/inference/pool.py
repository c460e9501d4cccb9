"""Of several models the best of each fold, and the mean of the probabilities of all of these.

Henry et al. 2020 (https://arxiv.org/abs/2011.01045) train three candidates per fold and keep two of them.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_brats_ext.inference.models import TrainedModel, find_model, fold_names
from nnunet_brats_ext.inference.networks import Machine, Networks
from nnunet_brats_ext.inference.options import PredictOptions
from nnunet_brats_ext.inference.outputs import PredictionTarget, RunSettings
from nnunet_brats_ext.inference.parts import Part, files_asked_for, files_by_fold, missing_in, plan_steps
from nnunet_brats_ext.inference.systems import Member, Passes, System
from nnunet_brats_ext.inference.validations import choose_best, read_scores
from nnunet_brats_ext.inference.work import Outcome, WorkPlan
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.nnunet import FINAL, require_folder, trained_folds

SETTINGS = "pool.json"
BEST = 2


def plan_pool(options: PredictOptions, out: Path) -> WorkPlan:
    """Average the probabilities of the best models of each fold, each chosen model and fold alike.

    Which folds of a model enter is chosen among those asked for, or all that any model has. All chosen ones predict the
    images; in a cross-validation, those of a fold its own cases. `pool.json` in the output folder holds the choice and
    the scores.
    """
    machine, passes = Machine.from_options(options), replace(Passes.from_options(options), combine="probabilities")
    models = [_find(word, options) for word in options.models]
    if len({model.folder for model in models}) < len(models):
        raise UserError(f"a model is given twice among {', '.join(model.short_name for model in models)}")
    asked = [fold for fold in fold_names(options.folds) if isinstance(fold, int)]
    if len(asked) < len(options.folds):
        raise UserError("-f all: --models are chosen by the validations of numbered folds")
    folds = sorted(
        {fold for fold in asked if isinstance(fold, int)}
        or {fold for model in models for fold in trained_folds(model.folder)}
    )
    scores = read_scores(models, folds)
    choice = choose_best(scores, options.best or BEST)
    members = [replace(one, folds=tuple(f for f in folds if one.folder.name in choice.chosen[f])) for one in models]
    members = [member for member in members if member.folds]
    images, parts = _parts(options, members, folds, passes)
    content = {
        "images": str(images.resolve()),
        "best": options.best or BEST,
        "scores": scores,
        "chosen": choice.chosen,
        "models": [member.file_stamps for member in members],
        **passes.settings,
        **({"cross_validation": True} if options.cross_validation else {}),
        **missing_in(parts),
    }
    settings = RunSettings(out / SETTINGS, content, options.overwrite)
    settings.check()
    target = PredictionTarget(
        out, members[0].description.ending, options.save_probabilities, options.half_probabilities
    )
    cases = [case for part in parts for case in part.files]
    missing = cases if options.overwrite else target.unfinished(cases)
    outcome = Outcome(out, target.label_maps(cases), finished_before=len(cases) - len(missing))
    steps = plan_steps(parts, missing, target, Networks(machine), out if options.keep_members else None)
    return WorkPlan(steps, machine, outcome, [out], settings, choice)


def _find(word: str, options: PredictOptions) -> TrainedModel:
    trainer, _, configuration = word.partition(":")
    if not configuration:
        raise UserError(f"--models {word}: expected TRAINER:CONFIGURATION")
    if options.dataset is None:
        raise UserError("missing: -d, the number or name of the data set that --models were trained on")
    # The final checkpoint is the one that nnU-Net's validation is of.
    return find_model(options.dataset, trainer, configuration, options.plans, None, [FINAL])


def _parts(
    options: PredictOptions, members: Sequence[TrainedModel], folds: Sequence[int], passes: Passes
) -> tuple[Path, list[Part]]:
    """The images, and their cases: all by each model's mean over its folds, or those of each fold by that fold's."""
    if options.cross_validation:
        images = options.images or require_folder("nnUNet_raw") / members[0].dataset / "imagesTr"
        by_fold = files_by_fold(options, members[0], folds, images)
        return images, [
            Part(files, _system([one for one in members if fold in one.folds], passes, fold), fold)
            for fold, files in by_fold
        ]
    assert options.images is not None, "checked with the options"
    files = files_asked_for(options, options.images, members[0].description)
    return options.images, [Part(files, _system(members, passes))]


def _system(models: Sequence[TrainedModel], passes: Passes, fold: int | None = None) -> System:
    """The mean of models, in which each counts as often as it has folds; or of one fold of each."""
    found = []
    for model in models:
        previous = model.previous_model() if model.previous_stage else None
        if fold is not None:
            model, previous = model.only(fold), previous.only(fold) if previous else None
        found.append((model, previous, float(len(model.folds))))
    return pooled(found, passes)


def pooled(models: Sequence[tuple[TrainedModel, TrainedModel | None, float]], passes: Passes) -> System:
    """The weighted mean of models, each with the one of the stage before that it refines, and its weight."""
    return System(
        tuple(
            Member(model, passes, Member(previous, passes.of_previous_stage) if previous else None, weight)
            for model, previous, weight in models
        )
    )
