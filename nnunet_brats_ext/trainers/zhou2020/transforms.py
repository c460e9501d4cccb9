"""The targets of OM-Net's tasks: Zhou et al. 2020, https://arxiv.org/abs/1906.01796."""

from collections.abc import Sequence

import torch
from batchgeneratorsv2.transforms.base.basic_transform import SegOnlyTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from torch import Tensor

from nnunet_brats_ext.architectures.omnet.tasks import OUTSIDE

Region = int | tuple[int, ...]


class TaskTargets(SegOnlyTransform):
    """Segmentation (1, *s), negative outside the brain -> [regions (3, *s), labels (1, *s)], for OM-Net's loss.

    regions: WT, TC and ET as booleans, for nnU-Net's Dice. labels: those as trained, and `OUTSIDE`. nnU-Net's own
    pipelines set what is outside to background; this transform replaces all that they do after augmentation.
    """

    def __init__(self, regions: Sequence[Region]):
        super().__init__()
        self.to_regions = ConvertSegmentationToRegionsTransform(list(regions))

    def _apply_to_segmentation(self, segmentation: Tensor, **params) -> list[Tensor]:
        regions = self.to_regions(segmentation=segmentation)["segmentation"]
        labels = regions.sum(0, keepdim=True, dtype=torch.uint8)
        return [regions, labels.masked_fill_(segmentation[:1] < 0, OUTSIDE)]
