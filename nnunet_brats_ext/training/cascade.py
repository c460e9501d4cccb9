"""What the second stage of a cascade needs from the first: label maps of all training cases, one or several each."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.training.sampling import Case, CaseView


def expanded_folder(folder: Path) -> Path:
    """Where `nnunet_brats predict-stage` leaves several maps per case, a folder each, beside nnU-Net's own one."""
    return folder.with_name(f"{folder.name}.maps")


def expanded_maps(folder: Path) -> list[Path]:
    """The folders of maps that expand the training data of a second stage; none, and it trains on `folder` alone."""
    maps = expanded_folder(folder)
    return sorted(path for path in maps.iterdir() if path.is_dir() and path.name[0] != ".") if maps.is_dir() else []


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


def missing_cases(folder: Path, cases: Iterable[str]) -> list[str]:
    """The cases without a segmentation in the folder where the previous stage leaves them, in any format."""
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
                f"{len(missing)} cases have no segmentation of the previous stage in {maps}: {_shown(missing)}. "
                f"Go on with `nnunet_brats predict-stage` as this folder was begun, or delete the folder"
            )
    if not (missing := missing_cases(folder, cases)) or expanded_maps(folder):
        return
    splits = json.loads(splits_file.read_text()) if splits_file.is_file() else []
    folds = [fold for fold, split in enumerate(splits) if set(missing) & set(split["val"])]
    commands = [f"nnUNetv2_train {dataset_name} {stage} {fold} -tr {trainer} -p {plans}" for fold in folds]
    raise UserError(
        f"{len(missing)} cases have no segmentation of the previous stage in {folder}: {_shown(missing)}. "
        "Train, or only validate (--val) where training is done, the folds that hold them:\n  "
        + "\n  ".join(commands or [f"nnUNetv2_train {dataset_name} {stage} all -tr {trainer} -p {plans}"])
    )


def _shown(cases: Sequence[str]) -> str:
    return ", ".join(cases[:10]) + (f" and {len(cases) - 10} more" if len(cases) > 10 else "")
