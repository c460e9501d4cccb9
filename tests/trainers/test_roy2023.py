"""Roy et al. 2023, MedNeXt: values of the authors' network, its counts, UpKern, deep supervision, AdamW."""

from pathlib import Path

import pytest
import torch
from golden_networks import fill, wave
from tiny_trainers import build, random_batch, tiny
from torch import Tensor

from nnunet_brats_ext import papers
from nnunet_brats_ext.architectures.mednext import MedNeXt
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.nnunet import FINAL, model_name
from nnunet_brats_ext.trainers.roy2023.upkern import upsample_kernel
from nnunet_brats_ext.training.environment import START
from nnunet_brats_ext.workflow.recipe import load_recipe

SIZES = {
    "S": dict(n_blocks_per_stage=(2, 2, 2, 2, 2), expansion_per_stage=(2, 2, 2, 2, 2)),
    "B": dict(n_blocks_per_stage=(2, 2, 2, 2, 2), expansion_per_stage=(2, 3, 4, 4, 4)),
    "M": dict(n_blocks_per_stage=(3, 4, 4, 4, 4), expansion_per_stage=(2, 3, 4, 4, 4)),
    "L": dict(n_blocks_per_stage=(3, 4, 8, 8, 8), expansion_per_stage=(3, 4, 8, 8, 8)),
}
# Values of github.com/MIC-DKFZ/MedNeXt at 0b78ed8, in float64, with the weights of `fill`: the finest output at
# [0, :, 8, 12, 16], its mean and deviation, and those of the coarser outputs.
GOLDEN = {
    ("S", 3, 8): (
        [0.438431710, -0.234411109, 0.055347890], (0.119032557, 19.723054968),
        [(1.411378569, 100.512555577), (1.800469902, 80.194736674), (1.036410742, 58.358350673),
         (-0.004153311, 0.058876661)],
    ),
    ("B", 5, 4): (
        [0.065616535, -0.600536052, -0.160708108], (0.240833252, 2.191519402),
        [(-0.052067583, 3.586989721), (-0.228061285, 18.770828497), (0.014500066, 13.787944202),
         (-0.010869295, 0.602136782)],
    ),
    ("M", 5, 4): (
        [-0.046486591, -0.945105312, -0.111090290], (0.397058704, 3.053644823),
        [(-0.030296992, 7.883725782), (-4.258182707, 39.897413189), (-6.266130389, 30.710456691),
         (-0.010454342, 1.332465231)],
    ),
    ("L", 3, 2): (
        [0.517937028, 1.552330564, 1.777199282], (3.295149545, 80.906521543),
        [(2.901318839, 94.911672820), (2.964050585, 375.976420267), (-4.586987641, 70.034583592),
         (-8.795572566, 51.758016967)],
    ),
}  # fmt: skip


# ---- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "kernel_size", "width"), GOLDEN, ids=str)
def test_a_network_gives_the_values_of_the_authors_release(size, kernel_size, width):
    features = [width * 2**stage for stage in range(5)]
    network = fill(MedNeXt(4, 3, features_per_stage=features, kernel_size=kernel_size, **SIZES[size]))
    network.deep_supervision = True
    with torch.no_grad():
        outputs = network(wave(1, 4, 32, 32, 48))
    voxel, finest, coarser = GOLDEN[size, kernel_size, width]
    assert outputs[0][0, :, 8, 12, 16].tolist() == pytest.approx(voxel, abs=1e-8)
    assert [(o.mean().item(), o.std().item()) for o in outputs] == [
        pytest.approx(expected, abs=1e-8) for expected in (finest, *coarser)
    ]
    assert [o.shape[2] for o in outputs] == [32, 16, 8, 4, 2]


def test_the_counts_are_those_of_the_papers_table():
    counted = [facts.parameters / 1e6 for facts in papers.find_paper("roy2023").trainers]
    printed = [5.6, 5.9, 10.5, 11.0, 17.6, 18.3, 61.8, 63.0]  # millions, some rounded and some cut
    assert counted == [pytest.approx(number, abs=0.09) for number in printed]


def test_computing_blocks_again_changes_neither_the_loss_nor_the_gradients():
    gradients = []
    for recompute in (False, True):
        network = fill(MedNeXt(4, 3, strides=(1, 2), features_per_stage=(4, 8), recompute=recompute)).train()
        network(wave(1, 4, 8, 8, 8)).square().mean().backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


# ---- UpKern ----------------------------------------------------------------------------------------------------------


