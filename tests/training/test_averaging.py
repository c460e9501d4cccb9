"""Stochastic weight averaging: its timeline, the base schedule it leaves alone, batch normalisation."""

from pathlib import Path

import pytest
import torch
from tiny_trainers import build, make_tiny
from torch import nn

from nnunet_brats_ext import trainers
from nnunet_brats_ext.trainers import BraTSBaselineTrainer
from nnunet_brats_ext.training.averaging import Cycles, StochasticWeightAveraging
from nnunet_brats_ext.training.environment import ITERATIONS


def test_the_timeline_of_the_paper_has_five_cycles_and_51_snapshots():
    cycles, snapshots = Cycles().timeline(350)
    assert cycles == tuple(range(start, start + 30) for start in (200, 230, 260, 290, 320))
    assert len(snapshots) == 51
    assert min(snapshots) == 200
    assert max(snapshots) == 350
    assert {203, 206, 230, 233, 347} <= snapshots


@pytest.mark.parametrize("num_epochs", [1, 2, 3, 7, 14, 35, 100, 700])
def test_a_shorter_run_keeps_the_proportions(num_epochs):
    cycles, snapshots = Cycles().timeline(num_epochs)
    assert [epoch for cycle in cycles for epoch in cycle] == list(range(round(num_epochs * 4 / 7), num_epochs))
    assert num_epochs in snapshots
    if num_epochs >= 14:
        assert len(cycles) == 5


@pytest.mark.parametrize(
    "name",
    ["BraTSBaselineTrainer", "BraTSDeepSupervisionBTrainer", "BraTSMC2Trainer", "BraTS2DTrainer"],
)
def test_any_trainer_can_be_averaged_after_what_would_be_its_whole_training(name, world, monkeypatch):
    monkeypatch.setenv(ITERATIONS, "1")
    plain = make_tiny(getattr(trainers, name), monkeypatch)
    configuration = "2d" if "2D" in name else None

    class Base(plain):
        hyperparameters = dict(num_epochs=3)

    class Averaged(StochasticWeightAveraging, plain):
        hyperparameters = dict(num_epochs=4)
        averaging = Cycles(base_epochs=3, cycles=1, cycle_epochs=1, snapshot_every=1)

    patch = {"patch_size": [16, 16, 16]} if name == "BraTSBaselineTrainer" else {}
    base, averaged = (build(world, trainer_class, configuration, **patch) for trainer_class in (Base, Averaged))
    rates = []
    for trainer in (base, averaged):
        trainer.initialize()
        rates.append([])
        for epoch in range(3):
            trainer.lr_scheduler.step(epoch)
            rates[-1].append(trainer.optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1], "its own schedule rules the base"
    averaged.run_training()
    assert averaged.average.n_averaged == 2
    build(world, Averaged, configuration, **patch).load_checkpoint(
        str(Path(averaged.output_folder, "checkpoint_final.pth"))
    )


class Normalised(nn.Sequential):
    def __init__(self, input_channels: int, num_classes: int):
        super().__init__(nn.Conv3d(input_channels, 4, 1), nn.BatchNorm3d(4), nn.Conv3d(4, num_classes, 1))


class AveragedBaseline(StochasticWeightAveraging, BraTSBaselineTrainer):
    """Any trainer can be averaged; this one under nnU-Net's own optimiser, with batch normalisation."""

    hyperparameters = dict(num_epochs=3, enable_deep_supervision=False)
    averaging = Cycles(base_epochs=1, cycles=1, cycle_epochs=2, snapshot_every=1)

    @classmethod
    def build_network(cls, planned, input_channels, num_classes, deep_supervision):
        return Normalised(input_channels, num_classes)


def test_batch_normalisation_is_measured_anew_with_the_mean(world, monkeypatch):
    monkeypatch.setenv(ITERATIONS, "2")
    trainer = build(world, AveragedBaseline)
    trainer.on_train_start()
    assert trainer.lr_scheduler.max_steps == 1, "the base schedule goes on into the cycles"
    for _ in range(3):
        trainer.average.update_parameters(trainer.bare_network)
    batches = [next(trainer.dataloader_train) for _ in range(2)]
    trainer.dataloader_train = iter(batches)
    norm = trainer.bare_network[1]
    norm.running_mean += 100
    trainer.conclude()
    with torch.no_grad():
        means = [trainer.bare_network[0](batch["data"]).mean((0, 2, 3, 4)) for batch in batches]
    assert torch.allclose(norm.running_mean, torch.stack(means).mean(0), atol=1e-5)
