"""Lyu & Shu 2020: a two-stage cascade with VAE regularisation and attention gates, https://arxiv.org/abs/2011.02881."""

from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import nn

from nnunet_brats_ext.architectures.residual_unet import AttentionGatedResidualUNet, PreActivationResidualUNet
from nnunet_brats_ext.losses.dice import SoftDiceLoss
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.trainers.lyu2020.paper import PAPER
from nnunet_brats_ext.trainers.lyu2020.transforms import OfChannels, ShiftIntensity
from nnunet_brats_ext.trainers.lyu2020.windows import TumourWindows
from nnunet_brats_ext.training.base import BraTSTrainer
from nnunet_brats_ext.training.branches import VAERegularisation, vae_regularisation
from nnunet_brats_ext.training.cascade import DrawnMaps


class LyuTrainer(BraTSTrainer):
    """What both stages of Lyu & Shu 2020 (https://arxiv.org/abs/2011.02881) share; train with one of its subclasses."""

    differences = PAPER.switches("vae_losses", "vae_gradient", "augmented_sequences")
    hyperparameters = dict(
        initial_lr=1e-4,
        weight_decay=1e-5,
        num_epochs=300,
        oversample_foreground_percent=0.0,  # crops anywhere, no guarantee of tumour
        enable_deep_supervision=False,
    )

    def training_branch(self, network: nn.Module) -> VAERegularisation:
        return vae_regularisation(
            network,
            self.image_channels,
            self.configuration_manager.patch_size,
            summed=self.follows_text("vae_losses"),
            gradient="full" if self.follows_text("vae_gradient") else "none",
        )

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        optimizer = torch.optim.Adam(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def augmentation(self) -> list[BasicTransform]:
        intensities = [
            ShiftIntensity(0.1),
            MultiplicativeBrightnessTransform((0.9, 1.1), synchronize_channels=False),
        ]
        if not self.follows_text("augmented_sequences"):
            sequences = DatasetDescription(self.dataset_json).sequences
            others = [number for number, sequence in enumerate(sequences) if sequence != "FLAIR"]
            intensities = [OfChannels(transform, others) for transform in intensities]
        return [*intensities, MirrorTransform(tuple(range(len(self.configuration_manager.patch_size))))]


class BraTSVAETrainer(LyuTrainer):
    """Stage 1 of Lyu & Shu 2020 (https://arxiv.org/abs/2011.02881): a residual U-Net regularised by a VAE branch.

    The paper's patch is 128 x 192 x 160 (z, y, x) with a batch of 4; any patch that the plans' strides allow works.
    """

    architecture = PreActivationResidualUNet

    def region_loss(self) -> SoftDiceLoss:
        return SoftDiceLoss()


class BraTSAttentionVAETrainer(LyuTrainer):
    """Stage 2 of Lyu & Shu 2020 (https://arxiv.org/abs/2011.02881): the same, with attention gates on the skips.

    In a cascade it refines the labels of a previous stage, which `BraTSVAETrainer` has predicted, in one window on
    their tumour; it also works alone. Where `nnunet_brats predict --for-next-stage` has left several maps per case,
    each draw takes one of them, and training is as in the release: half the learning rate, 200 longer epochs.
    """

    differences = PAPER.switches("gates", "stage2_dice", "stage2_schedule", "windows")
    hyperparameters = dict(oversample_foreground_percent=1.0)  # the window on the tumour
    architecture = AttentionGatedResidualUNet

    @classmethod
    def all_network_options(cls) -> dict[str, Any]:
        written = {"pointwise_gates": True} if cls.follows_text("gates") else {}  # a user's own network may not know it
        return written | super().all_network_options()

    def adapt_hyperparameters(self) -> None:
        if not self.is_cascaded:
            self.oversample_foreground_percent = 0.0
        if len(self.previous_stage_maps) > 1 and not self.follows_text("stage2_schedule"):
            self.initial_lr, self.num_epochs = 5e-5, 200

    def sampling(self, cases: nnUNetBaseDataset) -> nnUNetBaseDataset:
        if not self.is_cascaded:
            return cases
        first = cases.versions[0] if isinstance(cases, DrawnMaps) else cases
        strict = not self.follows_text("windows")
        return TumourWindows(cases, first, self.configuration_manager.patch_size, strict)

    def region_loss(self) -> SoftDiceLoss:
        if self.follows_text("stage2_dice"):
            return SoftDiceLoss()
        inner = self.label_manager.num_segmentation_heads - 1  # all but the whole tumour
        return SoftDiceLoss(weights=(0.10, *[0.90 / inner] * inner))


class AsWritten(LyuTrainer):
    """Mixin, listed first: as the text of Lyu & Shu 2020 has it, https://arxiv.org/abs/2011.02881."""

    follows = "text"
    normalise = "zscore-nonzero"


class BraTSVAEAsWrittenTrainer(AsWritten, BraTSVAETrainer):
    """Stage 1 of Lyu & Shu 2020 as the text has it: https://arxiv.org/abs/2011.02881."""


class BraTSAttentionVAEAsWrittenTrainer(AsWritten, BraTSAttentionVAETrainer):
    """Stage 2 of Lyu & Shu 2020 as the text has it: https://arxiv.org/abs/2011.02881.

    Its maps are those of `BraTSVAEAsWrittenTrainer`, and label maps, where the text may mean probabilities.
    """
