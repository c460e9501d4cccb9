"""The residual U-Net that Lachinov et al. 2019 (https://arxiv.org/abs/2002.03688) distil their ensemble into.

Facts from the paper and the authors' release; written from scratch.
"""

from collections.abc import Sequence
from functools import partial

import torch
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn

from nnunet_brats_ext.architectures.blocks import ConvOp, ProjectAndUpsample, Strides, recomputed
from nnunet_brats_ext.architectures.group_norm import GroupNorm
from nnunet_brats_ext.architectures.residual_unet import ResidualUNet


class PostActivationBlock(nn.Module):
    """Residual block with nothing after the sum: Lachinov et al. 2019, https://arxiv.org/abs/2002.03688.

    (b, c, *s) -> (b, c, *s): twice conv, norm, LeakyReLU, plus the input. GroupNorm, so c % groups == 0.
    """

    def __init__(self, conv_op: ConvOp, channels: int, groups: int = 8, negative_slope: float = 0.01):
        super().__init__()
        units: list[nn.Module] = []
        for _ in range(2):
            units += [
                conv_op(channels, channels, 3, padding=1, bias=False),
                GroupNorm(groups, channels),
                nn.LeakyReLU(negative_slope, inplace=True),
            ]
        self.units = nn.Sequential(*units)

    def forward(self, x: Tensor) -> Tensor:
        y = recomputed(self.units[1:4], self.units[0](x))
        return x + recomputed(self.units[4:], y)


class PostActivationResidualUNet(ResidualUNet):
    """Student, and second teacher, of Lachinov et al. 2019, https://arxiv.org/abs/2002.03688.

    The arguments are those of `SegmentationNetwork` and `ResidualUNet`.
    head_bias_deviation: of the normal distribution that the head's biases start from; 1 in the authors' release.
    negative_slope: of every LeakyReLU; 0 is the text's ReLU.

    >>> PostActivationResidualUNet(input_channels=4, num_classes=3)(torch.zeros(1, 4, 16, 24, 32)).shape
    torch.Size([1, 3, 16, 24, 32])
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: ConvOp = nn.Conv3d,
        strides: Strides = (1, 2, 2, 2),
        features_per_stage: Sequence[int] = (16, 32, 64, 128),
        n_blocks_per_stage: Sequence[int] = (1, 2, 2, 4),
        head_bias_deviation: float = 0.0,
        negative_slope: float = 0.01,
    ):
        super().__init__(
            input_channels,
            conv_op,
            strides,
            features_per_stage,
            n_blocks_per_stage,
            stem=lambda narrow, wide, stride: nn.Sequential(
                conv_op(narrow, wide, 3, stride=stride, padding=1, bias=False), GroupNorm(8, wide)
            ),
            downsample=lambda narrow, wide, stride: conv_op(narrow, wide, stride, stride=stride, bias=False),
            block=partial(PostActivationBlock, conv_op, negative_slope=negative_slope),
            upsample=lambda wide, narrow, stride: nn.Sequential(
                ProjectAndUpsample(conv_op, wide, narrow, stride, align_corners=False, bias=False),
                nn.LeakyReLU(negative_slope, inplace=True),
            ),
            merge=lambda width: conv_op(2 * width, width, 1, bias=False),
            head=lambda width: conv_op(width, num_classes, 3, padding=1),
        )
        self.apply(InitWeights_He(negative_slope))
        if head_bias_deviation:
            nn.init.normal_(self.head.bias, std=head_bias_deviation)

    def join(self, level: int, skip: Tensor, below: Tensor) -> Tensor:
        return self.merges[level](torch.cat([skip, self.upsamplings[level](below)], dim=1))


_UNITS = (("conv1.conv1.", "units.0."), ("norm1.", "units.1."), ("conv2.conv1.", "units.3."), ("norm2.", "units.4."))

RELEASED_KEYS = {
    "conv_input.": "stem.0.",
    "norm_input.": "stem.1.",
    "conv_output.": "head.",
    **{f"conv_first.{block}.{old}": f"encoder_stages.0.{block}.{new}" for block in range(1) for old, new in _UNITS},
    **{
        f"encoder_convs.{stage - 1}.{block}.{old}": f"encoder_stages.{stage}.{block}.{new}"
        for stage, blocks in enumerate((1, 2, 2, 4))
        for block in range(blocks)
        for old, new in _UNITS
        if stage
    },
    **{f"encoder_convs.{stage}.0.downsample.0.": f"downsamplings.{stage}." for stage in range(3)},
    **{f"upsampling.{2 - level}.1.": f"upsamplings.{level}.0.project." for level in range(3)},
    **{f"decoder_convs1x1.{2 - level}.": f"merges.{level}." for level in range(3)},
    **{
        f"decoder_convs.{2 - level}.0.{old}": f"decoder_stages.{level}.{new}"
        for level in range(3)
        for old, new in _UNITS
    },
}
"""The beginnings of names in the release of Lachinov et al. 2019 (https://github.com/lachinov/brats2019) -> ours."""

RELEASED_UNUSED = (r"decoder_convs(1x1)?\.3\.",)
"""Of the release: a stage of the decoder that it builds and never calls."""
