"""Binary cross-entropy of regions, and its sum with the soft Dice."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_brats_ext.losses.dice import SoftDiceLoss
from nnunet_brats_ext.losses.precision import wide


class WeightedBCELoss(nn.Module):
    """Binary cross-entropy whose background term is weighted: Lachinov et al. 2019, https://arxiv.org/abs/2002.03688.

    logits (b, r, *s), target (b, r, *s) in [0, 1] -> scalar, fp32 or wider: the mean over everything of
    -(t log p + background_weight (1 - t) log(1 - p)). A weight below 1 favours sensitivity.
    epsilon: added to p and to 1 - p, as the authors' release does; 0 works on the logits, without loss of digits.
    """

    def __init__(self, background_weight: float = 1.0, epsilon: float = 0.0):
        super().__init__()
        self.background_weight, self.epsilon = background_weight, epsilon

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            logits = wide(logits)
            target = target.to(logits.dtype)
            tumour, background = self._log(logits), self._log(-logits)
            return -(target * tumour + self.background_weight * (1 - target) * background).mean()

    def _log(self, logits: Tensor) -> Tensor:
        return (logits.sigmoid() + self.epsilon).log() if self.epsilon else functional.logsigmoid(logits)


class DiceAndBCELoss(nn.Module):
    """Soft Dice over the whole batch plus binary cross-entropy: Lachinov et al. 2019, https://arxiv.org/abs/2002.03688.

    logits (b, r, *s), target (b, r, *s) in [0, 1] -> scalar, fp32 or wider. Targets enter the Dice's denominator
    without a square. factor: 1 is the paper's sum, 0.5 the mean that the authors' release takes.
    """

    def __init__(self, background_weight: float = 1.0, epsilon: float = 0.0, factor: float = 1.0):
        super().__init__()
        self.dice = SoftDiceLoss(2e-6, 2e-6, squared_target=False, batch=True)
        self.cross_entropy = WeightedBCELoss(background_weight, epsilon)
        self.factor = factor

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.factor * (self.dice(logits, target) + self.cross_entropy(logits, target))
