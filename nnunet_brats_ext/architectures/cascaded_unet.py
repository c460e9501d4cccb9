"""The cascade of multi-encoder U-Nets of Lachinov et al. 2018, https://arxiv.org/abs/1810.04008; a teacher in 2019.

Facts from the papers and the authors' release of 2018, with which it agrees in every layer; written from scratch.
"""

from collections.abc import Mapping, Sequence

import torch
from dynamic_network_architectures.building_blocks.helper import (
    get_matching_convtransp,
    get_matching_instancenorm,
    get_matching_pool_op,
)
from torch import Tensor, nn

from nnunet_brats_ext.architectures.blocks import ConvOp, SegmentationNetwork, Strides
from nnunet_brats_ext.storage.errors import UserError

EPSILON = 1e-3  # of instance normalisation, MXNet's default


class GroupedPreActivationBlock(nn.Module):
    """Pre-activation residual block of grouped convolutions: He et al. 2016, https://arxiv.org/abs/1603.05027.

    (b, c, *s) -> (b, c, *s): twice instance norm, ReLU, conv, plus the input; c % groups == 0, and groups do not mix.
    """

    def __init__(self, conv_op: ConvOp, channels: int, groups: int = 1):
        super().__init__()
        units: list[nn.Module] = []
        for _ in range(2):
            units += [
                get_matching_instancenorm(conv_op)(channels, eps=EPSILON, affine=True),
                nn.ReLU(inplace=True),
                conv_op(channels, channels, 3, padding=1, groups=groups),
            ]
        self.units = nn.Sequential(*units)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.units(x)


class MultiEncoderUNet(nn.Module):
    """One scale of the cascade: an encoder per modality, fused by their maximum at every level, and one decoder.

    Images (b, input_channels, *s) and context maps by level (b, num_labels, *(s / strides down to that level))
    -> label logits (b, num_labels, *s).

    features: of each encoder at full size; doubled at every level. strides: of the downsamplings, per axis.
    context_levels: levels whose decoder stage takes the softmax maps of a coarser scale as well.
    """

    def __init__(
        self,
        input_channels: int,
        num_labels: int,
        conv_op: ConvOp,
        features: int,
        strides: Sequence[Sequence[int]],
        context_levels: Sequence[int],
        dropout: float = 0.1,
    ):
        super().__init__()
        self.modalities, self.context_levels = input_channels, tuple(context_levels)
        widths = [features * 2**level for level in range(len(strides) + 1)]  # per modality, and after the fusion
        stem = conv_op(input_channels, input_channels * features, 3, padding=1, groups=input_channels)
        stages = [nn.Sequential(stem, self._grouped_block(conv_op, features))]
        for narrow, wide, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            channels = input_channels * narrow, input_channels * wide
            downsample = conv_op(*channels, 3, stride=tuple(stride), padding=1, groups=input_channels)
            stages.append(nn.Sequential(downsample, nn.Dropout(dropout), self._grouped_block(conv_op, wide)))
        self.encoder_stages = nn.ModuleList(stages)

        # The decoder's lists run from the bottom to the top, as its forward does; it is twice as wide as an encoder.
        transposed = get_matching_convtransp(conv_op)
        levels = range(len(strides) - 1, -1, -1)
        below = [widths[-1], *(2 * widths[level] for level in levels)]
        self.upsamplings, self.merges, self.decoder_stages = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for entering, level in zip(below[:-1], levels, strict=True):
            width, stride = 2 * widths[level], tuple(strides[level])
            context = num_labels if level in self.context_levels else 0
            self.upsamplings.append(transposed(entering, width, stride, stride=stride, bias=False))
            self.merges.append(conv_op(width + widths[level] + context, width, 1))
            self.decoder_stages.append(GroupedPreActivationBlock(conv_op, width))
        self.head = conv_op(below[-1], num_labels, 1)

    def _grouped_block(self, conv_op: ConvOp, features: int) -> GroupedPreActivationBlock:
        return GroupedPreActivationBlock(conv_op, self.modalities * features, self.modalities)

    def encode(self, x: Tensor) -> list[Tensor]:
        """The features of every level, from full size to the bottom: (b, modalities * width, *s), group by group."""
        features = []
        for stage in self.encoder_stages:
            x = stage(x)
            features.append(x)
        return features

    def forward(self, x: Tensor, context: Mapping[int, Tensor]) -> Tensor:
        *skips, x = (features.unflatten(1, (self.modalities, -1)).amax(1) for features in self.encode(x))
        stages = zip(self.upsamplings, self.merges, self.decoder_stages, skips[::-1], strict=True)
        for level, (upsample, merge, stage, skip) in zip(range(len(skips) - 1, -1, -1), stages, strict=True):
            maps = [context[level]] if level in self.context_levels else []
            x = stage(merge(torch.cat([upsample(x), skip, *maps], dim=1)))
        return self.head(x)


