"""The U-Net of Henry et al. 2020 for BraTS 2020 (https://arxiv.org/abs/2011.01045), with and without attention.

Facts from the paper and the authors' release; written from scratch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import gcd, prod
from typing import Literal, TypeVar

import torch
from dynamic_network_architectures.building_blocks.helper import (
    convert_conv_op_to_dim,
    get_matching_instancenorm,
    get_matching_pool_op,
)
from torch import Tensor, nn
from torch.nn import functional

from nnunet_brats_ext.architectures.blocks import (
    INTERPOLATION,
    ConvOp,
    ProjectAndUpsample,
    SegmentationNetwork,
    Strides,
    recomputed,
)
from nnunet_brats_ext.architectures.group_norm import GroupNorm
from nnunet_brats_ext.storage.errors import UserError

NormOp = Callable[[int], nn.Module]
Place = TypeVar("Place")


def group_norm(channels: int) -> GroupNorm:
    """GroupNorm of 16 groups at most; channels that 16 does not divide make groups of gcd(16, channels) channels."""
    groups = min(16, channels)
    return GroupNorm(groups if channels % groups == 0 else channels // gcd(16, channels), channels)


def norm_op(norm: Literal["group", "instance"], conv_op: ConvOp) -> NormOp:
    """The constructor of a normalisation from its number of channels, learnt and without running statistics."""
    if norm == "group":
        return group_norm
    if norm == "instance":
        return partial(get_matching_instancenorm(conv_op), affine=True)
    raise UserError(f"norm is {norm!r}: choose 'group' or 'instance'")


class ConvUnit(nn.Sequential):
    """3x3x3 convolution without bias, normalisation, ReLU: (b, c_in, *s) -> (b, c_out, *s)."""

    def __init__(self, conv_op: ConvOp, input_channels: int, output_channels: int, norm: NormOp, dilation: int = 1):
        super().__init__(
            conv_op(input_channels, output_channels, 3, padding=dilation, dilation=dilation, bias=False),
            norm(output_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        convolve, normalise, activate = self
        return recomputed(lambda y: activate(normalise(y)), convolve(x))


class ConvolutionalBlockAttention(nn.Module):
    """CBAM: Woo et al. 2018, https://arxiv.org/abs/1807.06521, first along channels, then in space, as Henry et al.

    (b, c, *s) -> (b, c, *s), every value scaled within (0, 1). A ReLU before the last sigmoid, which is not in the CBAM
    paper, keeps the spatial gate at 0.5 or more.
    """

    def __init__(self, conv_op: ConvOp, channels: int, norm: NormOp, reduction: int = 16):
        super().__init__()
        hidden = max(1, channels // reduction)
        self.channel_gate = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
        )
        self.spatial_gate = nn.Sequential(conv_op(2, 1, 7, padding=3, bias=False), norm(1), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        weights = (self.channel_gate(flat.mean(2)) + self.channel_gate(flat.amax(2))).sigmoid()
        x = x * weights[(...,) + (None,) * (x.ndim - 2)]
        extremes = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        return x * self.spatial_gate(extremes).sigmoid()


class EnlargedProbabilities(ProjectAndUpsample):
    """`ProjectAndUpsample` with a sigmoid in between, as the text of Henry et al. 2020 has it; gives logits again."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            logits = self.project(x.to(self.project.weight.dtype))
            return self.upsample(logits.sigmoid()).logit(eps=1e-6)


