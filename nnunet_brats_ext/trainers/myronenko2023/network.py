"""Auto3DSeg's SegResNet, which is MONAI's; that is imported where a network is made."""

from collections.abc import Sequence

from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from torch import Tensor, nn

from nnunet_brats_ext.architectures.blocks import ConvOp, Strides


class SegResNet(nn.Module):
    """MONAI's SegResNetDS as Auto3DSeg builds it: Myronenko et al. 2023, https://arxiv.org/abs/2510.25058.

    (b, input_channels, *s) -> (b, num_classes, *s); train mode gives the logits of `supervised` scales from the finest.
    strides: how many stages there are; all of the network's own are halvings.
    features_per_stage: doubles from stage to stage, as the network does; the first counts.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: ConvOp = nn.Conv3d,
        strides: Strides = (1, 2, 2, 2, 2),
        features_per_stage: Sequence[int] = (32, 64, 128, 256, 512),
        n_blocks_per_stage: Sequence[int] = (1, 2, 2, 4, 4),
        supervised: int = 4,
    ):
        super().__init__()
        from monai.networks.nets import SegResNetDS

        blocks = tuple(n_blocks_per_stage)[: len(strides)]
        self.network = SegResNetDS(
            convert_conv_op_to_dim(conv_op), features_per_stage[0], input_channels, num_classes, norm="instance",
            blocks_down=blocks, dsdepth=min(supervised, len(blocks) - 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        return self.network(x)
