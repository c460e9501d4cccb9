"""The heads of OM-Net, one per task. Shapes: b batch, c channels, k classes, *s the two or three spatial axes.

Every head maps the shared features (b, c, *s), and the scores (b, 5, *s) of the task before it, to scores (b, k, *s).
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunet_brats_ext.architectures.blocks import ConvOp
from nnunet_brats_ext.architectures.omnet.backbone import conv_norm_relu
from nnunet_brats_ext.storage.errors import UserError


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation, channels scaled by their averages: Hu et al. 2018, https://arxiv.org/abs/1709.01507.

    (b, c, *s) -> (b, c, *s), the factors within (0, 1).
    """

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        narrow = channels // reduction
        self.excite = nn.Sequential(
            nn.Linear(channels, narrow), nn.ReLU(inplace=True), nn.Linear(narrow, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(x.flatten(2).mean(2)).view(*x.shape[:2], *[1] * (x.ndim - 2))


class TaskHead(nn.Module):
    """A convolution and a classifier; the scores of the task before it are not used.

    squeeze: reduction of squeeze-and-excitation in front of them, or None.
    """

    def __init__(self, conv_op: ConvOp, channels: int, classes: int, squeeze: int | None = None):
        super().__init__()
        attention = [SqueezeExcitation(channels, squeeze)] if squeeze else []
        self.layers = nn.Sequential(
            *attention, conv_norm_relu(conv_op, channels, channels), conv_op(channels, classes, 1)
        )

    def forward(self, features: Tensor, previous: Tensor | None = None) -> Tensor:
        return self.layers(features)


class Guidance(NamedTuple):
    """Which categories of voxels have their own projection, and whether it is weighted by their probability."""

    categories: tuple[str, ...]
    by_probability: bool = True


CATEGORIES = ("tumour", "non_tumour")
GUIDANCE = {  # the complete module and its ablations: CGA-, CGAt, CGAn of the paper's Table I
    "full": Guidance(CATEGORIES),
    "minus": Guidance(CATEGORIES, by_probability=False),
    "tumour": Guidance(CATEGORIES[:1]),
    "non_tumour": Guidance(CATEGORIES[1:]),
}


class CrossTaskGuidedAttention(nn.Module):
    """Cross-task guided attention, channels weighted by the previous task's output: Zhou et al. 2020, section IV.

    Channels are weighted by their response to the tumour (Pt) and, in a copy, to the rest (Pn = 1 - Pt): CSCI. The
    scores of both are composed voxel by voxel as Pt * St + Pn * Sn: CompSeg. The previous task gets no gradient.

    tumour: the classes of the previous task that make up Pt. guidance: a name of `GUIDANCE`.
    """

    def __init__(
        self, conv_op: ConvOp, channels: int, classes: int, tumour: Collection[int], guidance: str = "full"
    ) -> None:
        super().__init__()
        if guidance not in GUIDANCE:
            raise UserError(f"guidance is {guidance!r}: choose one of {', '.join(GUIDANCE)}")
        categories, self.by_probability = GUIDANCE[guidance]
        self.tumour = sorted(tumour)
        self.project = nn.ModuleDict({name: conv_op(channels, classes, 1) for name in categories})
        self.combine = conv_op(classes, classes, 1)

    def probabilities(self, previous: Tensor) -> Tensor:
        """Probabilities of tumour and non-tumour, in fp32 and without gradient: (b, k, *s) -> (b, 2, *s)."""
        tumour = previous.detach().float().softmax(1)[:, self.tumour].sum(1, keepdim=True)
        return torch.cat([tumour, 1 - tumour], 1)

    def forward(self, features: Tensor, previous: Tensor) -> Tensor:
        probabilities = self.probabilities(previous)
        importance = channel_importance(features, probabilities).to(features.dtype)
        composed = []
        for category, project in self.project.items():
            index = CATEGORIES.index(category)
            scores = project(features * importance[:, index].view(*features.shape[:2], *[1] * (features.ndim - 2)))
            composed.append(scores * probabilities[:, index, None].to(scores.dtype) if self.by_probability else scores)
        return self.combine(torch.stack(composed).sum(0))


def channel_importance(features: Tensor, probabilities: Tensor) -> Tensor:
    """Category-specific channel importance (CSCI): each channel's share of the response to a category.

    features (b, c, *s) >= 0, probabilities of n categories (b, n, *s) -> (b, n, c) in fp32, each summing to 1 over c;
    all zero where nothing responds. In fp32, because sums over a whole brain overflow half precision.
    """
    with torch.autocast(features.device.type, enabled=False):
        voxels = probabilities.flatten(2).float()
        response = torch.bmm(voxels / voxels.shape[2], features.flatten(2).float().transpose(1, 2))
        return response / response.sum(2, keepdim=True).clamp_min(1e-12)
