"""What Auto3DSeg does to training images that batchgeneratorsv2 has no transform for."""

import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from torch import Tensor


class ShiftImage(ImageOnlyTransform):
    """Adds one number, uniform in [-limit, limit], to every voxel of all channels: MONAI's RandShiftIntensity."""

    def __init__(self, limit: float = 0.1):
        super().__init__()
        self.limit = limit

    def _apply_to_image(self, img: Tensor, **params) -> Tensor:
        return img + torch.empty(()).uniform_(-self.limit, self.limit)
