"""Lachinov et al. 2019: networks, losses, sampling, augmentation, schedules, and the way to the ensemble."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from conftest import threads_for_processes
from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import move_plans_between_datasets
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from tiny_trainers import make_tiny
from torch import nn

from nnunet_brats_ext import papers
from nnunet_brats_ext.architectures.cascaded_unet import CascadedUNet, region_logits, unit_intensities
from nnunet_brats_ext.architectures.no_new_unet import NoNewUNet
from nnunet_brats_ext.architectures.post_activation_residual_unet import PostActivationResidualUNet
from nnunet_brats_ext.architectures.vae import VAEBranch
from nnunet_brats_ext.brats import LABEL_SCHEMES
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.losses.cross_entropy import DiceAndBCELoss, WeightedBCELoss
from nnunet_brats_ext.losses.label_dice import LabelDiceLoss, labels_of_regions
from nnunet_brats_ext.planning.brats_plans import resampled_data
from nnunet_brats_ext.planning.fitting import Cases
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.trainers import (
    BraTSCascadedUNetTrainer,
    BraTSNoNewNetTrainer,
    BraTSResUNetVAETrainer,
    BraTSStudentTrainer,
)
from nnunet_brats_ext.trainers.lachinov2019.sampling import LabelBoxDraws
from nnunet_brats_ext.trainers.lachinov2019.trainers import LachinovTrainer, MXNetParity, StudentRelease
from nnunet_brats_ext.trainers.lachinov2019.transforms import ReplaceChannelsByNoise, ShiftChannels
from nnunet_brats_ext.training.environment import EPOCHS, ITERATIONS
from nnunet_brats_ext.training.planned_network import PlannedNetwork

CPU = torch.device("cpu")
GLIOMA = [(1, 2, 3), (2, 3), 3]
TRAINERS = (BraTSNoNewNetTrainer, BraTSResUNetVAETrainer, BraTSCascadedUNetTrainer, BraTSStudentTrainer)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def build(world, trainer: type, configuration: str = "3d_fullres", plans: str = "nnUNetPlans", **changes):
    path = world.root / "nnUNet_preprocessed" / world.dataset / f"{plans}.json"
    content = json.loads(path.read_text()) | {"continue_training": False}
    content["configurations"][configuration] |= changes
    built = trainer(content, configuration, 0, world.dataset_json, CPU)
    built.logger.plot_progress_png = lambda folder: None  # takes as long as an epoch
    return built


# ---- networks ------------------------------------------------------------------------------------------------------


def test_pretrained_weights_leave_the_regions_of_the_cascade_to_the_data_set(world, tmp_path):
    pretrained = build(world, BraTSCascadedUNetTrainer)
    pretrained.initialize()
    own = pretrained.bare_network.regions.clone()
    pretrained.bare_network.regions.copy_(own.flip(1))  # of a data set that numbers its labels otherwise
    pretrained.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    trainer = build(world, BraTSCascadedUNetTrainer)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(tmp_path / "checkpoint.pth"))  # after which nnU-Net starts training
    trainer.on_train_start()
    assert torch.equal(trainer.bare_network.regions, own)


def test_networks_have_the_papers_parameters():
    with torch.device("meta"):
        plain, student, cascade = NoNewUNet(4, 3), PostActivationResidualUNet(4, 3), CascadedUNet(4, 3)
        branch = VAEBranch(4, (18, 18, 16), features_per_stage=student.features_per_stage)  # at 144 x 144 x 128
    assert parameters(plain.encoder_stages) == 9_313_380
    assert parameters(plain) == 9_313_380 + 5_177_373 == 14_490_753
    assert (
        parameters(student.stem) + parameters(student.downsamplings) + parameters(student.encoder_stages) == 4_196_384
    )
    assert parameters(student) == 4_196_384 + 313_555 == 4_509_939
    assert parameters(student) + parameters(branch) == 4_509_939 + 8_370_148 == 12_880_087
    assert [parameters(scale) for scale in cascade.scales] == [456_972, 1_822_164, 7_277_988]
    assert [parameters(scale.encoder_stages) for scale in cascade.scales] == [368_448, 1_469_568, 5_869_824]
    assert parameters(cascade) == 9_557_124


@pytest.mark.parametrize("features", [(16, 32, 64, 128, 256), (32, 64, 128, 256)], ids=["No New-Net", "student"])
def test_other_widths_have_the_papers_parameters(features):
    with torch.device("meta"):
        network = NoNewUNet if len(features) == 5 else PostActivationResidualUNet
        expected = {5: 4_123_795, 4: 18_026_979}[len(features)]
        assert parameters(network(4, 3, features_per_stage=features)) == expected


@pytest.mark.parametrize(
    ("network", "size"),
    [(NoNewUNet, (16, 32, 16)), (PostActivationResidualUNet, (8, 16, 24)), (CascadedUNet, (32, 64, 32))],
)
def test_gradients_reach_every_parameter_at_the_papers_depth(network, size):
    torch.manual_seed(0)
    model = network(4, 3)
    output = model(torch.randn(1, 4, *size))
    sum(logits.square().mean() for logits in ([output] if isinstance(output, torch.Tensor) else output)).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not still
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 4, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize(
    ("strides", "size", "scales"),
    [
        ([(1, 1, 1), (1, 2, 2), (2, 2, 2)], (6, 8, 12), 2),
        ([(1, 1), (2, 2), (2, 2), (2, 2)], (16, 32), 3),
        ([(1, 1, 1), (2, 2, 2)], (6, 8, 4), 1),
    ],
)
def test_the_cascade_has_as_many_scales_as_the_strides_of_the_plans_allow(strides, size, scales):
    conv_op = {2: nn.Conv2d, 3: nn.Conv3d}[len(size)]
    model = CascadedUNet(4, 3, conv_op=conv_op, strides=strides).eval()
    assert len(model.scales) == scales
    assert model(torch.randn(1, 4, *size)).shape == (1, 3, *size)


def test_a_cascade_without_downsampling_is_an_error():
    with pytest.raises(UserError, match=r"strides \(1,\) have no downsampling"):
        CascadedUNet(4, 3, strides=(1,))


def test_the_cascade_has_three_scales_whose_maps_enter_levels_of_equal_size():
    cascade = CascadedUNet(4, 3)
    outputs = cascade(torch.randn(1, 4, 64, 32, 32))
    assert [tuple(logits.shape) for logits in outputs] == [(1, 4, 64, 32, 32), (1, 4, 32, 16, 16), (1, 4, 16, 8, 8)]
    assert [scale.context_levels for scale in cascade.scales] == [(1, 2), (1,), ()]
    assert all(module.eps == 1e-3 for module in cascade.modules() if isinstance(module, nn.InstanceNorm3d))


def test_gradients_of_the_finest_scale_reach_the_coarser_ones_through_their_maps():
    cascade = CascadedUNet(4, 3)
    cascade(torch.randn(1, 4, 64, 32, 32))[0].square().mean().backward()
    for scale in cascade.scales:
        assert bool(scale.head.weight.grad.abs().sum() > 0)


def test_a_modality_changes_its_own_encoder_only():
    network = CascadedUNet(4, 3).scales[0].eval()
    x = torch.randn(1, 4, 16, 16, 16)
    permuted = x.clone()
    permuted[0, 2] = x[0, 2].flatten()[torch.randperm(x[0, 2].numel())].view_as(x[0, 2])
    with torch.no_grad():
        for before, after in zip(network.encode(x), network.encode(permuted), strict=True):
            same = [torch.equal(a, b) for a, b in zip(before.chunk(4, 1), after.chunk(4, 1), strict=True)]
            assert same == [True, True, False, True]


@pytest.mark.parametrize("scheme", ["glioma_2017", "resected_2024", "paediatric_2024", "glioma_2012", "glioma_2013"])
def test_region_logits_are_those_of_summed_label_probabilities(scheme):
    regions = list(LABEL_SCHEMES[scheme].regions.values())
    held = labels_of_regions(regions)
    logits = 5 * torch.randn(2, 1 + len(held), 3, 4, 5, dtype=torch.float64)
    softmax = logits.softmax(1)
    assert torch.allclose(softmax.sum(1), torch.ones(()).double())
    expected = torch.einsum("rl,bl...->br...", held.double(), softmax[:, 1:])
    assert torch.allclose(region_logits(logits, held).sigmoid(), expected, rtol=1e-12)


def test_region_logits_are_exact_where_a_label_is_certain():
    held = labels_of_regions(GLIOMA)
    certain = torch.tensor([[0.0, 0.0, 0.0, 500.0], [500.0, 0.0, 0.0, 0.0]]).view(2, 4, 1, 1).requires_grad_()
    logits = region_logits(certain, held)
    logits.sum().backward()
    assert logits[0].flatten().tolist() == pytest.approx([500, 500 - np.log(2), 500 - np.log(3)])
    assert logits[1].flatten().tolist() == pytest.approx([np.log(3) - 500, np.log(2) - 500, -500])
    assert torch.isfinite(certain.grad).all()


def test_intensities_are_those_that_the_release_stores():
    z_scores = torch.tensor([0.0, -9.0, -5.0, 1.0, 5.0, 7.0])
    assert unit_intensities(z_scores).tolist() == pytest.approx([0.0, 0.0, 0.0, 0.6, 1.0, 1.0])


def test_the_vae_of_the_second_teacher_upsamples_as_its_network_does():
    aligned, centred = (
        VAEBranch(4, (2, 2, 2), features_per_stage=(8, 16, 32, 64), align_corners=aligned) for aligned in (True, False)
    )
    assert {module.align_corners for module in aligned.modules() if hasattr(module, "align_corners")} == {True}
    assert {module.align_corners for module in centred.modules() if hasattr(module, "align_corners")} == {False}


# ---- losses --------------------------------------------------------------------------------------------------------


def pattern() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probabilities and regions WT, TC, ET (2, 3, 4, 4, 4); labels (2, 4, 4, 4): 1 NCR, 2 ED, 3 ET."""
    probabilities = (((37 * torch.arange(2 * 3 * 64) % 101).double() + 0.5) / 101).reshape(2, 3, 4, 4, 4)
    labels = 53 * torch.arange(2 * 64) % 11
    labels = torch.where(labels < 4, labels, 0).reshape(2, 4, 4, 4)
    regions = torch.stack([labels > 0, (labels == 1) | (labels == 3), labels == 3], dim=1)
    return probabilities, regions, labels


