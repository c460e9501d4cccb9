"""Transforms that treat each channel of an image (c, *s) as a whole, background included."""

import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from torch import Tensor


class ShiftChannels(ImageOnlyTransform):
    """Adds one number, uniform within +-largest, to each channel: Lachinov 2019, https://arxiv.org/abs/2002.03688."""

    def __init__(self, largest: float):
        super().__init__()
        self.largest = largest

    def get_parameters(self, **data_dict) -> dict:
        return {"shifts": torch.empty(data_dict["image"].shape[0]).uniform_(-self.largest, self.largest)}

    def _apply_to_image(self, img: Tensor, **params) -> Tensor:
        return img + params["shifts"].view(-1, *[1] * (img.ndim - 1))


class ReplaceChannelsByNoise(ImageOnlyTransform):
    """Makes a channel useless, N(0, 1) everywhere, now and then: Lachinov 2018, https://arxiv.org/abs/1810.04008."""

    def __init__(self, p_per_channel: float):
        super().__init__()
        self.p_per_channel = p_per_channel

    def get_parameters(self, **data_dict) -> dict:
        return {"replaced": torch.rand(data_dict["image"].shape[0]) < self.p_per_channel}

    def _apply_to_image(self, img: Tensor, **params) -> Tensor:
        replaced = params["replaced"].view(-1, *[1] * (img.ndim - 1))
        return torch.where(replaced, torch.randn_like(img), img) if params["replaced"].any() else img
