"""Hashemi et al. 2021: 2-D U-Nets for small GPUs, one for all regions or one for each, https://github.com/Nima-Hs/BraTS.

"A Memory-efficient Deep Framework for Multi-Modal MRI-based Brain Tumor Segmentation".
"""

from typing import Any, ClassVar

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from torch import nn

from nnunet_brats_ext.architectures.plain_unet_2d import BinaryUNet2D, PlainUNet2D
from nnunet_brats_ext.losses.weighted_dice import FrequencyWeightedDiceLoss
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.trainers.hashemi2021.paper import PAPER
from nnunet_brats_ext.trainers.hashemi2021.plateau import PlateauOfEpochs
from nnunet_brats_ext.trainers.hashemi2021.sampling import NonEmptySlices, count_slices
from nnunet_brats_ext.trainers.hashemi2021.transforms import ComposedWarp
from nnunet_brats_ext.training.base import BraTSTrainer
from nnunet_brats_ext.training.planned_network import PlannedNetwork


class HashemiTrainer(BraTSTrainer):
    """What all models of Hashemi et al. 2021 (https://github.com/Nima-Hs/BraTS) share; train with a subclass."""

    differences = PAPER.switches("loss")
    hyperparameters = dict(
        initial_lr=1e-3,
        weight_decay=0.0,
        num_epochs=80,
        oversample_foreground_percent=1.0,  # every slice is drawn by NonEmptySlices
        enable_deep_supervision=False,
    )

    architecture: ClassVar[type[nn.Module]] = PlainUNet2D
    copies: ClassVar[int] = 1  # of every training slice in an epoch

    @classmethod
    def check_plans(cls, planned: PlannedNetwork) -> None:
        if len(planned.patch_size) != 2:
            raise UserError(
                f"{cls.__name__} segments slices, but the patch {planned.patch_size} is a volume; "
                "train it on the configuration 2d, or on hashemi_2d of `nnunet_brats plan`"
            )

    @classmethod
    def build_network(
        cls, planned: PlannedNetwork, input_channels: int, num_classes: int, deep_supervision: bool
    ) -> nn.Module:
        return cls.architecture(input_channels, num_classes, strides=planned.strides, **cls.all_network_options())

    region: ClassVar[int | None] = None
    """The region of a binary model, by its place among the data set's regions, which begin with WT, TC, ET."""

    def region_loss(self) -> FrequencyWeightedDiceLoss:
        of_slices = self.follows_text("loss")
        return FrequencyWeightedDiceLoss(batch=not of_slices, region=self.region, summed=of_slices)

    def sampling(self, cases: nnUNetBaseDataset) -> nnUNetBaseDataset:
        by_images = DatasetDescription(self.dataset_json).normalisation == "zscore-volume"
        return NonEmptySlices(cases, self.configuration_manager.patch_size, by_images)

    def draws_per_epoch(self, cases: nnUNetBaseDataset, training: bool) -> int:
        return count_slices(cases) * (self.copies if training else 1)

    def augmentation(self) -> list[BasicTransform]:
        return []

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PlateauOfEpochs]:
        optimizer = torch.optim.Adam(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PlateauOfEpochs(optimizer, factor=0.5, patience=5, threshold=1e-2)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        if self._watches_the_loss():
            self.lr_scheduler.observe(self.logger.get_value("train_losses", step=self.current_epoch))

    def _watches_the_loss(self) -> bool:
        return isinstance(self.lr_scheduler, PlateauOfEpochs)  # not in a cycle of weight averaging

    def extra_state(self) -> dict[str, Any]:
        own = self.lr_scheduler.state_dict() if self._watches_the_loss() else None
        return super().extra_state() | {"lr_scheduler": own}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        if state["lr_scheduler"] is not None:
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])


class BinaryTrainer(HashemiTrainer):
    """U-Net 2C of Hashemi et al. 2021 (https://github.com/Nima-Hs/BraTS): one region; train with a subclass.

    To nnU-Net it is a model of all regions that finds one of them. Three of them become one label map by
    `nnunet_brats ensemble --method nested`.
    """

    differences = PAPER.switches("final_relu")
    architecture = BinaryUNet2D
    region: ClassVar[int]

    @classmethod
    def all_network_options(cls) -> dict[str, Any]:
        final_relu = not cls.follows_text("final_relu")
        return super().all_network_options() | dict(region=cls.region, final_relu=final_relu)

    @classmethod
    def build_network(
        cls, planned: PlannedNetwork, input_channels: int, num_classes: int, deep_supervision: bool
    ) -> nn.Module:
        options = cls.all_network_options()
        options["final_relu"] = planned.arguments.get("final_relu", options["final_relu"])  # of an imported network
        return cls.architecture(input_channels, num_classes, strides=planned.strides, **options)

    def validation_step(self, batch: dict) -> dict:
        step = super().validation_step(batch)
        others = np.arange(len(step["tp_hard"])) != self.region
        for counts in ("tp_hard", "fp_hard", "fn_hard"):
            step[counts][others] = 0
        return step

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        with np.errstate(invalid="ignore"):  # the pseudo Dice of other regions is 0 / 0, which nnU-Net's mean skips
            super().on_validation_epoch_end(val_outputs)


