"""The loss of Auto3DSeg, which Myronenko et al. 2023 train with: https://arxiv.org/abs/2510.25058."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_brats_ext.losses.dice import SoftDiceLoss
from nnunet_brats_ext.losses.precision import wide

LEAST_WEIGHT = 0.0625


class SupervisedDiceAndCrossEntropy(nn.Module):
    """Dice and cross-entropy at every scale, each with half the weight of the next finer one, added up.

    logits (b, r, *s), or a list of them from the finest, and target (b, r, *s) in {0, 1} -> scalar, fp32 or wider.
    It is MONAI's DeepSupervisionLoss of DiceCELoss with sigmoid: the Dice has squares in its denominator, and the
    cross-entropy is that of a softmax over the regions, a voxel of several regions counting for each of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice = SoftDiceLoss(0, 1e-5)

    def forward(self, logits: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        scales = [logits] if isinstance(logits, Tensor) else logits
        terms = [max(0.5**level, LEAST_WEIGHT) * self.at_scale(one, target) for level, one in enumerate(scales)]
        return torch.stack(terms).sum()

    def at_scale(self, logits: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            logits = wide(logits)
            target = target.to(logits.dtype)
            if target.shape != logits.shape:
                target = functional.interpolate(target, tuple(logits.shape[2:]), mode="nearest-exact")
            return self.dice(logits, target) + functional.cross_entropy(logits, target)
