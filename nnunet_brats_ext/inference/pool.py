"""Of several models the best of each fold, and the mean of the probabilities of all of these.

Henry et al. 2020 (https://arxiv.org/abs/2011.01045) train three candidates per fold and keep two of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_brats_ext.evaluation.presets import find_preset
from nnunet_brats_ext.inference.models import TrainedModel
from nnunet_brats_ext.inference.networks import Machine, Networks
from nnunet_brats_ext.inference.options import PredictOptions
from nnunet_brats_ext.inference.outputs import PredictionTarget, RunSettings
from nnunet_brats_ext.inference.parts import (
    Part,
    files_asked_for,
    files_by_fold,
    missing_in,
    parts_of_fold,
    plan_steps,
)
from nnunet_brats_ext.inference.selection import (
    Candidate,
    Selection,
    described,
    find_candidates,
    find_columns,
    require_as_many,
    score,
    select,
)
from nnunet_brats_ext.inference.systems import Passes, System, pooled
from nnunet_brats_ext.inference.work import Outcome, WorkPlan
from nnunet_brats_ext.storage.nnunet import require_folder

SETTINGS = "pool.json"
BEST = 2


def plan_pool(options: PredictOptions, out: Path) -> WorkPlan:
    """Average the probabilities of the best models of each fold, each chosen model and fold alike.

    They are chosen as by `choose`; scores that are missing are made before the plan. All chosen ones predict the
    images; in a cross-validation, a case is predicted by those that the other half of its fold's cases has chosen.
    `pool.json` in the output folder holds the choice and the scores.
    """
    machine, passes = Machine.from_options(options), replace(Passes.from_options(options), combine="probabilities")
    best = options.best or BEST
    find_columns(options)
    candidates = find_candidates(options)
    require_as_many(best, candidates)
    first = next(iter(candidates.values()))[0]
    if options.images is not None:
        files_asked_for(options, options.images, first.description)  # an error before the work
    scores, scoring = score(replace(options, images=None), candidates)  # of their own cases
    preset = find_preset(options.preset, options.cohort)
    chosen = {fold: select(one, best, options.by, preset) for fold, one in scores.items()}
    images, parts = _parts(options, chosen, first, passes)
    members = dict.fromkeys(one for each in chosen.values() for one in each.best)
    content = {
        "images": str(images.resolve()),
        "best": best,
        "by": options.by,
        **described(chosen),
        "models": [one.file_stamps for one in members],
        **passes.settings,
        **({"half_probabilities": True} if options.half_probabilities else {}),
        **({"cross_validation": True} if options.cross_validation else {}),
        **missing_in(parts),
    }
    settings = RunSettings(out / SETTINGS, content, options.overwrite)
    settings.check()
    target = PredictionTarget(out, first.description.ending, options.save_probabilities, options.half_probabilities)
    cases = [case for part in parts for case in part.files]
    missing = cases if options.overwrite else target.unfinished(cases)
    outcome = Outcome(out, target.label_maps(cases), finished_before=len(cases) - len(missing), notes=scoring.notes)
    steps = plan_steps(parts, missing, target, Networks(machine), out if options.keep_members else None)
    return WorkPlan(steps, machine, outcome, [out], settings, chosen)


def _parts(
    options: PredictOptions, chosen: Mapping[int, Selection], first: Candidate, passes: Passes
) -> tuple[Path, list[Part]]:
    """The images, and their cases: all by each model's mean over its folds, or those of each fold by that fold's."""
    if options.cross_validation:
        images = options.images or require_folder("nnUNet_raw") / first.dataset / "imagesTr"

        def system(held_out: tuple[int, str]) -> System:
            fold, case = held_out
            return _system(chosen[fold].without(case), passes, held_out)

        by_fold = files_by_fold(options, first, list(chosen), images)
        return images, [part for fold, files in by_fold for part in parts_of_fold(fold, files, system)]
    assert options.images is not None, "checked with the options"
    files = files_asked_for(options, options.images, first.description)
    every = [one for each in chosen.values() for one in each.best]
    return options.images, [Part(files, _system(every, passes))]


def _system(chosen: Sequence[Candidate], passes: Passes, held_out: tuple[int, str] | None = None) -> System:
    """The mean of models, in which each counts as often as it has folds; or of those of one case that a fold holds."""
    found = []
    for model in models_of(chosen):
        previous = model.previous_model() if model.previous_stage else None
        if previous and held_out:
            previous = previous.held_out(*held_out)
        found.append((model, previous, float(len(model.weights))))
    return pooled(found, passes)


def models_of(chosen: Sequence[Candidate]) -> list[TrainedModel]:
    """Each model once, with all that was chosen of it."""
    folders = dict.fromkeys(one.folder for one in chosen)
    same = [[one for one in chosen if one.folder == folder] for folder in folders]
    return [replace(each[0], weights=tuple(pair for one in each for pair in one.weights)) for each in same]