class CascadedUNet(SegmentationNetwork):
    """Third teacher of Lachinov et al. 2019, https://arxiv.org/abs/2002.03688: three scales, from coarse to fine.

    The images are z-scores, 0 outside the brain. Train mode gives the logits of background and labels,
    (b, 1 + num_classes, *), of every scale, from full size downwards. The deepest features of every scale must have two
    voxels or more, or instance normalisation fails in train mode.

    Inside, it predicts labels that exclude each other. A region's logit is that of the summed probability of its
    labels, so that nnU-Net's sigmoid gives this sum. The arguments are those of `SegmentationNetwork`, but for:

    strides: scale i takes the image average-pooled by the strides of i stages, and its depth is the next
    `max_downsamplings` strides. Its softmax maps, with their gradient, enter the decoders of the finer scales where
    these have its size. A scale for which no stride is left is not built.
    features: of each encoder, by scale, the finest first.

    >>> CascadedUNet(input_channels=4, num_classes=3).eval()(torch.zeros(1, 4, 32, 32, 64)).shape
    torch.Size([1, 3, 32, 32, 64])
    """

    regions: Tensor
    """Which labels each region holds, (region, label) bool; stored with the weights. Starts as nested regions, the
    largest first."""

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: ConvOp = nn.Conv3d,
        strides: Strides = (1, 2, 2, 2, 2, 2),
        features: Sequence[int] = (4, 8, 16),
        max_downsamplings: int = 3,
        dropout: float = 0.1,
    ):
        super().__init__(conv_op, strides, len(features) + max_downsamplings)
        halvings = self.strides[1:]
        if not halvings:
            raise UserError(f"strides {tuple(strides)} have no downsampling: a cascade over scales needs two stages")
        scales = range(min(len(features), len(halvings)))
        self.register_buffer("regions", torch.ones(num_classes, num_classes).triu().bool())
        depths = [halvings[scale : scale + max_downsamplings] for scale in scales]
        self.scales = nn.ModuleList(
            MultiEncoderUNet(
                input_channels, 1 + num_classes, conv_op, features[scale], depths[scale],
                [level for level in range(1, len(depths[scale])) if scale + level in scales], dropout,
            )
            for scale in scales
        )  # fmt: skip
        pool = get_matching_pool_op(conv_op, pool_type="avg")
        self.poolings = nn.ModuleList(pool(stride) for stride in halvings[: len(self.scales) - 1])
        self.apply(_initialise)

    def label_logits(self, x: Tensor) -> list[Tensor]:
        """The logits of background and labels at every scale, the finest first."""
        pyramid = [unit_intensities(x)]
        for pooling in self.poolings:
            pyramid.append(pooling(pyramid[-1]))
        logits: dict[int, Tensor] = {}
        maps: dict[int, Tensor] = {}
        for scale in reversed(range(len(pyramid))):
            network = self.scales[scale]
            logits[scale] = network(pyramid[scale], {level: maps[scale + level] for level in network.context_levels})
            maps[scale] = logits[scale].softmax(1).to(logits[scale].dtype)
        return [logits[scale] for scale in range(len(pyramid))]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        logits = self.label_logits(x)
        return logits if self.training else region_logits(logits[0], self.regions)


def unit_intensities(z_scores: Tensor) -> Tensor:
    """Z-scores within 5 deviations as [0, 1], 0 outside the brain: (x + 5) / 10, as the release of 2018 stores them."""
    return torch.where(z_scores == 0, 0, (z_scores.clamp(-5, 5) + 5) / 10)


def region_logits(label_logits: Tensor, regions: Tensor) -> Tensor:
    """The logit of the softmax probability that each region holds; fp32 or wider.

    label_logits (b, 1 + l, *s), the background first; regions (r, l) bool -> (b, r, *s). From the logarithms of the
    sums inside and outside a region, so that nothing is lost where a probability is nearly 0 or 1.
    """
    wide = label_logits.to(torch.promote_types(label_logits.dtype, torch.float32))[:, None]
    inside = torch.cat([regions.new_zeros(len(regions), 1), regions], dim=1)
    inside = inside.view(*inside.shape, *[1] * (label_logits.ndim - 2))
    log_inside, log_outside = (wide.masked_fill(~mask, -torch.inf).logsumexp(2) for mask in (inside, ~inside))
    return log_inside - log_outside


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.modules.conv._ConvNd):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
