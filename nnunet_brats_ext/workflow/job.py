"""`python -m nnunet_brats_ext.workflow.job RUN JOB`: do what is left of one job, and say how it went.

What Snakemake starts, here or on a node of a cluster. The job's log keeps all attempts, where Snakemake would delete
those before.
"""

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.output import write_text
from nnunet_brats_ext.workflow.jobs import Job
from nnunet_brats_ext.workflow.resume import commands_left, note_done
from nnunet_brats_ext.workflow.state import Run, as_json, only_one, open_run, owner, signature

OWN_RESULTS = ("collect", "ensemble", "postprocess", "restore", "predict")  # folders of the run, of one job each
NNUNET_FOLDER_KINDS = ("train", "preprocess", "plan", "convert", "distill", "maps")  # which other runs share


def perform(run: Run, job: Job) -> int:
    """Do what is left of a job; its exit code. A job that another process is at, in any run, is refused."""
    work = {**signature(job), "inputs": inputs(run, job)}
    before = read_json(run.state_file(job.name)) if run.state_file(job.name).is_file() else {}
    continues = all(before.get(key) == value for key, value in work.items())
    attempt = {**work, **owner()}
    with ExitStack() as held:
        if job.kind in NNUNET_FOLDER_KINDS:
            lock = job.result.parent / f".{job.result.name}.lock"
            held.enter_context(only_one(lock, f"{job.result} is being written"))
        devices = held.enter_context(gpus_for(run, job))
        write_text(run.state_file(job.name), as_json({**attempt, "state": "running"}))
        code = 1
        try:
            # A prediction that was interrupted goes on; what was made from anything else goes first.
            if job.kind in OWN_RESULTS and not (job.kind == "predict" and continues):
                shutil.rmtree(job.result, ignore_errors=True)
            code = run_all(commands_left(job), {**environment_of(run, job), **devices})
            if code == 0 and not job.result.exists():
                print(f"the command has ended well, but {job.result} is not there", flush=True)
                code = 1
            if code == 0:
                note_done(job)
        finally:
            ended = {"state": "failed" if code else "done", "code": code, "ended": time.time()}
            write_text(run.state_file(job.name), as_json({**attempt, **ended}))
    if code == 0:
        run.done_file(job.name).touch()
    return code


def inputs(run: Run, job: Job) -> dict[str, float]:
    """When each job that this one waits for was done: another time means another result."""
    return {name: run.done_file(name).stat().st_mtime for name in job.after}


def environment_of(run: Run, job: Job) -> dict[str, str]:
    """nnU-Net's folders, as many workers and threads as the job has cores, and what the job asks for itself."""
    cores = job.needs.cpus // max(job.needs.gpus, 1)  # with several GPUs, each has a process that reads these
    workers = {
        "nnUNet_n_proc_DA": str(max(cores - 1, 1)),
        "nnUNet_def_n_proc": str(max(cores, 1)),
        "OMP_NUM_THREADS": "1" if job.needs.gpus else str(job.needs.cpus),
        "PYTHONUNBUFFERED": "1",
    }
    return {**os.environ, **workers, **run.environment, **job.environment}


def run_all(commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> int:
    """Run commands one after the other until one fails; ends their whole process group when it is told to end."""
    if not commands:
        print("nothing is left to do", flush=True)
    for words in commands:
        program = sys.executable if words[0] == "python" else str(Path(sys.executable).with_name(words[0]))
        print(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} $ {shlex.join(words)}", flush=True)
        process = subprocess.Popen([program, *words[1:]], env=dict(environment), start_new_session=True)
        with ending_with_us(process):
            code = process.wait()
        if code:
            print(f"failed with code {code}: {shlex.join(words)}", flush=True)
            return code
    return 0


@contextmanager
def ending_with_us(process: subprocess.Popen) -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        os.killpg(process.pid, signal.SIGKILL)  # nnU-Net's workers survive anything less
        raise SystemExit(128 + number)

    former = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def gpus_for(run: Run, job: Job) -> Iterator[dict[str, str]]:
    """GPUs of this machine that no other job of ours uses; under a scheduler, which gives them out, nothing to do."""
    if not job.needs.gpus or not run.devices:
        yield {}
        return
    locks = Path(tempfile.gettempdir(), f"nnunet_brats_gpus_{os.getuid()}")
    while True:
        with ExitStack() as held:
            taken: list[str] = []
            for device in run.devices:
                if len(taken) < job.needs.gpus:
                    with suppress(RuntimeError):
                        held.enter_context(only_one(locks / device, f"GPU {device} is used", patience_s=0))
                        taken.append(device)
            if len(taken) == job.needs.gpus:
                yield {"CUDA_VISIBLE_DEVICES": ",".join(taken)}
                return
        # All or none, and not in step with others: jobs of two runs must not wait for each other's.
        time.sleep(random.uniform(3, 8))


def main() -> int:
    folder, name = sys.argv[1:]
    run = open_run(Path(folder))
    run.log(name).parent.mkdir(parents=True, exist_ok=True)
    with run.log(name).open("ab") as log:
        for output in (sys.stdout, sys.stderr):  # of the commands as well, which inherit them
            os.dup2(log.fileno(), output.fileno())
    try:
        return perform(run, run.jobs[name])
    except (OSError, ValueError, RuntimeError) as error:
        print(error, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
