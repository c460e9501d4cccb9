"""One loss for networks with several outputs of full size."""

from collections.abc import Sequence

from torch import Tensor, nn


class MeanOverOutputs(nn.Module):
    """The plain mean of a loss over outputs of one size: deep supervision as Henry et al. 2020 (arXiv 2011.01045) do.

    outputs, a list of (b, r, *s) or, in eval mode, one of them; target (b, r, *s) -> scalar. Unlike nnU-Net's deep
    supervision, which shrinks the target to each output, the outputs have been enlarged to the target.
    https://arxiv.org/abs/2011.01045
    """

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        if isinstance(outputs, Tensor):
            return self.loss(outputs, target)
        return sum(
            (self.loss(logits, target) for logits in outputs), target.new_zeros((), dtype=outputs[0].dtype)
        ) / len(outputs)
