"""Henry et al. 2020: deeply supervised U-Nets with a dilated bottom, averaged over cycles of training.

https://arxiv.org/abs/2011.01045
"""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from nnunet_brats_ext.architectures.dilated_unet import DilatedUNet
from nnunet_brats_ext.losses.dice import SoftDiceLoss
from nnunet_brats_ext.losses.outputs import MeanOverOutputs, SumOverOutputs
from nnunet_brats_ext.trainers.henry2020.paper import PAPER
from nnunet_brats_ext.trainers.henry2020.ranger import Ranger
from nnunet_brats_ext.trainers.henry2020.transforms import DropChannel, RelativeNoise, ShiftBrain, SwapAndFlip
from nnunet_brats_ext.training.averaging import StochasticWeightAveraging
from nnunet_brats_ext.training.base import BraTSTrainer
from nnunet_brats_ext.training.case_losses import CaseLosses
from nnunet_brats_ext.training.final_weights import LowestValidationLoss
from nnunet_brats_ext.training.optimizers import EpochSchedule, cosine


class HenryTrainer(BraTSTrainer):
    """What both pipelines of Henry et al. 2020 (https://arxiv.org/abs/2011.01045) share; train with a subclass."""

    differences = PAPER.switches("heads", "auxiliary_losses")
    hyperparameters = dict(
        initial_lr=1e-4,
        weight_decay=0.0,
        oversample_foreground_percent=0.0,  # patches anywhere
        enable_deep_supervision=False,  # nnU-Net's: here the heads are enlarged to the one target
    )

    architecture = DilatedUNet
    squared: ClassVar[bool]
    """Whether the Dice loss squares probabilities and target in its denominator."""

    @classmethod
    def all_network_options(cls) -> dict[str, Any]:
        written = {"three_heads": True} if cls.follows_text("heads") else {}  # a user's own network may not know it
        return written | super().all_network_options()

    def region_loss(self) -> MeanOverOutputs:
        over_outputs = SumOverOutputs if self.follows_text("auxiliary_losses") else MeanOverOutputs
        return over_outputs(SoftDiceLoss(1.0, 1.0, squared=self.squared, batch=True))

    def mirrors(self) -> MirrorTransform:
        return MirrorTransform(allowed_axes=tuple(range(len(self.configuration_manager.patch_size))))


class PipelineA(HenryTrainer):
    """Pipeline A of Henry et al. 2020 (https://arxiv.org/abs/2011.01045) up to where averaging begins."""

    differences = PAPER.switches("augmentation", "cosine_start")
    network_options = dict(norm="group")
    squared = True
    normalise = "percentile-minmax"

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, EpochSchedule]:
        optimizer, half = Ranger(self.network.parameters(), self.initial_lr), self.num_epochs / 2
        start = int(half) + (0 if self.follows_text("cosine_start") else 1)
        return optimizer, EpochSchedule(optimizer, lambda epoch: self.initial_lr * cosine((epoch - start) / half))

    def augmentation(self) -> list[BasicTransform]:
        written = self.follows_text("augmentation")
        scale = MultiplicativeBrightnessTransform((0.9, 1.1), synchronize_channels=not written)
        noise, drop = RelativeNoise(0.1, of_all=written), RandomTransform(DropChannel(), 0.2)
        reorient = self.mirrors() if written else SwapAndFlip()
        return [RandomTransform(ComposeTransforms([scale, noise, drop, reorient]), 0.8)]


class BraTSDeepSupervisionTrainer(CaseLosses, StochasticWeightAveraging, PipelineA):
    """Pipeline A of Henry et al. 2020 (https://arxiv.org/abs/2011.01045): GroupNorm, Ranger, averaged weights.

    For images made by `nnunet_brats convert --normalise percentile-minmax`. 200 epochs, then 5 cycles of 30, whose
    weights are averaged. The paper's patch is 128^3 with a batch of 1.
    """

    differences = PAPER.switches("cycle_cosine", "averaged_weights")
    hyperparameters = dict(num_epochs=350)

    def adapt_hyperparameters(self) -> None:
        super().adapt_hyperparameters()
        if self.follows_text("cycle_cosine"):
            self.averaging = replace(self.averaging, cosine_epochs=self.averaging.cycle_epochs)
        if self.follows_text("averaged_weights"):
            self.averaging = replace(self.averaging, averages_base=False)


class BraTSDeepSupervisionCBAMTrainer(BraTSDeepSupervisionTrainer):
    """Pipeline A of Henry et al. 2020 (https://arxiv.org/abs/2011.01045) with attention (CBAM) in the encoder."""

    network_options = dict(attention=True)


class BraTSDeepSupervisionBTrainer(CaseLosses, LowestValidationLoss, HenryTrainer):
    """Pipeline B of Henry et al. 2020 (https://arxiv.org/abs/2011.01045): InstanceNorm, Adam, z-scored images.

    Ends with the weights of the lowest validation loss. The paper's patch is 128^3 with a batch of 3.
    """

    hyperparameters = dict(num_epochs=400)
    network_options = dict(norm="instance")
    squared = False
    normalise = "nnU-Net"

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, EpochSchedule]:
        optimizer, epochs = torch.optim.Adam(self.network.parameters(), self.initial_lr, eps=1e-4), self.num_epochs
        return optimizer, EpochSchedule(optimizer, lambda epoch: self.initial_lr * cosine(epoch / epochs))

    def augmentation(self) -> list[BasicTransform]:
        noise = GaussianNoiseTransform(0.1, synchronize_channels=True)
        gamma = GammaTransform((0.5, 2.5), 0, synchronize_channels=True, p_per_channel=1, p_retain_stats=0)
        return [*(RandomTransform(each, 0.2) for each in (noise, gamma, ShiftBrain(0.1))), self.mirrors()]


class BraTSDeepSupervisionAsWrittenTrainer(BraTSDeepSupervisionTrainer):
    """Pipeline A of Henry et al. 2020 as the text has it: https://arxiv.org/abs/2011.01045."""

    follows = "text"


class BraTSDeepSupervisionCBAMAsWrittenTrainer(BraTSDeepSupervisionCBAMTrainer):
    """Pipeline A of Henry et al. 2020 with attention as the text has it: https://arxiv.org/abs/2011.01045."""

    follows = "text"


class BraTSDeepSupervisionBAsWrittenTrainer(BraTSDeepSupervisionBTrainer):
    """Pipeline B of Henry et al. 2020 as the text has it: https://arxiv.org/abs/2011.01045."""

    follows = "text"
    normalise = "zscore-nonzero"
