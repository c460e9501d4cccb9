"""All trainers, one file per paper. Their names are public: checkpoints store them."""

from nnunet_brats_ext.trainers.baseline import BraTSBaselineTrainer
from nnunet_brats_ext.trainers.lyu2020 import BraTSVAETrainer

__all__ = ["BraTSBaselineTrainer", "BraTSVAETrainer"]
