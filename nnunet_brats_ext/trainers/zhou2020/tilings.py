"""How OM-Net predicts a volume: Zhou et al. 2020, https://arxiv.org/abs/1906.01796."""

from itertools import product
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad

from nnunet_brats_ext.inference.tilings import Predict, Tiling, Volume, window

VOXELS_AT_ONCE = 16 * 16 * 32 * 32  # sixteen of the paper's tiles; larger ones come one by one


class CentralParts(Tiling):
    """Tiles side by side by their central part, which alone is kept: https://arxiv.org/abs/1505.04597.

    Scores of tasks are kept, and are grown and combined when those of the whole volume are there. The volume is padded
    with zeros by the margin that is thrown away, one voxel more at the high end if it is odd.
    """

    joins_scores = True

    def __call__(self, predict: Predict, volume: Volume) -> Tensor:
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
        at_once = max(1, VOXELS_AT_ONCE // prod(volume.patch_size))
        for first in range(0, len(starts), at_once):
            batch = starts[first : first + at_once]
            predicted = predict(torch.stack([padded[window(start, volume.patch_size)] for start in batch]))
            predicted = predicted[window(low, volume.kept, leading=2)].float().cpu()
            if logits is None:
                logits = predicted.new_empty(
                    predicted.shape[1], *(n * kept for n, kept in zip(counts, volume.kept, strict=True))
                )
            for start, tile in zip(batch, predicted, strict=True):
                logits[window(start, volume.kept)] = tile
        assert logits is not None
        return logits[window((0, 0, 0), sizes)]


CENTRAL_PARTS = CentralParts()
