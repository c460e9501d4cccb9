"""Losses against values that the papers' own formulas give in float64 on a pattern that anyone can write down."""

import numpy as np
import pytest
import torch

from nnunet_brats_ext.losses.dice import SoftDiceLoss
from nnunet_brats_ext.losses.vae import kl_divergence, reconstruction_loss


def pattern() -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (2, 3, 4, 4, 4) and regions WT, TC, ET of labels 1 NCR, 2 ED, 3 ET."""
    probabilities = ((37 * torch.arange(2 * 3 * 64) % 101).double() + 0.5) / 101
    labels = 53 * torch.arange(2 * 64) % 11
    labels = torch.where(labels < 4, labels, 0).reshape(2, 1, 4, 4, 4)
    regions = torch.cat([labels > 0, (labels == 1) | (labels == 3), labels == 3], dim=1)
    return probabilities.reshape(2, 3, 4, 4, 4), regions


def test_the_pattern_is_the_one_the_values_belong_to():
    probabilities, regions = pattern()
    assert probabilities.sum().item() == pytest.approx(191.83168316831683)
    assert regions.sum((0, 2, 3, 4)).tolist() == [35, 24, 12]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (SoftDiceLoss(), 0.6284070923685472),  # Lyu & Shu, stage 1
        (SoftDiceLoss(weights=(0.10, 0.45, 0.45)), 0.7222931817600776),  # stage 2
        (SoftDiceLoss(smooth_numerator=2e-6, smooth_denominator=2e-6, batch=True), 0.6286081138810269),  # Lachinov
    ],
    ids=["lyu stage 1", "lyu stage 2", "lachinov"],
)
def test_dice_has_the_papers_value(loss, expected):
    probabilities, regions = pattern()
    assert loss(probabilities.logit(), regions).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("weights", "expected"), [(None, 0.7183492831071183), ((0.10, 0.45, 0.45), 0.7399733296204811)], ids=["1", "2"]
)
def test_dice_of_summed_labels_has_the_value_of_the_authors_other_coding(weights, expected):
    labels, regions = pattern()  # probabilities of ED, NCR, ET, whose sums may exceed one
    summed = labels.flip(1).cumsum(1).flip(1)
    assert 1 - SoftDiceLoss(weights=weights).dice(summed, regions.double()).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("squared", "expected"), [(True, 0.495152391016), (False, 0.595895047248)], ids=["henry A", "henry B"]
)
def test_dice_over_the_batch_has_the_papers_value(squared, expected):
    k = torch.arange(2 * 3 * 125).double()
    logits, target = (2 * (0.37 * k).sin(), (0.21 * k).cos() > 0.5)
    loss = SoftDiceLoss(1.0, 1.0, squared=squared, batch=True)
    assert loss(logits.reshape(2, 3, 5, 5, 5), target.reshape(2, 3, 5, 5, 5)).item() == pytest.approx(
        expected, rel=1e-9
    )


def test_a_perfect_prediction_costs_nothing():
    _, regions = pattern()
    assert SoftDiceLoss()(100 * (2 * regions.float() - 1), regions).item() < 1e-6


def test_an_empty_region_costs_one_and_stays_finite():
    logits = torch.full((1, 3, 4, 4, 4), -200.0, requires_grad=True)
    loss = SoftDiceLoss()(logits, torch.zeros(1, 3, 4, 4, 4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 1.0
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("batch", [False, True])
def test_dice_does_not_overflow_in_half_precision(batch):
    logits = torch.full((1, 3, 48, 48, 48), 4.0, dtype=torch.float16)  # sums to 110,000 voxels, above 65,504
    loss = SoftDiceLoss(batch=batch)(logits, torch.ones(1, 3, 48, 48, 48, dtype=torch.bool))
    assert loss.dtype == torch.float32
    assert 0 < loss.item() < 0.02  # p = sigmoid(4) = 0.982, dice = 2p / (p^2 + 1) = 0.99983


def test_batch_dice_lets_a_sample_without_et_learn_from_the_others():
    _, regions = pattern()
    regions[0, 2] = False
    for batch, learns in ((False, False), (True, True)):
        logits = torch.zeros(2, 3, 4, 4, 4, requires_grad=True)
        SoftDiceLoss(batch=batch)(logits, regions).backward()
        assert bool(logits.grad[0, 2].abs().sum() > 1e-8) == learns


def test_divergence_has_the_papers_value():
    k = torch.arange(256).double().reshape(2, 128)
    mean, deviation = (0.37 * k).sin(), 0.5 + 0.4 * (0.11 * k).cos()
    assert kl_divergence(mean, 2 * deviation.log()).item() == pytest.approx(1.643359948172642, rel=1e-12)


def test_reconstruction_is_a_mean_not_a_sum():
    image = torch.zeros(1, 4, 8, 8, 8)
    assert reconstruction_loss(image + 0.5, image).item() == pytest.approx(0.25)
    assert np.isfinite(reconstruction_loss((image + 60000).half(), image.half()).item())
