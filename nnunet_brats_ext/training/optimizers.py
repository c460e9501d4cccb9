"""Learning rates by epoch, and a speed-up of optimisers on GPUs."""

from collections.abc import Callable
from math import cos, pi

import torch
from torch import Tensor


def count_steps_on_cpu(optimizer: torch.optim.Optimizer) -> None:
    """Keep an optimiser's step counters on the CPU: all but fused ones read them, and would wait for the GPU."""
    for group in optimizer.param_groups:
        if not group.get("fused") and not group.get("capturable"):
            for state in (optimizer.state[p] for p in group["params"] if p in optimizer.state):
                if isinstance(state.get("step"), Tensor):
                    state["step"] = state["step"].cpu()


class EpochSchedule:
    """Learning-rate scheduler with nnU-Net's `step(epoch)`: the rate is a function of the epoch."""

    def __init__(self, optimizer: torch.optim.Optimizer, learning_rate: Callable[[int], float]):
        self.optimizer, self.learning_rate = optimizer, learning_rate

    def step(self, epoch: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(epoch)


def cosine(progress: float) -> float:
    """From 1 at progress 0, and before, to 0 at progress 1: SGDR's annealing, https://arxiv.org/abs/1608.03983."""
    return (1 + cos(pi * max(progress, 0.0))) / 2
