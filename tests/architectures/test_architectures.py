"""The contract that every network keeps; the layout of checkpoints; the networks and the VAE branch of Lyu & Shu."""

import doctest
import hashlib
import io
import json
import pickle
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nnunet_brats_ext import architectures
from nnunet_brats_ext.architectures import blocks, mednext
from nnunet_brats_ext.architectures.blocks import EncoderDecoder, SegmentationNetwork, optional_names
from nnunet_brats_ext.architectures.residual_unet import (
    AttentionGate,
    AttentionGatedResidualUNet,
    PreActivationResidualUNet,
)
from nnunet_brats_ext.architectures.vae import VAEBranch
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.training.branches import NetworkWithBranch, TrainingOutput, VAERegularisation

ANISOTROPIC = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2))
SMALL = dict(features_per_stage=(8, 16, 32, 64))
NETWORKS = {name: getattr(architectures, name) for name in architectures.__all__}
CONV_OPS = {2: nn.Conv2d, 3: nn.Conv3d}

EVERY_NETWORK = pytest.mark.parametrize("network_class", NETWORKS.values(), ids=NETWORKS)
EVERY_NETWORK_AND_DIMENSION = pytest.mark.parametrize(
    ("network_class", "axes"),
    [(network, axes) for network in NETWORKS.values() for axes in network.spatial_axes],
    ids=[f"{name}-{axes}d" for name, network in NETWORKS.items() for axes in network.spatial_axes],
)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---- the contract --------------------------------------------------------------------------------------------------


def build(
    network_class: type[SegmentationNetwork],
    axes: int,
    strides=(1, 2, 2),  # few stages are quick
    input_channels: int = 4,
    num_classes: int = 3,
) -> SegmentationNetwork:
    torch.manual_seed(0)
    conv_op = {"conv_op": CONV_OPS[axes]} if len(network_class.spatial_axes) > 1 else {}
    return network_class(input_channels, num_classes, strides=strides, **conv_op)


def images(network: SegmentationNetwork, multiples: tuple[int, ...], rows: int = 1, channels: int = 4) -> Tensor:
    """Random images whose size is a multiple of the cumulated strides, by axis."""
    cumulated = [prod(axis) for axis in zip(*network.strides, strict=True)]
    return torch.randn(rows, channels, *(n * stride for n, stride in zip(multiples, cumulated, strict=False)))


def test_every_network_is_a_segmentation_network_and_names_its_paper():
    for network_class in NETWORKS.values():
        assert issubclass(network_class, SegmentationNetwork)
        assert "https://" in network_class.__doc__.splitlines()[0]


@EVERY_NETWORK
def test_group_normalisation_is_that_which_is_exact_on_a_cpu(network_class):
    with torch.device("meta"):
        network = network_class(4, 3)
    assert not any(type(module) is nn.GroupNorm for module in network.modules())


@EVERY_NETWORK
def test_the_example_in_the_docstring_holds(network_class):
    (documented,) = doctest.DocTestFinder(recurse=False).find(network_class, globs=NETWORKS | {"torch": torch})
    assert documented.examples, "an example with the paper's arguments"
    assert doctest.DocTestRunner().run(documented).failed == 0


@EVERY_NETWORK_AND_DIMENSION
@pytest.mark.parametrize("strides", ["isotropic", "anisotropic"])
def test_eval_mode_gives_logits_of_any_size_that_the_strides_allow(network_class, axes, strides):
    network = build(network_class, axes, (1, 2, 2) if strides == "isotropic" else [(1,) * axes, (1, 2, 2)[-axes:], 2])
    network.eval()
    with torch.no_grad():
        for multiples in ((2, 3, 4), (4, 2, 2)):
            x = images(network, multiples, rows=2)
            logits = network(x)
            assert isinstance(logits, Tensor)
            assert logits.shape == (2, 3, *x.shape[2:])
            assert torch.isfinite(logits).all()
            assert torch.equal(network(x), logits), "eval mode is deterministic"
            alone = torch.cat([network(row[None]) for row in x])
            assert (alone - logits).abs().max() < 1e-4 * logits.abs().max(), "samples do not influence each other"


