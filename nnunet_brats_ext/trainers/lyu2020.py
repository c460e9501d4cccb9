"""Lyu & Shu 2020: a two-stage cascade with VAE regularisation and attention gates, https://arxiv.org/abs/2011.02881."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunet_brats_ext.architectures.residual_unet import AttentionGatedResidualUNet, PreActivationResidualUNet
from nnunet_brats_ext.architectures.vae import VAEBranch
from nnunet_brats_ext.losses.dice import SoftDiceLoss
from nnunet_brats_ext.training.augmentation.intensity import ShiftIntensity
from nnunet_brats_ext.training.base import BraTSTrainer, topology
from nnunet_brats_ext.training.branches import VAERegularisation


class LyuTrainer(BraTSTrainer):
    """What both stages of Lyu & Shu 2020 (https://arxiv.org/abs/2011.02881) share; train with one of its subclasses."""

    hyperparameters = dict(
        initial_lr=1e-4,
        weight_decay=1e-5,
        num_epochs=300,
        oversample_foreground_percent=0.0,  # crops anywhere, no guarantee of tumour
        enable_deep_supervision=False,
    )

    mirrors_at_inference = False
    architecture: ClassVar[type[PreActivationResidualUNet]]

    @classmethod
    def architecture_for(cls, configuration: ConfigurationManager) -> Callable[..., nn.Module]:
        return partial(cls.architecture, **topology(configuration))

    def training_branch(self, network: PreActivationResidualUNet) -> VAERegularisation:
        image_channels = len(self.dataset_json["channel_names"])
        vae = VAEBranch(
            image_channels,
            network.endpoint_size(self.configuration_manager.patch_size),
            strides=network.strides,
            features_per_stage=network.features_per_stage,
            conv_op=topology(self.configuration_manager)["conv_op"],
        )
        return VAERegularisation(vae, image_channels)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        optimizer = torch.optim.Adam(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def augmentation(self) -> list[BasicTransform]:
        return [
            ShiftIntensity(0.1),
            MultiplicativeBrightnessTransform((0.9, 1.1), synchronize_channels=False),
            MirrorTransform(allowed_axes=tuple(range(len(self.configuration_manager.patch_size)))),
        ]


class BraTSVAETrainer(LyuTrainer):
    """Stage 1 of Lyu & Shu 2020 (https://arxiv.org/abs/2011.02881): a residual U-Net regularised by a VAE branch.

    The paper's patch is 128 x 192 x 160 (z, y, x) with a batch of 4; any patch that the plans' strides allow works.
    """

    architecture = PreActivationResidualUNet

    def region_loss(self) -> SoftDiceLoss:
        return SoftDiceLoss()


class BraTSAttentionVAETrainer(LyuTrainer):
    """Stage 2 of Lyu & Shu 2020 (https://arxiv.org/abs/2011.02881): the same, with attention gates on the skips.

    In a cascade it refines the labels of a previous stage, which `BraTSVAETrainer` has predicted; it also works alone.
    Learning rate and epochs are those that the paper uses with one stage-1 map per case.
    """

    architecture = AttentionGatedResidualUNet
    previous_stage_trainer = "BraTSVAETrainer"

    def region_loss(self) -> SoftDiceLoss:
        inner = self.label_manager.num_segmentation_heads - 1  # all but the whole tumour
        return SoftDiceLoss(weights=(0.10, *[0.90 / inner] * inner))
