"""Trainings that end with other weights than those of their last step: mixins, to be listed before a trainer."""

from abc import abstractmethod
from collections.abc import Mapping
from math import inf
from typing import Any

from torch import Tensor

from nnunet_brats_ext.training.checkpoints import copy_weights
from nnunet_brats_ext.training.seams import PlainTrainer


class FinalWeights(PlainTrainer):
    """Base class of mixins: a training that puts other weights into its network when the last epoch is over.

    `checkpoint_final.pth` and the final validation have them; `checkpoint_latest.pth` and `checkpoint_best.pth` have
    the weights of their epochs. A finished training that is made longer goes on from the weights of its last epoch, as
    if it had not ended. What a subclass has collected for its end, such as an average, must survive the end: in memory,
    and in `checkpoint_final.pth`, where the network's own weights may stand for it.
    """

    concluded = False  # by this process or the one that wrote the checkpoint
    weights_of_last_epoch: Mapping[str, Tensor] | None = None  # while the network has those of the end

    @abstractmethod
    def conclude(self) -> None:
        """Put into the network what training ends with."""

    def on_epoch_start(self) -> None:
        if self.concluded:  # a finished training is made longer
            if self.weights_of_last_epoch is not None:
                self.bare_network.load_state_dict(self.weights_of_last_epoch)
            self.concluded, self.weights_of_last_epoch = False, None
        super().on_epoch_start()

    def on_train_end(self) -> None:
        if not self.concluded:
            self.weights_of_last_epoch = copy_weights(self.bare_network)
            self.conclude()
            self.concluded = True
        super().on_train_end()

    def extra_state(self) -> dict[str, Any]:
        own = {"concluded": self.concluded, "weights_of_last_epoch": self.weights_of_last_epoch}
        return super().extra_state() | own

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.concluded = state["concluded"]
        self.weights_of_last_epoch = state.get("weights_of_last_epoch")  # version 0.1 did not store them


class LowestValidationLoss(FinalWeights):
    """Ends with the weights of the epoch whose validation loss was lowest, the first of equals; nan never is."""

    lowest_loss = inf
    weights_of_lowest_loss: Mapping[str, Tensor] | None = None

    def on_epoch_end(self) -> None:
        loss = float(self.logger.get_value("val_losses", step=-1))
        if loss < self.lowest_loss:
            self.lowest_loss, self.weights_of_lowest_loss = loss, copy_weights(self.bare_network)
            self.print_to_log_file(f"Lowest validation loss so far: {loss:.4f}")
        super().on_epoch_end()

    def conclude(self) -> None:
        if self.weights_of_lowest_loss is not None:
            self.bare_network.load_state_dict(self.weights_of_lowest_loss)

    def extra_state(self) -> dict[str, Any]:
        kept = None if self.concluded else self.weights_of_lowest_loss  # in the end they are the network's own
        return super().extra_state() | {"lowest_loss": self.lowest_loss, "weights_of_lowest_loss": kept}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.lowest_loss, self.weights_of_lowest_loss = state["lowest_loss"], state["weights_of_lowest_loss"]
        if self.concluded and self.lowest_loss < inf:
            self.weights_of_lowest_loss = copy_weights(self.bare_network)
