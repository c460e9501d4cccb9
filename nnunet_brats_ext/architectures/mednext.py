"""MedNeXt: Roy et al. 2023, https://arxiv.org/abs/2303.09975, the first version. Written from the paper.

Facts that it leaves open are those of the authors' release, https://github.com/MIC-DKFZ/MedNeXt.
"""

from collections.abc import Sequence
from itertools import pairwise

from dynamic_network_architectures.building_blocks.helper import get_matching_convtransp
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nnunet_brats_ext.architectures.blocks import ConvOp, SegmentationNetwork, Strides
from nnunet_brats_ext.architectures.group_norm import GroupNorm


class InvertedBottleneck(nn.Module):
    """A MedNeXt block, https://arxiv.org/abs/2303.09975: a large depthwise kernel, a wide 1x1x1 and a narrow one.

    (b, input_channels, *s) -> (b, output_channels, *s): depthwise convolution, normalisation per channel, expansion by
    the ratio `expansion`, GELU, compression; plus the input.
    """

    def __init__(self, conv_op: ConvOp, input_channels: int, output_channels: int, expansion: int, kernel_size: int):
        super().__init__()
        self.depthwise = self.depthwise_layer(conv_op, input_channels, kernel_size)
        self.norm = GroupNorm(input_channels, input_channels)
        self.expand = conv_op(input_channels, expansion * input_channels, 1)
        self.compress = conv_op(expansion * input_channels, output_channels, 1)

    def depthwise_layer(self, conv_op: ConvOp, channels: int, kernel_size: int) -> nn.Module:
        return conv_op(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)

    def bottleneck(self, x: Tensor) -> Tensor:
        return self.compress(functional.gelu(self.expand(self.norm(self.depthwise(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bottleneck(x)


class ResamplingBottleneck(InvertedBottleneck):
    """A MedNeXt block that divides the size by `stride`, or multiplies it: `down` or not.

    Its depthwise convolution has the stride, and the shortcut is a 1x1x1 convolution with it. Transposed convolutions
    of odd kernels leave out the first `stride - 1` rows of each axis; both ways are filled up with zeros there.
    """

    def __init__(
        self,
        conv_op: ConvOp,
        input_channels: int,
        output_channels: int,
        expansion: int,
        kernel_size: int,
        stride: Sequence[int],
        down: bool,
    ):
        self.stride, self.resampled = tuple(stride), conv_op if down else get_matching_convtransp(conv_op)
        self.missing = [] if down else [n for step in reversed(stride) for n in (step - 1, 0)]  # of the last axis first
        super().__init__(conv_op, input_channels, output_channels, expansion, kernel_size)
        self.shortcut = self.resampled(input_channels, output_channels, 1, stride=self.stride)

    def depthwise_layer(self, conv_op: ConvOp, channels: int, kernel_size: int) -> nn.Module:
        padding = kernel_size // 2
        return self.resampled(channels, channels, kernel_size, stride=self.stride, padding=padding, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bottleneck(x) + self.shortcut(x)
        return functional.pad(y, self.missing) if self.missing else y


class MedNeXt(SegmentationNetwork):
    """U-Net of ConvNeXt blocks: Roy et al. 2023, https://arxiv.org/abs/2303.09975; by default size S with kernel 3.

    With `deep_supervision` it gives the logits of all scales, from the finest to the deepest features, one per stride.
    Arguments are those of `SegmentationNetwork`.

    n_blocks_per_stage: of the encoder; the decoder has the same, but for the deepest stage, which both share.
    expansion_per_stage: the ratio of channels inside a block; a step between two stages has that of its result.
    kernel_size: of the depthwise convolutions, along every axis.
    recompute: whether training computes each block again in the backward pass instead of storing its inner features.

    >>> MedNeXt(input_channels=4, num_classes=3)(torch.zeros(1, 4, 16, 32, 16)).shape
    torch.Size([1, 3, 16, 32, 16])
    """

    training_only = ("heads",)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: ConvOp = nn.Conv3d,
        strides: Strides = (1, 2, 2, 2, 2),
        features_per_stage: Sequence[int] = (32, 64, 128, 256, 512),
        n_blocks_per_stage: Sequence[int] = (2, 2, 2, 2, 2),
        expansion_per_stage: Sequence[int] = (2, 2, 2, 2, 2),
        kernel_size: int = 3,
        recompute: bool = False,
    ):
        super().__init__(conv_op, strides, len(features_per_stage))
        self.recompute = recompute
        stages = list(zip(features_per_stage, n_blocks_per_stage, expansion_per_stage, strict=False))
        stages = stages[: len(self.strides)]

        def stage(width: int, blocks: int, expansion: int) -> nn.ModuleList:
            return nn.ModuleList(
                InvertedBottleneck(conv_op, width, width, expansion, kernel_size) for _ in range(blocks)
            )

        steps = list(zip(pairwise(stages), self.strides[1:], strict=True))
        self.stem = conv_op(input_channels, stages[0][0], 1)
        self.encoder_stages = nn.ModuleList(stage(*one) for one in stages)
        self.downsamplings = nn.ModuleList(
            ResamplingBottleneck(conv_op, fine[0], coarse[0], coarse[2], kernel_size, stride, down=True)
            for (fine, coarse), stride in steps
        )
        # The decoder's lists run from the bottom to the top, as its forward does.
        self.upsamplings = nn.ModuleList(
            ResamplingBottleneck(conv_op, coarse[0], fine[0], fine[2], kernel_size, stride, down=False)
            for (fine, coarse), stride in reversed(steps)
        )
        self.decoder_stages = nn.ModuleList(stage(*one) for one in stages[-2::-1])
        self.output = conv_op(stages[0][0], num_classes, 1)
        self.heads = nn.ModuleList(conv_op(width, num_classes, 1) for width, _, _ in stages[:0:-1])

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        x = self._run(self.encoder_stages[0], self.stem(x))
        skips = []
        for downsampling, stage in zip(self.downsamplings, self.encoder_stages[1:], strict=True):
            skips.append(x)
            x = self._run(stage, self._run([downsampling], x))
        supervised = []
        for upsampling, stage in zip(self.upsamplings, self.decoder_stages, strict=True):
            supervised.append(x)
            x = self._run(stage, skips.pop() + self._run([upsampling], x))
        logits = self.output(x)
        if not self.deep_supervision:
            return logits
        coarser = [head(features) for head, features in zip(self.heads, supervised, strict=True)]
        return [logits, *reversed(coarser)]

    def _run(self, blocks: Sequence[nn.Module] | nn.ModuleList, x: Tensor) -> Tensor:
        for block in blocks:
            # No block draws random numbers, so none need to be kept for the second time.
            again = self.recompute and self.training
            x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False) if again else block(x)
        return x


_LAYERS = (("conv1.", "depthwise."), ("norm.", "norm."), ("conv2.", "expand."), ("conv3.", "compress."),
           ("res_conv.", "shortcut."))  # fmt: skip
_STAGES = {
    **{f"enc_block_{stage}": f"encoder_stages.{stage}" for stage in range(4)},
    "bottleneck": "encoder_stages.4",
    **{f"dec_block_{3 - level}": f"decoder_stages.{level}" for level in range(4)},
}

RELEASED_KEYS = {
    "stem.": "stem.",
    **{
        f"{theirs}.{block}.{old}": f"{ours}.{block}.{new}"
        for theirs, ours in _STAGES.items()
        for block in range(8)  # of size L; others have fewer
        for old, new in _LAYERS
    },
    **{f"down_{step}.{old}": f"downsamplings.{step}.{new}" for step in range(4) for old, new in _LAYERS},
    **{f"up_{3 - step}.{old}": f"upsamplings.{step}.{new}" for step in range(4) for old, new in _LAYERS},
    "out_0.conv_out.": "output.",
    **{f"out_{4 - level}.conv_out.": f"heads.{level}." for level in range(4)},
}
"""The beginnings of names in the authors' release -> ours: https://github.com/MIC-DKFZ/MedNeXt."""

RELEASED_HEADS = ("out_",)
"""Of the release: transposed convolutions of size 1, whose weights are (input, output)."""

RELEASED_UNUSED = (r"dummy_tensor$",)
"""Of the release: a weight that does nothing."""
