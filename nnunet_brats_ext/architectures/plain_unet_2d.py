"""The slice-wise U-Nets of Hashemi et al. 2021 (https://github.com/Nima-Hs/BraTS): three regions, or one of them.

Facts from the paper and the authors' release; written from scratch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_brats_ext.architectures.blocks import SegmentationNetwork, Strides
from nnunet_brats_ext.storage.errors import UserError

ABSENT_LOGIT = -20.0  # sigmoid 2e-9: background, and finite in half precision under nnU-Net's weighted sums of patches
FEATURES = (64, 128, 256, 512, 1024)
STRIDES = (1, 2, 2, 2, 2)


def double_conv(input_channels: int, output_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions with reflected borders, each with batch normalisation and ReLU."""
    layers: list[nn.Module] = []
    for width in (input_channels, output_channels):
        layers += [
            nn.Conv2d(width, output_channels, 3, padding=1, padding_mode="reflect"),
            nn.BatchNorm2d(output_channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class PlainUNet2D(SegmentationNetwork):
    """U-Net 3C of Hashemi et al. 2021 (https://github.com/Nima-Hs/BraTS): 2-D, batch norm, reflected borders.

    Height and width must be at least twice their cumulated strides, because one pixel cannot be reflected.
    The arguments are those of `SegmentationNetwork`, without `conv_op`; strides are those of poolings.

    >>> PlainUNet2D(input_channels=4, num_classes=3)(torch.zeros(1, 4, 32, 48)).shape
    torch.Size([1, 3, 32, 48])
    """

    spatial_axes = (2,)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        strides: Strides = STRIDES,
        features_per_stage: Sequence[int] = FEATURES,
    ):
        super().__init__(nn.Conv2d, strides, len(features_per_stage))
        features, steps = tuple(features_per_stage)[: len(self.strides)], self.strides[1:]
        self.poolings = nn.ModuleList(nn.MaxPool2d(step) for step in steps)
        self.encoder_stages = nn.ModuleList(map(double_conv, (input_channels, *features), features))
        # The decoder's lists run from the bottom to the top, as its forward does.
        self.upsamplings = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(wide, narrow, step, stride=step), nn.ReLU(inplace=True))
            for wide, narrow, step in zip(features[:0:-1], features[-2::-1], steps[::-1], strict=True)
        )
        self.decoder_stages = nn.ModuleList(double_conv(2 * narrow, narrow) for narrow in features[-2::-1])
        self.head = nn.Conv2d(features[0], num_classes, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder_stages[0](x)
        skips = []
        for pool, stage in zip(self.poolings, self.encoder_stages[1:], strict=True):
            skips.append(x)
            x = stage(pool(x))
        for upsample, stage in zip(self.upsamplings, self.decoder_stages, strict=True):
            x = torch.cat([upsample(x), skips.pop()], dim=1)  # pop, so that inference frees it after use
            x = stage(x)
        return self.head(x)


class BinaryUNet2D(PlainUNet2D):
    """U-Net 2C of Hashemi et al. 2021 (https://github.com/Nima-Hs/BraTS): one region against its complement.

    Two channels, foreground and background, are trained; the softmax over them is the sigmoid of their difference. That
    difference is the logit of `region`. The other `num_classes - 1` channels are background everywhere, so that nnU-Net
    can treat it as a network of all regions. The arguments are those of `PlainUNet2D` and:

    region: its index among the data set's regions, from 0.
    final_relu: the authors' ReLU before the softmax. Where both channels are below zero, no gradient passes.

    >>> BinaryUNet2D(input_channels=4, num_classes=3, region=1)(torch.zeros(1, 4, 32, 32)).shape
    torch.Size([1, 3, 32, 32])
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        region: int = 0,
        final_relu: bool = False,
        strides: Strides = STRIDES,
        features_per_stage: Sequence[int] = FEATURES,
    ):
        if not 0 <= region < num_classes:
            raise UserError(
                f"region {region} is none of the data set's {num_classes} regions: "
                f"choose one from 0 to {num_classes - 1}"
            )
        super().__init__(input_channels, 2, strides, features_per_stage)
        self.final_relu = final_relu
        self.others = (region, num_classes - 1 - region)  # regions before and after ours

    def forward(self, x: Tensor) -> Tensor:
        channels = super().forward(x)
        if self.final_relu:
            channels = channels.relu()
        foreground, background = channels.split(1, dim=1)
        return functional.pad(foreground - background, (0, 0, 0, 0, *self.others), value=ABSENT_LOGIT)


_LAYERS = tuple((f"{old}.", f"{new}.") for old, new in ((0, 0), (1, 1), (4, 3), (5, 4)))  # without its dropouts

RELEASED_KEYS = {
    **{f"conv{stage + 1}.{old}": f"encoder_stages.{stage}.{new}" for stage in range(5) for old, new in _LAYERS},
    **{f"upconv{level + 1}.0.": f"upsamplings.{level}.0." for level in range(4)},
    **{f"conv{level + 6}.{old}": f"decoder_stages.{level}.{new}" for level in range(4) for old, new in _LAYERS},
    "convlast.0.": "head.",
}
"""The beginnings of names in the release of Hashemi et al. 2021 (https://github.com/Nima-Hs/BraTS) -> ours."""
