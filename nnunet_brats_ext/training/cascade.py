"""What the second stage of a cascade needs from the first: label maps of all training cases, one or several each."""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunet_brats_ext.storage.errors import UserError, shorten
from nnunet_brats_ext.storage.json_files import read_json, write_json
from nnunet_brats_ext.storage.nnunet import SPLITS, model_name, read_splits, train_command
from nnunet_brats_ext.training.sampling import Case, CaseView
from nnunet_brats_ext.training.seams import Cases, PlainTrainer

MAPS = "previous_stage_maps.json"  # in a fold: what it was trained on, as `Maps`; one map per case has no name
Maps = Mapping[str, Mapping[str, str]]
"""Name of a map -> FOLD/CHECKPOINT -> digest of the checkpoints that made it; none for maps of earlier versions."""


class PreviousStage(PlainTrainer):
    """Mixin: a second stage finds the maps of a first stage that another trainer has trained, and several per case.

    Of several maps, each draw shows another one; validation cases too have several. nnU-Net knows one map per case,
    of the same trainer.
    """

    previous_stage_maps: Sequence[Path] = ()
    """The folders of maps, where there are several maps per case."""

    def set_hyperparameters(self) -> None:
        if self.is_cascaded and nnUNet_results.is_set():
            self._find_maps()
        super().set_hyperparameters()

    def _find_maps(self) -> None:
        previous, plans = self.configuration_manager.previous_stage_name, self.plans_manager.plans_name
        dataset_results = Path(self.output_folder_base).parent
        model = dataset_results / model_name(self.previous_stage_trainer, plans, previous)
        folder = model / "predicted_next_stage" / self.configuration_name
        self.previous_stage_maps = expanded_maps(folder)
        if self.previous_stage_maps and not folder.is_dir():
            folder = self.previous_stage_maps[0]  # for the final validation, which refines one map per case
        self.folder_with_segs_from_previous_stage: str = str(folder)

    @property
    def previous_stage_trainer(self) -> str:
        return self.all_facts().previous_stage or type(self).__name__

    def on_train_start(self) -> None:
        if self.is_cascaded and self.local_rank == 0:
            self.keep_training_on_other_maps()
        super().on_train_start()

    def keep_training_on_other_maps(self) -> None:
        """Say which maps are drawn from, and put aside what was trained here on others.

        A training that goes on cannot do that: it is refused where checkpoints have made its maps anew.
        """
        fold, maps = Path(self.output_folder), {path.name: made_by(path) for path in self.previous_stage_maps}
        if maps:
            place = self.previous_stage_maps[0].parent
            self.print_to_log_file(f"Each draw of a case shows one of {len(maps)} maps in {place}: {', '.join(maps)}")
        else:
            self.print_to_log_file(
                f"Maps of the previous stage, one per case: {self.folder_with_segs_from_previous_stage}"
            )
        noted = _noted(fold / MAPS)
        remade = [name for name, files in maps.items() if _differ(noted.get(name, {}), files)]
        if self.current_epoch:  # a training that goes on
            if remade:
                raise UserError(
                    f"{fold} was begun on other maps: other checkpoints have made {', '.join(remade)} in {place} "
                    "since. Train it without --c, which keeps what is there under another name"
                )
            # An earlier version has noted names alone.
            write_json(fold / MAPS, {name: files or maps.get(name, {}) for name, files in noted.items()})
            return
        if (noted.keys() != maps.keys() or remade) and any(fold.glob("checkpoint_*.pth")):
            aside = fold.with_name(time.strftime(f"earlier_{fold.name}_%Y%m%d-%H%M%S"))
            aside.mkdir()
            for path in [path for path in fold.iterdir() if path != Path(self.log_file)]:
                path.rename(aside / path.name)
            self.print_to_log_file(f"What was trained here on other maps is kept in {aside}")
        write_json(fold / MAPS, maps)

    def load_cases(self) -> Cases:
        training, validation = super().load_cases()
        if not self.is_cascaded:
            return training, validation
        require_previous_stage(
            Path(self.folder_with_segs_from_previous_stage),
            [*training.identifiers, *validation.identifiers],
            Path(self.preprocessed_dataset_folder_base, SPLITS),
            self.plans_manager.dataset_name,
            self.previous_stage_trainer,
            self.plans_manager.plans_name,
            self.configuration_manager.previous_stage_name,
        )
        return self._with_maps(training), self._with_maps(validation)

    def draws_per_epoch(self, cases: nnUNetBaseDataset, training: bool) -> int:
        return super().draws_per_epoch(cases, training) * (len(self.previous_stage_maps) or 1)

    def _with_maps(self, cases: nnUNetBaseDataset) -> nnUNetBaseDataset:
        folders = self.previous_stage_maps
        versions = [type(cases)(cases.source_folder, list(cases.identifiers), str(folder)) for folder in folders]
        return DrawnMaps(versions) if versions else cases


