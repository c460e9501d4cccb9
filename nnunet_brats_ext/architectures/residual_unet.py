"""The encoder-decoder of Myronenko 2018 (https://arxiv.org/abs/1810.11654) as Lyu & Shu build it for BraTS 2020.

Facts from the paper (https://arxiv.org/abs/2011.02881) and the authors' release; written from scratch.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from torch import Tensor, nn
from torch.nn import functional

from nnunet_brats_ext.architectures.blocks import INTERPOLATION, ConvOp, PreActivationBlock, ProjectAndUpsample


class PreActivationResidualUNet(nn.Module):
    """Stage-1 network of Lyu & Shu 2020: pre-activation residual blocks, additive skips, one output at full size.

    (b, input_channels, *s) -> logits (b, num_classes, *s); every axis of s a multiple of its cumulated strides.

    strides: per stage and axis, the first stage at full size; as many stages are built as both it and
    `features_per_stage` have.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: ConvOp = nn.Conv3d,
        strides: Sequence[Sequence[int]] = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        features_per_stage: Sequence[int] = (32, 64, 128, 256),
        n_blocks_per_stage: Sequence[int] = (1, 2, 2, 4),
        dropout: float = 0.2,
    ):
        super().__init__()
        strides = [tuple(stride) for stride in strides][: len(features_per_stage)]
        features = self.features_per_stage = tuple(features_per_stage)[: len(strides)]
        self.strides = strides
        whole_channels = {2: nn.Dropout2d, 3: nn.Dropout3d}[convert_conv_op_to_dim(conv_op)]

        self.stem = conv_op(input_channels, features[0], 3, stride=strides[0], padding=1, bias=False)
        self.dropout = whole_channels(dropout)
        self.downsamplings = nn.ModuleList(
            conv_op(narrow, wide, 3, stride=stride, padding=1, bias=False)
            for narrow, wide, stride in zip(features[:-1], features[1:], strides[1:], strict=True)
        )
        self.encoder_stages = nn.ModuleList(
            nn.Sequential(*(PreActivationBlock(conv_op, width) for _ in range(n_blocks)))
            for width, n_blocks in zip(features, n_blocks_per_stage, strict=False)
        )
        # The decoder's lists run from the bottom to the top, as its forward does.
        self.upsamplings = nn.ModuleList(
            ProjectAndUpsample(conv_op, wide, narrow, stride, align_corners=True)
            for wide, narrow, stride in zip(features[:0:-1], features[-2::-1], strides[:0:-1], strict=True)
        )
        self.decoder_stages = nn.ModuleList(PreActivationBlock(conv_op, width) for width in features[-2::-1])
        self.head = conv_op(features[0], num_classes, 1)

    def endpoint_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size of the deepest features for an input of `size`; an axis its strides do not divide is an error."""
        cumulated = [prod(axis) for axis in zip(*self.strides, strict=True)]
        if any(length % stride for length, stride in zip(size, cumulated, strict=True)):
            raise ValueError(f"size {tuple(size)} is not a multiple of the cumulated strides {tuple(cumulated)}")
        return tuple(length // stride for length, stride in zip(size, cumulated, strict=True))

    def encode(self, x: Tensor) -> list[Tensor]:
        """The features of every stage, from full size to the endpoint."""
        x = self.encoder_stages[0](self.dropout(self.stem(x)))
        features = [x]
        for downsample, stage in zip(self.downsamplings, self.encoder_stages[1:], strict=True):
            x = stage(downsample(x))
            features.append(x)
        return features

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Logits from the features of `encode`."""
        x = features[-1]
        for level, (upsample, stage) in enumerate(zip(self.upsamplings, self.decoder_stages, strict=True)):
            x = stage(upsample(x) + self.connect(level, features[-2 - level], x))
        return self.head(x)

    def connect(self, level: int, skip: Tensor, gate: Tensor) -> Tensor:
        """What a level of the decoder (0 is the deepest) adds of the encoder; `gate` is what it upsamples."""
        return skip

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class AttentionGate(nn.Module):
    """Additive attention on a skip connection: Oktay et al. 2018, https://arxiv.org/abs/1804.03999, as in Lyu & Shu.

    skip (b, c, *s), gate (b, 2c, *(s / stride)) -> (b, c, *s): the skip, scaled voxel by voxel within (0, 1).
    Batch normalisation after every convolution, the last one included, keeps the coefficients around one half; its
    running statistics belong to the weights.
    """

    def __init__(self, conv_op: ConvOp, channels: int, gate_channels: int, stride: Sequence[int]):
        super().__init__()
        batch_norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[convert_conv_op_to_dim(conv_op)]
        self.theta = nn.Sequential(conv_op(channels, channels, stride, stride=stride), batch_norm(channels))
        self.phi = nn.Sequential(conv_op(gate_channels, channels, 1), batch_norm(channels))
        self.psi = nn.Sequential(nn.ReLU(inplace=True), conv_op(channels, 1, 1), batch_norm(1), nn.Sigmoid())
        self.stride = [float(step) for step in stride]
        self.mode = INTERPOLATION[convert_conv_op_to_dim(conv_op)]

    def coefficients(self, skip: Tensor, gate: Tensor) -> Tensor:
        """How much of each voxel passes: (b, 1, *s) in (0, 1)."""
        coarse = self.psi(self.theta(skip) + self.phi(gate))
        return functional.interpolate(coarse, scale_factor=self.stride, mode=self.mode, align_corners=False)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        return skip * self.coefficients(skip, gate)


class AttentionGatedResidualUNet(PreActivationResidualUNet):
    """Stage-2 network of Lyu & Shu 2020: that of stage 1 with an attention gate on every skip connection.

    Takes the same arguments. Each gate listens to the decoder's features below it; the deepest to the endpoint.
    """

    def __init__(self, input_channels: int, num_classes: int, conv_op: ConvOp = nn.Conv3d, **topology: Any):
        super().__init__(input_channels, num_classes, conv_op, **topology)
        widths, strides = self.features_per_stage, self.strides
        self.gates = nn.ModuleList(
            AttentionGate(conv_op, narrow, wide, stride)
            for wide, narrow, stride in zip(widths[:0:-1], widths[-2::-1], strides[:0:-1], strict=True)
        )

    def connect(self, level: int, skip: Tensor, gate: Tensor) -> Tensor:
        return self.gates[level](skip, gate)
