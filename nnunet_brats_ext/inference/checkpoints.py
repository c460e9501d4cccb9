"""Checkpoints of nnU-Net, examined before they are used: damaged ones and those of other models are named."""

import zipfile
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunet_brats_ext.storage.errors import UserError, shorten

KEYS = {"network_weights": dict, "trainer_name": str, "init_args": dict}  # what nnU-Net's own prediction needs


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint, whose tensors stay in the file until they are used; a UserError names one that is none."""
    if not file.is_file():
        raise UserError(f"{file} does not exist; train that fold, or choose -f and -chk")
    if not zipfile.is_zipfile(file):
        size = file.stat().st_size
        raise UserError(f"{file} is no checkpoint, or a truncated one ({size} bytes); train that fold again or copy it")
    try:
        content = torch.load(file, map_location="cpu", weights_only=False, mmap=True)
    except Exception as error:  # a damaged file can make torch raise anything
        raise UserError(f"{file} is damaged: {str(error).splitlines()[0] if str(error) else error!r}") from error
    found = content if isinstance(content, dict) else {}
    if wrong := [key for key, kind in KEYS.items() if not isinstance(found.get(key), kind)]:
        raise UserError(f"{file} is no checkpoint of nnU-Net: it lacks {', '.join(wrong)}")
    return content


def names_of_checkpoint(file: Path) -> tuple[str, str, str]:
    """Trainer, plans and configuration of a checkpoint."""
    return _names(read_checkpoint(file))


def _names(checkpoint: Mapping[str, Any]) -> tuple[str, str, str]:
    arguments = checkpoint["init_args"]
    plans = arguments.get("plans", {}).get("plans_name", "")
    return checkpoint["trainer_name"], plans, str(arguments.get("configuration"))


def check_checkpoint(file: Path, names: tuple[str, str, str]) -> None:
    """A UserError where a checkpoint cannot be read, is not of a model of these names, or holds NaN."""
    checkpoint = read_checkpoint(file)
    for kind, found, expected in zip(("trainer", "plans", "configuration"), _names(checkpoint), names, strict=True):
        if found and found != expected:
            raise UserError(f"{file} was trained with the {kind} {found}, not {expected}; it belongs to another model")
    weights = {name: values for name, values in checkpoint["network_weights"].items() if values.is_floating_point()}
    if wrong := [name for name, values in weights.items() if not values.isfinite().all()]:
        raise UserError(f"{file} has weights that are infinite or NaN ({shorten(wrong, 3)}); train that fold again")


def check_weights(file: Path, network: nn.Module) -> None:
    """A UserError where the weights of a checkpoint are not those of a network, with one example."""
    found, expected = (
        {name: tuple(values.shape) for name, values in weights.items()}
        for weights in (read_checkpoint(file)["network_weights"], network.state_dict())
    )
    if differing := sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name)):
        shapes = " instead of ".join(str(each.get(differing[0], "nothing")) for each in (found, expected))
        raise UserError(
            f"{file} does not fit its network: {len(differing)} of {len(expected)} weights differ, such as "
            f"{differing[0]}, which is {shapes}; it belongs to another model"
        )


class Weights(Sequence[dict[str, Any]]):
    """The weights of several checkpoints; kept in memory, or left in their files and mapped each time they are used."""

    def __init__(self, files: Sequence[Path], keep: bool = True):
        self.files = list(files)
        self.read = cache(partial(self._read, mmap=False)) if keep else partial(self._read, mmap=True)

    @staticmethod
    def _read(file: Path, mmap: bool) -> dict[str, Any]:
        return torch.load(file, map_location="cpu", weights_only=False, mmap=mmap)["network_weights"]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        return self.read(self.files[index])
