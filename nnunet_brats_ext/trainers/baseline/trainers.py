"""nnU-Net itself on our base trainer, and Primus, its transformer: what the papers are compared with."""

from typing import Any

import torch
from dynamic_network_architectures.architectures.primus import PrimusV3
from torch import nn

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.training.base import BraTSTrainer
from nnunet_brats_ext.training.optimizers import EpochSchedule
from nnunet_brats_ext.training.planned_network import PlannedNetwork
from nnunet_brats_ext.training.sequence_dropout import SequenceDropout


class BraTSBaselineTrainer(BraTSTrainer):
    """nnU-Net's own network, loss, augmentation and schedule: https://doi.org/10.1038/s41592-020-01008-z.

    The network is what the plans name: a residual encoder with those of `-pl nnUNetPlannerResEncM`, `L` or `XL`.
    """

    one_draw_per_case = False


class BraTSBaselineSequenceDropoutTrainer(SequenceDropout, BraTSBaselineTrainer):
    """The same for patients who lack sequences: https://doi.org/10.1038/s41592-020-01008-z, some taken away."""


# ---- Primus ----------------------------------------------------------------------------------------------------------

TOKEN = 8  # voxels along each axis that become one token
WARM_UP = 50  # epochs


class PrimusTrainer(BraTSBaselineTrainer):
    """What all sizes of Primus share, as nnU-Net's own Primus trainers have it; train with a subclass.

    Wald, Roy, Isensee et al. 2025, https://arxiv.org/abs/2503.01835, in the third version that
    dynamic-network-architectures has.
    """

    architecture = PrimusV3
    hyperparameters = dict(initial_lr=3e-4, weight_decay=5e-2, enable_deep_supervision=False)

    @classmethod
    def check_plans(cls, planned: PlannedNetwork) -> None:
        if len(planned.patch_size) != 3 or any(length % TOKEN for length in planned.patch_size):
            raise UserError(
                f"{cls.__name__} cuts volumes into cubes of {TOKEN} voxels: a patch of {planned.patch_size} is none of "
                f"them; choose the configuration {cls.all_facts().configuration} of `nnunet_brats plan`"
            )

    @classmethod
    def build_network(
        cls, planned: PlannedNetwork, input_channels: int, num_classes: int, deep_supervision: bool
    ) -> nn.Module:
        options: dict[str, Any] = dict(patch_embed_size=(TOKEN,) * 3, num_classes=num_classes)
        return PrimusV3(input_channels, input_shape=planned.patch_size, **options, **cls.all_network_options())

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, EpochSchedule]:
        parameters = list(self.network.parameters())
        optimizer = torch.optim.AdamW(parameters, self.initial_lr, betas=(0.9, 0.98), weight_decay=self.weight_decay)

        def clip(*_: Any) -> None:
            nn.utils.clip_grad_norm_(parameters, 1)

        optimizer.register_step_pre_hook(clip)  # nnU-Net has clipped them at 12 by then
        return optimizer, EpochSchedule(optimizer, self.learning_rate)

    def learning_rate(self, epoch: int) -> float:
        """Linear up to the initial rate, then nnU-Net's polynomial down to 0."""
        if epoch < WARM_UP:
            return self.initial_lr * (epoch + 1) / WARM_UP
        return self.initial_lr * (1 - (epoch - WARM_UP) / (self.num_epochs - WARM_UP)) ** 0.9


class BraTSPrimusSTrainer(PrimusTrainer):
    """Primus, size S (https://arxiv.org/abs/2503.01835), in nnU-Net: https://doi.org/10.1038/s41592-020-01008-z."""

    network_options = dict(embed_dim=396, eva_depth=12, eva_numheads=6)


class BraTSPrimusBTrainer(PrimusTrainer):
    """Primus, size B (https://arxiv.org/abs/2503.01835), in nnU-Net: https://doi.org/10.1038/s41592-020-01008-z."""

    network_options = dict(embed_dim=792, eva_depth=12, eva_numheads=12)


class BraTSPrimusMTrainer(PrimusTrainer):
    """Primus, size M (https://arxiv.org/abs/2503.01835), in nnU-Net: https://doi.org/10.1038/s41592-020-01008-z."""

    network_options = dict(embed_dim=864, eva_depth=16, eva_numheads=12)


class BraTSPrimusLTrainer(PrimusTrainer):
    """Primus, size L (https://arxiv.org/abs/2503.01835), in nnU-Net: https://doi.org/10.1038/s41592-020-01008-z."""

    network_options = dict(embed_dim=1056, eva_depth=24, eva_numheads=16)


class BraTSNNUNetV1Trainer(BraTSBaselineTrainer):
    """nnU-Net's own training (https://doi.org/10.1038/s41592-020-01008-z), going on from a model of nnU-Net v1."""


class BraTSMonaiTrainer(BraTSBaselineTrainer):
    """nnU-Net's training (https://doi.org/10.1038/s41592-020-01008-z) of a network of MONAI, which the plans name.

    MONAI's networks have one output; with nnU-Net's own network it trains as `BraTSBaselineTrainer`.
    """

    def adapt_hyperparameters(self) -> None:
        self.enable_deep_supervision = "monai_networks" not in self.configuration_manager.network_arch_class_name
