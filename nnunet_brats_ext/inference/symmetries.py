"""Test-time augmentation: the symmetries of the image that a prediction is averaged over."""

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from nnunet_brats_ext import papers
from nnunet_brats_ext.papers import Symmetry
from nnunet_brats_ext.storage.errors import UserError

Z, Y, X = -3, -2, -1


def apply(symmetry: Symmetry, x: Tensor) -> Tensor:
    """The image of a tensor under a symmetry of its last axes."""
    return torch.rot90(torch.flip(x, symmetry.flips), symmetry.quarter_turns, (Y, X))


def undo(symmetry: Symmetry, x: Tensor) -> Tensor:
    """The inverse of `apply`."""
    return torch.flip(torch.rot90(x, -symmetry.quarter_turns, (Y, X)), symmetry.flips)


def _mirrors(axes: Sequence[int]) -> tuple[Symmetry, ...]:
    choices = product((False, True), repeat=len(axes))
    return tuple(
        Symmetry(tuple(axis for axis, chosen in zip(axes, choice, strict=True) if chosen)) for choice in choices
    )


NNUNET, NONE = "mirror", "none"
SHARED: dict[str, tuple[Symmetry, ...] | None] = {
    NONE: (Symmetry(),),
    NNUNET: None,  # mean of the logits over the axes that the model was mirrored along in training
    "mirror8": _mirrors((Z, Y, X)),
    "dihedral16": tuple(
        Symmetry(z + y, k) for z in ((), (Z,)) for y in ((), (Y,)) for k in range(4)
    ),  # the whole group: 2 reflections of z times the 8 symmetries of the square
}
"""What no single paper owns. All but nnU-Net's average probabilities, as the papers do."""


def symmetry_names() -> list[str]:
    return [*SHARED, *papers.symmetries()]


def find_symmetries(name: str) -> tuple[Symmetry, ...] | None:
    """Test-time symmetries by name, None for nnU-Net's own mirroring; an unknown name is an error that lists all."""
    every = {**SHARED, **papers.symmetries()}
    if name not in every:
        raise UserError(f"--tta {name}: there are {', '.join(every)}{papers.did_you_mean(name, every)}")
    return every[name]


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

    A probability that differs from 0 or 1 by less than fp32 resolves has none.
    """
    limited = probabilities.clamp(3e-7, 1 - 3e-7)
    return torch.log(limited) if exclusive else torch.logit(limited)
