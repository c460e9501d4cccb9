"""The slices of Hashemi et al. 2021, https://github.com/Nima-Hs/BraTS."""

from collections.abc import Sequence

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunet_brats_ext.training.sampling import Case, CentredDraws


class NonEmptySlices(CentredDraws):
    """Draws among the non-empty slices of a case, all equally likely, without preference for tumour.

    In an empty slice the segmentation is -1, nnU-Net's label of voxels that are zero in every image. A patch that
    covers the slice is centred on it, a smaller one is anywhere in it.

    by_images: images without a voxel of zero, whose background was normalised as well: in an empty slice all are flat.
    """

    def __init__(self, cases: nnUNetBaseDataset, patch_size: Sequence[int], by_images: bool = False):
        super().__init__(cases)
        self.patch_size, self.by_images = tuple(patch_size), by_images  # (y, x)

    def draw_centre(self, case: Case) -> Sequence[int] | None:
        data, segmentation = case[:2]  # lazily read, slice by slice
        for z in np.random.permutation(segmentation.shape[1]):
            filled = np.ptp(data[:, z], axis=(1, 2)) > 0 if self.by_images else segmentation[0, z] >= 0
            if filled.any():
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
