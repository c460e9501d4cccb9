"""How a preprocessed volume is cut into what a network sees at once, and put together again.

Each tiling is a function of a `Volume` and of `predict`, (b, c, *window) -> (b, k, *window) logits, and returns the
logits (k, z, y, x) of the whole volume in fp32. nnU-Net's sliding window is not here: it stays nnU-Net's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from torch import Tensor
from torch.nn.functional import pad

from nnunet_brats_ext.training.windows import strict_window, tumour_window

CERTAIN = 15.0  # the logit of what an earlier stage has decided


@dataclass(frozen=True)
class Volume:
    """A case as nnU-Net has preprocessed it, and what a tiling has to know of its model.

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

    The file has no name, and goes with the last reference or with the process.
    """

    def __init__(self, data: Tensor, folder: Path):
        self.shape, self.file = data.shape, TemporaryFile(dir=folder)  # noqa: SIM115
        data.contiguous().numpy().tofile(self.file)

    def __getitem__(self, index: Any) -> Tensor:
        # Mapped anew each time, because what a mapping has read counts as memory until it is closed.
        return torch.from_numpy(np.memmap(self.file, np.float32, "r", shape=tuple(self.shape))[index].copy())


Predict = Callable[[Tensor], Tensor]


def whole_brain(predict: Predict, volume: Volume) -> Tensor:
    """One pass over everything that nnU-Net's crop to the brain has left, as Henry 2020 and Lachinov 2019 predict.

    Padded with zeros at the high end of each axis to what the network can halve. A network of slices takes them one
    by one. Statistics of normalisation layers are then those of a whole brain, unlike in a window.
    """
    if len(volume.divisor) == 3:
        return predict_padded(predict, volume.data[None], volume.divisor)[0].float().cpu()
    slices = [predict_padded(predict, one[None], volume.divisor)[0].float().cpu() for one in volume.data.unbind(1)]
    return torch.stack(slices, dim=1)


def predict_padded(predict: Predict, x: Tensor, divisor: Sequence[int]) -> Tensor:
    """Padded with zeros at the high end of the last axes to multiples of the divisor, and cut back."""
    sizes = x.shape[-len(divisor) :]
    missing = [-size % step for size, step in zip(sizes, divisor, strict=True)]
    padding = [n for m in reversed(missing) for n in (0, m)]
    inside = (..., *(slice(size) for size in sizes))
    return predict(pad(x, padding) if any(missing) else x)[inside]


def slices(predict: Predict, volume: Volume, slices_at_once: Callable[[Callable[[int], object]], int]) -> Tensor:
    """Whole slices for a 2-D network, as many at once as memory allows, padded as nnU-Net pads a slice to its patch.

    slices_at_once: told how to predict so many slices, it says how many to. The logits are in half precision, as those
    of nnU-Net's sliding window; where a patch covers the slice, its weights divide out, and label maps are the same.
    """
    if any(size > extent for size, extent in zip(volume.data.shape[2:], volume.patch_size, strict=True)):
        raise ValueError(f"slices of {tuple(volume.data.shape[2:])} are larger than the patch {volume.patch_size}")

    def predict_rows(start: int, count: int) -> Tensor:
        rows = volume.data[:, start : start + count].movedim(1, 0)
        padded, (*_, y, x) = pad_nd_image(rows, volume.patch_size, "constant", {"value": 0}, True, None)
        return predict(padded)[..., y, x].movedim(0, 1)

    depth = volume.data.shape[1]
    # Filled, so that it is in memory before the rest of it is shared out.
    logits = torch.zeros((volume.outputs, *volume.data.shape[1:]), dtype=torch.half)
    count = slices_at_once(lambda number: predict_rows(0, number))
    for z in range(0, depth, count):
        logits[:, z : z + count] = predict_rows(z, count)
    return logits


def overlap(predict: Predict, volume: Volume, tiles_at_once: int = 16) -> Tensor:
    """Tiles side by side by their central part, which alone is kept: https://arxiv.org/abs/1505.04597, as OM-Net does.

    The volume is padded with zeros by the margin that is thrown away, one voxel more at the high end if it is odd.
    """
    sizes = tuple(volume.data.shape[1:])
    counts = [-(-size // kept) for size, kept in zip(sizes, volume.kept, strict=True)]
    low = [(tile - kept) // 2 for tile, kept in zip(volume.patch_size, volume.kept, strict=True)]
    high = [
        count * kept + tile - kept - margin - size
        for count, kept, tile, margin, size in zip(counts, volume.kept, volume.patch_size, low, sizes, strict=True)
    ]
    padded = pad(volume.data, [n for axis in (2, 1, 0) for n in (low[axis], high[axis])])
    starts = list(product(*(range(0, count * kept, kept) for count, kept in zip(counts, volume.kept, strict=True))))
    logits: Tensor | None = None
    for first in range(0, len(starts), tiles_at_once):
        batch = starts[first : first + tiles_at_once]
        predicted = predict(torch.stack([padded[_window(start, volume.patch_size)] for start in batch]))
        predicted = predicted[_window(low, volume.kept, leading=2)].float().cpu()
        if logits is None:
            logits = predicted.new_empty(
                predicted.shape[1], *(n * kept for n, kept in zip(counts, volume.kept, strict=True))
            )
        for start, tile in zip(batch, predicted, strict=True):
            logits[_window(start, volume.kept)] = tile
    assert logits is not None
    return logits[_window((0, 0, 0), sizes)]


def tumour(predict: Predict, volume: Volume) -> Tensor:
    """One window where the previous stage saw most tumour, pasted over its labels: Lyu & Shu 2020, on a full grid."""
    found = _previous_labels(volume).any(0).numpy()
    return _paste(predict, volume, tumour_window(found, volume.patch_size))


def lyu8(predict: Predict, volume: Volume) -> Tensor:
    """The same with the authors' eight windows, for parity with their release; BraTS's own grid only."""
    found = _previous_labels(volume).any(0).numpy()
    properties = volume.properties
    start = strict_window(found, properties["bbox_used_for_cropping"], properties["shape_before_cropping"])
    return _paste(predict, volume, start)


TILINGS: dict[str, Callable[[Predict, Volume], Tensor]] = {
    "brain": whole_brain,
    "overlap": overlap,
    "tumour": tumour,
    "lyu8": lyu8,
}


def _previous_labels(volume: Volume) -> Tensor:
    labels = volume.data[volume.image_channels :]
    if not len(labels):
        raise ValueError("windows on the tumour need the label maps of a previous stage, which this model does not see")
    return labels > 0


def _paste(predict: Predict, volume: Volume, start: Sequence[int]) -> Tensor:
    """The logits of one window over those that say what the previous stage has decided."""
    labels = _previous_labels(volume)
    decided = torch.stack([labels[list(region)].any(0) for region in volume.regions])
    if volume.outputs > len(decided):  # the background is a label of its own
        decided = torch.cat([~decided.any(0, keepdim=True), decided])
    logits = torch.where(decided, CERTAIN, -CERTAIN)
    sides = list(zip(start, volume.patch_size, volume.data.shape[1:], strict=True))
    inside = (slice(None), *(slice(max(s, 0), min(s + extent, size)) for s, extent, size in sides))
    padding = [(max(-s, 0), max(s + extent - size, 0)) for s, extent, size in sides]
    window = pad(volume.data[inside], [n for both in reversed(padding) for n in both])
    predicted = predict(window[None])[0].float().cpu()
    back = (
        slice(None),
        *(slice(low, extent - high) for (low, high), (_, extent, _) in zip(padding, sides, strict=True)),
    )
    logits[inside] = predicted[back]
    return logits


def _window(start: Sequence[int], extent: Sequence[int], leading: int = 1) -> tuple[slice, ...]:
    return (slice(None),) * leading + tuple(slice(s, s + n) for s, n in zip(start, extent, strict=True))
