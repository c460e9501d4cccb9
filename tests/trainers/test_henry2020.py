"""Henry et al. 2020: golden values in float64, schedules, weight averaging, augmentation, case filtering."""

import json
import sys
from collections import Counter
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import threads_for_processes
from golden_networks import fill, wave
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme
from nnunetv2.run.run_training import run_training_entry
from tiny_trainers import CPU, build, keep_latest, make_tiny, run, same, state
from torch import Tensor, nn

from nnunet_brats_ext import trainers
from nnunet_brats_ext.architectures.dilated_unet import ConvolutionalBlockAttention, DilatedUNet, group_norm, norm_op
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.dataset_conversion.case_filtering import case_losses_line, judge, read_case_losses
from nnunet_brats_ext.losses.dice import SoftDiceLoss
from nnunet_brats_ext.losses.outputs import MeanOverOutputs
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.trainers import (
    BraTSDeepSupervisionBTrainer,
    BraTSDeepSupervisionCBAMTrainer,
    BraTSDeepSupervisionTrainer,
)
from nnunet_brats_ext.trainers.henry2020.ranger import Ranger
from nnunet_brats_ext.trainers.henry2020.trainers import HenryTrainer, PipelineA
from nnunet_brats_ext.trainers.henry2020.transforms import DropChannel, RelativeNoise, ShiftBrain, SwapAndFlip
from nnunet_brats_ext.training.averaging import Cycles
from nnunet_brats_ext.training.environment import EPOCHS, ITERATIONS

AUTHORS_ORDER = [2, 1, 0]  # the release's channels are ET, TC, WT
SMALL = dict(features_per_stage=(4, 8, 12, 16))


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# ---- networks ------------------------------------------------------------------------------------------------------


GOLDEN = {  # at [0, :, 8, 12, 16]: output; its mean and deviation; the heads of the upper decoder and of the bottom
    "U-Net GN": (
        dict(norm="group"),
        [-0.053549443, 0.174840214, 0.222687919], (0.179956717, 0.147905625),
        [0.075236812, 0.344074400, 0.250571584], [0.165146741, -0.079742543, -0.015293344],
    ),
    "U-Net IN": (
        dict(norm="instance"),
        [0.330497651, 0.567229421, 0.201898315], (0.204903438, 0.225898595),
        [0.119706966, 0.373885218, 0.233699037], [0.158111010, -0.089537181, 0.006619442],
    ),
    "CBAM GN": (
        dict(norm="group", attention=True),
        [-0.046616499, 0.197932051, 0.237132431], (0.188828420, 0.158907778),
        [0.294944608, 0.869868152, 0.517621616], [0.024736895, -0.001702959, 0.006582334],
    ),
}  # fmt: skip
GOLDEN_LOSSES = {
    "U-Net GN": ([0.367167921, 0.380717364, 0.384554997, 0.384284443, 0.370993971], 0.377543739),
    "CBAM GN": (None, 0.376856855),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_network_gives_the_values_of_the_authors_release(name):
    options, output, (mean, deviation), upper_head, bottom_head = GOLDEN[name]
    network = fill(DilatedUNet(4, 3, **options))
    with torch.no_grad():
        main_, bottom, *others, upper = outputs = network(wave(1, 4, 16, 24, 32))
    assert len(others) == 2
    for values, expected in ((main_, output), (upper, upper_head), (bottom, bottom_head)):
        assert values[0, :, 8, 12, 16].tolist() == pytest.approx(expected, abs=1e-9)
    assert (main_.mean().item(), main_.std().item()) == pytest.approx((mean, deviation), abs=1e-9)
    if name in GOLDEN_LOSSES:
        losses, mean_loss = GOLDEN_LOSSES[name]
        dice, target = SoftDiceLoss(1.0, 1.0, batch=True), wave(1, 3, 16, 24, 32) > 0.3
        if losses:
            assert [dice(logits, target).item() for logits in outputs] == pytest.approx(losses, abs=1e-9)
        assert MeanOverOutputs(dice)(outputs, target).item() == pytest.approx(mean_loss, abs=1e-9)
        assert MeanOverOutputs(dice)(main_, target) == dice(main_, target), "in eval mode there is one output"


def test_the_networks_have_the_parameters_of_the_paper():
    with torch.device("meta"):
        plain, attentive = DilatedUNet(4, 3), DilatedUNet(4, 3, attention=True)
        assert parameters(plain) == parameters(DilatedUNet(4, 3, norm="instance")) == 23_154_735
    assert parameters(plain) - parameters(plain.heads) == 23_152_563
    assert parameters(attentive) == 23_207_760
    stages = [attentive.encoder_stages[i] for i in range(4)] + [attentive.bottom, attentive.merge]
    assert [parameters(stage) for stage in stages] == [68_611, 375_574, 1_499_260, 5_993_032, 7_983_688, 3_987_196]


@pytest.mark.parametrize("options", [dict(norm="instance"), dict(attention=True)], ids=str)
@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ((16, 24, 32), {}),
        ((6, 16, 24), dict(strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)))),
        ((8, 8, 8), dict(strides=((1, 1, 1), (2, 2, 2)))),
        ((32, 16, 16), dict(strides=((1, 1, 1), *[(2, 2, 2)] * 3, (2, 1, 1)))),  # deeper than the network: left out
        ((24, 16), dict(conv_op=nn.Conv2d, strides=((1, 1), (2, 2), (2, 2), (2, 2)))),
    ],
    ids=str,
)
def test_variants_of_the_network_train_and_predict_at_any_size_that_the_strides_allow(size, changes, options):
    network = DilatedUNet(4, 3, **(SMALL | changes | options))
    x = torch.randn(2, 4, *size)
    outputs = network(x)
    assert len(outputs) == 1 + min(len(network.strides), 4)
    assert all(logits.shape == (2, 3, *size) for logits in outputs)
    sum(logits.mean() for logits in outputs).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    with torch.no_grad():
        assert torch.equal(network.eval()(x), network.train()(x)[0]), "in eval mode the output alone"


