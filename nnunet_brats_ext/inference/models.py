"""Trained models as nnU-Net leaves them: folders of folds, and of the stage before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunet_brats_ext import papers
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.nnunet import FINAL, model_name, names_of_model, trained_folds


@dataclass(frozen=True)
class TrainedModel:
    """One trainer on one configuration: some of its folds, and some checkpoints of each."""

    folder: Path
    folds: tuple[int | str, ...]
    checkpoints: tuple[str, ...] = (FINAL,)

    @property
    def plans(self) -> dict[str, Any]:
        return read_json(self.folder / "plans.json")

    @property
    def file_ending(self) -> str:
        return read_json(self.folder / "dataset.json")["file_ending"]

    @property
    def names(self) -> tuple[str, str, str]:
        """Trainer, plans and configuration."""
        return names_of_model(self.folder)

    @property
    def previous_stage(self) -> str | None:
        return self.plans["configurations"][self.names[2]].get("previous_stage")

    @property
    def members(self) -> list[TrainedModel]:
        """Each fold with each checkpoint, as a model of its own."""
        return [TrainedModel(self.folder, (fold,), (name,)) for name in self.checkpoints for fold in self.folds]

    @property
    def label(self) -> str:
        """What to call a single member: fold_0__checkpoint_final."""
        return "__".join(
            [f"fold_{'_'.join(map(str, self.folds))}", *(name.removesuffix(".pth") for name in self.checkpoints)]
        )

    def previous_model(
        self,
        trainer: str | None = None,
        folds: Sequence[int | str] | None = None,
        checkpoints: Sequence[str] = (FINAL,),
    ) -> TrainedModel:
        """The model of the stage before, by the trainer that this one's class names unless told otherwise."""
        own_trainer, plans, _ = self.names
        if trainer is None:
            trainer = papers.find_trainer(own_trainer).previous_stage or own_trainer
        folder = self.folder.parent / model_name(trainer, plans, str(self.previous_stage))
        return open_model(folder, folds, checkpoints)


def find_model(
    dataset: str,
    trainer: str,
    configuration: str,
    plans: str = "nnUNetPlans",
    folds: Sequence[int | str] | None = None,
    checkpoints: Sequence[str] = (FINAL,),
) -> TrainedModel:
    """A model in nnUNet_results; the errors say what is there instead."""
    if not nnUNet_results.is_set():
        raise UserError("nnUNet_results is not set: it is the folder of trained models")
    dataset_name = maybe_convert_to_dataset_name(int(dataset) if dataset.isdecimal() else dataset)
    return open_model(Path(nnUNet_results, dataset_name, model_name(trainer, plans, configuration)), folds, checkpoints)


def open_model(
    folder: Path, folds: Sequence[int | str] | None = None, checkpoints: Sequence[str] = (FINAL,)
) -> TrainedModel:
    """A model by its folder. folds: None takes all numbered ones that hold the first checkpoint."""
    if not (folder / "plans.json").is_file():
        others = sorted(path.name for path in folder.parent.glob("*__*__*")) if folder.parent.is_dir() else []
        there = f"there are {', '.join(others)}" if others else "nothing is trained there yet"
        raise UserError(f"{folder} is no trained model; in {folder.parent} {there}")
    if folds is None:
        folds = trained_folds(folder, checkpoints[0])
        if not folds:
            raise UserError(f"no fold of {folder} holds {checkpoints[0]}; train it, or choose -f and -chk")
    for fold in folds:
        for name in checkpoints:
            if not (file := folder / f"fold_{fold}" / name).is_file():
                there = ", ".join(sorted(path.name for path in file.parent.glob("*.pth"))) or "no checkpoint"
                raise UserError(f"{file} does not exist; {file.parent.name} holds {there}")
    return TrainedModel(folder, tuple(folds), tuple(checkpoints))
