"""Label maps of all training cases by a first stage, several per case, of which the training of a second stage draws.

The expanded training data of Lyu & Shu 2020, https://arxiv.org/abs/2011.02881.
"""

from dataclasses import replace
from pathlib import Path

from nnunet_brats_ext.inference.cases import TrainingCases
from nnunet_brats_ext.inference.choices import SLIDING
from nnunet_brats_ext.inference.chosen import is_chosen
from nnunet_brats_ext.inference.models import TrainedModel, chosen_model
from nnunet_brats_ext.inference.networks import Machine, Networks
from nnunet_brats_ext.inference.options import PredictOptions
from nnunet_brats_ext.inference.outputs import NextStageTarget
from nnunet_brats_ext.inference.systems import Member, Passes, System
from nnunet_brats_ext.inference.work import Outcome, PredictionStep, WorkPlan
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.nnunet import SPLITS, Split, read_splits, require_folder
from nnunet_brats_ext.training.cascade import expanded_folder

MapJob = tuple[str, TrainedModel, list[str]]
"""Name of a map, one fold and checkpoint that makes it, the cases that it makes it of."""


def plan_next_stage(options: PredictOptions) -> WorkPlan:
    """Predict all training cases with every checkpoint of a first stage.

    Out-of-fold, each checkpoint name is one map per case, from the fold that had it for validation; all folds are
    needed. `--in-sample`: each fold and checkpoint is a map of all cases, as in the paper, also of those it trained on.
    `--add`: leave maps that other runs have made; without it they are an error, for the second stage would draw from
    them as well. The maps go to `predicted_next_stage/STAGE2.maps/NAME`, where the second stage finds them; finished
    ones are kept, unless the checkpoints are others now.
    """
    if named := [name for name in options.checkpoints if is_chosen(name)]:
        raise UserError(
            f"-chk {named[0]}: a map has the name of its checkpoint, the same in all folds; name checkpoints"
        )
    model = chosen_model(options)
    if not (following := model.next_stages):
        raise UserError(f"{model.names[2]} is no first stage: nothing in {model.folder}/plans.json follows it")
    if unknown := [stage for stage in options.next_stages if stage not in following]:
        raise UserError(
            f"--next-stages {unknown[0]}: in {model.folder}/plans.json, {', '.join(following)} follows {model.names[2]}"
        )
    preprocessed = require_folder("nnUNet_preprocessed") / model.dataset
    jobs = _in_sample(model, preprocessed) if options.in_sample else _out_of_fold(model, preprocessed)
    # Windows as in the trainer's own validation, whose maps these stand beside.
    passes = replace(Passes.from_options(options), tiling=SLIDING)
    networks = Networks(Machine.from_options(options))
    steps: list[PredictionStep] = []
    for stage in options.next_stages or following:
        maps = expanded_folder(model.folder / "predicted_next_stage" / stage)
        others = sorted({path.name for path in maps.glob("[!.]*")} - {name for name, *_ in jobs})
        if others and not options.add:
            raise UserError(
                f"{maps} already holds {', '.join(others)}, which this command would not make and stage 2 would "
                "draw from as well; delete what is too much, or keep it with --add"
            )
        for cases in dict.fromkeys(tuple(cases) for *_, cases in jobs):
            systems = {
                System((Member(one, passes),)): NextStageTarget(maps / name, stage, preprocessed, passes.settings)
                for name, one, own in jobs
                if tuple(own) == cases
            }
            folds = dict.fromkeys(str(fold) for system in systems for fold in system.members[0].model.folds)
            description = f"Maps for {stage}, fold {' '.join(folds)}"
            steps.append(PredictionStep(description, TrainingCases(cases, preprocessed), systems, networks, maps))
    networks.load([system for step in steps for system in step.systems])
    folders = list(dict.fromkeys(target.out for step in steps for target in step.systems.values()))
    return WorkPlan(steps, networks.machine, Outcome(maps=folders), folders)


def _out_of_fold(model: TrainedModel, preprocessed: Path) -> list[MapJob]:
    splits = _splits(preprocessed)
    if len(model.folds) < len(splits):
        lacking = sorted(set(range(len(splits))) - set(model.folds))
        raise UserError(
            f"maps of all cases out of fold need all {len(splits)} folds; missing or not chosen: {lacking}. "
            "Train them, or predict --in-sample"
        )
    return [
        (name.removesuffix(".pth"), replace(model, weights=((fold, name),)), splits[fold]["val"])
        for name in model.checkpoints
        for fold in range(len(splits))
    ]


def _in_sample(model: TrainedModel, preprocessed: Path) -> list[MapJob]:
    cases = sorted({case for split in _splits(preprocessed) for case in (*split["train"], *split["val"])})
    return [(one.label, one, cases) for one in model.members]


def _splits(preprocessed: Path) -> list[Split]:
    file = preprocessed / SPLITS
    if not file.is_file():
        raise UserError(f"{file} does not exist; nnUNetv2_train or `nnunet_brats convert` makes it")
    return read_splits(file)
