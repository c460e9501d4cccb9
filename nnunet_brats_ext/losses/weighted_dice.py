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
    each sample, the loss averaged over samples as the authors code it (the paper prints a sum).
    region: score this region and its complement as two channels, and ignore the other regions. The logit is that of a
    softmax over the two.
    """

    def __init__(self, batch: bool = True, smooth: float = 1e-4, region: int | None = None):
        super().__init__()
        self.batch, self.smooth, self.region = batch, smooth, region

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
        weight = 1 - wanted / wanted.sum(1, keepdim=True).clamp(min=1)  # a voxel counts 1, so this only guards 0 / 0
        return (weight * (1 - dice)).sum(1).mean()
