"""Learning rates that follow what training does, rather than the number of the epoch."""

from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau


class PlateauOfEpochs(ReduceLROnPlateau):
    """torch's `ReduceLROnPlateau` where nnU-Net steps at the start of an epoch, before it has anything to show.

    `step` therefore does nothing, and `observe` takes the value of an epoch once it is over.
    """

    def step(self, metrics: Any = None, epoch: Any = None) -> None:  # type: ignore[override]
        """nnU-Net's call, with the number of the epoch."""

    def observe(self, value: float) -> None:
        super().step(value)
