"""Myronenko et al. 2023, Auto3DSeg in BraTS 2023: https://arxiv.org/abs/2510.25058.

Settings are those of Auto3DSeg's template for SegResNet, https://github.com/Project-MONAI/research-contributions.
"""

from math import ceil

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import nn

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.trainers.myronenko2023.loss import SupervisedDiceAndCrossEntropy
from nnunet_brats_ext.trainers.myronenko2023.network import SegResNet
from nnunet_brats_ext.trainers.myronenko2023.transforms import ShiftImage
from nnunet_brats_ext.training.base import BraTSTrainer
from nnunet_brats_ext.training.optimizers import EpochSchedule, cosine
from nnunet_brats_ext.training.planned_network import PlannedNetwork

STAGES = 5
IMAGES, FEWEST, MOST = 80_000, 300, 1250  # epochs: so many images all in all, within these bounds
WARM_UP = 3  # epochs, from a tenth of the rate


class BraTSMyronenko2023Trainer(BraTSTrainer):
    """Auto3DSeg's SegResNet: Myronenko et al. 2023, https://arxiv.org/abs/2510.25058. Needs MONAI.

    An epoch shows a patch of every case, around a voxel of WT, TC or ET in turn by chance.
    """

    architecture = SegResNet
    hyperparameters = dict(
        initial_lr=2e-4,
        weight_decay=1e-5,
        num_epochs=FEWEST,
        oversample_foreground_percent=1.0,
        enable_deep_supervision=False,  # nnU-Net's: here the loss makes the smaller targets
    )

    def adapt_hyperparameters(self) -> None:
        if cases := self.dataset_json.get("numTraining"):
            self.num_epochs = min(max(ceil(IMAGES / cases), FEWEST), MOST)

    @classmethod
    def check_plans(cls, planned: PlannedNetwork) -> None:
        if any(set(stride) != {2} for stride in planned.strides[1:STAGES]):
            raise UserError(f"{cls.__name__} halves every axis alike, and the plans' strides are {planned.strides}")

    def region_loss(self) -> nn.Module:
        return SupervisedDiceAndCrossEntropy()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, EpochSchedule]:
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, EpochSchedule(optimizer, self.learning_rate)

    def learning_rate(self, epoch: int) -> float:
        if epoch < WARM_UP:
            return self.initial_lr * (0.1 + 0.9 * epoch / WARM_UP)
        return self.initial_lr * cosine((epoch - WARM_UP) / max(self.num_epochs - WARM_UP, 1))

    def augmentation(self) -> list[BasicTransform]:
        patch_size = self.configuration_manager.patch_size
        affine = SpatialTransform(
            patch_size, 0, random_crop=False, p_rotation=1, rotation=(-0.26, 0.26), p_scaling=1, scaling=(0.8, 1.2),
            padding_mode_image="border", border_mode_seg="border", mode_seg="nearest",
        )  # fmt: skip
        blur = GaussianBlurTransform((0.5, 1.0), synchronize_channels=True, synchronize_axes=False)
        return [
            RandomTransform(affine, 0.2),
            RandomTransform(blur, 0.2),
            RandomTransform(MultiplicativeBrightnessTransform((0.7, 1.3), synchronize_channels=True), 0.5),
            RandomTransform(ShiftImage(0.1), 0.5),
            RandomTransform(GaussianNoiseTransform((0, 0.1), synchronize_channels=True), 0.2),
            MirrorTransform(allowed_axes=tuple(range(len(patch_size)))),
        ]
