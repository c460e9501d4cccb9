"""`nnunet_brats run`: a recipe on a release, planned here and handed to Snakemake."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path

from rich.console import Console

from nnunet_brats_ext import papers
from nnunet_brats_ext.dataset_conversion.scan import scan
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.workflow.cost import show_cost
from nnunet_brats_ext.workflow.graph import build_graph
from nnunet_brats_ext.workflow.jobs import Setting
from nnunet_brats_ext.workflow.recipe import Recipe, find_recipe, load_recipe
from nnunet_brats_ext.workflow.recipe_text import HERE
from nnunet_brats_ext.workflow.state import Run, only_one, states_of
from nnunet_brats_ext.workflow.status import advise, duration, tell_failures

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
PHANTOM_RELEASE = "BraTS2020"
DRY_RUN, ENGINE_LOG = ".dry-run.json", "snakemake.log"
POLL_S = 1.0


@dataclass(frozen=True)
class Options:
    """What can be asked of a run; each is an option of the command."""

    recipe: str
    source: Path | None = None
    folder: Path | None = None
    dataset_id: int = 137
    scale: str = "full"
    dry_run: bool = False
    executor: str = "local"
    profile: Path | None = None
    jobs: int | None = None
    gpus: int | None = None
    gpu_memory_gb: float | None = None
    folds: tuple[int, ...] | None = None
    device: str = "cuda"

    @property
    def smoke(self) -> bool:
        return self.scale == "smoke"


def copy_recipe(name: str, target: Path) -> Path:
    """Write a recipe where the user can edit it."""
    if target.suffix not in (".yaml", ".yml"):
        raise UserError(f"{target}: a recipe's file ends in .yaml")
    if target.exists():
        raise UserError(f"{target} exists already")
    shutil.copyfile(find_recipe(name), target)
    return target


def run_recipe(options: Options, console: Console | None = None) -> int:
    """Plan the graph of a recipe and have Snakemake run what of it is left; 1 if a job failed."""
    console = console or Console(soft_wrap=True, highlight=False)
    recipe = load_recipe(find_recipe(options.recipe))
    for name in {model.trainer for model in recipe.models.values()}:
        papers.find_trainer(name)  # a name that nnU-Net would not find is an error now, not after days
    run = plan_run(recipe, options)
    if options.dry_run:
        show_cost(recipe, run, console)
        return dry_run(run, options, console)
    for folder in (run.folder, *map(Path, run.environment.values())):
        folder.mkdir(parents=True, exist_ok=True)
    with only_one(run.folder / ".lock", f"{run.folder} is in use") as locked:
        run.write()
        with suppress(shutil.SameFileError):  # the recipe of this folder, run again
            shutil.copyfile(find_recipe(options.recipe), run.folder / "recipe.yaml")
        release_stale_lock(run.folder, locked)
        code = follow(run, [*snakemake(run.folder), *engine_options(run, options)], console)
    return tell_end(run, code, console)


# ---- planning ------------------------------------------------------------------------------------------------------


def plan_run(recipe: Recipe, options: Options) -> Run:
    """The jobs of a recipe for this source, machine and folder; nothing is written."""
    name = Path(options.recipe).stem
    folder = (options.folder or Path("runs", f"{name}_smoke" if options.smoke else name)).resolve()
    release, unlabelled = PHANTOM_RELEASE, True
    if options.source is not None:
        source = scan(options.source)
        release, unlabelled = source.release.name.replace("-", ""), any(not case.labelled for case in source.cases)
    elif not options.smoke:
        raise UserError("name the folder of the release: only --scale smoke makes cases of its own")
    # A trial run must never meet real models: it has nnU-Net's folders of its own, whatever the environment says.
    given = {} if options.smoke else os.environ
    environment = {name: str(Path(given.get(name) or folder / name).resolve()) for name in FOLDERS}
    raw, preprocessed, results = (Path(environment[name]) for name in FOLDERS)
    devices, gpus, cpus = resources_for(options)
    setting = Setting(
        folder, raw, preprocessed, results, options.dataset_id, release, unlabelled,
        source=options.source.resolve() if options.source else None,
        smoke=options.smoke,
        device=options.device,
        gpus=gpus,
        cpus=cpus,
        folds=options.folds,
        gpu_memory_gb=options.gpu_memory_gb,
        datasets=datasets_there(raw, [options.dataset_id + i for i in range(len(recipe.data))]),
    )  # fmt: skip
    return Run(folder, build_graph(recipe, setting), environment, tuple(devices), asdict(options))


def resources_for(options: Options) -> tuple[list[str], int, int]:
    """The GPUs of this machine to share out, how many of them one job may have, and how many cores with each.

    A cluster's scheduler shares out its own, and its nodes are taken for large.
    """
    if options.executor != "local":
        return [], options.gpus or 8, 64
    devices = local_gpus()[: options.gpus] if options.device == "cuda" else []
    if options.device == "cuda" and not devices and not options.dry_run:
        raise UserError("this machine has no GPU: run with -device cpu, or with --executor slurm where GPUs are")
    gpus = max(len(devices), 1)
    return devices, gpus, max((os.cpu_count() or 1) // gpus, 1)


def datasets_there(raw: Path, numbers: Sequence[int]) -> dict[int, str]:
    found = {number: sorted(raw.glob(f"Dataset{number:03d}_*")) for number in numbers}
    return {number: paths[0].name for number, paths in found.items() if paths}


def local_gpus() -> list[str]:
    """The GPUs that this process may use, without loading torch."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return list(takewhile(lambda device: device not in ("", "-1"), map(str.strip, visible.split(","))))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(i) for i, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU"))]


