"""The folder of a run: its graph, the logs and the state of its jobs, and who is at work in it."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.output import write_text
from nnunet_brats_ext.workflow.jobs import Job
from nnunet_brats_ext.workflow.resources import Needs

GRAPH = "graph.json"
OF_THE_MACHINE = {"-np", "-npfp", "-num_gpus"}  # options of commands that follow its cores and GPUs


def as_json(content: Any) -> str:
    return json.dumps(content, indent=2, default=str) + "\n"


@dataclass(frozen=True)
class Run:
    """What `nnunet_brats run` has planned in a folder.

    environment: nnU-Net's folders. devices: the GPUs of this machine that jobs share out among them; none where a
    scheduler does. settings: what was asked, for the screen.
    """

    folder: Path
    jobs: Mapping[str, Job]
    environment: Mapping[str, str]
    devices: tuple[str, ...] = ()
    settings: Mapping[str, Any] | None = None

    def write(self, name: str = GRAPH) -> None:
        content = asdict(self) | {"jobs": {name: asdict(job) for name, job in self.jobs.items()}}
        write_text(self.folder / name, as_json(content))

    def done_file(self, job: str) -> Path:
        """Snakemake's output of a job: it is there when the job has ended well."""
        return self.folder / "jobs" / f"{job}.done"

    def state_file(self, job: str) -> Path:
        return self.folder / "jobs" / f"{job}.json"

    def log(self, job: str) -> Path:
        return self.folder / "logs" / f"{job}.log"


def open_run(folder: Path, graph: str = GRAPH) -> Run:
    """The run of a folder; an error where none has been started."""
    if not (folder / graph).is_file():
        raise UserError(f"{folder} is no folder of `nnunet_brats run`: it has no {graph}")
    content = read_json(folder / graph)
    jobs = {
        name: Job(
            name, tuple(job["command"]), Path(job["result"]), tuple(job["after"]), Needs(**job["needs"]),
            job["environment"], job["facts"],
        )
        for name, job in content["jobs"].items()
    }  # fmt: skip
    return Run(folder, jobs, content["environment"], tuple(content["devices"]), content["settings"])


def signature(job: Job) -> dict[str, Any]:
    """What a job does, with what and where; its result is good as long as this and what it waits for stay the same.

    On how many cores and GPUs is left out: a run may go on elsewhere.
    """
    command = [word for before, word in pairwise(("", *job.command)) if not {before, word} & OF_THE_MACHINE]
    return {"command": command, "environment": dict(job.environment), "result": str(job.result)}


def states_of(run: Run) -> dict[str, tuple[str, dict[str, Any]]]:
    """Of each job: done, running, interrupted, failed or waiting; and what its last attempt has noted.

    One that was done waits again when something before it does, and when it was done otherwise than now planned.
    """
    states: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, job in run.jobs.items():
        noted = read_json(run.state_file(name)) if run.state_file(name).is_file() else {}
        if noted.get("state") == "running":
            state = "running" if is_alive(noted) else "interrupted"
        elif noted.get("state") == "failed":
            state = "failed"
        else:
            ready = all(states[before][0] == "done" for before in job.after)
            same = all(noted.get(key) == value for key, value in signature(job).items())
            state = "done" if ready and same and run.done_file(name).is_file() else "waiting"
        states[name] = state, noted
    return states


# ---- who is at work ------------------------------------------------------------------------------------------------


def owner() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}


def is_alive(owner: Mapping[str, Any]) -> bool:
    """Whether the process still runs; of another machine's process nothing is known, and it counts as alive."""
    if owner["host"] != socket.gethostname():
        return True
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def describe(owner: Mapping[str, Any]) -> str:
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(owner["since"]))
    return f"process {owner['pid']} on {owner['host']}, since {since}"


@contextmanager
def only_one(place: Path, what: str, patience_s: float = 5) -> Iterator[bool]:
    """Let one process at a time work in a place, on whatever machine; the lock goes with the process that holds it.

    A second one is an error that names the first. Gives False on a file system that knows no locks.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a+") as file:
        for attempt in range(int(patience_s * 10) + 1):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == int(patience_s * 10):
                    file.seek(0)
                    holder = file.read()
                    by = describe(json.loads(holder)) if holder else "another process"
                    raise UserError(f"{what} by {by}; wait until it ends, or end it") from None
                time.sleep(0.1)
            except OSError:
                yield False
                return
        file.truncate(0)
        file.write(json.dumps(owner()))
        file.flush()
        yield True
