"""The slice-wise U-Nets of Hashemi et al. 2021 (https://github.com/Nima-Hs/BraTS): three regions, or one of them.

Facts from the paper and the authors' release; written from scratch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

ABSENT_LOGIT = -20.0  # sigmoid 2e-9: background, and finite in half precision under nnU-Net's weighted sums of patches
FEATURES = (64, 128, 256, 512, 1024)
HALVED_FOUR_TIMES = ((1, 1), *((2, 2),) * 4)


def double_conv(input_channels: int, output_channels: int) -> nn.Sequential:
    """Twice: 3x3 convolution of the reflected image, batch normalisation, ReLU."""
    layers: list[nn.Module] = []
    for width in (input_channels, output_channels):
        layers += [
            nn.Conv2d(width, output_channels, 3, padding=1, padding_mode="reflect"),
            nn.BatchNorm2d(output_channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class PlainUNet2D(nn.Module):
    """U-Net 3C of Hashemi et al. 2021: a plain 2-D U-Net with batch normalisation and reflected borders.

    (b, input_channels, h, w) -> logits (b, num_classes, h, w); h and w multiples of their cumulated strides, and twice
    these at least, because a map of one pixel has nothing to reflect.

    strides: per stage and axis, the first stage at full size; as many stages are built as both it and
    `features_per_stage` have.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        strides: Sequence[Sequence[int]] = HALVED_FOUR_TIMES,
        features_per_stage: Sequence[int] = FEATURES,
    ):
        super().__init__()
        steps = [tuple(stride) for stride in strides][1 : len(features_per_stage)]
        features = tuple(features_per_stage)[: 1 + len(steps)]
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
            x = torch.cat([upsample(x), skips.pop()], dim=1)  # popped, so that inference drops it after use
            x = stage(x)
        return self.head(x)


class BinaryUNet2D(PlainUNet2D):
    """U-Net 2C of Hashemi et al. 2021: one region against its complement, seen from outside as all regions.

    Two channels, foreground and background, are trained; the softmax over them is the sigmoid of their difference. That
    difference is the logit of `region`; the other `num_classes - 1` channels are background everywhere, so that what
    nnU-Net does with regions holds for one.

    region: its index among the data set's regions; one that they lack is an error.
    final_relu: the authors' ReLU before the softmax. Where both channels are below zero, no gradient passes.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        region: int,
        final_relu: bool = False,
        strides: Sequence[Sequence[int]] = HALVED_FOUR_TIMES,
        features_per_stage: Sequence[int] = FEATURES,
    ):
        if not 0 <= region < num_classes:
            raise ValueError(f"region {region} is none of the data set's {num_classes} regions (counted from 0)")
        super().__init__(input_channels, 2, strides, features_per_stage)
        self.final_relu = final_relu
        self.others = (region, num_classes - 1 - region)  # regions before and after ours

    def forward(self, x: Tensor) -> Tensor:
        channels = super().forward(x)
        if self.final_relu:
            channels = channels.relu()
        foreground, background = channels.split(1, dim=1)
        return functional.pad(foreground - background, (0, 0, 0, 0, *self.others), value=ABSENT_LOGIT)
