"""What the verbs of whole papers print."""

import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from nnunet_brats_ext.workflow.engine import ENGINE_LOG, engine_errors, jobs_left, try_out
from nnunet_brats_ext.workflow.ownership import shown_owner
from nnunet_brats_ext.workflow.recipe_parts import Model, Recipe
from nnunet_brats_ext.workflow.resources import gpu_memory_gb
from nnunet_brats_ext.workflow.run import RunOptions, copy_recipe, plan_run, run_recipe
from nnunet_brats_ext.workflow.state import (
    DONE,
    FAILED,
    INTERRUPTED,
    RUNNING,
    STOPPED,
    WAITING,
    Job,
    Run,
    open_run,
    states_of,
)
from nnunet_brats_ext.workflow.status import StatusOptions, advise, duration, last_line, tail

COLOURS = {
    DONE: "green", RUNNING: "cyan", FAILED: "bold red", STOPPED: "yellow", INTERRUPTED: "yellow", WAITING: "dim",
}  # fmt: skip


def console_for_lines() -> Console:
    return Console(soft_wrap=True, highlight=False)


# ---- run -------------------------------------------------------------------------------------------------------------


def print_run(options: RunOptions) -> int:
    """Run a recipe and print what becomes of its jobs, or print the jobs alone, or write a copy; the exit code."""
    console = console_for_lines()
    if options.copy:
        console.print(f"written: {copy_recipe(options.recipe, options.copy)}", markup=False)
        return 0
    if options.dry_run:
        print_jobs(options, console)
        return 0
    given = {name: value for name, value in vars(options).items() if name not in ("recipe", "source")}
    run, stopped = run_recipe(options.recipe, options.source, lambda line: console.print(line, markup=False), **given)
    return print_end(run, stopped, console)


def print_end(run: Run, stopped: bool, console: Console) -> int:
    """What is left of a run and why; the exit code."""
    left = jobs_left(run)
    if not left:
        console.print(f"all done: {run.folder / 'report.html'}", markup=False)
        return 0
    remaining = f"{len(left)} of {len(run.jobs)} jobs are left; the same command goes on from here"
    if stopped:
        console.print(f"stopped; {remaining}")
        return 130
    print_failures(run, console)
    if FAILED not in {state for state, _ in states_of(run).values()}:  # so it was the engine or the scheduler
        console.print("\n".join(engine_errors(run)), markup=False, style="dim")
        console.print(f"all that Snakemake said: {run.folder / 'logs' / ENGINE_LOG}", markup=False)
    console.print(remaining)
    return 1


# ---- run --dry-run ---------------------------------------------------------------------------------------------------


def print_jobs(options: RunOptions, console: Console) -> None:
    """Every job with its command, then what each kind and each model asks for."""
    recipe, run = plan_run(options)
    for job in run.jobs.values():
        console.print(f"[bold]{escape(job.name)}[/]" + (f"  after {shown_after(job.after)}" if job.after else ""))
        console.print(f"    {shlex.join(job.command)}", markup=False, style="dim")
    kinds = defaultdict(list)
    for job in run.jobs.values():
        kinds[job.kind].append(job)
    table = Table("kind", *(Column(name, justify="right") for name in ("jobs", "GPUs", "CPUs", "GB", "hours at most")))
    for kind, jobs in kinds.items():
        table.add_row(kind, str(len(jobs)), *(spread(jobs, name) for name in ("gpus", "cpus", "memory_gb", "hours")))
    console.print(table)
    names = (Column(name, overflow="fold") for name in ("model", "trainer"))
    table = Table(*names, *(Column(name, justify="right") for name in ("folds", "GPUs", "GB of each GPU")))
    for model in recipe.models.values():
        jobs = [job for job in kinds["train"] if job.name.startswith(f"train/{model.name}/")]
        if jobs:
            gpus = jobs[0].needs.gpus
            memory = shown_memory(model, gpus, options.gpu_memory_gb or recipe.gpu_memory_gb)
            table.add_row(model.name, model.trainer, str(len(jobs)), str(gpus), memory)
    console.print(table)
    console.print("GB of each GPU: the estimate of `nnunet_brats plan`, where the network has been counted.")
    print_rows(recipe, console)
    try_out(run)
    done = len(run.jobs) - len(jobs_left(run))
    console.print(f"jobs run in {run.folder}; {len(run.jobs)} jobs, {done} done already; nothing was started")


def print_rows(recipe: Recipe, console: Console) -> None:
    """The rows of the paper's tables, each with the prediction whose scores the report sets beside it."""
    if (paper := recipe.published) is None:
        return
    table = Table("table", *(Column(name, overflow="fold") for name in ("row", "cases", "prediction")))
    for row in paper.results:
        scored = "" if row.prediction in recipe.evaluated else " (not scored in this run)"
        table.add_row(row.table, row.system, row.data, f"{row.prediction}{scored}" if row.prediction else row.absent)
    console.print(table)


def shown_after(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def spread(jobs: Sequence[Job], need: str) -> str:
    """The least and the most that jobs need of something."""
    values = sorted({getattr(job.needs, need) for job in jobs})
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g}-{values[-1]:g}"


def shown_memory(model: Model, gpus: int, budget_gb: float | None) -> str:
    estimate = gpu_memory_gb(model.configuration, gpus, budget_gb) if gpus else None
    return "" if estimate is None else f"{estimate:.1f}"


# ---- status ----------------------------------------------------------------------------------------------------------


def print_status(options: StatusOptions) -> int:
    """A line for each job of a run; 1 if any has failed."""
    console = console_for_lines()
    run = open_run(options.folder)
    states = states_of(run)
    width = max(map(len, run.jobs), default=0)
    for name, (state, noted) in states.items():  # one line each, however narrow the screen: to be searched and cut
        log = run.log(name) if run.log(name).is_file() else ""
        line = f"[{COLOURS[state]}]{state:<11}[/] {name:<{width}} {duration(noted):>8}  {escape(str(log))}"
        news = "" if state in (DONE, WAITING) else f"  {last_line(run.log(name))}"
        console.print(line + escape(news))
    counts = Counter(state for state, _ in states.values())
    summary = ", ".join(f"{counts[state]} {state}" for state in COLOURS if counts[state])
    console.print(f"{options.folder}: {summary}", markup=False)
    print_failures(run, console)
    return 1 if counts[FAILED] else 0


def print_failures(run: Run, console: Console) -> None:
    """For each failed job its last words, where the rest is, and what to do; and how stopped ones go on."""
    states = states_of(run)
    for name, (state, noted) in states.items():
        if state == FAILED:
            console.print(f"\n[bold red]{escape(name)} failed[/] ({escape(shown_owner(noted))})")
            console.print("\n".join(tail(run.log(name))[-8:]), style="dim", markup=False)
            console.print(f"all it said: {run.log(name)}", markup=False)
            console.print(f"what to do: {advise(run.log(name))}", markup=False)
    if any(state in (STOPPED, INTERRUPTED) for state, _ in states.values()):
        console.print("what was stopped or interrupted goes on when the command of the run is given again")
