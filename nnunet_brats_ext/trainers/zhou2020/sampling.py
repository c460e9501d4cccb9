"""The patches that the tasks of OM-Net train on: Zhou et al. 2020, https://arxiv.org/abs/1906.01796.

A batch has blocks of equal size: those of task 0 are anywhere in the brain, those of task 1 within five voxels of
tumour, those of task 2 inside the tumour core. No draw reads a whole volume: a random voxel is accepted or rejected by
the labels around it.
"""

from collections.abc import Callable, Sequence

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunet_brats_ext.architectures.omnet.fusion import DILATION
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.training.sampling import Case, CaseView, centred

PLACES, CASES = 1000, 20  # tries before a draw takes something simpler
Region = int | tuple[int, ...]


def voxel_in_brain(case: Case) -> np.ndarray | None:
    """A voxel inside the brain (segmentation >= 0), all of them equally likely; None if none was hit."""
    segmentation = case[1]
    for _ in range(PLACES):
        voxel = np.random.randint(segmentation.shape[1:])
        index = (0, *voxel)
        if np.asarray(segmentation[index]) >= 0:
            return voxel
    return None


def voxel_near(case: Case, region: Region, distance: int = DILATION) -> np.ndarray | None:
    """A voxel of the region dilated by a cube of 2 distance + 1, all equally likely; None without the region.

    Only within the box of the region's `class_locations`, of which nnU-Net keeps 10,000 or more per case.
    """
    segmentation, locations = case[1], locations_of(case, region)
    if not len(locations):
        return None
    low, high = locations.min(0) - distance, locations.max(0) + distance + 1
    low, high = np.maximum(low, 0), np.minimum(high, segmentation.shape[1:])
    labels = np.atleast_1d(region)
    for _ in range(PLACES):
        voxel = np.random.randint(low, high)
        around = (0, *(slice(max(v - distance, 0), v + distance + 1) for v in voxel))
        if np.isin(segmentation[around], labels).any():
            return voxel
    return locations[np.random.randint(len(locations))]


def voxel_inside(case: Case, region: Region) -> np.ndarray | None:
    """A voxel of the region, of those that nnU-Net keeps in `class_locations`; None without the region."""
    locations = locations_of(case, region)
    return locations[np.random.randint(len(locations))] if len(locations) else None


def locations_of(case: Case, region: Region) -> np.ndarray:
    """The voxels (n, 3) of a region that preprocessing has listed; a region it did not know is an error."""
    listed = case[3]["class_locations"]
    if region not in listed:
        raise UserError(f"preprocessed for the regions {list(listed)}, not {region}: run nnUNetv2_preprocess again")
    return np.asarray(listed[region]).reshape(-1, 4)[:, 1:]


class TaskDraws(CaseView):
    """A view that draws each row of a batch for its task; needs `oversample_foreground_percent = 1.0` in the trainer.

    A case without the region that a task needs is replaced by another one; after `CASES` of them the row is drawn
    anywhere in the brain. Cases are cropped around the centre, because nnU-Net's loader would move patches away from
    the low border of a volume.

    regions: WT, TC and ET, as the label manager has them. patch_size: the largest that the loader will ask for.
    """

    def __init__(
        self,
        cases: nnUNetBaseDataset,
        regions: Sequence[Region],
        tasks: int,
        rows_per_task: int,
        patch_size: Sequence[int],
    ):
        super().__init__(cases)
        self.regions = [tuple(r) if isinstance(r, list | tuple) else r for r in regions]
        self.tasks, self.rows_per_task, self.row = tasks, rows_per_task, 0
        self.patch_size = (*[1] * (3 - len(patch_size)), *(int(length) for length in patch_size))

    def load_case(self, identifier: str) -> Case:
        task = self.row // self.rows_per_task
        self.row = (self.row + 1) % (self.rows_per_task * self.tasks)
        case, centre = self.draw(identifier, task)
        return self.crop(case, centre)

    def draw(self, identifier: str, task: int) -> tuple[Case, np.ndarray]:
        """A case, this one if possible, and the voxel of it that a patch for the task is centred on."""
        wt, tc, *_ = self.regions
        place: Callable[[Case], np.ndarray | None] = (
            voxel_in_brain,
            lambda case: voxel_near(case, wt),
            lambda case: voxel_inside(case, tc),
        )[task]
        for _ in range(CASES):
            case = self.cases.load_case(identifier)
            if (centre := place(case)) is not None:
                return case, centre
            identifier = self.identifiers[np.random.randint(len(self.identifiers))]
        centre = voxel_in_brain(case)
        return case, np.array(case[1].shape[1:]) // 2 if centre is None else centre

    def crop(self, case: Case, centre: np.ndarray) -> Case:
        data, segmentation, previous, properties = case
        half = [length // 2 for length in self.patch_size]
        box = [[int(c) - h, int(c) - h + n] for c, h, n in zip(centre, half, self.patch_size, strict=True)]
        patch = crop_and_pad_nd(data, box, 0), crop_and_pad_nd(segmentation, box, -1), previous, properties
        return centred(patch, half)
