"""Zhou et al. 2020: OM-Net, one network for three nested tasks, with cross-task guided attention; and its ablations.

https://arxiv.org/abs/1906.01796. Meant for the configuration `omnet` of `nnunet_brats plan`: patches of 16 x 32 x 32,
20 per task; on much larger patches, the samplers and the data transfer hardly distinguish the tasks.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, ClassVar

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from torch import Tensor, nn

from nnunet_brats_ext.architectures.omnet.networks import ModelCascade, OMNet
from nnunet_brats_ext.architectures.omnet.tasks import CLASSES
from nnunet_brats_ext.losses.multi_task import (
    RELEASED_TRANSFER,
    TRANSFER,
    MultiTaskCrossEntropy,
    Transfer,
    selected_rows,
)
from nnunet_brats_ext.papers import Difference
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.trainers.zhou2020.paper import PAPER
from nnunet_brats_ext.trainers.zhou2020.sampling import TaskDraws
from nnunet_brats_ext.trainers.zhou2020.transforms import TaskTargets
from nnunet_brats_ext.training.base import BraTSTrainer
from nnunet_brats_ext.training.optimizers import EpochSchedule
from nnunet_brats_ext.training.planned_network import PlannedNetwork


def curriculum_phase(epoch: int, epochs: int) -> int:
    """How many tasks are trained in an epoch: one for a twentieth of the epochs, two for another, then all three."""
    return 1 + (20 * epoch >= epochs) + (10 * epoch >= epochs)


class ZhouTrainer(BraTSTrainer):
    """What all networks of Zhou et al. 2020 (https://arxiv.org/abs/1906.01796) share; train with one of its subclasses.

    The paper's 400,000 iterations are 1000 epochs of 400; batches hold the configuration's batch size for each task.
    """

    differences = PAPER.switches("residual_blocks")
    hyperparameters = dict(
        initial_lr=1e-3,
        weight_decay=5e-4,
        num_epochs=1000,
        num_iterations_per_epoch=400,
        oversample_foreground_percent=1.0,  # every patch is centred by `TaskDraws`
    )
    one_draw_per_case = False
    architecture: ClassVar[type[nn.Module]] = OMNet
    curriculum: ClassVar[bool] = True
    data_transfer: ClassVar[bool] = True
    augmented: bool = False
    """On, nnU-Net's augmentation; the paper mentions none. A training goes on as it began."""

    @classmethod
    def build_network(
        cls, planned: PlannedNetwork, input_channels: int, num_classes: int, deep_supervision: bool
    ) -> nn.Module:
        return cls.architecture(
            input_channels,
            num_classes,
            conv_op=planned.conv_op,
            strides=planned.strides,
            deep_supervision=deep_supervision,
            **cls.all_network_options(),
        )

    @classmethod
    def all_differences(cls) -> dict[str, Difference]:
        """With those of the curriculum, of data transfer and of the rows per head, where the class has them."""
        heads_see_rows = issubclass(cls.architecture, OMNet) and not super().all_network_options().get("guidance")
        does = {"rows_of_heads": heads_see_rows, "curriculum": cls.curriculum, "transfer_share": cls.data_transfer}
        return super().all_differences() | PAPER.switches(*(name for name, done in does.items() if done))

    @classmethod
    def all_network_options(cls) -> dict[str, Any]:
        # Only where it is followed: a user's own network may not know the option.
        written = {"sum_last": True} if cls.follows_text("residual_blocks") else {}
        return written | super().all_network_options()

    @property
    def tasks(self) -> int:
        return self.all_network_options().get("tasks", len(CLASSES))

    @property
    def transfer(self) -> Transfer:
        """The rules by which patches of earlier tasks train later ones."""
        if not self.data_transfer:
            return {}
        return TRANSFER if self.follows_text("transfer_share") else RELEASED_TRANSFER

    @property
    def phase(self) -> int:
        """How many tasks are trained in this epoch."""
        if self.curriculum and self.follows_text("curriculum"):
            return curriculum_phase(self.current_epoch, self.num_epochs)
        return len(CLASSES)

    def initialize(self) -> None:
        require_nested_regions(self.label_manager.foreground_regions, self.dataset_json["labels"])
        super().initialize()

    def _set_batch_size_and_oversample(self) -> None:
        super()._set_batch_size_and_oversample()
        self.batch_size *= self.tasks

    # ---- network, loss, optimiser ----------------------------------------------------------------------------------

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        self.bare_network.deep_supervision = enabled

    def _get_deep_supervision_scales(self) -> list[list[float]]:
        # Two targets at full size: regions, which nnU-Net scores in validation, and labels, which the loss compares.
        return [[1.0] * len(self.configuration_manager.patch_size)] * 2

    def _build_loss(self) -> MultiTaskCrossEntropy:
        return MultiTaskCrossEntropy(self.tasks, self.transfer)

    def loss_terms(self) -> Mapping[str, Tensor]:
        return self.loss.latest

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, EpochSchedule]:
        layers = [m for m in self.network.modules() if isinstance(getattr(m, "bias", None), nn.Parameter)]
        biases = [layer.bias for layer in layers if layer.weight.ndim > 1]  # batch normalisation decays as a whole
        others = [p for p in self.network.parameters() if all(p is not bias for bias in biases)]
        optimizer = torch.optim.SGD(
            [{"params": others}, {"params": biases, "weight_decay": 0.0}],
            self.initial_lr,
            momentum=0.99,
            weight_decay=self.weight_decay,
        )
        epochs = self.num_epochs
        return optimizer, EpochSchedule(optimizer, lambda epoch: self.initial_lr * 0.5 ** (5 * epoch // epochs))

    def _drop_idle_gradients(self, *_: Any) -> None:
        # DistributedDataParallel gives them zeros for gradients, on which momentum and weight decay would act.
        for parameter in self.bare_network.idle_parameters():
            parameter.grad = None

    def _choose_rows(self, batch: dict, tasks: Sequence[int]) -> None:
        """Let heads see the rows alone that train them, as the text has it, where their output guides no other head."""
        network = self.bare_network
        if isinstance(network, OMNet) and not network.guided and self.follows_text("rows_of_heads"):
            labels = batch["target"][1][:, 0].to(self.device)
            rows = len(labels) // self.tasks
            network.transferred = {
                task: selected_rows(labels[: (task + 1) * rows], task, rows, self.transfer) for task in tasks[1:]
            }

    def train_step(self, batch: dict) -> dict:
        steps = []
        hook = self.optimizer.register_step_pre_hook(self._drop_idle_gradients)
        for tasks in self.bare_network.steps(self.phase):
            self.bare_network.active_tasks = tasks
            self._choose_rows(batch, tasks)
            steps.append(super().train_step(batch))
        hook.remove()
        merged = {name: value for step in steps for name, value in step.items()}
        return merged | {"loss": sum(step["loss"] for step in steps)}

    # ---- data ------------------------------------------------------------------------------------------------------

    def sampling(self, cases: nnUNetBaseDataset) -> TaskDraws:
        *_, patch_size, _ = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        regions = self.label_manager.foreground_regions
        return TaskDraws(cases, regions, self.tasks, self.batch_size // self.tasks, patch_size)

    def extra_state(self) -> dict[str, Any]:
        return super().extra_state() | {"augmented": self.augmented}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.augmented = state.get("augmented", True)  # version 0.1 did not store it

    def augmentation(self) -> list[BasicTransform] | None:
        return None if self.augmented else []

    def get_training_transforms(self, *geometry: Any, **labels: Any) -> BasicTransform:
        transforms = super().get_training_transforms(*geometry, **labels)
        if not self.augmented:
            return transforms
        # nnU-Net's transforms before the one that removes the label of what is outside the brain, which targets need.
        augmenting = takewhile(lambda one: not isinstance(one, RemoveLabelTansform), transforms.transforms)
        return ComposeTransforms([*augmenting, TaskTargets(labels["regions"])])

    def get_validation_transforms(self, *scales: Any, **labels: Any) -> BasicTransform:
        return ComposeTransforms([TaskTargets(labels["regions"])])


def require_nested_regions(regions: list, labels: dict) -> None:
    """The tasks are WT, TC and ET, each within the one before; anything else is an error that quotes it."""
    sets = [{region} if isinstance(region, int) else set(region) for region in regions]
    if len(sets) != 3 or not sets[0] > sets[1] > sets[2] or "ignore" in labels:
        raise UserError(
            f"OM-Net needs three regions, each within the one before, and nothing to ignore; dataset.json has {labels}"
        )


class BraTSOMNetTrainer(ZhouTrainer):
    """OM-Net of Zhou et al. 2020 (https://arxiv.org/abs/1906.01796): shared backbone, curriculum, data transfer."""


class BraTSOMNetSETrainer(ZhouTrainer):
    """OM-Net with squeeze-and-excitation before every head: Zhou et al. 2020, https://arxiv.org/abs/1906.01796."""

    network_options = dict(squeeze=16)


class BraTSOMNetCGATrainer(ZhouTrainer):
    """OM-Net with cross-task guided attention: Zhou et al. 2020, https://arxiv.org/abs/1906.01796."""

    network_options = dict(guidance="full")


class BraTSOMNetCGAMinusTrainer(ZhouTrainer):
    """Ablation CGA- of Zhou et al. 2020 (https://arxiv.org/abs/1906.01796): scores added up, not composed by voxel."""

    network_options = dict(guidance="minus")


class BraTSOMNetCGATumorTrainer(ZhouTrainer):
    """Ablation CGAt of Zhou et al. 2020 (https://arxiv.org/abs/1906.01796): attention to the tumour alone."""

    network_options = dict(guidance="tumour")


class BraTSOMNetCGANonTumorTrainer(ZhouTrainer):
    """Ablation CGAn of Zhou et al. 2020 (https://arxiv.org/abs/1906.01796): attention to the rest alone."""

    network_options = dict(guidance="non_tumour")


class BraTSOMNet0Trainer(ZhouTrainer):
    """Ablation OM-Net0 of Zhou et al. 2020 (https://arxiv.org/abs/1906.01796): neither curriculum nor data transfer."""

    curriculum, data_transfer = False, False


class BraTSOMNetDTrainer(ZhouTrainer):
    """Ablation OM-Netd of Zhou et al. 2020 (https://arxiv.org/abs/1906.01796): data transfer without curriculum."""

    curriculum = False


class BraTSMC1Trainer(ZhouTrainer):
    """The first network of Zhou et al.'s model cascade (https://arxiv.org/abs/1906.01796): all labels in one task."""

    architecture, curriculum, data_transfer = ModelCascade, False, False
    network_options = dict(tasks=1)


class BraTSMC2Trainer(ZhouTrainer):
    """Model cascade of two networks, coarse and fine: Zhou et al. 2020, https://arxiv.org/abs/1906.01796."""

    architecture, curriculum, data_transfer = ModelCascade, False, False
    network_options = dict(tasks=2)


class BraTSMC3Trainer(ZhouTrainer):
    """Model cascade of three networks, which OM-Net is compared with: Zhou et al. 2020, https://arxiv.org/abs/1906.01796."""

    architecture, curriculum, data_transfer = ModelCascade, False, False
    network_options = dict(tasks=3)


class BraTSOMNetAsWrittenTrainer(BraTSOMNetTrainer):
    """OM-Net of Zhou et al. 2020 as the text has it: https://arxiv.org/abs/1906.01796."""

    follows = "text"


class BraTSOMNetCGAAsWrittenTrainer(BraTSOMNetCGATrainer):
    """OM-Net with guided attention of Zhou et al. 2020 as the text has it: https://arxiv.org/abs/1906.01796."""

    follows = "text"


class BraTSMC3AsWrittenTrainer(BraTSMC3Trainer):
    """Model cascade of three networks of Zhou et al. 2020 as the text has it: https://arxiv.org/abs/1906.01796."""

    follows = "text"