@pytest.mark.parametrize(("weight", "expected"), [(0.01, 0.17304871762140442), (1.0, 0.9442507629893008)])
def test_cross_entropy_has_the_papers_value(weight, expected):
    probabilities, regions, _ = pattern()
    assert WeightedBCELoss(weight, 1e-6)(probabilities.logit(), regions).item() == pytest.approx(expected, rel=1e-9)
    assert WeightedBCELoss(weight)(probabilities.logit(), regions).item() == pytest.approx(expected, rel=1e-4)


def test_the_loss_is_the_sum_in_the_paper_and_the_mean_in_the_release():
    probabilities, regions, _ = pattern()
    paper = DiceAndBCELoss()(probabilities.logit(), regions).item()
    assert paper == pytest.approx(0.6286081138810269 + 0.9442507629893008, rel=1e-5)
    loss = type("Release", (StudentRelease, BraTSStudentTrainer), {}).region_loss
    release = loss(SimpleNamespace(follows_text=lambda name: False))(probabilities.logit(), regions).item()
    assert release == pytest.approx((0.6286081138810269 + 0.17304871762140442) / 2, rel=1e-9)


def test_soft_targets_enter_the_denominator_without_a_square():
    probabilities, target = torch.full((1, 1, 8), 0.5), torch.full((1, 1, 8), 0.25)
    expected = 1 - 2 * (8 * 0.125) / (8 * 0.25 + 8 * 0.25)  # squared, the target would count 8 * 0.0625
    assert DiceAndBCELoss().dice(probabilities.logit(), target).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_the_loss_is_finite_in_half_precision_and_without_tumour(epsilon):
    logits = torch.full((1, 3, 8, 8, 8), 60.0, dtype=torch.float16, requires_grad=True)
    loss = DiceAndBCELoss(epsilon=epsilon)(logits, torch.zeros(1, 3, 8, 8, 8, dtype=torch.bool))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_dice_of_labels_has_the_papers_value():
    probabilities, regions, labels = pattern()
    four = torch.cat([probabilities, 1 - probabilities[:, :1]], 1)
    four = four / four.sum(1, keepdim=True)
    in_the_order_ed_ncr_et = four[:, [0, 2, 1, 3]].log()
    loss = LabelDiceLoss(labels_of_regions(GLIOMA), scale_weights=(1.0,))
    assert loss([in_the_order_ed_ncr_et], regions).item() == pytest.approx(0.6721112348274765, rel=1e-12)
    assert torch.equal(loss.labels(regions.double()).bool(), torch.stack([labels == 2, labels == 1, labels == 3], 1))


