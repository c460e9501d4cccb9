"""Training on region probabilities that `nnunet_brats distill --targets soft` has written next to a data set.

nnU-Net's loader cuts a patch out of a case's image and segmentation, and its transforms know a `regression_target`,
which moves with the image and keeps its intensities. So a view appends the regions to the image's channels, where they
are cut out with it, the first transform makes them the regression target, and the last one makes that the target.
"""

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetBaseDataset
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_brats_ext.dataset_conversion.distillation.targets import AGAIN, LEVELS, SOFT_TARGETS, read_soft_target
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.output import partial_file
from nnunet_brats_ext.storage.parallel import for_each_case
from nnunet_brats_ext.training.preconditions import SOFT_TARGETS_KEY
from nnunet_brats_ext.training.sampling import Case, CaseView
from nnunet_brats_ext.training.seams import Cases, PlainTrainer

Regions = Sequence[int | tuple[int, ...]]


class SoftTargets(PlainTrainer):
    """Mixin, listed first: trains on soft targets instead of label maps, where the data set has them.

    After Lachinov et al. 2019, https://arxiv.org/abs/2002.03688, who train on label maps. All training targets are
    then probabilities (b, r, *s) in float32, which spatial transforms interpolate; those of cases without soft targets
    are the regions of their label maps, 0 or 1 before augmentation. Validation stays as it is. On other data sets
    nothing changes. The data set needs nnU-Net's region order, and transforms of a recipe that are not for images alone
    must know a `regression_target`, as batchgeneratorsv2's do.
    """

    keys_read = (SOFT_TARGETS_KEY,)

    @property
    def has_soft_targets(self) -> bool:
        return SOFT_TARGETS_KEY in self.dataset_json

    def get_tr_and_val_datasets(self) -> Cases:
        training, validation = super().get_tr_and_val_datasets()
        if not self.has_soft_targets:
            return training, validation
        preprocessed = Path(self.preprocessed_dataset_folder)
        folder = preprocessed.with_name(f"{preprocessed.name}_{SOFT_TARGETS}")
        soft = self._preprocess_soft_targets(folder)
        count = len(soft & set(training.identifiers))
        self.print_to_log_file(f"soft targets for {count} of {len(training.identifiers)} training cases, in {folder}")
        return SoftTargetView(training, folder, soft, self.label_manager.foreground_regions), validation

    def _preprocess_soft_targets(self, folder: Path) -> set[str]:
        """Bring the raw soft targets of all folds into the geometry of the preprocessed cases, once; returns the cases.

        Where nnUNet_raw is not set, those that an earlier training has written count.
        """
        raw = Path(nnUNet_raw, self.plans_manager.dataset_name, SOFT_TARGETS) if nnUNet_raw.is_set() else folder
        soft = {
            path.stem for path in (raw if raw.is_dir() else folder).glob("[!.]*") if path.suffix in (".npz", ".b2nd")
        }
        if len(soft) != (expected := self.dataset_json[SOFT_TARGETS_KEY]["cases"]):
            raise UserError(
                f"{raw if raw.is_dir() else folder} holds {len(soft)} of {expected} soft targets; set nnUNet_raw to "
                "where `nnunet_brats distill` has written the data set"
            )
        cases = self.dataset_class(self.preprocessed_dataset_folder, sorted(soft))
        if raw.is_dir() and raw != folder:
            folder.mkdir(exist_ok=True)
            world = torch.distributed.get_world_size() if self.is_ddp else 1
            mine = sorted(soft)[self.local_rank :: world]  # shared out before anything changes
            stale = [case for case in mine if not is_current(folder / f"{case}.b2nd", raw, cases, case)]
            work = partial(preprocess_case, raw, folder, cases, self.plans_manager, self.configuration_manager)
            if stale:
                for_each_case(work, stale, "Soft targets", max(get_allowed_n_proc_DA(), 1))
        if self.is_ddp:
            torch.distributed.barrier()
        return soft

    def get_training_transforms(
        self,
        patch_size: Sequence[int],
        rotation_for_DA: Any,
        deep_supervision_scales: list | None,
        *arguments: Any,
        **options: Any,
    ) -> BasicTransform:
        build = partial(super().get_training_transforms, patch_size, rotation_for_DA)
        if not self.has_soft_targets:
            return build(deep_supervision_scales, *arguments, **options)
        channels = len(self.label_manager.foreground_regions)
        transforms = [TakeSoftTarget(channels), build(None, *arguments, **options), UseSoftTarget()]
        if deep_supervision_scales is not None:
            transforms.append(DownsampleSegForDSTransform(deep_supervision_scales))
        return ComposeTransforms(transforms)


