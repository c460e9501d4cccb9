"""Training transforms of Lyu & Shu 2020 (https://arxiv.org/abs/2011.02881) that batchgeneratorsv2 does not have.

Images (c, *s) are normalised, and 0 outside the brain.
"""

from collections.abc import Sequence

import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from torch import Tensor


class ShiftIntensity(ImageOnlyTransform):
    """Adds to each channel a random share of its own deviation: Myronenko 2018, https://arxiv.org/abs/1810.11654.

    Deviation and shift are those of the voxels inside the brain, where nnU-Net's segmentation is >= 0.
    """

    def __init__(self, largest_share: float = 0.1):
        super().__init__()
        self.largest_share = largest_share

    def get_parameters(self, **data_dict) -> dict:
        channels = data_dict["image"].shape[0]
        return {
            "shares": torch.empty(channels).uniform_(-self.largest_share, self.largest_share),
            "brain": data_dict["segmentation"][0] >= 0,
        }

    def _apply_to_image(self, img: Tensor, **params) -> Tensor:
        brain = params["brain"]
        if brain.sum() < 2:  # a patch outside the head
            return img
        deviations = img[:, brain].std(dim=1, correction=0)
        return img + (params["shares"] * deviations).view(-1, *[1] * brain.ndim) * brain


class OfChannels(ImageOnlyTransform):
    """A transform of some channels alone: the release of Lyu & Shu 2020 leaves FLAIR as it is."""

    def __init__(self, transform: ImageOnlyTransform, channels: Sequence[int]):
        super().__init__()
        self.transform, self.channels = transform, list(channels)

    def get_parameters(self, **data_dict) -> dict:
        return self.transform.get_parameters(**data_dict | {"image": data_dict["image"][self.channels]})

    def _apply_to_image(self, img: Tensor, **params) -> Tensor:
        img[self.channels] = self.transform._apply_to_image(img[self.channels], **params)
        return img
