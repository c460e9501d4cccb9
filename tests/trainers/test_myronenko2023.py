"""Myronenko et al. 2023: MONAI's network and loss, Auto3DSeg's schedule, and one sentence where MONAI is missing."""

import pytest
import torch
from tiny_trainers import build, tiny

from nnunet_brats_ext import papers
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.trainers import BraTSMyronenko2023Trainer
from nnunet_brats_ext.trainers.myronenko2023.loss import SupervisedDiceAndCrossEntropy
from nnunet_brats_ext.trainers.myronenko2023.network import SegResNet
from nnunet_brats_ext.trainers.myronenko2023.transforms import ShiftImage
from nnunet_brats_ext.workflow.recipe import load_recipe

NAME = "BraTSMyronenko2023Trainer"


def test_without_monai_one_sentence_says_what_to_install(world, monkeypatch):
    monkeypatch.setattr(papers, "find_spec", lambda name: None)
    expected = rf"{NAME} needs monai, which is not installed: pip install 'nnunet-brats-ext\[monai\]'"
    with pytest.raises(UserError, match=expected):
        build(world, NAME).initialize()
    with pytest.raises(UserError, match=expected):
        load_recipe(papers.find_paper("myronenko2023").recipe)


def test_the_loss_is_that_of_monai():
    losses = pytest.importorskip("monai.losses")
    theirs = losses.DeepSupervisionLoss(losses.DiceCELoss(sigmoid=True, squared_pred=True, smooth_nr=0, smooth_dr=1e-5))
    torch.manual_seed(0)
    outputs = [torch.randn(2, 3, *(16 // 2**n,) * 3, requires_grad=True) for n in range(4)]
    target = torch.rand(2, 3, 16, 16, 16) > 0.7
    ours = SupervisedDiceAndCrossEntropy()(outputs, target)
    expected = theirs(outputs, target.float())
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    for one, other in zip(torch.autograd.grad(ours, outputs), torch.autograd.grad(expected, outputs), strict=True):
        assert torch.allclose(one, other, atol=1e-7)
    single = SupervisedDiceAndCrossEntropy()(outputs[0], target)
    assert single.item() == pytest.approx(theirs(outputs[0], target.float()).item(), rel=1e-6)


def test_it_warms_up_for_three_epochs_and_ends_at_zero(world):
    pytest.importorskip("monai")
    with tiny(NAME):
        trainer = build(world, NAME, patch_size=[16] * 3)
        trainer.initialize()
    assert trainer.num_epochs == 1250, "few cases are seen more often"
    rates = [trainer.learning_rate(epoch) for epoch in range(trainer.num_epochs + 1)]
    assert rates[:4] == pytest.approx([2e-5, 8e-5, 1.4e-4, 2e-4])
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_four_scales_are_supervised_in_training_and_one_tensor_is_predicted():
    pytest.importorskip("monai")
    network, x = SegResNet(4, 3, features_per_stage=(8,), n_blocks_per_stage=(1,) * 5), torch.randn(1, 4, 32, 32, 32)
    assert [output.shape[2] for output in network(x)] == [32, 16, 8, 4]
    assert network.eval()(x).shape == (1, 3, 32, 32, 32)


@pytest.mark.parametrize(("cases", "epochs"), [(60, 1250), (160, 500), (1251, 300)])
def test_the_number_of_epochs_follows_that_of_the_cases(cases, epochs, world):
    dataset = world.dataset_json | {"numTraining": cases}
    trainer = build(world, NAME)
    trainer.dataset_json = dataset
    trainer.adapt_hyperparameters()
    assert trainer.num_epochs == epochs


def test_strides_that_differ_between_axes_are_an_error(world):
    pytest.importorskip("monai")
    with pytest.raises(UserError, match="halves every axis alike, and the plans' strides are"):
        build(world, NAME, strides=[[1, 1, 1], [1, 2, 2]]).initialize()


def test_a_shift_is_the_same_everywhere():
    torch.manual_seed(0)
    shifted = ShiftImage(0.1)(image=torch.zeros(4, 3, 3, 3))["image"]
    assert shifted.unique().numel() == 1
    assert 0 < abs(shifted.flatten()[0]) <= 0.1


def test_patches_are_drawn_around_the_tumour_and_predicted_without_mirror_images():
    assert BraTSMyronenko2023Trainer.hyperparameters["oversample_foreground_percent"] == 1
    assert papers.trainers()[NAME].prediction.symmetries == "none"
