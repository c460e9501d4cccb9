"""Residual U-Nets: what they share, and the two of Lyu & Shu for BraTS 2020 after Myronenko 2018.

Facts from the papers (https://arxiv.org/abs/2011.02881, https://arxiv.org/abs/1810.11654) and the authors' release;
written from scratch.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim, get_matching_batchnorm
from torch import Tensor, nn
from torch.nn import functional

from nnunet_brats_ext.architectures.blocks import (
    INTERPOLATION,
    ConvOp,
    PreActivationBlock,
    ProjectAndUpsample,
    SegmentationNetwork,
    Strides,
)

Resampling = Callable[[int, int, tuple[int, ...]], nn.Module]  # from input channels, output channels and stride


class ResidualUNet(SegmentationNetwork):
    """Base class of U-Nets whose stages are residual blocks; a subclass gives the layers and joins the skips.

    n_blocks_per_stage: of the encoder; the decoder has one per stage.
    stem, downsample, upsample: make a layer from its input channels, output channels and stride.
    block, merge, head: make a layer from the channels of its stage; merge is for `join`, where that needs a layer.
    dropout: a layer behind the stem.
    """

    features_per_stage: tuple[int, ...]
    """Channels of the stages that were built."""

    def __init__(
        self,
        input_channels: int,
        conv_op: ConvOp,
        strides: Strides,
        features_per_stage: Sequence[int],
        n_blocks_per_stage: Sequence[int],
        *,
        stem: Resampling,
        downsample: Resampling,
        block: Callable[[int], nn.Module],
        upsample: Resampling,
        head: Callable[[int], nn.Module],
        merge: Callable[[int], nn.Module] | None = None,
        dropout: nn.Module | None = None,
    ):
        super().__init__(conv_op, strides, len(features_per_stage))
        widths = self.features_per_stage = tuple(features_per_stage)[: len(self.strides)]
        steps = [(*pair, stride) for pair, stride in zip(pairwise(widths), self.strides[1:], strict=True)]
        # The order in which layers are made is that of weights in checkpoints: it must not change.
        self.stem = stem(input_channels, widths[0], self.strides[0])
        self.dropout = dropout or nn.Identity()
        self.downsamplings = nn.ModuleList(downsample(*step) for step in steps)
        self.encoder_stages = nn.ModuleList(
            nn.Sequential(*(block(width) for _ in range(n_blocks)))
            for width, n_blocks in zip(widths, n_blocks_per_stage, strict=False)
        )
        # The decoder's lists run from the bottom to the top, as its forward does.
        self.upsamplings = nn.ModuleList(upsample(wide, narrow, stride) for narrow, wide, stride in steps[::-1])
        if merge is not None:
            self.merges = nn.ModuleList(merge(narrow) for narrow, _, _ in steps[::-1])
        self.decoder_stages = nn.ModuleList(block(narrow) for narrow, _, _ in steps[::-1])
        self.head = head(widths[0])

    @abstractmethod
    def join(self, level: int, skip: Tensor, below: Tensor) -> Tensor:
        """The input of a decoder stage (level 0 is the deepest), from the encoder's features and the stage below."""

    def encode(self, x: Tensor) -> list[Tensor]:
        """The features of every stage, from full size to the deepest."""
        x = self.encoder_stages[0](self.dropout(self.stem(x)))
        features = [x]
        for downsample, stage in zip(self.downsamplings, self.encoder_stages[1:], strict=True):
            x = stage(downsample(x))
            features.append(x)
        return features

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Logits from the features of `encode`."""
        x = features[-1]
        for level, stage in enumerate(self.decoder_stages):
            x = stage(self.join(level, features[-2 - level], x))
        return self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class PreActivationResidualUNet(ResidualUNet):
    """Stage-1 network of Lyu & Shu 2020, https://arxiv.org/abs/2011.02881: pre-activation blocks and additive skips.

    The arguments are those of `SegmentationNetwork` and `ResidualUNet`. dropout: of whole channels, behind the stem.

    >>> PreActivationResidualUNet(input_channels=4, num_classes=3)(torch.zeros(1, 4, 16, 24, 32)).shape
    torch.Size([1, 3, 16, 24, 32])
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: ConvOp = nn.Conv3d,
        strides: Strides = (1, 2, 2, 2),
        features_per_stage: Sequence[int] = (32, 64, 128, 256),
        n_blocks_per_stage: Sequence[int] = (1, 2, 2, 4),
        dropout: float = 0.2,
    ):
        def strided(narrow: int, wide: int, stride: tuple[int, ...]) -> nn.Module:
            return conv_op(narrow, wide, 3, stride=stride, padding=1, bias=False)

        whole_channels = {2: nn.Dropout2d, 3: nn.Dropout3d}[convert_conv_op_to_dim(conv_op)]
        super().__init__(
            input_channels,
            conv_op,
            strides,
            features_per_stage,
            n_blocks_per_stage,
            stem=strided,
            downsample=strided,
            block=partial(PreActivationBlock, conv_op),
            upsample=partial(ProjectAndUpsample, conv_op, align_corners=True),
            head=lambda width: conv_op(width, num_classes, 1),
            dropout=whole_channels(dropout),
        )

    def join(self, level: int, skip: Tensor, below: Tensor) -> Tensor:
        return self.upsamplings[level](below) + skip


