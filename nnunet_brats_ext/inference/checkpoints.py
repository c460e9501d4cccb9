"""Checkpoints, examined before they are used: damaged ones and those of other models are named.

They are nnU-Net's, or safetensors files (https://github.com/huggingface/safetensors) as bundles hold them, from which
nothing can be executed.
"""

import errno
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nnunet_brats_ext.architectures.blocks import optional_names
from nnunet_brats_ext.storage.errors import Notice, UserError, shorten
from nnunet_brats_ext.storage.nnunet import SAFE
from nnunet_brats_ext.training.checkpoints import check_bytes, holds_code, load_content, read_checkpoint

MIRROR_AXES = "inference_allowed_mirroring_axes"  # nnU-Net's key
NEEDED = ("network_weights", "trainer_name", "init_args")  # by nnU-Net's own prediction
ADVICE = "Train that fold again, or copy the file again; -f and -chk choose others"
OURS = "nnunet_brats_ext"  # our key in the metadata of a safetensors file


def open_checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint, whose tensors stay in the file until they are used; a UserError names one that is none."""
    try:
        if file.suffix == SAFE:
            return _open_safetensors(file)
        return read_checkpoint(file, NEEDED, ADVICE, mmap=True)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist. {ADVICE}") from None


def _open_safetensors(file: Path) -> dict[str, Any]:
    """The same of a safetensors file, under the names that nnU-Net's checkpoints have."""
    try:
        with safe_open(file, framework="pt") as opened:
            about = json.loads((opened.metadata() or {}).get(OURS, "null"))
            stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no dict
        weights = {name: stored[about["same"].get(name, name)] for name in about["order"]}
        names = {key: str(about[key]) for key in ("trainer", "plans", "configuration")}
        axes = about["mirror_axes"]
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is damaged, or holds no weights of ours ({str(error)[:200]}). {ADVICE}") from error
    return {
        "network_weights": weights,
        "trainer_name": names["trainer"],
        "init_args": {"plans": {"plans_name": names["plans"]}, "configuration": names["configuration"]},
        MIRROR_AXES: None if axes is None else tuple(axes),
    }


def write_safetensors(file: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write what prediction needs of a checkpoint of nnU-Net: its weights, three names, and the axes to mirror."""
    trainer, plans, configuration = names_in(checkpoint)
    axes = checkpoint.get(MIRROR_AXES)
    weights: dict[str, Tensor] = {}
    first: dict[tuple, str] = {}
    same: dict[str, str] = {}  # nnU-Net's networks name most tensors several times, which safetensors does not allow
    for name, values in checkpoint["network_weights"].items():
        place = values.untyped_storage().data_ptr(), values.storage_offset(), values.shape, values.stride()
        if (known := first.setdefault(place, name)) != name:
            same[name] = known
        else:
            weights[name] = values.detach().cpu().contiguous().clone()
    about = {
        "trainer": trainer, "plans": plans, "configuration": configuration, "mirror_axes": axes and list(axes),
        "same": same, "order": list(checkpoint["network_weights"]),
    }  # fmt: skip
    try:
        save_file(weights, file, {OURS: json.dumps(about)})
    except SafetensorError as error:  # of a full disk
        raise OSError(errno.ENOSPC, str(error), str(file)) from error


def write_for_nnunet(file: Path, target: Path) -> None:
    """A safetensors file as a checkpoint that nnU-Net's prediction takes, of tensors and plain values only."""
    content = _open_safetensors(file)
    torch.save(content, target)


def warn_of_code(files: Iterable[Path]) -> None:
    """A Notice where checkpoints are more than tensors: reading them runs what whoever wrote them has put there."""
    found = [file for file in dict.fromkeys(files) if file.suffix != SAFE and holds_code(file)]
    if found:
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        warnings.warn(
            f"{found[0]}{others}: a checkpoint of nnU-Net is code, which runs when it is read; take checkpoints from "
            "people you trust. --trusted says that you do; the weights in a bundle run nothing",
            Notice,
            stacklevel=2,
        )


def names_of_checkpoint(file: Path) -> tuple[str, str, str]:
    """Trainer, plans and configuration of a checkpoint."""
    return names_in(open_checkpoint(file))


def names_in(checkpoint: Mapping[str, Any]) -> tuple[str, str, str]:
    """Trainer, plans and configuration, where the plans are empty in those of old versions."""
    arguments = checkpoint["init_args"]
    plans = arguments.get("plans", {}).get("plans_name", "")
    return checkpoint["trainer_name"], plans, str(arguments.get("configuration"))


def check_checkpoint(file: Path, names: tuple[str, str, str]) -> None:
    """A UserError where a checkpoint cannot be read, is not of a model of these names, or holds NaN."""
    checkpoint = open_checkpoint(file)
    if file.suffix != SAFE:
        check_bytes(file, ADVICE)
    for kind, found, expected in zip(("trainer", "plans", "configuration"), names_in(checkpoint), names, strict=True):
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
        file = self.files[index]
        return (_open_safetensors(file) if file.suffix == SAFE else load_content(file, mmap=True))["network_weights"]
