"""The patches of Lachinov et al. 2019 (https://arxiv.org/abs/2002.03688): around the tumour, with a wide margin."""

from collections.abc import Sequence

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunet_brats_ext.training.sampling import Case, CentredDraws

TRIES = 1000


class LabelBoxDraws(CentredDraws):
    """Draws centres uniformly in the box of all labels grown by a margin, https://arxiv.org/abs/2002.03688.

    A patch that fits into the case stays inside it, and the box is cut accordingly; so nearly every patch of a brain
    is possible, and those with tumour are more likely. Without labels all are equally likely. The box is that of the
    10,000 or more voxels per region that nnU-Net's preprocessing lists for every case, so no label map is read; it may
    miss single voxels, which is much less than the margin.
    """

    def __init__(self, cases: nnUNetBaseDataset, patch_size: Sequence[int], margin: int = 50):
        super().__init__(cases)
        self.patch_size, self.margin = np.array([1] * (3 - len(patch_size)) + list(patch_size)), margin

    def draw_centre(self, case: Case) -> Sequence[int] | None:
        data, _, _, properties = case
        noted = [voxels[:, 1:] for voxels in properties["class_locations"].values() if len(voxels)]
        if not noted:
            return None
        room = np.array(data.shape[1:]) - self.patch_size  # negative where nnU-Net pads, equally on both sides
        first = np.minimum(room // 2, 0) + self.patch_size // 2
        last = np.maximum(room, room // 2) + self.patch_size // 2
        low = np.min([voxels.min(0) for voxels in noted], axis=0) - self.margin
        high = np.max([voxels.max(0) for voxels in noted], axis=0) + self.margin
        return np.random.randint(np.clip(low, first, last), np.clip(high, first, last) + 1).tolist()


class PatchesWithTumour(LabelBoxDraws):
    """Draws patches anywhere that hold a labelled voxel: https://arxiv.org/abs/2002.03688, as the text has it.

    All such patches inside the case are equally likely. Labelled voxels are those that preprocessing lists, as above.
    After `TRIES` patches without one, the next may do without.
    """

    def draw_centre(self, case: Case) -> Sequence[int] | None:
        data, _, _, properties = case
        noted = [voxels[:, 1:] for voxels in properties["class_locations"].values() if len(voxels)]
        room = np.array(data.shape[1:]) - self.patch_size
        for _ in range(TRIES if noted else 1):
            start = np.where(room > 0, np.random.randint(np.maximum(room, 0) + 1), room // 2)
            inside = [((voxels >= start) & (voxels < start + self.patch_size)).all(1).any() for voxels in noted]
            if any(inside):
                break
        return (start + self.patch_size // 2).tolist()
