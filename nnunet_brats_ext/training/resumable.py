"""nnU-Net's trainer with checkpoints from which a training goes on as if it had never been interrupted."""

from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_brats_ext import __version__
from nnunet_brats_ext.training.branches import NetworkWithBranch
from nnunet_brats_ext.training.checkpoints import (
    OURS,
    check_bytes,
    read_checkpoint,
    require_fitting_weights,
    writing_checkpoint,
)
from nnunet_brats_ext.training.optimizers import count_steps_on_cpu
from nnunet_brats_ext.training.randomness import random_state, restore_random_state, seed_everything


class ResumableTrainer(nnUNetTrainer):
    """nnU-Net's trainer whose checkpoints are written at once and hold its whole state.

    Under one key of ours a checkpoint has the version, the states of all random generators, the weights of a
    training branch, and what `extra_state` gives.
    """

    random_state_to_restore: dict[str, Any] | None = None  # of a checkpoint, until training goes on

    @property
    def bare_network(self) -> nn.Module:
        """The module behind DistributedDataParallel and torch.compile, with its training branch."""
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    @property
    def inference_network(self) -> nn.Module:
        """The bare network without its training branch."""
        network = self.bare_network
        return network.network if isinstance(network, NetworkWithBranch) else network

    def extra_state(self) -> dict[str, Any]:
        """Seam: what to keep besides network and optimiser; a class adds to what `super().extra_state()` gives."""
        return {}

    def prepare_for_extra_state(self, state: dict[str, Any]) -> None:
        """Seam: change the optimiser to the one that a checkpoint with this `extra_state` fills; {} without one."""

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Seam: take back what `extra_state` gave, once the network has its weights."""

    def save_checkpoint(self, filename: str) -> None:
        if self.local_rank != 0 or self.disable_checkpointing:
            return super().save_checkpoint(filename)
        network = self.bare_network
        with writing_checkpoint(Path(filename)) as partial:
            super().save_checkpoint(str(partial))
            checkpoint = torch.load(partial, map_location="cpu", weights_only=False)
            checkpoint[OURS] = {
                "version": __version__,
                "random_state": random_state(),
                "training_branch": network.branch.state_dict() if isinstance(network, NetworkWithBranch) else None,
                "extra": self.extra_state(),
            }
            torch.save(checkpoint, partial)
        return None

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        if not self.was_initialized:
            self.initialize()
        file = Path(filename_or_checkpoint)
        checkpoint = read_checkpoint(file)
        check_bytes(file)
        require_fitting_weights(file, checkpoint, self.bare_network, type(self).__name__)
        state = checkpoint.get(OURS)  # None where nnU-Net itself has written it
        self.prepare_for_extra_state(state["extra"] if state else {})
        super().load_checkpoint(filename_or_checkpoint)
        count_steps_on_cpu(self.optimizer)  # nnU-Net loads them onto the GPU
        if state is None:
            return
        if state["training_branch"] is not None and isinstance(self.bare_network, NetworkWithBranch):
            self.bare_network.branch.load_state_dict(state["training_branch"])
        self.random_state_to_restore = state["random_state"]
        self.load_extra_state(state["extra"])

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.random_state_to_restore is not None:  # not earlier: starting the loaders draws random numbers
            restore_random_state(self.random_state_to_restore)
            if self.local_rank:  # the checkpoint is of the first process; the others go on with numbers of their own
                seed_everything(int(torch.randint(2**31, ())) + self.local_rank)
            self.random_state_to_restore = None
