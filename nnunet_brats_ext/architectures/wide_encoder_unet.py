"""The U-Nets of Luu & Park 2021 for BraTS 2021: https://arxiv.org/abs/2112.04653. Written from the paper.

Facts that it leaves open are those of the authors' release, https://github.com/rixez/Brats21_KAIST_MRI_Lab.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import gcd, prod
from typing import Literal

import torch
from dynamic_network_architectures.building_blocks.helper import (
    convert_conv_op_to_dim,
    get_matching_batchnorm,
    get_matching_convtransp,
)
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn
from torch.nn import functional

from nnunet_brats_ext.architectures.blocks import ConvOp, SegmentationNetwork, Strides
from nnunet_brats_ext.architectures.group_norm import GroupNorm
from nnunet_brats_ext.storage.errors import UserError

Norm = Literal["batch", "group"]


class WideEncoderUNet(SegmentationNetwork):
    """U-Net with a wide encoder and group norm: Luu & Park 2021, https://arxiv.org/abs/2112.04653, their BL + L + GN.

    The arguments are those of `SegmentationNetwork`. With `deep_supervision` it gives the logits of all decoder stages,
    from the finest, one per stride but for the deepest.

    widening: how many times the decoder's stages are narrower in the end than the encoder's.
    norm: "group", of 32 groups, or "batch".

    >>> WideEncoderUNet(input_channels=4, num_classes=3)(torch.zeros(1, 4, 32, 32, 32)).shape
    torch.Size([1, 3, 32, 32, 32])
    """

    training_only: tuple[str, ...] = ("heads",)  # type: ignore[misc]

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: ConvOp = nn.Conv3d,
        strides: Strides = (1, 2, 2, 2, 2, 2),
        features_per_stage: Sequence[int] = (64, 128, 256, 512, 512, 512),
        widening: int = 2,
        norm: Norm = "group",
    ):
        super().__init__(conv_op, strides, len(features_per_stage))
        widths = list(features_per_stage)[: len(self.strides)]
        unit = partial(_unit, conv_op, _norm(norm, conv_op))
        enlarge = get_matching_convtransp(conv_op)
        self.encoder_stages = nn.ModuleList(
            nn.Sequential(unit(narrow, wide, stride), unit(wide, wide))
            for narrow, wide, stride in zip([input_channels, *widths[:-1]], widths, self.strides, strict=True)
        )
        # The decoder's lists run from the bottom to the top, as its forward does.
        skips, steps = widths[-2::-1], self.strides[:0:-1]
        leaving = [width // widening for width in skips]
        self.upsamplings = nn.ModuleList(
            enlarge(below, skip, step, stride=step, bias=False)
            for below, skip, step in zip([widths[-1], *leaving[:-1]], skips, steps, strict=True)
        )
        self.decoder_stages = nn.ModuleList(
            nn.Sequential(unit(2 * skip, skip), unit(skip, last)) for skip, last in zip(skips, leaving, strict=True)
        )
        self.output = conv_op(leaving[-1], num_classes, 1, bias=False)
        self.heads = nn.ModuleList(conv_op(width, num_classes, 1, bias=False) for width in leaving[:-1])
        self.apply(InitWeights_He(1e-2))

    def refine(self, level: int, x: Tensor) -> Tensor:
        """What happens to enlarged features before a skip joins them; level 0 is the deepest."""
        return x

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        skips = []
        for stage in self.encoder_stages:
            x = stage(x)
            skips.append(x)
        skips.pop()
        features = []
        for level, (upsampling, stage) in enumerate(zip(self.upsamplings, self.decoder_stages, strict=True)):
            x = stage(torch.cat([self.refine(level, upsampling(x)), skips.pop()], dim=1))
            features.append(x)
        logits = self.output(x)
        if not self.deep_supervision:
            return logits
        coarser = [head(one) for head, one in zip(self.heads, features, strict=False)]
        return [logits, *reversed(coarser)]


class AxialAttentionUNet(WideEncoderUNet):
    """U-Net with axial attention in its decoder: Luu & Park 2021, https://arxiv.org/abs/2112.04653, their BL + AA.

    All stages of the decoder but the finest add an `AxialAttention` to the enlarged features. The arguments are those
    of `WideEncoderUNet`; with another size than `patch_size` the positional embeddings are interpolated.

    patch_size: of training, one number per axis; None is 128 along each.
    heads, head_channels: of the attention at full size; both double with every halving of the size.

    >>> AxialAttentionUNet(input_channels=4, num_classes=3).eval()(torch.zeros(1, 4, 32, 32, 32)).shape
    torch.Size([1, 3, 32, 32, 32])
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: ConvOp = nn.Conv3d,
        strides: Strides = (1, 2, 2, 2, 2, 2),
        features_per_stage: Sequence[int] = (32, 64, 128, 256, 320, 320),
        widening: int = 1,
        norm: Norm = "batch",
        patch_size: Sequence[int] | None = None,
        heads: int = 2,
        head_channels: int = 8,
    ):
        super().__init__(input_channels, num_classes, conv_op, strides, features_per_stage, widening, norm)
        axes = convert_conv_op_to_dim(conv_op)
        patch_size = patch_size or (128,) * axes
        if len(patch_size) != axes:
            raise UserError(f"patch_size {tuple(patch_size)} does not fit {conv_op.__name__}: give {axes} numbers")
        cumulated = [
            [prod(axis) for axis in zip(*self.strides[: n + 1], strict=True)] for n in range(len(self.strides))
        ]
        self.attentions = nn.ModuleList(
            AxialAttention(
                features_per_stage[stage],
                [length // step for length, step in zip(patch_size, cumulated[stage], strict=True)],
                heads * 2**stage,
                head_channels * 2**stage,
            )
            for stage in range(len(self.strides) - 2, 0, -1)
        )

    def refine(self, level: int, x: Tensor) -> Tensor:
        return x + self.attentions[level](x) if level < len(self.attentions) else x


class AxialAttention(nn.Module):
    """Attention along one axis after the other: Ho et al. 2019, https://arxiv.org/abs/1912.12180, as Luu & Park 2021.

    (b, channels, *s) -> (b, channels, *s). A learnt embedding of the position along each axis is added first.
    size: of the features that the embeddings are for; others get interpolated ones.
    """

    def __init__(self, channels: int, size: Sequence[int], heads: int, head_channels: int):
        super().__init__()
        axes = range(len(size))
        self.embeddings = nn.ParameterList(
            torch.randn(1, channels, *(length if axis == other else 1 for other in axes))
            for axis, length in enumerate(size)
        )
        hidden = heads * head_channels
        self.heads = heads
        self.queries = nn.ModuleList(nn.Linear(channels, hidden, bias=False) for _ in axes)
        self.keys_and_values = nn.ModuleList(nn.Linear(channels, 2 * hidden, bias=False) for _ in axes)
        self.outputs = nn.ModuleList(nn.Linear(hidden, channels) for _ in axes)

    def forward(self, x: Tensor) -> Tensor:
        for axis, embedding in enumerate(self.embeddings, 2):
            x = x + _resized(embedding, x.shape[axis], axis)
        for axis, layers in enumerate(zip(self.queries, self.keys_and_values, self.outputs, strict=True), 2):
            x = self._attend(x.movedim((1, axis), (-1, -2)), *layers).movedim((-1, -2), (1, axis))
        return x

    def _attend(self, x: Tensor, query: nn.Module, key_and_value: nn.Module, output: nn.Module) -> Tensor:
        """(..., length, channels) -> the same, each row by itself."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for part in (query(x), *key_and_value(x).chunk(2, -1))
        )
        attended = functional.scaled_dot_product_attention(q.flatten(0, -4), k.flatten(0, -4), v.flatten(0, -4))
        return output(attended.view_as(q).transpose(-2, -3).flatten(-2))


def _resized(embedding: Tensor, length: int, axis: int) -> Tensor:
    """An embedding along one axis, interpolated linearly to another length."""
    if embedding.shape[axis] == length:
        return embedding
    shape = [length if n == axis else size for n, size in enumerate(embedding.shape)]
    return functional.interpolate(embedding.flatten(2), length, mode="linear").view(shape)


def _unit(
    conv_op: ConvOp, norm: Callable[[int], nn.Module], input_channels: int, output_channels: int,
    stride: Sequence[int] | int = 1,
) -> nn.Sequential:  # fmt: skip
    return nn.Sequential(
        conv_op(input_channels, output_channels, 3, stride=stride, padding=1),
        norm(output_channels),
        nn.LeakyReLU(0.01, inplace=True),
    )


def _norm(name: Norm, conv_op: ConvOp) -> Callable[[int], nn.Module]:
    if name == "batch":
        return get_matching_batchnorm(conv_op)
    return lambda channels: GroupNorm(gcd(32, channels), channels)


_UNIT = (("conv.", "0."), ("instnorm.", "1."))

RELEASED_KEYS = {
    **{
        f"conv_blocks_context.{stage}.blocks.{unit}.{old}": f"encoder_stages.{stage}.{unit}.{new}"
        for stage in range(5)
        for unit in range(2)
        for old, new in _UNIT
    },
    **{
        f"conv_blocks_{old_stage}.{unit}.blocks.0.{old}": f"{stage}.{unit}.{new}"
        for old_stage, stage in (
            ("context.5", "encoder_stages.5"),
            *((f"localization.{level}", f"decoder_stages.{level}") for level in range(5)),
        )
        for unit in range(2)
        for old, new in _UNIT
    },
    "tu.": "upsamplings.",
    "seg_outputs.": "heads.",
    "seg_outputs.4.": "output.",
}
"""The beginnings of names in the release of Luu & Park 2021 -> ours: https://github.com/rixez/Brats21_KAIST_MRI_Lab."""

RELEASED_KEYS_OF_ATTENTION = {
    **{
        f"axial_embedding.{level}.param_{axis}": f"attentions.{level}.embeddings.{axis}"
        for level in range(4)
        for axis in range(3)
    },
    **{
        f"axial_attention.{level}.axial_attentions.{axis}.fn.{old}.": f"attentions.{level}.{new}.{axis}."
        for level in range(4)
        for axis in range(3)
        for old, new in (("to_q", "queries"), ("to_kv", "keys_and_values"), ("to_out", "outputs"))
    },
}
"""Likewise those of its axial attention."""
