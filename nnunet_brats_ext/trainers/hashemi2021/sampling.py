"""Which slices a 2-D training sees."""

from collections.abc import Sequence

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunet_brats_ext.training.sampling import Case, CentredDraws


class NonEmptySlices(CentredDraws):
    """Draws among the slices of a case that hold anything, each as likely as the others: no preference for tumour.

    nnU-Net marks what was zero in every image by segmentation -1, at whatever value normalisation left it; a slice
    wholly so is drawn again. A patch that covers the slice lies around it, a smaller one anywhere in it.
    """

    def __init__(self, cases: nnUNetBaseDataset, patch_size: Sequence[int]):
        super().__init__(cases)
        self.patch_size = tuple(patch_size)  # (y, x)

    def draw_centre(self, case: Case) -> Sequence[int] | None:
        segmentation = case[1]  # lazily read, slice by slice
        for z in np.random.permutation(segmentation.shape[1]):
            if (segmentation[0, z] >= 0).any():
                in_plane = zip(segmentation.shape[2:], self.patch_size, strict=True)
                return (z, *(random_start(length, extent) + extent // 2 for length, extent in in_plane))
        return None


def random_start(length: int, extent: int) -> int:
    """Where a patch of `extent` starts on an axis of `length`: anywhere inside, or around it, as nnU-Net pads."""
    room = length - extent
    return np.random.randint(room + 1) if room > 0 else room // 2


def count_slices(cases: nnUNetBaseDataset) -> int:
    """How many slices the preprocessed cases have together; reads no image."""
    return sum(cases.load_case(identifier)[0].shape[1] for identifier in cases.identifiers)
