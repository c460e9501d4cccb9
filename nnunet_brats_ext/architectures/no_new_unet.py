"""The U-Net of "No New-Net", Isensee et al. 2018 (https://arxiv.org/abs/1809.10483), as Lachinov et al. 2019 use it."""

from collections.abc import Sequence

import torch
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim, get_matching_instancenorm
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn
from torch.nn import functional

from nnunet_brats_ext.architectures.blocks import INTERPOLATION, ConvOp, SegmentationNetwork, Strides


class NoNewUNet(SegmentationNetwork):
    """Plain U-Net with strided convolutions: Lachinov et al. 2019, https://arxiv.org/abs/2002.03688, after No New-Net.

    The deepest features must have two voxels or more, or instance normalisation fails in train mode.
    The number of features is halved before each linear upsampling, so that both halves of a concatenation are equal.
    The arguments are those of `SegmentationNetwork`.

    >>> NoNewUNet(input_channels=4, num_classes=3)(torch.zeros(1, 4, 16, 16, 32)).shape
    torch.Size([1, 3, 16, 16, 32])
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: ConvOp = nn.Conv3d,
        strides: Strides = (1, 2, 2, 2, 2),
        features_per_stage: Sequence[int] = (30, 60, 120, 240, 480),
    ):
        super().__init__(conv_op, strides, len(features_per_stage))
        features = list(features_per_stage)[: len(self.strides)]
        self.mode = INTERPOLATION[convert_conv_op_to_dim(conv_op)]
        # A stage gives the one above as many channels as that has; the topmost keeps its own.
        upwards = [features[0], *features[:-1]]

        entering = [input_channels, *features[:-1]]
        leaving = [*features[:-1], upwards[-1]]
        self.encoder_stages = nn.ModuleList(
            nn.Sequential(_unit(conv_op, narrow, width, stride), _unit(conv_op, width, last))
            for narrow, width, last, stride in zip(entering, features, leaving, self.strides, strict=True)
        )
        # The decoder's lists run from the bottom to the top, as its forward does.
        self.decoder_stages = nn.ModuleList(
            nn.Sequential(_unit(conv_op, 2 * width, width), _unit(conv_op, width, upward))
            for width, upward in zip(features[-2::-1], upwards[-2::-1], strict=True)
        )
        self.head = conv_op(features[0], num_classes, 1)
        self.apply(InitWeights_He(1e-2))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for stage in self.encoder_stages:
            x = stage(x)
            skips.append(x)
        for stage, skip, stride in zip(self.decoder_stages, skips[-2::-1], self.strides[:0:-1], strict=True):
            scale = [float(step) for step in stride]
            x = functional.interpolate(x, scale_factor=scale, mode=self.mode, align_corners=False)
            x = stage(torch.cat([skip, x], dim=1))
        return self.head(x)


def _unit(conv_op: ConvOp, input_channels: int, output_channels: int, stride: Sequence[int] | int = 1) -> nn.Sequential:
    return nn.Sequential(
        conv_op(input_channels, output_channels, 3, stride=stride, padding=1, bias=False),
        get_matching_instancenorm(conv_op)(output_channels, affine=True),
        nn.LeakyReLU(0.01, inplace=True),
    )
