"""Trainers at ten times the learning rate of their papers, for trainings of some hundred steps.

Networks, losses, patches and augmentation are the paper's.
"""

from nnunet_brats_ext.trainers import (
    BraTSDeepSupervisionBTrainer,
    BraTSDeepSupervisionTrainer,
    BraTSNoNewNetTrainer,
    BraTSOMNetCGATrainer,
    BraTSResUNetVAETrainer,
    BraTSStudentTrainer,
)
from nnunet_brats_ext.training.averaging import Cycles
from nnunet_brats_ext.training.base import BraTSTrainer

TIMES = 10


class Quick(BraTSTrainer):
    """Mixin, listed first: ten times the learning rate."""

    def adapt_hyperparameters(self) -> None:
        super().adapt_hyperparameters()
        self.initial_lr *= TIMES


class QuickHenryATrainer(Quick, BraTSDeepSupervisionTrainer):
    """https://arxiv.org/abs/2011.01045, pipeline A."""

    averaging = Cycles(initial_lr=TIMES * Cycles().initial_lr)


class QuickHenryBTrainer(Quick, BraTSDeepSupervisionBTrainer):
    """https://arxiv.org/abs/2011.01045, pipeline B."""


class QuickNoNewNetTrainer(Quick, BraTSNoNewNetTrainer):
    """https://arxiv.org/abs/2002.03688, the first teacher."""


class QuickResUNetVAETrainer(Quick, BraTSResUNetVAETrainer):
    """https://arxiv.org/abs/2002.03688, the second teacher."""


class QuickStudentTrainer(Quick, BraTSStudentTrainer):
    """https://arxiv.org/abs/2002.03688, the student."""


class QuickOMNetCGATrainer(Quick, BraTSOMNetCGATrainer):
    """https://arxiv.org/abs/1906.01796, OM-Net with cross-task guided attention."""
