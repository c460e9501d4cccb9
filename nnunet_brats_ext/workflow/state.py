"""The folder of a run: its jobs, their logs and their states. All paths in it are relative to it.

Every job reads this first, so nothing heavy is imported.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import check_schema, read_json, write_json
from nnunet_brats_ext.workflow.ownership import is_alive
from nnunet_brats_ext.workflow.recipe_text import HERE
from nnunet_brats_ext.workflow.resources import Needs

GRAPH = "graph.json"
ADVICE = "; remove the file and give the command of the run again, which makes it anew"
OLDER_DELAY_S = 60  # between the end of a job and its done file, in version 0.1
OLDER_WORDS = {  # of version 0.1 in a command, and what this version writes
    "pool": ["predict"],
    "predict-stage": ["predict", "--for-next-stage"],
    "postprocess": ["postprocess", "-i"],
    "--processes": ["-np"],
    "--save-probabilities": ["--save_probabilities"],
}
OF_THE_MACHINE = {"-np", "-npfp", "-num_gpus"}  # options of commands that follow its cores and GPUs
DONE, RUNNING, STOPPED, INTERRUPTED, FAILED, WAITING = "done", "running", "stopped", "interrupted", "failed", "waiting"
Noted = dict[str, Any]  # what a job's last attempt has left in its state file


@dataclass(frozen=True)
class Job:
    """A command line with what it waits for and what it writes. `name` is KIND/..., unique.

    facts: of a training or a preprocessing, by which `resume` sees what of it is done.
    """

    name: str
    command: tuple[str, ...]
    result: Path
    after: tuple[str, ...]
    needs: Needs
    environment: dict[str, str] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.name.split("/")[0]


@dataclass(frozen=True)
class Run:
    """What `nnunet_brats run` has planned in a folder.

    environment: nnU-Net's folders, relative where they lie in this one. devices: the GPUs of this machine that jobs
    share among them; none where a scheduler does. settings: what was asked for, to be read by people. older: states
    that version 0.1 has left, as this version writes them, until it does.
    """

    folder: Path
    jobs: Mapping[str, Job]
    environment: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    settings: Mapping[str, Any] | None = None
    older: Mapping[str, Noted] = field(default_factory=dict)

    def write(self, name: str = GRAPH) -> None:
        jobs = {name: asdict(job) for name, job in self.jobs.items()}
        content = {"jobs": jobs, "environment": dict(self.environment), "devices": self.devices}
        write_json(self.folder / name, content | {"settings": self.settings})

    def done_file(self, job: str) -> Path:
        """Snakemake's output of a job: it is there when the job has ended well."""
        return self.folder / "jobs" / f"{job}.done"

    def state_file(self, job: str) -> Path:
        return self.folder / "jobs" / f"{job}.json"

    def log(self, job: str) -> Path:
        return self.folder / "logs" / f"{job}.log"

    def noted(self, job: str) -> Noted:
        """What the last attempt at a job has left; nothing where there was none."""
        if job in self.older:
            return self.older[job]
        return _checked(self.state_file(job), "state") if self.state_file(job).is_file() else {}


def open_run(folder: Path, graph: str = GRAPH) -> Run:
    """The run of a folder; an error where none has been started."""
    file = folder / graph
    if not file.is_file():
        raise UserError(f"{folder} is no folder of `nnunet_brats run`: it has no {graph}")
    content = _checked(file, "graph")
    jobs = {
        name: Job(
            name, tuple(job["command"]), Path(job["result"]), tuple(job["after"]), Needs(**job["needs"]),
            job["environment"], job["facts"],
        )
        for name, job in content["jobs"].items()
    }  # fmt: skip
    for name, job in jobs.items():
        if unknown := set(job.after) - set(jobs):
            raise UserError(f"{file}, jobs.{name}.after: there is no job {sorted(unknown)[0]!r}{ADVICE}")
    devices, older = tuple(content.get("devices", ())), older_states(folder, content, renewed=False)
    return Run(folder, jobs, content["environment"], devices, content.get("settings"), older)


