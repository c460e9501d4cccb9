"""All trainers, one file per paper. Their names are public: checkpoints store them."""

from nnunet_brats_ext.plugin.requirements import require_nnunet

require_nnunet()  # before anything fails with an obscure message

from nnunet_brats_ext.trainers.baseline import BraTSBaselineTrainer  # noqa: E402
from nnunet_brats_ext.trainers.hashemi2021 import (  # noqa: E402
    BraTS2DEnhancingTumorAugmentedTrainer,
    BraTS2DEnhancingTumorTrainer,
    BraTS2DTrainer,
    BraTS2DTumorCoreAugmentedTrainer,
    BraTS2DTumorCoreTrainer,
    BraTS2DWholeTumorAugmentedTrainer,
    BraTS2DWholeTumorTrainer,
)
from nnunet_brats_ext.trainers.henry2020 import (  # noqa: E402
    BraTSDeepSupervisionBTrainer,
    BraTSDeepSupervisionCBAMTrainer,
    BraTSDeepSupervisionTrainer,
)
from nnunet_brats_ext.trainers.lachinov2019 import (  # noqa: E402
    BraTSCascadedUNetTrainer,
    BraTSNoNewNetTrainer,
    BraTSResUNetVAETrainer,
    BraTSStudentTrainer,
)
from nnunet_brats_ext.trainers.lyu2020 import BraTSAttentionVAETrainer, BraTSVAETrainer  # noqa: E402
from nnunet_brats_ext.trainers.zhou2020 import (  # noqa: E402
    BraTSMC1Trainer,
    BraTSMC2Trainer,
    BraTSMC3Trainer,
    BraTSOMNet0Trainer,
    BraTSOMNetCGAMinusTrainer,
    BraTSOMNetCGANonTumorTrainer,
    BraTSOMNetCGATrainer,
    BraTSOMNetCGATumorTrainer,
    BraTSOMNetDTrainer,
    BraTSOMNetSETrainer,
    BraTSOMNetTrainer,
)

__all__ = [
    "BraTS2DEnhancingTumorAugmentedTrainer",
    "BraTS2DEnhancingTumorTrainer",
    "BraTS2DTrainer",
    "BraTS2DTumorCoreAugmentedTrainer",
    "BraTS2DTumorCoreTrainer",
    "BraTS2DWholeTumorAugmentedTrainer",
    "BraTS2DWholeTumorTrainer",
    "BraTSAttentionVAETrainer",
    "BraTSBaselineTrainer",
    "BraTSCascadedUNetTrainer",
    "BraTSDeepSupervisionBTrainer",
    "BraTSDeepSupervisionCBAMTrainer",
    "BraTSDeepSupervisionTrainer",
    "BraTSMC1Trainer",
    "BraTSMC2Trainer",
    "BraTSMC3Trainer",
    "BraTSNoNewNetTrainer",
    "BraTSOMNet0Trainer",
    "BraTSOMNetCGAMinusTrainer",
    "BraTSOMNetCGANonTumorTrainer",
    "BraTSOMNetCGATrainer",
    "BraTSOMNetCGATumorTrainer",
    "BraTSOMNetDTrainer",
    "BraTSOMNetSETrainer",
    "BraTSOMNetTrainer",
    "BraTSResUNetVAETrainer",
    "BraTSStudentTrainer",
    "BraTSVAETrainer",
]
