"""Trained models as nnU-Net leaves them: folders of folds, and the stage before them. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunet_brats_ext import papers
from nnunet_brats_ext.inference.chosen import (
    CHOSEN,
    CHOSEN_FILE,
    FoldChoice,
    is_chosen,
    number_of_chosen,
    read_choice,
)
from nnunet_brats_ext.inference.options import OF_PREVIOUS_STAGE, InferenceOptions, ModelOptions
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError, did_you_mean
from nnunet_brats_ext.storage.nnunet import (
    FINAL,
    SAFE,
    datasets_called,
    find_dataset,
    model_name,
    names_of_model,
    require_folder,
    require_known,
    train_command,
    trained_folds,
)
from nnunet_brats_ext.storage.options import shown_name
from nnunet_brats_ext.storage.plans import OF_A_MODEL, find_configuration, read_plans

PLANS = "plans.json"
Fold = int | str
"""The number of a fold, or `all`."""


@dataclass(frozen=True)
class TrainedModel:
    """One trainer on one configuration: some of its folds, and some checkpoints of each.

    weights: fold and name of each checkpoint. choices: of the folds whose checkpoints `choose` has chosen.
    """

    folder: Path
    weights: tuple[tuple[Fold, str], ...]
    choices: Mapping[Fold, FoldChoice] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, folder: Path, folds: Sequence[Fold], checkpoints: Sequence[str] = (FINAL,)) -> TrainedModel:
        """With the same checkpoints of every fold, fold by fold for each name."""
        return cls(folder, tuple((fold, name) for name in checkpoints for fold in folds))

    @property
    def folds(self) -> tuple[Fold, ...]:
        return tuple(dict.fromkeys(fold for fold, _ in self.weights))

    @property
    def checkpoints(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for _, name in self.weights))

    @cached_property
    def plans(self) -> dict[str, Any]:
        return read_plans(self.folder / PLANS)

    @cached_property
    def description(self) -> DatasetDescription:
        """What the data set was that it was trained on."""
        description = DatasetDescription.read(self.folder)
        description.check()
        return description

    @cached_property
    def names(self) -> tuple[str, str, str]:
        """Trainer, plans and configuration: of the folder's name, or of a checkpoint where that is another."""
        if self.folder.name.count("__") == 2 or not self.folds:
            return names_of_model(self.folder)
        from nnunet_brats_ext.inference.checkpoints import names_of_checkpoint  # loads torch

        return names_of_checkpoint(self.files[0])

    @property
    def dataset(self) -> str:
        """The name of the data set, as nnU-Net has it."""
        return str(self.plans.get("dataset_name") or self.folder.parent.name)

    @property
    def previous_stage(self) -> str | None:
        """The configuration whose label maps it refines."""
        return self._configuration.get("previous_stage")

    @property
    def next_stages(self) -> tuple[str, ...]:
        """The configurations that refine its label maps."""
        named = self._configuration.get("next_stage") or ()
        return (named,) if isinstance(named, str) else tuple(named)

    @property
    def patch_size(self) -> tuple[int, ...]:
        """Of training, in voxels, along two or three axes."""
        return tuple(self._configuration["patch_size"])

    @cached_property
    def _configuration(self) -> dict[str, Any]:
        """Its configuration in the plans, with what it inherits."""
        return find_configuration(self.plans, self.names[2], self.folder / PLANS)

    def check(self) -> None:
        """A UserError where plans.json or dataset.json lack something that nnU-Net's prediction needs."""
        lacking = [key for key in OF_A_MODEL if key not in self._configuration]
        if "architecture" not in self._configuration and "UNet_class_name" not in self._configuration:
            lacking.append("architecture")
        if lacking:
            raise UserError(f"{self.folder / PLANS}: configuration {self.names[2]!r} lacks {', '.join(lacking)}")
        _ = self.description

    @property
    def files(self) -> list[Path]:
        """The files of all its checkpoints."""
        return [self.folder / f"fold_{fold}" / name for fold, name in self.weights]

    @property
    def members(self) -> list[TrainedModel]:
        """Each fold with each checkpoint, as a model of its own."""
        return [replace(self, weights=(one,)) for one in self.weights]

    @property
    def label(self) -> str:
        """A name for files of one member: fold_0__checkpoint_final."""
        return "__".join([f"fold_{'_'.join(map(str, self.folds))}", *(Path(name).stem for name in self.checkpoints)])

    @property
    def short_name(self) -> str:
        """The name that --models has for it."""
        trainer, _, configuration = self.names
        return f"{trainer}:{configuration}"

    @property
    def file_stamps(self) -> dict[str, Any]:
        """Size and time of change of each checkpoint, by which one training differs from another."""
        return {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in self.files}

    def only(self, fold: Fold) -> TrainedModel:
        """The same with one of its folds."""
        if fold not in self.folds:
            raise UserError(
                f"fold {fold} of {self.folder} is not among those chosen, {', '.join(map(str, self.folds))}"
            )
        return replace(self, weights=tuple(one for one in self.weights if one[0] == fold))

    def held_out(self, fold: Fold, case: str) -> TrainedModel:
        """One of its folds for a case of its own, with the checkpoints that were chosen without this case."""
        one = self.only(fold)
        if fold not in self.choices:
            return one
        return replace(one, weights=tuple((fold, name) for name in self.choices[fold].without(case)))

    def previous_model(
        self, trainer: str | None = None, folds: Sequence[Fold] = (), checkpoints: Sequence[str] = (FINAL,)
    ) -> TrainedModel:
        """The model of the stage before; trainer: default the one that this model's trainer names."""
        own_trainer, plans, _ = self.names
        if trainer is None:
            trainer = papers.find_trainer(own_trainer).previous_stage or own_trainer
        folder = self.folder.parent / model_name(trainer, plans, str(self.previous_stage))
        return open_model(folder, folds, checkpoints)


