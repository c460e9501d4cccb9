"""Trainings that start from the final weights of another trainer, fold by fold."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.nnunet import FINAL, model_name, train_command
from nnunet_brats_ext.training.checkpoints import check_bytes, read_checkpoint, require_fitting_weights
from nnunet_brats_ext.training.environment import START
from nnunet_brats_ext.training.seams import PlainTrainer

AT_RANDOM = "random"


class StartsFromAnother(PlainTrainer):
    """Mixin: starts from the weights of the trainer that its facts name in `starts_from`.

    They are those of the same fold, plans and configuration. Without them it is an error that gives the command which
    trains them; `nnUNet_brats_start=random` starts from random weights instead, or from `-pretrained_weights`.
    """

    def adapt_weights(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Seam: the other trainer's weights as this network takes them, by name."""
        return weights

    def on_train_start(self) -> None:
        begun = self.was_initialized and self.random_state_to_restore is not None  # by a checkpoint
        super().on_train_start()
        if not begun and self.current_epoch == 0 and not starts_at_random():
            self.start_from(self.find_start())

    def find_start(self) -> Path:
        """The checkpoint to start from; where there is none, an error with the command that makes it."""
        trainer, plans = self.all_facts().starts_from, self.plans_manager.plans_name
        if trainer is None:
            raise AttributeError(f"the facts of {type(self).__name__} name no trainer in `starts_from`")
        own = Path(self.output_folder)
        file = own.parents[1] / model_name(trainer, plans, self.configuration_name) / own.name / FINAL
        if not file.is_file():
            dataset, fold = self.plans_manager.dataset_name, own.name.removeprefix("fold_")
            raise UserError(
                f"{type(self).__name__} starts from the weights of {trainer}, and there is no {file}. Train it first:\n"
                f"  {train_command(dataset, self.configuration_name, fold, trainer, plans)}\n"
                f"or start from random weights with {START}={AT_RANDOM}"
            )
        return file

    def start_from(self, file: Path) -> None:
        """Take the weights of a checkpoint of the other trainer."""
        checkpoint = read_checkpoint(file, ("network_weights",), advice="Train that fold again")
        check_bytes(file, advice="Train that fold again")
        weights = self.adapt_weights(checkpoint["network_weights"])
        require_fitting_weights(file, checkpoint | {"network_weights": weights}, self.bare_network, type(self).__name__)
        self.bare_network.load_state_dict(weights)
        self.print_to_log_file(f"Starts from the weights in {file}")


def starts_at_random() -> bool:
    """Whether the environment asks for random weights; any other value than `random` is an error that quotes it."""
    value = os.environ.get(START, "")
    if value not in ("", AT_RANDOM):
        raise UserError(f"{START}={value}: expected {AT_RANDOM!r}; unset it for the weights of the other trainer")
    return bool(value)
