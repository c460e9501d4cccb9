"""Stochastic weight averaging: Izmailov et al. 2018, https://arxiv.org/abs/1803.05407, in cycles with restarts."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch.optim.swa_utils import AveragedModel, update_bn

from nnunet_brats_ext.training.final_weights import FinalWeights
from nnunet_brats_ext.training.optimizers import EpochSchedule, cosine


class Timeline(NamedTuple):
    cycles: tuple[range, ...]  # the epochs of each; those before belong to the base schedule
    snapshots: frozenset[int]  # numbers of epochs after which the weights join the average


@dataclass(frozen=True)
class Cycles:
    """What follows the base schedule; the defaults are those of Henry et al. 2020, https://arxiv.org/abs/2011.01045.

    Every cycle starts with a new Adam at `initial_lr`, which falls along a cosine that would end after
    `cosine_epochs`. The average is that of the weights after the base schedule, if `averages_base`, and after every
    `snapshot_every` epochs of a cycle, with equal weights: 51 of them.
    """

    base_epochs: int = 200
    cycles: int = 5
    cycle_epochs: int = 30
    snapshot_every: int = 3
    initial_lr: float = 5e-5
    cosine_epochs: int = 40
    averages_base: bool = True

    @property
    def epochs(self) -> int:
        return self.base_epochs + self.cycles * self.cycle_epochs

    def timeline(self, num_epochs: int) -> Timeline:
        """Base and cycles in a run of `num_epochs`, every date in proportion; cycles that become empty are left out."""

        def scaled(epoch: int) -> int:
            return round(epoch * num_epochs / self.epochs)

        limits = [self.base_epochs + cycle * self.cycle_epochs for cycle in range(self.cycles + 1)]
        cycles = (range(scaled(start), scaled(end)) for start, end in pairwise(limits))
        steps = range(self.snapshot_every, self.cycle_epochs + 1, self.snapshot_every)
        snapshots = {start + step for start in limits[:-1] for step in steps}
        if self.averages_base:
            snapshots.add(self.base_epochs)
        return Timeline(tuple(filter(len, cycles)), frozenset(map(scaled, snapshots)))

    def learning_rate(self, epoch: int, cycle: range) -> float:
        """Of an epoch of the run, in the cycle that it belongs to."""
        elapsed = (epoch - cycle.start) * self.cycle_epochs / len(cycle)
        return self.initial_lr * cosine(elapsed / self.cosine_epochs)


class StochasticWeightAveraging(FinalWeights):
    """Ends with the mean of weights along cycles of high learning rates: a mixin for any trainer.

    `num_epochs` counts base and cycles together; the trainer's own optimiser and schedule are for the base, as if it
    were the whole training. Where the network has batch normalisation, its statistics are computed for the mean, over
    one epoch.
    """

    averaging: Cycles = Cycles()
    cycle = 0  # that the optimiser belongs to, counted from 1; 0 is the base

    @property
    def timeline(self) -> Timeline:
        return self.averaging.timeline(self.num_epochs)

    def initialize(self) -> None:
        super().initialize()
        self.average = AveragedModel(self.inference_network, torch.device("cpu"))

    def configure_optimizers(self):
        if self.cycle:
            optimizer = torch.optim.Adam(self.network.parameters(), self.averaging.initial_lr)
            return optimizer, EpochSchedule(optimizer, self.learning_rate_in_cycle)
        cycles = self.timeline.cycles
        whole, self.num_epochs = self.num_epochs, max(1, cycles[0].start) if cycles else self.num_epochs
        try:
            return super().configure_optimizers()  # its schedule ends with num_epochs
        finally:
            self.num_epochs = whole

    def learning_rate_in_cycle(self, epoch: int) -> float:
        return self.averaging.learning_rate(epoch, self.timeline.cycles[self.cycle - 1])

    def enter(self, cycle: int) -> None:
        """Change to a new optimiser of a cycle, or of the base, which is 0."""
        self.cycle = cycle
        self.optimizer, self.lr_scheduler = self.configure_optimizers()

    def on_train_epoch_start(self) -> None:
        starts = [epochs.start for epochs in self.timeline.cycles]
        if self.current_epoch in starts:
            self.enter(starts.index(self.current_epoch) + 1)
            self.print_to_log_file(f"Weight averaging: cycle {self.cycle} of {len(starts)}")
        super().on_train_epoch_start()

    def on_epoch_end(self) -> None:
        if self.current_epoch + 1 in self.timeline.snapshots:  # before the checkpoint that this epoch may write
            self.average.update_parameters(self.inference_network)
        super().on_epoch_end()

    def conclude(self) -> None:
        if self.average.n_averaged == 0:
            return
        self.print_to_log_file(f"Weight averaging: the mean of {int(self.average.n_averaged)} sets of weights")
        self.inference_network.load_state_dict(self.average.module.state_dict())
        images = (next(self.dataloader_train)["data"] for _ in range(self.num_iterations_per_epoch))
        update_bn(images, self.network, self.device)  # draws none where there is no batch normalisation

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        average = None if self.concluded else self.average.state_dict()  # in the end it is the network
        own = {"cycle": self.cycle, "average": average, "averaged": int(self.average.n_averaged)}
        return super().extra_state() | own

    def prepare_for_extra_state(self, state: dict[str, Any]) -> None:
        super().prepare_for_extra_state(state)
        self.enter(state.get("cycle", 0))

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        if state["average"] is not None:
            self.average.load_state_dict(state["average"])
            return
        self.average.module.load_state_dict(self.inference_network.state_dict())
        # Version 0.1 did not store how many: those of a whole training of as many epochs.
        whole = sum(epoch > 0 for epoch in self.averaging.timeline(self.current_epoch).snapshots)
        self.average.n_averaged.fill_(state.get("averaged", whole))
