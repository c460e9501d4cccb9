"""`python -m nnunet_brats_ext.workflow.perform JOB`, in the folder of a run: do what is left of one job.

What Snakemake starts, here or on a node of a cluster. The job's log keeps all attempts, where Snakemake would delete
those before.
"""

import getpass
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
from functools import partial
from pathlib import Path
from types import FrameType

import psutil

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import write_json
from nnunet_brats_ext.workflow.ownership import InUse, only_one, this_process
from nnunet_brats_ext.workflow.resume import commands_left, note_done
from nnunet_brats_ext.workflow.state import DONE, FAILED, RUNNING, STOPPED, Job, Run, open_run, signature

OWN_RESULTS = ("ensemble", "postprocess", "restore", "predict")  # folders of the run, of one job each
NNUNET_FOLDER_KINDS = ("train", "preprocess", "plan", "convert", "distill", "maps")  # which other runs share


class Stopped(Exception):
    """A signal has ended the job: Ctrl-C, or a scheduler's."""


def perform(run: Run, job: Job) -> int:
    """Do what is left of a job, from the folder of its run; its exit code.

    A job that another process is at, in any run, is refused.
    """
    inputs = {name: run.noted(name).get("ended", 0) for name in job.after}  # another attempt means another result
    work = {**signature(job), "inputs": inputs, "folder": str(run.folder.resolve())}
    before = run.noted(job.name)
    continues = all(before.get(key) == value for key, value in work.items())
    attempt = {**work, **this_process()}
    with ExitStack() as held:
        held.enter_context(stopping_with_commands())
        if job.kind in NNUNET_FOLDER_KINDS:
            lock = job.result.parent / f".{job.result.name}.lock"
            held.enter_context(only_one(lock, f"{job.result} is being written"))
        devices = held.enter_context(gpus_for(run, job))
        write_json(run.state_file(job.name), {**attempt, "state": RUNNING})
        code, stopped = 1, False
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
        except Stopped:
            stopped = True
            raise
        finally:
            state = STOPPED if stopped else FAILED if code else DONE
            write_json(run.state_file(job.name), {**attempt, "state": state, "code": code, "ended": time.time()})
    if code == 0:
        run.done_file(job.name).touch()
    return code


def environment_of(run: Run, job: Job) -> dict[str, str]:
    """nnU-Net's folders, as many workers and threads as the job has cores, and what the job asks for itself."""
    cores = job.needs.cpus // max(job.needs.gpus, 1)  # with several GPUs, each has a process that reads these
    workers = {
        "nnUNet_n_proc_DA": str(max(cores - 1, 1)),
        "nnUNet_def_n_proc": str(max(cores, 1)),
        "OMP_NUM_THREADS": "1" if job.needs.gpus else str(job.needs.cpus),
        "PYTHONUNBUFFERED": "1",
    }
    folders = {name: str(run.folder.resolve() / folder) for name, folder in run.environment.items()}
    return {**os.environ, **workers, **folders, **job.environment}


def run_all(commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> int:
    """Run commands, each as a process group of its own, one after the other until one fails."""
    if not commands:
        print("nothing is left to do", flush=True)
    for words in commands:
        program = sys.executable if words[0] == "python" else str(Path(sys.executable).with_name(words[0]))
        print(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} $ {shlex.join(words)}", flush=True)
        if code := subprocess.Popen([program, *words[1:]], env=dict(environment), start_new_session=True).wait():
            print(f"failed with code {code}: {shlex.join(words)}", flush=True)
            return code
    return 0


@contextmanager
def stopping_with_commands() -> Iterator[None]:
    """Let a signal to this process end the process groups of its commands, and the job as stopped."""

    def stop(number: int, frame: FrameType | None) -> None:
        for child in psutil.Process().children():
            for end in (partial(os.killpg, child.pid, signal.SIGKILL), child.kill):  # it may not lead its group yet
                with suppress(ProcessLookupError, psutil.NoSuchProcess):
                    end()  # nnU-Net's workers survive anything less
        raise Stopped(signal.Signals(number).name)

    former = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
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
    locks = Path(tempfile.gettempdir(), f"nnunet_brats_gpus_{getattr(os, 'getuid', getpass.getuser)()}")
    while True:
        with ExitStack() as held:
            taken: list[str] = []
            for device in run.devices:
                if len(taken) < job.needs.gpus:
                    with suppress(InUse):
                        held.enter_context(only_one(locks / device, f"GPU {device} is used", patience_s=0))
                        taken.append(device)
            if len(taken) == job.needs.gpus:
                yield {"CUDA_VISIBLE_DEVICES": ",".join(taken)}
                return
        # All or none, and not in step with others: jobs of two runs must not wait for each other's.
        time.sleep(random.uniform(3, 8))


def perform_here(name: str) -> int:
    """The job of the run in the current folder. What it says goes to its log, tracebacks of defects included."""
    run = open_run(Path.cwd())
    run.log(name).parent.mkdir(parents=True, exist_ok=True)
    with run.log(name).open("ab") as log:
        for output in (sys.stdout, sys.stderr):  # of the commands as well, which inherit them
            os.dup2(log.fileno(), output.fileno())
    try:
        return perform(run, run.jobs[name])
    except (OSError, UserError) as error:
        print(error, flush=True)
    except Stopped as signalled:
        print(f"stopped by {signalled}", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(perform_here(sys.argv[1]))
