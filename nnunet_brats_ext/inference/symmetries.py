"""Test-time augmentation: a prediction averaged over symmetries of the image. Their names are in `choices`."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nnunet_brats_ext.inference.choices import X, Y, Z
from nnunet_brats_ext.papers import Symmetry


def apply(symmetry: Symmetry, x: Tensor) -> Tensor:
    """The image of a tensor under a symmetry of its last axes."""
    return _turned(torch.flip(x, symmetry.flips) if symmetry.flips else x, symmetry.quarter_turns)


def undo(symmetry: Symmetry, x: Tensor) -> Tensor:
    """The inverse of `apply`."""
    turned = _turned(x, -symmetry.quarter_turns)
    return torch.flip(turned, symmetry.flips) if symmetry.flips else turned


def _turned(x: Tensor, quarter_turns: int) -> Tensor:
    return torch.rot90(x, quarter_turns, (Y, X)) if quarter_turns else x  # torch would copy it


def average_probabilities(
    predict: Callable[[Tensor], Tensor], x: Tensor, symmetries: Sequence[Symmetry], exclusive: bool = False
) -> Tensor:
    """The logits of the weighted mean probability over the symmetries; (b, c, *s) -> (b, k, *s), fp32.

    The maps act on the last two or three axes. On slices (b, c, y, x) those that mirror z are left out, for there is
    no z. exclusive: see `probabilities_of`. The logits of a single symmetry are returned as they are.
    """
    if x.ndim == 4:
        symmetries = [symmetry for symmetry in symmetries if Z not in symmetry.flips]
    if len(symmetries) == 1:
        return undo(symmetries[0], predict(apply(symmetries[0], x)))
    total = sum(symmetry.weight for symmetry in symmetries)
    mean: Tensor | None = None
    for symmetry in symmetries:
        probabilities = probabilities_of(predict(apply(symmetry, x)), exclusive)
        share = undo(symmetry, probabilities) * (symmetry.weight / total)
        mean = share if mean is None else mean.add_(share)
    assert mean is not None
    return logits_of(mean, exclusive)


def probabilities_of(logits: Tensor, exclusive: bool, axis: int = 1) -> Tensor:
    """The probability of each region by itself, or of labels along `axis` that exclude each other; fp32."""
    return torch.softmax(logits.float(), axis) if exclusive else torch.sigmoid(logits.float())


def logits_of(probabilities: Tensor, exclusive: bool = False) -> Tensor:
    """Logits that `probabilities_of` takes to these; of regions, they are limited to +-15.

    A probability that differs from 0 or 1 by less than fp32 resolves has no logit of its own.
    """
    limited = probabilities.clamp(3e-7, 1 - 3e-7)
    return torch.log(limited) if exclusive else torch.logit(limited)
