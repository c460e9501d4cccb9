"""The weights of chosen epochs, for ensembles and for the maps of a second stage."""

from pathlib import Path

import torch

from nnunet_brats_ext.training.checkpoints import writing_checkpoint
from nnunet_brats_ext.training.environment import requested_snapshots
from nnunet_brats_ext.training.seams import PlainTrainer


class Snapshots(PlainTrainer):
    """Mixin: keeps the weights after the epochs of the trainer's facts and those that the environment names."""

    def on_epoch_end(self) -> None:
        # Before nnU-Net's checkpoint of this epoch, from which an interrupted training would go on without coming here.
        epochs = self.current_epoch + 1
        if epochs in self.snapshot_epochs() and self.local_rank == 0 and not self.disable_checkpointing:
            self.save_snapshot(Path(self.output_folder, f"checkpoint_epoch_{epochs}.pth"), epochs)
        super().on_epoch_end()

    def snapshot_epochs(self) -> tuple[int, ...]:
        """After how many epochs to keep the weights."""
        return tuple(sorted({*self.all_facts().snapshot_epochs, *requested_snapshots()}))

    def save_snapshot(self, file: Path, epochs: int) -> None:
        """Write what inference needs of a checkpoint, without the optimiser's state, which is twice as large."""
        snapshot = {
            "network_weights": self.bare_network.state_dict(),
            "current_epoch": epochs,
            "init_args": self.my_init_kwargs,
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
        }
        with writing_checkpoint(file) as partial:
            torch.save(snapshot, partial)
