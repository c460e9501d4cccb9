"""The networks of all configurations with the loss and the optimiser that train them, built from architectures alone.

Needs torch and dynamic-network-architectures, no nnU-Net: what its trainers build is built here once more, so that
memory and time can be measured on a machine that has nothing else. Tests hold every network against its trainer's.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import log2
from typing import Any, NamedTuple

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from dynamic_network_architectures.building_blocks.helper import get_matching_batchnorm, get_matching_instancenorm
from torch import Tensor, nn
from torch.nn import functional

from nnunet_brats_ext.losses.dice import SoftDiceLoss

CHANNELS, REGIONS = 4, 3
IN_SLICES = {"hashemi_2d"}


class Training(NamedTuple):
    network: nn.Module
    loss: Callable[[Tensor, Sequence[Tensor]], Tensor]
    optimizer: torch.optim.Optimizer
    input_channels: int
    scales: Sequence[Sequence[int]]  # what each target's size is divided by


def lyu(architecture: str, input_channels: int, size: Sequence[int]) -> Training:
    """As BraTSVAETrainer and BraTSAttentionVAETrainer train."""
    from nnunet_brats_ext.architectures import residual_unet
    from nnunet_brats_ext.architectures.vae import VAEBranch
    from nnunet_brats_ext.training.branches import LossWithAuxiliaries, NetworkWithBranch, VAERegularisation

    bare = getattr(residual_unet, architecture)(input_channels, REGIONS)
    vae = VAERegularisation(VAEBranch(CHANNELS, bare.endpoint_size(size)), CHANNELS)
    network, loss = NetworkWithBranch(bare, vae), LossWithAuxiliaries(SoftDiceLoss())
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, weight_decay=1e-5)
    return Training(network, lambda output, targets: loss(output, targets[0]), optimizer, input_channels, ((1, 1, 1),))


def no_new_net(size: Sequence[int]) -> Training:
    """As BraTSNoNewNetTrainer trains."""
    from nnunet_brats_ext.architectures.no_new_unet import NoNewUNet
    from nnunet_brats_ext.losses.cross_entropy import DiceAndBCELoss

    network, loss = NoNewUNet(CHANNELS, REGIONS), DiceAndBCELoss()
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, weight_decay=1e-6)
    return Training(network, lambda output, targets: loss(output, targets[0]), optimizer, CHANNELS, ((1, 1, 1),))


def lachinov_vae(size: Sequence[int]) -> Training:
    """As BraTSResUNetVAETrainer trains; BraTSStudentTrainer needs less."""
    from nnunet_brats_ext.architectures.post_activation_residual_unet import PostActivationResidualUNet
    from nnunet_brats_ext.architectures.vae import VAEBranch
    from nnunet_brats_ext.losses.cross_entropy import DiceAndBCELoss
    from nnunet_brats_ext.training.branches import LossWithAuxiliaries, NetworkWithBranch, VAERegularisation

    bare = PostActivationResidualUNet(CHANNELS, REGIONS)
    vae = VAEBranch(CHANNELS, bare.endpoint_size(size), features_per_stage=bare.features_per_stage, align_corners=False)
    network = NetworkWithBranch(bare, VAERegularisation(vae, CHANNELS))
    loss = LossWithAuxiliaries(DiceAndBCELoss())
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, weight_decay=1e-6)
    return Training(network, lambda output, targets: loss(output, targets[0]), optimizer, CHANNELS, ((1, 1, 1),))


def cascaded_unet(size: Sequence[int]) -> Training:
    """As BraTSCascadedUNetTrainer trains."""
    from nnunet_brats_ext.architectures.cascaded_unet import CascadedUNet
    from nnunet_brats_ext.losses.label_dice import LabelDiceLoss

    network = CascadedUNet(CHANNELS, REGIONS)
    loss = LabelDiceLoss(network.regions)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    return Training(network, lambda output, targets: loss(output, targets[0]), optimizer, CHANNELS, ((1, 1, 1),))


def henry(norm: str, squared: bool, size: Sequence[int]) -> Training:
    """As pipeline A trains with attention, which is the larger of its two networks, and as pipeline B does."""
    from nnunet_brats_ext.architectures.dilated_unet import DilatedUNet
    from nnunet_brats_ext.losses.outputs import MeanOverOutputs
    from nnunet_brats_ext.trainers.henry2020.ranger import Ranger

    network = DilatedUNet(CHANNELS, REGIONS, norm=norm, attention=norm == "group")
    loss = MeanOverOutputs(SoftDiceLoss(1.0, 1.0, squared=squared, batch=True))
    parameters = network.parameters()
    optimizer = Ranger(parameters, 1e-4) if norm == "group" else torch.optim.Adam(parameters, 1e-4, eps=1e-4)
    return Training(network, lambda output, targets: loss(output, targets[0]), optimizer, CHANNELS, ((1, 1, 1),))


def hashemi(size: Sequence[int]) -> Training:
    """As BraTS2DTrainer trains; those of one region have 577 weights less."""
    from nnunet_brats_ext.architectures.plain_unet_2d import PlainUNet2D
    from nnunet_brats_ext.losses.weighted_dice import FrequencyWeightedDiceLoss

    network, loss = PlainUNet2D(CHANNELS, REGIONS), FrequencyWeightedDiceLoss()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    return Training(network, lambda output, targets: loss(output, targets[0]), optimizer, CHANNELS, ((1, 1),))


def omnet(size: Sequence[int]) -> Training:
    """As BraTSOMNetCGATrainer trains, a row of the batch for each of its three tasks; its paper's others need less."""
    from nnunet_brats_ext.architectures.omnet.networks import OMNet
    from nnunet_brats_ext.losses.multi_task import MultiTaskCrossEntropy

    network, loss = OMNet(CHANNELS, REGIONS, guidance="full"), MultiTaskCrossEntropy()
    network.register_forward_pre_hook(lambda _, inputs: inputs[0].repeat(network.tasks, 1, 1, 1, 1))
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, weight_decay=5e-4, momentum=0.99)

    def of_all_tasks(output, targets: Sequence[Tensor]) -> Tensor:
        regions = targets[0].repeat(network.tasks, 1, 1, 1, 1)
        return loss(output, [regions, regions[:, :1]])

    return Training(network, of_all_tasks, optimizer, CHANNELS, ((1, 1, 1),))


