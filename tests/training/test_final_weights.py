"""Trainings that end with other weights than their last: what they end with, and that nothing is lost if they go on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_trainers import build, run, same, state
from torch import nn

from nnunet_brats_ext.trainers import BraTSBaselineTrainer
from nnunet_brats_ext.training.averaging import Cycles, StochasticWeightAveraging, Timeline
from nnunet_brats_ext.training.environment import EPOCHS, ITERATIONS
from nnunet_brats_ext.training.final_weights import FinalWeights, LowestValidationLoss
from nnunet_brats_ext.training.optimizers import EpochSchedule

LOSSES = [0.9, 0.5, 0.8, 0.7]  # of validation, prescribed


class Small(BraTSBaselineTrainer):
    """A network of two layers at a constant learning rate, whatever the number of epochs: https://example.org."""

    hyperparameters = dict(enable_deep_supervision=False)

    @classmethod
    def build_network(cls, planned, input_channels, num_classes, deep_supervision):
        return nn.Sequential(nn.Conv3d(input_channels, 4, 3, padding=1), nn.Conv3d(4, num_classes, 1))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.network.parameters(), 1e-2)
        return optimizer, EpochSchedule(optimizer, lambda epoch: 1e-2)

    def on_validation_epoch_end(self, val_outputs):
        super().on_validation_epoch_end([output | {"loss": LOSSES[self.current_epoch]} for output in val_outputs])


class EveryEpoch(Cycles):
    """One cycle from the second epoch on, averaged over all epochs, whatever their number."""

    def timeline(self, num_epochs: int) -> Timeline:
        return Timeline((range(1, 100),), frozenset(range(1, 100)))


class Lowest(LowestValidationLoss, Small):
    """https://example.org"""


class Averaged(StochasticWeightAveraging, Small):
    """https://example.org"""

    averaging = EveryEpoch(initial_lr=1e-2)


class AveragedInProportion(Averaged):
    """Averages over the second half of the epochs: https://example.org."""

    averaging = Cycles(base_epochs=1, cycles=1, cycle_epochs=1, snapshot_every=1, initial_lr=1e-2)


EVERY = pytest.mark.parametrize("trainer_class", [Lowest, Averaged])


@pytest.fixture
def begin(world, monkeypatch):
    """Builds a trainer for a number of epochs; `after`, another one that has finished and whose checkpoint it loads."""
    monkeypatch.setenv(ITERATIONS, "1")

    def begin(trainer_class: type, epochs: int, after: FinalWeights | None = None) -> FinalWeights:
        monkeypatch.setenv(EPOCHS, str(epochs))
        np.random.seed(0)
        torch.manual_seed(0)
        trainer = build(world, trainer_class, patch_size=[16, 16, 16])
        if after is not None:
            trainer.load_checkpoint(final(after))
        return trainer

    return begin


def final(trainer: FinalWeights) -> str:
    return str(Path(trainer.output_folder, "checkpoint_final.pth"))


def test_every_kind_is_tested_here():
    assert set(FinalWeights.__subclasses__()) == {LowestValidationLoss, StochasticWeightAveraging}


@EVERY
def test_a_finished_training_made_longer_ends_as_if_it_had_been_that_long(trainer_class, begin):
    whole = state(run(begin(trainer_class, 4)))
    longer = run(begin(trainer_class, 4, after=run(begin(trainer_class, 2))))
    assert same(state(longer), whole)
    assert same(torch.load(final(longer), weights_only=False)["network_weights"], whole)


@EVERY
def test_so_does_one_that_goes_on_in_the_same_process(trainer_class, begin):
    whole = state(run(begin(trainer_class, 4)))
    trainer = run(begin(trainer_class, 2))
    trainer.num_epochs = 4
    trainer.random_state_to_restore = torch.load(final(trainer), weights_only=False)["nnunet_brats_ext"]["random_state"]
    assert same(state(run(trainer)), whole)


@EVERY
def test_a_finished_training_that_is_not_made_longer_keeps_its_weights(trainer_class, begin):
    trainer = run(begin(trainer_class, 2))
    for _ in range(2):  # each writes the final checkpoint that the next one reads
        assert same(state(run(begin(trainer_class, 2, after=trainer))), state(trainer))


def test_the_best_weights_of_a_finished_training_stay_if_no_later_epoch_is_better(begin):
    trainer = run(begin(Lowest, 2))
    longer = run(begin(Lowest, 4, after=trainer))
    assert same(state(longer), state(trainer))
    assert longer.lowest_loss == LOSSES[1]


def as_version_0_1(trainer: FinalWeights) -> None:
    """Take out of the final checkpoint what that version did not store."""
    content = torch.load(final(trainer), weights_only=False)
    for name in ("weights_of_last_epoch", "averaged"):
        content["nnunet_brats_ext"]["extra"].pop(name, None)
    torch.save(content, final(trainer))


def test_the_best_weights_in_a_final_checkpoint_of_version_0_1_stay_too(begin):
    trainer = run(begin(Lowest, 2))
    as_version_0_1(trainer)
    assert same(state(run(begin(Lowest, 4, after=trainer))), state(trainer))


def test_the_mean_in_a_final_checkpoint_of_version_0_1_counts_as_all_its_sets(begin):
    trainer = run(begin(AveragedInProportion, 2))
    assert trainer.average.n_averaged == 2
    as_version_0_1(trainer)
    longer, last = begin(AveragedInProportion, 3, after=trainer), []
    conclude = longer.conclude
    longer.conclude = lambda: (last.append(state(longer)), conclude())
    run(longer)
    assert longer.average.n_averaged == 3
    for name, mean in state(trainer).items():
        torch.testing.assert_close(state(longer)[name], (2 * mean + last[0][name]) / 3)
