"""The tilings and the test-time symmetries that a prediction can name. Loads no torch.

What only one paper has lies with the paper, which names it in `paper.py`.
"""

import importlib
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from nnunet_brats_ext import papers
from nnunet_brats_ext.papers import Symmetry
from nnunet_brats_ext.storage.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from nnunet_brats_ext.inference.tilings import Tiling

FROM_TRAINER = "paper"  # what the paper of a model's trainer does
SLIDING, BRAIN = "sliding", "brain"
SHARED_TILINGS: dict[str, str | None] = {SLIDING: None, BRAIN: "tilings:WHOLE_BRAIN"}
"""The tilings that no single paper owns, as `module:NAME` of this package; None is nnU-Net's sliding window."""

Z, Y, X = -3, -2, -1
MIRROR, NONE = "mirror", "none"


def mirrors_along(axes: Sequence[int]) -> tuple[Symmetry, ...]:
    """Every choice of these axes, mirrored; the image itself comes first."""
    choices = product((False, True), repeat=len(axes))
    return tuple(
        Symmetry(tuple(axis for axis, chosen in zip(axes, choice, strict=True) if chosen)) for choice in choices
    )


SHARED_SYMMETRIES: dict[str, tuple[Symmetry, ...] | None] = {
    NONE: (Symmetry(),),
    MIRROR: None,
    "mirror8": mirrors_along((Z, Y, X)),
    # the whole group: 2 reflections of z times the 8 symmetries of the square
    "dihedral16": tuple(Symmetry(z + y, k) for z in ((), (Z,)) for y in ((), (Y,)) for k in range(4)),
}
"""The symmetries that no single paper owns.

None is nnU-Net's own: the mean of the logits over the axes that the model was mirrored along in training. All others
average probabilities, as the papers do.
"""


def tiling_names() -> list[str]:
    return [*SHARED_TILINGS, *papers.tilings()]


def symmetry_names() -> list[str]:
    return [*SHARED_SYMMETRIES, *papers.symmetries()]


def find_tiling(name: str) -> "Tiling | None":
    """A tiling by its name (which loads torch), None for nnU-Net's sliding window; an unknown name is a UserError."""
    if name in SHARED_TILINGS:
        if (place := SHARED_TILINGS[name]) is None:
            return None
        module, _, attribute = place.partition(":")
        return getattr(importlib.import_module(f"nnunet_brats_ext.inference.{module}"), attribute)
    own = papers.tilings()
    if name not in own:
        names = tiling_names()
        raise UserError(f"--tiling {name}: there are {', '.join(names)}{did_you_mean(name, names)}")
    paper, place = own[name]
    return paper.load(place)


def find_symmetries(name: str) -> tuple[Symmetry, ...] | None:
    """Test-time symmetries by name, None for nnU-Net's own mirroring; an unknown name is a UserError."""
    every = {**papers.symmetries(), **SHARED_SYMMETRIES}
    if name not in every:
        raise UserError(f"--tta {name}: there are {', '.join(symmetry_names())}{did_you_mean(name, every)}")
    return every[name]
