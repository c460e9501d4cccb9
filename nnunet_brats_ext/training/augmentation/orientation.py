"""Flips and rotations by which a grid falls onto itself."""

from itertools import combinations

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from torch import Tensor


class SwapAndFlip(BasicTransform):
    """Swaps two random axes, then flips one: pipeline A of Henry et al. 2020, as their release has it.

    Nine maps with equal chances on a cube, https://arxiv.org/abs/2011.01045. Only axes of one length are swapped;
    where all differ, none is.
    """

    def get_parameters(self, **data_dict) -> dict:
        size = data_dict["image"].shape[1:]
        alike = [(i, j) for i, j in combinations(range(len(size)), 2) if size[i] == size[j]]
        swapped = alike[int(torch.randint(len(alike), ()))] if alike else (0, 0)
        return {"swapped": swapped, "flipped": int(torch.randint(len(size), ()))}

    def _apply_to_image(self, img: Tensor, **params) -> Tensor:
        i, j = params["swapped"]
        return img.transpose(i + 1, j + 1).flip(params["flipped"] + 1)

    def _apply_to_segmentation(self, segmentation: Tensor, **params) -> Tensor:
        return self._apply_to_image(segmentation, **params)

    def _apply_to_regr_target(self, regression_target: Tensor, **params) -> Tensor:
        return self._apply_to_image(regression_target, **params)
