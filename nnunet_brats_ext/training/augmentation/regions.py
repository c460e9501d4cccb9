"""Targets that transforms of space interpolate instead of deciding."""

from collections.abc import Sequence
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform


class RegionsBecomeSoft(BasicTransform):
    """Makes the regions of a label map a regression target: Lachinov et al. 2019, https://arxiv.org/abs/2002.03688.

    segmentation (1, *s) -> regression_target (r, *s), 0 or 1, which batchgeneratorsv2's transforms move with the image
    and interpolate linearly. Interpolating regions is summing interpolated labels, so the result is the authors'.
    """

    def __init__(self, regions: Sequence[int | Sequence[int]]):
        super().__init__()
        self.regions = [torch.tensor([region] if isinstance(region, int) else list(region)) for region in regions]

    def apply(self, data_dict: dict, **params: Any) -> dict:
        labels = data_dict["segmentation"][0]
        return data_dict | {"regression_target": torch.stack([torch.isin(labels, r) for r in self.regions]).float()}
