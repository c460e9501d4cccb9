"""Training for patients who lack sequences: sequences are taken away at random."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from nnunet_brats_ext.dataset_conversion.dataset_folder import MISSING_KEY
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.training.seams import PlainTrainer


class SequenceDropout(PlainTrainer):
    """Takes sequences away from the cases of every training batch; a mixin for any trainer.

    A case keeps a set of its sequences, each set with the same probability, as in Dorent et al. 2019
    (https://arxiv.org/abs/1907.11150), or all of them. What is taken away is zero, as are the sequences that a case of
    `convert --missing zero` lacks; those are set to zero again, for augmentation has added noise to them. Validation
    sees the cases as they are.
    """

    complete_cases: ClassVar[float] = 0.5
    """The probability that a case keeps all its sequences."""

    keys_read = (MISSING_KEY,)

    def train_step(self, batch: dict) -> dict:
        description = DatasetDescription(self.dataset_json)
        missing = self.dataset_json.get(MISSING_KEY, {})
        absent = absent_channels(batch.get("keys", ()), missing, description.sequences)
        data = drop_sequences(batch["data"], len(description.sequences), absent, self.complete_cases)
        return super().train_step({**batch, "data": data})


def absent_channels(
    cases: Sequence[str], missing: Mapping[str, Sequence[str]], sequences: Sequence[str]
) -> list[set[int]]:
    """For each case the channels of the sequences that it lacks."""
    return [{sequences.index(name) for name in missing.get(str(case), ())} for case in cases]


def drop_sequences(data: Tensor, sequences: int, absent: Sequence[set[int]], complete_cases: float) -> Tensor:
    """A batch (b, c, *s) with channels set to zero: the absent ones of each case, and others at random.

    The first `sequences` channels are sequences; the maps of a previous stage come after them and stay. Every case
    keeps a sequence that it has.
    """
    data = data.clone()
    for number, image in enumerate(data):
        lacking = absent[number] if number < len(absent) else set()
        present = [channel for channel in range(sequences) if channel not in lacking]
        kept = set(present)
        if len(present) > 1 and torch.rand(()) >= complete_cases:
            subset = int(torch.randint(1, 2 ** len(present), ()))  # its bits are the sequences that stay
            kept = {channel for bit, channel in enumerate(present) if subset >> bit & 1}
        image[[channel for channel in range(sequences) if channel not in kept]] = 0
    return data
