"""Trainings whose result is not what the last step left: mixins, to be listed before the trainer they change."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nnunet_brats_ext.training.base import BraTSTrainer


class FinalWeights(BraTSTrainer):
    """A training that puts other weights into its network when the last epoch is over.

    They are what `checkpoint_final.pth` holds and what the final validation uses; `checkpoint_latest.pth` and
    `checkpoint_best.pth` hold the weights of their epochs.
    """

    concluded = False  # by this process or the one that wrote the checkpoint; never done twice

    @abstractmethod
    def conclude(self) -> None:
        """Put into the network what training ends with."""

    def on_epoch_end(self) -> None:
        self.concluded = False  # also where a finished training is made longer
        super().on_epoch_end()

    def on_train_end(self) -> None:
        if not self.concluded:
            self.conclude()
            self.concluded = True
        super().on_train_end()

    def extra_state(self) -> dict[str, Any]:
        return super().extra_state() | {"concluded": self.concluded}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.concluded = state["concluded"]


class LowestValidationLoss(FinalWeights):
    """Ends with the weights of the epoch whose validation loss was lowest, the first of equals; nan never is."""

    lowest_loss = float("inf")
    weights_of_lowest_loss: Mapping[str, Tensor] | None = None

    def on_epoch_end(self) -> None:
        loss = float(self.logger.get_value("val_losses", step=-1))
        if loss < self.lowest_loss:
            self.lowest_loss = loss
            self.weights_of_lowest_loss = {
                name: value.detach().cpu().clone() for name, value in self.bare_network.state_dict().items()
            }
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