# ---- networks that train with nnU-Net's loss and optimiser -------------------------------------------------------


class NNUNetLoss:
    """Dice and binary cross-entropy at every scale, each with half the weight of the next finer one."""

    def __init__(self, scales: int = 1, batch: bool = False):
        halved = [0.5**level for level in range(scales)]
        self.weights = [weight / sum(halved) for weight in halved]
        self.dice = SoftDiceLoss(1e-5, 1e-5, squared=False, batch=batch)

    def __call__(self, output: Tensor | Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        outputs = [output] if isinstance(output, Tensor) else output
        terms = [w * self.at_scale(o, t) for w, o, t in zip(self.weights, outputs, targets, strict=True)]
        return torch.stack(terms).sum()

    def at_scale(self, logits: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            return self.dice(logits, target) + functional.binary_cross_entropy_with_logits(logits, target.float())


def supervised(
    network: nn.Module, scales: int, batch: bool, optimizer: torch.optim.Optimizer | None = None
) -> Training:
    """Trained at so many scales, from the finest, by nnU-Net's optimiser unless another one is given."""
    if optimizer is None:
        parameters = network.parameters()
        optimizer = torch.optim.SGD(parameters, 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
    return Training(network, NNUNetLoss(scales, batch), optimizer, CHANNELS, [[2**i] * 3 for i in range(scales)])


def strides_of(size: Sequence[int]) -> list[list[int]]:
    """As nnU-Net halves a patch: until its shortest edge is 4 voxels."""
    return [[1] * 3, *([2] * 3 for _ in range(int(log2(min(size) / 4))))]


def plain_unet(norm: Callable, batch: bool, size: Sequence[int]) -> Training:
    """As nnU-Net, and so BraTSBaselineTrainer, trains its own network on regions."""
    strides = strides_of(size)
    network = PlainConvUNet(
        CHANNELS, len(strides), [min(32 * 2**stage, 320) for stage in range(len(strides))], nn.Conv3d, 3, strides, 2,
        REGIONS, 2, conv_bias=True, norm_op=norm(nn.Conv3d), norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=True,
    )  # fmt: skip
    return supervised(network, len(strides) - 1, batch)


def luu(size: Sequence[int], axial: bool = False, **options: Any) -> Training:
    """As the trainers of luu2021 train."""
    from nnunet_brats_ext.architectures.wide_encoder_unet import AxialAttentionUNet, WideEncoderUNet

    strides = strides_of(size)
    positions: dict[str, Any] = {"patch_size": tuple(size)} if axial else {}
    architecture = AxialAttentionUNet if axial else WideEncoderUNet
    network = architecture(CHANNELS, REGIONS, nn.Conv3d, strides, **options, **positions)
    network.deep_supervision = True
    return supervised(network, len(strides) - 1, batch=True)


def mednext(size: Sequence[int], **options: Any) -> Training:
    """As the trainers of roy2023 with kernel 5 train."""
    from nnunet_brats_ext.architectures.mednext import MedNeXt

    network = MedNeXt(CHANNELS, REGIONS, kernel_size=5, **options)
    network.deep_supervision = True
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=3e-5, eps=1e-4)
    return supervised(network, scales=5, batch=False, optimizer=optimizer)


def primus(size: Sequence[int], width: int, depth: int, heads: int) -> Training:
    """As the trainers of nnU-Net's transformer in baseline train."""
    from dynamic_network_architectures.architectures.primus import PrimusV3

    network = PrimusV3(CHANNELS, width, (8,) * 3, REGIONS, depth, heads, input_shape=tuple(size))
    optimizer = torch.optim.AdamW(network.parameters(), 3e-4, betas=(0.9, 0.98), weight_decay=5e-2)
    return supervised(network, scales=1, batch=False, optimizer=optimizer)


def myronenko(size: Sequence[int]) -> Training:
    """As BraTSMyronenko2023Trainer trains; needs MONAI."""
    from nnunet_brats_ext.trainers.myronenko2023.loss import SupervisedDiceAndCrossEntropy
    from nnunet_brats_ext.trainers.myronenko2023.network import SegResNet

    network, loss = SegResNet(CHANNELS, REGIONS), SupervisedDiceAndCrossEntropy()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-4, weight_decay=1e-5)
    return Training(network, lambda output, targets: loss(output, targets[0]), optimizer, CHANNELS, ((1, 1, 1),))


WIDER = (2, 3, 4, 4, 4)  # the expansion of MedNeXt B and M
NETWORKS: dict[str, Callable[[Sequence[int]], Training]] = {  # by the papers' configurations; nnU-Net's own is `nnunet`
    "lyu_stage1": partial(lyu, "PreActivationResidualUNet", CHANNELS),
    "lyu_stage2": partial(lyu, "AttentionGatedResidualUNet", CHANNELS + REGIONS),  # and the labels of stage 1
    "lyu_stage2_single": partial(lyu, "AttentionGatedResidualUNet", CHANNELS + REGIONS),
    "lachinov_128": no_new_net,
    "lachinov_144": lachinov_vae,
    "lachinov_brain": cascaded_unet,
    "henry": partial(henry, "group", True),
    "henry_b": partial(henry, "instance", False),
    "hashemi_2d": hashemi,
    "omnet": omnet,
    "nnunet": partial(plain_unet, get_matching_instancenorm, False),
    "isensee_2020": partial(plain_unet, get_matching_batchnorm, True),
    "isensee_2020_instance": partial(plain_unet, get_matching_instancenorm, False),
    "luu_2021": partial(luu, features_per_stage=(32, 64, 128, 256, 320, 320), widening=1, norm="batch"),
    "luu_2021_large": luu,
    "luu_2021_axial": partial(luu, axial=True),
    "mednext_s": mednext,
    "mednext_b": partial(mednext, expansion_per_stage=WIDER),
    "mednext_m": partial(mednext, n_blocks_per_stage=(3, 4, 4, 4, 4), expansion_per_stage=WIDER, recompute=True),
    "mednext_l": partial(
        mednext, n_blocks_per_stage=(3, 4, 8, 8, 8), expansion_per_stage=(3, 4, 8, 8, 8), recompute=True
    ),
    "myronenko_2023": myronenko,
    "primus_s": partial(primus, width=396, depth=12, heads=6),
    "primus_b": partial(primus, width=792, depth=12, heads=12),
    "primus_m": partial(primus, width=864, depth=16, heads=12),
    "primus_l": partial(primus, width=1056, depth=24, heads=16),
}
