"""The loss of OM-Net, with online training data transfer: Zhou et al. 2020, https://arxiv.org/abs/1906.01796."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_brats_ext.architectures.omnet.networks import TaskOutput
from nnunet_brats_ext.architectures.omnet.tasks import CLASSES, CORE, ET, TUMOUR
from nnunet_brats_ext.losses.precision import wide

Transfer = Mapping[int, tuple[Collection[int], float]]
"""By task: a patch of an earlier task also trains this one if these labels fill at least this share of its voxels."""

TRANSFER: Transfer = {1: (TUMOUR, 0.4), 2: (CORE, 0.5)}
RELEASED_TRANSFER: Transfer = {**TRANSFER, 1: (TUMOUR, 6553 / 16384)}  # 0.4 of a patch of 16 x 32 x 32, rounded down


def selected_rows(labels: Tensor, task: int, rows_per_task: int, transfer: Transfer = TRANSFER) -> Tensor:
    """Which rows train a task: labels (n, *s), of which the last `rows_per_task` rows are its own data -> bool (n,).

    Its own rows always do; those before them only by the rules of data transfer, which may be none.
    """
    own = torch.arange(len(labels), device=labels.device) >= len(labels) - rows_per_task
    if task not in transfer:
        return own
    classes, share = transfer[task]
    filled = torch.stack([labels == label for label in classes]).any(0).flatten(1).float().mean(1)
    return own | (filled >= share)


def mean_over_rows(rows: Tensor, selected: Tensor) -> Tensor:
    """The mean of the selected rows (n,); over all ranks, once DistributedDataParallel has averaged the gradients."""
    count = selected.sum().to(rows.dtype)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return (rows * selected).sum() / count


class MultiTaskCrossEntropy(nn.Module):
    """The sum of the tasks' cross-entropies, each averaged over the rows that train it: Zhou et al. 2020.

    TaskOutput, target [regions, labels (b, 1, *s) of the five classes] -> scalar, fp32 or wider; b is `tasks` blocks of
    one size. In a distributed run the means are those of all ranks.
    """

    latest: dict[str, Tensor]
    """The loss of each task in the latest call, by name, for the log."""

    def __init__(self, tasks: int = len(CLASSES), transfer: Transfer = TRANSFER):
        super().__init__()
        self.tasks, self.transfer = tasks, transfer
        self.latest = {}

    def forward(self, output: TaskOutput, target: Sequence[Tensor]) -> Tensor:
        labels = target[1][:, 0].long()
        rows = len(labels) // self.tasks
        losses = {}
        for task, scores in output.scores.items():
            end = (task + 1) * rows
            seen = labels[end - len(scores) : end]
            selected = selected_rows(seen, task, rows, self.transfer)
            truth = (seen == ET).long() if CLASSES[task] == 2 else seen
            with torch.autocast(scores.device.type, enabled=False):
                voxels = functional.cross_entropy(wide(scores), truth, reduction="none")
            losses[f"task {task + 1}"] = mean_over_rows(voxels.flatten(1).mean(1), selected)
        self.latest = {name: value.detach() for name, value in losses.items()}
        return torch.stack(list(losses.values())).sum()
