"""Test-time augmentation: a prediction averaged over symmetries of the image. Their names are in `choices`."""

from collections.abc import Callable, Iterator, Sequence

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


def predict_each(
    predict: Callable[[Tensor], Tensor], x: Tensor, symmetries: Sequence[Symmetry], at_once: int = 1
) -> Iterator[Tensor]:
    """The logits of every symmetric image in turn, turned back; images of one shape go `at_once` in a batch."""
    for first in range(0, len(symmetries), at_once):
        some = symmetries[first : first + at_once]
        images = [apply(symmetry, x) for symmetry in some]
        alike = len({image.shape for image in images}) == 1
        logits = predict(torch.cat(images)).split(len(x)) if alike else map(predict, images)
        yield from (undo(symmetry, one) for symmetry, one in zip(some, logits, strict=True))


def average_probabilities(
    predict: Callable[[Tensor], Tensor],
    x: Tensor,
    symmetries: Sequence[Symmetry],
    exclusive: bool = False,
    at_once: int = 1,
) -> Tensor:
    """The logits of the weighted mean probability over the symmetries; (b, c, *s) -> (b, k, *s), fp32.

    The maps act on the last two or three axes. On slices (b, c, y, x) those that mirror z are left out, for there is
    no z. exclusive: see `probabilities_of`. at_once: see `predict_each`. The logits of a single symmetry are returned
    as they are.
    """
    if x.ndim == 4:
        symmetries = [symmetry for symmetry in symmetries if Z not in symmetry.flips]
    each = predict_each(predict, x, symmetries, at_once)
    if len(symmetries) == 1:
        return next(each)
    total = sum(symmetry.weight for symmetry in symmetries)
    mean: Tensor | None = None
    for symmetry, logits in zip(symmetries, each, strict=True):
        share = probabilities_of(logits, exclusive) * (symmetry.weight / total)
        mean = share if mean is None else mean.add_(share)
    assert mean is not None
    return logits_of(mean, exclusive)


def average_logits(
    predict: Callable[[Tensor], Tensor], x: Tensor, symmetries: Sequence[Symmetry], at_once: int = 1
) -> Tensor:
    """The weighted mean of the logits themselves over the symmetries of a volume, (b, c, *s) -> (b, k, *s)."""
    total = sum(symmetry.weight for symmetry in symmetries)
    each = predict_each(predict, x, symmetries, at_once)
    return sum(
        (logits * (symmetry.weight / total) for symmetry, logits in zip(symmetries, each, strict=True)), x.new_zeros(())
    )


def probabilities_of(logits: Tensor, exclusive: bool, axis: int = 1) -> Tensor:
    """The probability of each region by itself, or of labels along `axis` that exclude each other; fp32."""
    return torch.softmax(logits.float(), axis) if exclusive else torch.sigmoid(logits.float())


def logits_of(probabilities: Tensor, exclusive: bool = False) -> Tensor:
    """Logits that `probabilities_of` takes to these; of regions, they are limited to +-15.

    A probability that differs from 0 or 1 by less than fp32 resolves has no logit of its own.
    """
    limited = probabilities.clamp(3e-7, 1 - 3e-7)
    return torch.log(limited) if exclusive else torch.logit(limited)
