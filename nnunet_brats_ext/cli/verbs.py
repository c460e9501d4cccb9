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
    "Setting up": (),
    "Data sets": (),
    "Training": (),
    "Prediction": (
        Verb(
            "predict",
            "images -> label maps: all stages, folds and checkpoints of a model in one command",
            "inference.options:PredictOptions",
            "cli.models:predict",
            "nnU-Net's prediction, with the stage before a cascade's second one, the papers' windows and test-time "
            "augmentations, votes, and post-processing; of test cases, of each fold's own cases, by the best of "
            "several models, or for the training of a second stage. An interrupted run goes on where it stopped.",
        ),
        Verb(
            "attention",
            "where a model looks, as NIfTI and as pictures, for one checkpoint or a series",
            "inference.options:AttentionOptions",
            "cli.models:attention",
            "The coefficients of attention gates on the grid of the images, and heat maps of them: checkpoints in "
            "rows, gates in columns. Of OM-Net with guided attention: the weights of its channels, and the features "
            "that weigh most and least. One folder per case.",
        ),
        Verb(
            "pool",
            "the old name of `predict --models`",
            "inference.options:PredictOptions",
            "cli.models:pool",
            hidden=True,
        ),
        Verb(
            "predict-stage",
            "the old name of `predict --for-next-stage`",
            "inference.options:PredictOptions",
            "cli.models:predict_stage",
            hidden=True,
        ),
    ),
    "Scores": (),
    "Whole papers": (),
}


def find_verb(name: str) -> Verb | None:
    return next((verb for verbs in GROUPS.values() for verb in verbs if verb.name == name), None)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"nnunet_brats_ext.{module}"), name)
