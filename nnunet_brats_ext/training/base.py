"""The base of all our trainers: nnU-Net's own, with the seams whose absence makes others copy it."""

import inspect
import os
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from dynamic_network_architectures.building_blocks.helper import convert_dim_to_conv_op
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_brats_ext import __version__
from nnunet_brats_ext.dataset_conversion.case_filtering import SPLITS_FILE
from nnunet_brats_ext.dataset_conversion.distillation.targets import SOFT_TARGETS
from nnunet_brats_ext.papers import TrainerFacts, facts_of_class
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.nnunet import read_splits
from nnunet_brats_ext.training.branches import LossWithAuxiliaries, NetworkWithBranch
from nnunet_brats_ext.training.cascade import DrawnMaps, expanded_maps, require_previous_stage
from nnunet_brats_ext.training.environment import EPOCHS, ITERATIONS, SEED, requested_number, requested_snapshots
from nnunet_brats_ext.training.optimizers import count_steps_on_cpu
from nnunet_brats_ext.training.randomness import random_state, restore_random_state, seed_everything
from nnunet_brats_ext.training.sampling import OwnRandomNumbers

OURS = "nnunet_brats_ext"  # our key in a checkpoint, beside nnU-Net's


def topology(configuration: ConfigurationManager) -> dict[str, Any]:
    """What a network has to take from the plans: the kind of convolution and the strides of its stages."""
    return {
        "conv_op": convert_dim_to_conv_op(len(configuration.patch_size)),
        "strides": configuration.pool_op_kernel_sizes,
    }


