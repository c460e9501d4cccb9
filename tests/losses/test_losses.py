"""The contract that every loss keeps, and values of the papers' formulas in float64 on a pattern."""

import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, distributed

from nnunet_brats_ext import losses
from nnunet_brats_ext.architectures.omnet.networks import TaskOutput
from nnunet_brats_ext.losses import (
    DiceAndBCELoss,
    FrequencyWeightedDiceLoss,
    LabelDiceLoss,
    MeanOverOutputs,
    MultiTaskCrossEntropy,
    SoftDiceLoss,
    SumOverOutputs,
    kl_divergence,
    reconstruction_loss,
)
from nnunet_brats_ext.losses.label_dice import labels_of_regions

# ---- the contract --------------------------------------------------------------------------------------------------

RANKS = 2
ROWS = 3 * RANKS  # every rank has a row for each of OM-Net's three tasks
LossFunction = Callable[[Tensor, Tensor], Tensor]  # region logits (b, 3, *s), regions (b, 3, *s) -> scalar


def perfect_logits(regions: Tensor) -> Tensor:
    return 20 * (2 * regions.float() - 1)


def label_logits(logits: Tensor) -> Tensor:
    """Background, ED, NCR and ET, (b, 4, *s), from the logits of WT, TC and ET."""
    wt, tc, et = logits.unbind(1)
    return torch.stack([-wt, torch.minimum(wt, -tc), torch.minimum(tc, -et), et], 1)


def label_dice(logits: Tensor, regions: Tensor) -> Tensor:
    fine = label_logits(logits)
    scales = [fine, fine[:, :, ::2, ::2, ::2]]
    return LabelDiceLoss(labels_of_regions([(1, 2, 3), (2, 3), 3]))(scales, regions)


def multi_task(logits: Tensor, regions: Tensor) -> Tensor:
    """Every row is one of the data of a task, and trains this task and the later ones."""
    labels = label_logits(logits)
    classes = torch.cat([labels, torch.full_like(labels[:, :1], -20)], 1)
    rows = len(logits) // 3
    scores = {0: classes[:rows], 1: classes[: 2 * rows], 2: torch.stack([-logits[:, 2], logits[:, 2]], 1)}
    return MultiTaskCrossEntropy()(TaskOutput(None, scores), [regions, regions.sum(1, keepdim=True)])


def divergence(logits: Tensor, regions: Tensor) -> Tensor:
    """Smallest at mean 0 and log-variance 0."""
    error = (logits - perfect_logits(regions).to(logits.dtype)).flatten(1)
    return kl_divergence(error, error.clamp(-5, 5))


