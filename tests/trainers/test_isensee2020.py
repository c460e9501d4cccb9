"""Isensee et al. 2020: the variants differ in what their names say; the augmentation; the ensemble and its rule."""

from math import pi

import numpy as np
import pytest
import torch
from tiny_trainers import build
from torch import nn

from nnunet_brats_ext import papers, trainers
from nnunet_brats_ext.evaluation.rule_selection import parse_grid
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.training.strong_augmentation import deformation_in_voxels
from nnunet_brats_ext.workflow.recipe import load_recipe

PAPER = papers.find_paper("isensee2020")
NAMES = [one.name for one in PAPER.trainers]


@pytest.mark.parametrize("name", NAMES)
def test_a_variant_is_what_its_name_says(name, world):
    trainer = build(world, name, patch_size=[16] * 3)
    trainer.initialize()
    kinds = {type(layer) for layer in trainer.network.modules()}
    assert (nn.BatchNorm3d in kinds) == ("BN" in name)
    assert (nn.InstanceNorm3d in kinds) == ("BN" not in name)
    assert trainer.loss.loss.dc.batch_dice == ("BD" in name)
    assert (trainer.augmentation() is None) == ("DA" not in name)
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.initial_lr) == (1000, 250, 1e-2)


def test_batch_normalisation_changes_no_other_layer_of_the_planned_network(world):
    plain, batch = (build(world, name, patch_size=[16] * 3) for name in NAMES[:2])
    shapes = []
    for trainer in (plain, batch):
        trainer.initialize()
        shapes.append({name: value.shape for name, value in trainer.network.named_parameters()})
    assert shapes[0] == shapes[1]


def test_plans_of_a_residual_network_are_an_error(world):
    trainer = build(world, NAMES[1])
    arguments = trainer.configuration_manager.network_arch_init_kwargs
    arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
    with pytest.raises(UserError, match="BraTSIsensee2020BNTrainer is for nnU-Net's plain U-Net"):
        trainer.initialize()


# ---- augmentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "degrees", "shifted", "elastic"),
    [("BraTSIsensee2020DA3BNTrainer", 30, 1, 0.3), ("BraTSIsensee2020DA4BNTrainer", 90, 0.5, 0.2)],
)
def test_the_augmentation_has_the_numbers_of_the_authors_trainers(name, degrees, shifted, elastic, world):
    trainer = build(world, name, patch_size=[16] * 3)
    spatial, *others = trainer.augmentation()
    assert spatial.rotation == pytest.approx((-degrees / 180 * pi, degrees / 180 * pi))
    assert (spatial.p_rotation, spatial.p_scaling, spatial.scaling) == (0.3, 0.3, (0.65, 1.6))
    assert spatial.p_synchronize_scaling_across_axes == 1 - 0.3, "each axis of its own in three of ten"
    assert (spatial.p_elastic_deform, spatial.elastic_deform_scale) == (elastic, (0, 0.25))
    shares = {type(one.transform).__name__: one.apply_probability for one in others if hasattr(one, "transform")}
    assert shares == {
        "GaussianNoiseTransform": 0.15,
        "GaussianBlurTransform": 0.2,
        "MultiplicativeBrightnessTransform": 0.15,
        "ContrastTransform": 0.15,
        "SimulateLowResolutionTransform": 0.25,
        "GammaTransform": 0.3,
        "BrightnessAdditiveTransform": 0.3,
    }
    (brightness,) = [one.transform for one in others if "Additive" in type(getattr(one, "transform", None)).__name__]
    assert (brightness.mu, brightness.sigma, brightness.p_per_channel) == (0, 0.2, shifted)
    *_, patch, mirrored = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert mirrored == (0, 1, 2)
    assert min(patch) >= 16 // 0.7


def test_a_deformation_shifts_by_an_eighth_to_a_half_of_the_width_of_its_waves():
    np.random.seed(0)
    shifts = [deformation_in_voxels(patch_size=(64, 128), dim=1, deformation_scale=0.25, image=None) for _ in range(99)]
    assert 4 <= min(shifts) < 5
    assert 15 < max(shifts) <= 16


def test_a_patch_is_cut_to_its_size_and_its_labels_stay_labels(world):
    trainer = build(world, "BraTSIsensee2020DA4BNBDTrainer", patch_size=[16] * 3)
    trainer.initialize()
    _, dummy, initial, axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    transform = trainer.get_training_transforms(
        (16, 16, 16), 0, None, axes, dummy, [True] * 4, regions=trainer.label_manager.foreground_regions
    )
    torch.manual_seed(0)
    np.random.seed(0)
    image, labels = torch.randn(4, *initial), torch.randint(-1, 4, (1, *initial), dtype=torch.int16)
    for _ in range(8):
        made = transform(image=image.clone(), segmentation=labels.clone())
        assert made["image"].shape == (4, 16, 16, 16)
        assert torch.isfinite(made["image"]).all()
        assert made["segmentation"].shape == (3, 16, 16, 16)
        wt, tc, et = made["segmentation"].bool()
        assert not (tc & ~wt).any()
        assert not (et & ~tc).any()


# ---- the system ------------------------------------------------------------------------------------------------------


def test_the_recipe_is_the_authors_ensemble_with_their_thresholds_of_et():
    recipe = load_recipe(PAPER.recipe)
    three, ranked = recipe.ensembles["three"], recipe.ensembles["ranked"]
    assert {recipe.models[name].trainer for name in three.of} == {f"BraTSIsensee2020{v}Trainer" for v in (
        "DA3BNBD", "DA4BN", "DA4BNBD"
    )}  # fmt: skip
    assert {recipe.models[name].trainer for name in ranked.of} == set(NAMES)
    assert (ranked.best, ranked.by) == (3, "ranking")
    ((step,),) = [parse_grid(one.tune["grid"]) for one in recipe.postprocessing.values()]
    assert [rule["min_voxels"] for rule in step] == list(range(25, 751, 25))
    assert recipe.postprocessing["final"].tune["objective"] == "ranking"
    assert PAPER.rules == {"isensee2020": [{"rule": "small-et", "min_voxels": 200}]}
    assert all(hasattr(trainers, name) for name in NAMES)