def test_coarse_scales_are_compared_with_averaged_labels():
    _, regions, labels = pattern()
    held = labels_of_regions(GLIOMA)
    coarse = torch.randn(2, 4, 2, 2, 2, dtype=torch.float64)
    y = torch.stack([labels == 2, labels == 1, labels == 3], 1).double()
    y = y.reshape(2, 3, 2, 2, 2, 2, 2, 2).mean((3, 5, 7))
    p = coarse.softmax(1)[:, 1:]
    space = (2, 3, 4)
    dice = (2 * (p * y).sum(space) + 1) / ((p**2).sum(space) + y.sum(space) + 1)
    fine = torch.randn(2, 4, 4, 4, 4, dtype=torch.float64)
    loss = LabelDiceLoss(held, scale_weights=(0.4, 0.3, 0.2))
    both, alone = loss([fine, coarse], regions), loss([fine], regions)
    assert (both - alone).item() == pytest.approx(0.3 * (1 - dice.mean()).item(), rel=1e-12)
    # In evaluation the network gives regions, which are worth the same.
    assert loss(region_logits(fine, held), regions).item() == pytest.approx(alone.item(), rel=1e-9)


@pytest.mark.parametrize("scheme", [name for name in LABEL_SCHEMES if name != "radiotherapy_2024"])
def test_labels_and_regions_are_inverse_in_every_cohort(scheme):
    regions = list(LABEL_SCHEMES[scheme].regions.values())
    held = labels_of_regions(regions)
    label_map = torch.randint(0, 5, (1, 6, 6, 6))
    target = torch.stack([torch.isin(label_map, torch.tensor(region)) for region in regions], 1)
    labels = LabelDiceLoss(held).labels(target.double())
    assert set(labels.unique().tolist()) <= {0.0, 1.0}
    assert (labels.sum(1) <= 1).all()
    assert torch.equal(torch.einsum("rl,bl...->br...", held.double(), labels).bool(), target)


