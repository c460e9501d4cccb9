"""What of a run is done, running, stopped or failed, and what to do about failures: read from states and logs."""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_brats_ext.storage.options import Options, argument

# What a log says -> what to do; the first that is found counts.
ADVICE = {
    r"CUDA out of memory|OutOfMemoryError": "the GPU's memory is too small: run with a lower --gpu-memory-gb, which "
    "makes the papers' batches and patches smaller",
    r"No space left on device|Disk quota exceeded|could not be written: |PytorchStreamWriter failed|inline_container"
    r".*(unexpected pos|write)|(?i:disk is full)": "the disk is full, or its quota: make room and start the same "
    "command again; a training goes on from its last whole checkpoint",
    r"PytorchStreamReader failed|failed finding central directory|invalid load key|Ran out of input": "a checkpoint is "
    "damaged, the one that the log names last: remove it and start the same command again; the training goes on from "
    "another one, or begins anew",
    r"(?i)worker\(?s?\)?.{0,40}(died|not alive|6 feet under)|Killed|process was killed|MemoryError": "too little main "
    "memory: raise `resources: {memory_gb: ...}` of the model in the recipe, or run fewer jobs at once with --jobs",
    r"Could not find requested nnunet trainer|Unable to find trainer": "nnU-Net does not find the trainer: "
    "`nnunet_brats doctor` says why",
    r"sees no CUDA device|CUDA is not available|Found no NVIDIA driver": "this machine has no usable GPU: run with "
    "-device cpu, or on one that has",
    r"Cannot run DDP if the batch size is smaller": "there are more GPUs than samples in a batch: lower `gpus` of the "
    "model in the recipe",
    r"is being written by": "another run is at the same fold: wait until it ends, then start the same command again",
    r"DUE TO TIME LIMIT|CANCELLED AT": "the scheduler ended it: start the same command again, and a training goes on "
    "from its last checkpoint; raise `resources: {hours: ...}` if it happens often",
}
OTHERWISE = "correct what the log says, then start the same command again; what is done stays done"
LAST_BYTES = 20_000
ATTEMPT = re.compile(r"[\d-]+ [\d:]+ \$ ")  # how `perform` begins one


@dataclass(frozen=True)
class StatusOptions(Options):
    """Which run to look at."""

    folder: Path = argument("of `nnunet_brats run`", metavar="FOLDER")


def advise(log: Path) -> str:
    """What to do about a failed job, by the last words of its log."""
    text = "\n".join(tail(log))
    return next((advice for pattern, advice in ADVICE.items() if re.search(pattern, text)), OTHERWISE)


def tail(log: Path) -> list[str]:
    """The last lines of the job's last attempt."""
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LAST_BYTES))
        text = file.read().decode(errors="replace")
    lines = [line.split("\r")[-1].rstrip() for line in text.split("\n")]
    start = max((i for i, line in enumerate(lines) if ATTEMPT.match(line)), default=0)
    return [line for line in lines[start:] if line]


def last_line(log: Path) -> str:
    """The last line of a log that says how far a job is: of a training, its epoch."""
    lines = tail(log)
    epochs = [line for line in lines if re.search(r"\bEpoch \d+\b", line)]
    return re.sub(r"^[\d-]+ [\d:.]+: ", "", (epochs or lines or [""])[-1])[-60:]  # without nnU-Net's time


def duration(noted: dict[str, Any]) -> str:
    """How long an attempt took, or has taken so far."""
    return shown_seconds(noted.get("ended", time.time()) - noted["since"]) if "since" in noted else ""


def shown_seconds(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
