"""The base class: what a trainer declares and overrides, and the features that every trainer has."""

import multiprocessing
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from tiny_trainers import CPU, build, random_batch
from torch import nn

from nnunet_brats_ext.losses.dice import SoftDiceLoss
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.trainers import BraTSBaselineTrainer, BraTSStudentTrainer, BraTSVAETrainer
from nnunet_brats_ext.training import preconditions
from nnunet_brats_ext.training.base import BraTSTrainer
from nnunet_brats_ext.training.environment import EPOCHS, ITERATIONS, SEED
from nnunet_brats_ext.training.reduced_folds import ReducedFolds
from nnunet_brats_ext.training.seams import PlainTrainer, fastest_memory_format


def test_a_misspelt_hyperparameter_is_an_error(world):
    class Misspelt(BraTSTrainer):
        hyperparameters = dict(inital_lr=1.0)

    with pytest.raises(AttributeError, match=r"Misspelt.*inital_lr"):
        build(world, Misspelt)


def test_a_subclass_adds_to_the_hyperparameters_of_its_parent(world):
    class Faster(BraTSVAETrainer):
        hyperparameters = dict(initial_lr=3e-4)

    trainer = build(world, Faster)
    assert (trainer.initial_lr, trainer.num_epochs) == (3e-4, 300)


def test_a_data_set_without_regions_is_an_error_with_the_command_that_makes_them(world):
    dataset_json = world.dataset_json | {"labels": {"background": 0, "tumour": 1}}
    plans = world.plans | {"continue_training": False}
    with pytest.raises(UserError, match="nnunet_brats convert"):
        BraTSVAETrainer(plans, "3d_fullres", 0, dataset_json, CPU)


def test_network_options_of_parents_and_mixins_are_merged():
    class Parent(BraTSTrainer):
        network_options = dict(features_per_stage=(4, 8), attention=True)

    class Mixin:
        network_options = dict(attention=False)

    class Child(Mixin, Parent):
        network_options = dict(norm="group")

    assert Child.all_network_options() == dict(features_per_stage=(4, 8), attention=False, norm="group")


def test_a_loss_at_one_scale_goes_under_nnunets_weights_of_the_scales(world):
    class Dice(BraTSTrainer):
        def region_loss(self) -> nn.Module:
            return SoftDiceLoss()

    trainer = build(world, Dice)
    trainer.initialize()
    assert isinstance(trainer.loss, DeepSupervisionWrapper)
    assert isinstance(trainer.loss.loss, SoftDiceLoss)
    trainer.network.train()
    assert np.isfinite(trainer.train_step(random_batch(trainer))["loss"])


