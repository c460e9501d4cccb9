"""Parts that two or more networks use. Shapes: b batch, c channels, *s the two or three spatial axes."""

from collections.abc import Sequence

from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from torch import Tensor, nn
from torch.nn import functional

ConvOp = type[nn.Conv2d] | type[nn.Conv3d]
INTERPOLATION = {2: "bilinear", 3: "trilinear"}  # by the number of spatial axes


class PreActivationBlock(nn.Module):
    """Identity mapping residual block: He et al. 2016, https://arxiv.org/abs/1603.05027, as Myronenko 2018 uses it.

    (b, c, *s) -> (b, c, *s): norm, ReLU, conv, norm, ReLU, conv, plus the input. GroupNorm, so c % groups == 0.
    """

    def __init__(self, conv_op: ConvOp, channels: int, groups: int = 8):
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(groups, channels) for _ in range(2))
        self.conv1, self.conv2 = (conv_op(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.relu(self.norm1(x), inplace=True))
        return x + self.conv2(functional.relu(self.norm2(y), inplace=True))


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
        return functional.interpolate(
            self.project(x), scale_factor=self.stride, mode=self.mode, align_corners=self.align_corners
        )
