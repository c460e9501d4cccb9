"""The environment variables that our trainings read. Loads no torch, because recipes set the same ones."""

import os

from nnunet_brats_ext.storage.errors import UserError

EPOCHS, ITERATIONS = "nnUNet_brats_epochs", "nnUNet_brats_iterations"  # a trial run that is shorter
SNAPSHOTS = "nnUNet_brats_snapshots"  # further epochs after which to keep the weights, "100 200"
SEED = "nnUNet_brats_seed"
PRECISION = "nnUNet_brats_precision"  # bf16: mixed precision on a CPU
START = "nnUNet_brats_start"  # `random`: not from the weights of another trainer


def requested_number(variable: str, least: int, otherwise: str) -> int | None:
    """The whole number in a variable; None where it is not set. Anything else is an error that quotes it."""
    value = os.environ.get(variable)
    if not value:
        return None
    if not value.isdecimal() or int(value) < least:
        raise UserError(f"{variable}={value}: expected a whole number of at least {least}; unset it {otherwise}")
    return int(value)


def requested_snapshots() -> tuple[int, ...]:
    """The epochs in `SNAPSHOTS`; none where it is not set."""
    words = os.environ.get(SNAPSHOTS, "").split()
    if wrong := [word for word in words if not word.isdecimal() or int(word) < 1]:
        raise UserError(f"{SNAPSHOTS}={os.environ[SNAPSHOTS]}: {wrong[0]!r} is no epoch; expected such as '100 200'")
    return tuple(map(int, words))


def requested_bf16() -> bool:
    """Whether `PRECISION` asks for bfloat16."""
    value = os.environ.get(PRECISION, "")
    if value not in ("", "bf16"):
        raise UserError(f"{PRECISION}={value}: expected bf16; unset it for the default")
    return value == "bf16"
