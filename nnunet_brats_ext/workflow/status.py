"""`nnunet_brats status`: what of a run is done, running, failed; and what to do about failures."""

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from nnunet_brats_ext.workflow.state import Run, describe, open_run, states_of

COLOURS = {"done": "green", "running": "cyan", "failed": "bold red", "interrupted": "yellow", "waiting": "dim"}
# What a log says -> what to do; the first that is found counts.
ADVICE = {
    r"CUDA out of memory|OutOfMemoryError": "the GPU's memory is too small: run with a lower --gpu-memory-gb, which "
    "makes the papers' batches and patches smaller",
    r"(?i)worker\(?s?\)?.{0,40}(died|not alive|6 feet under)|Killed|process was killed|MemoryError": "too little main "
    "memory: raise `resources: {memory_gb: ...}` of the model in the recipe, or run fewer jobs at once with --jobs",
    r"No space left on device|Disk quota exceeded": "the disk is full: make room and start the same command again",
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
LAST_BYTES = 20_000
ATTEMPT = re.compile(r"[\d-]+ [\d:]+ \$ ")  # how `job` begins one


def show_status(folder: Path, console: Console | None = None) -> int:
    """Print a table of all jobs; 1 if any has failed."""
    console = console or Console()
    run = open_run(folder)
    states = states_of(run)
    width = max(map(len, run.jobs))
    for name, (state, noted) in states.items():  # one line each, however narrow the screen: to be searched and cut
        log = run.log(name) if run.log(name).is_file() else ""
        line = f"[{COLOURS[state]}]{state:<11}[/] {name:<{width}} {duration(noted):>8}  {escape(str(log))}"
        news = f"  {last_line(run.log(name))}" if state in ("running", "failed", "interrupted") else ""
        console.print(line + escape(news), soft_wrap=True, highlight=False)
    counts = Counter(state for state, _ in states.values())
    summary = ", ".join(f"{counts[state]} {state}" for state in COLOURS if counts[state])
    console.print(f"{folder}: {summary}", soft_wrap=True, highlight=False)
    tell_failures(run, console)
    return 1 if counts["failed"] else 0


def tell_failures(run: Run, console: Console) -> None:
    """For each failed job: its last words, where the rest is, and what to do."""
    for name, (state, noted) in states_of(run).items():
        if state == "failed":
            console.print(f"\n[bold red]{name} failed[/] ({describe(noted)})")
            console.print(escape("\n".join(tail(run.log(name))[-8:])), style="dim", highlight=False)
            console.print(f"all it said: {run.log(name)}", soft_wrap=True, highlight=False)
            console.print(f"what to do: {advise(run.log(name))}", soft_wrap=True, highlight=False)


def advise(log: Path) -> str:
    text = "\n".join(tail(log))
    found = (advice for pattern, advice in ADVICE.items() if re.search(pattern, text))
    return next(found, "mend what the log says, then start the same command again; what is done stays done")


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
    lines = tail(log)
    epochs = [line for line in lines if re.search(r"\bEpoch \d+\b", line)]
    return re.sub(r"^[\d-]+ [\d:.]+: ", "", (epochs or lines or [""])[-1])[-60:]  # without nnU-Net's time


def duration(noted: dict[str, Any]) -> str:
    if "since" not in noted:
        return ""
    return shown_seconds(noted.get("ended", time.time()) - noted["since"])


def shown_seconds(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
