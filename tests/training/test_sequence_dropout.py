"""Sequences taken away in training: which, how often, and what is left."""

from collections import Counter

import torch
from tiny_trainers import build, random_batch

from nnunet_brats_ext.trainers import BraTSBaselineSequenceDropoutTrainer
from nnunet_brats_ext.training.sequence_dropout import absent_channels, drop_sequences


def kept(data) -> list[tuple[int, ...]]:
    return [tuple(channel for channel in range(data.shape[1]) if image[channel].any()) for image in data]


def test_every_set_of_sequences_is_kept_equally_often():
    torch.manual_seed(0)
    data = torch.ones(6000, 4, 1, 1, 1)
    counts = Counter(kept(drop_sequences(data, 4, [], complete_cases=0)))
    assert len(counts) == 15 and () not in counts
    assert all(abs(count - 400) < 100 for count in counts.values())
    assert (data == 1).all(), "the batch itself stays"


def test_complete_cases_are_left_alone_as_often_as_asked():
    torch.manual_seed(0)
    data = torch.randn(2000, 4, 2, 2, 2)
    assert torch.equal(drop_sequences(data, 4, [], complete_cases=1), data)
    complete = kept(drop_sequences(data, 4, [], complete_cases=0.5)).count((0, 1, 2, 3))
    assert abs(complete - 2000 * (0.5 + 0.5 / 15)) < 100


def test_what_a_case_lacks_stays_zero_and_something_that_it_has_is_kept():
    torch.manual_seed(0)
    data = torch.randn(500, 4, 2, 2, 2)
    absent = absent_channels(["a"] * 500, {"a": ["T1", "FLAIR"]}, ("T1", "T1ce", "T2", "FLAIR"))
    assert set(kept(drop_sequences(data, 4, absent, complete_cases=0.2))) == {(1,), (2,), (1, 2)}


def test_a_derived_channel_goes_with_each_of_its_sequences():
    torch.manual_seed(0)
    data = torch.ones(500, 6, 1, 1, 1)  # four sequences, T1ce - T1, and a map of a previous stage
    sets = set(kept(drop_sequences(data, 4, [], complete_cases=0, derived=[{0, 1}])))
    assert len(sets) == 15 and all(5 in channels for channels in sets)
    assert all((4 in channels) == ({0, 1} <= set(channels)) for channels in sets)


def test_maps_of_a_previous_stage_stay():
    data = torch.ones(50, 7, 2, 2, 2)
    assert all(channels[-3:] == (4, 5, 6) for channels in kept(drop_sequences(data, 4, [], complete_cases=0)))


def test_a_trainer_takes_sequences_away_in_training_and_none_in_validation(world, monkeypatch):
    trainer = build(world, "BraTSBaselineSequenceDropoutTrainer", patch_size=[16, 16, 16])
    trainer.initialize()
    monkeypatch.setattr(BraTSBaselineSequenceDropoutTrainer, "complete_cases", 0.0)
    seen = []
    trainer.network.register_forward_pre_hook(lambda _, inputs: seen.append(kept(inputs[0])))
    torch.manual_seed(1)
    batch = random_batch(trainer)
    trainer.train_step(batch)
    trainer.validation_step(batch)
    assert any(len(channels) < 4 for channels in seen[0])
    assert all(channels == (0, 1, 2, 3) for channels in seen[1])
