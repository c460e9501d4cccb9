"""Networks: parameter counts of the papers, shapes, and what holds for every network of the house."""

import pytest
import torch
from torch import nn

from nnunet_brats_ext.architectures.residual_unet import (
    AttentionGate,
    AttentionGatedResidualUNet,
    PreActivationResidualUNet,
)
from nnunet_brats_ext.architectures.vae import VAEBranch
from nnunet_brats_ext.training.branches import NetworkWithBranch, TrainingOutput, VAERegularisation

ANISOTROPIC = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2))
SMALL = dict(features_per_stage=(8, 16, 32, 64))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def regularised(size: tuple[int, ...], gradient: str = "full", **changes) -> NetworkWithBranch:
    network = PreActivationResidualUNet(4, 3, **(SMALL | changes))
    vae = VAEBranch(
        4,
        network.endpoint_size(size),
        strides=network.strides,
        features_per_stage=network.features_per_stage,
        conv_op=changes.get("conv_op", nn.Conv3d),
        gradient=gradient,
    )
    return NetworkWithBranch(network, VAERegularisation(vae, image_channels=4))


def test_stage_one_of_lyu_has_its_parameters():
    network = PreActivationResidualUNet(4, 3)
    encoder = nn.ModuleList([network.stem, network.encoder_stages, network.downsamplings])
    assert parameters(encoder) == 17_596_224
    assert parameters(network) == 17_596_224 + 1_205_891 == 18_802_115


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ((128, 192, 160), 21_134_004),
        ((128, 128, 128), 11_901_620),
        ((64, 64, 64), 2_669_236),
        ((32, 32, 32), 1_515_188),
    ],
)
def test_the_vae_branch_of_lyu_has_its_parameters(patch, expected):
    with torch.device("meta"):
        assert parameters(VAEBranch(4, [length // 8 for length in patch])) == expected


def test_encoder_and_branch_have_the_shapes_of_the_paper():
    network, x = PreActivationResidualUNet(4, 3), torch.randn(1, 4, 32, 48, 32)
    features = network.encode(x)
    assert [f.shape[1] for f in features] == [32, 64, 128, 256]
    assert features[-1].shape[2:] == (4, 6, 4) == network.endpoint_size(x.shape[2:])
    reconstruction, mean, log_variance = VAEBranch(4, (4, 6, 4))(features[-1])
    assert reconstruction.shape == x.shape
    assert mean.shape == log_variance.shape == (1, 128)


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ((16, 24, 32), {}),
        ((8, 16, 24), {}),  # the endpoint is 1 x 2 x 3: odd axes are not halved again
        ((12, 24, 40), dict(strides=ANISOTROPIC)),
        ((16, 16, 16), dict(strides=[(1, 1, 1), (2, 2, 2)])),  # fewer stages than the paper's
        ((16, 32, 32), dict(strides=[*ANISOTROPIC, (2, 2, 2), (1, 2, 2)])),  # more: the deeper ones are left out
        ((24, 40), dict(strides=[(1, 1), (2, 2), (2, 2), (2, 2)], conv_op=nn.Conv2d)),
    ],
    ids=str,
)
def test_any_size_that_the_strides_allow_trains_and_predicts(size, changes):
    network, x = regularised(size, **changes), torch.randn(2, 4, *size)
    output = network(x)
    assert isinstance(output, TrainingOutput)
    assert output.logits.shape == (2, 3, *size)
    (output.logits.mean() + sum(output.auxiliary_losses.values())).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    logits = network.eval()(x)
    assert logits.shape == (2, 3, *size)
    larger = torch.randn(1, 4, *(2 * length for length in size))
    assert network(larger).shape == (1, 3, *larger.shape[2:]), "the branch freezes the patch, the network does not"


def test_a_size_that_the_strides_do_not_divide_is_named():
    with pytest.raises(ValueError, match=r"\(36, 32, 32\).*\(8, 8, 8\)"):
        PreActivationResidualUNet(4, 3, **SMALL).endpoint_size((36, 32, 32))


@pytest.mark.parametrize(("gradient", "reaches"), [("full", True), ("none", False)])
def test_the_reconstruction_teaches_the_encoder_only_with_the_full_gradient(gradient, reaches):
    network = regularised((16, 16, 16), gradient)
    network(torch.randn(1, 4, 16, 16, 16)).auxiliary_losses["reconstruction"].backward()
    gradients = [p.grad for p in network.network.encoder_stages.parameters()]
    assert all((g is not None and bool(g.abs().sum() > 0)) == reaches for g in gradients)
    assert all(p.grad is not None for p in network.branch.vae.decoder.parameters())


def test_the_stored_weights_are_the_networks_alone():
    trained = regularised((16, 16, 16))
    plain = PreActivationResidualUNet(4, 3, **SMALL)
    plain.load_state_dict(trained.state_dict(), strict=True)
    x = torch.randn(1, 4, 16, 16, 16)
    assert torch.equal(plain.eval()(x), trained.eval()(x))
    fresh = regularised((32, 16, 16))  # another patch, hence another branch
    fresh.load_state_dict(trained.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(x), trained(x))


def test_the_branch_rebuilds_images_not_the_labels_of_a_previous_stage():
    network = PreActivationResidualUNet(7, 3, **SMALL)
    vae = VAEBranch(4, (2, 2, 2), features_per_stage=SMALL["features_per_stage"])
    output = NetworkWithBranch(network, VAERegularisation(vae, image_channels=4))(torch.randn(1, 7, 16, 16, 16))
    assert set(output.auxiliary_losses) == {"reconstruction", "kl"}


def test_features_and_weights_do_not_explode_with_a_constant_image():
    network = regularised((16, 16, 16))
    losses = network(torch.zeros(1, 4, 16, 16, 16)).auxiliary_losses
    assert all(torch.isfinite(value) for value in losses.values())


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2)])
def test_an_attention_gate_only_ever_weakens_the_skip(stride):
    gate = AttentionGate(nn.Conv3d, 8, 16, stride)
    size = (4, 6, 8)
    skip, below = torch.randn(2, 8, *size), torch.randn(2, 16, *(n // s for n, s in zip(size, stride, strict=True)))
    for mode in (True, False):
        passed = gate.train(mode)(skip, below)
        assert passed.shape == skip.shape
        assert (passed.abs() <= skip.abs()).all()
        coefficients = gate.coefficients(skip, below)
        assert coefficients.shape == (2, 1, *size)
        assert 0 < coefficients.min() < coefficients.max() < 1


def test_gates_change_what_the_decoder_sees_and_learn():
    network = AttentionGatedResidualUNet(7, 3, **SMALL)
    network(torch.randn(2, 7, 16, 16, 16)).mean().backward()
    # A bias before batch normalisation has no effect, so its gradient is nothing but rounding.
    weights = {name: p for name, p in network.gates.named_parameters() if name.endswith("weight")}
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in weights.values())
    assert network.eval()(torch.randn(1, 7, 24, 16, 8)).shape == (1, 3, 24, 16, 8), "any size, not only the patch"