@pytest.mark.parametrize(("channels", "groups"), [(384, 16), (48, 16), (24, 3), (20, 5), (8, 8), (1, 1)])
def test_groups_are_those_of_the_authors_release(channels, groups):
    assert group_norm(channels).num_groups == groups


def test_attention_scales_by_factors_below_one_and_in_space_by_a_half_at_least():
    attention = ConvolutionalBlockAttention(nn.Conv3d, 8, norm_op("group", nn.Conv3d))
    x = torch.randn(2, 8, 6, 8, 10)
    seen = []
    attention.spatial_gate.register_forward_hook(lambda *call: seen.append(call[-1].sigmoid()))
    assert (attention(x).abs() <= x.abs()).all()
    assert 0.5 == seen[0].min() < seen[0].max() < 1


def test_an_unknown_norm_is_an_error_that_names_the_choices():
    with pytest.raises(UserError, match="norm is 'batch': choose 'group' or 'instance'"):
        DilatedUNet(4, 3, norm="batch")


# ---- optimiser and learning rates ----------------------------------------------------------------------------------


def ranger_steps(weight: nn.Parameter, bias: nn.Parameter, optimizer: Ranger, steps: range) -> None:
    for t in steps:
        weight.grad = (0.3 * t + torch.arange(6).double()).sin().reshape(2, 3)
        bias.grad = (0.2 * t + torch.arange(2).double()).cos()
        optimizer.step()


def ranger() -> tuple[nn.Parameter, nn.Parameter, Ranger]:
    weight = nn.Parameter((0.1 * torch.arange(6).double() - 0.2).reshape(2, 3))
    bias = nn.Parameter(torch.tensor([0.5, -0.25], dtype=torch.float64))
    return weight, bias, Ranger([weight, bias], lr=0.01)


def test_ranger_goes_the_way_of_the_original():
    weight, bias, optimizer = ranger()
    ranger_steps(weight, bias, optimizer, range(1, 6))
    assert (weight[0, 0].item(), bias[0].item()) == pytest.approx((-0.1941925591, 0.4553292166), abs=1e-10)
    ranger_steps(weight, bias, optimizer, range(6, 7))  # RAdam begins to rectify, and Lookahead to look ahead
    assert (weight[0, 0].item(), bias[0].item()) == pytest.approx((-0.1971695792, 0.4775441127), abs=1e-10)
    ranger_steps(weight, bias, optimizer, range(7, 25))
    expected = [-0.1985673829, -0.1071860285, 0.0056767231, 0.0957493426, 0.2073211397, 0.2970740373]
    assert weight.flatten().tolist() == pytest.approx(expected, abs=1e-10)
    assert bias.tolist() == pytest.approx([0.4788843916, -0.2496420957], abs=1e-10)