def chosen_model(options: ModelOptions) -> TrainedModel:
    """The model that the options name, with `-m` or with `-d`, `-tr` and `-c`."""
    names = {"-d": options.dataset, "-tr": options.trainer, "-c": options.configuration}
    given = [flag for flag, value in names.items() if value is not None]
    if options.model:
        if given:
            raise UserError(f"-m {options.model} names the model by its folder; leave out {' '.join(given)}")
        return open_model(options.model.absolute(), fold_names(options.folds), options.checkpoints)
    if missing := [flag for flag in names if flag not in given]:
        raise UserError(f"missing: {', '.join(missing)}; a model is named by -d, -tr and -c, or by its folder with -m")
    dataset, trainer, configuration = map(str, names.values())
    folds = fold_names(options.folds)
    return find_model(dataset, trainer, configuration, options.plans, folds, options.checkpoints)


Previous = TrainedModel | Sequence[Path] | None
"""What a second stage refines: the predictions of a model, made on the way, or those in folders."""


def find_previous(options: InferenceOptions, model: TrainedModel) -> Previous:
    """Where the label maps come from that the model refines: the folders given, or the model of the stage before."""
    given = [one for one in fields(options) if one.name in OF_PREVIOUS_STAGE]
    given = [one for one in given if getattr(options, one.name) != one.default]
    if model.previous_stage is None:
        if given:
            raise UserError(f"{shown_name(given[0])}: {model.names[2]} has no previous stage")
        return None
    if options.previous:
        refuse_twice([str(folder.resolve()) for folder in options.previous], "-prev_stage_predictions")
        return options.previous
    folds = fold_names(options.previous_folds, "-prev_f")
    return model.previous_model(options.previous_trainer, folds, options.previous_checkpoints)


def fold_names(words: Sequence[str | int], flag: str = "-f") -> tuple[Fold, ...]:
    """Folds as they are given: numbers, or `all`."""
    if wrong := [word for word in map(str, words) if not word.isdecimal() and word != "all"]:
        raise UserError(f"{flag} {wrong[0]}: expected the number of a fold, or all")
    folds = tuple(word if word == "all" else int(word) for word in words)
    refuse_twice(folds, flag)
    return folds


