"""Snakemake: its command line, and a run that it carries out, followed job by job."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.workflow.recipe_text import HERE
from nnunet_brats_ext.workflow.state import DONE, FAILED, GRAPH, RUNNING, Run, settle, states_of
from nnunet_brats_ext.workflow.status import advise, duration

DRY_RUN, ENGINE_LOG = ".dry-run.json", "snakemake.log"
POLL_S = 1.0
SNAKEMAKES_START = "SNAKEMAKE\n"  # what we write to its log before each start

Say = Callable[[str], None]


def snakemake(folder: Path) -> list[str]:
    """The command line of Snakemake in the folder of a run."""
    try:
        import snakemake as _  # noqa: F401
    except ImportError:
        raise UserError("recipes run on Snakemake: pip install 'nnunet-brats-ext[workflow]'") from None
    return [sys.executable, "-m", "snakemake", "--snakefile", str(HERE / "Snakefile"), "--directory", str(folder)]


def engine_options(
    run: Run, executor: str = "local", profile: Path | None = None, jobs: int | None = None, gpus: int | None = None
) -> list[str]:
    """Snakemake's own options. Which jobs are done is decided here (`settle`); Snakemake compares file times."""
    words = ["--keep-going", "--rerun-incomplete", "--rerun-triggers", "mtime"]
    limits = [f"gpu={gpus}"] if gpus is not None else []
    if executor == "local":
        limits = [f"gpu={len(run.devices)}"] + ([f"slots={jobs}"] if jobs else [])
        words += ["--cores", str(os.cpu_count() or 1), "--scheduler", "greedy"]
        words += ["--profile", str(profile)] if profile else []
    else:
        words += ["--profile", str(profile or HERE / "profiles" / executor)]
        words += ["--jobs", str(jobs)] if jobs else []
        if executor == "slurm":
            words += ["--slurm-logdir", "logs/slurm"]
    return [*words, *(["--resources", *limits] if limits else [])]


def try_out(run: Run) -> None:
    """Let Snakemake say whether it could run the graph, without touching what lies in the folder."""
    with tempfile.TemporaryDirectory() as elsewhere:
        place = run.folder if (run.folder / GRAPH).is_file() else Path(elsewhere)
        replace(run, folder=place).write(DRY_RUN)
        words = [*snakemake(place), "--dry-run", "--quiet", "rules", "--nolock", "--config", f"graph={DRY_RUN}"]
        done = subprocess.run([*words, "--cores", "1", "--rerun-triggers", "mtime"], capture_output=True, text=True)
        (place / DRY_RUN).unlink()
    if done.returncode:
        raise RuntimeError(f"Snakemake refuses the graph:\n{done.stdout}{done.stderr}")


def release_stale_lock(folder: Path, locked: bool) -> None:
    """Remove the lock that a killed Snakemake has left; ours went with its process, which says that it is dead."""
    locks = folder / ".snakemake" / "locks"
    if not locks.is_dir() or not any(locks.iterdir()):
        return
    command = [*snakemake(folder), "--unlock", "--cores", "1"]
    if not locked:
        raise UserError(
            f"{folder} is in use by another run, or one was killed in it; if none is alive on any machine, release it "
            f"with `{' '.join(command)}` and start again"
        )
    subprocess.run(command, capture_output=True, check=True)


def follow(run: Run, options: Sequence[str], say: Say) -> bool:
    """Run Snakemake, whose own words go to a file, and say whenever a job starts or ends. Whether it was stopped."""
    log = run.folder / "logs" / ENGINE_LOG
    log.parent.mkdir(exist_ok=True)
    settle(run)
    done = len(run.jobs) - len(jobs_left(run))
    say(f"{len(run.jobs)} jobs, {done} done already; logs in {log.parent}, state by `nnunet_brats status {run.folder}`")
    begin, stopped = time.time(), False
    with log.open("a") as output, ExitStack() as stack:
        output.write(SNAKEMAKES_START)
        output.flush()
        words = [*snakemake(run.folder), *options]
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal stopped
            stopped = True
            # On SIGINT, Snakemake cancels what it has submitted; its jobs on this machine have to hear it themselves.
            os.killpg(process.pid, signal.SIGINT)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            stack.callback(signal.signal, number, signal.signal(number, stop))
        seen: dict[str, str] = {}
        while process.poll() is None:
            say_news(run, seen, begin, say)
            time.sleep(POLL_S)
        say_news(run, seen, begin, say)
    return stopped


def say_news(run: Run, seen: dict[str, str], begin: float, say: Say) -> None:
    for name, (state, noted) in states_of(run).items():
        if noted.get("since", 0) < begin or seen.get(name) == state:
            continue
        seen[name] = state
        extra = "" if state == RUNNING else f" after {duration(noted)}"
        advice = f"; {run.log(name)}: {advise(run.log(name))}" if state == FAILED else ""
        say(f"{time.strftime('%H:%M:%S')} {state:<8} {name}{extra}{advice}")


def jobs_left(run: Run) -> list[str]:
    return [name for name, (state, _) in states_of(run).items() if state != DONE]


def engine_errors(run: Run) -> list[str]:
    """What Snakemake has said of errors in its last start: where no job has failed, they are its own."""
    latest = (run.folder / "logs" / ENGINE_LOG).read_text(errors="replace").split(SNAKEMAKES_START)[-1].splitlines()
    errors = list(dict.fromkeys(line.strip() for line in latest if "error" in line.lower()))
    return errors[:10] or latest[-10:]
