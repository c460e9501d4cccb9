"""What is checked and set before a training begins: regions, keys that the trainer does not act on, threads."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import psutil
import torch

from nnunet_brats_ext.dataset_conversion.case_filtering import SPLITS_FILE
from nnunet_brats_ext.dataset_conversion.dataset_folder import MISSING_KEY
from nnunet_brats_ext.dataset_conversion.distillation.targets import SOFT_TARGETS
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.parallel import available_cores
from nnunet_brats_ext.storage.shared_memory import too_little_shared

NNUNET = "nnU-Net"  # normalises the images itself
LOADERS = "nnUNet_n_proc_DA"  # nnU-Net's variable: loader processes
SOFT_TARGETS_KEY = f"brats_{SOFT_TARGETS}"
READERS = {
    SPLITS_FILE: "ReducedFolds",
    SOFT_TARGETS_KEY: "SoftTargets",
    MISSING_KEY: "SequenceDropout",
}  # key of ours -> the mixin that acts on it


def require_regions(dataset_json: dict, dataset_name: str) -> None:
    """Raise an error that says how to get nested regions, where the data set has none."""
    description = DatasetDescription(dataset_json)
    if not description.nested:
        raise UserError(
            f"{dataset_name} has no nested regions (labels: {description.declared}), which BraTS trainers predict. "
            f"Convert the release with `nnunet_brats convert SOURCE -d ID`, "
            f"or train these labels with nnU-Net's own `-tr nnUNetTrainer`."
        )


def unread_keys(trainer: type, configuration: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> Iterator[str]:
    """A sentence per key that asks something of a training which this trainer class does not do."""
    read = {key for one in trainer.__mro__ for key in vars(one).get("keys_read", ())}
    for place, content in (("the plans' configuration", configuration), ("dataset.json", dataset_json)):
        for key in sorted(content.keys() & READERS.keys() - read):
            yield (
                f"{trainer.__name__} does not act on {key!r} in {place}; "
                f"`class Mine({READERS[key]}, {trainer.__name__})` does, with the mixin of nnunet_brats_ext.training"
            )


def other_images(trainer: type, wanted: str, dataset_json: Mapping[str, Any]) -> str | None:
    """A sentence where images are not normalised as `PlainTrainer.normalise` says."""
    found = DatasetDescription(dataset_json).normalisation or NNUNET
    if wanted in ("", found):
        return None
    images = "images that nnU-Net normalises" if wanted == NNUNET else f"images of `convert --normalise {wanted}`"
    these = "nnU-Net normalises these" if found == NNUNET else f"these are of `convert --normalise {found}`"
    return f"{trainer.__name__} is made for {images}, and {these}"


def limit_loaders() -> str | None:
    """Where shared memory is small and the user asks for no number, let nnU-Net load without processes; why, in words.

    They hand batches over through /dev/shm, and die of a bus error where these do not fit.
    """
    if os.environ.get(LOADERS) or not (reason := too_little_shared()):
        return None
    os.environ[LOADERS] = "0"
    return f"{reason}; {LOADERS}=N sets their number"


def limit_threads(device: torch.device) -> None:
    """On a CPU, keep torch to the threads of OMP_NUM_THREADS, or else to a thread per core, as torch itself begins.

    nnU-Net takes a thread per logical core, also those of other jobs: two hyper-threads would share one core's units
    for the multiplications that a training consists of.
    """
    if device.type == "cpu":
        given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # the first level of nested ones
        named = int(given) if given.isdecimal() else 0
        torch.set_num_threads(named or min(psutil.cpu_count(logical=False) or available_cores(), available_cores()))
