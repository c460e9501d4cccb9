"""Predict: images to label maps, by all stages, folds and checkpoints of a model, on nnU-Net's predictor."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_brats_ext.evaluation.by_sequences import sets_of
from nnunet_brats_ext.inference.models import Previous, TrainedModel, chosen_model, find_previous
from nnunet_brats_ext.inference.networks import Machine, Networks
from nnunet_brats_ext.inference.options import OF_PREVIOUS_STAGE, ModelOptions, PredictOptions, check_ties
from nnunet_brats_ext.inference.outputs import BEFORE_RULES, PredictionTarget, RunSettings
from nnunet_brats_ext.inference.parts import (
    Part,
    files_asked_for,
    files_by_fold,
    missing_in,
    parts_of_fold,
    plan_steps,
)
from nnunet_brats_ext.inference.pool import plan_pool
from nnunet_brats_ext.inference.stage_maps import plan_next_stage
from nnunet_brats_ext.inference.systems import Passes, system_of
from nnunet_brats_ext.inference.work import Outcome, RulesStep, Step, WorkPlan
from nnunet_brats_ext.predictions.rule_sets import RuleSet, collect_rules
from nnunet_brats_ext.storage.errors import UserError, each_notice_once
from nnunet_brats_ext.storage.nnunet import require_folder
from nnunet_brats_ext.storage.options import shown_name

SETTINGS = "predict.json"


def predict(
    images: Path | str | None = None, out: Path | str | None = None, model: Path | str | None = None, **options: Any
) -> dict[str, Path]:
    """Predict the images of a folder by a trained model; case -> label map. It prints nothing.

    images: a folder of CASE_0000.nii.gz and so on. out: the folder of the label maps. model: the folder of a trained
    model; or its names as dataset=, trainer=, configuration= and plans=. options: the fields of `PredictOptions`; with
    `for_next_stage`, the result is name of the map -> folder, and with `by_sequences` set of sequences -> folder. What
    an interrupted run has finished is not done again. What the user can fix is a UserError, in most cases before
    anything is written.
    """
    named: dict[str, Any] = {"images": images, "out": out, "model": model, **options}
    asked = PredictOptions(**named)
    if asked.by_sequences:
        with each_notice_once():
            outcomes = (plan.run() for plan in plan_by_sequences(asked))
            return {one.out.name: one.out for one in outcomes if one.out}
    outcome = plan_prediction(asked).run()
    return outcome.label_maps or {folder.name: folder for folder in outcome.maps}


def plan_by_sequences(options: PredictOptions) -> Iterator[WorkPlan]:
    """The same prediction with every set of the model's sequences, into OUT/T1+FLAIR and so on, the largest set first.

    Models are loaded once for all of them.
    """
    refuse_other_options(options)
    if options.sequences:
        raise UserError("--by-sequences predicts with every set of the sequences; leave out --sequences")
    out, images = required_folders(options)
    networks = Networks(Machine.from_options(options))
    for name, one in sets_of(chosen_model(options).description.acquired).items():
        of_set = replace(options, sequences=one, out=out / name, by_sequences=False, missing=True)
        yield plan_model(of_set, out / name, images, networks)


def plan_prediction(options: PredictOptions) -> WorkPlan:
    """All that the options ask for as a plan of work; models and images are examined, and nothing is written there.

    With several models, the scores that they are chosen by are made before, where they are missing.
    """
    refuse_other_options(options)
    if options.for_next_stage:
        return plan_next_stage(options)
    out, images = required_folders(options)
    if options.models:
        return plan_pool(options, out)
    return plan_model(options, out, images, Networks(Machine.from_options(options)))


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
OF_NEXT_STAGE = {"for_next_stage", "next_stages", "in_sample", "add"}
OF_POOL = {"models", "best", "by", "preset", "cohort"}


def refuse_other_options(options: PredictOptions) -> None:
    """A UserError where an option is given that means nothing beside the others."""
    every = {field.name for field in fields(options)}
    if options.for_next_stage:
        form, allowed = "with --for-next-stage", OF_MODEL | OF_NEXT_STAGE | {"symmetries", "disable_tta", "processes"}
    elif options.models:  # of which each has its final checkpoint
        of_one = {"model", "trainer", "configuration", "checkpoints", "combine", "ties", "rules"}
        form, allowed = "with --models", every - OF_NEXT_STAGE - OF_PREVIOUS_STAGE - of_one
        if options.cross_validation:
            form, allowed = f"{form} --cross-validation", allowed - {"images"}
    else:
        form, allowed = "without --for-next-stage or --models", every - OF_NEXT_STAGE - OF_POOL
    given = [field for field in fields(options) if getattr(options, field.name) != field.default]
    if options.by_sequences and (options.models or options.for_next_stage):
        raise UserError("--by-sequences: predict with one model, named by -tr and -c or by -m")
    if others := [shown_name(field) for field in given if field.name not in allowed]:
        raise UserError(f"{', '.join(others)}: has no meaning {form}")
    if options.half_probabilities and not options.save_probabilities:
        raise UserError("--half-probabilities: has no meaning without --save_probabilities")
    check_ties(options.ties, options.combine)
    if options.combine == "vote" and options.save_probabilities:
        raise UserError("--save_probabilities: a vote has none; choose --combine probabilities")


# ---- one model -----------------------------------------------------------------------------------------------------


def plan_model(options: PredictOptions, out: Path, images: Path | None, networks: Networks) -> WorkPlan:
    """Predict by one model into `out`; with rules, the label maps before them stay in `out/before_rules`."""
    model = chosen_model(options)
    passes, previous = Passes.from_options(options), find_previous(options, model)
    if images is None:
        images = require_folder("nnUNet_raw") / model.dataset / "imagesTr"
    if options.cross_validation:
        by_fold = files_by_fold(options, model, model.folds, images)
        held_out = partial(system_of, model, previous, passes)
        parts = [part for fold, files in by_fold for part in parts_of_fold(fold, files, held_out)]
    else:
        files = files_asked_for(options, images, model.description)
        parts = [Part(files, system_of(model, previous, passes))]
    rules = collect_rules(options.rules, [], model.folder) if options.rules else None
    missing = missing_in(parts)
    if missing and rules and rules.needs_images:
        raise UserError(f"--rules: {', '.join(rules.needing_images)} looks at all sequences, which some cases lack")
    content = {**settings_of(options, model, passes, previous, images, rules), **missing}
    settings = RunSettings(out / SETTINGS, content, options.overwrite)
    settings.check()
    cases = [case for part in parts for case in part.files]
    result = final = PredictionTarget(
        out, model.description.ending, options.save_probabilities, options.half_probabilities
    )
    if rules:  # the probabilities contradict the label maps after them
        result, final = replace(result, out=out / BEFORE_RULES), replace(result, probabilities=False)
    left = cases if options.overwrite else final.unfinished(cases)
    outcome = Outcome(out, final.label_maps(cases), finished_before=len(cases) - len(left))
    plan = WorkPlan([], networks.machine, outcome, [out], settings)
    if not left:
        return plan
    unfinished = left if options.overwrite else result.unfinished(cases)
    steps: list[Step] = [*plan_steps(parts, unfinished, result, networks, out if options.keep_members else None)]
    if rules:
        steps.append(RulesStep(result.out, out, rules, images))
    return replace(plan, steps=steps)


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
        **({"half_probabilities": True} if options.half_probabilities else {}),
        **(_of_cross_validation([model, *before]) if options.cross_validation else {}),
    }


def _of_cross_validation(models: Sequence[TrainedModel | Path]) -> dict[str, Any]:
    """What decides a cross-validation besides: of checkpoints that `choose` has chosen, which predict which cases."""
    choices = [choice for one in models if isinstance(one, TrainedModel) for choice in one.choices.values()]
    halves = [[sorted(cases), names] for choice in choices for cases, names in choice.halves.items()]
    return {"cross_validation": True, **({"chosen_by_others": halves} if halves else {})}
