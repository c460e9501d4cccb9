"""Lachinov et al. 2019: three different teachers and the student of their ensemble, https://arxiv.org/abs/2002.03688."""

from math import prod
from typing import Any, ClassVar

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from torch import nn

from nnunet_brats_ext.architectures.cascaded_unet import CascadedUNet
from nnunet_brats_ext.architectures.no_new_unet import NoNewUNet
from nnunet_brats_ext.architectures.post_activation_residual_unet import PostActivationResidualUNet
from nnunet_brats_ext.losses.cross_entropy import DiceAndBCELoss
from nnunet_brats_ext.losses.label_dice import LabelDiceLoss, labels_of_regions
from nnunet_brats_ext.papers import Source
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.trainers.lachinov2019.paper import PAPER
from nnunet_brats_ext.trainers.lachinov2019.sampling import LabelBoxDraws, PatchesWithTumour
from nnunet_brats_ext.trainers.lachinov2019.transforms import RegionsBecomeSoft, ReplaceChannelsByNoise, ShiftChannels
from nnunet_brats_ext.training.base import BraTSTrainer
from nnunet_brats_ext.training.branches import VAERegularisation, vae_regularisation
from nnunet_brats_ext.training.optimizers import EpochSchedule
from nnunet_brats_ext.training.planned_network import PlannedNetwork
from nnunet_brats_ext.training.soft_targets import SoftTargets, UseSoftTarget


