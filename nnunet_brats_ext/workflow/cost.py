"""What a run will cost: how many jobs of which kind, on what, and how many training steps."""

import shlex
from collections import defaultdict
from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table

from nnunet_brats_ext.workflow.jobs import Job
from nnunet_brats_ext.workflow.recipe import Model, Recipe
from nnunet_brats_ext.workflow.resources import gpu_memory_gb
from nnunet_brats_ext.workflow.state import Run


def show_cost(recipe: Recipe, run: Run, console: Console) -> None:
    """Print every job with its command, then what each kind and each model asks for."""
    for job in run.jobs.values():
        console.print(f"[bold]{job.name}[/]" + (f"  after {shown_after(job.after)}" if job.after else ""))
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
            table.add_row(model.name, model.trainer, str(len(jobs)), str(gpus), shown_memory(recipe, run, model, gpus))
    console.print(table)
    console.print("GB of each GPU: the estimate of `nnunet_brats plan`, where the network has been counted.")


def shown_after(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def spread(jobs: Sequence[Job], need: str) -> str:
    values = sorted({getattr(job.needs, need) for job in jobs})
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g}-{values[-1]:g}"


def shown_memory(recipe: Recipe, run: Run, model: Model, gpus: int) -> str:
    budget = (run.settings or {}).get("gpu_memory_gb") or recipe.gpu_memory_gb
    estimate = gpu_memory_gb(model.configuration, gpus, budget) if gpus else None
    return "" if estimate is None else f"{estimate:.1f}"
