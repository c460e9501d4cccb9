"""Of several models the best of each fold, and the mean of the probabilities of all of these.

Henry et al. 2020 (https://arxiv.org/abs/2011.01045) train three candidates per fold and keep two of them.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_brats_ext.inference.case_files import check_images, find_image_files
from nnunet_brats_ext.inference.cases import ImageCases
from nnunet_brats_ext.inference.models import TrainedModel, find_model, fold_names
from nnunet_brats_ext.inference.options import PredictOptions
from nnunet_brats_ext.inference.outputs import PredictionTarget, RunSettings
from nnunet_brats_ext.inference.validations import (
    choose_best,
    read_scores,
    refuse_without_probabilities,
    validation_folder,
)
from nnunet_brats_ext.inference.work import (
    EnsembleStep,
    Machine,
    Outcome,
    Passes,
    PredictionStep,
    Step,
    WorkPlan,
    check_models,
)
from nnunet_brats_ext.predictions.folders import find_cases
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.nnunet import FINAL, trained_folds

SETTINGS = "pool.json"
BEST = 2


def plan_pool(options: PredictOptions, out: Path) -> WorkPlan:
    """Average the probabilities of the best models of each fold, each chosen model and fold alike.

    Which folds of a model enter is chosen among those asked for, or all that any model has. All chosen ones predict the
    images; for the cross-validation, what they have predicted for the cases of their own folds is averaged instead.
    `pool.json` in the output folder holds the choice and the scores.
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
    scores = read_scores(models, folds, ["--npz"] if options.cross_validation else [])
    choice = choose_best(scores, options.best or BEST)
    members = [replace(one, folds=tuple(f for f in folds if one.folder.name in choice.chosen[f])) for one in models]
    members = [member for member in members if member.folds]
    if options.cross_validation:
        refuse_without_probabilities(members)
    content = {
        "images": str(options.images.resolve()) if options.images else None,
        "best": options.best or BEST,
        "scores": scores,
        "chosen": choice.chosen,
        "models": [member.file_stamps for member in members],
        **({} if options.cross_validation else passes.settings),
    }
    settings = RunSettings(out / SETTINGS, content, options.overwrite)
    settings.check()
    target = PredictionTarget(out, members[0].description.ending, options.save_probabilities)
    plan = WorkPlan((), machine, Outcome(out), [out], settings, choice=choice)
    if options.cross_validation:
        return _average_validations(plan, target, members, folds, options)
    return _predict_images(plan, target, members, passes, options)


def _find(word: str, options: PredictOptions) -> TrainedModel:
    trainer, _, configuration = word.partition(":")
    if not configuration:
        raise UserError(f"--models {word}: expected TRAINER:CONFIGURATION")
    if options.dataset is None:
        raise UserError("missing: -d, the number or name of the data set that --models were trained on")
    # The final checkpoint is the one that nnU-Net's validation is of.
    return find_model(options.dataset, trainer, configuration, options.plans, None, [FINAL])


def _predict_images(
    plan: WorkPlan,
    target: PredictionTarget,
    members: Sequence[TrainedModel],
    passes: Passes,
    options: PredictOptions,
) -> WorkPlan:
    """Each model once, by the mean over its folds; then their mean, where each counts as often as it has folds."""
    assert options.images is not None, "checked with the options"
    files = find_image_files(options.images, members[0].description)
    plan.outcome.label_maps |= target.label_maps(files)
    if not options.overwrite and not target.unfinished(list(files)):
        plan.outcome.finished_before = len(files)
        return plan
    check_models((member, passes) for member in members)
    check_images(files, members[0], processes=options.processes or 1)
    steps: list[Step] = []
    folders = [target.out / "members" / member.folder.name for member in members]
    for member, folder in zip(members, folders, strict=True):
        previous = None
        if member.previous_stage:
            first = member.previous_model()
            check_models([(first, passes.of_previous_stage)])
            previous = folder / "previous_stage" / first.names[2]
            own = PredictionTarget(previous, target.ending)
            steps.append(PredictionStep("Previous stage", first, ImageCases(files), own, passes.of_previous_stage))
        own = PredictionTarget(folder, target.ending, probabilities=True)
        steps.append(PredictionStep(member.short_name, member, ImageCases(files, previous), own, passes))
    steps.append(EnsembleStep("mean", folders, target, members[0], [len(member.folds) for member in members]))
    return replace(plan, steps=steps, scratch=[] if options.keep_members else [target.out / "members"])


def _average_validations(
    plan: WorkPlan,
    target: PredictionTarget,
    members: Sequence[TrainedModel],
    folds: Sequence[int],
    options: PredictOptions,
) -> WorkPlan:
    """The cases of each fold by the mean over the models chosen in it, none of which has trained on them."""
    steps = []
    for fold in folds:
        validations = [validation_folder(member, fold) for member in members if fold in member.folds]
        cases = find_cases(validations[0], target.ending)
        plan.outcome.label_maps |= target.label_maps(cases)
        if not options.overwrite and not target.unfinished(list(cases)):
            plan.outcome.finished_before += len(cases)
            continue
        part = target.out / "members" / f"fold_{fold}"
        steps.append(EnsembleStep("mean", validations, target, members[0], through=part))
    return replace(plan, steps=steps, scratch=[target.out / "members"])