def test_regions_that_do_not_determine_the_labels_are_an_error():
    with pytest.raises(UserError, match=r"\[\(1, 2\), \(2, 3\)\].*softmax over labels.*define"):
        labels_of_regions([(1, 2), (2, 3)])


# ---- patches -------------------------------------------------------------------------------------------------------


def view(shape, box, patch_size, margin=50) -> LabelBoxDraws:
    """A view on one case whose labels fill the box, given by its corners; None is no label."""
    voxels = [] if box is None else np.stack([[0, *corner] for corner in box])
    images, labels = np.zeros((4, *shape), np.float32), np.zeros((1, *shape), np.int8)
    case = (images, labels, None, {"class_locations": {(1, 2, 3): voxels, 3: []}})
    cases = SimpleNamespace(
        source_folder="", identifiers=["case"], folder_with_segs_from_previous_stage=None, load_case=lambda _: case
    )
    return LabelBoxDraws(cases, patch_size, margin)


def drawn_centres(draws: LabelBoxDraws) -> np.ndarray:
    return np.array([draws.load_case("case")[3]["class_locations"]["drawn"][0, 1:] for _ in range(300)])


def test_centres_fill_the_box_of_the_label_and_its_margin():
    centres = drawn_centres(view((200, 200, 200), [(90, 100, 95), (110, 105, 100)], (32, 32, 32), margin=20))
    assert (centres.min(0) >= (70, 80, 75)).all()
    assert (centres.max(0) <= (130, 125, 120)).all()
    assert (centres.min(0) <= (73, 83, 78)).all()
    assert (centres.max(0) >= (127, 122, 117)).all()


def test_patches_stay_inside_the_case_as_the_authors_do():
    # Their array of 160 x 192 x 160 and patch of 144 x 144 x 128 leave centres of 72..88, 72..120, 64..96.
    centres = drawn_centres(view((160, 192, 160), [(60, 60, 60), (100, 130, 100)], (144, 144, 128)))
    assert centres.min(0).tolist() == [72, 72, 64]
    assert centres.max(0).tolist() == [88, 120, 96]


def test_a_tumour_beyond_reach_and_a_case_smaller_than_the_patch_still_give_a_patch():
    far = drawn_centres(view((300, 64, 30), [(2, 2, 2), (5, 5, 5)], (128, 64, 64), margin=10))
    assert (far == (64, 32, -17 + 32)).all()  # padded by 17 voxels on both sides


def test_without_labels_patches_come_from_anywhere():
    cases = view((64, 64, 64), None, (32, 32, 32))
    assert cases.load_case("case")[3]["class_locations"] == {}
    size, label_manager = (32, 32, 32), SimpleNamespace(all_labels=[0, 1, 2, 3], has_ignore_label=False)
    loader = nnUNetDataLoader(cases, 2, size, size, label_manager, oversample_foreground_percent=1.0)
    assert next(loader)["data"].shape == (2, 4, *size)


def test_a_batch_shows_different_patients_and_an_epoch_all_of_them(world):
    trainer = build(world, BraTSStudentTrainer)
    trainer.dataset_class = infer_dataset_class(trainer.preprocessed_dataset_folder)
    training, _ = trainer.get_tr_and_val_datasets()
    assert isinstance(trainer.sampling(training), LabelBoxDraws)
    size = trainer.configuration_manager.patch_size
    loader = nnUNetDataLoader(training, 2, size, size, trainer.label_manager, trainer.oversample_foreground_percent)
    np.random.seed(0)
    batches = [next(loader) for _ in range(30)]
    assert all(batch["data"].shape == (2, 4, *size) for batch in batches)
    assert sum(len(set(batch["keys"])) == 2 for batch in batches) > 15
    assert set(Counter(key for batch in batches for key in batch["keys"])) == set(training.identifiers)


