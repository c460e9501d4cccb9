"""Training in bfloat16 on a CPU, where the environment asks for it."""

import numpy as np
import pytest
import torch
from tiny_trainers import build, random_batch

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.training import cpu_precision
from nnunet_brats_ext.training.environment import PRECISION

TRAINERS = pytest.mark.parametrize("name", ["BraTSVAETrainer", "BraTSBaselineTrainer"])


def first_step(world, name):
    """The loss of a first step, the types that convolutions gave in it, and the weights after it."""
    torch.manual_seed(0)
    trainer = build(world, name, patch_size=[16] * 3)
    trainer.initialize()
    kinds = set()
    for module in trainer.network.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_hook(lambda layer, inputs, output: kinds.add(output.dtype))
    torch.manual_seed(0)
    batch = random_batch(trainer)
    losses = trainer.train_step(batch)
    trainer.on_validation_epoch_start()
    trainer.validation_step(batch)
    return losses, kinds, list(trainer.network.parameters())


@TRAINERS
def test_networks_compute_in_bf16_and_losses_and_weights_stay_in_fp32(name, world, monkeypatch):
    expected, kinds, _ = first_step(world, name)
    assert kinds == {torch.float32}
    monkeypatch.setenv(PRECISION, "bf16")
    monkeypatch.setattr(cpu_precision, "computes_bf16", lambda: True)  # torch emulates it elsewhere
    losses, kinds, parameters = first_step(world, name)
    assert kinds == {torch.bfloat16}
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert losses.keys() == expected.keys()
    for term, loss in losses.items():
        assert loss.dtype == "float32"
        assert float(loss) == pytest.approx(float(expected[term]), rel=0.05, abs=1e-3), term


def test_it_is_refused_where_gradients_would_be_wrong(world, monkeypatch):
    """The 2 slices of OM-Net's patches at their coarsest: torch takes a part of the gradient from freed memory."""
    monkeypatch.setenv(PRECISION, "bf16")
    monkeypatch.setattr(cpu_precision, "computes_bf16", lambda: True)
    poolings = build(world, "BraTSOMNetTrainer").configuration_manager.pool_op_kernel_sizes
    coarsest = 2, 4, 4
    trainer = build(world, "BraTSOMNetTrainer", patch_size=(np.prod(poolings, axis=0) * coarsest).tolist())
    trainer.initialize()
    with pytest.raises(UserError, match=rf"{PRECISION}=bf16: this network has volumes of 2 slices, \(2, "):
        trainer.network(random_batch(trainer)["data"])
    trainer.network.eval()
    with torch.no_grad():
        trainer.network(random_batch(trainer)["data"])


def test_it_is_refused_where_it_would_be_emulated(world, monkeypatch):
    monkeypatch.setenv(PRECISION, "bf16")
    monkeypatch.setattr(cpu_precision, "computes_bf16", lambda: False)
    with pytest.raises(UserError, match=f"{PRECISION}=bf16: this cpu does not compute in bfloat16; unset it"):
        build(world, "BraTSBaselineTrainer")
    monkeypatch.setenv(PRECISION, "fp16")
    with pytest.raises(UserError, match=f"{PRECISION}=fp16: expected bf16"):
        build(world, "BraTSBaselineTrainer")
