"""Training transforms of Lachinov et al. 2019, https://arxiv.org/abs/2002.03688."""

from collections.abc import Sequence
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from torch import Tensor


class ShiftChannels(ImageOnlyTransform):
    """Adds one number, uniform within +-largest, to each channel: Lachinov 2019, https://arxiv.org/abs/2002.03688.

    background: to the zeros outside the brain as well, as the release does.
    """

    def __init__(self, largest: float, background: bool = True):
        super().__init__()
        self.largest, self.background = largest, background

    def get_parameters(self, **data_dict) -> dict:
        return {"shifts": torch.empty(data_dict["image"].shape[0]).uniform_(-self.largest, self.largest)}

    def _apply_to_image(self, img: Tensor, **params) -> Tensor:
        shifted = img + params["shifts"].view(-1, *[1] * (img.ndim - 1))
        return shifted if self.background else torch.where(img == 0, img, shifted)


class ReplaceChannelsByNoise(ImageOnlyTransform):
    """Replaces channels by N(0, 1) noise at random: Lachinov 2018, https://arxiv.org/abs/1810.04008."""

    def __init__(self, p_per_channel: float):
        super().__init__()
        self.p_per_channel = p_per_channel

    def get_parameters(self, **data_dict) -> dict:
        return {"replaced": torch.rand(data_dict["image"].shape[0]) < self.p_per_channel}

    def _apply_to_image(self, img: Tensor, **params) -> Tensor:
        replaced = params["replaced"].view(-1, *[1] * (img.ndim - 1))
        return torch.where(replaced, torch.randn_like(img), img) if params["replaced"].any() else img


class RegionsBecomeSoft(BasicTransform):
    """Copies the regions of a label map into a regression target: Lachinov 2019, https://arxiv.org/abs/2002.03688.

    segmentation (1, *s) -> regression_target (r, *s), 0 or 1, which batchgeneratorsv2's transforms move with the image
    and interpolate linearly. Interpolated regions are sums of interpolated labels, as the authors have them.
    """

    def __init__(self, regions: Sequence[int | Sequence[int]]):
        super().__init__()
        self.regions = [torch.tensor([region] if isinstance(region, int) else list(region)) for region in regions]

    def apply(self, data_dict: dict, **params: Any) -> dict:
        labels = data_dict["segmentation"][0]
        return data_dict | {"regression_target": torch.stack([torch.isin(labels, r) for r in self.regions]).float()}
