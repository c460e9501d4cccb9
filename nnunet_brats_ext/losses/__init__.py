"""The losses of the papers: (logits, target) -> scalar, in fp32 or wider, finite where a region is empty.

Networks with other outputs have losses of their own: `LabelDiceLoss` for `CascadedUNet`, `MultiTaskCrossEntropy` for
`OMNet`, `reconstruction_loss` and `kl_divergence` for a `VAEBranch`.
"""

from nnunet_brats_ext.losses.cross_entropy import DiceAndBCELoss, WeightedBCELoss
from nnunet_brats_ext.losses.dice import SoftDiceLoss
from nnunet_brats_ext.losses.label_dice import LabelDiceLoss
from nnunet_brats_ext.losses.multi_task import MultiTaskCrossEntropy
from nnunet_brats_ext.losses.outputs import MeanOverOutputs
from nnunet_brats_ext.losses.vae import kl_divergence, reconstruction_loss
from nnunet_brats_ext.losses.weighted_dice import FrequencyWeightedDiceLoss

__all__ = [
    "DiceAndBCELoss",
    "FrequencyWeightedDiceLoss",
    "LabelDiceLoss",
    "MeanOverOutputs",
    "MultiTaskCrossEntropy",
    "SoftDiceLoss",
    "WeightedBCELoss",
    "kl_divergence",
    "reconstruction_loss",
]
