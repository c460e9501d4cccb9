"""How label maps number their labels: as trained, as a challenge released them, or as another scheme has them."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nnunet_brats_ext.brats import LABEL_SCHEMES, remap
from nnunet_brats_ext.evaluation.boxes import find_box
from nnunet_brats_ext.evaluation.presets import Preset
from nnunet_brats_ext.storage.errors import UserError

TRAINED, RELEASED = "trained", "released"


class Numberings(NamedTuple):
    """The numbering of references and that of predictions: `trained`, `released`, or a name in `LABEL_SCHEMES`."""

    reference: str
    prediction: str

    @classmethod
    def parse(cls, labels: str | Sequence[str]) -> "Numberings":
        """From one name for both, or one for each: `released,trained`, a list of the two, or as results.json has it."""
        names = re.split(r",| and ", labels) if isinstance(labels, str) else list(labels)
        if not 1 <= len(names) <= 2:
            raise UserError(f"labels {labels!r}: one for all files, or one for references and one for predictions")
        return cls(names[0], names[-1])

    def __str__(self) -> str:
        return " and ".join(dict.fromkeys(self))

    def to_trained(self, preset: Preset) -> tuple[Mapping[int, int], Mapping[int, int]]:
        """Of references and of predictions, value in the files -> value as trained; `released` is the preset's own."""
        return to_trained(self.reference, preset), to_trained(self.prediction, preset)


def to_trained(name: str, preset: Preset) -> Mapping[int, int]:
    """Value in the files -> value as trained, by the name of a numbering."""
    if name == TRAINED:
        return {value: value for value in (0, *LABEL_SCHEMES[preset.scheme].names)}
    scheme = preset.scheme if name == RELEASED else name
    if scheme not in LABEL_SCHEMES:
        raise UserError(f"no numbering {name!r}; there are {TRAINED}, {RELEASED}, {', '.join(LABEL_SCHEMES)}")
    return LABEL_SCHEMES[scheme].released


def renumber(values: np.ndarray, to_trained: Mapping[int, int]) -> np.ndarray:
    """A label map as trained, uint8 (z, y, x), of integers or whole floats; a value without a label is an error."""
    if values.ndim != 3:
        raise UserError(f"a label map has three axes, this has {values.ndim}")
    labels, box = np.zeros(values.shape, np.uint8), find_box(values)
    labels[box] = _remap(np.ascontiguousarray(values[box]), to_trained)
    return labels


_UNKNOWN = 255


def _remap(values: np.ndarray, mapping: Mapping[int, int]) -> np.ndarray:
    """As `remap`, which says what is wrong; labels of a few values need no sorting."""
    if values.size and values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= max(mapping):
        table = np.full(max(mapping) + 1, _UNKNOWN, np.uint8)
        table[list(mapping)] = list(mapping.values())
        labels = table.take(values)
        if labels.max() != _UNKNOWN:
            return labels
    return remap(values, mapping)
