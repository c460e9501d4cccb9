"""Test-time augmentation: the symmetries of the image that a prediction is averaged over."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

Z, Y, X = -3, -2, -1


@dataclass(frozen=True)
class Symmetry:
    """Mirror along `flips`, then turn the axial plane by `quarter_turns`, on the last axes of any tensor."""

    flips: tuple[int, ...] = ()
    quarter_turns: int = 0
    weight: float = 1.0

    def apply(self, x: Tensor) -> Tensor:
        return torch.rot90(torch.flip(x, self.flips), self.quarter_turns, (Y, X))

    def undo(self, x: Tensor) -> Tensor:
        return torch.flip(torch.rot90(x, -self.quarter_turns, (Y, X)), self.flips)


def _mirrors(axes: Sequence[int]) -> tuple[Symmetry, ...]:
    choices = product((False, True), repeat=len(axes))
    return tuple(
        Symmetry(tuple(axis for axis, chosen in zip(axes, choice, strict=True) if chosen)) for choice in choices
    )


# Henry et al. 2020 flip one axis or none and turn by one of four angles: 16 maps, of which four occur twice, because
# a turn by 180 degrees is both in-plane flips. Twelve forwards with weights give the same mean as their sixteen.
_HENRY = tuple(Symmetry((), k) for k in range(4)) + tuple(Symmetry((Z,), k) for k in range(4))
_HENRY += tuple(Symmetry((Y,), k, weight=2.0) for k in range(4))

MODES: dict[str, tuple[Symmetry, ...] | None] = {
    "none": (Symmetry(),),
    "mirror": None,  # nnU-Net's own: mean of the logits over the axes that the model was mirrored along in training
    "mirror8": _mirrors((Z, Y, X)),
    "mirror-y": _mirrors((Y,)),
    "inplane-mirror": _mirrors((Y, X)),
    "henry16": _HENRY,
    "dihedral16": tuple(
        Symmetry(z + y, k) for z in ((), (Z,)) for y in ((), (Y,)) for k in range(4)
    ),  # the whole group: 2 reflections of z times the 8 symmetries of the square
}
"""What `--tta` knows. All but `mirror` average probabilities, as the papers do."""


def average_probabilities(
    predict: Callable[[Tensor], Tensor], x: Tensor, symmetries: Sequence[Symmetry], exclusive: bool = False
) -> Tensor:
    """The logits of the weighted mean probability over the symmetries; (b, c, *s) -> (b, k, *s), fp32.

    The maps act on the last two or three axes. On slices (b, c, y, x) those that mirror z are left out, for there is
    no z. exclusive: see `probabilities_of`. One symmetry returns its logits untouched.
    """
    if x.ndim == 4:
        symmetries = [symmetry for symmetry in symmetries if Z not in symmetry.flips]
    if len(symmetries) == 1:
        return symmetries[0].undo(predict(symmetries[0].apply(x)))
    total = sum(symmetry.weight for symmetry in symmetries)
    mean: Tensor | None = None
    for symmetry in symmetries:
        probabilities = probabilities_of(predict(symmetry.apply(x)), exclusive)
        share = symmetry.undo(probabilities) * (symmetry.weight / total)
        mean = share if mean is None else mean.add_(share)
    assert mean is not None
    return logits_of(mean, exclusive)


def probabilities_of(logits: Tensor, exclusive: bool, axis: int = 1) -> Tensor:
    """The probability of each region by itself, or of labels along `axis` that exclude each other; fp32."""
    return torch.softmax(logits.float(), axis) if exclusive else torch.sigmoid(logits.float())


def logits_of(probabilities: Tensor, exclusive: bool = False) -> Tensor:
    """Logits that `probabilities_of` takes to these; of regions, they are limited to +-15.

    A probability that differs from 0 or 1 by less than fp32 resolves has none.
    """
    limited = probabilities.clamp(3e-7, 1 - 3e-7)
    return torch.log(limited) if exclusive else torch.logit(limited)
