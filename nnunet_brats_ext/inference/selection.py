"""`choose`: of kept snapshots and of candidate models, in each fold those that predict its cases best.

The papers take their snapshots and models so (Henry et al. 2020, https://arxiv.org/abs/2011.01045; Lyu & Shu 2020,
https://arxiv.org/abs/2011.02881; Zhou et al. 2020, https://arxiv.org/abs/1906.01796). Candidates predict as `predict
--cross-validation` does, case by case, and their scores are kept: another choice among them predicts nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_brats_ext.evaluation.presets import Preset, find_preset
from nnunet_brats_ext.evaluation.ranking import score_array
from nnunet_brats_ext.evaluation.results import CaseScores
from nnunet_brats_ext.evaluation.rule_selection import ScoreColumn, candidate_means, order_of_candidates
from nnunet_brats_ext.evaluation.tune import columns_to_choose_by
from nnunet_brats_ext.inference.case_files import check_images
from nnunet_brats_ext.inference.cases import ImageCases
from nnunet_brats_ext.inference.chosen import CHOSEN_FILE, FoldChoice, choice_content, digest_of
from nnunet_brats_ext.inference.models import (
    Previous,
    TrainedModel,
    chosen_model,
    find_model,
    find_previous,
    fold_names,
)
from nnunet_brats_ext.inference.networks import Machine, Networks
from nnunet_brats_ext.inference.options import ChooseOptions, InferenceOptions
from nnunet_brats_ext.inference.parts import files_by_fold, parts_of_fold
from nnunet_brats_ext.inference.scores import FOLDER, FinishScores, ScoreTarget
from nnunet_brats_ext.inference.systems import Passes, System, system_of
from nnunet_brats_ext.inference.work import Outcome, PredictionStep, Step, WorkPlan
from nnunet_brats_ext.storage.errors import UserError, refuse, shorten
from nnunet_brats_ext.storage.json_files import write_json
from nnunet_brats_ext.storage.nnunet import FINAL, require_folder, train_command, trained_folds

LATEST = "checkpoint_latest.pth"  # what a training goes on from, which is no candidate
Candidate = TrainedModel
"""One checkpoint of one fold."""


@dataclass(frozen=True)
class Selection:
    """What the cases of a fold choose among its candidates.

    means: of the score, by candidate. best: by all cases, the best first. halves: cases -> the best by the other half.
    """

    means: Mapping[Candidate, float]
    best: tuple[Candidate, ...]
    halves: Mapping[tuple[str, ...], tuple[Candidate, ...]]

    def without(self, case: str) -> tuple[Candidate, ...]:
        """The best by cases of the fold without this one, so that it is not scored by its own choice."""
        return next(best for cases, best in self.halves.items() if case in cases)


def choose(model: Path | str | None = None, **options: Any) -> dict[int, Selection]:
    """Choose the best checkpoints of each fold, and write them where `predict -chk chosen` finds them.

    model: the folder of a trained model; or its names as dataset=, trainer=, configuration= and plans=; or models=.
    options: the fields of `ChooseOptions`. It prints nothing. What an interrupted run has scored is not scored again.
    """
    named: dict[str, Any] = {"model": model, **options}
    return choose_checkpoints(ChooseOptions(**named))[0]


def choose_checkpoints(options: ChooseOptions) -> tuple[dict[int, Selection], Outcome]:
    """The same with its options in one object, and with what the user should read of the predictions."""
    find_columns(options)
    candidates = find_candidates(options)
    require_as_many(options.best, candidates)
    scores, outcome = score(options, candidates)
    chosen = {fold: select(one, options.best, options.by, _preset(options)) for fold, one in scores.items()}
    for fold, selection in chosen.items():
        for folder in dict.fromkeys(one.folder for one in selection.means):
            place = folder / f"fold_{fold}"
            write_json(place / CHOSEN_FILE, choice_content(place, _of_model(selection, folder)))
    if options.out:
        write_json(options.out, {"by": options.by, "best": options.best, **described(chosen)})
    return chosen, outcome


def _of_model(selection: Selection, folder: Path) -> FoldChoice:
    def names(candidates: Sequence[Candidate]) -> tuple[str, ...]:
        return tuple(one.checkpoints[0] for one in candidates if one.folder == folder)

    return FoldChoice(names(selection.best), {cases: names(best) for cases, best in selection.halves.items()})


def described(chosen: Mapping[int, Selection]) -> dict[str, Any]:
    """The choice of all folds as JSON: names of candidates with their mean score, and those chosen, the best first."""
    return {
        "scores": {fold: {name_of(one): mean for one, mean in each.means.items()} for fold, each in chosen.items()},
        "chosen": {fold: [name_of(one) for one in each.best] for fold, each in chosen.items()},
    }


def name_of(candidate: Candidate) -> str:
    """TRAINER:CONFIGURATION, and the checkpoint unless it is the final one."""
    (checkpoint,) = candidate.checkpoints
    name = checkpoint.removeprefix("checkpoint_").removesuffix(".pth")
    return candidate.short_name if checkpoint == FINAL else f"{candidate.short_name} {name}"


# ---- candidates ----------------------------------------------------------------------------------------------------


def find_candidates(options: InferenceOptions) -> dict[int, list[Candidate]]:
    """The candidates of each fold; one error lists the checkpoints that are missing, and the commands that make them.

    Of one model all checkpoints that are kept, the earliest first; of several the final one of each.
    """
    folds = fold_names(options.folds)
    if "all" in folds:
        raise UserError("-f all: candidates are chosen by the cases that a numbered fold holds out")
    if options.models:
        models = _several(options)
        wanted = options.checkpoints or (FINAL,)
    else:
        models = [chosen_model(replace(options, folds=(), checkpoints=()))]
        wanted = options.checkpoints
    numbers = sorted({fold for fold in folds if isinstance(fold, int)}) or _trained(models, wanted)
    found: dict[int, list[Candidate]] = {}
    for fold in numbers:
        pairs = [(model, name) for model in models for name in wanted or _kept(model, fold)]
        found[fold] = [TrainedModel.of(model.folder, [fold], [name]) for model, name in pairs]
    lacks = [lack for each in found.values() for one in each if (lack := _lack(one))]
    lacks += [f"{models[0].folder}/fold_{fold} holds no checkpoint" for fold, each in found.items() if not each]
    refuse(lacks, "choose among these (-f and -chk name fewer)")
    for model in models:
        TrainedModel.of(model.folder, numbers[:1], found[numbers[0]][0].checkpoints).check()
    return found


def _several(options: InferenceOptions) -> list[TrainedModel]:
    models = []
    for word in options.models:
        trainer, _, configuration = word.partition(":")
        if not configuration:
            raise UserError(f"--models {word}: expected TRAINER:CONFIGURATION")
        if options.dataset is None:
            raise UserError("missing: -d, the number or name of the data set that --models were trained on")
        models.append(find_model(options.dataset, trainer, configuration, options.plans, checkpoints=()))
    if len({model.folder for model in models}) < len(models):
        raise UserError(f"a model is given twice among {', '.join(options.models)}")
    return models


def _trained(models: Sequence[TrainedModel], names: Sequence[str]) -> list[int]:
    patterns = names or ("checkpoint_*.pth",)
    folds = sorted({fold for model in models for name in patterns for fold in trained_folds(model.folder, name)})
    if not folds:
        raise UserError(f"no fold of {models[0].folder} holds {' '.join(patterns)}; train it first")
    return folds


def _kept(model: TrainedModel, fold: int) -> list[str]:
    """The names of the checkpoints of a fold: snapshots by their epoch, then the others."""
    files = {path.name for path in (model.folder / f"fold_{fold}").glob("checkpoint_*.pth")} - {LATEST}

    def by_epoch(name: str) -> tuple[bool, int, str]:
        number = name.removeprefix("checkpoint_epoch_").removesuffix(".pth")
        return (not number.isdecimal(), int(number) if number.isdecimal() else 0, name)

    return sorted(files, key=by_epoch)


def _lack(candidate: Candidate) -> str | None:
    """What is missing of a candidate, with the command that makes it."""
    (file,) = candidate.files
    if file.is_file():
        return None
    trainer, plans, configuration = candidate.names
    begun = ["--c"] if any(file.parent.glob("checkpoint_*.pth")) else []
    (fold,) = candidate.folds
    command = train_command(candidate.folder.parent.name, configuration, fold, trainer, plans, begun)
    return f"{file.parent} lacks {file.name}: {command}" if file.name == FINAL else f"{file.parent} lacks {file.name}"


def require_as_many(best: int, candidates: Mapping[int, Sequence[Candidate]]) -> None:
    for fold, each in candidates.items():
        if best > len(each):
            raise UserError(f"--best {best} of {len(each)} candidates in fold {fold}: choose 1 to {len(each)}")


# ---- scores --------------------------------------------------------------------------------------------------------


def _preset(options: InferenceOptions) -> Preset:
    return find_preset(options.preset, options.cohort)


def find_columns(options: InferenceOptions) -> list[ScoreColumn]:
    return columns_to_choose_by(options.by, _preset(options))


def score(
    options: InferenceOptions, candidates: Mapping[int, Sequence[Candidate]]
) -> tuple[dict[int, dict[Candidate, CaseScores]], Outcome]:
    """The scores of all candidates, on each case of their fold; those that are kept need no prediction."""
    machine, passes = Machine.from_options(options), Passes.from_options(options)
    first = next(iter(candidates.values()))[0]
    raw = require_folder("nnUNet_raw") / first.dataset
    images = options.images or raw / "imagesTr"
    references = {path.name.removesuffix(first.description.ending): path for path in (raw / "labelsTr").glob("[!.]*")}
    networks, steps, loaded = Networks(machine), list[Step](), list[System]()
    folders: list[Path] = []
    targets: dict[int, dict[Candidate, ScoreTarget]] = {}
    checked: dict[str, Any] = {}
    for fold, files in files_by_fold(options, first, list(candidates), images):
        if lacking := [case for case in files if case not in references]:
            raise UserError(f"{raw / 'labelsTr'} lacks the labels of {shorten(lacking)}")
        stages = {one: _previous(options, one) for one in candidates[fold]}
        systems = {one: parts_of_fold(fold, files, partial(system_of, one, stages[one], passes)) for one in stages}
        targets[fold] = {}
        for one, parts in systems.items():
            settings = _settings(options, one, [part.system for part in parts], passes)
            file = one.files[0].parent / FOLDER / f"{one.files[0].stem}.json"
            targets[fold][one] = ScoreTarget(file, settings, references, _preset(options))
        # Candidates of one model and stage before see a case one after the other, and share what they see.
        groups: dict[tuple[str, ...], dict[System, ScoreTarget]] = {}
        for one, parts in systems.items():
            for part in parts:
                if targets[fold][one].unfinished(cases := tuple(part.files)):
                    groups.setdefault(cases, {})[part.system] = targets[fold][one]
        for cases, group in groups.items():
            here = ImageCases({case: files[case] for case in cases})
            place = next(iter(group.values())).file.parent
            steps.append(PredictionStep(f"Fold {fold}: Score", here, group, networks, place))
            loaded += group
            checked |= here.files
        if groups or any(one.out.is_dir() for one in targets[fold].values()):  # a run was killed before its last step
            steps.append(FinishScores(list(targets[fold].values())))
            folders += dict.fromkeys(one.file.parent for one in targets[fold].values())
    if loaded:
        networks.load(loaded)
        previous = dict.fromkeys(folder for system in loaded for folder in system.folders)
        check_images(checked, first, [*previous, raw / "labelsTr"], machine.processes or 1)
    outcome = WorkPlan(steps, machine, Outcome(), folders).run()
    return {fold: {one: target.read() for one, target in each.items()} for fold, each in targets.items()}, outcome


def _previous(options: InferenceOptions, candidate: Candidate) -> Previous:
    if options.models:
        return candidate.previous_model() if candidate.previous_stage else None
    return find_previous(options, candidate)


def _settings(
    options: InferenceOptions, candidate: Candidate, systems: Sequence[System], passes: Passes
) -> dict[str, Any]:
    """All that decides the scores of a candidate; by content, so that a folder may be copied."""
    sources = dict.fromkeys(source for system in systems for source in system.sources)
    previous = {f"{one.model.folder.name} {one.name}": [*map(digest_of, one.model.files)] for one in sources}
    folders = dict.fromkeys(str(folder.resolve()) for system in systems for folder in system.folders)
    return {
        "checkpoint": digest_of(candidate.files[0]),
        "preset": options.preset,
        "cohort": options.cohort,
        **{name: value for name, value in passes.settings.items() if name != "combine" or previous},
        **({"previous": previous or list(folders)} if previous or folders else {}),
        **({"images": str(options.images.resolve())} if options.images else {}),
        **({"missing": True} if options.missing else {}),
        **({"sequences": options.sequences} if options.sequences else {}),
    }


# ---- the choice ----------------------------------------------------------------------------------------------------


def select(scores: Mapping[Candidate, CaseScores], best: int, by: str, preset: Preset) -> Selection:
    """The `best` candidates of a fold, by all its cases and by each half of them; of equals the first.

    scores: of each candidate on the same cases. by: as in `ChooseOptions`.
    """
    candidates, cases = list(scores), sorted(next(iter(scores.values())))
    columns = columns_to_choose_by(by, preset)
    objective = "dice" if by in preset.regions else by
    table = score_array(list(scores.values()), cases, columns).swapaxes(0, 1)

    def means(rows: Sequence[int]) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return candidate_means(table[list(rows)], columns, objective)

    def best_by(rows: Sequence[int]) -> tuple[Candidate, ...]:
        return tuple(candidates[i] for i in order_of_candidates(means(rows), objective)[:best])

    everything = range(len(cases))
    if not np.isfinite(whole := means(everything)).any():
        raise UserError(f"--by {by}: none of {shorten(cases)} has such a score; choose by another")
    halves = (everything[::2], everything[1::2])
    return Selection(
        dict(zip(candidates, whole.tolist(), strict=True)),
        best_by(everything),
        {
            # A fold of one case has no other to choose by.
            tuple(cases[i] for i in half): best_by(other or everything)
            for half, other in (halves, halves[::-1])
            if half
        },
    )