ADAPTERS: dict[str, LossFunction] = {  # of losses that take something else than region logits
    "LabelDiceLoss": label_dice,
    "MeanOverOutputs": lambda logits, regions: MeanOverOutputs(SoftDiceLoss())([logits, logits / 2], regions),
    "SumOverOutputs": lambda logits, regions: SumOverOutputs(SoftDiceLoss())([logits, logits / 2], regions),
    "MultiTaskCrossEntropy": multi_task,
    "kl_divergence": divergence,
    "reconstruction_loss": lambda logits, regions: reconstruction_loss(logits, perfect_logits(regions)),
}
VARIANTS: dict[str, LossFunction] = {  # the other settings that papers use
    "SoftDiceLoss over the batch": SoftDiceLoss(1.0, 1.0, squared=False, batch=True),
    "SoftDiceLoss with weights": SoftDiceLoss(weights=(0.10, 0.45, 0.45)),
    "DiceAndBCELoss of the release": DiceAndBCELoss(background_weight=0.01, epsilon=1e-6, factor=0.5),
    "FrequencyWeightedDiceLoss by sample": FrequencyWeightedDiceLoss(batch=False),
    "FrequencyWeightedDiceLoss summed": FrequencyWeightedDiceLoss(batch=False, summed=True),
    "FrequencyWeightedDiceLoss with reversed weights": FrequencyWeightedDiceLoss(reversed_weights=True),
    "FrequencyWeightedDiceLoss of one region": FrequencyWeightedDiceLoss(region=1),
}
LOSSES: dict[str, LossFunction] = {
    name: ADAPTERS[name] if name in ADAPTERS else getattr(losses, name)() for name in losses.__all__
} | VARIANTS
EVERY_LOSS = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def example() -> tuple[Tensor, Tensor]:
    """Logits and nested regions (6, 3, 4, 4, 4); in the first row without tumour, in the second without ET."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(-24, 25, (ROWS, 3, 4, 4, 4), generator=generator) / 4  # exact in half precision
    labels = torch.randint(0, 4, (ROWS, 4, 4, 4), generator=generator)
    labels[0], labels[1] = 0, labels[1].clamp(max=2)
    return logits, torch.stack([labels >= region for region in (1, 2, 3)], 1)


def gradient(loss: LossFunction, logits: Tensor, regions: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    loss(logits, regions).backward()
    return logits.grad


def test_every_loss_states_its_shapes():
    for name in losses.__all__:
        assert "-> scalar" in inspect.getdoc(getattr(losses, name)), name


@EVERY_LOSS
def test_it_is_a_finite_scalar_and_lower_for_a_perfect_prediction(loss):
    logits, regions = example()
    perfect = perfect_logits(regions)
    values = [loss(prediction, regions) for prediction in (perfect, logits, -perfect)]
    assert all(value.shape == () and torch.isfinite(value) for value in values)
    best, random, wrong = values
    assert best < random < wrong


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_half_precision_and_autocast_change_nothing(loss, dtype, autocast):
    logits, regions = example()
    half = logits.to(dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        value, found = loss(half, regions), gradient(loss, half, regions)
    assert value.dtype == torch.float32
    assert found.dtype == dtype
    torch.testing.assert_close(value, loss(half.float(), regions))
    torch.testing.assert_close(found, gradient(loss, half.float(), regions).to(dtype))


@EVERY_LOSS
def test_double_precision_is_kept(loss):
    logits, regions = example()
    assert loss(logits.double(), regions).dtype == torch.float64


@EVERY_LOSS
@pytest.mark.parametrize("filled", [0, 1], ids=["no tumour", "nothing but tumour"])
@pytest.mark.parametrize("scale", [0, 1, 10])
def test_it_and_its_gradient_are_finite_where_regions_are_empty_or_full(loss, filled, scale):
    logits, regions = example()
    regions = torch.full_like(regions, bool(filled))
    for sign in (-1, 1):
        prediction = (logits + 15 * sign) * scale
        assert torch.isfinite(loss(prediction, regions))
        assert torch.isfinite(gradient(loss, prediction, regions)).all()


def rows_of(rank: int) -> slice:
    """Every second row, so that each rank has as many of every task of OM-Net."""
    return slice(rank, None, RANKS)


def keep_gradients(rank: int, folder: Path) -> None:
    """One of two processes: the gradient of every loss for its rows, as DistributedDataParallel averages it."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=RANKS)
    logits, regions = (each[rows_of(rank)] for each in example())
    found = {name: gradient(loss, logits.double(), regions) / RANKS for name, loss in LOSSES.items()}
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def gradients_of_ranks(tmp_path_factory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(keep_gradients, (folder,), RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_two_ranks_are_those_of_the_whole_batch(name, gradients_of_ranks):
    logits, regions = example()
    expected = gradient(LOSSES[name], logits.double(), regions)
    assert expected.any()
    for rank, found in enumerate(gradients_of_ranks):
        torch.testing.assert_close(found[name], expected[rows_of(rank)])


# ---- values of the papers' formulas --------------------------------------------------------------------------------


def pattern() -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (2, 3, 4, 4, 4) and regions WT, TC, ET of labels 1 NCR, 2 ED, 3 ET."""
    probabilities = ((37 * torch.arange(2 * 3 * 64) % 101).double() + 0.5) / 101
    labels = 53 * torch.arange(2 * 64) % 11
    labels = torch.where(labels < 4, labels, 0).reshape(2, 1, 4, 4, 4)
    regions = torch.cat([labels > 0, (labels == 1) | (labels == 3), labels == 3], dim=1)
    return probabilities.reshape(2, 3, 4, 4, 4), regions


def test_the_pattern_is_that_of_the_expected_values():
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


def test_divergence_has_the_value_of_the_paper():
    k = torch.arange(256).double().reshape(2, 128)
    mean, deviation = (0.37 * k).sin(), 0.5 + 0.4 * (0.11 * k).cos()
    assert kl_divergence(mean, 2 * deviation.log()).item() == pytest.approx(1.643359948172642, rel=1e-12)


def test_reconstruction_is_a_mean_not_a_sum():
    image = torch.zeros(1, 4, 8, 8, 8)
    assert reconstruction_loss(image + 0.5, image).item() == pytest.approx(0.25)
    assert np.isfinite(reconstruction_loss((image + 60000).half(), image.half()).item())