class BraTSTrainer(nnUNetTrainer):
    """nnU-Net's trainer (https://doi.org/10.1038/s41592-020-01008-z) with seams: a recipe declares what differs.

    Left alone, every seam is nnU-Net's own behaviour on region-based training. A recipe declares `hyperparameters` and
    overrides, where its paper differs, `architecture_for`, `training_branch`, `region_loss`, `augmentation` and
    nnU-Net's `configure_optimizers`. State beyond network and optimiser goes through `extra_state`.
    """

    hyperparameters: ClassVar[dict[str, Any]] = {}
    """Attributes of nnUNetTrainer under its names; a subclass adds to or replaces those of its parents."""

    one_draw_per_case: ClassVar[bool] = True
    """A paper's epoch sees every training case once: ceil(cases / batch) iterations. Off: nnU-Net's 250."""

    facts: ClassVar[TrainerFacts | None] = None
    """What others know of the trainer without importing it; None is what its paper's `paper.py` says (`all_facts`)."""

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
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.previous_stage_maps: list[Path] = []  # where a second stage has several per case
        if self.is_cascaded and nnUNet_results.is_set():
            self._find_previous_stage()
        for declaring in reversed(type(self).__mro__):
            for name, value in vars(declaring).get("hyperparameters", {}).items():
                if not hasattr(self, name):
                    raise AttributeError(f"{declaring.__name__}.hyperparameters: nnUNetTrainer has no '{name}'")
                setattr(self, name, value)
        self.adapt_hyperparameters()
        self._shorten()
        self._seed()
        if device.type == "cpu" and (threads := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
            torch.set_num_threads(int(threads))  # nnU-Net takes every core, also those of other jobs
        self._random_state: dict[str, Any] | None = None  # of a checkpoint, until training goes on
        # nnU-Net builds for training through the instance and for inference through the class, where branches that
        # only training needs must not exist.
        self.build_network_architecture = self.build_training_network  # type: ignore[method-assign]

    @classmethod
    def all_facts(cls) -> TrainerFacts:
        """How the trainer predicts, which snapshots it keeps, its previous stage: its own facts, or its parent's."""
        return facts_of_class(cls)

    @property
    def previous_stage_trainer(self) -> str | None:
        return self.all_facts().previous_stage

    def adapt_hyperparameters(self) -> None:
        """Change declared hyperparameters by what the data are, before a trial run shortens them."""

    def _find_previous_stage(self) -> None:
        folder = Path(self.folder_with_segs_from_previous_stage)
        if self.previous_stage_trainer:
            previous_stage = self.configuration_manager.previous_stage_name
            model = f"{self.previous_stage_trainer}__{self.plans_manager.plans_name}__{previous_stage}"
            folder = folder.parents[2] / model / "predicted_next_stage" / self.configuration_name
        self.previous_stage_maps = expanded_maps(folder)
        if self.previous_stage_maps and not folder.is_dir():
            folder = self.previous_stage_maps[0]  # for the validation, which refines one map per case
        self.folder_with_segs_from_previous_stage: str = str(folder)

    def _seed(self) -> None:
        """Start from the random numbers that the environment asks for; nnU-Net's loader processes draw their own.

        With `nnUNet_n_proc_DA=0`, which has none, training on a CPU gives the same weights every time.
        """
        if (number := requested_number(SEED, 0, "for other random numbers every time")) is not None:
            seed_everything(number + self.local_rank)

    # ---- length of a run -------------------------------------------------------------------------------------------

    def _shorten(self) -> None:
        """Honour the environment's request for a trial run, so loudly that nobody takes it for a real one."""
        asked = {name: requested_number(name, 1, "for a full training") for name in (EPOCHS, ITERATIONS)}
        requests = {name: number for name, number in asked.items() if number is not None}
        if EPOCHS in requests:
            self.num_epochs = requests[EPOCHS]
        if ITERATIONS in requests:
            self._set_iterations(requests[ITERATIONS])
        if requests:
            self.print_to_log_file(f"WARNING: SHORT RUN because of {requests}. Unset these variables to train in full.")

    def _set_iterations(self, iterations: int, validation_iterations: int | None = None) -> None:
        self.num_iterations_per_epoch = iterations
        self.num_val_iterations_per_epoch = validation_iterations or ceil(iterations / 5)  # nnU-Net's own proportion

    def do_split(self):
        """nnU-Net's folds, or the same with fewer training cases where `filter-cases` made the configuration."""
        training, validation = super().do_split()
        if (file := self.configuration_manager.configuration.get(SPLITS_FILE)) is None:
            return training, validation
        path = Path(self.preprocessed_dataset_folder_base, file)
        splits = read_splits(path)
        if self.fold not in range(len(splits)):
            raise UserError(f"{path} has {len(splits)} folds; there is no fold {self.fold}")
        kept = splits[self.fold]
        if kept["val"] != validation or not set(kept["train"]) <= set(training):
            raise UserError(f"{path} was made from other folds: run `nnunet_brats filter-cases` again")
        self.print_to_log_file(f"{path.name}: {len(kept['train'])} of {len(training)} training cases")
        return kept["train"], validation

    def get_tr_and_val_datasets(self):
        training, validation = super().get_tr_and_val_datasets()
        if f"brats_{SOFT_TARGETS}" in self.dataset_json and not self.has_soft_targets:
            self.print_to_log_file(
                f"WARNING: the data set has soft targets, but {type(self).__name__} learns its label maps; "
                f"`class Mine(SoftTargets, {type(self).__name__})` learns the soft ones (see training/soft_targets.py)"
            )
        if self.is_cascaded:
            require_previous_stage(
                Path(self.folder_with_segs_from_previous_stage),
                [*training.identifiers, *validation.identifiers],
                Path(self.preprocessed_dataset_folder_base, "splits_final.json"),
                self.plans_manager.dataset_name,
                self.previous_stage_trainer or type(self).__name__,
                self.plans_manager.plans_name,
                self.configuration_manager.previous_stage_name,
            )
        if self.one_draw_per_case and not os.environ.get(ITERATIONS):
            batch_size = self.configuration_manager.batch_size  # of all ranks together
            draws = self.draws_per_epoch(training, training=True), self.draws_per_epoch(validation, training=False)
            self._set_iterations(*(ceil(number / batch_size) for number in draws))
            self.print_to_log_file(
                f"{self.num_epochs} epochs of {self.num_iterations_per_epoch} iterations: {draws[0]} draws from "
                f"{len(training.identifiers)} training cases"
            )
        views = (self.sampling(self._with_maps(cases)) for cases in (training, validation))
        return tuple(map(OwnRandomNumbers, views))

    def draws_per_epoch(self, cases: nnUNetBaseDataset, training: bool) -> int:
        """How many samples make an epoch: one per case, and per map of the previous stage where it has several."""
        return len(cases.identifiers) * (len(self.previous_stage_maps) or 1)

    def _with_maps(self, cases: nnUNetBaseDataset) -> nnUNetBaseDataset:
        """The cases with all their maps of a previous stage, of which each draw shows one."""
        if not self.previous_stage_maps:
            return cases
        versions = [
            type(cases)(cases.source_folder, list(cases.identifiers), str(folder))
            for folder in self.previous_stage_maps
        ]
        return DrawnMaps(versions)

    # ---- network ---------------------------------------------------------------------------------------------------

    @classmethod
    def architecture_for(cls, configuration: ConfigurationManager) -> Callable[..., nn.Module] | None:
        """What builds the network from input_channels and num_classes (and deep_supervision, if it takes that).

        None is the network that the plans name.
        """
        return None

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
        architecture = cls.architecture_for(configuration_manager)
        if architecture is None:
            return nnUNetTrainer.build_network_architecture(
                plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
            )
        takes = inspect.signature(architecture).parameters
        supervision = {"deep_supervision": enable_deep_supervision} if "deep_supervision" in takes else {}
        return architecture(input_channels=num_input_channels, num_classes=num_output_channels, **supervision)

    def training_branch(self, network: nn.Module) -> nn.Module | None:
        """A branch on the network's features that only training needs (see `NetworkWithBranch`)."""
        return None

    def build_training_network(
        self,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        network = type(self).build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        if (branch := self.training_branch(network)) is not None:
            network = NetworkWithBranch(network, branch)
        spatial_axes = len(configuration_manager.patch_size)
        return network.to(memory_format=fastest_memory_format(self.device, spatial_axes))

    @property
    def bare_network(self) -> nn.Module:
        """The module behind DistributedDataParallel and torch.compile."""
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        # nnU-Net switches it on again after every validation, also where training never had it.
        if decoder := getattr(self.bare_network, "decoder", None):
            decoder.deep_supervision = enabled and self.enable_deep_supervision

    # ---- loss ------------------------------------------------------------------------------------------------------

    def region_loss(self) -> nn.Module | None:
        """The paper's loss at one scale, (logits, regions) -> scalar; None is nnU-Net's Dice and cross-entropy."""
        return None

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
        latest = getattr(self.loss, "latest", {})
        return losses | {name: value.float().cpu().numpy() for name, value in latest.items()}

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        auxiliary = {
            name: np.mean([step[name] for step in train_outputs]) for name in train_outputs[0] if name != "loss"
        }
        for name, value in auxiliary.items():
            self.print_to_log_file(f"train_loss, of which {name}", np.round(value, decimals=4))

    # ---- data ------------------------------------------------------------------------------------------------------

    @property
    def has_soft_targets(self) -> bool:
        """Whether training is on soft targets, which only the mixin `SoftTargets` knows how to read."""
        return False

    def sampling(self, cases: nnUNetBaseDataset) -> nnUNetBaseDataset:
        """A view on the cases that decides which patches are drawn (see `sampling`); nnU-Net decides by default."""
        return cases

    def augmentation(self) -> list[BasicTransform] | None:
        """The paper's training transforms at patch size, in order; None is nnU-Net's own augmentation."""
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
        # What nnU-Net does in validation is what it always does: previous stage, regions, scales.
        return ComposeTransforms([*transforms, self.get_validation_transforms(deep_supervision_scales, **labels)])

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        """What a subclass must keep beside network and optimiser, so that `--c` goes on as if never interrupted."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Takes back what `extra_state` gave."""

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint with ours inside, in one rename: an interruption never leaves half a file."""
        if self.local_rank != 0 or self.disable_checkpointing:
            return super().save_checkpoint(filename)
        partial = Path(f"{filename}.partial")
        super().save_checkpoint(str(partial))
        checkpoint = torch.load(partial, map_location="cpu", weights_only=False)
        network = self.bare_network
        checkpoint[OURS] = {
            "version": __version__,
            "random_state": random_state(),
            "training_branch": network.branch.state_dict() if isinstance(network, NetworkWithBranch) else None,
            "extra": self.extra_state(),
        }
        torch.save(checkpoint, partial)
        partial.replace(filename)
        return None

    def on_epoch_end(self) -> None:
        # Before nnU-Net's checkpoint of this epoch, from which an interrupted training would go on without coming here.
        epochs = self.current_epoch + 1
        if epochs in self.chosen_snapshots() and self.local_rank == 0 and not self.disable_checkpointing:
            self.save_snapshot(Path(self.output_folder, f"checkpoint_epoch_{epochs}.pth"), epochs)
        super().on_epoch_end()

    def chosen_snapshots(self) -> tuple[int, ...]:
        return requested_snapshots() or self.all_facts().snapshot_epochs

    def save_snapshot(self, file: Path, epochs: int) -> None:
        """What inference needs of a checkpoint, without the three times larger state that only training needs."""
        snapshot = {
            "network_weights": self.bare_network.state_dict(),
            "current_epoch": epochs,
            "init_args": self.my_init_kwargs,
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
        }
        partial = file.with_name(f"{file.name}.partial")
        torch.save(snapshot, partial)
        partial.replace(file)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        super().load_checkpoint(filename_or_checkpoint)
        count_steps_on_cpu(self.optimizer)  # nnU-Net loads them onto the GPU
        checkpoint = torch.load(filename_or_checkpoint, map_location="cpu", weights_only=False)
        if (state := checkpoint.get(OURS)) is None:
            return  # written by nnU-Net itself
        if state["training_branch"] is not None and isinstance(self.bare_network, NetworkWithBranch):
            self.bare_network.branch.load_state_dict(state["training_branch"])
        self._random_state = state["random_state"]
        self.load_extra_state(state["extra"])

    def on_train_start(self) -> None:
        super().on_train_start()
        if self._random_state is not None:  # not earlier: starting the loaders draws random numbers
            restore_random_state(self._random_state)
            if self.local_rank:  # the checkpoint is of the first process; the others go on with numbers of their own
                seed_everything(int(torch.randint(2**31, ())) + self.local_rank)
            self._random_state = None


def fastest_memory_format(device: torch.device, spatial_axes: int) -> torch.memory_format:
    """Channels last on CPUs, where 3-D convolutions are faster so (`benchmarks/training_step.py`); else torch's own."""
    if device.type != "cpu":
        return torch.contiguous_format
    return torch.channels_last if spatial_axes == 2 else torch.channels_last_3d


def require_regions(dataset_json: dict, dataset_name: str) -> None:
    """Nested regions are what a BraTS trainer predicts; without them, say how to get them."""
    labels = dataset_json["labels"]
    if not any(isinstance(region, list | tuple) and len(region) > 1 for region in labels.values()):
        raise UserError(
            f"{dataset_name} has no nested regions (labels: {labels}), which BraTS trainers predict. "
            f"Convert the release with `nnunet_brats convert SOURCE -d ID`, "
            f"or train these labels with nnU-Net's own `-tr nnUNetTrainer`."
        )
