"""Training transforms of Henry et al. 2020, https://arxiv.org/abs/2011.01045. Images (c, *s) are normalised."""

from itertools import combinations

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from torch import Tensor


class RelativeNoise(ImageOnlyTransform):
    """Adds Gaussian noise to every voxel; its deviation is `share` of that of the channel's non-zero voxels.

    Pipeline A of Henry et al. 2020, https://arxiv.org/abs/2011.01045. A channel without two such voxels is not changed.
    of_all: the deviation is that of all voxels, as the text has it.
    """

    def __init__(self, share: float = 0.1, of_all: bool = False):
        super().__init__()
        self.share, self.of_all = share, of_all

    def _apply_to_image(self, img: Tensor, **params) -> Tensor:
        for channel in img:
            inside = channel if self.of_all else channel[channel != 0]
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

    Pipeline B of Henry et al. 2020, https://arxiv.org/abs/2011.01045. In the brain, nnU-Net's segmentation is >= 0.
    """

    def __init__(self, limit: float = 0.1):
        super().__init__()
        self.limit = limit

    def get_parameters(self, **data_dict) -> dict:
        shift = torch.empty(()).uniform_(-self.limit, self.limit)
        return {"shift": shift * (data_dict["segmentation"][0] >= 0)}

    def _apply_to_image(self, img: Tensor, **params) -> Tensor:
        return img + params["shift"]


class SwapAndFlip(BasicTransform):
    """Swaps two random axes, then flips one: pipeline A of Henry et al. 2020, as their release has it.

    Nine maps with equal chances on a cube, https://arxiv.org/abs/2011.01045. Only axes of one length are swapped;
    where all differ, none is.
    """

    def get_parameters(self, **data_dict) -> dict:
        size = data_dict["image"].shape[1:]
        equal = [(i, j) for i, j in combinations(range(len(size)), 2) if size[i] == size[j]]
        swapped = equal[int(torch.randint(len(equal), ()))] if equal else (0, 0)
        return {"swapped": swapped, "flipped": int(torch.randint(len(size), ()))}

    def _apply_to_image(self, img: Tensor, **params) -> Tensor:
        i, j = params["swapped"]
        return img.transpose(i + 1, j + 1).flip(params["flipped"] + 1)

    def _apply_to_segmentation(self, segmentation: Tensor, **params) -> Tensor:
        return self._apply_to_image(segmentation, **params)

    def _apply_to_regr_target(self, regression_target: Tensor, **params) -> Tensor:
        return self._apply_to_image(regression_target, **params)
