"""Hashemi et al. 2021: networks, loss, warp, slices, trainers, and three binary models on the way to one label map."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import threads_for_processes
from nnunetv2.ensembling.ensemble import merge_files
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from scipy.ndimage import gaussian_filter, map_coordinates
from tiny_trainers import CPU, build, random_batch
from torch import nn

from nnunet_brats_ext.architectures.plain_unet_2d import ABSENT_LOGIT, BinaryUNet2D, PlainUNet2D
from nnunet_brats_ext.brats import LABEL_SCHEMES
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.losses.weighted_dice import FrequencyWeightedDiceLoss
from nnunet_brats_ext.planning.brats_plans import add_configurations
from nnunet_brats_ext.predictions.fusion import nested, paint_masks
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import read_label_map, read_probabilities
from nnunet_brats_ext.trainers.hashemi2021 import trainers as hashemi2021
from nnunet_brats_ext.trainers.hashemi2021 import transforms
from nnunet_brats_ext.trainers.hashemi2021.plateau import PlateauOfEpochs
from nnunet_brats_ext.trainers.hashemi2021.sampling import NonEmptySlices
from nnunet_brats_ext.trainers.hashemi2021.trainers import (
    BraTS2DEnhancingTumorTrainer,
    BraTS2DTrainer,
    BraTS2DTumorCoreTrainer,
    BraTS2DWholeTumorAugmentedTrainer,
    BraTS2DWholeTumorTrainer,
)
from nnunet_brats_ext.trainers.hashemi2021.transforms import (
    ComposedWarp,
    compose,
    random_displacement,
    random_steps,
    sampling_grid,
    truncated_grid,
)
from nnunet_brats_ext.training.environment import EPOCHS, ITERATIONS

NARROW = dict(features_per_stage=(4, 8, 16, 16, 16))
REGIONS = LABEL_SCHEMES["glioma_2017"].regions
BINARY = (BraTS2DWholeTumorTrainer, BraTS2DTumorCoreTrainer, BraTS2DEnhancingTumorTrainer)


# --- networks ------------------------------------------------------------------------------------------------------


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_networks_have_the_parameters_of_the_paper():
    with torch.device("meta"):
        all_regions, one = PlainUNet2D(4, 3), BinaryUNet2D(4, 3, region=0)
    assert parameters(all_regions) == 31_045_763
    assert parameters(one) == 31_045_186
    assert [parameters(stage) for stage in one.encoder_stages] == [39_552, 221_952, 886_272, 3_542_016, 14_161_920]
    assert [parameters(stage) for stage in one.decoder_stages] == [7_080_960, 1_771_008, 443_136, 110_976]
    assert [parameters(up) for up in one.upsamplings] == [2_097_664, 524_544, 131_200, 32_832]
    assert sum(buffer.numel() for buffer in one.buffers()) == 11_794


def with_pattern(network: nn.Module) -> nn.Module:
    """The weights that the golden values belong to."""
    for module in network.double().modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            shape, k = module.weight.shape, torch.arange(module.weight.numel()).double()
            module.weight.data = ((0.37 * k + 0.11).sin() * (2 / shape[1:].numel()) ** 0.5).reshape(shape)
            module.bias.data = 0.01 * (0.5 * torch.arange(module.bias.numel()).double()).cos()
        elif isinstance(module, nn.BatchNorm2d):
            k = torch.arange(module.weight.numel()).double()
            module.weight.data, module.bias.data = 1 + 0.1 * (0.3 * k).sin(), 0.1 * (0.7 * k).cos()
    return network.train()


@pytest.fixture(scope="module")
def pattern() -> torch.Tensor:
    k = torch.arange(2 * 4 * 48 * 64).double()
    return (0.013 * k + 0.5 * (0.0007 * k).cos()).sin().reshape(2, 4, 48, 64)


@torch.no_grad()
def test_the_network_of_all_regions_has_the_authors_output(pattern):
    y = with_pattern(PlainUNet2D(4, 3))(pattern).sigmoid()
    assert y.mean((0, 2, 3)).tolist() == pytest.approx([0.505477628, 0.508639958, 0.509625681], abs=1e-9)
    assert y[1, :, 20, 30].tolist() == pytest.approx([0.481569212, 0.477834971, 0.479716938], abs=1e-9)
    assert y[0, :, 0, 0].tolist() == pytest.approx([0.507843417, 0.507312504, 0.504950294], abs=1e-9)


@torch.no_grad()
def test_the_binary_network_has_the_authors_output(pattern):
    logits = with_pattern(BinaryUNet2D(4, 3, region=1, final_relu=True))(pattern)
    y = torch.stack([logits[:, 1].sigmoid(), (-logits[:, 1]).sigmoid()], dim=1)  # the softmax of the two channels
    assert y.mean((0, 2, 3)).tolist() == pytest.approx([0.498219925, 0.501780075], abs=1e-9)
    assert y.std((0, 2, 3)).tolist() == pytest.approx([0.011319621] * 2, abs=1e-9)
    assert y[1, :, 20, 30].tolist() == [0.5, 0.5]
    assert y[0, :, 0, 0].tolist() == pytest.approx([0.500531035, 0.499468965], abs=1e-9)


@pytest.mark.parametrize(
    ("size", "strides"),
    [
        ((32, 48), ((1, 1), *((2, 2),) * 4)),
        ((64, 64), ((1, 1), *((2, 2),) * 5)),  # deeper than the paper's: the last is left out
        ((12, 20), ((1, 1), (2, 2), (2, 2))),
        ((20, 48), ((1, 1), (2, 2), (2, 2), (1, 2), (1, 2))),
    ],
    ids=str,
)
@pytest.mark.parametrize("region", [None, 2], ids=["3C", "2C"])
def test_any_size_that_the_strides_allow_trains_and_predicts(size, strides, region):
    kind = {} if region is None else {"region": region}
    network = (PlainUNet2D if region is None else BinaryUNet2D)(4, 3, strides=strides, **NARROW, **kind)
    logits = network(torch.randn(2, 4, *size))
    assert logits.shape == (2, 3, *size)
    FrequencyWeightedDiceLoss(region=region)(logits, torch.rand(2, 3, *size) > 0.7).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    assert network.eval()(torch.randn(1, 4, *(2 * n for n in size))).shape == (1, 3, *(2 * n for n in size))


@pytest.mark.parametrize(("region", "regions"), [(0, 3), (1, 3), (2, 3), (2, 4), (1, 2)])
def test_a_binary_network_predicts_background_for_the_other_regions(region, regions):
    logits = BinaryUNet2D(4, regions, region, **NARROW).eval()(torch.randn(1, 4, 32, 32))
    others = [other for other in range(regions) if other != region]
    assert (logits[:, others] == ABSENT_LOGIT).all()
    assert logits[:, region].std() > 0
    assert logits.half().sigmoid()[:, others].max() < 1e-6


def test_a_region_that_the_data_set_does_not_have_is_an_error():
    with pytest.raises(UserError, match="region 2 is none of the data set's 2 regions: choose one from 0 to 1"):
        BinaryUNet2D(4, 2, region=2)


def test_the_final_relu_stops_the_gradient_of_some_pixels():
    silent = {}
    for final_relu in (True, False):
        torch.manual_seed(0)
        network = BinaryUNet2D(4, 3, 0, final_relu, **NARROW)
        network.head.bias.data -= 0.3
        logits = network(torch.randn(2, 4, 32, 32))
        silent[final_relu] = (logits[:, 0] == 0).float().mean().item()
    assert silent[True] > 0.02
    assert silent[False] == 0


# --- loss ----------------------------------------------------------------------------------------------------------

K = torch.arange(3 * 8 * 8).double().reshape(3, 1, 8, 8)
ONE = ((0.37 * K).sin() + 1) / 2, (0.21 * K).cos() > 0.5
THREE = (
    torch.cat([((0.37 * K + c).sin() + 1) / 2 for c in range(3)], 1),
    torch.cat([(0.21 * K).cos() > threshold for threshold in (0.2, 0.5, 0.8)], 1),
)


@pytest.mark.parametrize(
    ("batch", "region", "expected"),
    [
        (True, 0, 0.563959114),
        (False, 0, 0.567186850),
        (True, None, 1.251585700),
        (False, None, 1.254083584),
    ],
    ids=["2C eq. 2", "2C eq. 1", "3C eq. 2", "3C eq. 1"],
)
def test_the_loss_has_the_papers_value(batch, region, expected):
    probabilities, target = THREE if region is None else ONE
    loss = FrequencyWeightedDiceLoss(batch, region=region)(probabilities.logit(), target)
    assert loss.item() == pytest.approx(expected, abs=1e-9)


def test_the_text_adds_slices_up_and_the_release_reverses_the_weights_of_channels():
    (one, region), (three, regions) = ONE, THREE
    summed = FrequencyWeightedDiceLoss(batch=False, region=0, summed=True)
    assert summed(one.logit(), region).item() == pytest.approx(1.701560550, abs=1e-8)
    summed = FrequencyWeightedDiceLoss(batch=False, summed=True)
    assert summed(three.logit(), regions).item() == pytest.approx(3.762250751, abs=1e-8)
    # The authors' weights are in fp32.
    for loss, (probabilities, target), expected in (
        (FrequencyWeightedDiceLoss(region=0, reversed_weights=True), ONE, 0.563959358),
        (FrequencyWeightedDiceLoss(reversed_weights=True), THREE, 0.636354532),
    ):
        assert loss(probabilities.logit(), target).item() == pytest.approx(expected, abs=5e-8)


def test_a_binary_loss_depends_on_its_region_alone():
    probabilities, target = ONE
    logits = torch.full((3, 3, 8, 8), ABSENT_LOGIT).double()
    logits[:, 1] = probabilities.logit()[:, 0]
    regions = torch.cat([target.logical_not(), target, target.logical_not()], 1)
    assert FrequencyWeightedDiceLoss(region=1)(logits, regions).item() == pytest.approx(0.563959114, abs=1e-9)


@pytest.mark.parametrize("batch", [True, False], ids=["eq. 2", "eq. 1"])
@pytest.mark.parametrize("region", [None, 2], ids=["3C", "2C"])
@pytest.mark.parametrize("full", [0, 1], ids=["no tumour", "nothing but tumour"])
def test_the_loss_of_uniform_slices_is_finite(batch, region, full):
    logits = torch.linspace(-200, 200, 2 * 3 * 64).reshape(2, 3, 8, 8).requires_grad_()
    loss = FrequencyWeightedDiceLoss(batch, region=region)(logits, torch.full((2, 3, 8, 8), full).bool())
    loss.backward()
    assert 0 <= loss.item() <= 3
    assert torch.isfinite(logits.grad).all()


def test_the_loss_does_not_overflow_in_half_precision():
    logits = torch.full((10, 3, 160, 160), 4.0, dtype=torch.float16)  # 256,000 pixels, above 65,504
    target = torch.ones(10, 3, 160, 160, dtype=torch.bool)
    loss = FrequencyWeightedDiceLoss()(logits, target)
    assert loss.dtype == torch.float32
    # p = sigmoid(4) = 0.982: dice = 2 p / (p + 1) = 0.9909, and three channels of weight 2/3 each
    assert loss.item() == pytest.approx(2 * (1 - 2 * 0.98201 / 1.98201), abs=1e-4)


# --- warp ----------------------------------------------------------------------------------------------------------

SIZE = (40, 56)  # y, x


def coordinates_step_by_step(rng: np.random.Generator, size: tuple[int, int], kept: type = float) -> np.ndarray:
    """What Table I of the paper prescribes, transform after transform, in pixels from the corner, (y, x).

    kept: the type of an array that coordinates are put into after every transform.
    """
    height, width = size
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y, x = np.mgrid[:height, :width].astype(float)
    if rng.random() < 0.5:
        x = width - 1 - x
    scale_x, scale_y = rng.uniform(0.9, 1.1, 2)
    shear_x, shear_y = rng.uniform(-0.05, 0.05, 2)
    angle = rng.uniform(-15, 15) * np.pi / 180
    x = (x + rng.uniform(-0.1, 0.1) * width).astype(kept)
    y = (y + rng.uniform(-0.1, 0.1) * height).astype(kept)
    x = ((x - middle_x) / scale_x + middle_x).astype(kept)
    y = ((y - middle_y) / scale_y + middle_y).astype(kept)
    x = (x + shear_x * (y - middle_y)).astype(kept)
    y = (y + shear_y * (x - middle_x)).astype(kept)
    x, y = (
        (np.cos(angle) * (x - middle_x) - np.sin(angle) * (y - middle_y) + middle_x).astype(kept),
        (np.sin(angle) * (x - middle_x) + np.cos(angle) * (y - middle_y) + middle_y).astype(kept),
    )
    noise = rng.random((2, *size), dtype=np.float32) * 2 - 1
    x = x + 600 * gaussian_filter(noise[0].astype(float), 30, mode="constant")
    y = y + 600 * gaussian_filter(noise[1].astype(float), 30, mode="constant")
    return np.stack([y, x]).astype(kept)


@pytest.mark.parametrize("seed", range(4))
def test_one_interpolation_looks_up_what_nine_transforms_lead_to(seed):
    image = torch.randn(4, *SIZE)
    segmentation = torch.randint(-1, 4, (1, *SIZE), dtype=torch.int16)
    rng = np.random.default_rng(seed)
    grid = sampling_grid(compose(random_steps(rng, SIZE)), random_displacement(rng, SIZE))
    expected = coordinates_step_by_step(np.random.default_rng(seed), SIZE)
    found = (grid[0].numpy()[..., ::-1].transpose(2, 0, 1) + 1) / 2 * (np.array(SIZE)[:, None, None] - 1)
    np.testing.assert_allclose(found, expected, atol=1e-4)

    warped = ComposedWarp().apply({"image": image, "segmentation": segmentation}, grid=grid)
    for channel, result in zip(image, warped["image"], strict=True):
        reference = map_coordinates(channel.double().numpy(), expected, order=1, mode="nearest")
        np.testing.assert_allclose(result, reference, atol=1e-3)
    nearest = map_coordinates(segmentation[0].numpy(), expected, order=0, mode="nearest")
    assert warped["segmentation"].dtype == torch.int16
    assert np.mean(warped["segmentation"][0].numpy() != nearest) < 0.002  # halfway between two pixels


@pytest.mark.parametrize("seed", range(4))
def test_the_release_truncates_coordinates_after_each_transform_and_takes_the_nearest_pixel(seed):
    rng = np.random.default_rng(seed)
    grid = truncated_grid(random_steps(rng, SIZE), random_displacement(rng, SIZE))
    expected = coordinates_step_by_step(np.random.default_rng(seed), SIZE, kept=np.int64)
    found = (grid[0].numpy()[..., ::-1].transpose(2, 0, 1) + 1) / 2 * (np.array(SIZE)[:, None, None] - 1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    exact = coordinates_step_by_step(np.random.default_rng(seed), SIZE)
    assert 0.5 < np.abs(expected - exact).max() < 7, "up to a pixel in each of six steps, about"

    image = torch.randn(4, *SIZE)
    warped = ComposedWarp(truncated=True).apply({"image": image, "segmentation": image[:1]}, grid=grid)
    y, x = (np.clip(axis, 0, length - 1) for axis, length in zip(expected, SIZE, strict=True))
    assert torch.equal(warped["image"], image[:, y, x])
    assert torch.equal(warped["segmentation"], image[:1, y, x])


@pytest.mark.parametrize(("follows", "truncated"), [({}, False), ("text", False), ("release", True)])
def test_the_augmentation_of_the_text_interpolates_once_and_that_of_the_release_truncates(follows, truncated, world):
    own = type("Own2DTrainer", (BraTS2DWholeTumorAugmentedTrainer,), {"follows": follows})
    (warp,) = build(world, own).augmentation()
    assert warp.truncated == truncated
    image = torch.rand(1, *SIZE)
    taken = torch.isin(warp(image=image.clone())["image"], image).float().mean()
    assert (taken == 1) == truncated, "pixels of the slice itself"


def test_nothing_moves_where_every_transform_is_off(monkeypatch):
    for name in ("FLIP_PROBABILITY", "TRANSLATION", "SCALING", "SHEAR", "ROTATION_DEGREES", "ELASTIC_ALPHA"):
        monkeypatch.setattr(transforms, name, 0.0)
    image, segmentation = torch.randn(4, *SIZE), torch.randint(-1, 4, (1, *SIZE), dtype=torch.int16)
    warped = ComposedWarp()(image=image.clone(), segmentation=segmentation.clone())
    assert torch.allclose(warped["image"], image, atol=1e-4)
    assert torch.equal(warped["segmentation"], segmentation)


def test_the_flip_exchanges_left_and_right_only(monkeypatch):
    for name in ("TRANSLATION", "SCALING", "SHEAR", "ROTATION_DEGREES", "ELASTIC_ALPHA"):
        monkeypatch.setattr(transforms, name, 0.0)
    image = torch.randn(1, *SIZE)
    flipped = [torch.allclose(ComposedWarp()(image=image)["image"], image.flip(-1), atol=1e-4) for _ in range(40)]
    assert 5 < sum(flipped) < 35


def test_a_warp_brings_in_no_value_from_beyond_the_border():
    background = -0.7  # of a z-score over the whole volume
    image = torch.full((4, *SIZE), background)
    image[:, 10:30, 15:40] = torch.rand(4, 20, 25)
    for _ in range(20):
        warped = ComposedWarp()(image=image.clone())["image"]
        assert warped.min() >= background - 1e-5
        assert warped.max() <= 1


def test_image_and_segmentation_move_together():
    image = torch.zeros(1, 120, 120)
    image[0, 30:80, 40:90] = 1
    warped = ComposedWarp()(image=image.clone(), segmentation=image.to(torch.int16))
    apart = (warped["image"] > 0.5) != (warped["segmentation"] == 1)
    assert apart.float().mean() < 0.01


def test_the_elastic_deformation_is_as_strong_as_in_the_paper():
    displacement = random_displacement(np.random.default_rng(0), (240, 240))
    assert 1.5 < displacement.std() < 4.5
    assert 3 < abs(displacement).max() < 15


def test_every_draw_differs_and_numpys_seed_decides():
    image = torch.randn(1, *SIZE)

    def warped(seed: int) -> torch.Tensor:
        np.random.seed(seed)
        torch.manual_seed(0)  # as in the workers that nnU-Net forks, where it is the same for all
        return ComposedWarp()(image=image.clone())["image"]

    assert torch.equal(warped(1), warped(1))
    assert not torch.allclose(warped(1), warped(2), atol=0.1)


# --- slices --------------------------------------------------------------------------------------------------------


class TwoCases:
    """Cases of 6 slices, of which the second and the last hold nothing: nnU-Net's -1."""

    source_folder, folder_with_segs_from_previous_stage = "", None
    identifiers = ("a", "b")

    def __init__(self, size: tuple[int, int] = (20, 24)):
        self.data = np.arange(1, 7).reshape(1, 6, 1, 1) * np.ones((4, 6, *size), np.float32)
        self.segmentation = np.zeros((1, 6, *size), np.int8)
        self.segmentation[:, [1, 5]] = -1

    def load_case(self, identifier: str):
        return self.data, self.segmentation, None, {"class_locations": {1: np.zeros((0, 4), int)}}


