"""Lachinov et al. 2019 small enough for a CPU: half of the channels or less, and learning rates for few steps.

The cascade is small as it is.
"""

from nnunet_brats_ext.trainers import BraTSNoNewNetTrainer, BraTSResUNetVAETrainer, BraTSStudentTrainer
from nnunet_brats_ext.trainers.lachinov2019.trainers import LachinovTrainer


class Narrow(LachinovTrainer):
    """https://arxiv.org/abs/2002.03688"""

    hyperparameters = dict(initial_lr=2e-3)
    network_options = dict(features_per_stage=(8, 16, 32, 64))


class StudyNoNewNetTrainer(Narrow, BraTSNoNewNetTrainer):
    """https://arxiv.org/abs/2002.03688, the first teacher."""

    network_options = dict(features_per_stage=(8, 16, 32, 64, 128))


class StudyResUNetVAETrainer(Narrow, BraTSResUNetVAETrainer):
    """https://arxiv.org/abs/2002.03688, the second teacher."""


class StudyStudentTrainer(Narrow, BraTSStudentTrainer):
    """https://arxiv.org/abs/2002.03688, the student."""
