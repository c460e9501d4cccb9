"""nnU-Net's own networks on our base trainer: residual encoders from their plans, and Primus."""

import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from tiny_trainers import build, random_batch, tiny

from nnunet_brats_ext.storage.errors import UserError


def test_the_plans_of_a_residual_encoder_need_no_trainer_of_their_own(world):
    trainer = build(world, "BraTSBaselineTrainer", patch_size=[16] * 3)
    architecture = trainer.configuration_manager.configuration["architecture"]
    architecture["network_class_name"] = f"{ResidualEncoderUNet.__module__}.ResidualEncoderUNet"
    arguments = architecture["arch_kwargs"]
    arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
    trainer.initialize()
    assert isinstance(trainer.network, ResidualEncoderUNet)
    finest, *coarser = trainer.network(random_batch(trainer)["data"])
    assert finest.shape[1:] == (3, 16, 16, 16), "three regions"
    assert coarser


def test_primus_warms_up_for_50_epochs_and_ends_at_zero(world):
    with tiny("BraTSPrimusSTrainer"):
        trainer = build(world, "BraTSPrimusSTrainer", patch_size=[16] * 3)
        trainer.initialize()
    rates = [trainer.learning_rate(epoch) for epoch in range(trainer.num_epochs + 1)]
    assert rates[0] == pytest.approx(3e-4 / 50)
    assert rates[49] == pytest.approx(3e-4) == rates[50]
    assert rates[525] == pytest.approx(3e-4 * 0.5**0.9)
    assert rates[1000] == 0
    assert rates == sorted(rates[:50]) + sorted(rates[50:], reverse=True)


def test_primus_clips_gradients_at_a_norm_of_one(world):
    with tiny("BraTSPrimusSTrainer"):
        trainer = build(world, "BraTSPrimusSTrainer", patch_size=[16] * 3)
        trainer.initialize()
    for parameter in trainer.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    trainer.optimizer.step()
    norm = torch.stack([p.grad.square().sum() for p in trainer.network.parameters()]).sum().sqrt()
    assert norm.item() == pytest.approx(1, abs=1e-4)


def test_a_patch_that_primus_cannot_cut_into_cubes_is_an_error_that_names_its_configuration(world):
    with pytest.raises(UserError, match=r"cubes of 8 voxels: a patch of \(16, 20, 16\) .* configuration primus_s of"):
        build(world, "BraTSPrimusSTrainer", patch_size=[16, 20, 16]).initialize()
