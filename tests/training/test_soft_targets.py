"""Training on soft targets: what was predicted reaches the loss, and everything else stays nnU-Net's."""

import contextlib
import io
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from conftest import World, plan_and_preprocess
from distillation_bench import REGIONS, SURE, UNSURE, make_bench, read
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_brats_ext.brats import to_regions
from nnunet_brats_ext.trainers import BraTSBaselineTrainer
from nnunet_brats_ext.training.sampling import CentredDraws
from nnunet_brats_ext.training.soft_targets import (
    SoftTargets,
    SoftTargetView,
    TakeSoftTarget,
    UseSoftTarget,
    to_preprocessed,
)

CENTRE = (14, 17, 12)  # of every patch, in the preprocessed case


@pytest.fixture(scope="module")
def soft_world(world_on_disk, tmp_path_factory) -> World:
    """A data set with soft targets, accepted and preprocessed by nnU-Net itself."""
    soft = World(tmp_path_factory.mktemp("soft"), "Dataset950_WorldDistilled")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        for name, value in soft.settings.items():
            patch.setenv(name, value)
        make_bench(world_on_disk, soft.root).distill("--targets", "soft")
        plan_and_preprocess(950, "3d_fullres")
    return soft


class AroundOnePoint(CentredDraws):
    def draw_centre(self, case):
        return CENTRE


class Plain(SoftTargets, BraTSBaselineTrainer):
    """Draws the same patch of every case and leaves it as it is: https://example.org."""

    hyperparameters: ClassVar = dict(oversample_foreground_percent=1.0, enable_deep_supervision=False)

    @classmethod
    def build_network(cls, planned, input_channels, num_classes, deep_supervision):
        return nn.Conv3d(input_channels, num_classes, 1)

    def sampling(self, cases):
        return AroundOnePoint(cases)

    def augmentation(self):
        return []


class Student(SoftTargets, BraTSBaselineTrainer):
    """nnU-Net's own training with soft targets: https://example.org."""


@pytest.fixture
def build(soft_world, monkeypatch):
    for name, value in soft_world.settings.items():
        monkeypatch.setenv(name, value)

    def build(trainer: type, fold: int = 0, world: World = soft_world):
        arguments = (world.plans | {"continue_training": False}, "3d_fullres", fold, world.dataset_json)
        built = trainer(*arguments, torch.device("cpu"))
        built.logger.plot_progress_png = lambda folder: None  # takes as long as an epoch
        return built

    return build


