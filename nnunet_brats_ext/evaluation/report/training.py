"""What nnU-Net left beside a trained model: its settings, and the curves in its training logs. No checkpoint is opened.

A log has, per epoch, the lines `Epoch 7`, `train_loss 0.1`, `val_loss 0.2`, `Pseudo dice [...]`, each behind a time,
and `train_loss, of which task 3 0.1` where a loss has terms.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nnunet_brats_ext.brats import BACKGROUND
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import JsonEntry
from nnunet_brats_ext.storage.nnunet import fold_folders

_NUMBER = r"nan|-?inf|-?\d+(?:\.\d*)?(?:e[-+]?\d+)?"
_LINE = re.compile(
    rf"^[-\d]+ [:.\d]+: (?:Epoch (\d+)|(train_loss|val_loss)(?:, of which (.+))? ({_NUMBER})|Pseudo dice (\[.*\])) *$"
)


@dataclass
class LoggedEpoch:
    """What was logged of one epoch; NaN or nothing where the log breaks off. terms: of the training loss, by name."""

    train_loss: float = np.nan
    val_loss: float = np.nan
    terms: dict[str, float] = field(default_factory=dict)
    pseudo_dice: list[float] = field(default_factory=list)  # of regions or labels, in the order of the data set


@dataclass(frozen=True)
class TrainingRecord:
    """What a model folder says of its training: rows for a table of settings, and the epochs of each fold."""

    trainer: str
    settings: list[tuple[str, str]]
    regions: tuple[str, ...]
    folds: Mapping[str, Mapping[int, LoggedEpoch]]


def read_log(text: str) -> dict[int, LoggedEpoch]:
    """The epochs of one log, by number; lines of any other kind are passed over."""
    epochs: dict[int, LoggedEpoch] = {}
    current = LoggedEpoch()
    for line in text.splitlines():
        if not (match := _LINE.match(line)):
            continue
        number, loss, term, value, dice = match.groups()
        if number:
            current = epochs[int(number)] = LoggedEpoch()
        elif term:
            current.terms[term] = float(value)
        elif loss:
            setattr(current, loss, float(value))
        else:
            plain = re.sub(r"np\.float\d+\(", "", dice)
            current.pseudo_dice = [float(found) for found in re.findall(_NUMBER, plain)]
    return epochs


def read_fold(folder: Path) -> dict[int, LoggedEpoch]:
    """The epochs of a fold from all its logs. A later log, of a run resumed or begun anew, holds from its start on."""
    epochs: dict[int, LoggedEpoch] = {}
    for path in sorted(folder.glob("training_log_*.txt"), key=_moment):
        found = read_log(path.read_text(encoding="utf-8", errors="replace"))
        start = min(found, default=np.inf)
        epochs = {number: epoch for number, epoch in epochs.items() if number < start} | found
    return epochs


def _moment(log: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", log.stem)]  # the parts of the time are not padded


def read_model(folder: Path) -> TrainingRecord:
    """A model folder of nnU-Net (`Trainer__Plans__configuration`), or one fold of it, with what there is in it."""
    folder = folder.resolve()
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of a trained model")
    folds = [folder] if folder.name.startswith("fold_") else list(fold_folders(folder).values())
    model = folder.parent if folder.name.startswith("fold_") else folder
    if not folds:
        raise UserError(f"{folder} holds no fold_*; give the folder that nnUNetv2_train wrote, Trainer__Plans__...")
    epochs = {fold.name.removeprefix("fold_"): read_fold(fold) for fold in folds}
    dataset = DatasetDescription.find(model)
    declared = dataset.declared if dataset else {}
    regions = tuple(name for name, labels in declared.items() if set(labels) != {BACKGROUND})
    settings = [*_settings(model, dataset), ("folds", ", ".join(epochs))]
    if lengths := sorted({len(fold) for fold in epochs.values()} - {0}):
        settings.append(("epochs", " to ".join(map(str, dict.fromkeys((lengths[0], lengths[-1]))))))
    return TrainingRecord(model.name.split("__")[0], settings, regions, epochs)


def _settings(model: Path, dataset: DatasetDescription | None) -> list[tuple[str, str]]:
    trainer, *others = model.name.split("__")
    file = model / "plans.json"
    plans = JsonEntry.read(file) if file.is_file() else JsonEntry({}, file)
    configuration = others[-1] if others else ""
    chosen = _resolve(plans.get("configurations", {}), configuration)
    rows = {
        "data set": plans.get("dataset_name", None).value,
        "trainer": trainer,
        "plans": plans.get("plans_name", None).value,
        "configuration": configuration,
        "patch (voxels)": _times(chosen.get("patch_size", [])),
        "batch": chosen.get("batch_size", None).value,
        "spacing (mm)": _times(chosen.get("spacing", [])),
        "normalisation": ", ".join(dict.fromkeys(one.text() for one in chosen.get("normalization_schemes", []).list())),
        "training cases": dataset.content.get("numTraining") if dataset else None,
    }
    return [(name, str(value)) for name, value in rows.items() if value]


def _resolve(configurations: JsonEntry, name: str, below: tuple[str, ...] = ()) -> JsonEntry:
    """A configuration with what it inherits."""
    own = configurations.get(name, {})
    content = dict(own.items())
    parent = own.get("inherits_from", None).value
    if parent and parent not in below:
        content = {**dict(_resolve(configurations, parent, (*below, name)).items()), **content}
    return JsonEntry({key: entry.value for key, entry in content.items()}, own.file, own.keys)


def _times(numbers: JsonEntry) -> str:
    return " × ".join(f"{number.number():g}" for number in numbers.list())
