"""Roy et al. 2023, MedNeXt: https://arxiv.org/abs/2303.09975.

The schedule and everything that the paper leaves open is that of the authors' release,
https://github.com/MIC-DKFZ/MedNeXt: nnU-Net's own but for AdamW.
"""

import numpy as np
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from nnunet_brats_ext.architectures.mednext import MedNeXt
from nnunet_brats_ext.trainers.roy2023.upkern import UpKern
from nnunet_brats_ext.training.base import BraTSTrainer


class MedNeXtTrainer(BraTSTrainer):
    """What all sizes of Roy et al. 2023 (https://arxiv.org/abs/2303.09975) share; train with a subclass."""

    architecture = MedNeXt
    one_draw_per_case = False
    hyperparameters = dict(initial_lr=1e-3)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        parameters = self.network.parameters()
        optimizer = torch.optim.AdamW(parameters, self.initial_lr, weight_decay=self.weight_decay, eps=1e-4)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """All scales that the network gives, also the deepest two, of which nnU-Net leaves out one and weighs none."""
        if not self.enable_deep_supervision:
            return None
        return (1 / np.cumprod(self.inference_network.strides, axis=0)).tolist()

    def _build_loss(self) -> torch.nn.Module:
        loss = super()._build_loss()
        if isinstance(loss, DeepSupervisionWrapper):
            halved = [0.5**level for level in range(len(self.inference_network.strides))]
            loss.weight_factors = tuple(weight / sum(halved) for weight in halved)
        return loss


class BraTSMedNeXtSTrainer(MedNeXtTrainer):
    """MedNeXt, size S with kernel 3: Roy et al. 2023, https://arxiv.org/abs/2303.09975."""


class BraTSMedNeXtBTrainer(MedNeXtTrainer):
    """MedNeXt, size B with kernel 3: Roy et al. 2023, https://arxiv.org/abs/2303.09975."""

    network_options = dict(expansion_per_stage=(2, 3, 4, 4, 4))


class BraTSMedNeXtMTrainer(MedNeXtTrainer):
    """MedNeXt, size M with kernel 3: Roy et al. 2023, https://arxiv.org/abs/2303.09975."""

    network_options = dict(n_blocks_per_stage=(3, 4, 4, 4, 4), expansion_per_stage=(2, 3, 4, 4, 4), recompute=True)


class BraTSMedNeXtLTrainer(MedNeXtTrainer):
    """MedNeXt, size L with kernel 3: Roy et al. 2023, https://arxiv.org/abs/2303.09975."""

    network_options = dict(n_blocks_per_stage=(3, 4, 8, 8, 8), expansion_per_stage=(3, 4, 8, 8, 8), recompute=True)


class BraTSMedNeXtSKernel5Trainer(UpKern, BraTSMedNeXtSTrainer):
    """MedNeXt, size S with kernel 5, from the weights with kernel 3: Roy et al. 2023, https://arxiv.org/abs/2303.09975."""


class BraTSMedNeXtBKernel5Trainer(UpKern, BraTSMedNeXtBTrainer):
    """MedNeXt, size B with kernel 5, from the weights with kernel 3: Roy et al. 2023, https://arxiv.org/abs/2303.09975."""


class BraTSMedNeXtMKernel5Trainer(UpKern, BraTSMedNeXtMTrainer):
    """MedNeXt, size M with kernel 5, from the weights with kernel 3: Roy et al. 2023, https://arxiv.org/abs/2303.09975."""


class BraTSMedNeXtLKernel5Trainer(UpKern, BraTSMedNeXtLTrainer):
    """MedNeXt, size L with kernel 5, from the weights with kernel 3: Roy et al. 2023, https://arxiv.org/abs/2303.09975."""
