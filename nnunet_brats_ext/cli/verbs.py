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
    "Training": (),
    "Prediction": (),
    "Scores": (),
    "Whole papers": (),
}


def find_verb(name: str) -> Verb | None:
    return next((verb for verbs in GROUPS.values() for verb in verbs if verb.name == name), None)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"nnunet_brats_ext.{module}"), name)