# ---- augmentation --------------------------------------------------------------------------------------------------


def training_transforms(trainer) -> BasicTransform:
    """As nnU-Net's loader has them."""
    labels = trainer.label_manager
    return trainer.get_training_transforms(
        trainer.configuration_manager.patch_size, (0, 0), None, (1, 2), False, None, is_cascaded=False,
        foreground_labels=labels.foreground_labels, regions=labels.foreground_regions, ignore_label=None,
    )  # fmt: skip


def nested_labels() -> torch.Tensor:
    labels = torch.full((1, 16, 24, 24), -1, dtype=torch.int16)  # nnU-Net's mark of what is outside the brain
    labels[:, 1:15, 2:22, 2:22] = 0
    for label, margin in ((1, 4), (2, 5), (3, 6)):
        labels[:, margin : 16 - margin, margin : 20 - margin, margin : 24 - margin] = label
    return labels


def test_image_and_regions_move_together_and_borders_become_soft(world):
    trainer = build(world, BraTSNoNewNetTrainer, patch_size=[16, 24, 24])
    transforms, labels = training_transforms(trainer), nested_labels()
    regions = torch.cat([labels >= 1, labels >= 2, labels == 3]).float()
    intensities = (MultiplicativeBrightnessTransform, ShiftChannels)
    geometry = ComposeTransforms([t for t in trainer.augmentation() if not isinstance(t, intensities)])
    for seed in range(5):
        np.random.seed(seed)
        torch.manual_seed(seed)
        target = transforms(image=torch.zeros(4, 16, 24, 24), segmentation=labels.clone())["segmentation"]
        np.random.seed(seed)
        torch.manual_seed(seed)
        assert torch.allclose(target, geometry(image=regions.clone())["image"], atol=1e-6)
        assert target.dtype == torch.float32
        assert 0 <= target.min() < target.max() <= 1
        assert ((target > 0.01) & (target < 0.99)).any()
        assert (target.diff(dim=0) <= 1e-6).all(), "soft regions are nested as well"


def test_the_student_takes_soft_targets_where_the_data_set_has_them(world):
    trainer = build(world, BraTSStudentTrainer, patch_size=[16, 24, 24])
    trainer.dataset_json = trainer.dataset_json | {"brats_soft_targets": {"cases": 1}}
    transforms = training_transforms(trainer)
    predicted = torch.full((3, 16, 24, 24), 0.25)  # behind the image, where the view on the cases puts it
    given = torch.cat([torch.randn(4, 16, 24, 24), predicted])
    sample = transforms(image=given, segmentation=nested_labels())
    assert sample["image"].shape == (4, 16, 24, 24)
    assert torch.allclose(sample["segmentation"], predicted)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_loss_of_soft_targets_trains(trainer, world):
    trainer = build(world, trainer, patch_size=[16, 32, 16])
    trainer.initialize()
    trainer.network.train()
    target = training_transforms(trainer)(image=torch.randn(4, 16, 32, 16), segmentation=nested_labels()[..., :16])
    batch = {"data": torch.randn(2, 4, 16, 32, 16), "target": target["segmentation"][None].repeat(2, 1, 1, 1, 1)}
    assert np.isfinite(trainer.train_step(batch)["loss"])


def test_mirrors_leave_top_and_bottom_alone_and_the_centre_stays_in_place(world):
    trainer = build(world, BraTSNoNewNetTrainer, patch_size=[16, 16, 16])
    geometry = ComposeTransforms(trainer.augmentation()[:3])
    heights = torch.arange(16.0).view(1, 16, 1, 1).expand(1, 16, 16, 16).contiguous()
    np.random.seed(0)
    torch.manual_seed(0)
    for _ in range(20):
        moved = geometry(image=heights.clone(), segmentation=heights.short())["image"][0, :, 0, 0]
        assert moved[7:9].mean().item() == pytest.approx(7.5, abs=1e-4)
        assert 0.69 < (moved[9] - moved[8]).item() < 1.31  # never negative, and the scale is about the centre


def test_a_patch_that_is_no_square_is_not_turned(world):
    trainer = build(world, BraTSNoNewNetTrainer, patch_size=[16, 24, 32])
    x = torch.randn(4, 16, 24, 32)
    for _ in range(5):
        both = ComposeTransforms(trainer.augmentation())(
            image=x.clone(), segmentation=torch.ones(1, 16, 24, 32).short()
        )
        assert both["image"].shape == x.shape


