"""Group normalisation in every memory format, and what training keeps of a normalised convolution."""

import pytest
import torch
from torch import nn

from nnunet_brats_ext.architectures import blocks
from nnunet_brats_ext.architectures.blocks import PreActivationBlock
from nnunet_brats_ext.architectures.group_norm import GroupNorm

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
SIZES = pytest.mark.parametrize("size", [(1, 32, 48, 96, 96), (2, 8, 5, 6, 7), (3, 16, 64, 48)], ids=str)


def half_air(size):
    """Values that are far from centred, half of them equal, as a brain within its box."""
    torch.manual_seed(0)
    x = torch.randn(size) + 0.5
    x[:, :, : size[2] // 2] = 0
    return x


def results(norm: nn.GroupNorm, x: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = norm(x)
    y.backward(gradient)
    return [y.detach(), x.grad, norm.weight.grad, norm.bias.grad]


@SIZES
def test_channels_last_gives_what_double_precision_gives(size):
    x = half_air(size)
    ours, exact = GroupNorm(8, size[1]), nn.GroupNorm(8, size[1]).double()
    gradient = torch.randn(size)
    expected = results(exact, x.double(), gradient.double())
    found = results(ours, x.to(memory_format=LAST[x.ndim]), gradient.to(memory_format=LAST[x.ndim]))
    assert found[0].is_contiguous(memory_format=LAST[x.ndim])
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one.double(), other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
    assert float((found[0].double() - expected[0]).abs().max()) < 5e-6


@SIZES
def test_it_is_torchs_own_elsewhere_and_has_its_weights(size):
    x = half_air(size)
    ours, theirs = GroupNorm(8, size[1]), nn.GroupNorm(8, size[1])
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(x), theirs(x))


def test_it_computes_in_bfloat16_and_in_double_precision():
    x = half_air((1, 8, 8, 8, 8)).to(memory_format=torch.channels_last_3d)
    norm = GroupNorm(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = norm(x.bfloat16().requires_grad_())
        coarse.sum().backward()
    assert coarse.dtype == torch.bfloat16
    assert torch.allclose(coarse.float(), norm(x), atol=0.05)
    assert torch.autograd.gradcheck(norm.double(), x[..., :2].double().requires_grad_())


def kept_and_gradients(block: PreActivationBlock, x: torch.Tensor) -> tuple[int, list[torch.Tensor]]:
    """How many tensors of the input's size training keeps, and the gradients."""
    sizes = []
    block.zero_grad()
    x.grad = None
    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: sizes.append(saved.shape) or saved, lambda saved: saved
    ):
        output = block(x)
    output.square().sum().backward()
    return sizes.count(x.shape), [x.grad.clone(), *(weight.grad.clone() for weight in block.parameters())]


def test_training_keeps_half_of_a_block_and_its_gradients_are_the_same(monkeypatch):
    x = half_air((1, 8, 8, 8, 8)).requires_grad_()
    block = PreActivationBlock(nn.Conv3d, 8)
    fewer, gradients = kept_and_gradients(block, x)
    monkeypatch.setattr(blocks, "checkpoint", lambda part, x, **options: part(x))
    more, expected = kept_and_gradients(block, x)
    assert all(torch.equal(*pair) for pair in zip(gradients, expected, strict=True))
    assert fewer < more / 2
