"""Isensee et al. 2020, nnU-Net for BraTS 2020: https://arxiv.org/abs/2011.00848.

A trainer's suffix is that of the authors' own: BN batch normalisation, DA3 and DA4 more augmentation, BD batch Dice.
"""

from dynamic_network_architectures.architectures.unet import PlainConvUNet
from dynamic_network_architectures.building_blocks.helper import get_matching_batchnorm
from torch import nn

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.trainers.isensee2020.paper import PAPER
from nnunet_brats_ext.training.base import BraTSTrainer
from nnunet_brats_ext.training.planned_network import PlannedNetwork
from nnunet_brats_ext.training.strong_augmentation import BatchDice, StrongAugmentation


class BraTSIsensee2020Trainer(BraTSTrainer):
    """nnU-Net on regions with a batch of 5: Isensee et al. 2020, https://arxiv.org/abs/2011.00848."""

    one_draw_per_case = False


class BraTSIsensee2020BNTrainer(BraTSIsensee2020Trainer):
    """The same with batch normalisation: Isensee et al. 2020, https://arxiv.org/abs/2011.00848."""

    @classmethod
    def check_plans(cls, planned: PlannedNetwork) -> None:
        if planned.n_conv_per_stage is None:
            raise UserError(f"{cls.__name__} is for nnU-Net's plain U-Net, and these plans are of a residual one")

    @classmethod
    def build_network(
        cls, planned: PlannedNetwork, input_channels: int, num_classes: int, deep_supervision: bool
    ) -> nn.Module:
        norm = dict(norm_op=get_matching_batchnorm(planned.conv_op), norm_op_kwargs={"eps": 1e-5, "affine": True})
        changes = dict(num_classes=num_classes, deep_supervision=deep_supervision) | norm
        return PlainConvUNet(input_channels, **{**planned.arguments, **changes})


class BraTSIsensee2020DA3BNTrainer(StrongAugmentation, BraTSIsensee2020BNTrainer):
    """The same with more augmentation: Isensee et al. 2020, https://arxiv.org/abs/2011.00848."""


class BraTSIsensee2020DA3BNBDTrainer(BatchDice, BraTSIsensee2020DA3BNTrainer):
    """The same with the Dice over the batch: Isensee et al. 2020, https://arxiv.org/abs/2011.00848."""


class BraTSIsensee2020DA4BNTrainer(BraTSIsensee2020DA3BNTrainer):
    """More rotation and fewer shifts of brightness: Isensee et al. 2020, https://arxiv.org/abs/2011.00848."""

    differences = PAPER.switches("elastic_deformations")
    rotation_degrees = 90
    brightness_per_channel = 0.5

    def adapt_hyperparameters(self) -> None:
        super().adapt_hyperparameters()
        self.elastic_probability = 0.3 if self.follows_text("elastic_deformations") else 0.2


class BraTSIsensee2020DA4BNBDTrainer(BatchDice, BraTSIsensee2020DA4BNTrainer):
    """The same with the Dice over the batch: Isensee et al. 2020, https://arxiv.org/abs/2011.00848."""
