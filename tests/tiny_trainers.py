"""Trainers of all papers with small networks and patches, and short trainings of them, for tests."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import World
from torch import Tensor

from nnunet_brats_ext import papers, trainers
from nnunet_brats_ext.training.seams import PlainTrainer

CPU = torch.device("cpu")
SMALL = {  # arguments of networks
    "features_per_stage": (8, 8), "n_blocks_per_stage": (1, 1), "features": (1, 2),
    "embed_dim": 24, "eva_depth": 1, "eva_numheads": 2, "ch_per_level": (4, 4, 4, 4),
}  # fmt: skip


def distinct_trainers() -> list[str]:
    """The names of all trainers, but of those as written one per paper and network: the others only set switches."""
    names = {}
    for name, facts in papers.trainers().items():
        kind = (facts.paper, getattr(trainers, name).architecture) if facts.as_written_of else name
        names.setdefault(kind, name)
    return list(names.values())


def make_tiny(trainer: type[PlainTrainer], patch: pytest.MonkeyPatch) -> type[PlainTrainer]:
    """Give a trainer class a small network, also for nnU-Net's predictor, which finds the class by its name."""
    if trainer.architecture is not None:
        taken = inspect.signature(trainer.architecture).parameters
        options = {**vars(trainer).get("network_options", {}), **{k: v for k, v in SMALL.items() if k in taken}}
        if "squeeze" in options:
            options["squeeze"] = 4  # of 8 channels
        patch.setattr(trainer, "network_options", options)
    return trainer


@contextmanager
def tiny(name: str) -> Iterator[type[PlainTrainer]]:
    """The trainer class of that name, with a small network for as long as the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        yield make_tiny(getattr(trainers, name), patch)


def build(
    world: World, trainer: type | str, configuration: str | None = None, fold: int | str = 0, **changes: Any
) -> PlainTrainer:
    """A trainer as nnU-Net's command builds it; by default on slices if its name says 2D, and on small patches.

    changes: of the configuration; `strides` are those of the network.
    """
    trainer_class = getattr(trainers, trainer) if isinstance(trainer, str) else trainer
    configuration = configuration or ("2d" if "2D" in trainer_class.__name__ else "3d_fullres")
    if trainer_class.all_facts().prediction.kept and configuration == "3d_fullres":
        changes = {"patch_size": [8, 16, 16], "batch_size": 1} | changes  # a row for each task
    plans = world.plans
    if strides := changes.pop("strides", None):
        plans["configurations"][configuration]["architecture"]["arch_kwargs"]["strides"] = strides
    plans["configurations"][configuration] |= changes
    built = trainer_class(plans | {"continue_training": False}, configuration, fold, world.dataset_json, CPU)
    built.logger.plot_progress_png = lambda folder: None  # takes as long as an epoch
    return built


def random_batch(trainer: PlainTrainer, seed: int = 0) -> dict:
    """What the loader gives: a batch of images, and regions at every scale that the loss looks at."""
    generator = torch.Generator().manual_seed(seed)
    size = trainer.configuration_manager.patch_size
    shape = (trainer.batch_size, trainer.num_input_channels, *size)
    regions = trainer.label_manager.num_segmentation_heads
    scales = trainer._get_deep_supervision_scales()
    target = [
        torch.rand(shape[0], regions, *(round(n * s) for n, s in zip(size, scale, strict=True)), generator=generator)
        > 0.7
        for scale in scales or [[1] * len(size)]
    ]
    return {"data": torch.randn(shape, generator=generator), "target": target if scales else target[0]}


def run(trainer: PlainTrainer, before_epoch: Callable[[PlainTrainer], None] = lambda trainer: None) -> PlainTrainer:
    """Train with a checkpoint after every epoch; `before_epoch` is called before each."""
    trainer.save_every = 1
    start = trainer.on_epoch_start
    trainer.on_epoch_start = lambda: (before_epoch(trainer), start())
    trainer.run_training()
    return trainer


def keep_latest(trainer: PlainTrainer) -> None:
    """To be called before each epoch: keeps the checkpoint of the epoch before as after_EPOCHS.pth."""
    latest = Path(trainer.output_folder, "checkpoint_latest.pth")
    if latest.exists():
        latest.rename(latest.with_name(f"after_{trainer.current_epoch}.pth"))


def state(trainer: PlainTrainer) -> dict[str, Tensor]:
    """A copy of all weights, buffers included, without a training branch."""
    return {name: value.detach().clone() for name, value in trainer.bare_network.state_dict().items()}


def weights(trainer: PlainTrainer) -> dict[str, Tensor]:
    """A copy of all parameters, those of a training branch included."""
    return {name: value.detach().clone() for name, value in trainer.network.named_parameters()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