class DrawnMaps(CaseView):
    """Shows another map of the previous stage with every draw of a case, all equally likely.

    versions: the same cases with one folder of maps each. The expanded data of Lyu & Shu 2020,
    https://arxiv.org/abs/2011.02881; all maps of a case stay on its side of the split.
    """

    def __init__(self, versions: Sequence[nnUNetBaseDataset]):
        super().__init__(versions[0])
        self.versions = list(versions)

    def load_case(self, identifier: str) -> Case:
        return self.versions[np.random.randint(len(self.versions))].load_case(identifier)


def expanded_folder(folder: Path) -> Path:
    """Where `nnunet_brats predict --for-next-stage` writes several maps per case, in folders next to nnU-Net's own."""
    return folder.with_name(f"{folder.name}.maps")


def expanded_maps(folder: Path) -> list[Path]:
    """The folders of maps that expand the training data of a second stage; without any, it trains on `folder` alone."""
    maps = expanded_folder(folder)
    return sorted(path for path in maps.iterdir() if path.is_dir() and path.name[0] != ".") if maps.is_dir() else []


def note_of_makers(maps: Path) -> Path:
    """Where `made_by` finds which checkpoints have made the maps in a folder."""
    return maps.with_name(f".{maps.name}.made_by.json")


def made_by(maps: Path) -> dict[str, str]:
    """FOLD/CHECKPOINT -> digest of what has made the maps in a folder; empty where an earlier version made them."""
    note = note_of_makers(maps)
    return read_json(note) if note.is_file() else {}


def _noted(file: Path) -> Maps:
    """The maps that a fold was trained on; earlier versions noted names alone."""
    content = read_json(file, object) if file.is_file() else {}
    if isinstance(content, list):
        return {name: {} for name in content}
    if not isinstance(content, dict) or not all(isinstance(files, dict) for files in content.values()):
        raise UserError(f"{file} is damaged: expected the maps of this fold; delete it, and train the fold without --c")
    return content


def _differ(before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether another checkpoint has taken the place of one; what is not noted is no difference."""
    return any(before.get(file, digest) != digest for file, digest in now.items())


def missing_cases(folder: Path, cases: Iterable[str]) -> list[str]:
    """The cases without a segmentation in the folder where the previous stage writes them, in any format."""
    present = {path.name.split(".")[0] for path in folder.iterdir()} if folder.is_dir() else set()
    return sorted(set(cases) - present)


def require_previous_stage(
    folder: Path, cases: Iterable[str], splits_file: Path, dataset_name: str, trainer: str, plans: str, stage: str
) -> None:
    """Raise an error that names the cases which the previous stage has not segmented, and the commands that do it.

    The validation of a fold segments its validation cases, so all folds of the previous stage are needed.
    """
    cases = list(cases)
    for maps in expanded_maps(folder):
        if missing := missing_cases(maps, cases):
            raise UserError(
                f"{len(missing)} cases have no segmentation of the previous stage in {maps}: {shorten(missing)}. "
                f"Go on with `nnunet_brats predict --for-next-stage` as this folder was begun, or delete the folder"
            )
    if not (missing := missing_cases(folder, cases)) or expanded_maps(folder):
        return
    splits = read_splits(splits_file) if splits_file.is_file() else []
    folds = [str(fold) for fold, split in enumerate(splits) if set(missing) & set(split["val"])]
    commands = [train_command(dataset_name, stage, fold, trainer, plans) for fold in folds or ["all"]]
    raise UserError(
        f"{len(missing)} cases have no segmentation of the previous stage in {folder}: {shorten(missing)}. "
        "Train, or only validate (--val) where training is done, the folds that hold them:\n  " + "\n  ".join(commands)
    )