# ---- the engine ----------------------------------------------------------------------------------------------------


def snakemake(folder: Path) -> list[str]:
    try:
        import snakemake as _  # noqa: F401
    except ImportError:
        raise ImportError("recipes run on Snakemake: pip install 'nnunet-brats-ext[workflow]'") from None
    return [sys.executable, "-m", "snakemake", "--snakefile", str(HERE / "Snakefile"), "--directory", str(folder)]


def engine_options(run: Run, options: Options) -> list[str]:
    """Snakemake's own options for what was asked."""
    words = ["--keep-going", "--rerun-incomplete", "--rerun-triggers", "mtime", "params", "input"]
    limits = [f"gpu={options.gpus}"] if options.gpus is not None else []
    if options.executor == "local":
        limits = [f"gpu={len(run.devices)}"] + ([f"slots={options.jobs}"] if options.jobs else [])
        words += ["--cores", str(os.cpu_count() or 1), "--scheduler", "greedy"]
        words += ["--profile", str(options.profile)] if options.profile else []
    else:
        words += ["--profile", str(options.profile or HERE / "profiles" / options.executor)]
        words += ["--jobs", str(options.jobs)] if options.jobs else []
        if options.executor == "slurm":
            words += ["--slurm-logdir", str(run.folder / "logs" / "slurm")]
    return [*words, *(["--resources", *limits] if limits else [])]


def dry_run(run: Run, options: Options, console: Console) -> int:
    """Let Snakemake say what it would do, without touching what lies in the folder."""
    with tempfile.TemporaryDirectory() as elsewhere:
        place = run.folder if (run.folder / "graph.json").is_file() else Path(elsewhere)
        Run(place, run.jobs, run.environment, run.devices, run.settings).write(DRY_RUN)
        words = [*snakemake(place), "--dry-run", "--quiet", "rules", "--nolock", "--config", f"graph={DRY_RUN}"]
        words += ["--cores", "1", "--rerun-triggers", "mtime", "params", "input"]
        done = subprocess.run(words, capture_output=True, text=True)
        (place / DRY_RUN).unlink()
    if done.returncode:
        console.print(done.stdout + done.stderr, markup=False)
        return 1
    done_already = sum(state == "done" for state, _ in states_of(run).values())
    console.print(f"{len(run.jobs)} jobs, {done_already} done already; nothing was started")
    return 0


def release_stale_lock(folder: Path, locked: bool) -> None:
    """A killed run leaves Snakemake's lock behind; ours went with it, which tells that it is dead."""
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


def follow(run: Run, command: Sequence[str], console: Console) -> int:
    """Run Snakemake, whose own words go to a file, and say whenever a job starts or ends. Its exit code."""
    log = run.folder / "logs" / ENGINE_LOG
    log.parent.mkdir(exist_ok=True)
    begin = time.time()
    done = sum(state == "done" for state, _ in states_of(run).values())
    console.print(f"{len(run.jobs)} jobs, {done} done already; logs in {log.parent}, state by `nnunet_brats status`")
    with log.open("a") as output, ExitStack() as stack:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # On SIGINT, Snakemake cancels what it has submitted; its jobs on this machine have to hear it themselves.
            former = signal.signal(number, lambda *_: os.killpg(process.pid, signal.SIGINT))
            stack.callback(signal.signal, number, former)
        seen: dict[str, str] = {}
        while process.poll() is None:
            tell_news(run, seen, begin, console)
            time.sleep(POLL_S)
        tell_news(run, seen, begin, console)
    return process.returncode


def tell_news(run: Run, seen: dict[str, str], begin: float, console: Console) -> None:
    for name, (state, noted) in states_of(run).items():
        if noted.get("since", 0) < begin or seen.get(name) == state:
            continue
        seen[name] = state
        extra = "" if state == "running" else f" after {duration(noted)}"
        advice = f"; {run.log(name)}: {advise(run.log(name))}" if state == "failed" else ""
        console.print(f"{time.strftime('%H:%M:%S')} {state:<8} {name}{extra}{advice}", markup=False)


def tell_end(run: Run, code: int, console: Console) -> int:
    states = {name: state for name, (state, _) in states_of(run).items()}
    left = [name for name, state in states.items() if state != "done"]
    if code == 0 and not left:
        console.print(f"all done: {run.folder / 'report.html'}")
        return 0
    tell_failures(run, console)
    if "failed" not in states.values():  # so it was not a job that went wrong, but the engine or the scheduler
        latest = (run.folder / "logs" / ENGINE_LOG).read_text().split("SNAKEMAKE\n")[-1].splitlines()
        errors = list(dict.fromkeys(line.strip() for line in latest if "error" in line.lower()))
        console.print("\n".join(errors[:10] or latest[-10:]), markup=False, style="dim")
        console.print(f"all that Snakemake said: {run.folder / 'logs' / ENGINE_LOG}")
    console.print(f"{len(left)} of {len(run.jobs)} jobs are left; the same command goes on from here")
    return 1
