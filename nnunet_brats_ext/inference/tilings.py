"""How a preprocessed volume is cut into the parts that a network sees at once, and put together again.

nnU-Net's sliding window stays nnU-Net's, so it is no `Tiling` here. A tiling that only one paper has lies with the
paper, which names it in `paper.py`; the names of all are in `choices`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from nnunet_brats_ext.storage.errors import UserError

CERTAIN = 15.0  # the logit of what is certain without a look


@dataclass(frozen=True)
class Volume:
    """A case as nnU-Net has preprocessed it, and what a tiling needs to know about its model.

    data: (c, z, y, x), the images first, then the one-hot labels of a previous stage. properties: nnU-Net's, of the
    case. divisor: what sizes have to be multiples of, per axis of the patch. regions: the labels of each region, as
    positions among the one-hot labels. outputs: of the network, one more where labels exclude each other. kept: the
    central part of a tile that `overlap` keeps.
    """

    data: Tensor
    properties: dict[str, Any]
    patch_size: tuple[int, ...]
    divisor: tuple[int, ...]
    image_channels: int
    regions: tuple[tuple[int, ...], ...]
    outputs: int
    kept: tuple[int, ...]


class StoredVolume:
    """A volume (c, z, y, x) in fp32 that lies in a file of `folder`; indexed like a tensor, it reads what is asked for.

    The file has no name; it is deleted with the last reference or with the process.
    """

    def __init__(self, data: Tensor, folder: Path):
        self.shape, self.file = data.shape, TemporaryFile(dir=folder)  # noqa: SIM115
        data.contiguous().numpy().tofile(self.file)

    def __getitem__(self, index: Any) -> Tensor:
        # Mapped anew each time, because what a mapping has read counts as memory until it is closed.
        return torch.from_numpy(np.memmap(self.file, np.float32, "r", shape=tuple(self.shape))[index].copy())


Predict = Callable[[Tensor], Tensor]
"""(b, c, *window) -> (b, k, *window) logits."""


class Tiling(ABC):
    """One way to predict a whole volume. Its class attributes are all that a predictor knows about it."""

    needs_previous_stage: ClassVar[bool] = False
    """Whether it looks at the labels of a previous stage; a model without one is predicted by sliding windows."""

    joins_scores: ClassVar[bool] = False
    """Whether it puts together the scores of a `FusingNetwork`, which are fused afterwards, in the whole volume."""

    def seen_at_once(self, volume: Volume) -> tuple[int, ...] | None:
        """The shape of what the network sees at once, where that may exceed memory; sliding windows take over then."""
        return None

    @abstractmethod
    def __call__(self, predict: Predict, volume: Volume) -> Tensor:
        """The logits (k, z, y, x) of the whole volume in fp32."""


class WholeBrain(Tiling):
    """One pass over the whole volume after nnU-Net's crop to the brain, as Henry 2020 and Lachinov 2019 predict.

    Padded with zeros at the high end of each axis to what the network can halve. A network of slices takes them one
    by one. Statistics of normalisation layers are then those of a whole brain, unlike in a window.
    """

    def seen_at_once(self, volume: Volume) -> tuple[int, ...]:
        channels, *sizes = volume.data.shape
        lengths = sizes[-len(volume.divisor) :]
        return (1, channels, *(n + -n % step for n, step in zip(lengths, volume.divisor, strict=True)))

    def __call__(self, predict: Predict, volume: Volume) -> Tensor:
        if len(volume.divisor) == 3:
            return predict_padded(predict, volume.data[None], volume.divisor)[0].float().cpu()
        slices = [predict_padded(predict, one[None], volume.divisor)[0].float().cpu() for one in volume.data.unbind(1)]
        return torch.stack(slices, dim=1)


WHOLE_BRAIN = WholeBrain()


def predict_padded(predict: Predict, x: Tensor, divisor: Sequence[int]) -> Tensor:
    """Padded with zeros at the high end of the last axes to multiples of the divisor, and cut back."""
    sizes = x.shape[-len(divisor) :]
    missing = [-size % step for size, step in zip(sizes, divisor, strict=True)]
    padding = [n for m in reversed(missing) for n in (0, m)]
    inside = (..., *(slice(size) for size in sizes))
    return predict(pad(x, padding) if any(missing) else x)[inside]


def predict_slices(
    predict: Predict, volume: Volume, slices_at_once: Callable[[Callable[[int], object]], int]
) -> Tensor:
    """Whole slices for a 2-D network, as many at once as memory allows, padded as nnU-Net pads a slice to its patch.

    slices_at_once: given a function that predicts a number of slices, returns how many to predict at once. The logits
    are in half precision, as those of nnU-Net's sliding window; where a patch covers the slice, its weights divide
    out, and label maps are the same.
    """
    from acvl_utils.cropping_and_padding.padding import pad_nd_image  # here, so that tilings load without nnU-Net

    if any(size > extent for size, extent in zip(volume.data.shape[2:], volume.patch_size, strict=True)):
        raise UserError(
            f"slices of {tuple(volume.data.shape[2:])} are larger than the patch {volume.patch_size}; "
            "predict with --tiling sliding"
        )

    def predict_rows(start: int, count: int) -> Tensor:
        rows = volume.data[:, start : start + count].movedim(1, 0)
        padded, (*_, y, x) = pad_nd_image(rows, volume.patch_size, "constant", {"value": 0}, True, None)
        return predict(padded)[..., y, x].movedim(0, 1)

    depth = volume.data.shape[1]
    # Filled with zeros, so that its memory is in use before `slices_at_once` measures what is left.
    logits = torch.zeros((volume.outputs, *volume.data.shape[1:]), dtype=torch.half)
    count = slices_at_once(lambda number: predict_rows(0, number))
    for z in range(0, depth, count):
        logits[:, z : z + count] = predict_rows(z, count)
    return logits


def window(start: Sequence[int], extent: Sequence[int], leading: int = 1) -> tuple[slice, ...]:
    """The index of a window behind so many leading axes."""
    return (slice(None),) * leading + tuple(slice(s, s + n) for s, n in zip(start, extent, strict=True))
