"""Checkpoints as files: written whole or not at all, and checked before training goes on from them."""

import errno
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunet_brats_ext.architectures.blocks import optional_names
from nnunet_brats_ext.storage.errors import UserError, shorten
from nnunet_brats_ext.storage.output import partial_file

OURS = "nnunet_brats_ext"  # our key in a checkpoint, next to nnU-Net's
TO_GO_ON = "Delete it and go on with --c from another checkpoint of its folder, or train this fold again without --c"
NEEDED = ("network_weights", "optimizer_state", "logging", "_best_ema", "current_epoch", "init_args")  # nnU-Net's


@contextmanager
def writing_checkpoint(file: Path) -> Iterator[Path]:
    """`storage.output.partial_file` for what torch writes, whose errors on a full disk are not the system's."""
    with partial_file(file) as partial:
        try:
            yield partial
        except RuntimeError as error:
            if "unexpected pos" not in str(error) and "PytorchStreamWriter" not in str(error):
                raise
            # torch does not say why; a full disk is the common cause.
            reason = f"torch could not write all of it, as on a full disk ({_first_line(error)})"
            raise OSError(errno.ENOSPC, reason) from error


def read_checkpoint(
    file: Path, needed: Sequence[str] = NEEDED, advice: str = TO_GO_ON, mmap: bool = False
) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; a damaged one, or one that lacks a key, is an error that names the file.

    needed: keys. advice: what the error says to do. mmap: leave tensors in the file until they are used.
    """
    try:
        if not zipfile.is_zipfile(file):  # as torch writes; other bytes are not unpickled
            raise zipfile.BadZipFile(f"its {file.stat().st_size} bytes are not a whole archive")
        checkpoint = load_content(file, mmap)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # arbitrary bytes raise arbitrary errors when they are unpickled
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise UserError(f"{file} is damaged, or no checkpoint ({reason}). {advice}") from error
    missing = needed if not isinstance(checkpoint, dict) else [key for key in needed if key not in checkpoint]
    if missing:
        raise UserError(f"{file} is no whole checkpoint of nnU-Net: it lacks {', '.join(missing)}. {advice}")
    return checkpoint


def load_content(file: Path, mmap: bool) -> Any:
    """The content of a file of torch; only what is more than tensors and plain values is unpickled with its code."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        return torch.load(file, map_location="cpu", weights_only=False, mmap=mmap)


def holds_code(file: Path) -> bool:
    """Whether a checkpoint holds more than tensors and plain values, so that reading it runs code of the file."""
    try:
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        return True
    except Exception:  # damaged, which is said when it is read
        return False
    return False


def check_bytes(file: Path, advice: str = TO_GO_ON) -> None:
    """A UserError where a byte of a checkpoint is not what was written: torch notes checksums and does not compare."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        damaged = _first_line(error)
    if damaged:
        raise UserError(f"{file} is damaged ({damaged} has another checksum than it was written with). {advice}")


def require_fitting_weights(file: Path, checkpoint: dict[str, Any], network: nn.Module, trainer: str) -> None:
    """Raise an error that names the file if the network's weights are other than those of the checkpoint."""
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    stored = {name: tuple(value.shape) for name, value in checkpoint["network_weights"].items()}
    found = {name if name in expected else name.removeprefix("module."): shape for name, shape in stored.items()}
    found = {name: expected[name] for name in optional_names(network)} | found
    if found == expected:
        return
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    raise UserError(
        f"the weights in {file}, of {checkpoint.get('trainer_name', 'an unnamed trainer')}, do not fit the network of "
        f"{trainer}: {len(differing)} of {len(expected)} differ, such as {shorten(differing, 2)}. Go on with the "
        "trainer, the plans and the configuration that the checkpoint is of"
    )


def copy_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """The network's weights as they are now, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
