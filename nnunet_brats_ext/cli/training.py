"""What the verbs of training print."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from nnunet_brats_ext import papers
from nnunet_brats_ext.planning.fitting import PLAIN_UNET, shown
from nnunet_brats_ext.planning.plan import Planned, PlanOptions, next_commands, plan
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.options import option
from nnunet_brats_ext.storage.plans import resolve


def papers_with_recipes() -> list[str]:
    return [key for key, paper in papers.find_papers().items() if paper.recipe]


@dataclass(frozen=True)
class PlanCommandOptions(PlanOptions):
    """Options of `plan`, and whose commands it prints."""

    paper: str | None = option(
        default=None, metavar="PAPER", choices=papers_with_recipes, help="print all commands of this paper"
    )
    trainer: str | None = option(
        "-tr", default=None, metavar="TRAINER", help="print all commands of this trainer, one of ours or of your own"
    )


def print_plan(options: PlanCommandOptions) -> None:
    """Write the plans, and print what was chosen and what to run next."""
    if options.paper and options.trainer:
        raise UserError(f"--paper {options.paper} -tr {options.trainer}: choose one of them")
    if options.trainer:
        papers.find_trainer(options.trainer)  # a name that nobody knows is an error before anything is written
    planned = plan(**{field.name: getattr(options, field.name) for field in fields(PlanOptions)})
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(table_of_plans(planned), soft_wrap=False)
    console.print(
        "GB of each GPU, estimated for mixed precision without torch.compile: activations as counted, 1 GB in reserve. "
        "None is given for networks that have not been counted; these keep their paper's patch and batch.",
        soft_wrap=False,
    )
    if planned.fingerprint is None:
        console.print("dataset_fingerprint.json is missing: the median case was taken for the largest.")
    console.print(f"{'Written' if planned.written else 'Nothing new in'} {planned.file}. Next:")
    if options.paper or options.trainer:
        from nnunet_brats_ext.workflow.commands import commands_of_paper, commands_of_trainer

        if options.paper:
            commands = commands_of_paper(options.paper, planned)
        else:
            commands = commands_of_trainer(str(options.trainer), planned)
    else:
        commands = list(next_commands(planned))
    for command in commands:
        console.print(f"  {command}")
    if not (options.paper or options.trainer):
        console.print("--paper and -tr print everything from here to the submission.")


def table_of_plans(planned: Planned) -> Table:
    """Every configuration with its patch, batch and memory, and why where these are not the paper's."""
    names = ("configuration", "patch (z, y, x)", "batch", "GB", "why")
    table = Table(*(Column(name, no_wrap=name != "why") for name in names), box=SIMPLE, title=planned.file.stem)
    for name, chosen in planned.fits.items():
        estimate = "" if chosen.estimate_gb is None else f"{chosen.estimate_gb:.1f}"
        paper = papers.find_paper(papers.configurations()[name].paper)
        why = "\n".join([paper.short, *chosen.reasons])
        table.add_row(name, shown(chosen.topology.patch_size), str(chosen.batch_size), estimate, why)
    for name in planned.plans["configurations"]:
        if name not in planned.fits:
            configuration = resolve(planned.plans["configurations"], name)
            patch_size, batch_size = configuration["patch_size"], configuration["batch_size"]
            estimate = f"{PLAIN_UNET.gpu_gb(patch_size, batch_size):.1f}" if is_plain_3d(configuration) else ""
            table.add_row(name, shown(patch_size), str(batch_size), estimate, "nnU-Net's own, kept", style="dim")
    return table


def is_plain_3d(configuration: Mapping[str, Any]) -> bool:
    """Whether the configuration is what the footprint of nnU-Net's network was counted for."""
    architecture = configuration.get("architecture", {})
    return len(configuration["patch_size"]) == 3 and architecture.get("network_class_name", "").endswith(
        "PlainConvUNet"
    )
