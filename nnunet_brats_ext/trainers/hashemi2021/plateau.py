"""The learning rate of Hashemi et al. 2021, https://github.com/Nima-Hs/BraTS: reduced where the loss stagnates."""

from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau


class PlateauOfEpochs(ReduceLROnPlateau):
    """ReduceLROnPlateau adapter: nnU-Net calls `step` at the start of an epoch, when there is no loss yet.

    `step` therefore does nothing, and `observe` takes the loss of an epoch when it is over.
    """

    def step(self, metrics: Any = None, epoch: Any = None) -> None:  # type: ignore[override]
        """nnU-Net's call, with the number of the epoch."""

    def observe(self, value: float) -> None:
        super().step(value)