def drawn(world, size: tuple[int, int], patch: tuple[int, int], batches: int = 10) -> np.ndarray:
    labels = build(world, BraTS2DTrainer).label_manager
    loader = nnUNetDataLoader(NonEmptySlices(TwoCases(size), patch), 10, patch, patch, labels, 1.0)
    return np.concatenate([next(loader)["data"].numpy() for _ in range(batches)])


def test_training_sees_every_slice_but_the_empty_ones(world):
    slices = drawn(world, (20, 24), (20, 24), batches=40).max((1, 2, 3))
    values, counts = np.unique(slices, return_counts=True)
    assert values.tolist() == [1, 3, 4, 5]
    assert counts.min() > 60, "each is as likely as the others: 100 of 400 draws"


def test_a_patch_that_covers_the_slice_lies_around_it_and_a_smaller_one_anywhere_inside(world):
    padded = drawn(world, (20, 24), (32, 32), batches=1)
    assert ((padded[:, 0] != 0) == np.pad(np.ones((20, 24), bool), ((6, 6), (4, 4)))).all()
    assert (drawn(world, (20, 24), (16, 16), batches=2) != 0).all()
    starts = {NonEmptySlices(TwoCases(), (16, 16)).draw_centre(TwoCases().load_case("a"))[1] - 8 for _ in range(200)}
    assert starts == {0, 1, 2, 3, 4}


