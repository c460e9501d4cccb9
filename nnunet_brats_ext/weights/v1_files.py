"""What nnU-Net v1 (https://github.com/MIC-DKFZ/nnUNet/tree/nnunetv1) and its forks save: plans and weights of folds.

A folder with plans.pkl and fold_*/model_final_checkpoint.model, each with a .model.pkl that names the trainer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.nnunet import fold_folders
from nnunet_brats_ext.weights.reading import find_state, read_pickle, read_torch

CHECKPOINTS = ("model_final_checkpoint.model", "model_best.model", "model_latest.model")
INTENSITIES = {  # of the foreground, as v1 calls them -> as version 2 does
    "mean": "mean", "median": "median", "sd": "std", "mn": "min", "mx": "max", "percentile_00_5": "percentile_00_5",
    "percentile_99_5": "percentile_99_5",
}  # fmt: skip
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class StageOfV1:
    """A resolution that v1 has planned. strides, kernels: of its Generic_UNet; empty in plans that lack them."""

    patch_size: Sizes
    batch_size: int
    spacing: tuple[float, ...]
    median: tuple[float, ...]
    strides: tuple[Sizes, ...]
    kernels: tuple[Sizes, ...]


@dataclass(frozen=True)
class ModelOfV1:
    """A trained model of v1 or of a fork.

    path: as it was given. trainer: name of its class; empty where nothing says it. folds: file of each; the name of a
    file outside a fold's folder is empty. stages: from the lowest resolution; stage: the number of the model's own.
    modalities, normalisation, masked: per channel, as v1 calls them. intensities: per channel, under the names of
    version 2; empty where they are not measured. labels: how many there are besides the background. features,
    convolutions: of the first stage, and per stage.
    """

    path: Path
    trainer: str
    plans_name: str
    folds: Mapping[str, Path]
    stages: tuple[StageOfV1, ...]
    stage: int
    modalities: tuple[str, ...]
    normalisation: tuple[str, ...]
    masked: tuple[bool, ...]
    intensities: tuple[Mapping[str, float], ...]
    transpose: tuple[int, int, int]
    labels: int
    features: int
    convolutions: int

    @property
    def axes(self) -> int:
        return len(self.stages[self.stage].patch_size)

    @property
    def cascaded(self) -> bool:
        """Whether it refines the label maps of a stage before."""
        return "Cascade" in self.trainer

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The weights of the first fold, from which the network is recognised."""
        return weights_in(next(iter(self.folds.values())))

    def require_kernels(self, names: str) -> None:
        """A UserError where weights whose names match a regular expression are not kernels over the planned axes."""
        for name, value in self.state.items():
            if re.fullmatch(names, name) and (value.ndim != self.axes + 2 or not value.numel()):
                raise UserError(f"{self.path}: {name} is of shape {tuple(value.shape)}, which is none of its network's")


def read_model(path: Path) -> ModelOfV1 | None:
    """The model in a folder, or of the one file of it that is given; None where it is not v1's."""
    folder, folds = _files(path)
    if not folds:
        return None
    first = next(iter(folds.values()))
    info = _info(first, folder)
    plans = info.get("plans")
    if not isinstance(plans, Mapping) or "plans_per_stage" not in plans:
        raise UserError(f"{folder} has no plans of nnU-Net v1: plans.pkl, or {first.name}.pkl beside its weights")
    try:
        return _model(path, info, plans, folds)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(
            f"{folder}: its plans are not as nnU-Net v1 writes them ({type(error).__name__}: {error}); get it again"
        ) from error


def weights_in(file: Path) -> dict[str, Tensor]:
    """The weights of one fold under the names of their authors."""
    return find_state(read_torch(file)) or {}


def with_pickle(file: Path) -> list[Path]:
    """The files of one fold."""
    beside = file.with_name(f"{file.name}.pkl")
    return [file, beside] if beside.is_file() else [file]


def _files(path: Path) -> tuple[Path, dict[str, Path]]:
    """The folder of a model and the file of each fold; no files where it is no model of v1."""
    if path.is_file():
        of_v1 = path.suffix == ".model"
        fold = path.parent.name.removeprefix("fold_")
        return path.parent.parent, {fold if fold.isdecimal() or fold == "all" else "": path} if of_v1 else {}
    found = {}
    for inside in [*fold_folders(path).values(), *path.glob("all")]:
        files = [inside / name for name in CHECKPOINTS if (inside / name).is_file()]
        if files:
            found[inside.name.removeprefix("fold_")] = files[0]
    if not found and (path / "plans.pkl").is_file():
        raise UserError(f"{path} has plans.pkl, and no fold with {CHECKPOINTS[0]}; give the folder of a trained model")
    return path, found


def _info(file: Path, folder: Path) -> dict[str, Any]:
    """What v1 writes beside a checkpoint: trainer, its arguments, plans; or the plans of the model's folder."""
    beside = file.with_name(f"{file.name}.pkl")
    for candidate in (beside, folder / "plans.pkl"):
        if candidate.is_file():
            content = read_pickle(candidate)
            if isinstance(content, Mapping):
                return dict(content) if candidate == beside else {"plans": content, "name": folder.name.split("__")[0]}
    raise UserError(f"{folder} has neither plans.pkl nor {beside.name}, which say how its network is built")


def _model(path: Path, info: Mapping[str, Any], plans: Mapping[str, Any], folds: Mapping[str, Path]) -> ModelOfV1:
    planned = plans["plans_per_stage"]
    numbers = sorted(planned)
    arguments = tuple(info.get("init") or ())  # of v1's trainers, whose sixth is the stage
    stage = arguments[5] if len(arguments) > 5 and arguments[5] in planned else numbers[-1]
    channels = sorted(plans["modalities"])
    return ModelOfV1(
        path,
        str(info.get("name", "")),
        str(info.get("identifier") or "nnUNetPlansV1"),
        folds,
        tuple(_stage(planned[number]) for number in numbers),
        numbers.index(stage),
        tuple(str(plans["modalities"][number]) for number in channels),
        tuple(str(plans["normalization_schemes"][number]) for number in channels),
        tuple(bool(plans["use_mask_for_norm"][number]) for number in channels),
        _intensities((plans.get("dataset_properties") or {}).get("intensityproperties") or {}, channels),
        _axes(plans.get("transpose_forward") or (0, 1, 2)),
        int(plans["num_classes"]),
        int(plans.get("base_num_features") or 0),
        int(plans.get("conv_per_stage") or 2),
    )


def _intensities(measured: Mapping[Any, Any], channels: Sequence[Any]) -> tuple[dict[str, float], ...]:
    if not all(measured.get(channel) for channel in channels):
        return ()
    return tuple(
        {new: float(measured[channel][old]) for old, new in INTENSITIES.items() if old in measured[channel]}
        for channel in channels
    )


def _stage(planned: Mapping[str, Any]) -> StageOfV1:
    return StageOfV1(
        _whole(planned["patch_size"]),
        int(planned["batch_size"]),
        tuple(float(step) for step in planned["current_spacing"]),
        tuple(float(size) for size in planned["median_patient_size_in_voxels"]),
        tuple(map(_whole, planned.get("pool_op_kernel_sizes") or ())),
        tuple(map(_whole, planned.get("conv_kernel_sizes") or ())),
    )


def _axes(numbers: Any) -> tuple[int, int, int]:
    first, second, third = _whole(numbers)
    if {first, second, third} != {0, 1, 2}:
        raise ValueError(f"transpose_forward is {numbers}")
    return first, second, third


def _whole(numbers: Any) -> Sizes:
    return tuple(int(number) for number in numbers)