def crop(volume: np.ndarray, size) -> np.ndarray:
    """The patch around `CENTRE`, zeros where the volume ends."""
    margin = max(size)
    padded = np.pad(volume, [(0, 0), *[(margin, margin)] * 3])
    starts = [centre - length // 2 + margin for centre, length in zip(CENTRE, size, strict=True)]
    return padded[(slice(None), *(slice(start, start + length) for start, length in zip(starts, size, strict=True)))]


def test_soft_targets_reach_the_loss_as_they_were_predicted(build, soft_world):
    trainer = build(Plain)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    size = trainer.configuration_manager.patch_size
    cases = trainer.dataset_class(trainer.preprocessed_dataset_folder)
    seen = []
    trainer.loss, loss = lambda output, target: seen.append(target) or loss(output, target), trainer.loss
    drawn = set()
    for _ in range(40):
        batch = next(loader)
        keys, images = batch["keys"], batch["data"].clone()
        if drawn >= {SURE, UNSURE} and len(drawn) > 2:
            break
        if set(keys) <= drawn:
            continue
        assert np.isfinite(trainer.train_step(batch)["loss"])
        for key, image, target in zip(keys, images, seen.pop(), strict=True):
            drawn.add(str(key))
            data, segmentation, _, properties = cases.load_case(key)
            box = tuple(slice(*bounds) for bounds in properties["bbox_used_for_cropping"])
            if key in (SURE, UNSURE):
                predicted = np.load(soft_world.raw / "soft_targets" / f"{key}.npz")["probabilities"] / 255
                expected = predicted[(slice(None), *box)]
            else:
                expected = np.stack(list(to_regions(segmentation[0], REGIONS).values()))
            assert target.dtype == torch.float32
            assert np.allclose(target, crop(expected, size), atol=1e-6)
            assert np.array_equal(image, crop(data[:], size)), "the image is nnU-Net's"
    assert drawn >= {SURE, UNSURE}
    assert len(drawn) > 2


def test_a_whole_training_with_nnunets_augmentation_and_deep_supervision(build, monkeypatch):
    monkeypatch.setenv("nnUNet_brats_epochs", "1")
    monkeypatch.setenv("nnUNet_brats_iterations", "1")
    trainer = build(Student)
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    assert len(batch["target"]) == len(trainer._get_deep_supervision_scales())
    assert all(target.dtype == torch.float32 and 0 <= target.min() <= target.max() <= 1 for target in batch["target"])
    assert batch["data"].shape[1] == 4
    assert next(trainer.dataloader_val)["target"][0].dtype == torch.bool, "validation is against label maps"
    trainer.on_train_end()
    build(Student).run_training()


def test_soft_targets_are_preprocessed_once(build, soft_world, monkeypatch, tmp_path):
    trainer = build(Plain)
    trainer.get_tr_and_val_datasets()
    folder = Path(f"{trainer.preprocessed_dataset_folder}_soft_targets")
    cached = folder / f"{SURE}.b2nd"
    before = cached.stat().st_mtime_ns
    trainer.get_tr_and_val_datasets()
    assert cached.stat().st_mtime_ns == before
    (soft_world.raw / "soft_targets" / f"{SURE}.npz").touch()
    trainer.get_tr_and_val_datasets()
    assert cached.stat().st_mtime_ns > before, "a new distillation counts"
    assert not list(folder.glob(".*"))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    trainer.get_tr_and_val_datasets()  # a machine that only trains
    cached.rename(tmp_path / "aside")
    with pytest.raises(ValueError, match="1 of 2 soft targets; set nnUNet_raw"):
        trainer.get_tr_and_val_datasets()
    (tmp_path / "aside").rename(cached)


def test_processes_share_the_preprocessing_even_if_one_begins_late(build, soft_world, monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    trainer = build(Plain)
    trainer.dataset_class = infer_dataset_class(trainer.preprocessed_dataset_folder)
    folder = Path(f"{trainer.preprocessed_dataset_folder}_soft_targets")
    for case in (SURE, UNSURE):
        (folder / f"{case}.b2nd").unlink(missing_ok=True)
    trainer.is_ddp = True
    for trainer.local_rank in (0, 1):
        trainer._preprocess_soft_targets(folder)
    assert sorted(path.stem for path in folder.glob("[!.]*.b2nd")) == [SURE, UNSURE]


def test_soft_targets_lie_where_nnunets_preprocessing_puts_the_labels(soft_world):
    """Another order of axes, another spacing: above a half lies what nnU-Net's resampled label map has."""
    plans = soft_world.plans
    spacing = plans["configurations"]["3d_fullres"]["spacing"]
    plans["transpose_forward"] = [2, 0, 1]
    plans["configurations"]["3d_fullres"]["spacing"] = [0.8 * spacing[2], 1.3 * spacing[0], spacing[1]]
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    case = sorted((soft_world.raw / "labelsTr").iterdir())[0]
    images = sorted((soft_world.raw / "imagesTr").glob(f"{case.name.removesuffix('.nii.gz')}_*"))
    data, segmentation, properties = DefaultPreprocessor(verbose=False).run_case(
        list(map(str, images)), str(case), manager, configuration, soft_world.dataset_json
    )
    whole = (read(case) > 0)[None].astype(np.uint8) * 255
    found = to_preprocessed(whole, data.shape[1:], properties, manager, configuration)
    assert found.shape == (1, *data.shape[1:])
    here, there = found[0] > 127, segmentation[0] > 0
    assert 2 * (here & there).sum() / (here.sum() + there.sum()) > 0.9


def test_transforms_of_space_move_targets_with_the_image_and_those_of_intensity_leave_them():
    generator = torch.Generator().manual_seed(0)
    image, other = torch.rand(1, 20, 20, 20, generator=generator), torch.rand(1, 20, 20, 20, generator=generator)
    transforms = ComposeTransforms([
        TakeSoftTarget(1),
        SpatialTransform((16, 16, 16), 0, False, p_rotation=1, rotation=(0.3, 0.4), p_scaling=1, scaling=(0.8, 0.9)),
        MirrorTransform((0, 1, 2)),
        Rot90Transform(1, num_rot_per_combination=(1,), allowed_axes={1, 2}),
        MultiplicativeBrightnessTransform((2, 2), synchronize_channels=True),
        UseSoftTarget(),
    ])  # fmt: skip
    result = transforms(image=torch.cat([other, image, image]), segmentation=torch.zeros(1, 20, 20, 20))
    assert result["image"].shape == (2, 16, 16, 16)
    assert torch.allclose(result["segmentation"], result["image"][1:] / 2, atol=1e-6)
    assert "regression_target" not in result


def test_a_transform_that_loses_the_target_is_named_as_the_cause():
    with pytest.raises(ValueError, match="_apply_to_regr_target"):
        UseSoftTarget()(image=torch.zeros(1, 2, 2, 2), segmentation=None, regression_target=None)


def test_a_trainer_that_cannot_use_soft_targets_says_so(build):
    sentence = "`class Mine(SoftTargets, BraTSBaselineTrainer)` does"
    assert sentence in Path(build(BraTSBaselineTrainer).log_file).read_text()
    assert "SoftTargets" not in Path(build(Student).log_file).read_text()


def test_without_soft_targets_nothing_changes(world, build, monkeypatch):
    for name, value in world.settings.items():
        monkeypatch.setenv(name, value)
    trainer = build(Student, world=world)
    trainer.initialize()
    training, _ = trainer.get_tr_and_val_datasets()
    assert not isinstance(training, SoftTargetView)
    loader, _ = trainer.get_dataloaders()
    assert next(loader)["target"][0].dtype == torch.bool
