"""OM-Net and the model cascade that it replaces: Zhou et al. 2020, https://arxiv.org/abs/1906.01796.

While they train, a batch holds the data of all tasks in blocks of equal size, [Data-1 | Data-2 | Data-3].
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunet_brats_ext.architectures.blocks import ConvOp
from nnunet_brats_ext.architectures.omnet.backbone import FEATURES, STRIDES, FusionNet, initialise
from nnunet_brats_ext.architectures.omnet.fusion import fuse_regions
from nnunet_brats_ext.architectures.omnet.heads import CrossTaskGuidedAttention, TaskHead
from nnunet_brats_ext.architectures.omnet.tasks import CLASSES, CORE, REGIONS, TUMOUR


class TaskOutput(NamedTuple):
    """regions (b, 3, *s), None while training. scores: by task, of rows that end with the block of the task's data."""

    regions: Tensor | None
    scores: dict[int, Tensor]


class TaskNetwork(nn.Module):
    """What OM-Net and the model cascade share; eval mode: images (b, c, *s) -> logits of WT, TC, ET (b, 3, *s).

    Train mode gives a TaskOutput of the `active_tasks`. So does eval mode, of all tasks and with regions, where
    `deep_supervision`, nnU-Net's switch for more than one output, is on: validation wants both.
    """

    def __init__(self, num_classes: int, tasks: int, deep_supervision: bool):
        super().__init__()
        if num_classes != REGIONS:
            raise ValueError(f"OM-Net predicts WT, TC and ET; this dataset has {num_classes} regions")
        self.tasks, self.deep_supervision = tasks, deep_supervision
        self.active_tasks = tuple(range(tasks))

    @property
    @abstractmethod
    def task_modules(self) -> nn.ModuleList:
        """By task, what it trains and no other task does."""

    @abstractmethod
    def steps(self, phase: int) -> list[tuple[int, ...]]:
        """The tasks of each optimiser step on a batch, in phase 1, 2 or 3 of a curriculum."""

    @abstractmethod
    def training_scores(self, x: Tensor, rows: int) -> dict[int, Tensor]:
        """The scores of the active tasks; each task has `rows` rows of x."""

    @abstractmethod
    def all_scores(self, x: Tensor) -> list[Tensor]:
        """The scores of every task for every row."""

    def idle_parameters(self) -> list[nn.Parameter]:
        """Of the tasks that are not active; they get no gradient."""
        idle = [module for task, module in enumerate(self.task_modules) if task not in self.active_tasks]
        return [parameter for module in idle for parameter in module.parameters()]

    def forward(self, x: Tensor) -> TaskOutput | Tensor:
        rows = len(x) // self.tasks
        if self.training:
            return TaskOutput(None, _all_in_the_graph(self.training_scores(x, rows), self.idle_parameters()))
        scores = self.all_scores(x)
        regions = fuse_regions(scores)
        if not self.deep_supervision:
            return regions
        return TaskOutput(regions, {task: score[: (task + 1) * rows] for task, score in enumerate(scores)})


class OMNet(TaskNetwork):
    """One-pass multi-task network: one backbone, a head for each task on its own data and that of the tasks before.

    The sizes of its images must be multiples of the cumulated strides; see `FusionNet` for the arguments it shares.

    tasks: how many of the three. squeeze: reduction of squeeze-and-excitation in every head, or None. guidance: a name
    of `heads.GUIDANCE` for cross-task guided attention in the heads after the first, or None. With guidance every head
    sees all rows, as each needs the one before it; batch statistics are then those of all rows.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int = REGIONS,
        conv_op: ConvOp = nn.Conv3d,
        strides: Sequence[Sequence[int]] = STRIDES,
        features_per_stage: Sequence[int] = FEATURES,
        tasks: int = 3,
        squeeze: int | None = None,
        guidance: str | None = None,
        deep_supervision: bool = False,
    ):
        super().__init__(num_classes, tasks, deep_supervision)
        self.backbone = FusionNet(input_channels, conv_op, strides, features_per_stage)
        channels = self.backbone.output_channels
        heads: list[nn.Module] = [TaskHead(conv_op, channels, classes, squeeze) for classes in CLASSES[:tasks]]
        if guidance:
            heads[1:] = [
                CrossTaskGuidedAttention(conv_op, channels, classes, tumour, guidance)
                for classes, tumour in zip(CLASSES[1:tasks], (TUMOUR, CORE), strict=False)
            ]
        self.heads, self.guided = nn.ModuleList(heads), guidance is not None
        initialise(self)

    @property
    def task_modules(self) -> nn.ModuleList:
        return self.heads

    def steps(self, phase: int) -> list[tuple[int, ...]]:
        return [tuple(range(min(phase, self.tasks)))]

    def training_scores(self, x: Tensor, rows: int) -> dict[int, Tensor]:
        ends = [(task + 1) * rows for task in self.active_tasks]
        return dict(zip(self.active_tasks, self._score(x[: ends[-1]], ends), strict=True))

    def all_scores(self, x: Tensor) -> list[Tensor]:
        return self._score(x, [len(x)] * self.tasks)

    def _score(self, x: Tensor, ends: Sequence[int]) -> list[Tensor]:
        """The scores of as many tasks as there are ends, each of the rows up to its end."""
        features, scores, latest = self.backbone(x), [], None
        for head, end in zip(self.heads, ends, strict=False):
            latest = head(features if self.guided else features[:end], latest)
            scores.append(latest[:end])
        return scores


class ModelCascade(TaskNetwork):
    """The model cascade MC1, MC2 or MC3 of Zhou et al. 2020: a network for each task, on that task's data alone.

    Takes the arguments of `OMNet`. The networks learn one after the other, so that their gradients are clipped apart.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int = REGIONS,
        conv_op: ConvOp = nn.Conv3d,
        strides: Sequence[Sequence[int]] = STRIDES,
        features_per_stage: Sequence[int] = FEATURES,
        tasks: int = 3,
        deep_supervision: bool = False,
    ):
        super().__init__(num_classes, tasks, deep_supervision)
        self.networks = nn.ModuleList()
        for classes in CLASSES[:tasks]:
            backbone = FusionNet(input_channels, conv_op, strides, features_per_stage)
            self.networks.append(nn.Sequential(backbone, TaskHead(conv_op, backbone.output_channels, classes)))
            initialise(self.networks[-1])

    @property
    def task_modules(self) -> nn.ModuleList:
        return self.networks

    def steps(self, phase: int) -> list[tuple[int, ...]]:
        return [(task,) for task in range(min(phase, self.tasks))]

    def training_scores(self, x: Tensor, rows: int) -> dict[int, Tensor]:
        return {task: self.networks[task](x[task * rows : (task + 1) * rows]) for task in self.active_tasks}

    def all_scores(self, x: Tensor) -> list[Tensor]:
        return [network(x) for network in self.networks]


def _all_in_the_graph(scores: dict[int, Tensor], idle: Sequence[nn.Parameter]) -> dict[int, Tensor]:
    """The scores, with nothing added by the idle parameters: DistributedDataParallel waits for a gradient of each."""
    if idle and torch.distributed.is_available() and torch.distributed.is_initialized():
        first = next(iter(scores))
        scores[first] = scores[first] + 0 * sum(parameter.sum() for parameter in idle)
    return scores