def is_current(cached: Path, raw: Path, cases: nnUNetBaseDataset, case: str) -> bool:
    """Whether a preprocessed soft target is there, and newer than its raw one and than the case itself."""
    if not cached.is_file():
        return False
    sources = (raw / f"{case}.npz", Path(cases.source_folder, f"{case}.pkl"))
    return cached.stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in sources)


def preprocess_case(
    raw: Path,
    folder: Path,
    cases: nnUNetBaseDataset,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    case: str,
) -> None:
    """Write the soft target of one case in the format of nnU-Net's loader: uint8 (r, *s) in blocks, in one rename."""
    data, _, _, properties = cases.load_case(case)
    levels = read_soft_target(raw / f"{case}.npz")
    result = to_preprocessed(levels, data.shape[1:], properties, plans_manager, configuration_manager)
    blocks, chunks = comp_blosc2_params(result.shape, tuple(configuration_manager.patch_size), result.itemsize)
    with partial_file(folder / f"{case}.b2nd", shared=True) as unfinished:  # folds may start at the same time
        blosc2.asarray(result, urlpath=str(unfinished), chunks=chunks, blocks=blocks, mode="w")


def to_preprocessed(
    levels: np.ndarray,
    shape: Sequence[int],
    properties: dict[str, Any],
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
) -> np.ndarray:
    """uint8 (r, z, y, x) -> uint8 (r, *shape): transposed, cropped and resampled as nnU-Net has done with the case."""
    axes = plans_manager.transpose_forward
    turned = levels.transpose(0, *(axis + 1 for axis in axes))
    if (expected := tuple(properties["shape_before_cropping"])) != turned.shape[1:]:
        raise UserError(f"the soft target has the shape {turned.shape[1:]}, its case {expected}; {AGAIN}")
    box = (slice(None), *(slice(*bounds) for bounds in properties["bbox_used_for_cropping"]))
    cropped = turned[box]
    if cropped.shape[1:] == tuple(shape):
        return np.ascontiguousarray(cropped)
    spacing = [properties["spacing"][axis] for axis in axes]
    wanted = [*spacing[: len(spacing) - len(configuration_manager.spacing)], *configuration_manager.spacing]
    resampled = configuration_manager.resampling_fn_probabilities(cropped.astype(np.float32), shape, spacing, wanted)
    return np.rint(np.clip(resampled, 0, LEVELS)).astype(np.uint8)


class SoftTargetView(CaseView):
    """Cases whose images have their target regions (r, *s), probabilities, behind the last channel."""

    def __init__(self, cases: nnUNetBaseDataset, folder: Path, soft: Collection[str], regions: Regions):
        super().__init__(cases)
        self.folder, self.soft, self.regions = folder, frozenset(soft), regions

    def load_case(self, identifier: str) -> Case:
        data, segmentation, previous, properties = self.cases.load_case(identifier)
        levels = None
        if identifier in self.soft:
            levels = blosc2.open(str(self.folder / f"{identifier}.b2nd"), mode="r", dparams={"nthreads": 1})
        return ImageAndRegions(data, segmentation, levels, self.regions), segmentation, previous, properties


class ImageAndRegions:
    """An array (c + r, *s) of which only what is indexed is read: all channels of a box."""

    def __init__(self, image: Any, segmentation: Any, levels: Any, regions: Regions):
        self.image, self.segmentation, self.levels, self.regions = image, segmentation, levels, regions
        self.shape = (image.shape[0] + len(regions), *image.shape[1:])

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        if self.levels is not None:
            targets = self.levels[box].astype(np.float32) / LEVELS
        else:
            labels = self.segmentation[box][0]
            targets = np.stack([np.isin(labels, region) for region in self.regions]).astype(np.float32)
        return np.concatenate([self.image[box], targets])


class TakeSoftTarget(BasicTransform):
    """The first transform: what a view has put behind the image becomes the regression target."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def apply(self, data_dict: dict, **params: Any) -> dict:
        image = data_dict["image"]
        return data_dict | {"image": image[: -self.channels], "regression_target": image[-self.channels :]}


class UseSoftTarget(BasicTransform):
    """The last transform but that for deep supervision: the regression target becomes the target, within [0, 1]."""

    def apply(self, data_dict: dict, **params: Any) -> dict:
        rest = {key: value for key, value in data_dict.items() if key != "regression_target"}
        if (target := data_dict["regression_target"]) is None:
            raise UserError(
                f"a transform of this trainer has lost the soft target, 'regression_target', and kept {sorted(rest)}: "
                "each of its own transforms needs batchgeneratorsv2's method _apply_to_regr_target"
            )
        return rest | {"segmentation": target.clamp(0, 1)}
