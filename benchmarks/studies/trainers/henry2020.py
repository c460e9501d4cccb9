"""Henry et al. 2020 small enough for a CPU: a sixth of the channels, and learning rates for few steps."""

from nnunet_brats_ext.trainers import BraTSDeepSupervisionBTrainer, BraTSDeepSupervisionTrainer
from nnunet_brats_ext.trainers.henry2020.trainers import HenryTrainer, PipelineA
from nnunet_brats_ext.training.averaging import Cycles


class Narrow(HenryTrainer):
    """https://arxiv.org/abs/2011.01045"""

    hyperparameters = dict(initial_lr=1e-2)
    network_options = dict(features_per_stage=(8, 16, 32, 64))


class StudyHenryATrainer(Narrow, BraTSDeepSupervisionTrainer):
    """https://arxiv.org/abs/2011.01045, pipeline A; the cycles begin at half the learning rate, as in the paper."""

    averaging = Cycles(initial_lr=5e-3)


class StudyHenryAWithoutAveragingTrainer(Narrow, PipelineA):
    """https://arxiv.org/abs/2011.01045, pipeline A whose base schedule takes all epochs."""


class StudyHenryBTrainer(Narrow, BraTSDeepSupervisionBTrainer):
    """https://arxiv.org/abs/2011.01045, pipeline B."""
