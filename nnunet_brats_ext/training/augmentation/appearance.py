"""What may happen to the channels of an image: noise, shifts, the loss of one. Images (c, *s) are normalised."""

import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from torch import Tensor


class RelativeNoise(ImageOnlyTransform):
    """Adds Gaussian noise to every voxel, `share` of the deviation of its channel's non-zero voxels wide.

    Pipeline A of Henry et al. 2020, https://arxiv.org/abs/2011.01045. A channel without two such voxels is left alone.
    """

    def __init__(self, share: float = 0.1):
        super().__init__()
        self.share = share

    def _apply_to_image(self, img: Tensor, **params) -> Tensor:
        for channel in img:
            inside = channel[channel != 0]
            if inside.numel() > 1:
                channel += self.share * inside.std() * torch.randn_like(channel)
        return img


class DropChannel(ImageOnlyTransform):
    """Sets one channel, any with equal chance, to zero: Henry et al. 2020, https://arxiv.org/abs/2011.01045."""

    def _apply_to_image(self, img: Tensor, **params) -> Tensor:
        img[torch.randint(len(img), ())] = 0
        return img


class ShiftBrain(ImageOnlyTransform):
    """Adds one number, uniform in [-limit, limit], to all voxels inside the brain, in all channels.

    Pipeline B of Henry et al. 2020, https://arxiv.org/abs/2011.01045. nnU-Net marks the brain by segmentation >= 0.
    """

    def __init__(self, limit: float = 0.1):
        super().__init__()
        self.limit = limit

    def get_parameters(self, **data_dict) -> dict:
        shift = torch.empty(()).uniform_(-self.limit, self.limit)
        return {"shift": shift * (data_dict["segmentation"][0] >= 0)}

    def _apply_to_image(self, img: Tensor, **params) -> Tensor:
        return img + params["shift"]
