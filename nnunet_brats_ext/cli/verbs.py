"""The verbs of `nnunet_brats`, in groups: for each its options and the function that runs it, imported on use."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verb:
    """One verb. options, run: `module:name` within the package; `run` takes the options and gives an exit code or None.

    hidden: an old name of another verb, accepted and not listed.
    """

    name: str
    help: str
    options: str
    run: str
    description: str = ""
    hidden: bool = False

    def load_options(self) -> type:
        return _load(self.options)

    def load_run(self) -> Callable[[Any], int | None]:
        return _load(self.run)


GROUPS: dict[str, tuple[Verb, ...]] = {
    "Setting up": (
        Verb(
            "doctor",
            "check versions, folders, trainer lookup and labels; say what to do",
            "cli.setup:DoctorOptions",
            "cli.setup:doctor",
        ),
        Verb(
            "demo",
            "the whole way, from a BraTS folder to a scored submission, on synthetic patients",
            "demo:DemoOptions",
            "cli.setup:demo",
        ),
        Verb(
            "papers",
            "the papers, their trainers and configurations; your own ones too",
            "cli.setup:PapersOptions",
            "cli.setup:show_papers",
        ),
    ),
    "Data sets": (),
    "Training": (
        Verb(
            "plan",
            "nnU-Net's plans -> BraTSPlans: with the papers' configurations, fitted to a GPU's memory",
            "cli.training:PlanCommandOptions",
            "cli.training:print_plan",
            "Keeps nnU-Net's own configurations. The papers' share their preprocessed data, unless a paper resamples. "
            "Without a budget, patch and batch are the papers'; with one, the batch shrinks first, then the patch. "
            "Prints what to run next: all commands of a paper or of a trainer on request.",
        ),
    ),
    "Prediction": (),
    "Scores": (),
    "Whole papers": (
        Verb(
            "run",
            "a recipe, from BraTS folder to report and submission, on this machine or a cluster",
            "workflow.run:RunOptions",
            "cli.recipes:print_run",
            "A paper as a graph of nnU-Net's and these commands, run by Snakemake. Started again, it goes on where it "
            "stopped: finished folds are kept, interrupted ones continued. Every paper has a recipe of its name; "
            "`compare` puts all side by side; a YAML file is one of yours.",
        ),
        Verb(
            "status",
            "what of a run is done, running, stopped or failed, with the log of each job",
            "workflow.status:StatusOptions",
            "cli.recipes:print_status",
        ),
    ),
}


def find_verb(name: str) -> Verb | None:
    return next((verb for verbs in GROUPS.values() for verb in verbs if verb.name == name), None)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"nnunet_brats_ext.{module}"), name)
