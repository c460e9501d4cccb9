"""Runs that the environment makes shorter, or repeatable: `nnUNet_brats_epochs`, `_iterations` and `_seed`."""

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunet_brats_ext.training.environment import EPOCHS, ITERATIONS, SEED, requested_number
from nnunet_brats_ext.training.randomness import seed_everything
from nnunet_brats_ext.training.seams import PlainTrainer


class ShortRuns(PlainTrainer):
    """Mixin: trains for as many epochs and iterations as the environment asks, and says so in the log.

    A recipe asks for epochs as part of its experiment; only fewer iterations make a trial run.
    """

    requested_iterations: int | None = None

    def set_hyperparameters(self) -> None:
        super().set_hyperparameters()
        asked = {name: requested_number(name, 1, "for a full training") for name in (EPOCHS, ITERATIONS)}
        if epochs := asked[EPOCHS]:
            self.print_to_log_file(f"{EPOCHS}={epochs}: {epochs} epochs instead of {self.num_epochs}")
            self.num_epochs = epochs
        if iterations := asked[ITERATIONS]:
            self.requested_iterations = iterations
            self.set_iterations(iterations)
            self.print_to_log_file(
                f"WARNING: SHORT RUN because of {ITERATIONS}={iterations}. Unset this variable to train in full."
            )

    def set_epoch_length(self, training: nnUNetBaseDataset, validation: nnUNetBaseDataset) -> None:
        if self.requested_iterations is None:
            super().set_epoch_length(training, validation)


class Seeded(PlainTrainer):
    """Mixin: starts from the random numbers that the environment asks for.

    nnU-Net's loader processes draw random numbers of their own; with `nnUNet_n_proc_DA=0` there are none, and training
    on a CPU then gives the same weights every time.
    """

    def set_hyperparameters(self) -> None:
        super().set_hyperparameters()
        if (number := requested_number(SEED, 0, "for other random numbers every time")) is not None:
            seed_everything(number + self.local_rank)