def _checked(file: Path, schema: str) -> dict[str, Any]:
    content = read_json(file)
    check_schema(content, _schema(schema), file, ADVICE)
    return content


@cache
def _schema(name: str) -> dict[str, Any]:
    return read_json(HERE / f"{name}.schema.json")


def signature(job: Job) -> dict[str, Any]:
    """What a job does, with what and where; its result is good as long as this and what it waits for stay the same.

    On how many cores and GPUs is left out: a run may go on elsewhere.
    """
    return {"command": _on_any_machine(job.command), "environment": dict(job.environment), "result": str(job.result)}


def _on_any_machine(command: Sequence[str]) -> list[str]:
    return [word for before, word in pairwise(("", *command)) if not {before, word} & OF_THE_MACHINE]


def states_of(run: Run) -> dict[str, tuple[str, Noted]]:
    """Of each job: done, running, stopped, interrupted, failed or waiting; and what its last attempt has noted.

    stopped: by Ctrl-C or by the scheduler. interrupted: gone without a word. One that was done waits again when
    something before it does or was done after it, and when it was done otherwise than now planned.
    """
    states: dict[str, tuple[str, Noted]] = {}
    for name, job in run.jobs.items():
        noted = run.noted(name)
        state = noted.get("state")
        if state == RUNNING:
            state = RUNNING if is_alive(noted) else INTERRUPTED
        elif state not in (FAILED, STOPPED):
            state = DONE if run.done_file(name).is_file() and _is_good(job, noted, states) else WAITING
        states[name] = state, noted
    return states


def _is_good(job: Job, noted: Noted, states: Mapping[str, tuple[str, Noted]]) -> bool:
    """Whether a job was done as it is now planned, on the last results of the jobs before it."""
    on = noted.get("inputs", {})
    inputs = all(states[name][0] == DONE and on.get(name) == states[name][1]["ended"] for name in job.after)
    return inputs and all(noted.get(key) == value for key, value in signature(job).items())


def settle(run: Run) -> None:
    """Let Snakemake, which goes by the times of files, see the states: also after a change, and in a copied folder."""
    times: dict[str, float] = {}
    for name, (state, noted) in states_of(run).items():
        if state == DONE:
            times[name] = max([noted["ended"], *(times[before] for before in run.jobs[name].after)])
            os.utime(run.done_file(name), (times[name], times[name]))
        elif state != RUNNING:
            run.done_file(name).unlink(missing_ok=True)


def older_states(folder: Path, content: Mapping[str, Any], renewed: bool) -> dict[str, Noted]:
    """The states of a run whose graph, `content`, is of version 0.1; none for another one.

    Their inputs are as this version notes them, not the times of done files. renewed: their commands and paths too, as
    a graph of this version has them; paths were absolute, in the folder that the graph names.
    """
    if not (then := content.get("folder")):
        return {}
    place = folder / "jobs"
    states = {
        str(file.relative_to(place).with_suffix("")): _checked(file, "state") for file in sorted(place.rglob("*.json"))
    }
    for noted in states.values():
        if renewed:
            command = [relative_to(word, then) for word in noted["command"]]
            noted["command"] = _on_any_machine([new for word in command for new in OLDER_WORDS.get(word, [word])])
            noted["result"] = relative_to(noted["result"], then)
        for before, touched in noted["inputs"].items():
            ended = states.get(before, {}).get("ended", 0)
            if abs(touched - ended) < OLDER_DELAY_S:
                noted["inputs"][before] = ended
    return states


def relative_to(path: str | Path, folder: str | Path) -> str:
    """A path in a folder relative to it, any other as it is."""
    return str(Path(path).relative_to(folder)) if Path(path).is_relative_to(folder) else str(path)