def refuse_twice(given: Sequence[object], flag: str) -> None:
    """A UserError where something is given twice, which would count twice in an average or a vote."""
    if twice := [one for number, one in enumerate(given) if one in given[:number]]:
        raise UserError(f"{flag}: {twice[0]} is given twice, and would count twice; give it once")


def find_model(
    dataset: str,
    trainer: str,
    configuration: str,
    plans: str = "nnUNetPlans",
    folds: Sequence[Fold] = (),
    checkpoints: Sequence[str] = (FINAL,),
) -> TrainedModel:
    """A model in nnUNet_results; the errors list what is there instead, and say how to train it."""
    results, name = require_folder("nnUNet_results"), model_name(trainer, plans, configuration)
    for place in datasets_called(dataset, results):
        if (place / name / PLANS).is_file():
            return open_model(find_dataset(dataset, results) / name, folds, checkpoints)
    papers.find_trainer(trainer)  # which takes its time, and names the closest one where nobody knows it
    known = require_known(dataset, results).name
    models = sorted(path.name for path in (results / known).glob("*__*__*"))
    there = f"; there are {', '.join(models)}{did_you_mean(name, models)}" if models else ""
    command = train_command(known, configuration, "FOLD", trainer, plans)
    raise UserError(
        f"{'no such model' if models else 'nothing'} is trained on {known} yet, in {results}{there}; train it, for "
        f"each FOLD: {command}"
    )


def open_model(folder: Path, folds: Sequence[Fold] = (), checkpoints: Sequence[str] = (FINAL,)) -> TrainedModel:
    """A model by its folder, whose checkpoints exist.

    folds: empty takes all numbered ones that hold the first checkpoint. checkpoints: names, or `chosen`, those that
    `choose` has chosen in each fold, or `chosen:2`, the best two of these. None at all leaves them to be named later.
    """
    if not (folder / PLANS).is_file():
        others = sorted(path.name for path in folder.parent.glob("*__*__*")) if folder.parent.is_dir() else []
        there = f"there are {', '.join(others)}" if others else "nothing is trained there yet"
        raise UserError(f"{folder} is no trained model; in {folder.parent} {there}")
    if not checkpoints:
        return TrainedModel(folder, ())
    refuse_twice(checkpoints, "-chk")
    if any(map(is_chosen, checkpoints)):
        model = _with_chosen(folder, folds, checkpoints)
    else:
        trained = tuple(folds) or trained_folds(folder, checkpoints[0])
        if not trained:
            raise UserError(f"no fold of {folder} holds {checkpoints[0]}; train it, or choose -f and -chk")
        model = TrainedModel.of(folder, trained, checkpoints)
    for file in model.files:
        if not file.is_file():
            others = sorted(path.name for path in file.parent.glob("[!.]*") if path.suffix in (".pth", SAFE))
            raise UserError(f"{file} does not exist; {file.parent.name} holds {', '.join(others) or 'no checkpoint'}")
    model.check()
    return model


def _with_chosen(folder: Path, folds: Sequence[Fold], checkpoints: Sequence[str]) -> TrainedModel:
    if len(checkpoints) > 1:
        raise UserError(f"{' '.join(checkpoints)}: {CHOSEN} stands alone, for the checkpoints that were chosen")
    number = number_of_chosen(checkpoints[0])
    there = tuple(folds) or trained_folds(folder, CHOSEN_FILE)
    if not there:
        raise UserError(f"no fold of {folder} holds {CHOSEN_FILE}; `nnunet_brats choose -m {folder}` writes it")
    choices = {fold: read_choice(folder / f"fold_{fold}", number) for fold in there}
    weights = tuple((fold, name) for fold, choice in choices.items() for name in choice.checkpoints)
    if not weights:
        raise UserError(f"{folder}: none of its checkpoints was chosen; others were better. Leave this model out")
    return TrainedModel(folder, weights, choices)
