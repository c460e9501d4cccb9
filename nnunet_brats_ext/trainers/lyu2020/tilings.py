"""How stage 2 of Lyu & Shu 2020 (https://arxiv.org/abs/2011.02881) predicts: a window over the labels of stage 1."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from nnunet_brats_ext.inference.tilings import CERTAIN, Predict, Tiling, Volume
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.trainers.lyu2020.windows import strict_window, tumour_window


class TumourWindow(Tiling):
    """One window where the previous stage saw most tumour, pasted over its labels."""

    needs_previous_stage = True

    def __call__(self, predict: Predict, volume: Volume) -> Tensor:
        return paste(predict, volume, self.start(previous_labels(volume).any(0).numpy(), volume))

    def start(self, tumour: np.ndarray, volume: Volume) -> tuple[int, ...]:
        return tumour_window(tumour, volume.patch_size)


class EightWindows(TumourWindow):
    """The same with the authors' eight windows, for parity with their release; BraTS's own grid only."""

    def start(self, tumour: np.ndarray, volume: Volume) -> tuple[int, ...]:
        properties = volume.properties
        if not properties:
            raise UserError(
                "--tiling lyu8 needs nnU-Net's properties of the case, which predict_single_npy_array and "
                "predict_from_files_sequential do not pass on; use predict_from_files"
            )
        return strict_window(tumour, properties["bbox_used_for_cropping"], properties["shape_before_cropping"])


def previous_labels(volume: Volume) -> Tensor:
    labels = volume.data[volume.image_channels :]
    if not len(labels):
        raise UserError(
            "windows on the tumour need the label maps of a previous stage, but this model sees only "
            f"{len(volume.data)} images; predict with --tiling sliding"
        )
    return labels > 0


def paste(predict: Predict, volume: Volume, start: Sequence[int]) -> Tensor:
    """The logits of one window over those that say what the previous stage has decided.

    Further maps, which a network may give behind its logits, are 0 outside the window.
    """
    labels = previous_labels(volume)
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
    more = len(predicted) - len(logits)
    logits = torch.cat([logits, logits.new_zeros(more, *logits.shape[1:])]) if more else logits
    logits[inside] = predicted[back]
    return logits


TUMOUR_WINDOW, EIGHT_WINDOWS = TumourWindow(), EightWindows()
