"""The residual U-Net that Lachinov et al. 2019 (https://arxiv.org/abs/2002.03688) distil their ensemble into.

Facts from the paper and the authors' release; written from scratch.
"""

from collections.abc import Sequence
from math import prod

import torch
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn

from nnunet_brats_ext.architectures.blocks import ConvOp, ProjectAndUpsample


class PostActivationBlock(nn.Module):
    """Residual block with nothing after the sum: Lachinov et al. 2019, https://arxiv.org/abs/2002.03688.

    (b, c, *s) -> (b, c, *s): twice conv, norm, LeakyReLU, plus the input. GroupNorm, so c % groups == 0.
    """

    def __init__(self, conv_op: ConvOp, channels: int, groups: int = 8):
        super().__init__()
        units: list[nn.Module] = []
        for _ in range(2):
            units += [
                conv_op(channels, channels, 3, padding=1, bias=False),
                nn.GroupNorm(groups, channels),
                nn.LeakyReLU(0.01, inplace=True),
            ]
        self.units = nn.Sequential(*units)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.units(x)


class PostActivationResidualUNet(nn.Module):
    """Student, and second teacher, of Lachinov et al. 2019, https://arxiv.org/abs/2002.03688.

    (b, input_channels, *s) -> logits (b, num_classes, *s); every axis of s a multiple of its cumulated strides.

    strides: per stage and axis, the first stage at full size; as many stages are built as both it and
    `features_per_stage` have. head_bias_deviation: the release draws the biases of the head from N(0, 1).
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: ConvOp = nn.Conv3d,
        strides: Sequence[Sequence[int]] = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        features_per_stage: Sequence[int] = (16, 32, 64, 128),
        n_blocks_per_stage: Sequence[int] = (1, 2, 2, 4),
        head_bias_deviation: float = 0.0,
    ):
        super().__init__()
        self.strides = [tuple(stride) for stride in strides][: len(features_per_stage)]
        features = self.features_per_stage = tuple(features_per_stage)[: len(self.strides)]

        self.stem = nn.Sequential(
            conv_op(input_channels, features[0], 3, stride=self.strides[0], padding=1, bias=False),
            nn.GroupNorm(8, features[0]),
        )
        self.downsamplings = nn.ModuleList(
            conv_op(narrow, wide, stride, stride=stride, bias=False)
            for narrow, wide, stride in zip(features[:-1], features[1:], self.strides[1:], strict=True)
        )
        self.encoder_stages = nn.ModuleList(
            nn.Sequential(*(PostActivationBlock(conv_op, width) for _ in range(n_blocks)))
            for width, n_blocks in zip(features, n_blocks_per_stage, strict=False)
        )
        # The decoder's lists run from the bottom to the top, as its forward does.
        self.upsamplings = nn.ModuleList(
            nn.Sequential(
                ProjectAndUpsample(conv_op, wide, narrow, stride, align_corners=False, bias=False),
                nn.LeakyReLU(0.01, inplace=True),
            )
            for wide, narrow, stride in zip(features[:0:-1], features[-2::-1], self.strides[:0:-1], strict=True)
        )
        self.merges = nn.ModuleList(conv_op(2 * width, width, 1, bias=False) for width in features[-2::-1])
        self.decoder_stages = nn.ModuleList(PostActivationBlock(conv_op, width) for width in features[-2::-1])
        self.head = conv_op(features[0], num_classes, 3, padding=1)
        self.apply(InitWeights_He(1e-2))
        if head_bias_deviation:
            nn.init.normal_(self.head.bias, std=head_bias_deviation)

    def endpoint_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size of the deepest features for an input of `size`; an axis its strides do not divide is an error."""
        cumulated = [prod(axis) for axis in zip(*self.strides, strict=True)]
        if any(length % stride for length, stride in zip(size, cumulated, strict=True)):
            raise ValueError(f"size {tuple(size)} is not a multiple of the cumulated strides {tuple(cumulated)}")
        return tuple(length // stride for length, stride in zip(size, cumulated, strict=True))

    def encode(self, x: Tensor) -> list[Tensor]:
        """The features of every stage, from full size to the endpoint."""
        x = self.encoder_stages[0](self.stem(x))
        features = [x]
        for downsample, stage in zip(self.downsamplings, self.encoder_stages[1:], strict=True):
            x = stage(downsample(x))
            features.append(x)
        return features

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Logits from the features of `encode`."""
        x = features[-1]
        stages = zip(self.upsamplings, self.merges, self.decoder_stages, features[-2::-1], strict=True)
        for upsample, merge, stage, skip in stages:
            x = stage(merge(torch.cat([skip, upsample(x)], dim=1)))
        return self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))
