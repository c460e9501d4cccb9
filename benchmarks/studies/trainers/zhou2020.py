"""Zhou et al. 2020 small enough for a CPU: a quarter of the channels, a learning rate and a momentum for few steps."""

import torch

from nnunet_brats_ext.trainers import BraTSMC1Trainer, BraTSOMNetCGATrainer, BraTSOMNetTrainer
from nnunet_brats_ext.trainers.zhou2020.trainers import ZhouTrainer
from nnunet_brats_ext.training.optimizers import EpochSchedule


class Quick(ZhouTrainer):
    """https://arxiv.org/abs/1906.01796; momentum 0.99 averages over more steps than a study has."""

    hyperparameters = dict(initial_lr=5e-2)
    network_options = dict(features_per_stage=(8, 16, 32, 64))

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, EpochSchedule]:
        optimizer, schedule = super().configure_optimizers()
        for group in optimizer.param_groups:
            group["momentum"] = 0.9
        return optimizer, schedule


class StudyMC1Trainer(Quick, BraTSMC1Trainer):
    """https://arxiv.org/abs/1906.01796, MC1."""


class StudyOMNetTrainer(Quick, BraTSOMNetTrainer):
    """https://arxiv.org/abs/1906.01796, OM-Net."""


class StudyOMNetCGATrainer(Quick, BraTSOMNetCGATrainer):
    """https://arxiv.org/abs/1906.01796, OM-Net with cross-task guided attention."""
