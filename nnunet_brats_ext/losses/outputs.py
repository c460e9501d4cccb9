"""One loss for networks with several outputs of full size."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MeanOverOutputs(nn.Module):
    """The plain mean of a loss over outputs of one size: Henry et al. 2020, https://arxiv.org/abs/2011.01045.

    outputs, a list of (b, r, *s) or, in eval mode, one of them; target (b, r, *s) -> scalar. Unlike nnU-Net's deep
    supervision, which shrinks the target to each output, the outputs have been enlarged to the target.
    """

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        if isinstance(outputs, Tensor):
            return self.loss(outputs, target)
        return torch.stack([self.loss(logits, target) for logits in outputs]).mean()
