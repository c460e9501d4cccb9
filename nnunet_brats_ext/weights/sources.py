"""What a source of trained weights says about itself, and how sources are found.

A source is `SOURCE = WeightsSource(...)` in a file `trainers/<paper>/weights*.py`: in the folder of the paper whose
network it brings, or of the baseline. Nobody keeps a list of them.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_brats_ext import papers
from nnunet_brats_ext.weights.reading import find_state, read_torch
from nnunet_brats_ext.weights.v1_files import ModelOfV1, read_model

State = Mapping[str, Tensor]
REGIONS = ("WT", "TC", "ET")
LABELS = ("ED", "NCR", "ET")  # 1, 2, 3


@dataclass(frozen=True)
class Given:
    """What the user gave: a file or a folder, and what they said about it.

    channels, labels: as the source has them, in order; empty where the user did not say. region: of a network that
    finds one region alone.
    """

    path: Path
    channels: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    region: str | None = None

    @cached_property
    def content(self) -> Any:
        """What torch saved in the file, read without executing anything."""
        classes = [module for source in find_sources() for module in source.stored_classes]
        return read_torch(self.path, inert=classes)

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The weights in the file by the names of their authors; empty for a folder or a file without weights."""
        return (find_state(self.content) or {}) if self.path.is_file() else {}

    @cached_property
    def model_of_v1(self) -> ModelOfV1 | None:
        """What nnU-Net v1 or a fork of it has saved there."""
        return read_model(self.path)


@dataclass(frozen=True)
class ForeignModel:
    """A trained model of another system, as one of nnU-Net v2's would be described.

    system: what it is, in words. trainer: the class of ours that predicts with it and trains it further.
    configurations: of nnU-Net's plans; configuration: the one that the weights are for.
    inputs: what each input channel of the network is, in the order of the source: sequences, and labels of a previous
    stage. outputs: its regions, or `background` and labels, likewise. They are permuted to our order in `input_layers`
    and `output_layers`, names of weights. A channel of an unknown name leaves the order as it is.
    folds: name of a fold -> its weights under our names, read when asked for. files: name of a fold -> its files.
    reversed_axes: the source's arrays are (x, y, z), so that its kernels are turned to (z, y, x).
    transpose: nnU-Net's `transpose_forward`, for a network whose kernels cannot be turned.
    unused: names of weights that the network does not need, such as branches of training.
    initial: beginnings of names of weights that the file lacks and that prediction does not need.
    trained_on: where it is not what the source says of all its files.
    normalised_beforehand: images come normalised, as `convert --normalise` writes them.
    """

    system: str
    trainer: str
    plans_name: str
    configuration: str
    configurations: Mapping[str, Mapping[str, Any]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    folds: Mapping[str, Callable[[], State]]
    files: Mapping[str, Sequence[Path]]
    input_layers: tuple[str, ...]
    output_layers: tuple[str, ...]
    reversed_axes: bool = False
    transpose: tuple[int, int, int] = (0, 1, 2)
    unused: tuple[str, ...] = ()
    initial: tuple[str, ...] = ()
    normalised_beforehand: bool = False
    trained_on: str = ""
    notes: tuple[str, ...] = ()
    intensities: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightsSource:
    """Weights that somebody has published.

    published: where. licence: of the weights, as far as stated. trained_on: what must not be evaluated with them.
    open: the model in what the user gave, or None where it is of another source; a UserError where it is of this one
    and cannot be used. stored_classes: modules of the authors, ending in a dot, whose objects their files hold.
    """

    title: str
    published: str
    licence: str
    trained_on: str
    open: Callable[[Given], ForeignModel | None]
    stored_classes: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def find_sources() -> tuple[WeightsSource, ...]:
    """All sources in the order of their files; those of nnU-Net itself and of MONAI last, after the papers' forks."""
    files = sorted(papers.HERE.glob("*/weights*.py"), key=lambda file: (file.parent.name == "baseline", file))
    names = [".".join(file.relative_to(papers.HERE.parents[1]).with_suffix("").parts) for file in files]
    return tuple(importlib.import_module(name).SOURCE for name in names)