def test_a_kernel_is_interpolated_and_everything_else_is_kept():
    small = torch.arange(27.0).reshape(1, 1, 3, 3, 3)
    large = upsample_kernel(small, torch.empty(1, 1, 5, 5, 5))
    # A point of five lies at 0.6 (i + 0.5) - 0.5 of three: -0.2, 0.4, 1, 1.6, 2.2, held within the kernel.
    along = [0.0, 0.4, 1.0, 1.6, 2.0]
    expected = torch.tensor([[[9 * z + 3 * y + x for x in along] for y in along] for z in along])
    assert torch.allclose(large[0, 0], expected, atol=1e-5)
    assert upsample_kernel(small, torch.empty(1, 1, 3, 3, 3)) is small
    bias = torch.ones(4)
    assert upsample_kernel(bias, torch.empty(4)) is bias


@pytest.fixture
def kernel_5(world, tmp_path, monkeypatch):
    """A trainer with kernel 5 and an empty folder of results."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    with tiny("BraTSMedNeXtSTrainer"), tiny("BraTSMedNeXtSKernel5Trainer"):
        yield lambda: build(world, "BraTSMedNeXtSKernel5Trainer", fold=1, patch_size=[16] * 3)


def test_kernel_5_starts_from_the_weights_with_kernel_3_of_its_fold(kernel_5, world, tmp_path):
    small = build(world, "BraTSMedNeXtSTrainer", fold=1, patch_size=[16] * 3)
    small.initialize()
    small.save_checkpoint(str(Path(small.output_folder, FINAL)))
    large = kernel_5()
    large.on_train_start()
    before, after = small.network.state_dict(), large.network.state_dict()
    assert before.keys() == after.keys()
    resized = [name for name in before if before[name].shape != after[name].shape]
    assert resized
    assert all(name.endswith("depthwise.weight") for name in resized)
    for name, value in after.items():
        assert torch.equal(value, upsample_kernel(before[name], value)), name


def test_without_the_weights_with_kernel_3_it_gives_the_command_and_can_start_at_random(kernel_5, monkeypatch):
    expected = r"there is no .*fold_1.*checkpoint_final.pth. Train it first:\n  nnUNetv2_train Dataset901_World 3d_fu"
    with pytest.raises(UserError, match=expected):
        kernel_5().on_train_start()
    monkeypatch.setenv(START, "kernel3")
    with pytest.raises(UserError, match="nnUNet_brats_start=kernel3: expected 'random'"):
        kernel_5().on_train_start()
    monkeypatch.setenv(START, "random")
    kernel_5().on_train_start()


def test_weights_of_another_size_are_an_error_that_names_both(kernel_5, world, tmp_path):
    with tiny("BraTSMedNeXtBTrainer"):
        other = build(world, "BraTSMedNeXtBTrainer", fold=1, patch_size=[16] * 3)
        other.initialize()
    folder = tmp_path / world.dataset / model_name("BraTSMedNeXtSTrainer", "nnUNetPlans", "3d_fullres") / "fold_1"
    folder.mkdir(parents=True)
    other.bare_network.register_buffer("more", torch.zeros(1))
    other.save_checkpoint(str(folder / FINAL))
    with pytest.raises(UserError, match="of BraTSMedNeXtBTrainer, do not fit the network of BraTSMedNeXtSKernel5"):
        kernel_5().on_train_start()


def test_a_recipe_trains_kernel_3_of_a_fold_before_kernel_5_of_it_and_says_where_that_is_missing(tmp_path):
    text = papers.find_paper("roy2023").recipe.read_text()
    recipe = load_recipe(papers.find_paper("roy2023").recipe)
    starts = {name: recipe.start_of(model) for name, model in recipe.models.items()}
    assert {name: start.name for name, start in starts.items() if start} == {"kernel5": "kernel3"}
    alone = tmp_path / "alone.yaml"
    alone.write_text(text.replace("BraTSMedNeXtLTrainer", "BraTSMedNeXtSTrainer").replace("mednext_l", "mednext_s"))
    with pytest.raises(UserError, match="starts from the weights of BraTSMedNeXtLTrainer: add a model of that trainer"):
        load_recipe(alone)


# ---- training --------------------------------------------------------------------------------------------------------


def test_it_trains_as_the_release_does(world):
    with tiny("BraTSMedNeXtSTrainer"):
        trainer = build(world, "BraTSMedNeXtSTrainer", patch_size=[16] * 3, strides=[[1] * 3, [2] * 3, [2] * 3])
        trainer.initialize()
    (group,) = trainer.optimizer.param_groups
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert (group["lr"], group["weight_decay"], group["eps"]) == (1e-3, 3e-5, 1e-4)
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (1000, 250)
    # Two stages are built, and both are supervised, the coarser one with half the weight.
    assert trainer._get_deep_supervision_scales() == [[1, 1, 1], [0.5, 0.5, 0.5]]
    assert trainer.loss.weight_factors == pytest.approx((2 / 3, 1 / 3))
    batch = random_batch(trainer)
    assert [len(trainer.network(batch["data"])), len(batch["target"])] == [2, 2]
    trainer.set_deep_supervision_enabled(False)
    assert isinstance(trainer.network(batch["data"]), Tensor)