class WarpedCopies(HashemiTrainer):
    """The augmentation of Hashemi et al. 2021 (https://github.com/Nima-Hs/BraTS): ten warps of a slice, not itself."""

    differences = PAPER.switches("interpolation")
    copies = 10

    def augmentation(self) -> list[BasicTransform]:
        return [ComposedWarp(truncated=not self.follows_text("interpolation"))]


class BraTS2DTrainer(HashemiTrainer):
    """U-Net 3C of Hashemi et al. 2021 (https://github.com/Nima-Hs/BraTS): all regions in one 2-D network."""

    differences = PAPER.switches("channel_weights")  # of two channels, one minus a share is the other's share

    def region_loss(self) -> FrequencyWeightedDiceLoss:
        loss = super().region_loss()
        loss.reversed_weights = not self.follows_text("channel_weights")
        return loss


class BraTS2DWholeTumorTrainer(BinaryTrainer):
    """U-Net 2C of Hashemi et al. 2021 (https://github.com/Nima-Hs/BraTS) for WT."""

    region = 0


class BraTS2DTumorCoreTrainer(BinaryTrainer):
    """U-Net 2C of Hashemi et al. 2021 (https://github.com/Nima-Hs/BraTS) for TC."""

    region = 1


class BraTS2DEnhancingTumorTrainer(BinaryTrainer):
    """U-Net 2C of Hashemi et al. 2021 (https://github.com/Nima-Hs/BraTS) for ET."""

    region = 2


class BraTS2DWholeTumorAugmentedTrainer(WarpedCopies, BraTS2DWholeTumorTrainer):
    """U-Net 2C AU of Hashemi et al. 2021 (https://github.com/Nima-Hs/BraTS) for WT."""


class BraTS2DTumorCoreAugmentedTrainer(WarpedCopies, BraTS2DTumorCoreTrainer):
    """U-Net 2C AU of Hashemi et al. 2021 (https://github.com/Nima-Hs/BraTS) for TC."""


class BraTS2DEnhancingTumorAugmentedTrainer(WarpedCopies, BraTS2DEnhancingTumorTrainer):
    """U-Net 2C AU of Hashemi et al. 2021 (https://github.com/Nima-Hs/BraTS) for ET."""


class AsWritten(HashemiTrainer):
    """Mixin, listed first: as the text of Hashemi et al. 2021 has it, https://github.com/Nima-Hs/BraTS."""

    follows = "text"
    normalise = "zscore-volume"


class BraTS2DAsWrittenTrainer(AsWritten, BraTS2DTrainer):
    """U-Net 3C of Hashemi et al. 2021 as the text has it: https://github.com/Nima-Hs/BraTS."""


class BraTS2DWholeTumorAsWrittenTrainer(AsWritten, BraTS2DWholeTumorTrainer):
    """U-Net 2C of Hashemi et al. 2021 for WT as the text has it: https://github.com/Nima-Hs/BraTS."""


class BraTS2DWholeTumorAugmentedAsWrittenTrainer(AsWritten, BraTS2DWholeTumorAugmentedTrainer):
    """U-Net 2C AU of Hashemi et al. 2021 for WT as the text has it: https://github.com/Nima-Hs/BraTS."""


class BraTS2DTumorCoreAsWrittenTrainer(AsWritten, BraTS2DTumorCoreTrainer):
    """U-Net 2C of Hashemi et al. 2021 for TC as the text has it: https://github.com/Nima-Hs/BraTS."""


class BraTS2DTumorCoreAugmentedAsWrittenTrainer(AsWritten, BraTS2DTumorCoreAugmentedTrainer):
    """U-Net 2C AU of Hashemi et al. 2021 for TC as the text has it: https://github.com/Nima-Hs/BraTS."""


class BraTS2DEnhancingTumorAsWrittenTrainer(AsWritten, BraTS2DEnhancingTumorTrainer):
    """U-Net 2C of Hashemi et al. 2021 for ET as the text has it: https://github.com/Nima-Hs/BraTS."""


class BraTS2DEnhancingTumorAugmentedAsWrittenTrainer(AsWritten, BraTS2DEnhancingTumorAugmentedTrainer):
    """U-Net 2C AU of Hashemi et al. 2021 for ET as the text has it: https://github.com/Nima-Hs/BraTS."""
