"""Lachinov et al. 2019 small enough for a CPU: half of the channels or less, and learning rates for few steps.

The cascade is small as it is.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunet_brats_ext.trainers import (
    BraTSNoNewNetTrainer,
    BraTSResUNetVAETrainer,
    BraTSStudentTrainer,
)
from nnunet_brats_ext.trainers.lachinov2019.trainers import LachinovTrainer


class Narrow(LachinovTrainer):
    """https://arxiv.org/abs/2002.03688"""

    hyperparameters = dict(initial_lr=2e-3)
    features: ClassVar[Sequence[int]] = (8, 16, 32, 64)

    @classmethod
    def architecture_for(cls, configuration: ConfigurationManager) -> Callable[..., nn.Module]:
        return partial(super().architecture_for(configuration), features_per_stage=cls.features)


class StudyNoNewNetTrainer(Narrow, BraTSNoNewNetTrainer):
    """https://arxiv.org/abs/2002.03688, the first teacher."""

    features = (8, 16, 32, 64, 128)


class StudyResUNetVAETrainer(Narrow, BraTSResUNetVAETrainer):
    """https://arxiv.org/abs/2002.03688, the second teacher."""


class StudyStudentTrainer(Narrow, BraTSStudentTrainer):
    """https://arxiv.org/abs/2002.03688, the student."""