@EVERY_NETWORK_AND_DIMENSION
def test_gradients_reach_every_parameter_in_train_mode(network_class, axes):
    network = build(network_class, axes).train()
    network.deep_supervision = True
    outputs = tree_leaves(network(images(network, (2, 3, 4), rows=3)))  # a sample for each task of OM-Net
    sum(output.square().mean() for output in outputs if output is not None).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # A bias before normalisation has no effect: its gradient may be zero.
        assert parameter.ndim == 1 or parameter.grad.any(), name


@EVERY_NETWORK
def test_what_is_computed_once_more_in_the_backward_pass_changes_no_bit(network_class, monkeypatch):
    def outputs_and_gradients():
        network = build(network_class, network_class.spatial_axes[-1]).train()
        outputs = [one for one in tree_leaves(network(images(network, (2, 3, 4), rows=3))) if one is not None]
        sum(output.square().mean() for output in outputs).backward()
        return [*outputs, *(parameter.grad for parameter in network.parameters() if parameter.grad is not None)]

    found = outputs_and_gradients()
    for module in (blocks, mednext):
        monkeypatch.setattr(module, "checkpoint", lambda part, x, **options: part(x))
    assert all(torch.equal(one, other) for one, other in zip(found, outputs_and_gradients(), strict=True))


@EVERY_NETWORK
def test_eval_mode_runs_everything_but_the_training_only_parts(network_class):
    network = build(network_class, network_class.spatial_axes[-1]).eval()
    network(images(network, (2, 2, 2))).square().mean().backward()
    idle = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    declared = {name for name, _ in network.named_parameters() if name.split(".")[0] in network.training_only}
    assert idle == declared


@EVERY_NETWORK
@pytest.mark.parametrize(("input_channels", "num_classes"), [(1, 3), (7, 3), (4, 2), (4, 4)])
def test_it_takes_other_numbers_of_channels_and_classes_or_says_which(network_class, input_channels, num_classes):
    try:
        network = build(
            network_class, network_class.spatial_axes[-1], input_channels=input_channels, num_classes=num_classes
        )
    except UserError as error:
        assert num_classes != 3
        assert f"num_classes is {num_classes}" in str(error)
        return
    x = images(network, (2, 2, 2), channels=input_channels)
    with torch.no_grad():
        assert network.eval()(x).shape == (1, num_classes, *x.shape[2:])


@EVERY_NETWORK
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_stored_pickled_and_traced_networks_give_the_same_logits(network_class):
    axes = network_class.spatial_axes[-1]
    network = build(network_class, axes).train()
    x, larger = images(network, (2, 2, 2), rows=3), images(network, (4, 2, 3))
    network(x)  # so that running statistics are not those of a new network
    network.eval()
    stored = io.BytesIO()
    torch.save(network.state_dict(), stored)
    stored.seek(0)
    loaded = build(network_class, axes).eval()
    for parameter in loaded.parameters():
        nn.init.zeros_(parameter)
    loaded.load_state_dict(torch.load(stored, weights_only=True), strict=True)
    pickled = pickle.loads(pickle.dumps(network))
    traced = torch.jit.trace(network, x, check_trace=False)
    with torch.no_grad():
        for image in (x, larger):
            logits = network(image)
            assert torch.equal(loaded(image), logits)
            assert torch.equal(pickled(image), logits)
            torch.testing.assert_close(traced(image), logits)


@EVERY_NETWORK
def test_compiled_networks_have_no_graph_breaks(network_class):
    network = build(network_class, network_class.spatial_axes[-1]).eval()
    x = images(network, (2, 2, 2))
    with torch.no_grad():
        compiled = torch.compile(network, backend="eager", fullgraph=True)(x)
        torch._dynamo.reset()
        assert torch.equal(compiled, network(x))


