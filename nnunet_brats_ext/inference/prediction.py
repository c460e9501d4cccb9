"""Predict: images to label maps, by all stages, folds and checkpoints of a model, on nnU-Net's predictor."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from nnunet_brats_ext.inference.case_files import CaseFiles, check_images, find_image_files
from nnunet_brats_ext.inference.cases import ImageCases
from nnunet_brats_ext.inference.models import TrainedModel, chosen_model, fold_names
from nnunet_brats_ext.inference.options import ModelOptions, PredictOptions
from nnunet_brats_ext.inference.outputs import PredictionTarget, RunSettings
from nnunet_brats_ext.inference.pool import plan_pool
from nnunet_brats_ext.inference.stage_maps import plan_next_stage
from nnunet_brats_ext.inference.work import (
    EnsembleStep,
    Machine,
    Outcome,
    Passes,
    PredictionStep,
    RulesStep,
    Step,
    WorkPlan,
    check_models,
)
from nnunet_brats_ext.predictions.rule_sets import RuleSet, collect_rules
from nnunet_brats_ext.storage.errors import UserError, shorten
from nnunet_brats_ext.storage.nnunet import SPLITS, find_splits, require_folder
from nnunet_brats_ext.storage.options import shown_name

SETTINGS = "predict.json"
Previous = TrainedModel | Sequence[Path] | None
"""What a second stage refines: the predictions of a model, made on the way, or those in folders."""


def predict(
    images: Path | str | None = None, out: Path | str | None = None, model: Path | str | None = None, **options: Any
) -> dict[str, Path]:
    """Predict the images of a folder by a trained model; case -> label map. It prints nothing.

    images: a folder of CASE_0000.nii.gz and so on. out: the folder of the label maps. model: the folder of a trained
    model; or its names as dataset=, trainer=, configuration= and plans=. options: the fields of `PredictOptions`; with
    `for_next_stage`, the result is name of the map -> folder. What an interrupted run has finished is not done again.
    What the user can fix is a UserError, in most cases before anything is written.
    """
    named: dict[str, Any] = {"images": images, "out": out, "model": model, **options}
    outcome = plan_prediction(PredictOptions(**named)).run()
    return outcome.label_maps or {folder.name: folder for folder in outcome.maps}


def plan_prediction(options: PredictOptions) -> WorkPlan:
    """All that the options ask for as a plan of work; models and images are examined, nothing is written."""
    refuse_other_options(options)
    if options.for_next_stage:
        return plan_next_stage(options)
    out, images = required_folders(options)
    if options.models:
        return plan_pool(options, out)
    model = chosen_model(options)
    if images is None:
        images = require_folder("nnUNet_raw") / model.dataset / "imagesTr"
    if options.cross_validation:
        return plan_parts(options, model, out, images, list(parts_by_fold(model, images)))
    whole = Part(model, find_image_files(images, model.description))
    return plan_parts(options, model, out, images, [whole])


def required_folders(options: PredictOptions) -> tuple[Path, Path | None]:
    """The output folder and that of the images, which only a cross-validation can do without."""
    missing = []
    if options.images is None and not options.cross_validation:
        missing.append("-i, the folder of images (or --cross-validation)")
    if options.out is None:
        missing.append("-o, the output folder")
    if options.out is None or missing:
        raise UserError(f"missing: {'; '.join(missing)}")
    return options.out, options.images


# ---- which options go together -------------------------------------------------------------------------------------

OF_MODEL = {field.name for field in fields(ModelOptions)}
OF_NEXT_STAGE = {"for_next_stage", "in_sample", "add"}
OF_POOL = {"models", "best"}
OF_PREVIOUS_STAGE = {"previous", "previous_trainer", "previous_folds", "previous_checkpoints"}


def refuse_other_options(options: PredictOptions) -> None:
    """A UserError where an option is given that means nothing beside the others."""
    every = {field.name for field in fields(options)}
    if options.for_next_stage:
        form, allowed = "with --for-next-stage", OF_MODEL | OF_NEXT_STAGE | {"symmetries", "disable_tta", "processes"}
    elif options.models:  # of which each has its final checkpoint
        of_one = {"model", "trainer", "configuration", "checkpoints", "combine", "rules"}
        form, allowed = "with --models", every - OF_NEXT_STAGE - OF_PREVIOUS_STAGE - of_one
        if options.cross_validation:
            form, allowed = f"{form} --cross-validation", allowed - {"images"}
    else:
        form, allowed = "without --for-next-stage or --models", every - OF_NEXT_STAGE - OF_POOL
    given = [field for field in fields(options) if getattr(options, field.name) != field.default]
    if others := [shown_name(field) for field in given if field.name not in allowed]:
        raise UserError(f"{', '.join(others)}: has no meaning {form}")
    if options.combine == "vote" and options.save_probabilities:
        raise UserError("--save_probabilities: a vote has none; choose --combine probabilities")


# ---- one model -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Cases that the same folds of a model predict: all, or in cross-validation those of one fold."""

    model: TrainedModel
    files: CaseFiles
    fold: int | None = None


def parts_by_fold(model: TrainedModel, images: Path) -> Iterator[Part]:
    """For each fold of a model the cases that it was validated on."""
    found = find_splits(model.dataset, images.parent)
    if found is None:
        raise UserError(f"{SPLITS} of {model.dataset} is missing; nnUNetv2_train or `nnunet_brats convert` makes it")
    place, splits = found
    files = find_image_files(images, model.description)
    for fold in model.folds:
        if not isinstance(fold, int) or fold >= len(splits):
            raise UserError(f"-f {fold}: only folds 0 to {len(splits) - 1} of {place} have cases of their own")
        own = splits[fold]["val"]
        if missing := [case for case in own if case not in files]:
            raise UserError(f"{images} lacks the images of {shorten(missing)}, which are in fold {fold} of {place}")
        yield Part(model.only(fold), {case: files[case] for case in own}, fold)


