"""Where the text of a paper and its release disagree: every switch, and the trainers that follow the text."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from tiny_trainers import build, make_tiny, random_batch, tiny
from torch import nn
from torch.nn import functional

from nnunet_brats_ext import papers, trainers
from nnunet_brats_ext.architectures.dilated_unet import DilatedUNet
from nnunet_brats_ext.architectures.omnet.backbone import ResidualBlock
from nnunet_brats_ext.architectures.omnet.networks import OMNet
from nnunet_brats_ext.architectures.residual_unet import AttentionGate
from nnunet_brats_ext.losses.dice import SoftDiceLoss
from nnunet_brats_ext.losses.multi_task import selected_rows
from nnunet_brats_ext.losses.outputs import MeanOverOutputs, SumOverOutputs
from nnunet_brats_ext.losses.vae import kl_divergence, reconstruction_loss
from nnunet_brats_ext.papers import Difference
from nnunet_brats_ext.trainers import (
    BraTS2DAsWrittenTrainer,
    BraTS2DTrainer,
    BraTS2DTumorCoreAugmentedAsWrittenTrainer,
    BraTS2DTumorCoreTrainer,
    BraTSAttentionVAEAsWrittenTrainer,
    BraTSAttentionVAETrainer,
    BraTSDeepSupervisionAsWrittenTrainer,
    BraTSDeepSupervisionTrainer,
    BraTSIsensee2020DA4BNTrainer,
    BraTSMC3Trainer,
    BraTSNoNewNetAsWrittenTrainer,
    BraTSOMNet0Trainer,
    BraTSOMNetAsWrittenTrainer,
    BraTSOMNetTrainer,
    BraTSStudentAsWrittenTrainer,
    BraTSStudentTrainer,
    BraTSVAEAsWrittenTrainer,
    BraTSVAETrainer,
)
from nnunet_brats_ext.trainers.hashemi2021.sampling import NonEmptySlices
from nnunet_brats_ext.trainers.henry2020.transforms import RelativeNoise, SwapAndFlip
from nnunet_brats_ext.trainers.lachinov2019.sampling import LabelBoxDraws, PatchesWithTumour
from nnunet_brats_ext.training import cascade
from nnunet_brats_ext.training.base import BraTSTrainer

CARDS = Path(__file__).parents[2] / "docs" / "recipes"
PAPERS = {key: paper for key, paper in papers.find_papers(external="").items() if paper.differences}
NO_CASES = SimpleNamespace(source_folder="", identifiers=[], folder_with_segs_from_previous_stage=None)
AS_WRITTEN = [name for name, facts in papers.trainers().items() if facts.as_written_of]
SWITCHED = [name for name in papers.trainers() if getattr(trainers, name).all_differences() and name not in AS_WRITTEN]


# ---- how a trainer says what it follows ----------------------------------------------------------------------------


class Plain(BraTSTrainer):
    differences = {
        "depth": Difference("three", "four"),
        "rate": Difference("1e-3", "1e-4", "text"),
    }


class Deep(Plain):
    follows = dict(depth="text")


def followed(trainer: type[BraTSTrainer]) -> list[bool]:
    return [trainer.follows_text(difference) for difference in trainer.all_differences()]


def test_a_class_follows_what_it_names_else_its_parents_else_the_default():
    assert followed(Plain) == [False, True]
    assert followed(Deep) == [True, True]
    assert followed(type("Release", (Deep,), {"follows": "release"})) == [False, False]
    assert followed(type("Rate", (Deep,), {"follows": dict(rate="release")})) == [True, False]
    assert followed(type("Text", (type("R", (Deep,), {"follows": "release"}),), {"follows": "text"})) == [True, True]


@pytest.mark.parametrize("follows", [dict(dept="text"), dict(depth="paper"), "texts"])
def test_following_what_there_is_not_is_an_error_that_lists_what_there_is(follows):
    with pytest.raises(AttributeError, match=r"Wrong\.follows: .*expected 'text' or 'release' for some of depth, rate"):
        type("Wrong", (Plain,), {"follows": follows}).check_follows()


@pytest.mark.parametrize("name", AS_WRITTEN)
def test_a_trainer_as_written_is_the_other_one_and_follows_the_text_throughout(name):
    facts, own = papers.trainers()[name], getattr(trainers, name)
    other = papers.trainers()[facts.as_written_of]
    assert name == other.name.replace("Trainer", "AsWrittenTrainer")
    assert issubclass(own, getattr(trainers, other.name))
    assert all(followed(own)) and own.all_differences() == getattr(trainers, other.name).all_differences() != {}
    assert (facts.configuration, facts.prediction) == (other.configuration, other.prediction)
    assert {attribute for attribute in vars(own) if attribute[0] != "_"} <= {"follows", "normalise"}


def test_a_subclass_that_turns_something_on_has_its_switches():
    class Curriculum(BraTSOMNet0Trainer):
        """https://example.org"""

        curriculum = True

    class Transfer(BraTSMC3Trainer):
        """https://example.org"""

        data_transfer, follows = True, {"transfer_share": "release"}

    assert Curriculum.follows_text("curriculum") and not Transfer.follows_text("transfer_share")
    Transfer.check_follows()
    with pytest.raises(AttributeError, match=r"BraTSMC3Trainer asks for 'transfer_share'; declare it in `differences`"):
        BraTSMC3Trainer.follows_text("transfer_share")


