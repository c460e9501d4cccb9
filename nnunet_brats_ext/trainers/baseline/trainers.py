"""nnU-Net itself on our base trainer: what the papers are compared with."""

from nnunet_brats_ext.training.base import BraTSTrainer


class BraTSBaselineTrainer(BraTSTrainer):
    """nnU-Net's own network, loss, augmentation and schedule: https://doi.org/10.1038/s41592-020-01008-z."""

    one_draw_per_case = False