def test_a_mirrored_z_is_an_option_and_intensities_are_shifted_everywhere(world):
    class Release(StudentRelease, BraTSStudentTrainer):
        pass

    assert build(world, Release).augmentation()[1].allowed_axes == (0, 1, 2)
    assert build(world, BraTSStudentTrainer).augmentation()[1].allowed_axes == (1, 2)
    shifted = ShiftChannels(0.2)(image=torch.zeros(4, 3, 3, 3))["image"]
    assert (shifted.abs() <= 0.2).all()
    assert len(shifted.unique()) == 4
    noisy = [ReplaceChannelsByNoise(0.1)(image=torch.zeros(4, 2, 2, 2))["image"].flatten(1) for _ in range(500)]
    assert 0.07 < torch.stack(noisy).any(2).float().mean().item() < 0.13


@pytest.mark.parametrize("trainer", [BraTSCascadedUNetTrainer, BraTSStudentTrainer])
def test_only_the_cascade_sees_the_background_of_training_as_in_prediction(trainer, world):
    """Its network maps the zeros outside the brain to 0, which all other values of the background would not be."""
    image = torch.zeros(4, 64, 64, 64)
    image[:, 24:40, 24:40, 24:40] = torch.randn(4, 16, 16, 16)
    augment = ComposeTransforms(build(world, trainer, patch_size=[64, 64, 64]).augmentation())
    seen = augment(image=image, segmentation=torch.ones(1, 64, 64, 64).short())["image"]
    assert bool((unit_intensities(seen[:, :4]) == 0).all()) == (trainer is BraTSCascadedUNetTrainer)
    assert seen[:, 32, 32, 32].all()


# ---- training ------------------------------------------------------------------------------------------------------


def rates(trainer, epochs) -> list[float]:
    trainer.network = nn.Conv3d(1, 1, 1)
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    values = []
    for epoch in epochs:
        trainer.lr_scheduler.step(epoch)
        assert len({group["lr"] for group in trainer.optimizer.param_groups}) == 1
        values.append(trainer.optimizer.param_groups[0]["lr"])
    return values


@pytest.mark.parametrize("trainer", [BraTSNoNewNetTrainer, BraTSResUNetVAETrainer, BraTSStudentTrainer])
def test_adam_takes_160_000_updates_and_slows_down_after_120_000(trainer, world):
    trainer = build(world, trainer)
    assert trainer.num_epochs * trainer.num_iterations_per_epoch == 160_000
    drop = 120_000 // trainer.num_iterations_per_epoch
    assert rates(trainer, [0, drop - 1, drop, 639]) == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5])
    assert isinstance(trainer.optimizer, torch.optim.Adam)
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 1e-6
    prediction = trainer.all_facts().prediction
    assert (prediction.tiling, prediction.symmetries) == ("brain", "inplane-mirror")


def test_the_release_of_the_student_halves_its_rate_every_16_000_updates(world):
    class Release(StudentRelease, BraTSStudentTrainer):
        pass

    trainer = build(world, Release)
    every = 16_000 // trainer.num_iterations_per_epoch
    assert rates(trainer, [0, every - 1, every, 2 * every]) == pytest.approx([2e-5, 2e-5, 1e-5, 5e-6])
    assert trainer.optimizer.param_groups[0]["amsgrad"]
    trainer = build(world, Release)
    network = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 4, 3, False)
    assert network.head.bias.abs().sum() > 0
    plain = BraTSStudentTrainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 4, 3)
    assert plain.head.bias.abs().sum() == 0


def test_the_cascade_decays_per_epoch_and_as_mxnet_did_on_request(world):
    class Parity(MXNetParity, BraTSCascadedUNetTrainer):
        pass

    trainer = build(world, BraTSCascadedUNetTrainer)
    assert trainer.num_epochs == 500
    assert rates(trainer, [0, 1, 499]) == pytest.approx([0.1, 0.099, 0.1 * 0.99**499])
    decays = [group["weight_decay"] for group in trainer.optimizer.param_groups]
    assert decays == [1e-5, 0.0]  # of weights, of biases
    assert trainer.region_loss().scale_weights == (0.4, 0.3, 0.2)
    parity = build(world, Parity)
    assert rates(parity, [0, 3, 4, 499]) == pytest.approx([0.025, 0.025, 0.02475, 0.025 * 0.99**124])
    assert parity.region_loss().scale_weights == (1, 1, 1)
    assert isinstance(parity.augmentation()[-1], ReplaceChannelsByNoise)


