"""Lyu & Shu 2020 small enough for a CPU: a quarter of the channels, and a learning rate for few steps."""

from dataclasses import replace

from nnunet_brats_ext.trainers import BraTSAttentionVAETrainer, BraTSVAETrainer
from nnunet_brats_ext.trainers.lyu2020.trainers import LyuTrainer


class Narrow(LyuTrainer):
    """https://arxiv.org/abs/2011.02881"""

    hyperparameters = dict(initial_lr=2e-3)
    network_options = dict(features_per_stage=(8, 16, 32, 64))


class StudyVAETrainer(Narrow, BraTSVAETrainer):
    """https://arxiv.org/abs/2011.02881, stage 1."""


class StudyAttentionVAETrainer(Narrow, BraTSAttentionVAETrainer):
    """https://arxiv.org/abs/2011.02881, stage 2."""

    facts = replace(BraTSAttentionVAETrainer.all_facts(), previous_stage="StudyVAETrainer")

    def adapt_hyperparameters(self) -> None:
        rate = self.initial_lr
        super().adapt_hyperparameters()
        self.initial_lr = rate  # the paper halves it for expanded data, but trains longer then


class StudyExpandedAttentionVAETrainer(StudyAttentionVAETrainer):
    """https://arxiv.org/abs/2011.02881, stage 2 under a name of its own, for expanded data."""
