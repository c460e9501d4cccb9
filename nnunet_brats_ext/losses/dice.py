"""Soft Dice of regions, in the variants of the papers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_brats_ext.losses.precision import wide


class SoftDiceLoss(nn.Module):
    """One minus the soft Dice of each region, averaged: Milletari et al. 2016, https://arxiv.org/abs/1606.04797.

    logits (b, r, *s), target (b, r, *s) in [0, 1] -> scalar, fp32 or wider. With p = sigmoid(logits), sums over space

        dice = (2 sum(p t) + smooth_numerator) / (sum(p^2) + sum(t^2) + smooth_denominator),

    without the squares if `squared` is off; `squared_target` decides for t alone, which matters where t is between 0
    and 1. A region that is empty in target and prediction has the dice smooth_numerator / smooth_denominator; with
    smooth_numerator = 0 it adds a constant 1 and no gradient.

    batch: sum over the batch as well (and over the ranks of a distributed run), rather than average dice over it.
    weights: one per region, summing to 1; equal if None.
    """

    def __init__(
        self,
        smooth_numerator: float = 0.0,
        smooth_denominator: float = 1e-8,
        squared: bool = True,
        squared_target: bool | None = None,
        batch: bool = False,
        weights: Sequence[float] | None = None,
    ):
        super().__init__()
        self.smooth_numerator, self.smooth_denominator = smooth_numerator, smooth_denominator
        self.power = 2 if squared else 1
        self.target_power = self.power if squared_target is None else 2 if squared_target else 1
        self.batch, self.weights = batch, weights

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            probabilities = wide(logits).sigmoid()
            return 1 - self.dice(probabilities, target.to(probabilities.dtype))

    def dice(self, probabilities: Tensor, target: Tensor) -> Tensor:
        """The weighted Dice of probabilities, a scalar; for networks whose regions are sums of label probabilities."""
        space = tuple(range(2, target.ndim))
        overlap = (probabilities * target).sum(space)
        total = (probabilities**self.power).sum(space) + (target**self.target_power).sum(space)  # (b, r)
        if self.batch:
            overlap, total = (self.sum_over_batch(x) for x in (overlap, total))
        dice = (2 * overlap + self.smooth_numerator) / (total + self.smooth_denominator)
        return (dice.mean(0) * dice.new_tensor(self.weights)).sum() if self.weights is not None else dice.mean()

    @staticmethod
    def sum_over_batch(x: Tensor) -> Tensor:
        """The sum over the batch and, with the gradient, over all ranks of a distributed run: (b, r) -> (1, r)."""
        x = x.sum(0, keepdim=True)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            from nnunetv2.utilities.ddp_allgather import AllGatherGrad  # here, so that losses load without nnU-Net

            x = AllGatherGrad.apply(x).sum(0)
        return x