def test_an_epoch_draws_every_training_case_once(world):
    trainer = build(world, BraTSVAETrainer)
    training, validation = trainer.get_tr_and_val_datasets()
    batch_size = trainer.configuration_manager.batch_size
    assert trainer.num_iterations_per_epoch == -(-len(training.identifiers) // batch_size)
    assert trainer.num_val_iterations_per_epoch == -(-len(validation.identifiers) // batch_size)
    baseline = build(world, BraTSBaselineTrainer)
    baseline.get_tr_and_val_datasets()
    assert baseline.num_iterations_per_epoch == 250


def test_every_process_of_the_loader_draws_its_own_torch_numbers(world):
    training, _ = build(world, BraTSBaselineTrainer).get_tr_and_val_datasets()
    queue = multiprocessing.get_context("fork").Queue()

    def work(number: int) -> None:
        np.random.seed(number)  # as batchgenerators does
        training.load_case(training.identifiers[0])
        queue.put(torch.randint(2**31, (1,)).item())

    before = torch.get_rng_state()
    for number in (1, 2):
        process = multiprocessing.get_context("fork").Process(target=work, args=(number,))
        process.start()
    assert queue.get(timeout=60) != queue.get(timeout=60)
    training.load_case(training.identifiers[0])
    assert torch.equal(torch.get_rng_state(), before), "without processes of its own, nothing is drawn"


def test_a_trial_run_is_short_and_says_so(world, monkeypatch):
    monkeypatch.setenv(EPOCHS, "3")
    monkeypatch.setenv(ITERATIONS, "7")
    trainer = build(world, BraTSVAETrainer)
    trainer.get_tr_and_val_datasets()
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (3, 7, 2)
    log = Path(trainer.log_file).read_text()
    assert "SHORT RUN because of nnUNet_brats_iterations=7" in log
    assert "nnUNet_brats_epochs=3: 3 epochs instead of " in log


def test_a_run_of_other_epochs_as_a_recipe_asks_is_no_trial(world, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv(EPOCHS, "150")
    trainer = build(world, BraTSVAETrainer)
    assert trainer.num_epochs == 150
    assert "WARNING" not in Path(trainer.log_file).read_text()


@pytest.mark.parametrize("value", ["0", "-1", "ten", "1.5"])
def test_an_unusable_length_is_quoted(value, world, monkeypatch):
    monkeypatch.setenv(EPOCHS, value)
    with pytest.raises(UserError, match=f"{EPOCHS}={value}"):
        build(world, BraTSVAETrainer)


@pytest.mark.parametrize(
    ("named", "cores", "available", "expected"),
    [("3", 8, 16, 3), ("3,2", 8, 16, 3), ("", 8, 16, 8), ("", 8, 4, 4), ("", None, 4, 4)],
    ids=[
        "OMP_NUM_THREADS",
        "nested",
        "two threads per core",
        "a part of the machine",
        "unknown cores",
    ],
)
def test_on_a_cpu_training_takes_the_threads_that_the_environment_names_or_one_per_core(
    named, cores, available, expected, world, monkeypatch
):
    threads = torch.get_num_threads()
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: cores)
    monkeypatch.setattr(preconditions, "available_cores", lambda: available)
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", named)
        build(world, BraTSVAETrainer)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(threads)


class Unaware(PlainTrainer):
    """A trainer without any feature, https://example.org."""


class WithReducedFolds(ReducedFolds, Unaware):
    """The same that reads reduced folds, https://example.org."""


@pytest.mark.parametrize(
    ("trainer", "unread"),
    [
        (Unaware, ["splits_file", "brats_soft_targets"]),
        (WithReducedFolds, ["brats_soft_targets"]),
        (BraTSBaselineTrainer, ["brats_soft_targets"]),
        (BraTSStudentTrainer, []),
    ],
)
def test_a_trainer_says_which_keys_of_ours_it_does_not_act_on(trainer, unread, world):
    plans = world.plans | {"continue_training": False}
    plans["configurations"]["3d_fullres"]["splits_file"] = "splits_3d_fullres_filtered.json"
    dataset_json = world.dataset_json | {"brats_soft_targets": {"cases": 1}, "brats_release": "BraTS2020"}
    built = trainer(plans, "3d_fullres", 0, dataset_json, CPU)
    said = [line for line in Path(built.log_file).read_text().splitlines() if "does not act on" in line]
    assert len(said) == len(unread)
    mixins = {"splits_file": "ReducedFolds", "brats_soft_targets": "SoftTargets"}
    for line, key in zip(said, unread, strict=True):
        assert f"{key!r}" in line
        assert f"class Mine({mixins[key]}, {trainer.__name__})" in line


def test_a_seed_makes_two_trainings_the_same(world, monkeypatch):
    monkeypatch.setenv(SEED, "3")
    drawn = [(build(world, BraTSBaselineTrainer), torch.rand(()).item(), np.random.rand()) for _ in range(2)]
    assert drawn[0][1:] == drawn[1][1:]


def test_group_norm_is_as_exact_in_the_memory_format_of_training_as_in_double_precision():
    torch.manual_seed(0)
    network = nn.GroupNorm(2, 4)
    values = torch.randn(1, 4, 64, 64, 64) * 0.5 + 1
    values[..., :32] = 0.3  # a background, as around a brain
    memory_format = fastest_memory_format(torch.device("cpu"), 3, network)
    with torch.no_grad():
        exact = nn.GroupNorm(2, 4).double()(values.double())
        assert (network(values.contiguous(memory_format=memory_format)) - exact).abs().max() < 1e-5
