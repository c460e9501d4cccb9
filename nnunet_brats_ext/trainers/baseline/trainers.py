"""nnU-Net itself on our base trainer: what the papers are compared with."""

from nnunet_brats_ext.training.base import BraTSTrainer
from nnunet_brats_ext.training.sequence_dropout import SequenceDropout


class BraTSBaselineTrainer(BraTSTrainer):
    """nnU-Net's own network, loss, augmentation and schedule: https://doi.org/10.1038/s41592-020-01008-z."""

    one_draw_per_case = False


class BraTSBaselineSequenceDropoutTrainer(SequenceDropout, BraTSBaselineTrainer):
    """The same for patients who lack sequences: https://doi.org/10.1038/s41592-020-01008-z, some taken away."""


class BraTSNNUNetV1Trainer(BraTSBaselineTrainer):
    """nnU-Net's own training (https://doi.org/10.1038/s41592-020-01008-z), going on from a model of nnU-Net v1."""


class BraTSMonaiTrainer(BraTSBaselineTrainer):
    """nnU-Net's training (https://doi.org/10.1038/s41592-020-01008-z) of a network of MONAI, which the plans name."""

    hyperparameters = dict(enable_deep_supervision=False)
