"""The base class of all networks, and the parts that two or more of them use.

Shapes: b batch, c channels, *s the two or three spatial axes.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from math import prod
from typing import ClassVar, Protocol, runtime_checkable

from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim, maybe_convert_scalar_to_list
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nnunet_brats_ext.architectures.group_norm import GroupNorm
from nnunet_brats_ext.storage.errors import UserError

ConvOp = type[nn.Conv2d] | type[nn.Conv3d]
Strides = Sequence[int | Sequence[int]]  # per stage, one number or one per axis
INTERPOLATION = {2: "bilinear", 3: "trilinear"}  # by the number of spatial axes


class SegmentationNetwork(nn.Module):
    """Base class of all networks: images (b, input_channels, *s) -> logits (b, num_classes, *s) in eval mode.

    Every axis of s is a multiple of its cumulated strides. Train mode gives the same, unless a network's docstring
    states otherwise. All share these arguments; `input_channels` and `num_classes` alone give the paper's network.

    conv_op: `nn.Conv3d` or `nn.Conv2d`.
    strides: per stage, one number or one per axis; the first stage is at full size.
    features_per_stage: channels of each stage. As many stages are built as both `strides` and this have.
    """

    spatial_axes: ClassVar[tuple[int, ...]] = (2, 3)
    """The numbers of spatial axes that the network can be built for."""

    training_only: ClassVar[tuple[str, ...]] = ()
    """Submodules that only train mode or deep supervision runs, although their weights are stored with all others."""

    deep_supervision: bool = False
    """Whether logits of several scales are given, from the finest, in eval mode as well, for nnU-Net's weighted loss.

    Only networks that state it have a scale for each of their strides; trainers switch it.
    """

    strides: list[tuple[int, ...]]
    """The strides of the stages that were built, one number per axis."""

    def __init__(self, conv_op: ConvOp, strides: Strides, max_stages: int):
        super().__init__()
        self.strides = [tuple(maybe_convert_scalar_to_list(conv_op, stride)) for stride in strides][:max_stages]
        axes = convert_conv_op_to_dim(conv_op)
        if any(len(stride) != axes for stride in self.strides):
            raise UserError(
                f"strides {tuple(strides)} do not fit {conv_op.__name__}: give one number per stage, or {axes} of them"
            )

    def endpoint_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size of the deepest features for an input of `size`; an axis its strides do not divide is an error."""
        cumulated = [prod(axis) for axis in zip(*self.strides, strict=True)]
        if any(length % stride for length, stride in zip(size, cumulated, strict=True)):
            raise UserError(
                f"size {tuple(size)} is not a multiple of the cumulated strides {tuple(cumulated)}: "
                "choose a patch size that is, or other strides"
            )
        return tuple(length // stride for length, stride in zip(size, cumulated, strict=True))


class FusingNetwork(SegmentationNetwork):
    """Base class of networks whose logits are made of scores, those of a voxel out of the scores around it.

    A tiling can then put the scores of all tiles together before they are fused, so that margins count for nothing.
    """

    gives_scores: bool = False
    """Whether eval mode stops at the scores (b, k, *s)."""

    @abstractmethod
    def scores_of_background(self, x: Tensor) -> Tensor:
        """The scores (b, k, *s) of images (b, c, *s) that hold nothing but background."""

    @abstractmethod
    def fuse(self, scores: Tensor) -> Tensor:
        """Scores (b, k, *s) -> logits (b, num_classes, *s)."""


@runtime_checkable
class EncoderDecoder(Protocol):
    """What a network must offer so that `NetworkWithBranch` can put a training-only branch beside it.

    A network of one's own needs no base class for that, only these attributes and methods.
    """

    strides: list[tuple[int, ...]]
    """Per stage and axis, the first stage at full size."""

    features_per_stage: tuple[int, ...]
    """Channels of the features that `encode` gives."""

    def endpoint_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size of the last features that `encode` gives for an input of `size`."""

    def encode(self, x: Tensor) -> list[Tensor]:
        """The features of every stage, from full size to the deepest."""

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Logits from the features of `encode`."""


def recomputed(part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """part(x), of which training keeps x alone; what lies between is computed once more in the backward pass.

    For a normalisation and its activation, which cost little time and much memory, above all in mixed precision, where
    GroupNorm computes in fp32. A convolution at the end of `part` is not repeated, because its gradient does not need
    its result. Gradients are the same, bit for bit.
    """
    return checkpoint(part, x, use_reentrant=False, preserve_rng_state=False) if x.requires_grad else part(x)


def optional_names(network: nn.Module) -> set[str]:
    """The names of buffers that checkpoints of earlier versions lack, and that loading such a checkpoint adds.

    A module lists its own ones in the attribute `absent_from_earlier`.
    """
    return {
        f"{name}.{buffer}" if name else buffer
        for name, module in network.named_modules()
        for buffer in getattr(module, "absent_from_earlier", ())
    }


class PreActivationBlock(nn.Module):
    """Identity mapping residual block: He et al. 2016, https://arxiv.org/abs/1603.05027, as Myronenko 2018 uses it.

    (b, c, *s) -> (b, c, *s): norm, ReLU, conv, norm, ReLU, conv, plus the input. GroupNorm, so c % groups == 0.
    """

    def __init__(self, conv_op: ConvOp, channels: int, groups: int = 8):
        super().__init__()
        self.norm1, self.norm2 = (GroupNorm(groups, channels) for _ in range(2))
        self.conv1, self.conv2 = (conv_op(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = recomputed(lambda x: self.conv1(functional.relu(self.norm1(x), inplace=True)), x)
        return x + recomputed(lambda y: self.conv2(functional.relu(self.norm2(y), inplace=True)), y)


class ProjectAndUpsample(nn.Module):
    """A 1x1x1 convolution, then linear interpolation by `stride`: (b, c_in, *s) -> (b, c_out, *(s * stride)).

    The two commute; the projection comes first because it is cheaper on the smaller grid. `align_corners` has no
    default: the papers differ in it, and weights trained with one do not fit the other.
    """

    def __init__(
        self,
        conv_op: ConvOp,
        input_channels: int,
        output_channels: int,
        stride: Sequence[int],
        *,
        align_corners: bool,
        bias: bool = True,
    ):
        super().__init__()
        self.project = conv_op(input_channels, output_channels, 1, bias=bias)
        self.stride, self.align_corners = [float(s) for s in stride], align_corners
        self.mode = INTERPOLATION[convert_conv_op_to_dim(conv_op)]

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(self.project(x))

    def upsample(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=self.stride, mode=self.mode, align_corners=self.align_corners)
