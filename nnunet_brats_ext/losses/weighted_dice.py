"""Soft Dice weighted by how rare a channel is: Hashemi et al. 2021, https://github.com/Nima-Hs/BraTS."""

import torch
from torch import Tensor, nn

from nnunet_brats_ext.losses.dice import SoftDiceLoss
from nnunet_brats_ext.losses.precision import wide


class FrequencyWeightedDiceLoss(nn.Module):
    """One minus the soft Dice of each channel, weighted by the channel's rarity: Hashemi et al. 2021, equation 2.

    logits (b, r, *s), target (b, r, *s) in {0, 1} -> scalar, fp32 or wider. With p = sigmoid(logits), sums over space

        weight = 1 - sum(t) / sum(t of all channels),  dice = (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth),

    the loss is sum(weight (1 - dice)) over the channels. A voxel counts once for every region that holds it, and the
    weights of r channels sum to r - 1. If no channel has a voxel, every weight is 1 and the loss is finite.

    batch: sum over the batch as well (and over the ranks of a distributed run): eq. 2. Off, eq. 1: weights and dice of
    each sample, the loss averaged over samples as the authors' release has it, or `summed` as the paper prints it.
    reversed_weights: the release's: weight = sum(t) / sum(t of all channels) of the channels in reverse, with `smooth`
    added to both sums; nothing changes for two channels, but of three WT gets the share of ET and TC its own.
    region: score this region and its complement as two channels, and ignore the other regions. The logit is that of a
    softmax over the two.
    """

    def __init__(
        self,
        batch: bool = True,
        smooth: float = 1e-4,
        region: int | None = None,
        summed: bool = False,
        reversed_weights: bool = False,
    ):
        super().__init__()
        self.batch, self.smooth, self.region = batch, smooth, region
        self.summed, self.reversed_weights = summed, reversed_weights

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            logits = wide(logits)
            target = target.to(logits.dtype)
            if self.region is not None:
                logits, target = logits[:, self.region, None], target[:, self.region, None]
                logits, target = torch.cat([logits, -logits], 1), torch.cat([target, 1 - target], 1)
            return self.loss(logits.sigmoid(), target)

    def loss(self, probabilities: Tensor, target: Tensor) -> Tensor:
        """The loss of probabilities (b, c, *s), without a choice of region."""
        space = tuple(range(2, target.ndim))
        sums = [x.sum(space) for x in (probabilities * target, probabilities, target)]  # (b, c)
        overlap, predicted, wanted = (SoftDiceLoss.sum_over_batch(x) for x in sums) if self.batch else sums
        dice = (2 * overlap + self.smooth) / (predicted + wanted + self.smooth)
        total = wanted.sum(1, keepdim=True)
        if self.reversed_weights:
            weight = ((wanted + self.smooth) / (total + self.smooth)).flip(1)
        else:
            weight = 1 - wanted / total.clamp(min=1)  # a voxel counts 1, so this only guards 0 / 0
        losses = (weight * (1 - dice)).sum(1)
        return losses.sum() * number_of_ranks() if self.summed else losses.mean()


def number_of_ranks() -> int:
    """By which DistributedDataParallel will divide the sum of the gradients."""
    initialised = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if initialised else 1