class LachinovTrainer(BraTSTrainer):
    """What all of Lachinov et al. 2019 (https://arxiv.org/abs/2002.03688) share; train with one of its subclasses."""

    differences = PAPER.switches("mirrored_axes")
    hyperparameters = dict(
        initial_lr=1e-4,
        weight_decay=1e-6,
        num_epochs=640,  # of nnU-Net's 250 iterations: the paper's 160,000 updates
        oversample_foreground_percent=1.0,  # every patch is drawn by LabelBoxDraws
        enable_deep_supervision=False,
    )

    one_draw_per_case = False
    shifts_background: ClassVar[bool] = True

    def region_loss(self) -> nn.Module:
        return DiceAndBCELoss()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, EpochSchedule]:
        return self.adam(share=0.75, factor=0.1)

    def adam(self, share: float, factor: float, amsgrad: bool = False) -> tuple[torch.optim.Optimizer, EpochSchedule]:
        """Adam, and a rate that is multiplied by the factor after each share of the run."""
        optimizer = torch.optim.Adam(
            self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay, amsgrad=amsgrad
        )
        epochs = max(round(share * self.num_epochs), 1)
        return optimizer, EpochSchedule(optimizer, lambda epoch: self.initial_lr * factor ** (epoch // epochs))

    def sampling(self, cases: nnUNetBaseDataset) -> nnUNetBaseDataset:
        return LabelBoxDraws(cases, self.configuration_manager.patch_size)

    @property
    def inplane_axes(self) -> tuple[int, ...]:
        """The axes of a patch that lie in axial slices: all but the first one of the images as they are read."""
        axes = len(self.configuration_manager.patch_size)
        return tuple(axis for axis, read in enumerate(self.plans_manager.transpose_forward[-axes:]) if read != 0)

    def augmentation(self) -> list[BasicTransform]:
        patch_size, inplane = self.configuration_manager.patch_size, self.inplane_axes
        transforms = [
            SpatialTransform(
                patch_size, 0, random_crop=False, p_scaling=1, scaling=(0.7, 1.3),
                padding_mode_image="reflection", border_mode_seg="reflection", mode_seg="nearest",
            ),
            MirrorTransform(inplane if self.follows_text("mirrored_axes") else tuple(range(len(patch_size)))),
        ]  # fmt: skip
        if len(inplane) == 2 and len({patch_size[axis] for axis in inplane}) == 1:  # a quarter turn keeps the shape
            transforms.append(Rot90Transform(1, num_rot_per_combination=(0, 1), allowed_axes=set(inplane)))
        return [
            *transforms,
            MultiplicativeBrightnessTransform((0.9, 1.1), synchronize_channels=False),
            ShiftChannels(0.2, self.shifts_background),
        ]

    def get_training_transforms(self, *arguments: Any, **options: Any) -> BasicTransform:
        transforms = super().get_training_transforms(*arguments, **options)
        if isinstance(self, SoftTargets) and self.has_soft_targets:  # which are soft from the start
            return transforms
        soft = RegionsBecomeSoft(self.label_manager.foreground_regions)
        return ComposeTransforms([soft, transforms, UseSoftTarget()])

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        settings = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = self.inplane_axes
        return settings


class PatchTrainer(LachinovTrainer):
    """What those of Lachinov et al. 2019 (https://arxiv.org/abs/2002.03688) share that see parts of a brain."""

    differences = PAPER.switches("patches")

    def sampling(self, cases: nnUNetBaseDataset) -> nnUNetBaseDataset:
        draws = PatchesWithTumour if self.follows_text("patches") else LabelBoxDraws
        return draws(cases, self.configuration_manager.patch_size)


class BraTSNoNewNetTrainer(PatchTrainer):
    """First teacher of Lachinov et al. 2019 (https://arxiv.org/abs/2002.03688): the U-Net of "No New-Net".

    The paper's patch is 128^3 with a batch of 2.
    """

    architecture = NoNewUNet

    @classmethod
    def check_plans(cls, planned: PlannedNetwork) -> None:
        require_more_than_one_voxel(planned, halvings=4)


class ResidualUNetTrainer(PatchTrainer):
    """What the second teacher and the student of Lachinov et al. 2019 (https://arxiv.org/abs/2002.03688) share."""

    differences = PAPER.switches("activation")
    architecture = PostActivationResidualUNet

    @classmethod
    def all_network_options(cls) -> dict[str, Any]:
        slope = 0.0 if cls.follows_text("activation") else 0.01
        return {"negative_slope": slope, **super().all_network_options()}


class BraTSStudentTrainer(SoftTargets, ResidualUNetTrainer):
    """The student of Lachinov et al. 2019 (https://arxiv.org/abs/2002.03688), to be trained on pseudo-labels as well.

    On what `nnunet_brats distill` has made it learns label maps, as the paper's, or soft targets if that wrote them.
    The paper's patch is 128 x 144 x 144 (z, y, x) with a batch of 2; any patch that the plans' strides allow works.
    """

    differences = PAPER.switches("student_loss", "student_rate", "student_head")

    def adapt_hyperparameters(self) -> None:
        super().adapt_hyperparameters()
        if not self.follows_text("student_rate"):
            self.initial_lr = 2e-5

    @classmethod
    def all_network_options(cls) -> dict[str, Any]:
        deviation = 0.0 if cls.follows_text("student_head") else 1.0
        return {"head_bias_deviation": deviation, **super().all_network_options()}

    def region_loss(self) -> nn.Module:
        if self.follows_text("student_loss"):
            return super().region_loss()
        return DiceAndBCELoss(background_weight=0.01, epsilon=1e-6, factor=0.5)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, EpochSchedule]:
        if self.follows_text("student_rate"):
            return super().configure_optimizers()
        return self.adam(share=0.1, factor=0.5, amsgrad=True)  # of 160,000 updates: every 16,000


class StudentRelease:
    """Mixin, listed first: the student's training as the authors' last commit has it, probably a fine-tuning.

    The release also had one patch per batch, and no fixed number of updates.
    """

    follows: ClassVar[dict[str, Source]] = dict.fromkeys(
        ("student_loss", "student_rate", "student_head", "mirrored_axes"), "release"
    )


class BraTSResUNetVAETrainer(ResidualUNetTrainer):
    """Second teacher of Lachinov et al. 2019 (https://arxiv.org/abs/2002.03688): the student with a VAE branch.

    The paper's patch is 128 x 144 x 144 (z, y, x) with a batch of 2. The branch is for training only.
    """

    def training_branch(self, network: nn.Module) -> VAERegularisation:
        patch_size = self.configuration_manager.patch_size
        return vae_regularisation(network, self.image_channels, patch_size, align_corners=False)


class BraTSCascadedUNetTrainer(LachinovTrainer):
    """Third teacher of Lachinov et al. 2019 (https://arxiv.org/abs/2002.03688): the cascade of multi-encoder U-Nets.

    Made for whole brains resampled to 128^3, with a batch of 4: the configuration `lachinov_brain`.
    """

    differences = PAPER.switches("cascade_rate", "cascade_scales", "cascade_noise")
    hyperparameters = dict(initial_lr=0.1, weight_decay=1e-5, num_epochs=500)
    architecture = CascadedUNet
    one_draw_per_case = True
    shifts_background = False  # `unit_intensities` tells the background by its zeros

    def adapt_hyperparameters(self) -> None:
        super().adapt_hyperparameters()
        if not self.follows_text("cascade_rate"):
            self.initial_lr = 0.025

    @classmethod
    def check_plans(cls, planned: PlannedNetwork) -> None:
        require_more_than_one_voxel(planned, halvings=5)

    def initialize(self) -> None:
        super().initialize()
        self._name_regions()

    def on_train_start(self) -> None:
        super().on_train_start()
        self._name_regions()  # pretrained weights bring those of another data set

    def _name_regions(self) -> None:
        self.bare_network.regions.copy_(labels_of_regions(self.label_manager.foreground_regions))

    def region_loss(self) -> nn.Module:
        regions = labels_of_regions(self.label_manager.foreground_regions)
        weights = (0.4, 0.3, 0.2) if self.follows_text("cascade_scales") else (1.0, 1.0, 1.0)
        return LabelDiceLoss(regions, weights).to(self.device)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, EpochSchedule]:
        named = list(self.network.named_parameters())
        biases = [parameter for name, parameter in named if name.endswith("bias")]
        weights = [parameter for name, parameter in named if not name.endswith("bias")]
        groups = [{"params": weights, "weight_decay": self.weight_decay}, {"params": biases, "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(groups, self.initial_lr, momentum=0.9)
        epochs = 1 if self.follows_text("cascade_rate") else 4
        return optimizer, EpochSchedule(optimizer, lambda epoch: self.initial_lr * 0.99 ** (epoch // epochs))

    def augmentation(self) -> list[BasicTransform]:
        transforms = super().augmentation()
        return transforms if self.follows_text("cascade_noise") else [*transforms, ReplaceChannelsByNoise(0.1)]

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        settings = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = self.inplane_axes[:1]  # from front to back, as the release of 2018
        return settings


class MXNetParity:
    """Mixin, listed first: the cascade's training as the release of 2018 runs in MXNet on one GPU.

    There the loss operator passes the same gradient to all scales, without their weights; the optimiser divides by the
    batch size; and the learning rate decays once per as many updates as there are cases. Some channels are replaced by
    noise.
    """

    follows: ClassVar[dict[str, Source]] = dict.fromkeys(("cascade_rate", "cascade_scales", "cascade_noise"), "release")


class AsWritten(LachinovTrainer):
    """Mixin, listed first: as the text of Lachinov et al. 2019 has it, https://arxiv.org/abs/2002.03688."""

    follows = "text"
    normalise = "zscore-nonzero"


class BraTSNoNewNetAsWrittenTrainer(AsWritten, BraTSNoNewNetTrainer):
    """First teacher of Lachinov et al. 2019 as the text has it: https://arxiv.org/abs/2002.03688."""


class BraTSResUNetVAEAsWrittenTrainer(AsWritten, BraTSResUNetVAETrainer):
    """Second teacher of Lachinov et al. 2019 as the text has it: https://arxiv.org/abs/2002.03688."""


class BraTSCascadedUNetAsWrittenTrainer(AsWritten, BraTSCascadedUNetTrainer):
    """Third teacher of Lachinov et al. 2019 as the text has it: https://arxiv.org/abs/2002.03688."""


class BraTSStudentAsWrittenTrainer(AsWritten, BraTSStudentTrainer):
    """The student of Lachinov et al. 2019 as the text has it: https://arxiv.org/abs/2002.03688."""


def require_more_than_one_voxel(planned: PlannedNetwork, halvings: int) -> None:
    """Raise an error where the deepest features of a patch are one voxel, which instance normalisation refuses."""
    cumulated = [prod(axis) for axis in zip(*planned.strides[: 1 + halvings], strict=True)]
    if all(length <= stride for length, stride in zip(planned.patch_size, cumulated, strict=True)):
        smallest = [*cumulated[:-1], 2 * cumulated[-1]]
        raise UserError(
            f"a patch of {planned.patch_size} becomes one voxel at the bottom of the network, where "
            f"instance normalisation needs two; the smallest patch for these strides is {tuple(smallest)}"
        )