class DilatedUNet(SegmentationNetwork):
    """U-Net of Henry et al. 2020, https://arxiv.org/abs/2011.01045: dilated bottom, deep supervision at full size.

    Train mode gives a list of logits (b, num_classes, *s): the output, then those of the heads on the decoder, from the
    deepest up, all enlarged to full size. The heads' weights are stored, although eval mode does not use them.
    The arguments are those of `SegmentationNetwork`; strides are those of poolings.

    norm: "group" (pipeline A) or "instance" (pipeline B).
    attention: a `ConvolutionalBlockAttention` behind every stage of the encoder and both parts of the bottom.
    three_heads: the text's three auxiliary outputs, where the release has four: none behind the convolution that joins
    the two parts of the bottom, so that there is one per scale; probabilities are enlarged, not logits.

    >>> DilatedUNet(input_channels=4, num_classes=3).eval()(torch.zeros(1, 4, 16, 24, 32)).shape
    torch.Size([1, 3, 16, 24, 32])
    """

    training_only = ("heads",)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: ConvOp = nn.Conv3d,
        strides: Strides = (1, 2, 2, 2),
        features_per_stage: Sequence[int] = (48, 96, 192, 384),
        norm: Literal["group", "instance"] = "group",
        attention: bool = False,
        three_heads: bool = False,
    ):
        super().__init__(conv_op, strides, len(features_per_stage))
        self.three_heads = three_heads
        widths = list(features_per_stage)[: len(self.strides)]
        # The channels that each level gives to the one above, and the first to the output.
        above = [widths[0], *widths[:-1]]
        build_norm = norm_op(norm, conv_op)
        max_pool = get_matching_pool_op(conv_op, pool_type="max")
        self.poolings = nn.ModuleList(max_pool(stride, stride=stride) for stride in self.strides[1:])
        self.interpolation = INTERPOLATION[convert_conv_op_to_dim(conv_op)]

        def stage(*channels: int, dilation: int = 1, attentive: bool = False) -> nn.Sequential:
            units = [ConvUnit(conv_op, i, o, build_norm, dilation) for i, o in pairwise(channels)]
            gates = [ConvolutionalBlockAttention(conv_op, channels[-1], build_norm)] if attentive else []
            return nn.Sequential(*units, *gates)

        self.encoder_stages = nn.ModuleList(
            stage(narrow, wide, wide, attentive=attention)
            for narrow, wide in zip([input_channels, *widths[:-1]], widths, strict=True)
        )
        deepest = widths[-1]
        self.bottom = stage(deepest, deepest, deepest, dilation=2, attentive=attention)
        self.merge = stage(2 * deepest, above[-1], attentive=attention)
        # The decoder's lists run from the bottom to the top, as its forward does.
        self.decoder_stages = nn.ModuleList(
            stage(2 * wide, wide, narrow) for wide, narrow in zip(widths[-2::-1], above[-2::-1], strict=True)
        )
        self.output = conv_op(above[0], num_classes, 1)
        levels = range(1, len(self.strides) + 1)
        scales = [[prod(axis) for axis in zip(*self.strides[:level], strict=True)] for level in levels]
        supervised = list(zip([deepest, *above[:0:-1]], [scales[-1], *scales[:0:-1]], strict=True))
        head = EnlargedProbabilities if three_heads else ProjectAndUpsample
        self.heads = nn.ModuleList(
            head(conv_op, width, num_classes, scale, align_corners=True) for width, scale in self.with_heads(supervised)
        )
        self.apply(_initialise)

    def with_heads(self, places: list[Place]) -> list[Place]:
        """Those that have a head, of the dilated convolutions, their merge, and the decoder's stages but the last."""
        return [places[0], *places[2:]] if self.three_heads else places

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        skips = [self.encoder_stages[0](x)]
        for pooling, stage in zip(self.poolings, self.encoder_stages[1:], strict=True):
            skips.append(stage(pooling(skips[-1])))
        supervised = [self.bottom(skips[-1])]
        x = self.merge(torch.cat([skips[-1], supervised[0]], dim=1))
        for stage, skip, stride in zip(self.decoder_stages, skips[-2::-1], self.strides[:0:-1], strict=True):
            supervised.append(x)
            factors = [float(step) for step in stride]
            up = functional.interpolate(x, scale_factor=factors, mode=self.interpolation, align_corners=True)
            x = stage(torch.cat([skip, up], dim=1))
        logits = self.output(x)
        if not self.training:
            return logits
        places = self.with_heads(supervised)
        return [logits, *(head(features) for head, features in zip(self.heads, places, strict=True))]


def _initialise(module: nn.Module) -> None:
    """Kaiming's normal initialisation by fan-out for convolutions: He et al. 2015, https://arxiv.org/abs/1502.01852."""
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


_UNITS = tuple(
    (f"ConvBnRelu{number + 1}.{old}.", f"{number}.{new}.")
    for number in range(2)
    for old, new in (("conv", "0"), ("bn", "1"))
)
_ATTENTION = (
    ("ChannelGate.mlp.1.", "channel_gate.0."),
    ("ChannelGate.mlp.3.", "channel_gate.2."),
    ("SpatialGate.spatial.conv.", "spatial_gate.0."),
    ("SpatialGate.spatial.bn.", "spatial_gate.1."),
)
_ENCODER = (*((f"encoder{stage + 1}.", f"encoder_stages.{stage}.") for stage in range(4)), ("bottom.", "bottom."))
_HEADS = (("deep_bottom.", 0), ("deep_bottom2.", 1), ("deep3.", 2), ("deep2.", 3))
_DECODER_AND_HEADS = {
    **{f"decoder{3 - level}.{old}": f"decoder_stages.{level}.{new}" for level in range(3) for old, new in _UNITS},
    "outconv.": "output.",
    **{f"{old}0.": f"heads.{number}.project." for old, number in _HEADS},
}

RELEASED_KEYS = {
    **{stage + old: ours + new for stage, ours in _ENCODER for old, new in _UNITS},
    **{f"bottom_2.{old}.": f"merge.0.{new}." for old, new in (("conv", "0"), ("bn", "1"))},
    **_DECODER_AND_HEADS,
}
"""The beginnings of names in the release of Henry et al. 2020 -> ours: its EquiUnet.

https://github.com/lescientifik/open_brats2020
"""

RELEASED_KEYS_WITH_ATTENTION = {
    **{f"{stage}UBlock.{old}": ours + new for stage, ours in _ENCODER for old, new in _UNITS},
    **{f"{stage}CBAM.{old}": f"{ours}2.{new}" for stage, ours in _ENCODER for old, new in _ATTENTION},
    **{f"bottom_2.0.{old}.": f"merge.0.{new}." for old, new in (("conv", "0"), ("bn", "1"))},
    **{f"bottom_2.1.{old}": f"merge.1.{new}" for old, new in _ATTENTION},
    **_DECODER_AND_HEADS,
}
"""Likewise of its Att_EquiUnet."""