def test_the_cascade_stores_which_labels_its_regions_hold(world):
    regions = {**world.dataset_json["labels"], "WT": [1, 2, 3, 4], "TC": [2, 3, 4], "CC": 4}
    dataset_json = world.dataset_json | {"labels": regions, "regions_class_order": [1, 2, 3, 4]}
    plans = world.plans | {"continue_training": False}
    trainer = BraTSCascadedUNetTrainer(plans, "3d_fullres", 0, dataset_json, CPU)
    trainer.initialize()
    again = CascadedUNet(4, 4, strides=trainer.configuration_manager.pool_op_kernel_sizes)
    again.load_state_dict(trainer.network.state_dict(), strict=True)
    assert again.regions.int().tolist() == [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("trainer", "patch_size", "smallest"),
    [
        (BraTSNoNewNetTrainer, [16, 16, 16], r"\(16, 16, 32\)"),
        (BraTSCascadedUNetTrainer, [32, 32, 32], r"\(32, 32, 64\)"),
    ],
)
def test_a_patch_that_ends_in_one_voxel_is_an_error_with_the_smallest_that_does_not(trainer, patch_size, smallest):
    planned = PlannedNetwork(tuple(patch_size), nn.Conv3d, ((1, 1, 1), *[(2, 2, 2)] * 6))
    with pytest.raises(UserError, match=f"one voxel.*smallest patch.*{smallest}"):
        trainer.check_plans(planned)
    trainer.check_plans(replace(planned, patch_size=(*patch_size[:2], 2 * patch_size[2])))


def test_in_plane_axes_follow_the_plans(world):
    trainer = build(world, BraTSStudentTrainer)
    assert trainer.inplane_axes == (1, 2)
    trainer.plans_manager.plans["transpose_forward"] = [2, 0, 1]
    assert trainer.inplane_axes == (0, 2)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_nnunets_own_prediction_mirrors_in_the_plane_too(trainer, world):
    trainer = build(world, trainer)
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    whole = isinstance(trainer, BraTSCascadedUNetTrainer)
    assert trainer.inference_allowed_mirroring_axes == ((1,) if whole else (1, 2))


@pytest.mark.parametrize(
    ("name", "size", "parameters"),
    [
        ("lachinov_128", (128, 128, 128), 14_490_753),
        ("lachinov_144", (128, 144, 144), 12_880_087),
        ("lachinov_brain", (128, 128, 128), 9_557_124),
    ],
)
def test_the_estimate_of_memory_counts_the_weights_with_the_branch(name, size, parameters):
    footprint = papers.configurations()[name].footprint
    assert footprint.constant_bytes(size, "fp32") == 4 * (1 + footprint.optimiser_state) * parameters


def test_whole_brains_are_resampled_so_that_the_largest_fits():
    shapes = np.array([[140, 171, 137], [155, 165, 130], [128, 190, 170]])
    cases = Cases((1.0, 1.0, 1.0), tuple(map(float, np.median(shapes, axis=0))), tuple(shapes.max(0).tolist()))
    base = {"resampling_fn_data_kwargs": {"order": 3, "order_z": 0}, "resampling_fn_seg_kwargs": {"order": 1}}
    entry = resampled_data(base, cases, (128, 128, 128), "P_lachinov_brain")
    assert entry["spacing"] == pytest.approx([155 / 128, 190 / 128, 170 / 128])
    resampled = np.array([compute_new_shape(shape, (1, 1, 1), entry["spacing"]) for shape in shapes])
    assert resampled.max(0).tolist() == [128, 128, 128]
    assert entry["resampling_fn_data_kwargs"] == {"order": 1, "order_z": 0}  # linear
    assert entry["resampling_fn_seg_kwargs"] == {"order": 0}  # nearest


# ---- from plans to the student -------------------------------------------------------------------------------------

TEACHERS = {
    "lachinov_brain": BraTSCascadedUNetTrainer,
    "lachinov_128": BraTSNoNewNetTrainer,
    "lachinov_144": BraTSResUNetVAETrainer,
}


def preprocess(world, plans: str, configuration: str) -> Path:
    """What nnU-Net's command does, without its processes, which take longer to start than to work."""
    folder = world.root / "nnUNet_preprocessed" / world.dataset
    manager = PlansManager(str(folder / f"{plans}.json"))
    chosen = manager.get_configuration(configuration)
    (target := folder / chosen.data_identifier).mkdir(exist_ok=True)
    for case, files in get_filenames_of_train_images_and_targets(str(world.raw)).items():
        worker = chosen.preprocessor_class(verbose=False)
        worker.run_case_save(str(target / case), files["images"], files["label"], manager, chosen, world.dataset_json)
    return target


