"""Losses for networks with several outputs of full size."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MeanOverOutputs(nn.Module):
    """The mean of a loss over outputs of full size: Henry et al. 2020, https://arxiv.org/abs/2011.01045.

    outputs, a list of (b, r, *s) or, in eval mode, one of them; target (b, r, *s) -> scalar. nnU-Net's deep supervision
    shrinks the target to the outputs; here the network has enlarged the outputs to the target.
    """

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        if isinstance(outputs, Tensor):
            return self.loss(outputs, target)
        return self.combine(torch.stack([self.loss(logits, target) for logits in outputs]))

    def combine(self, losses: Tensor) -> Tensor:
        return losses.mean()


class SumOverOutputs(MeanOverOutputs):
    """The sum of a loss over outputs of full size: Henry et al. 2020, https://arxiv.org/abs/2011.01045, as written.

    outputs, a list of (b, r, *s) or, in eval mode, one of them; target (b, r, *s) -> scalar. The release has the mean.
    """

    def combine(self, losses: Tensor) -> Tensor:
        return losses.sum()
