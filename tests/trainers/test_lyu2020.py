"""Lyu & Shu 2020: both stages train as the paper states; where they draw, and what a checkpoint holds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from tiny_trainers import build, make_tiny, random_batch

from nnunet_brats_ext.papers import find_trainer
from nnunet_brats_ext.trainers import BraTSAttentionVAETrainer, BraTSBaselineTrainer, BraTSVAETrainer
from nnunet_brats_ext.trainers.lyu2020.transforms import ShiftIntensity
from nnunet_brats_ext.training.branches import NetworkWithBranch
from nnunet_brats_ext.training.environment import EPOCHS, SNAPSHOTS


def test_stage_1_stores_no_vae(world, monkeypatch):
    monkeypatch.setenv(EPOCHS, "1")
    four_stages = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]  # as nnU-Net plans BraTS, and deeper
    trainer = build(world, BraTSVAETrainer, patch_size=[16, 16, 16], strides=[*four_stages, [2, 2, 2]])
    trainer.initialize()
    trainer.save_checkpoint(str(Path(trainer.output_folder, "checkpoint_best.pth")))
    stored = torch.load(Path(trainer.output_folder, "checkpoint_best.pth"), weights_only=False)
    assert sum(value.numel() for value in stored["network_weights"].values()) == 18_802_115
    assert isinstance(trainer.network, NetworkWithBranch)
    optimised = sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"])
    assert optimised > 18_802_115, "the branch is not trained"


def test_further_epochs_are_kept_beside_those_of_the_trainer(world, monkeypatch):
    make_tiny(BraTSAttentionVAETrainer, monkeypatch)
    trainer = build(world, BraTSAttentionVAETrainer)
    own = trainer.snapshot_epochs()
    assert own == find_trainer("BraTSAttentionVAETrainer").snapshot_epochs
    monkeypatch.setenv(SNAPSHOTS, "20 3 57")
    assert trainer.snapshot_epochs() == (3, 20, *own)


def test_stage_1_trains_as_the_paper_states(world, monkeypatch):
    make_tiny(BraTSVAETrainer, monkeypatch)
    trainer = build(world, BraTSVAETrainer)
    trainer.initialize()
    assert isinstance(trainer.optimizer, torch.optim.Adam)
    assert (trainer.initial_lr, trainer.weight_decay, trainer.num_epochs) == (1e-4, 1e-5, 300)
    for epoch in (0, 150, 299):
        trainer.lr_scheduler.step(epoch)
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4 * (1 - epoch / 300) ** 0.9)
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 1e-5


@pytest.mark.parametrize(
    ("configuration", "changes"),
    [
        ("2d", {}),
        ("3d_fullres", dict(patch_size=[16, 24, 32], batch_size=1)),
        (
            "3d_fullres",
            dict(patch_size=[8, 32, 32], batch_size=1, strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]),
        ),
    ],
    ids=["2d", "another patch", "anisotropic strides"],
)
def test_stage_1_works_on_other_configurations(configuration, changes, world, monkeypatch):
    make_tiny(BraTSVAETrainer, monkeypatch)
    trainer = build(world, BraTSVAETrainer, configuration, **changes)
    trainer.initialize()
    trainer.network.train()
    assert np.isfinite(trainer.train_step(random_batch(trainer))["loss"])


@pytest.mark.parametrize(
    ("trainer_class", "axes"), [(BraTSVAETrainer, None), (BraTSBaselineTrainer, (0, 1, 2))], ids=["lyu", "nnU-Net"]
)
def test_predictions_are_mirrored_where_the_paper_does(trainer_class, axes, world):
    trainer = build(world, trainer_class)
    *_, training_axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert trainer.inference_allowed_mirroring_axes == axes
    assert training_axes == (0, 1, 2)


def test_the_loader_gives_augmented_images_that_are_zero_outside_the_brain(world, monkeypatch):
    make_tiny(BraTSVAETrainer, monkeypatch)
    trainer = build(world, BraTSVAETrainer)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    assert isinstance(loader, SingleThreadedAugmenter)
    batch = next(loader)
    size = trainer.configuration_manager.patch_size
    assert batch["data"].shape[1:] == (4, *size)
    assert batch["target"].shape[1:] == (3, *size)


def test_the_shift_moves_the_brain_and_nothing_else():
    brain = torch.zeros(1, 8, 8, 8)
    brain[..., :4] = 1
    image = torch.randn(4, 8, 8, 8) * brain
    shifted = ShiftIntensity(0.1)(image=image.clone(), segmentation=brain - 1)["image"]
    moved = (shifted - image) * brain
    assert torch.equal(shifted * (1 - brain), torch.zeros_like(image))
    for channel in range(4):
        shifts = moved[channel][brain[0] > 0]
        assert torch.allclose(shifts, shifts[0].expand_as(shifts), atol=1e-6)
        assert 0 < shifts[0].abs() <= 0.1 * image[channel][brain[0] > 0].std() * 1.01


def test_the_shift_does_nothing_to_a_patch_outside_the_head():
    image = torch.zeros(4, 8, 8, 8)
    assert torch.equal(ShiftIntensity()(image=image.clone(), segmentation=-torch.ones(1, 8, 8, 8))["image"], image)
