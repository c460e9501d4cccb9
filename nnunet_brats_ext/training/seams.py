"""nnU-Net's trainer with declared override points. Features live in mixins, and `base.BraTSTrainer` has the usual ones.

What a paper changes, and what others read of a trainer, is declared here. A method whose docstring begins with "Seam:"
is there to be overridden.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet, ResidualUNet
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunet_brats_ext.architectures.blocks import SegmentationNetwork
from nnunet_brats_ext.papers import Difference, Source, TrainerFacts, facts_of_class
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.training.branches import LossWithAuxiliaries, NetworkWithBranch
from nnunet_brats_ext.training.cpu_memory import keep_freed_memory
from nnunet_brats_ext.training.planned_network import PlannedNetwork
from nnunet_brats_ext.training.preconditions import (
    limit_loaders,
    limit_threads,
    other_images,
    require_regions,
    unread_keys,
)
from nnunet_brats_ext.training.resumable import ResumableTrainer
from nnunet_brats_ext.training.sampling import OwnRandomNumbers

Cases = tuple[nnUNetBaseDataset, nnUNetBaseDataset]  # for training, for validation


class PlainTrainer(ResumableTrainer):
    """nnU-Net's trainer (https://doi.org/10.1038/s41592-020-01008-z) with override points, and no feature of its own.

    By default all of them are nnU-Net's region-based training. A trainer declares `hyperparameters`, `architecture` and
    `network_options`; where that is not enough, it overrides seams, and nnU-Net's own methods such as
    `configure_optimizers`.
    """

    hyperparameters: ClassVar[Mapping[str, Any]] = {}
    """Attributes of nnUNetTrainer under its names; a subclass adds to those of its parents, or replaces them."""

    architecture: ClassVar[type[nn.Module] | None] = None
    """The class of the network; None is the network that the plans name."""

    network_options: ClassVar[Mapping[str, Any]] = {}
    """Further arguments of `architecture`; a subclass adds to those of its parents, or replaces them."""

    one_draw_per_case: ClassVar[bool] = True
    """Whether an epoch has one draw per training case, ceil(cases / batch) iterations; else nnU-Net's 250."""

    facts: ClassVar[TrainerFacts | None] = None
    """How the trainer predicts, and so on, where no `paper.py` says it; None is what its parent has."""

    differences: ClassVar[Mapping[str, Difference]] = {}
    """Where the text of the trainer's paper and its authors' release disagree in what this class does, from its
    `paper.py`; a subclass adds to those of its parents."""

    follows: ClassVar[Source | Mapping[str, Source]] = {}
    """Which of the two the trainer follows, in all its `differences` or by name. A subclass adds to those of its
    parents, or replaces them; what no class names is as `Difference.default` says."""

    normalise: ClassVar[str] = ""
    """What normalises the images: a name of `convert --normalise`, or nnU-Net; "" is any, others are a warning."""

    keys_read: ClassVar[Sequence[str]] = ()
    """Keys of ours in the plans' configuration or in dataset.json that the class itself acts on."""

    num_epochs: int  # nnU-Net's

    # nnU-Net reads the names of these parameters and stores them in the checkpoint: no more, no fewer, no **kwargs.
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ):
        require_regions(dataset_json, plans.get("dataset_name", "this dataset"))
        self.check_follows()
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.set_hyperparameters()
        self.warn_of_data()
        limit_threads(device)
        if device.type == "cpu":
            keep_freed_memory()
        # nnU-Net builds for training through the instance and for inference through the class, where branches that
        # only training needs must not exist.
        self.build_network_architecture = self.build_training_network  # type: ignore[method-assign]

    @classmethod
    def all_facts(cls) -> TrainerFacts:
        """What others know of the class: its row in a `paper.py`, its own `facts`, or those of its parent."""
        return facts_of_class(cls)

    @classmethod
    def all_differences(cls) -> dict[str, Difference]:
        """`differences` of the class and of all its parents: every switch that changes something in it."""
        found: dict[str, Difference] = {}
        for declaring in reversed(cls.__mro__):
            found |= vars(declaring).get("differences", {})
        return found

    @classmethod
    def follows_text(cls, difference: str) -> bool:
        """Whether one of its `differences` is as the paper's text has it; else it is as the release has it."""
        differences = cls.all_differences()
        if difference not in differences:
            raise AttributeError(f"{cls.__name__} asks for {difference!r}; declare it in `differences`")
        for declaring in cls.__mro__:
            followed = vars(declaring).get("follows", {})
            if isinstance(followed, str):
                return followed == "text"
            if difference in followed:
                return followed[difference] == "text"
        return differences[difference].default == "text"

    @classmethod
    def check_follows(cls) -> None:
        """An error where a class follows what there is not, or what changes nothing in it."""
        differences = cls.all_differences()
        names = ", ".join(differences) or f"no differences: nothing in {cls.__name__} depends on any"
        for declaring in cls.__mro__:
            followed = vars(declaring).get("follows", {})
            named = {"all": followed} if isinstance(followed, str) else followed
            for difference, source in named.items():
                unknown = named is followed and difference not in differences
                if unknown or source not in get_args(Source):
                    raise AttributeError(
                        f"{declaring.__name__}.follows: {difference}={source!r}; expected 'text' or 'release' for some "
                        f"of {names}"
                    )

    def set_hyperparameters(self) -> None:
        """Set what the classes declare, then adapt it to the data. Mixins extend this."""
        for declaring in reversed(type(self).__mro__):
            for name, value in vars(declaring).get("hyperparameters", {}).items():
                if not hasattr(self, name):
                    raise AttributeError(f"{declaring.__name__}.hyperparameters: nnUNetTrainer has no '{name}'")
                setattr(self, name, value)
        self.adapt_hyperparameters()

    def adapt_hyperparameters(self) -> None:
        """Seam: change declared hyperparameters by what the data are."""

    def warn_of_data(self) -> None:
        for sentence in unread_keys(type(self), self.configuration_manager.configuration, self.dataset_json):
            self.print_to_log_file(f"WARNING: {sentence}")
        if other := other_images(type(self), self.normalise, self.dataset_json):
            self.print_to_log_file(f"WARNING: {other}")

    # ---- network ---------------------------------------------------------------------------------------------------

    @classmethod
    def check_plans(cls, planned: PlannedNetwork) -> None:
        """Seam: raise a UserError where the trainer's network cannot be built for these plans."""

    @classmethod
    def build_network(
        cls, planned: PlannedNetwork, input_channels: int, num_classes: int, deep_supervision: bool
    ) -> nn.Module | None:
        """Seam: the network as inference needs it; None is the one that the plans name.

        With `enable_deep_supervision` on, it returns a list of outputs, from the finest, and has the switch
        `deep_supervision` of `SegmentationNetwork`, or `decoder.deep_supervision` of nnU-Net's networks.
        """
        if cls.architecture is None:
            return None
        network = cls.architecture(
            input_channels, num_classes, conv_op=planned.conv_op, strides=planned.strides, **cls.all_network_options()
        )
        if isinstance(network, SegmentationNetwork):
            network.deep_supervision = deep_supervision
        return network

    @classmethod
    def all_network_options(cls) -> dict[str, Any]:
        """`network_options` of the class and of all its parents."""
        options: dict[str, Any] = {}
        for declaring in reversed(cls.__mro__):
            options |= vars(declaring).get("network_options", {})
        return options

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network as inference needs it, without anything that exists for training only."""
        if missing := cls.all_facts().missing:
            raise UserError(missing)
        planned = PlannedNetwork.read(configuration_manager)
        cls.check_plans(planned)
        network = cls.build_network(planned, num_input_channels, num_output_channels, enable_deep_supervision)
        if network is None:
            return nnUNetTrainer.build_network_architecture(
                plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
            )
        if isinstance(network, PlainConvUNet | ResidualEncoderUNet | ResidualUNet):
            network.apply(network.initialize)  # nnU-Net does this, not their constructors
        return network

    def training_branch(self, network: nn.Module) -> nn.Module | None:
        """Seam: a branch on the network's features that only training needs (see `NetworkWithBranch`)."""
        return None

    def build_training_network(
        self,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network with its training branch, in the memory layout that is fastest on the device."""
        network = type(self).build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        if (branch := self.training_branch(network)) is not None:
            network = NetworkWithBranch(network, branch)
        axes = len(configuration_manager.patch_size)
        return network.to(memory_format=fastest_memory_format(self.device, axes, network))

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        if self.enable_deep_supervision:  # nnU-Net switches it on after validation, also where training never had it
            network: Any = self.inference_network
            (network if isinstance(network, SegmentationNetwork) else network.decoder).deep_supervision = enabled

    # ---- loss ------------------------------------------------------------------------------------------------------

    def region_loss(self) -> nn.Module | None:
        """Seam: the loss at one scale, (logits, regions) -> scalar; None is nnU-Net's Dice and cross-entropy."""
        return None

    def loss_terms(self) -> Mapping[str, Tensor]:
        """Seam: the terms of the latest training loss by name, for the log; by default those of a training branch."""
        return self.loss.latest if isinstance(self.loss, LossWithAuxiliaries) else {}

    def _build_loss(self) -> nn.Module:
        built = super()._build_loss()
        if (loss := self.region_loss()) is not None:
            if self.label_manager.has_ignore_label:
                raise UserError(
                    f"{type(self).__name__} cannot ignore voxels: remove the label 'ignore' from dataset.json"
                )
            if isinstance(built, DeepSupervisionWrapper):
                built.loss = loss  # under nnU-Net's weights of the scales
            else:
                built = loss
        return LossWithAuxiliaries(built) if isinstance(self.bare_network, NetworkWithBranch) else built

    def train_step(self, batch: dict) -> dict:
        losses = super().train_step(batch)
        return losses | {name: value.float().cpu().numpy() for name, value in self.loss_terms().items()}

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        for name in (name for name in train_outputs[0] if name != "loss"):
            mean = np.mean([step[name] for step in train_outputs])
            self.print_to_log_file(f"train_loss, of which {name}", np.round(mean, decimals=4))

    # ---- data ------------------------------------------------------------------------------------------------------

    @property
    def image_channels(self) -> int:
        """The channels of an image, without the labels of a previous stage behind them."""
        return len(DatasetDescription(self.dataset_json).channel_names)

    def load_cases(self) -> Cases:
        """The cases of training and validation as nnU-Net reads them. Mixins extend this."""
        return super().get_tr_and_val_datasets()

    def sampling(self, cases: nnUNetBaseDataset) -> nnUNetBaseDataset:
        """Seam: a view on the cases that decides which patches are drawn; by default nnU-Net decides."""
        return cases

    def get_dataloaders(self) -> Any:
        if reason := limit_loaders():
            self.print_to_log_file(reason)
        return super().get_dataloaders()

    def get_tr_and_val_datasets(self) -> Cases:
        training, validation = self.load_cases()
        if self.one_draw_per_case:
            self.set_epoch_length(training, validation)
        return OwnRandomNumbers(self.sampling(training)), OwnRandomNumbers(self.sampling(validation))

    def draws_per_epoch(self, cases: nnUNetBaseDataset, training: bool) -> int:
        """Seam: how many samples make an epoch with one draw per case."""
        return len(cases.identifiers)

    def set_epoch_length(self, training: nnUNetBaseDataset, validation: nnUNetBaseDataset) -> None:
        """Set the iterations of an epoch so that it has one draw per case."""
        draws = self.draws_per_epoch(training, training=True), self.draws_per_epoch(validation, training=False)
        self.set_iterations(*(ceil(number / self.configuration_manager.batch_size) for number in draws))  # all ranks'
        self.print_to_log_file(
            f"{self.num_epochs} epochs of {self.num_iterations_per_epoch} iterations: {draws[0]} draws from "
            f"{len(training.identifiers)} training cases"
        )

    def set_iterations(self, iterations: int, validation_iterations: int | None = None) -> None:
        self.num_iterations_per_epoch = iterations
        self.num_val_iterations_per_epoch = validation_iterations or ceil(iterations / 5)  # nnU-Net's own proportion

    def augmentation(self) -> list[BasicTransform] | None:
        """Seam: the training transforms at patch size, in order; None is nnU-Net's own augmentation."""
        return None

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        settings = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if self.all_facts().prediction.symmetries == "none":
            self.inference_allowed_mirroring_axes = None
        if self.augmentation() is None:
            return settings
        *_, mirror_axes = settings
        return (0.0, 0.0), False, self.configuration_manager.patch_size, mirror_axes

    def get_training_transforms(
        self,
        patch_size: Sequence[int],
        rotation_for_DA: Any,
        deep_supervision_scales: list | None,
        mirror_axes: tuple[int, ...],
        do_dummy_2d_data_aug: bool,
        use_mask_for_norm: list[bool] | None = None,
        **labels: Any,
    ) -> BasicTransform:
        transforms = self.augmentation()
        if transforms is None:
            return nnUNetTrainer.get_training_transforms(
                patch_size, rotation_for_DA, deep_supervision_scales, mirror_axes, do_dummy_2d_data_aug,
                use_mask_for_norm, **labels,
            )  # fmt: skip
        # nnU-Net's transforms for validation are those that training needs as well: previous stage, regions, scales.
        return ComposeTransforms([*transforms, self.get_validation_transforms(deep_supervision_scales, **labels)])


def fastest_memory_format(device: torch.device, spatial_axes: int, network: nn.Module) -> torch.memory_format:
    """Channels last on CPUs, where that is faster in 3-D (`benchmarks/training_step.py`); elsewhere torch's default.

    Not for a network with torch's own GroupNorm, whose statistics are then wrong (`architectures/group_norm.py`).
    """
    if device.type != "cpu" or any(type(module) is nn.GroupNorm for module in network.modules()):
        return torch.contiguous_format
    return torch.channels_last if spatial_axes == 2 else torch.channels_last_3d
