"""OM-Net and the model cascade that it replaces: Zhou et al. 2020, https://arxiv.org/abs/1906.01796.

In training, a batch holds the data of all tasks in blocks of equal size, [Data-1 | Data-2 | Data-3].
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunet_brats_ext.architectures.blocks import ConvOp, FusingNetwork, Strides
from nnunet_brats_ext.architectures.omnet.backbone import FusionNet, initialise
from nnunet_brats_ext.architectures.omnet.fusion import LIMIT, fuse_regions
from nnunet_brats_ext.architectures.omnet.heads import CrossTaskGuidedAttention, TaskHead
from nnunet_brats_ext.architectures.omnet.tasks import CLASSES, CORE, REGIONS, TUMOUR
from nnunet_brats_ext.storage.errors import UserError

STRIDES = (1, 2, 2, 2)
FEATURES = (32, 64, 128, 256)


class TaskOutput(NamedTuple):
    """What the networks give in train mode.

    regions: logits (b, 3, *s); None in train mode.
    scores: by task, of the rows of the batch up to the end of the task's block, or of this block alone.
    """

    regions: Tensor | None
    scores: dict[int, Tensor]


class TaskNetwork(FusingNetwork):
    """Base class of OM-Net and the model cascade; the classes are WT, TC, ET.

    Train mode gives a TaskOutput of the `active_tasks`.
    """

    tasks: int
    """How many of the three tasks there are."""

    active_tasks: tuple[int, ...]
    """The tasks that train mode computes; all, until a curriculum says otherwise."""

    deep_supervision: bool
    """nnU-Net's switch for more than one output. On, eval mode gives a TaskOutput of all tasks, with regions, for the
    loss and the scores of validation; off, the regions alone."""

    def __init__(
        self, num_classes: int, conv_op: ConvOp, strides: Strides, stages: int, tasks: int, deep_supervision: bool
    ):
        super().__init__(conv_op, strides, stages)
        if num_classes != REGIONS:
            raise UserError(
                f"OM-Net predicts {REGIONS} regions, WT, TC and ET, but num_classes is {num_classes}: "
                "train it on a data set with these regions"
            )
        self.tasks, self.deep_supervision = tasks, deep_supervision
        self.active_tasks = tuple(range(tasks))

    @property
    @abstractmethod
    def task_modules(self) -> nn.ModuleList:
        """By task, the layers that this task alone trains."""

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
        """The parameters of the tasks that are not active, which get no gradient."""
        idle = [module for task, module in enumerate(self.task_modules) if task not in self.active_tasks]
        return [parameter for module in idle for parameter in module.parameters()]

    def fuse(self, scores: Tensor) -> Tensor:
        return fuse_regions(scores.split(CLASSES[: self.tasks], 1))

    def scores_of_background(self, x: Tensor) -> Tensor:
        scores = [x.new_zeros((len(x), classes, *x.shape[2:])) for classes in CLASSES[: self.tasks]]
        for task in scores:
            task[:, 0] = LIMIT
        return torch.cat(scores, 1)

    def forward(self, x: Tensor) -> TaskOutput | Tensor:
        rows = len(x) // self.tasks
        if self.training:
            return TaskOutput(None, _all_in_the_graph(self.training_scores(x, rows), self.idle_parameters()))
        scores = self.all_scores(x)
        if self.gives_scores:
            return torch.cat(scores, 1)
        regions = fuse_regions(scores)
        if not self.deep_supervision:
            return regions
        return TaskOutput(regions, {task: score[: (task + 1) * rows] for task, score in enumerate(scores)})


class OMNet(TaskNetwork):
    """One-pass multi-task network of Zhou et al. 2020, https://arxiv.org/abs/1906.01796: one backbone, a head per task.

    In train mode, a head sees the rows of its own task and of those before it. With guidance every head sees all rows,
    as each needs the scores of the one before; batch statistics are then those of all rows. In eval mode, the tasks'
    scores are fused to logits of WT, TC and ET. The arguments are those of `SegmentationNetwork` and:

    tasks: how many of the three. squeeze: reduction of squeeze-and-excitation in every head, or None.
    guidance: a name of `heads.GUIDANCE` for cross-task guided attention in the heads after the first, or None.
    deep_supervision: see the attribute.

    >>> OMNet(input_channels=4, num_classes=3).eval()(torch.zeros(1, 4, 8, 16, 16)).shape
    torch.Size([1, 3, 8, 16, 16])
    """

    guided: bool
    """Whether the heads after the first are `CrossTaskGuidedAttention`."""

    def __init__(
        self,
        input_channels: int,
        num_classes: int = REGIONS,
        conv_op: ConvOp = nn.Conv3d,
        strides: Strides = STRIDES,
        features_per_stage: Sequence[int] = FEATURES,
        tasks: int = 3,
        squeeze: int | None = None,
        guidance: str | None = None,
        deep_supervision: bool = False,
    ):
        super().__init__(num_classes, conv_op, strides, len(features_per_stage), tasks, deep_supervision)
        self.backbone = FusionNet(input_channels, conv_op, self.strides, features_per_stage)
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
        """The scores of the first tasks, each of the rows up to its end."""
        features, scores, latest = self.backbone(x), [], None
        for head, end in zip(self.heads, ends, strict=False):
            latest = head(features if self.guided else features[:end], latest)
            scores.append(latest[:end])
        return scores


class ModelCascade(TaskNetwork):
    """Model cascade MC1, MC2 or MC3 of Zhou et al. 2020, https://arxiv.org/abs/1906.01796: a network for each task.

    Each network sees its own task's rows alone in train mode, and has an optimiser step of its own, so that gradients
    are clipped separately. The arguments are those of `OMNet`, without `squeeze` and `guidance`.

    >>> ModelCascade(input_channels=4, num_classes=3).eval()(torch.zeros(1, 4, 8, 16, 16)).shape
    torch.Size([1, 3, 8, 16, 16])
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int = REGIONS,
        conv_op: ConvOp = nn.Conv3d,
        strides: Strides = STRIDES,
        features_per_stage: Sequence[int] = FEATURES,
        tasks: int = 3,
        deep_supervision: bool = False,
    ):
        super().__init__(num_classes, conv_op, strides, len(features_per_stage), tasks, deep_supervision)
        self.networks = nn.ModuleList()
        for classes in CLASSES[:tasks]:
            backbone = FusionNet(input_channels, conv_op, self.strides, features_per_stage)
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
    """The scores plus zero times the idle parameters, because DistributedDataParallel waits for a gradient of each."""
    if idle and torch.distributed.is_available() and torch.distributed.is_initialized():
        first = next(iter(scores))
        scores[first] = scores[first] + 0 * sum(parameter.sum() for parameter in idle)
    return scores