def plan_parts(
    options: PredictOptions, model: TrainedModel, out: Path, images: Path, parts: Sequence[Part]
) -> WorkPlan:
    """Predict the cases of all parts into `out`; with rules, the label maps before them stay in `out/before_rules`."""
    passes, previous = Passes.from_options(options), find_previous(options, model)
    rules = collect_rules(options.rules, [], model.folder) if options.rules else None
    content = settings_of(options, model, passes, previous, images, rules)
    settings = RunSettings(out / SETTINGS, content, options.overwrite)
    settings.check()
    cases = [case for part in parts for case in part.files]
    result = final = PredictionTarget(out, model.description.ending, options.save_probabilities)
    if rules:  # the probabilities contradict the label maps after them
        result, final = replace(result, out=out / "before_rules"), replace(result, probabilities=False)
    left = cases if options.overwrite else final.unfinished(cases)
    outcome = Outcome(out, final.label_maps(cases), finished_before=len(cases) - len(left))
    plan = WorkPlan([], Machine.from_options(options), outcome, [out], settings)
    if not left:
        return plan
    missing = {*(result.unfinished(cases) if rules and not options.overwrite else left)}
    planned = [_steps_of_part(part, missing, out, result, previous, passes) for part in parts]
    steps = [step for part in planned for step in part]
    if steps:
        first_stage = [(previous, passes.of_previous_stage)] if isinstance(previous, TrainedModel) else []
        check_models([(model, passes), *first_stage])
        folders = previous if isinstance(previous, Sequence) else []
        files = {case: part.files[case] for part in parts for case in part.files if case in missing}
        check_images(files, model, folders, options.processes or 1)
    if rules:
        steps.append(RulesStep(result.out, out, rules, images))
    return replace(plan, steps=steps, scratch=[] if options.keep_members else [out / "members"])


def _steps_of_part(
    part: Part, missing: Collection[str], out: Path, result: PredictionTarget, previous: Previous, passes: Passes
) -> list[Step]:
    """What predicts the missing cases of a part into `result`.

    Each source of previous label maps, and with `vote` each fold and checkpoint of both stages, is a member of its own
    in `out/members`; of several members, all cases are predicted, and then combined.
    """
    if not any(case in missing for case in part.files):
        return []
    vote, prefix = passes.combine == "vote", "" if part.fold is None else f"Fold {part.fold}: "
    models = part.model.members if vote else [part.model]
    first_stage: dict[Path, TrainedModel] = {}
    sources: list[Path | None] = list(previous) if isinstance(previous, Sequence) else [None]
    if isinstance(previous, TrainedModel):
        own = previous if part.fold is None else previous.only(part.fold)
        place = out / "previous_stage"
        first_stage = {place / one.label: one for one in own.members} if vote else {place / own.names[2]: own}
        sources = list(first_stage)
    alone = len(sources) * len(models) == 1
    files = {case: files for case, files in part.files.items() if case in missing or not alone}
    steps: list[Step] = []
    for number, (folder, one) in enumerate(first_stage.items(), start=1):
        description = f"{prefix}Previous stage" + (f" {number} of {len(first_stage)}" if len(first_stage) > 1 else "")
        target = PredictionTarget(folder, result.ending)
        steps.append(PredictionStep(description, one, ImageCases(files), target, passes.of_previous_stage))
    if alone:
        return [*steps, PredictionStep(f"{prefix}Predict", models[0], ImageCases(files, sources[0]), result, passes)]
    place = out / "members" / ("" if part.fold is None else f"fold_{part.fold}")
    members: list[Path] = []
    for source, one in product(sources, models):  # numbered, because sources in two places may share a name
        name = "__".join([f"{len(members):02d}", one.label, *(["on", source.name] if source else [])])
        members.append(place / name)
        description = f"{prefix}Member {len(members)} of {len(sources) * len(models)}"
        target = PredictionTarget(place / name, result.ending, probabilities=True)
        steps.append(PredictionStep(description, one, ImageCases(files, source), target, passes))
    through = None if part.fold is None else place / "combined"  # `result` holds the cases of other folds as well
    return [*steps, EnsembleStep("majority" if vote else "mean", members, result, part.model, through=through)]


def find_previous(options: PredictOptions, model: TrainedModel) -> Previous:
    """Where the label maps come from that the model refines: the folders given, or the model of the stage before."""
    given = [field for field in fields(options) if field.name in OF_PREVIOUS_STAGE]
    given = [field for field in given if getattr(options, field.name) != field.default]
    if model.previous_stage is None:
        if given:
            raise UserError(f"{shown_name(given[0])}: {model.names[2]} has no previous stage")
        return None
    if options.previous:
        return options.previous
    folds = fold_names(options.previous_folds, "-prev_f")
    return model.previous_model(options.previous_trainer, folds, options.previous_checkpoints)


def settings_of(
    options: PredictOptions,
    model: TrainedModel,
    passes: Passes,
    previous: Previous,
    images: Path,
    rules: RuleSet | None,
) -> dict[str, Any]:
    """All that decides the result, as predict.json notes it."""
    before = [previous] if isinstance(previous, TrainedModel) else list(previous or ())
    return {
        "images": str(images.resolve()),
        "model": model.file_stamps,
        "rules": json.loads(rules.to_json()) if rules else None,
        "previous": [one.file_stamps if isinstance(one, TrainedModel) else str(one.resolve()) for one in before],
        **passes.settings,
        **({"cross_validation": True} if options.cross_validation else {}),
    }
