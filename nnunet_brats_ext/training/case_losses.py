"""The training loss of every case, epoch by epoch, for `nnunet_brats filter-cases`."""

from collections import defaultdict
from itertools import chain
from math import isfinite
from pathlib import Path

from torch import distributed

from nnunet_brats_ext.dataset_conversion.case_filtering import CASE_LOSSES, case_losses_line
from nnunet_brats_ext.training.seams import PlainTrainer


class CaseLosses(PlainTrainer):
    """Logs the mean training loss of every case, one line of JSON per epoch; a mixin for any trainer.

    Henry et al. 2020 (https://arxiv.org/abs/2011.01045) drop the cases whose loss stays high. In a batch of several
    cases the loss of the batch counts for each of them. A training from the start begins a new file.
    """

    def initialize(self) -> None:
        super().initialize()
        self._drawn: list[tuple[str, float]] = []  # in this epoch: case, loss

    def on_train_epoch_start(self) -> None:
        self._drawn.clear()
        super().on_train_epoch_start()

    def train_step(self, batch: dict) -> dict:
        losses = super().train_step(batch)
        self._drawn += [(str(case), float(losses["loss"])) for case in batch.get("keys", ())]
        return losses

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        drawn = [self._drawn]
        if self.is_ddp:
            drawn = [[] for _ in range(distributed.get_world_size())]
            distributed.all_gather_object(drawn, self._drawn)
        losses = defaultdict(list)
        for case, loss in chain.from_iterable(drawn):
            if isfinite(loss):  # the gradient scaler skipped such a step
                losses[case].append(loss)
        if self.local_rank == 0:
            with Path(self.output_folder, CASE_LOSSES).open("a" if self.current_epoch else "w") as file:
                file.write(case_losses_line(self.current_epoch, losses))