def predict(trainer: type, configuration: str, dataset: int, plans: str, images: Path, out: Path) -> Path:
    model = ["-d", str(dataset), "-tr", trainer.__name__, "-c", configuration, "-p", plans, "-f", "0"]
    options = ["-np", "0", "-device", "cpu", "--save_probabilities"]
    assert main(["predict", "-i", str(images), "-o", str(out), *model, *options]) == 0
    return out


@pytest.fixture
def own_world(world, tmp_path, monkeypatch):
    """A copy of the world, without what others have trained, that may be changed."""
    copy = replace(world, root=tmp_path / "world")
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        shutil.copytree(world.root / name / world.dataset, copy.root / name / world.dataset)
    (copy.root / "nnUNet_results").mkdir()
    for name, value in (copy.settings | {EPOCHS: "1", ITERATIONS: "1"}).items():
        monkeypatch.setenv(name, value)
    with threads_for_processes():
        yield copy


@pytest.mark.end_to_end
def test_three_teachers_an_ensemble_and_their_student(own_world, tmp_path, capsys, monkeypatch):
    """The paper's whole way, one update per network: plans, teachers, ensemble, pseudo-labels, student, scores."""
    world = own_world
    for trainer in (*TEACHERS.values(), BraTSStudentTrainer):
        make_tiny(trainer, monkeypatch)
    assert main(["plan", "901", "--name", "LachinovPlans", "--overwrite"]) == 0
    assert "nnUNetv2_preprocess -d 901 -plans_name LachinovPlans -c lachinov_brain" in capsys.readouterr().out
    folder = preprocess(world, "LachinovPlans", "lachinov_brain")
    assert folder.name == "LachinovPlans_lachinov_brain"
    cases = infer_dataset_class(str(folder))(str(folder))
    shapes = np.array([cases.load_case(case)[0].shape[1:] for case in cases.identifiers])
    plans = json.loads((folder.parent / "LachinovPlans.json").read_text())
    patch_size = plans["configurations"]["lachinov_brain"]["patch_size"]
    assert shapes.max(0).tolist() == patch_size, "the largest brain fills the patch and no other exceeds it"

    members = []
    for configuration, trainer in TEACHERS.items():
        build(world, trainer, configuration, "LachinovPlans").run_training()
        out = tmp_path / configuration
        members.append(predict(trainer, configuration, 901, "LachinovPlans", world.raw / "imagesTs", out))
    together = tmp_path / "together"
    assert main(["ensemble", "-i", *map(str, members), "-o", str(together), "--save_probabilities", "-np", "1"]) == 0
    files = sorted(path.name for path in together.glob("*.npz"))
    assert len(files) == 2
    for file in files:
        given = [np.load(member / file)["probabilities"].astype(np.float32) for member in members]
        np.testing.assert_allclose(np.load(together / file)["probabilities"], np.mean(given, axis=0), atol=1e-3)
        assert (np.diff(given[0], axis=0) <= 1e-3).all(), "the cascade's regions are nested: each holds the next"

    pseudo = ["--pseudo", str(together), str(world.raw / "imagesTs")]
    assert main(["distill", "-d", "955", "--name", "Student", "--labelled", "901", *pseudo, "-np", "1"]) == 0
    distilled = replace(world, dataset="Dataset955_Student")
    move_plans_between_datasets(901, 955, "nnUNetPlans", "nnUNetPlans")
    preprocessed = preprocess(distilled, "nnUNetPlans", "3d_fullres").parent
    (preprocessed / "dataset.json").write_text((distilled.raw / "dataset.json").read_text())
    fingerprint = "dataset_fingerprint.json"
    (preprocessed / fingerprint).write_text((folder.parent / fingerprint).read_text())
    student = build(distilled, BraTSStudentTrainer)
    student.run_training()
    (training, held_out), images, references = student.do_split(), tmp_path / "images", tmp_path / "references"
    assert len(training) + len(held_out) == 6 + 2
    for case in held_out:
        for source, target in ((world.raw / "imagesTr", images), (world.raw / "labelsTr", references)):
            target.mkdir(exist_ok=True)
            for file in source.glob(f"{case}*"):
                (target / file.name).symlink_to(file)
    out = predict(BraTSStudentTrainer, "3d_fullres", 955, "nnUNetPlans", images, tmp_path / "student")
    results = tmp_path / "results.json"
    command = ["evaluate", str(references), str(out), "--preset", "brats2020", "--labels", "trained"]
    assert main([*command, "-o", str(results), "-np", "1"]) == 0
    assert set(json.loads(results.read_text())["cases"]) == set(held_out)


def test_the_base_declares_what_all_of_them_share():
    assert all(issubclass(trainer, LachinovTrainer) for trainer in TRAINERS)
