"""The backbone of OM-Net: FusionNet in 3-D (Quan et al. 2016, https://arxiv.org/abs/1612.05360)."""

from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import (
    get_matching_batchnorm,
    get_matching_convtransp,
    get_matching_pool_op,
)
from torch import Tensor, nn
from torch.nn import functional

from nnunet_brats_ext.architectures.blocks import ConvOp


def conv_norm_relu(conv_op: ConvOp, input_channels: int, output_channels: int) -> nn.Sequential:
    """3x3x3 convolution with bias, batch normalisation, ReLU: (b, c_in, *s) -> (b, c_out, *s)."""
    return nn.Sequential(
        conv_op(input_channels, output_channels, 3, padding=1),
        get_matching_batchnorm(conv_op)(output_channels),
        nn.ReLU(inplace=True),
    )


class ResidualBlock(nn.Module):
    """Three convolutions with batch normalisation, the input added before the last ReLU: (b, c, *s) -> (b, c, *s).

    sum_last: the input is added after the last ReLU, as the figure of Zhou et al. 2020 has it.
    """

    def __init__(self, conv_op: ConvOp, channels: int, sum_last: bool = False):
        super().__init__()
        first, second, third = (conv_norm_relu(conv_op, channels, channels) for _ in range(3))
        self.layers = nn.Sequential(first, second, third[:-1])
        self.sum_last = sum_last

    def forward(self, x: Tensor) -> Tensor:
        if self.sum_last:
            return x + functional.relu(self.layers(x), inplace=True)
        return functional.relu(x + self.layers(x), inplace=True)


class FusionNet(nn.Module):
    """The layers that all tasks share: images (b, input_channels, *s) -> features (b, features_per_stage[0], *s) >= 0.

    Every axis of s is a multiple of its cumulated strides. Skips are added, not concatenated. Pooling takes maxima, as
    the authors' layers do; of a checkpoint of version 0.1, which has no buffer `pools_maxima`, it takes averages.

    strides: per stage and axis, the first stage at full size. features_per_stage: of as many stages. sum_last: as
    `ResidualBlock` has it.
    """

    absent_from_earlier = ("pools_maxima",)
    pools_maxima: Tensor

    def __init__(
        self,
        input_channels: int,
        conv_op: ConvOp,
        strides: Sequence[tuple[int, ...]],
        features_per_stage: Sequence[int],
        dropout: float = 0.5,
        sum_last: bool = False,
    ):
        super().__init__()
        features, steps = list(features_per_stage)[: len(strides)], strides[1:]
        self.output_channels, self.conv_op, self.steps = features[0], conv_op, steps
        self.register_buffer("pools_maxima", torch.ones((), dtype=torch.uint8))
        self.register_load_state_dict_pre_hook(_pool_as_checkpoint)

        def stage(narrow: int, wide: int) -> nn.Sequential:
            first, last = conv_norm_relu(conv_op, narrow, wide), conv_norm_relu(conv_op, wide, wide)
            return nn.Sequential(first, ResidualBlock(conv_op, wide, sum_last), last)

        def upsampling(wide: int, narrow: int, step: tuple[int, ...]) -> nn.Sequential:
            transposed = get_matching_convtransp(conv_op)(wide, narrow, step, stride=step)
            return nn.Sequential(transposed, get_matching_batchnorm(conv_op)(narrow), nn.ReLU(inplace=True))

        self.encoder = nn.ModuleList(map(stage, [input_channels, *features[:-1]], features))
        self.pool_by("max")
        self.dropout = nn.Dropout(dropout)  # of single values, not of whole channels
        # The decoder's lists run from the bottom to the top, as its forward does.
        self.upsamplings = nn.ModuleList(map(upsampling, features[:0:-1], features[-2::-1], steps[::-1]))
        decoder = [stage(width, width) for width in features[-2::-1]]
        if decoder:
            decoder[-1] = decoder[-1][:-1]  # each task has its own last convolution
        self.decoder = nn.ModuleList(decoder)

    def pool_by(self, kind: str) -> None:
        """Pool by `max` or `avg`."""
        pooling = get_matching_pool_op(self.conv_op, pool_type=kind)
        self.poolings = nn.ModuleList(pooling(step, stride=step) for step in self.steps)

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.encoder[0](x)]
        for pooling, stage in zip(self.poolings, self.encoder[1:], strict=True):
            skips.append(stage(pooling(skips[-1])))
        x = self.dropout(skips.pop())
        for upsampling, stage in zip(self.upsamplings, self.decoder, strict=True):
            x = stage(upsampling(x) + skips.pop())
        return x


def _pool_as_checkpoint(network: FusionNet, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Pool as the network whose weights are loaded did."""
    maxima = weights.setdefault(f"{prefix}pools_maxima", torch.zeros((), dtype=torch.uint8))
    network.pool_by("max" if maxima else "avg")


def initialise(network: nn.Module) -> None:
    """Set weights as He et al. 2015 (https://arxiv.org/abs/1502.01852), biases to 0.1 and, of the first layer, to 0."""
    layers = [m for m in network.modules() if isinstance(getattr(m, "bias", None), Tensor) and m.weight.ndim > 1]
    for layer in layers:  # in a transposed convolution, torch counts the outputs as inputs, and so did the authors
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.constant_(layer.bias, 0.1 if layer is not layers[0] else 0.0)
