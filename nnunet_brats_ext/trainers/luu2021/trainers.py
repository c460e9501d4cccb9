"""Luu & Park 2021, Extending nn-UNet for brain tumor segmentation: https://arxiv.org/abs/2112.04653.

What the paper leaves open is as in the authors' release, https://github.com/rixez/Brats21_KAIST_MRI_Lab. They go on
from a variant of Isensee et al. 2020, which they call BL; L is the larger encoder, GN group norm, AA axial attention.
"""

from torch import nn

from nnunet_brats_ext.architectures.wide_encoder_unet import AxialAttentionUNet, WideEncoderUNet
from nnunet_brats_ext.training.base import BraTSTrainer
from nnunet_brats_ext.training.planned_network import PlannedNetwork
from nnunet_brats_ext.training.strong_augmentation import BatchDice, StrongAugmentation


class LuuTrainer(BatchDice, StrongAugmentation, BraTSTrainer):
    """What all variants of Luu & Park 2021 (https://arxiv.org/abs/2112.04653) share; train with a subclass."""

    architecture = WideEncoderUNet
    one_draw_per_case = False
    rotation_degrees = 90
    brightness_per_channel = 0.5


class BraTSLuu2021Trainer(LuuTrainer):
    """BL + L + GN: the encoder twice as wide, group norm. Luu & Park 2021, https://arxiv.org/abs/2112.04653."""


class BraTSLuu2021BaselineTrainer(LuuTrainer):
    """BL: nnU-Net's width, batch norm. Luu & Park 2021, https://arxiv.org/abs/2112.04653."""

    network_options = dict(features_per_stage=(32, 64, 128, 256, 320, 320), widening=1, norm="batch")


class BraTSLuu2021AxialTrainer(LuuTrainer):
    """BL + AA: axial attention in the decoder. Luu & Park 2021, https://arxiv.org/abs/2112.04653."""

    architecture = AxialAttentionUNet

    @classmethod
    def build_network(
        cls, planned: PlannedNetwork, input_channels: int, num_classes: int, deep_supervision: bool
    ) -> nn.Module:
        network = AxialAttentionUNet(
            input_channels, num_classes, planned.conv_op, planned.strides, patch_size=planned.patch_size,
            **cls.all_network_options(),
        )  # fmt: skip
        network.deep_supervision = deep_supervision
        return network