def test_a_misspelt_source_is_an_error_also_where_nothing_differs():
    class Misspelt(BraTSTrainer):
        """https://example.org"""

        follows = "released"

    with pytest.raises(AttributeError, match=r"Misspelt\.follows: all='released'; expected 'text' or 'release'"):
        Misspelt.check_follows()


@pytest.mark.parametrize("key", PAPERS)
def test_the_card_has_a_row_for_every_difference(key):
    _, section = (CARDS / f"{key}.md").read_text().split("\n## Where we differ\n")
    lines = section.partition("\n## ")[0].splitlines()
    rows = {name: row for row in lines for name in re.findall(r"^\|.*\| `(\w+)` \|$", row)}
    assert rows.keys() == PAPERS[key].differences.keys()
    for name, difference in PAPERS[key].differences.items():
        assert f"| {difference.default} |" in rows[name]
        declared = (Path(trainers.__file__).parent / key / "trainers.py").read_text()
        assert f'follows_text("{name}")' in declared, "a switch that nothing asks for"


def describe(value: Any, above: tuple[int, ...] = ()) -> Any:
    """What an object is made of: its type and attributes, arrays by their bytes; equal for equal objects."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return tuple(value.shape), torch.as_tensor(value).detach().numpy().tobytes()
    if isinstance(value, Mapping):
        return [(describe(key, above), describe(one, above)) for key, one in value.items()]
    if isinstance(value, list | tuple):
        return [describe(one, above) for one in value]
    if isinstance(value, str | int | float | None):
        return value
    if id(value) in above or not hasattr(value, "__dict__") or isinstance(value, FunctionType):
        return type(value).__name__
    attributes = {name: one for name, one in vars(value).items() if not name.endswith("_hooks")}  # torch numbers them
    return type(value).__name__, describe(attributes, (*above, id(value)))


def training_of(trainer: type[BraTSTrainer], world, follows: dict[str, str]) -> Any:
    """Network and loss after a step, the optimiser and its rates, augmentation and sampling of a trainer."""
    torch.manual_seed(0)
    np.random.seed(0)
    stage = {"previous_stage": "3d_fullres", "patch_size": [16] * 3} if trainer.all_facts().previous_stage else {}
    built = build(world, type(trainer.__name__, (trainer,), {"follows": follows}), **stage)
    built.initialize()
    rates = []
    for epoch in range(built.num_epochs):
        built.lr_scheduler.step(epoch)
        rates.append([group["lr"] for group in built.optimizer.param_groups])
    built.current_epoch = built.num_epochs // 15  # in OM-Net's curriculum, two tasks of three
    built.train_step(random_batch(built))
    groups = [{k: v for k, v in group.items() if k != "params"} for group in built.optimizer.param_groups]
    data = built.augmentation(), built.sampling(NO_CASES)
    return describe([built.network, built.loss, rates, groups, *data, getattr(built, "averaging", None)])


@pytest.mark.parametrize("name", SWITCHED)
def test_every_switch_of_a_trainer_changes_its_training(name, world, monkeypatch):
    monkeypatch.setattr(cascade, "expanded_maps", lambda folder: [Path("a"), Path("b")])
    with tiny(name) as trainer:
        switches = trainer.all_differences()
        usual = dict.fromkeys(switches, "release") | {one: "text" for one in switches if trainer.follows_text(one)}
        expected = training_of(trainer, world, usual)
        assert training_of(trainer, world, usual) == expected
        other = {"text": "release", "release": "text"}
        changed = {one: training_of(trainer, world, {one: other[usual[one]]}) != expected for one in switches}
    assert all(changed.values()), changed


@pytest.mark.parametrize("key", PAPERS)
def test_every_switch_is_some_trainers_and_another_trainer_refuses_it(key):
    declared = [getattr(trainers, one.name).all_differences() for one in PAPERS[key].trainers]
    assert {switch for one in declared for switch in one} == set(PAPERS[key].differences)
    for facts, own in zip(PAPERS[key].trainers, declared, strict=True):
        for switch in PAPERS[key].differences.keys() - own:
            with pytest.raises(AttributeError, match=f"{switch}='text'; expected"):
                type("Own", (getattr(trainers, facts.name),), {"follows": {switch: "text"}}).check_follows()


# ---- Lyu & Shu 2020 ------------------------------------------------------------------------------------------------


def test_equations_6_and_7_are_a_sum_of_squares_and_a_divergence_over_voxels():
    image, reconstruction = torch.randn(2, 4, 4, 6, 8), torch.randn(2, 4, 4, 6, 8)
    squares = ((image - reconstruction) ** 2).flatten(1).sum(1).mean()
    torch.testing.assert_close(reconstruction_loss(reconstruction, image, summed=True), squares)
    mean, log_variance = torch.randn(2, 128), torch.randn(2, 128)
    terms = mean**2 + log_variance.exp() - log_variance - 1
    voxels = 4 * 6 * 8
    torch.testing.assert_close(kl_divergence(mean, log_variance, voxels), terms.sum(1).mean() / voxels)


@pytest.mark.parametrize("trainer", [BraTSVAETrainer, BraTSVAEAsWrittenTrainer])
def test_stage_1_logs_the_terms_of_its_source(trainer, world, monkeypatch):
    make_tiny(trainer, monkeypatch)
    built = build(world, trainer)
    built.initialize()
    batch = random_batch(built)
    batch["data"] *= 0
    terms = built.train_step(batch)
    voxels = np.prod(built.configuration_manager.patch_size)
    branch = built.network.branch
    assert branch.summed == (trainer is BraTSVAEAsWrittenTrainer)
    with torch.no_grad():
        built.network.train()
        again = built.network(batch["data"]).auxiliary_losses
    ratio = (4 * voxels, 128 / voxels) if branch.summed else (1, 1)
    branch.summed = False
    with torch.no_grad():
        means = built.network(batch["data"]).auxiliary_losses
    assert again["kl"] / means["kl"] == pytest.approx(ratio[1], rel=1e-3)
    assert terms.keys() >= {"reconstruction", "kl"}


def test_gates_as_written_are_equation_1():
    gate = AttentionGate(nn.Conv3d, 4, 8, (2, 2, 2), pointwise=True)
    assert not [module for module in gate.modules() if isinstance(module, nn.BatchNorm3d)]
    skip, below = torch.randn(1, 4, 4, 4, 4), torch.randn(1, 8, 2, 2, 2)
    w_x, w_g, b_g = gate.theta[0].weight[..., 0, 0, 0], gate.phi[0].weight[..., 0, 0, 0], gate.phi[0].bias
    assert gate.theta[0].bias is None
    mapped = torch.einsum("oi,bi...->bo...", w_x, skip[..., ::2, ::2, ::2])
    mapped = (mapped + torch.einsum("oi,bi...->bo...", w_g, below) + b_g.view(1, -1, 1, 1, 1)).relu()
    q = torch.einsum("oi,bi...->bo...", gate.psi[1].weight[..., 0, 0, 0], mapped) + gate.psi[1].bias.view(1, 1, 1, 1, 1)
    expected = functional.interpolate(q.sigmoid(), scale_factor=2, mode="trilinear", align_corners=False) * skip
    torch.testing.assert_close(gate(skip, below), expected)


def test_stage_2_as_written_weighs_regions_alike_and_keeps_its_schedule_for_several_maps(world, monkeypatch):
    released, written = (build(world, one) for one in (BraTSAttentionVAETrainer, BraTSAttentionVAEAsWrittenTrainer))
    assert (released.region_loss().weights, written.region_loss().weights) == ((0.10, 0.45, 0.45), None)
    rates = []
    for trainer in (released, written):
        monkeypatch.setattr(trainer, "previous_stage_maps", [Path("a"), Path("b")])
        trainer.adapt_hyperparameters()
        rates.append((trainer.initial_lr, trainer.num_epochs))
    assert rates == [(5e-5, 200), (1e-4, 300)]


def test_releases_of_lyu_spare_flair_and_cut_the_gradient(world, monkeypatch):
    class Released(BraTSVAETrainer):
        follows = "release"

    image, segmentation = torch.rand(4, 8, 8, 8) + 1, torch.zeros(1, 8, 8, 8)
    for trainer, changed in ((Released, [True, True, True, False]), (BraTSVAETrainer, [True] * 4)):
        built = build(world, trainer)
        *intensities, mirrors = built.augmentation()
        assert isinstance(mirrors, MirrorTransform)
        data = dict(image=image.clone(), segmentation=segmentation)
        for transform in intensities:
            data = transform(**data)
        assert [not torch.equal(*pair) for pair in zip(data["image"], image, strict=True)] == changed
    make_tiny(Released, monkeypatch)
    built = build(world, Released)
    built.initialize()
    assert built.network.branch.vae.gradient == "none"


# ---- Henry et al. 2020 ---------------------------------------------------------------------------------------------


def test_three_heads_enlarge_probabilities_and_their_losses_are_added():
    network = DilatedUNet(4, 3, features_per_stage=(4, 8, 12, 16), three_heads=True)
    x, target = torch.randn(1, 4, 16, 16, 16), torch.rand(1, 3, 16, 16, 16) > 0.5
    seen = []
    network.bottom.register_forward_hook(lambda *call: seen.append(call[-1]))
    outputs = network(x)
    assert len(outputs) == 4
    head = network.heads[0]
    enlarged = functional.interpolate(
        head.project(seen[0]).sigmoid(), scale_factor=8, mode="trilinear", align_corners=True
    )
    torch.testing.assert_close(outputs[1].sigmoid(), enlarged, atol=2e-6, rtol=0)
    dice = SoftDiceLoss(1.0, 1.0, batch=True)
    losses = [dice(logits, target) for logits in outputs]
    torch.testing.assert_close(SumOverOutputs(dice)(outputs, target), sum(losses))
    torch.testing.assert_close(MeanOverOutputs(dice)(outputs, target), sum(losses) / 4)


def rates(trainer, epochs) -> list[float]:
    trainer.network = nn.Conv3d(1, 1, 1)
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    values = []
    for epoch in epochs:
        trainer.lr_scheduler.step(epoch)
        values.append(trainer.optimizer.param_groups[0]["lr"])
    return values


def test_the_rates_of_pipeline_a_fall_along_the_cosines_of_the_text(world):
    written, released = (
        build(world, one) for one in (BraTSDeepSupervisionAsWrittenTrainer, BraTSDeepSupervisionTrainer)
    )
    epochs = [100, 101, 102, 150]
    cosines = [1e-4 * (1 + np.cos(np.pi * (epoch - 100) / 100)) / 2 for epoch in epochs]
    assert rates(written, epochs) == pytest.approx(cosines)
    assert rates(released, [101, 102, 151]) == pytest.approx([1e-4, 9.9975e-5, 5e-5], rel=1e-4)
    cycle = written.timeline.cycles[0]
    assert written.averaging.learning_rate(215, cycle) == pytest.approx(2.5e-5), "half way through 30 epochs"
    assert released.averaging.learning_rate(220, cycle) == pytest.approx(2.5e-5), "half way through 40"
    assert len(written.timeline.snapshots) == 50 and 200 not in written.timeline.snapshots
    assert len(released.timeline.snapshots) == 51 and 200 in released.timeline.snapshots


def test_the_augmentation_of_pipeline_a_as_written_flips_axes_and_takes_the_deviation_of_all_voxels(world):
    ((scale, noise, _, reorient),) = (
        [*gate.transform.transforms] for gate in build(world, BraTSDeepSupervisionAsWrittenTrainer).augmentation()
    )
    assert not scale.synchronize_channels
    assert isinstance(reorient, MirrorTransform) and reorient.allowed_axes == (0, 1, 2)
    ((scale, released_noise, _, reorient),) = (
        [*gate.transform.transforms] for gate in build(world, BraTSDeepSupervisionTrainer).augmentation()
    )
    assert scale.synchronize_channels and isinstance(reorient, SwapAndFlip)
    assert isinstance(noise, RelativeNoise) and (noise.of_all, released_noise.of_all) == (True, False)
    image = torch.zeros(1, 40, 40, 40)
    image[:, 20:] = 3
    added = noise(image=image.clone())["image"] - image
    assert added.std().item() == pytest.approx(0.1 * image.std().item(), rel=0.02)


# ---- Lachinov et al. 2019 ------------------------------------------------------------------------------------------


def test_the_residual_network_of_the_text_has_relu():
    for trainer, slope in ((BraTSStudentAsWrittenTrainer, 0.0), (BraTSStudentTrainer, 0.01)):
        network = trainer.architecture(4, 3, features_per_stage=(8, 8), **trainer.all_network_options())
        slopes = {module.negative_slope for module in network.modules() if isinstance(module, nn.LeakyReLU)}
        assert slopes == {slope}


def test_patches_of_the_text_are_anywhere_and_hold_a_labelled_voxel(world):
    built = build(world, BraTSNoNewNetAsWrittenTrainer)
    assert isinstance(built.sampling(built.load_cases()[0]), PatchesWithTumour)
    assert not isinstance(build(world, BraTSStudentTrainer).sampling(built.load_cases()[0]), PatchesWithTumour)
    locations = np.array([[0, 2, 30, 30], [0, 3, 30, 31]])
    case = np.zeros((4, 40, 60, 60)), None, None, {"class_locations": {1: locations, 2: np.zeros((0, 4), int)}}
    draws = PatchesWithTumour(NO_CASES, [16, 20, 20])
    starts = {tuple(np.subtract(draws.draw_centre(case), [8, 10, 10])) for _ in range(400)}
    assert all(0 <= z <= 3 and 11 <= y <= 30 and 11 <= x <= 31 for z, y, x in starts)
    assert {z for z, _, _ in starts} == {0, 1, 2, 3} and len(starts) > 200
    empty = (*case[:3], {"class_locations": {1: np.zeros((0, 4), int)}})
    assert draws.draw_centre(empty) is not None
    small = (np.zeros((4, 8, 60, 60)), *case[1:])
    assert draws.draw_centre(small)[0] == LabelBoxDraws(NO_CASES, [16, 20, 20], 0).draw_centre(small)[0] == 4


# ---- Zhou et al. 2020 ----------------------------------------------------------------------------------------------


def test_om_net_is_trained_without_augmentation_unless_asked(world):
    assert build(world, BraTSOMNetTrainer).augmentation() == []
    assert build(world, type("Augmented", (BraTSOMNetTrainer,), {"augmented": True})).augmentation() is None


def test_residual_blocks_as_drawn_add_their_input_last():
    block = ResidualBlock(nn.Conv3d, 4, sum_last=True).eval()
    x = torch.randn(1, 4, 4, 4, 4)
    torch.testing.assert_close(block(x), x + block.layers(x).relu())
    block.sum_last = False
    torch.testing.assert_close(block(x), (x + block.layers(x)).relu())


def test_heads_as_written_see_the_rows_alone_that_train_them(world, monkeypatch):
    make_tiny(BraTSOMNetAsWrittenTrainer, monkeypatch)
    built = build(world, BraTSOMNetAsWrittenTrainer, batch_size=2)
    built.initialize()
    built.current_epoch = built.num_epochs - 1  # all tasks
    batch = random_batch(built)
    regions, labels = torch.zeros_like(batch["target"][0]), torch.zeros(6, 1, *batch["data"].shape[2:])
    labels[1], labels[2] = 2, 3  # a patch of the core among those of task 1, one of ET among those of task 2
    batch["target"] = [regions, labels]
    seen = []
    for head in built.network.heads:
        head.register_forward_pre_hook(lambda head, inputs: seen.append(len(inputs[0])))
    loss = built.train_step(batch)["loss"]
    rows = [2, *(int(selected_rows(labels[: 2 * n, 0].long(), n - 1, 2).sum()) for n in (2, 3))]
    assert seen == rows == [2, 3, 4]
    assert np.isfinite(loss)
    network = OMNet(4, 3, features_per_stage=(8, 8)).train()
    network.transferred = {1: torch.tensor([False, True, True, True])}
    scores = network(torch.randn(6, 4, 8, 16, 16)).scores
    assert [len(scores[task]) for task in range(3)] == [2, 4, 6]
    assert not scores[1][0].any() and scores[1][1].any()


# ---- Hashemi et al. 2021 -------------------------------------------------------------------------------------------


def test_the_loss_as_written_is_equation_1_of_every_slice_added_up(world):
    loss = build(world, BraTS2DAsWrittenTrainer).region_loss()
    assert (loss.batch, loss.summed, loss.reversed_weights, loss.region) == (False, True, False, None)
    loss = build(world, BraTS2DTumorCoreAugmentedAsWrittenTrainer).region_loss()
    assert (loss.batch, loss.summed, loss.region) == (False, True, 1)
    loss = build(world, BraTS2DTumorCoreTrainer).region_loss()
    assert (loss.batch, loss.summed, loss.reversed_weights, loss.region) == (True, False, False, 1)
    released = build(world, type("Released", (BraTS2DTrainer,), {"follows": "release"})).region_loss()
    assert released.batch and released.reversed_weights


def test_empty_slices_of_a_whole_volume_are_known_by_their_one_value():
    data, segmentation = np.full((2, 6, 4, 4), -0.3), np.zeros((1, 6, 4, 4))
    data[1, 2:4, 1:3, 1:3] = 1.5
    draws = NonEmptySlices(NO_CASES, (4, 4), by_images=True)
    assert {draws.draw_centre((data, segmentation, None, {}))[0] for _ in range(60)} == {2, 3}


# ---- images as the texts have them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("written", "warned"), [(None, True), ("zscore-nonzero", False), ("zscore-volume", True)])
def test_a_trainer_as_written_says_what_images_it_is_made_for(written, warned, world, capsys):
    content = world.dataset_json
    if written:
        names = dict.fromkeys(content["channel_names"], "noNorm")
        content |= {"channel_names": names, "brats_normalisation": written}
    plans = world.plans | {"continue_training": False}
    BraTSVAEAsWrittenTrainer(plans, "3d_fullres", 0, content, torch.device("cpu"))
    assert ("--normalise zscore-nonzero" in capsys.readouterr().out) == warned


# ---- Isensee et al. 2020 -------------------------------------------------------------------------------------------


def test_elastic_deformations_are_as_often_as_the_text_says_on_request(world):
    class AsWritten(BraTSIsensee2020DA4BNTrainer):
        follows = "text"

    spatial = [build(world, one).augmentation()[0] for one in (BraTSIsensee2020DA4BNTrainer, AsWritten)]
    assert [transform.p_elastic_deform for transform in spatial] == [0.2, 0.3]


@pytest.mark.parametrize("name", ["BraTSAttentionVAETrainer", "BraTSDeepSupervisionTrainer", "BraTSOMNetTrainer"])
def test_a_network_of_a_users_own_gets_no_option_of_a_text(name):
    options = getattr(trainers, name).all_network_options()
    assert not {"pointwise_gates", "three_heads", "sum_last"} & set(options)