class AttentionGate(nn.Module):
    """Additive attention on a skip connection: Oktay et al. 2018, https://arxiv.org/abs/1804.03999, as in Lyu & Shu.

    skip (b, c, *s), gate (b, 2c, *(s / stride)) -> (b, c, *s): the skip, scaled voxel by voxel within (0, 1).
    Batch normalisation after every convolution, the last one included, keeps the coefficients around one half; its
    running statistics belong to the weights.

    pointwise: the paper's equation 1, where the release has the above: 1x1x1 convolutions, that of the skip with the
    stride and without a bias, and no normalisation.
    """

    def __init__(
        self, conv_op: ConvOp, channels: int, gate_channels: int, stride: Sequence[int], pointwise: bool = False
    ):
        super().__init__()

        def norm(width: int) -> list[nn.Module]:
            return [] if pointwise else [get_matching_batchnorm(conv_op)(width)]

        kernel = 1 if pointwise else stride
        strided = conv_op(channels, channels, kernel, stride=stride, bias=not pointwise)
        self.theta = nn.Sequential(strided, *norm(channels))
        self.phi = nn.Sequential(conv_op(gate_channels, channels, 1), *norm(channels))
        self.psi = nn.Sequential(nn.ReLU(inplace=True), conv_op(channels, 1, 1), *norm(1), nn.Sigmoid())
        self.stride = [float(step) for step in stride]
        self.mode = INTERPOLATION[convert_conv_op_to_dim(conv_op)]

    def coefficients(self, skip: Tensor, gate: Tensor) -> Tensor:
        """How much of each voxel passes: (b, 1, *s) in (0, 1)."""
        coarse = self.psi(self.theta(skip) + self.phi(gate))
        return functional.interpolate(coarse, scale_factor=self.stride, mode=self.mode, align_corners=False)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        return skip * self.coefficients(skip, gate)


class AttentionGatedResidualUNet(PreActivationResidualUNet):
    """Stage-2 network of Lyu & Shu 2020, https://arxiv.org/abs/2011.02881: stage 1 with an attention gate on each skip.

    Takes the arguments of `PreActivationResidualUNet`. The gating signal is the stage below in the decoder, and the
    deepest features of the encoder for the first. pointwise_gates: as `AttentionGate` has it.

    >>> AttentionGatedResidualUNet(input_channels=7, num_classes=3).eval()(torch.zeros(1, 7, 16, 16, 16)).shape
    torch.Size([1, 3, 16, 16, 16])
    """

    gates: nn.ModuleList
    """An `AttentionGate` per level of the decoder, the deepest first."""

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: ConvOp = nn.Conv3d,
        pointwise_gates: bool = False,
        **options: Any,
    ):
        super().__init__(input_channels, num_classes, conv_op, **options)
        widths, strides = self.features_per_stage, self.strides
        self.gates = nn.ModuleList(
            AttentionGate(conv_op, narrow, wide, stride, pointwise_gates)
            for wide, narrow, stride in zip(widths[:0:-1], widths[-2::-1], strides[:0:-1], strict=True)
        )

    def join(self, level: int, skip: Tensor, below: Tensor) -> Tensor:
        return self.upsamplings[level](below) + self.gates[level](skip, below)


_BLOCKS = tuple(
    (stage, block, f"en_block{stage}_{block}." if blocks > 1 else f"en_block{stage}.")
    for stage, blocks in enumerate((1, 2, 2, 4))
    for block in range(blocks)
)

RELEASED_KEYS = {
    "in_conv0.conv1.": "stem.",
    **{f"en_down{stage}.conv1.": f"downsamplings.{stage - 1}." for stage in (1, 2, 3)},
    **{old: f"encoder_stages.{stage}.{block}." for stage, block, old in _BLOCKS},
    **{f"de_up{2 - level}.conv1.": f"upsamplings.{level}.project." for level in range(3)},
    **{f"de_block{2 - level}.": f"decoder_stages.{level}." for level in range(3)},
    "de_end.conv1.": "head.",
}
"""The beginnings of names in the release of Lyu & Shu 2020 -> ours, of the first stage.

https://github.com/shu-hai/two-stage-VAE-Attention-gate-BraTS2020
"""

RELEASED_KEYS_OF_GATES = {
    f"ag_{2 - level}.{old}": f"gates.{level}.{new}"
    for level in range(3)
    for old, new in (("W_x.", "theta."), ("W_g.", "phi."), ("psi.0.", "psi.1."), ("psi.1.", "psi.2."))
}
"""Likewise those that the second stage has as well."""

RELEASED_UNUSED = (r"vae\.",)
"""Of the release: the branch that only training needs."""
