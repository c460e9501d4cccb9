"""Checkpoints of nnU-Net, examined before they are used: damaged ones and those of other models are named."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunet_brats_ext.architectures.blocks import optional_names
from nnunet_brats_ext.storage.errors import UserError, shorten
from nnunet_brats_ext.training.checkpoints import check_bytes, read_checkpoint

NEEDED = ("network_weights", "trainer_name", "init_args")  # by nnU-Net's own prediction
ADVICE = "Train that fold again, or copy the file again; -f and -chk choose others"


def open_checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint, whose tensors stay in the file until they are used; a UserError names one that is none."""
    try:
        return read_checkpoint(file, NEEDED, ADVICE, mmap=True)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist. {ADVICE}") from None


def names_of_checkpoint(file: Path) -> tuple[str, str, str]:
    """Trainer, plans and configuration of a checkpoint."""
    return _names(open_checkpoint(file))


def _names(checkpoint: Mapping[str, Any]) -> tuple[str, str, str]:
    arguments = checkpoint["init_args"]
    plans = arguments.get("plans", {}).get("plans_name", "")
    return checkpoint["trainer_name"], plans, str(arguments.get("configuration"))


def check_checkpoint(file: Path, names: tuple[str, str, str]) -> None:
    """A UserError where a checkpoint cannot be read, is not of a model of these names, or holds NaN."""
    checkpoint = open_checkpoint(file)
    check_bytes(file, ADVICE)
    for kind, found, expected in zip(("trainer", "plans", "configuration"), _names(checkpoint), names, strict=True):
        if found and found != expected:
            raise UserError(f"{file} was trained with the {kind} {found}, not {expected}; it belongs to another model")
    weights = {name: values for name, values in checkpoint["network_weights"].items() if values.is_floating_point()}
    if wrong := [name for name, values in weights.items() if not values.isfinite().all()]:
        raise UserError(f"{file} has weights that are infinite or NaN ({shorten(wrong, 3)}); train that fold again")


def check_shapes(file: Path, network: nn.Module) -> None:
    """A UserError where the weights of a checkpoint are not those of a network, with one example."""
    found, expected = (
        {name: tuple(values.shape) for name, values in weights.items()}
        for weights in (open_checkpoint(file)["network_weights"], network.state_dict())
    )
    known = {name: shape for name, shape in expected.items() if name in found or name not in optional_names(network)}
    if differing := sorted(name for name in {*found, *known} if found.get(name) != known.get(name)):
        shapes = " instead of ".join(str(each.get(differing[0], "nothing")) for each in (found, expected))
        raise UserError(
            f"{file} does not fit its network: {len(differing)} of {len(expected)} weights differ, such as "
            f"{differing[0]}, which is {shapes}; it belongs to another model"
        )


class Weights(Sequence[dict[str, Any]]):
    """The weights of several checkpoints, which stay in their files and are mapped each time they are used."""

    def __init__(self, files: Sequence[Path]):
        self.files = list(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        return torch.load(self.files[index], map_location="cpu", weights_only=False, mmap=True)["network_weights"]