@EVERY_NETWORK
def test_stages_beyond_the_papers_are_left_out(network_class):
    with torch.device("meta"):
        paper, deep = network_class(4, 3), network_class(4, 3, strides=(1, *[2] * 9))
    assert [stride[0] for stride in deep.strides] == [1, *[2] * (len(deep.strides) - 1)]
    assert len(deep.strides) < 10
    shapes = [{name: value.shape for name, value in network.state_dict().items()} for network in (paper, deep)]
    assert deep.strides == paper.strides
    assert shapes[0] == shapes[1]


@EVERY_NETWORK
def test_strides_of_another_number_of_axes_are_an_error_that_quotes_them(network_class):
    with pytest.raises(UserError, match=r"strides \(\(1, 1, 1, 1\), \(2, 2, 2, 2\)\) do not fit Conv[23]d: give"):
        network_class(4, 3, strides=((1,) * 4, (2,) * 4))


@EVERY_NETWORK
def test_the_size_of_the_deepest_features_is_known_and_a_size_that_does_not_fit_is_an_error(network_class):
    network = build(network_class, network_class.spatial_axes[-1], strides=(1, 2, 2))
    size = (8, 12, 16)[: network_class.spatial_axes[-1]]
    assert network.endpoint_size(size) == tuple(length // 4 for length in size)
    with pytest.raises(UserError, match=r"size \(9, .*\) is not a multiple of the cumulated strides \(4, 4.*choose"):
        network.endpoint_size((9, *size[1:]))


def test_networks_that_a_branch_can_be_put_beside_encode_and_decode_what_they_predict():
    networks = [build(network_class, network_class.spatial_axes[-1]).eval() for network_class in NETWORKS.values()]
    found = [network for network in networks if isinstance(network, EncoderDecoder)]
    assert any(isinstance(network, PreActivationResidualUNet) for network in found)
    for network in found:
        x = images(network, (2, 3, 4))
        with torch.no_grad():
            features = network.encode(x)
            assert torch.equal(network.decode(features), network(x))
        assert tuple(level.shape[1] for level in features) == network.features_per_stage
        assert tuple(features[-1].shape[2:]) == network.endpoint_size(x.shape[2:])


@pytest.mark.parametrize("package", ["architectures", "losses"])
def test_networks_and_losses_are_imported_without_nnunet(package):
    code = f"import sys, nnunet_brats_ext.{package}; sys.exit('nnunetv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- the layout of checkpoints, which is public: as of version 0.1.0 ----------------------------------------------

FLAT = dict(conv_op=nn.Conv2d, strides=((1, 1), (2, 2), (2, 2)))
LAYOUTS = [  # a hash of names and shapes of all weights, and of the order of the parameters
    ("AttentionGatedResidualUNet", FLAT, "698f03040172ff7f"),
    ("CascadedUNet", FLAT, "0b700054980d163f"),
    ("DilatedUNet", dict(norm="instance", attention=True), "0dd7be5cb791be24"),
    ("DilatedUNet", FLAT, "c7347ff09c567242"),
    ("ModelCascade", dict(tasks=1), "0e512dedb9f767c8"),
    ("NoNewUNet", FLAT, "aa839310fc995cb5"),
    ("OMNet", dict(squeeze=16), "85549429fca53dba"),
    ("OMNet", dict(sum_last=True), "61ce980523cde0c2"),
    ("DilatedUNet", dict(three_heads=True), "5a6af4b0452175ef"),
    ("AttentionGatedResidualUNet", dict(pointwise_gates=True), "c60f901c9f5052ef"),
    ("OMNet", dict(guidance="full"), "80c2c80d207d15bc"),
    ("OMNet", FLAT, "d4e876eb20d7009d"),
    ("PostActivationResidualUNet", FLAT, "0af7a310903f830e"),
    ("PreActivationResidualUNet", FLAT, "066c23814197658f"),
]


def layout(module: nn.Module) -> str:
    kept = {name: value for name, value in module.state_dict().items() if name not in optional_names(module)}
    weights = [[name, list(value.shape)] for name, value in kept.items()]
    order = [name for name, _ in module.named_parameters()]
    return hashlib.sha256(json.dumps([weights, order]).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", NETWORKS)
def test_checkpoints_keep_their_layout(name):
    with torch.device("meta"):
        now = layout(NETWORKS[name](4, 3))
    noted = Path(__file__).with_name("layouts") / f"{name}.txt"
    assert noted.is_file(), f"a new network: write {now} into {noted}"
    assert noted.read_text().strip() == now, f"checkpoints of {name} would not load any more"


@pytest.mark.parametrize(("name", "options", "expected"), LAYOUTS)
def test_checkpoints_of_variants_keep_their_layout(name, options, expected):
    with torch.device("meta"):
        assert layout(NETWORKS[name](4, 3, **options)) == expected


@pytest.mark.parametrize(
    ("endpoint_size", "expected"), [((16, 24, 20), "451de1e7c5961175"), ((1, 3, 2), "e3135f1a03067e41")]
)
def test_checkpoints_keep_the_layout_of_the_vae_branch(endpoint_size, expected):
    with torch.device("meta"):
        assert layout(VAEBranch(4, endpoint_size)) == expected


# ---- Lyu & Shu 2020: residual U-Nets, attention gates, the VAE branch ---------------------------------------------


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


def test_the_network_of_stage_one_has_the_parameters_of_the_paper():
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
def test_the_vae_branch_has_the_parameters_of_the_paper(patch, expected):
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
def test_a_network_with_its_branch_trains_and_predicts_at_any_size_that_the_strides_allow(size, changes):
    network, x = regularised(size, **changes), torch.randn(2, 4, *size)
    output = network(x)
    assert isinstance(output, TrainingOutput)
    assert output.logits.shape == (2, 3, *size)
    (output.logits.mean() + sum(output.auxiliary_losses.values())).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    logits = network.eval()(x)
    assert logits.shape == (2, 3, *size)
    larger = torch.randn(1, 4, *(2 * length for length in size))
    assert network(larger).shape == (1, 3, *larger.shape[2:]), "the patch is fixed for the branch, not for the network"


@pytest.mark.parametrize(("gradient", "reaches"), [("full", True), ("none", False)])
def test_the_gradient_of_the_reconstruction_reaches_the_encoder_only_if_it_is_full(gradient, reaches):
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
    fresh = regularised((32, 16, 16))  # another patch, so another branch
    fresh.load_state_dict(trained.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(x), trained(x))


def test_the_branch_reconstructs_images_not_the_labels_of_a_previous_stage():
    network = PreActivationResidualUNet(7, 3, **SMALL)
    vae = VAEBranch(4, (2, 2, 2), features_per_stage=SMALL["features_per_stage"])
    output = NetworkWithBranch(network, VAERegularisation(vae, image_channels=4))(torch.randn(1, 7, 16, 16, 16))
    assert set(output.auxiliary_losses) == {"reconstruction", "kl"}


def test_auxiliary_losses_of_a_constant_image_are_finite():
    network = regularised((16, 16, 16))
    losses = network(torch.zeros(1, 4, 16, 16, 16)).auxiliary_losses
    assert all(torch.isfinite(value) for value in losses.values())


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2)])
def test_an_attention_gate_scales_the_skip_by_factors_between_zero_and_one(stride):
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


def test_gradients_reach_the_weights_of_all_gates():
    network = AttentionGatedResidualUNet(7, 3, **SMALL)
    network(torch.randn(2, 7, 16, 16, 16)).mean().backward()
    # A bias before batch normalisation has no effect, so its gradient is nothing but rounding.
    weights = {name: p for name, p in network.gates.named_parameters() if name.endswith("weight")}
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in weights.values())
    assert network.eval()(torch.randn(1, 7, 24, 16, 8)).shape == (1, 3, 24, 16, 8), "any size, not only the patch"


def test_an_unknown_gradient_is_an_error_that_names_the_choices():
    with pytest.raises(UserError, match="gradient is 'half': choose 'full' or 'none'"):
        VAEBranch(4, (2, 2, 2), gradient="half")