def test_ranger_goes_on_from_its_state_between_two_looks_ahead():
    weight, bias, optimizer = ranger()
    ranger_steps(weight, bias, optimizer, range(1, 10))
    again, bias_again, other = ranger()
    again.data, bias_again.data = weight.detach().clone(), bias.detach().clone()
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    ranger_steps(weight, bias, optimizer, range(10, 20))
    ranger_steps(again, bias_again, other, range(10, 20))
    assert torch.equal(weight, again)
    assert torch.equal(bias, bias_again)


def learning_rates(trainer, epochs) -> list[float]:
    rates = []
    for epoch in epochs:
        trainer.lr_scheduler.step(epoch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    return rates


class NarrowA(BraTSDeepSupervisionTrainer):
    network_options = dict(features_per_stage=(4, 8))


class NarrowB(BraTSDeepSupervisionBTrainer):
    network_options = dict(features_per_stage=(4, 8))


def test_pipeline_a_trains_as_the_paper_and_its_release_state(world):
    trainer = build(world, NarrowA)
    trainer.initialize()
    assert (trainer.num_epochs, trainer.weight_decay, trainer.oversample_foreground_percent) == (350, 0, 0)
    assert isinstance(trainer.optimizer, Ranger)
    assert learning_rates(trainer, (0, 101, 102, 125, 151, 175, 199)) == pytest.approx(
        [1e-4, 1e-4, 9.9975e-5, 8.6448e-5, 5e-5, 1.5773e-5, 9.866e-8], rel=1e-4
    )
    for cycle, start in enumerate((200, 230, 260, 290, 320), start=1):
        earlier = trainer.optimizer
        trainer.current_epoch = start
        trainer.on_train_epoch_start()
        assert trainer.cycle == cycle
        assert trainer.optimizer is not earlier, "each cycle begins with a new state"
        assert type(trainer.optimizer) is torch.optim.Adam
        assert trainer.optimizer.defaults["eps"] == 1e-8
        assert learning_rates(trainer, [start + e for e in (0, 5, 10, 20, 29)]) == pytest.approx(
            [5e-5, 4.810e-5, 4.268e-5, 2.5e-5, 8.764e-6], rel=1e-4
        )


def test_pipeline_b_trains_as_the_paper_states(world):
    trainer = build(world, NarrowB)
    trainer.initialize()
    assert (trainer.num_epochs, trainer.weight_decay, trainer.oversample_foreground_percent) == (400, 0, 0)
    assert type(trainer.optimizer) is torch.optim.Adam
    assert trainer.optimizer.defaults["eps"] == 1e-4
    assert learning_rates(trainer, (0, 100, 200, 300)) == pytest.approx([1e-4, 8.5355e-5, 5e-5, 1.4645e-5], rel=1e-4)


@pytest.mark.parametrize(
    ("trainer_class", "norm", "attention", "squared"),
    [
        (BraTSDeepSupervisionTrainer, "group", False, True),
        (BraTSDeepSupervisionCBAMTrainer, "group", True, True),
        (BraTSDeepSupervisionBTrainer, "instance", False, False),
    ],
)
def test_every_trainer_has_its_network_and_loss(trainer_class, norm, attention, squared, world):
    trainer = build(world, trainer_class)
    options = trainer.all_network_options()
    assert (options["norm"], options.get("attention", False)) == (norm, attention)
    dice = trainer.region_loss().loss
    assert (dice.smooth_numerator, dice.smooth_denominator, dice.batch) == (1, 1, True)
    assert dice.power == (2 if squared else 1)
    prediction = trainer.all_facts().prediction
    assert (prediction.tiling, prediction.symmetries) == ("brain", "henry16")


@pytest.mark.parametrize(("trainer_class", "warned"), [(NarrowA, True), (NarrowB, False)])
def test_images_of_the_other_pipeline_are_a_warning(trainer_class, warned, world):
    trainer = build(world, trainer_class)  # on z-scores
    trainer.initialize()
    assert ("--normalise percentile-minmax" in Path(trainer.log_file).read_text()) == warned
    assert get_normalization_scheme("noNorm").__name__ == "NoNormalization", "what `convert` calls its channels"


# ---- weight averaging ----------------------------------------------------------------------------------------------


class ShortCycles(NarrowA):
    hyperparameters = dict(num_epochs=6)
    averaging = Cycles(base_epochs=2, cycles=2, cycle_epochs=2, snapshot_every=1, cosine_epochs=3)


@pytest.fixture
def averaged_run(world, monkeypatch):
    """A whole run, with the weights before and the checkpoint after every epoch."""
    monkeypatch.setenv(ITERATIONS, "1")
    seen: list[dict[str, Tensor]] = []

    def keep(trainer):
        seen.append(state(trainer))
        keep_latest(trainer)

    np.random.seed(0)
    torch.manual_seed(0)
    trainer = build(world, ShortCycles)
    last = trainer.conclude
    trainer.conclude = lambda: (seen.append(state(trainer)), last())
    return run(trainer, keep), seen


def test_training_ends_with_the_plain_mean_of_the_snapshots_and_stores_it(averaged_run, world):
    trainer, seen = averaged_run
    assert trainer.timeline.snapshots == {2, 3, 4, 5, 6}
    final = state(trainer)
    for name, value in final.items():
        mean = torch.stack([weights[name].double() for weights in seen[2:]]).mean(0)
        assert torch.allclose(value.double(), mean, rtol=1e-6, atol=1e-8)
    assert not same(final, seen[-1]), "the mean is the last of its members"
    folder = Path(trainer.output_folder)
    stored = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert same(stored["network_weights"], final)
    assert stored["nnunet_brats_ext"]["extra"]["average"] is None, "stored twice"
    assert not (folder / "checkpoint_latest.pth").exists()

    # Continued, a finished training has nothing left to do; nor does its best checkpoint refuse to load.
    again = build(world, ShortCycles)
    again.load_checkpoint(str(folder / "checkpoint_final.pth"))
    assert same(state(run(again)), final)
    again.load_checkpoint(str(folder / "checkpoint_best.pth"))


def test_a_run_interrupted_anywhere_ends_with_the_same_mean(averaged_run, world):
    trainer, _ = averaged_run
    for epoch, place in enumerate(
        ("in the base", "at the switch", "in a cycle", "at a restart", "in the last"), start=1
    ):
        np.random.seed(99)
        torch.manual_seed(99)
        again = build(world, ShortCycles)
        again.load_checkpoint(str(Path(trainer.output_folder, f"after_{epoch}.pth")))
        assert again.current_epoch == epoch
        assert type(again.optimizer) is (Ranger if epoch <= 2 else torch.optim.Adam)
        assert same(state(run(again)), state(trainer)), f"interrupted {place}"


# ---- the lowest validation loss ------------------------------------------------------------------------------------


def test_pipeline_b_ends_with_the_weights_of_the_lowest_validation_loss_also_when_interrupted(world, monkeypatch):
    monkeypatch.setenv(ITERATIONS, "1")
    monkeypatch.setenv(EPOCHS, "4")
    losses = [0.9, 0.5, float("nan"), 0.7]

    class Prescribed(NarrowB):
        def on_validation_epoch_end(self, val_outputs):
            super().on_validation_epoch_end([output | {"loss": losses[self.current_epoch]} for output in val_outputs])

    seen = []
    trainer = run(build(world, Prescribed), lambda trainer: seen.append(state(trainer)))
    assert same(state(trainer), seen[2]), "the weights after the second epoch"
    stored = torch.load(Path(trainer.output_folder, "checkpoint_final.pth"), weights_only=False)
    assert same(stored["network_weights"], seen[2])

    class Interruption(Exception):
        pass

    def interrupt(trainer):
        if trainer.current_epoch == 3:
            raise Interruption

    interrupted = build(world, Prescribed)
    kept = []
    with pytest.raises(Interruption):
        run(interrupted, lambda trainer: (kept.append(state(trainer)), interrupt(trainer)))
    again = build(world, Prescribed)
    again.load_checkpoint(str(Path(interrupted.output_folder, "checkpoint_latest.pth")))
    assert same(state(run(again)), kept[2])


# ---- augmentation --------------------------------------------------------------------------------------------------


def brain(*size: int) -> tuple[Tensor, Tensor]:
    """Images (4, *size) and a segmentation (1, *size) that is -1 outside the brain, in one half."""
    inside = torch.zeros(1, *size)
    inside[:, : size[0] // 2] = 1
    return (1 + torch.rand(4, *size)) * inside, inside - 1


def test_noise_is_a_tenth_of_the_deviation_inside_the_brain_and_everywhere():
    image, _ = brain(32, 32, 32)
    image[1] *= 5
    image[3] = 0
    noisy = RelativeNoise(0.1)(image=image.clone())["image"]
    added = noisy - image
    for channel in range(3):
        expected = 0.1 * image[channel, :16].std().item()
        assert added[channel, :16].std().item() == pytest.approx(expected, rel=0.05)
        assert added[channel, 16:].std().item() == pytest.approx(expected, rel=0.05)
    assert (added[3] == 0).all(), "an empty channel has no deviation"


def test_every_channel_is_dropped_as_often():
    torch.manual_seed(0)
    dropped = Counter()
    for _ in range(400):
        sums = DropChannel()(image=torch.ones(4, 2, 2, 2))["image"].sum((1, 2, 3))
        assert sorted(sums.tolist()) == [0, 8, 8, 8]
        dropped[int(sums.argmin())] += 1
    assert min(dropped[channel] for channel in range(4)) > 70


def test_swap_and_flip_are_nine_maps_that_move_image_and_segmentation_together():
    torch.manual_seed(0)
    image = torch.arange(27).reshape(1, 3, 3, 3)
    found = Counter()
    for _ in range(900):
        moved = SwapAndFlip()(image=image.clone(), segmentation=image.clone())
        assert torch.equal(moved["image"], moved["segmentation"])
        found[tuple(moved["image"].flatten().tolist())] += 1
    assert len(found) == 9
    assert min(found.values()) > 60


@pytest.mark.parametrize("size", [(4, 6, 6), (4, 6, 8)])
def test_a_patch_keeps_its_size_when_axes_are_swapped(size):
    for _ in range(20):
        assert SwapAndFlip()(image=torch.zeros(4, *size))["image"].shape == (4, *size)


def test_the_shift_is_one_number_inside_the_brain():
    image, segmentation = brain(8, 8, 8)
    added = ShiftBrain(0.1)(image=image.clone(), segmentation=segmentation)["image"] - image
    assert (added[:, 4:] == 0).all()
    assert torch.allclose(added[:, :4], added[0, 0, 0, 0].expand(4, 4, 8, 8), atol=1e-6)
    assert 0 < abs(added[0, 0, 0, 0].item()) <= 0.1


def augment(trainer, image: Tensor, segmentation: Tensor) -> Tensor:
    data = dict(image=image.clone(), segmentation=segmentation.clone())
    for transform in trainer.augmentation():
        data = transform(**data)
    return data["image"]


@pytest.mark.parametrize("source", ["release", "text"])
def test_pipeline_a_leaves_a_fifth_alone_and_drops_a_channel_of_a_sixth(source, world):
    class AsAsked(PipelineA):
        follows = dict(augmentation=source)

    torch.manual_seed(0)
    np.random.seed(0)
    trainer = build(world, AsAsked, patch_size=[8, 8, 8])
    image, segmentation = brain(8, 8, 8)
    results = [augment(trainer, image, segmentation) for _ in range(1000)]
    assert np.mean([torch.equal(result, image) for result in results]) == pytest.approx(0.2, abs=0.04)
    # A dropped channel stays empty, since noise comes before.
    assert np.mean([bool((result == 0).all((1, 2, 3)).any()) for result in results]) == pytest.approx(0.16, abs=0.035)


def test_pipeline_b_does_each_of_its_changes_to_a_fifth_and_flips_half(world):
    torch.manual_seed(0)
    np.random.seed(0)
    trainer = build(world, HenryB := BraTSDeepSupervisionBTrainer, patch_size=[8, 8, 8])
    assert issubclass(HenryB, HenryTrainer)
    image, segmentation = brain(8, 8, 8)
    noise, gamma, shift, mirror = trainer.augmentation()
    assert [each.apply_probability for each in (noise, gamma, shift)] == [0.2] * 3
    added = noise.transform(image=torch.zeros(4, 32, 32, 32))["image"]
    assert added.std().item() == pytest.approx(0.1, rel=0.02)
    assert abs(np.corrcoef(added[0].flatten(), added[1].flatten())[0, 1]) < 0.03, "independent per channel"
    assert mirror.allowed_axes == (0, 1, 2)
    z_scored = image - 1.5
    curved = gamma.transform(image=z_scored.clone())["image"]
    assert torch.isfinite(curved).all()
    assert torch.allclose(curved.amax((1, 2, 3)), z_scored.amax((1, 2, 3)), atol=1e-5), "black and white stay"
    assert torch.allclose(curved.amin((1, 2, 3)), z_scored.amin((1, 2, 3)), atol=1e-5)
    unchanged = [
        torch.equal(augment(trainer, image, segmentation).abs().sort().values, image.sort().values) for _ in range(300)
    ]
    assert np.mean(unchanged) < 0.8**3 + 0.1


# ---- cases that training could not learn ---------------------------------------------------------------------------


def test_losses_are_logged_for_every_case_and_a_resumed_training_goes_on_with_the_log(world, monkeypatch):
    monkeypatch.setenv(EPOCHS, "2")
    monkeypatch.setenv(ITERATIONS, "2")
    trainer = run(build(world, NarrowB, fold=2))
    log = Path(trainer.output_folder, "case_losses.jsonl")
    losses = read_case_losses(log)
    assert sorted(losses) == [0, 1]
    training, _ = trainer.do_split()
    assert {case for epoch in losses.values() for case in epoch} <= set(training)
    assert all(0 < loss < 1 for epoch in losses.values() for loss in epoch.values())
    with log.open("a") as file:
        file.write(case_losses_line(1, {"again": [0.2, 0.4]}))
    assert read_case_losses(log)[1] == {"again": 0.3}, "an epoch that was repeated counts as repeated"


def test_a_case_is_removed_when_its_late_losses_stand_out():
    losses = {epoch: {f"case{i}": 0.2 for i in range(9)} | {"late": 0.2, "hard": 0.8} for epoch in range(12)}
    losses[0]["late"] = 99.0  # long ago
    losses[11]["rare"] = 0.2
    verdict = judge(losses, last_epochs=10)
    assert verdict.removed == {"hard": pytest.approx(0.8)}
    means = [0.2] * 11 + [0.8]
    assert verdict.limit == pytest.approx(np.mean(means) + 2 * np.std(means))
    assert judge(losses, last_epochs=12).removed == {"late": pytest.approx((99 + 11 * 0.2) / 12)}
    assert judge(losses, deviations=9).removed == {}


@pytest.mark.parametrize("line", ["{", "[]", '{"epoch": 1}'])
def test_a_broken_log_is_named_with_its_line(line, tmp_path):
    path = tmp_path / "case_losses.jsonl"
    path.write_text(case_losses_line(0, {"a": [0.5]}) + line + "\n")
    with pytest.raises(ValueError, match=r"case_losses\.jsonl, line 2"):
        read_case_losses(path)
    path.write_text("")
    with pytest.raises(ValueError, match="holds no losses"):
        read_case_losses(path)


def test_filter_cases_writes_folds_that_a_new_configuration_trains_on(world, capsys):
    preprocessed = world.root / "nnUNet_preprocessed" / world.dataset
    plans_file, original = (
        preprocessed / "HenryPlans.json",
        json.loads((preprocessed / "splits_final.json").read_text()),
    )
    plans_file.write_text(json.dumps(world.plans | {"plans_name": "HenryPlans"}))
    model = world.root / "nnUNet_results" / world.dataset / "BraTSDeepSupervisionTrainer__HenryPlans__3d_fullres"
    for fold, split in enumerate(original):
        (model / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
        losses = {case: [0.1 if case != split["train"][0] else 0.9] for case in split["train"]}
        losses |= {case: [5.0] for case in split["val"]} if fold == 1 else {}  # whatever a log holds
        (model / f"fold_{fold}" / "case_losses.jsonl").write_text(case_losses_line(0, losses))
    command = ("filter-cases", "901", "-tr", "BraTSDeepSupervisionTrainer", "-c", "3d_fullres", "-p", "HenryPlans")
    assert main([*command, "--deviations", "1.5"]) == 0
    assert main([*command, "--deviations", "1.5"]) == 0, "again is no harm"
    filtered = json.loads((preprocessed / "splits_3d_fullres_filtered.json").read_text())
    for fold, (before, after) in enumerate(zip(original, filtered, strict=True)):
        assert after["val"] == before["val"], "validation cases are never touched"
        if fold != 1:
            assert after["train"] == before["train"][1:]
            assert after["removed"] == {before["train"][0]: 0.9}
    plans = json.loads(plans_file.read_text())
    trainer = BraTSDeepSupervisionTrainer(
        plans | {"continue_training": False}, "3d_fullres_filtered", 0, world.dataset_json, CPU
    )
    training, validation = trainer.do_split()
    assert (training, validation) == (filtered[0]["train"], original[0]["val"])

    assert main([*command, "--deviations", "99"]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, "--deviations", "99", "--overwrite", "-f", "0"]) == 0
    assert (
        json.loads((preprocessed / "splits_3d_fullres_filtered.json").read_text())[2]["train"] == original[2]["train"]
    )
    (model / "fold_4" / "case_losses.jsonl").unlink()
    assert main([*command]) == 1
    assert "fold_4" in capsys.readouterr().err
    foreign = [{"train": split["train"], "val": split["train"][:1]} for split in filtered]
    (preprocessed / "splits_3d_fullres_filtered.json").write_text(json.dumps(foreign))
    with pytest.raises(ValueError, match="made from other folds"):
        trainer.do_split()


# ---- nnU-Net's commands --------------------------------------------------------------------------------------------


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    "trainer", ["BraTSDeepSupervisionTrainer", "BraTSDeepSupervisionCBAMTrainer", "BraTSDeepSupervisionBTrainer"]
)
def test_it_trains_validates_and_predicts_by_nnunets_commands(trainer, world, monkeypatch, tmp_path):
    monkeypatch.setenv(EPOCHS, "2")  # a base and a cycle
    monkeypatch.setenv(ITERATIONS, "1")
    plans = world.plans | {"plans_name": "HenryPlans"}
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"] = [[1, 1, 1], [2, 2, 2]]
    file = world.root / "nnUNet_preprocessed" / world.dataset / "HenryPlans.json"
    file.write_text(json.dumps(plans))
    model = ("-tr", trainer, "-p", "HenryPlans", "-device", "cpu")
    predict = ("-i", str(world.raw / "imagesTs"), "-o", str(tmp_path), "-d", "901", "-c", "3d_fullres", "-f", "3")
    threads = torch.get_num_threads()
    make_tiny(getattr(trainers, trainer), monkeypatch)
    try:
        monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", "901", "3d_fullres", "3", *model])
        with threads_for_processes():
            run_training_entry()
        monkeypatch.setattr(
            sys, "argv", ["nnUNetv2_predict", *predict, *model, "--disable_tta", "-npp", "0", "-nps", "0"]
        )
        predict_entry_point()
    finally:
        torch.set_num_threads(threads)
    folder = world.root / "nnUNet_results" / world.dataset / f"{trainer}__HenryPlans__3d_fullres"
    assert (folder / "fold_3" / "validation" / "summary.json").is_file()
    predictions = sorted(tmp_path.glob("*.nii.gz"))
    assert len(predictions) == 2
    for path in predictions:
        image = sitk.ReadImage(str(path))
        assert set(np.unique(sitk.GetArrayFromImage(image))) <= {0, 1, 2, 3}
        original = sitk.ReadImage(str(world.raw / "imagesTs" / path.name.replace(".nii.gz", "_0000.nii.gz")))
        assert image.GetSize() == original.GetSize()
