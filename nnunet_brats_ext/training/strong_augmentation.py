"""The winners' changes to nnU-Net's training: more augmentation, and the Dice loss over the whole batch.

Isensee et al. 2020, https://arxiv.org/abs/2011.00848, which Luu & Park 2021 go on from. Numbers are those of nnU-Net's
first version, https://github.com/MIC-DKFZ/nnUNet, branch nnunetv1, trainers DA3 and DA4.
"""

from collections.abc import Sequence
from math import radians
from typing import ClassVar

import numpy as np
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import (
    BrightnessAdditiveTransform,
    MultiplicativeBrightnessTransform,
)
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn

from nnunet_brats_ext.training.seams import PlainTrainer


class StrongAugmentation(PlainTrainer):
    """Mixin: the augmentation of Isensee et al. 2020, https://arxiv.org/abs/2011.00848, for equal spacings."""

    rotation_degrees: ClassVar[float] = 30
    """The largest angle about each axis."""
    brightness_per_channel: ClassVar[float] = 1.0
    """The probability that a channel gets a shift, where a patch gets one."""
    elastic_probability: float = 0.3

    def augmentation(self) -> list[BasicTransform]:
        patch_size, angle = self.configuration_manager.patch_size, radians(self.rotation_degrees)
        spatial = SpatialTransform(
            patch_size, 0, random_crop=False, p_rotation=0.3, rotation=(-angle, angle), p_scaling=0.3,
            scaling=(0.65, 1.6), p_synchronize_scaling_across_axes=0.7, p_elastic_deform=self.elastic_probability,
            elastic_deform_scale=(0, 0.25), elastic_deform_magnitude=deformation_in_voxels,
            p_synchronize_def_scale_across_axes=1, border_mode_seg="constant", padding_value_seg=-1,
        )  # fmt: skip
        brightness = BrightnessAdditiveTransform(
            0, 0.2, synchronize_channels=False, p_per_channel=self.brightness_per_channel
        )
        transforms = [
            spatial,
            RandomTransform(GaussianNoiseTransform((0, 0.1), synchronize_channels=True), 0.15),
            RandomTransform(
                GaussianBlurTransform((0.5, 1.5), synchronize_channels=False, synchronize_axes=True, p_per_channel=0.5),
                0.2,
            ),
            RandomTransform(MultiplicativeBrightnessTransform((0.7, 1.3), synchronize_channels=False), 0.15),
            RandomTransform(
                ContrastTransform(BGContrast((0.65, 1.5)), preserve_range=True, synchronize_channels=False), 0.15
            ),
            RandomTransform(
                SimulateLowResolutionTransform(
                    (0.5, 1), synchronize_channels=False, synchronize_axes=True, ignore_axes=None, p_per_channel=0.5
                ),
                0.25,
            ),
            RandomTransform(_gamma(inverted=True), 0.15),
            RandomTransform(brightness, 0.3),
            RandomTransform(_gamma(inverted=False), 0.3),
            MirrorTransform(allowed_axes=tuple(range(len(patch_size)))),
        ]
        masked = [i for i, inside in enumerate(self.configuration_manager.use_mask_for_norm) if inside]
        return [*transforms, MaskImageTransform(masked, 0, 0)] if masked else transforms

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        rotation, dummy_2d, patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        angle = radians(self.rotation_degrees)
        return rotation, dummy_2d, get_patch_size(patch_size, angle, angle, angle, (0.7, 1.4)), mirror_axes


def deformation_in_voxels(*, patch_size: Sequence[int], dim: int, deformation_scale: float, **_) -> float:
    """The largest shift of an elastic deformation, between an eighth and a half of the width of its waves."""
    return np.random.uniform(1 / 8, 1 / 2) * deformation_scale * patch_size[dim]


def _gamma(inverted: bool) -> GammaTransform:
    return GammaTransform(
        BGContrast((0.5, 1.6)), float(inverted), synchronize_channels=False, p_per_channel=1, p_retain_stats=1
    )


class BatchDice(PlainTrainer):
    """Mixin: nnU-Net's Dice and cross-entropy of regions, with the Dice over all samples of a batch together.

    Isensee et al. 2020, https://arxiv.org/abs/2011.00848.
    """

    def region_loss(self) -> nn.Module:
        dice = {"batch_dice": True, "do_bg": True, "smooth": 1e-5, "ddp": self.is_ddp}
        return DC_and_BCE_loss({}, dice, dice_class=MemoryEfficientSoftDiceLoss)
