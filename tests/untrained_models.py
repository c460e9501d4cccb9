"""Model folders as nnU-Net leaves them, with networks that nobody has trained: random weights from a seed."""

import json
import shutil
from pathlib import Path

import torch

from nnunet_brats_ext import trainers
from nnunet_brats_ext.storage.nnunet import find_splits

CPU = torch.device("cpu")
SMALL_UNET = dict(
    n_stages=2, features_per_stage=[4, 8], kernel_sizes=[[3, 3, 3]] * 2, strides=[[1, 1, 1], [2, 2, 2]],
    n_conv_per_stage=[1, 1], n_conv_per_stage_decoder=[1],
)  # fmt: skip


def small_plans(world, name: str, configurations: dict[str, dict]) -> dict:
    """The world's plans under a name of their own, with a small U-Net and configurations that inherit 3d_fullres."""
    plans = world.plans | {"plans_name": name}
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= SMALL_UNET
    plans["configurations"] |= {key: {"inherits_from": "3d_fullres"} | one for key, one in configurations.items()}
    return plans


def own_images(world, fold: int, place: Path) -> Path:
    """A new folder with the images of the cases that a fold holds out."""
    place.mkdir()
    for case in find_splits(world.dataset)[1][fold]["val"]:
        for file in (world.raw / "imagesTr").glob(f"{case}_*"):
            shutil.copyfile(file, place / file.name)
    return place


def save_untrained(
    world,
    plans: dict,
    configuration: str,
    trainer: str = "BraTSBaselineTrainer",
    folds: tuple[int, ...] = (0,),
    checkpoints: tuple[str, ...] = ("checkpoint_final.pth",),
    seed: int = 0,
) -> Path:
    """Make a model's folder in nnUNet_results of the environment; each fold and checkpoint has weights of its own."""
    for fold in folds:
        given = plans | {"continue_training": False}
        one = getattr(trainers, trainer)(given, configuration, fold, world.dataset_json, CPU)
        for number, name in enumerate(checkpoints):
            torch.manual_seed(100 * seed + 10 * fold + number)
            one.was_initialized = False
            one.initialize()
            one.save_checkpoint(str(Path(one.output_folder, name)))
    folder = Path(one.output_folder_base)
    for file, content in (("plans", plans), ("dataset", world.dataset_json)):
        (folder / f"{file}.json").write_text(json.dumps(content))
    return folder
