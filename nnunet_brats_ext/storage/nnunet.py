"""nnU-Net's folders and names, through nnU-Net's own helpers, which load no torch."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from nnunetv2.utilities.file_path_utilities import (
    convert_identifier_to_trainer_plans_config,
    convert_trainer_plans_config_to_identifier,
)

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")  # environment variables
MANIFEST = "manifest.json"  # ours, beside the dataset.json of a data set that we made
SPLITS = "splits_final.json"
FINAL = "checkpoint_final.pth"
SAFE = ".safetensors"  # what checkpoints in bundles end in
ALL = "all"  # the fold of all cases
PREPROCESSING_KEYS = (
    "spacing", "normalization_schemes", "use_mask_for_norm", "preprocessor_name", "resampling_fn_data",
    "resampling_fn_data_kwargs", "resampling_fn_seg", "resampling_fn_seg_kwargs",
)  # fmt: skip
"""What nnU-Net's own preprocessing reads of a configuration."""
PURPOSE = {
    "nnUNet_raw": "where your data sets are",
    "nnUNet_preprocessed": "where nnU-Net preprocesses",
    "nnUNet_results": "where your trained models are",
}

Split = dict[str, list[str]]  # {"train": cases, "val": cases}, as splits_final.json lists them


def nnunet_folder(variable: str) -> Path | None:
    """The folder that one of nnU-Net's environment variables names."""
    value = os.environ.get(variable)
    return Path(value) if value else None


def require_folder(variable: str, otherwise: str = "") -> Path:
    """The same; where it is not set, an error that says what to type, or do otherwise."""
    folder = nnunet_folder(variable)
    if folder is None:
        raise UserError(f"{variable} is not set: `export {variable}=/folder`, {PURPOSE[variable]}{otherwise}")
    return folder


# ---- data sets ------------------------------------------------------------------------------------------------------


def dataset_name(dataset_id: int, name: str) -> str:
    """Dataset137_BraTS2020. nnU-Net reads the ID from three digits, so it lies between 1 and 999."""
    if not 1 <= dataset_id <= 999:
        raise UserError(f"-d {dataset_id}: data set IDs lie between 1 and 999")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"data set name {name!r}: letters, digits, - and _ only")
    return f"Dataset{dataset_id:03d}_{name}"


def dataset_id(name: str) -> int:
    """137 of Dataset137_BraTS2020."""
    return int(name[7:10])


def datasets_with_id(number: int, place: Path) -> list[Path]:
    """The data set folders of that ID in a folder; an archive beside them is no data set."""
    return sorted(path for path in place.glob(f"Dataset{number:03d}_*") if path.is_dir())


def datasets_called(dataset: int | str, place: Path) -> list[Path]:
    """The data set folders of that ID or name in a folder."""
    if isinstance(dataset, str) and not dataset.isdecimal():
        return [place / dataset] if (place / dataset).is_dir() else []
    return datasets_with_id(int(dataset), place)


def find_dataset(dataset: int | str, place: Path, advice: str = "") -> Path:
    """The one data set of that ID or name in a folder of data sets.

    advice: how one that only another of nnU-Net's folders has gets there.
    """
    found = datasets_called(dataset, place)
    if len(found) > 1:
        listed = "".join(f"\n  {path}" for path in found)
        raise UserError(f"{len(found)} data sets with ID {dataset} in {place}{listed}")
    if not found:
        known = require_known(dataset, place)
        raise UserError(f"{known} is there, but not in {place}{'; ' if advice else ''}{advice}")
    return found[0]


def require_known(dataset: int | str, place: Path) -> Path:
    """A data set of that ID or name in `place` or any of nnU-Net's folders; else an error that lists what there is."""
    places = list(dict.fromkeys([place, *(one for variable in FOLDERS if (one := nnunet_folder(variable)))]))
    for one in places:
        if found := datasets_called(dataset, one):
            return found[0]
    names = sorted({path.name for one in places for path in one.glob("Dataset[0-9][0-9][0-9]_*") if path.is_dir()})
    looked_at = ", ".join(map(str, places))
    raise UserError(
        f"no data set {dataset} in {looked_at}; there are {', '.join(names) or 'none'}; "
        "`nnunet_brats convert` makes one of a release"
    )


def check_id_is_free(number: int, name: str, raw: Path) -> None:
    """nnU-Net finds a data set by its ID alone, in three folders: another name under the same ID confuses it."""
    places = {raw, *(folder for variable in FOLDERS if (folder := nnunet_folder(variable)))}
    for place in sorted(places):
        for other in datasets_with_id(number, place):
            if other.name != name:
                raise UserError(f"ID {number} belongs to {other} already; take another with -d, or --name it so")


def find_splits(dataset: str, *places: Path) -> tuple[Path, list[Split]] | None:
    """The folds of a data set and their file: where nnU-Net reads them, else in one of these folders."""
    preprocessed = nnunet_folder("nnUNet_preprocessed")
    folders = [*([preprocessed / dataset] if preprocessed else []), *places]
    path = next((folder / SPLITS for folder in folders if (folder / SPLITS).is_file()), None)
    return (path, read_splits(path)) if path else None


def read_splits(path: Path) -> list[Split]:
    """A splits_final.json, checked: a list of {"train": [cases], "val": [cases]}."""
    splits = read_json(path, list)
    for fold, split in enumerate(splits):
        parts = [split.get(part) if isinstance(split, dict) else None for part in ("train", "val")]
        if not all(isinstance(part, list) and all(isinstance(case, str) for case in part) for part in parts):
            raise UserError(f'{path}, fold {fold}: expected {{"train": [...], "val": [...]}} with names of cases')
    return splits


# ---- trained models -------------------------------------------------------------------------------------------------


def model_name(trainer: str, plans: str, configuration: str) -> str:
    """The name of a model's folder: Trainer__Plans__configuration."""
    return convert_trainer_plans_config_to_identifier(trainer, plans, configuration)


def names_of_model(folder: Path) -> tuple[str, str, str]:
    """Trainer, plans and configuration of a model's folder; another name is an error."""
    names = convert_identifier_to_trainer_plans_config(str(folder))
    if len(names) != 3:
        raise UserError(f"{folder} is not named TRAINER__PLANS__CONFIGURATION, as nnU-Net names a trained model")
    trainer, plans, configuration = names
    return trainer, plans, configuration


def fold_folders(model: Path) -> dict[str, Path]:
    """Fold -> its folder in that of a model: the numbered ones, then `all`. A copy, such as fold_0_old, is none."""
    names = {path.name.removeprefix("fold_"): path for path in model.glob("fold_*") if path.is_dir()}
    numbered = sorted(filter(str.isdecimal, names), key=int)
    return {name: names[name] for name in [*numbered, *({"all"} & names.keys())]}


def trained_folds(model: Path, checkpoint: str = FINAL) -> tuple[int, ...]:
    """The numbered folds of a model's folder that hold a checkpoint of this name, which may be a pattern."""
    folds = fold_folders(model)
    return tuple(int(fold) for fold, folder in folds.items() if fold != "all" and any(folder.glob(checkpoint)))


def train_command(
    dataset: str | int, configuration: str, fold: int | str, trainer: str, plans: str, options: Sequence[str] = ()
) -> str:
    """The command line that trains a fold."""
    words = ["nnUNetv2_train", str(dataset), configuration, str(fold), "-tr", trainer, "-p", plans, *options]
    return " ".join(words)
