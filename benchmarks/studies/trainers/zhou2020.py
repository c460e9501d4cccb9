"""Zhou et al. 2020 small enough for a CPU: a quarter of the channels, and a learning rate for few steps."""

from nnunet_brats_ext.trainers import BraTSMC1Trainer, BraTSOMNetCGATrainer, BraTSOMNetTrainer
from nnunet_brats_ext.trainers.zhou2020 import ZhouTrainer

FEATURES = (8, 16, 32, 64)


class Quick(ZhouTrainer):
    """https://arxiv.org/abs/1906.01796; momentum 0.99 remembers more steps than a study has."""

    hyperparameters = dict(initial_lr=1e-2)
    augmented = False  # as in the paper


class StudyMC1Trainer(Quick, BraTSMC1Trainer):
    """https://arxiv.org/abs/1906.01796, MC1."""

    network_options = BraTSMC1Trainer.network_options | dict(features_per_stage=FEATURES)


class StudyOMNetTrainer(Quick, BraTSOMNetTrainer):
    """https://arxiv.org/abs/1906.01796, OM-Net."""

    network_options = BraTSOMNetTrainer.network_options | dict(features_per_stage=FEATURES)


class StudyOMNetCGATrainer(Quick, BraTSOMNetCGATrainer):
    """https://arxiv.org/abs/1906.01796, OM-Net with cross-task guided attention."""

    network_options = BraTSOMNetCGATrainer.network_options | dict(features_per_stage=FEATURES)