# --- trainers ------------------------------------------------------------------------------------------------------


def test_it_trains_as_the_paper_and_its_code_state(world):
    strides = [[1, 1], *[[2, 2]] * 5]  # as nnU-Net plans slices of BraTS: deeper than the paper's
    trainer = build(world, BraTS2DTrainer, patch_size=[64, 64], strides=strides)
    trainer.initialize()
    assert isinstance(trainer.optimizer, torch.optim.Adam)
    assert (trainer.initial_lr, trainer.weight_decay, trainer.num_epochs) == (1e-3, 0, 80)
    schedule = trainer.lr_scheduler
    assert (schedule.factor, schedule.patience, schedule.threshold) == (0.5, 5, 1e-2)
    assert (schedule.mode, schedule.threshold_mode) == ("min", "rel")
    prediction = trainer.all_facts().prediction
    assert (prediction.tiling, prediction.symmetries) == ("sliding", "none")
    assert parameters(trainer.network) == 31_045_763


def test_an_epoch_draws_as_many_slices_as_there_are_and_ten_times_with_augmentation(world):
    iterations = []
    for trainer_class in (BraTS2DTrainer, BraTS2DWholeTumorAugmentedTrainer):
        trainer = build(world, trainer_class)
        training, validation = trainer.get_tr_and_val_datasets()
        slices = [
            sum(cases.load_case(name)[0].shape[1] for name in cases.identifiers) for cases in (training, validation)
        ]
        copies, batch_size = trainer.copies, trainer.configuration_manager.batch_size
        assert trainer.num_iterations_per_epoch == -(-slices[0] * copies // batch_size)
        assert trainer.num_val_iterations_per_epoch == -(-slices[1] // batch_size)
        iterations.append(trainer.num_iterations_per_epoch)
    assert iterations[1] > 9 * iterations[0]


def test_it_trains_on_the_configuration_that_plan_adds(world, monkeypatch):
    monkeypatch.setattr(hashemi2021.HashemiTrainer, "network_options", dict(features_per_stage=(4, 8, 16)))
    monkeypatch.setenv(ITERATIONS, "1")
    fingerprint = world.root / "nnUNet_preprocessed" / world.dataset / "dataset_fingerprint.json"
    found = json.loads(fingerprint.read_text())
    plans, _ = add_configurations(world.plans, "BraTSPlans", found)
    plans["continue_training"] = False
    trainer = BraTS2DWholeTumorAugmentedTrainer(plans, "hashemi_2d", 0, world.dataset_json, CPU)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    size = trainer.configuration_manager.patch_size
    assert batch["data"].shape == (10, 4, *size), "the paper's batch"
    assert (np.array(size) >= np.max(found["shapes_after_crop"], axis=0)[1:]).all(), "of whole slices"
    assert np.isfinite(trainer.train_step(batch)["loss"])


def test_only_the_augmented_trainers_warp(world):
    for name in dir(hashemi2021):
        if name.startswith("BraTS2D"):
            transforms = build(world, name).augmentation()
            assert [type(transform) for transform in transforms] == [ComposedWarp] * ("Augmented" in name)


def test_a_volume_is_refused_with_what_to_train_on_instead(world):
    with pytest.raises(ValueError, match=r"BraTS2DTrainer segments slices.*configuration 2d, or on hashemi_2d"):
        build(world, BraTS2DTrainer, "3d_fullres").initialize()


def test_the_rate_halves_when_six_epochs_bring_no_gain_and_a_resumed_training_goes_on_counting(world, monkeypatch):
    monkeypatch.setattr(hashemi2021.HashemiTrainer, "network_options", dict(features_per_stage=(4, 8)))
    trainer = build(world, BraTS2DTrainer)
    trainer.initialize()

    def epochs(trainer, first: int, last: int) -> list[float]:
        rates = []
        for epoch in range(first, last):
            trainer.current_epoch = epoch
            trainer.lr_scheduler.step(epoch)  # as nnU-Net does when an epoch starts
            trainer.on_train_epoch_end([{"loss": 0.5 if epoch == 0 else 0.496}])  # less than 1 % better
            rates.append(trainer.optimizer.param_groups[0]["lr"])
        return rates

    assert epochs(trainer, 0, 4) == [1e-3] * 4
    for key in ("mean_fg_dice", "ema_fg_dice"):
        trainer.logger.local_logger.my_fantastic_logging[key] = [0.0] * 4
    checkpoint = str(Path(trainer.output_folder, "checkpoint_latest.pth"))
    trainer.save_checkpoint(checkpoint)
    resumed = build(world, BraTS2DTrainer)
    resumed.load_checkpoint(checkpoint)
    assert epochs(resumed, 4, 8) == [1e-3, 1e-3, 5e-4, 5e-4]


def test_the_start_of_an_epoch_does_not_change_the_rate():
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], 1.0)
    schedule = PlateauOfEpochs(optimizer, patience=0)
    for epoch in range(5):
        schedule.step(epoch)
    assert optimizer.param_groups[0]["lr"] == 1.0
    schedule.observe(1.0)
    schedule.observe(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_subclass_turns_the_authors_relu_on_for_training_and_inference(world):
    class Authors(BraTS2DWholeTumorTrainer):
        follows = dict(final_relu="release")
        network_options = dict(features_per_stage=(4, 8))

    trainer = build(world, Authors, "2d")
    trainer.initialize()
    managers = trainer.plans_manager, trainer.configuration_manager
    assert trainer.network.final_relu
    assert Authors.build_network_architecture(*managers, 4, 3, False).final_relu


@pytest.mark.parametrize("trainer_class", BINARY)
def test_the_pseudo_dice_of_a_binary_model_is_that_of_its_region(trainer_class, world, monkeypatch):
    monkeypatch.setattr(hashemi2021.HashemiTrainer, "network_options", dict(features_per_stage=(4, 8)))
    trainer = build(world, trainer_class)
    trainer.initialize()
    trainer.network.eval()
    with torch.no_grad():
        step = trainer.validation_step(random_batch(trainer))
    found = step["tp_hard"] + step["fn_hard"]
    assert [bool(n) for n in found] == [region == trainer.region for region in range(3)]
    trainer.logger.log("train_losses", 1.0, 0)
    trainer.on_validation_epoch_end([step])
    dice = trainer.logger.get_value("dice_per_class_or_region", step=0)
    assert trainer.logger.get_value("mean_fg_dice", step=0) == pytest.approx(dice[trainer.region])


# --- from training to scores ---------------------------------------------------------------------------------------


@pytest.fixture
def narrow(monkeypatch, world):
    """Small networks, trained for long enough to find a phantom's tumour."""
    monkeypatch.setattr(hashemi2021.HashemiTrainer, "network_options", dict(features_per_stage=(8, 16, 32)))
    monkeypatch.setenv(EPOCHS, "1")
    monkeypatch.setenv(ITERATIONS, "30")
    np.random.seed(0)
    torch.manual_seed(0)
    return world


def train_and_predict(world, trainer_class: type, cases: list[str], out: Path) -> nnUNetPredictor:
    """As nnUNetv2_train and nnUNetv2_predict --save_probabilities do, in this process."""
    trainer = build(world, trainer_class)
    trainer.run_training()
    predictor = nnUNetPredictor(use_mirroring=False, device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    out.mkdir()
    images = [[str(world.raw / "imagesTr" / f"{case}_{channel:04d}.nii.gz") for channel in range(4)] for case in cases]
    predictor.predict_from_files_sequential(images, str(out), save_probabilities=True)
    return predictor


def score(world, folder: Path, results: Path) -> dict:
    references = str(world.raw / "labelsTr")
    assert main(["evaluate", references, str(folder), "--partial", "-o", str(results), "-np", "1"]) == 0
    return json.loads(results.read_text())["summary"]


def test_nnunets_validation_and_ensembling_take_a_binary_model(narrow, tmp_path, monkeypatch):
    monkeypatch.setenv(ITERATIONS, "1")
    trainer = build(narrow, BraTS2DTumorCoreTrainer, fold=2)
    trainer.run_training()
    with threads_for_processes():
        trainer.perform_actual_validation(save_probabilities=True)
    folder = Path(trainer.output_folder, "validation")
    scores = json.loads((folder / "summary.json").read_text())["mean"]
    assert 0 <= scores["(2, 3)"]["Dice"] <= 1
    case = next(folder.glob("*.npz")).stem
    reader = trainer.plans_manager.image_reader_writer_class()
    merge_files([str(folder / f"{case}.npz")] * 2, str(tmp_path / case), ".nii.gz", reader, trainer.label_manager)
    merged, alone = (read_label_map(place / f"{case}.nii.gz")[0] for place in (tmp_path, folder))
    assert np.array_equal(merged, alone)
    assert set(np.unique(merged)) <= {0, 2}


def test_one_network_of_all_regions_goes_all_the_way(narrow, tmp_path):
    case = sorted(path.name.removesuffix(".nii.gz") for path in (narrow.raw / "labelsTr").iterdir())[0]
    train_and_predict(narrow, BraTS2DTrainer, [case], tmp_path / "predictions")
    probabilities = read_probabilities(tmp_path / "predictions" / f"{case}.npz")
    assert set(np.unique(read_label_map(tmp_path / "predictions" / f"{case}.nii.gz")[0])) <= {0, 1, 2, 3}
    assert probabilities.shape[0] == 3
    assert score(narrow, tmp_path / "predictions", tmp_path / "results.json")["WT"]["dice"]["mean"] > 0.2

    images, frugal = tmp_path / "images", tmp_path / "frugal"
    images.mkdir()
    for file in (narrow.raw / "imagesTr").glob(f"{case}_*"):
        (images / file.name).symlink_to(file.resolve())
    model = ("-d", "901", "-tr", "BraTS2DTrainer", "-c", "2d", "-f", "0", "-device", "cpu")
    words = ["predict", "-i", str(images), "-o", str(frugal), *model, "--low-memory", "630", "--profile"]
    assert main(words) == 0
    assert np.array_equal(
        *(read_label_map(folder / f"{case}.nii.gz")[0] for folder in (tmp_path / "predictions", frugal))
    )
    profile = json.loads((frugal / "profile.json").read_text())
    steps = profile["parts"]["Predict"]["cases"][case]
    assert set(steps) == {"preprocess", "predict", "write"}
    assert 0 < steps["predict"]["peak_mb"] <= profile["peak_mb"]


def test_three_binary_models_are_trained_predicted_fused_and_scored(narrow, tmp_path):
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (narrow.raw / "labelsTr").iterdir())[:2]
    folders = [tmp_path / name for name in REGIONS]
    for region, (trainer_class, folder) in enumerate(zip(BINARY, folders, strict=True)):
        train_and_predict(narrow, trainer_class, cases, folder)
        for case in cases:
            probabilities = read_probabilities(folder / f"{case}.npz")
            labels, _ = read_label_map(folder / f"{case}.nii.gz")
            assert set(np.unique(labels)) <= {0, region + 1}, "it paints its region's label and no other"
            assert np.array_equal(labels > 0, probabilities[region] > 0.5)
            assert np.delete(probabilities, region, axis=0).max() < 1e-6

    fused = tmp_path / "fused"
    inputs = [str(folder) for folder in folders]
    options = ["--method", "nested", "--save_probabilities", "-np", "1"]
    assert main(["ensemble", "-i", *inputs, "-o", str(fused), *options]) == 0
    for case in cases:
        own = np.stack([read_probabilities(folder / f"{case}.npz")[region] for region, folder in enumerate(folders)])
        assert np.array_equal(read_label_map(fused / f"{case}.nii.gz")[0], paint_masks(nested(own > 0.5)))
        for path in folders:
            (path / f"{case}.npz").unlink()
    from_maps = tmp_path / "from_maps"
    assert main(["ensemble", "-i", *inputs, "-o", str(from_maps), "--method", "nested", "-np", "1"]) == 0
    for case in cases:
        assert np.array_equal(*(read_label_map(folder / f"{case}.nii.gz")[0] for folder in (fused, from_maps)))
    summary = score(narrow, fused, tmp_path / "results.json")
    assert set(summary) == set(REGIONS)
    assert summary["WT"]["dice"]["mean"] > 0.2
