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
    `convert --missing zero` lacks; those are set to zero again, for augmentation has added noise to them. A channel
    that is computed from a sequence goes with it. Validation sees the cases as they are.
    """

    complete_cases: ClassVar[float] = 0.5
    """The probability that a case keeps all its sequences."""

    keys_read = (MISSING_KEY,)

    def train_step(self, batch: dict) -> dict:
        description = DatasetDescription(self.dataset_json)
        sequences, missing = description.acquired, self.dataset_json.get(MISSING_KEY, {})
        absent = absent_channels(batch.get("keys", ()), missing, sequences)
        sources = [{sequences.index(name) for name in weights} for weights in description.derived.values()]
        data = drop_sequences(batch["data"], len(sequences), absent, self.complete_cases, sources)
        return super().train_step({**batch, "data": data})


def absent_channels(
    cases: Sequence[str], missing: Mapping[str, Sequence[str]], sequences: Sequence[str]
) -> list[set[int]]:
    """For each case the channels of the sequences that it lacks."""
    return [{sequences.index(name) for name in missing.get(str(case), ())} for case in cases]


def drop_sequences(
    data: Tensor,
    sequences: int,
    absent: Sequence[set[int]],
    complete_cases: float,
    derived: Sequence[set[int]] = (),
) -> Tensor:
    """A batch (b, c, *s) with channels set to zero: the absent ones of each case, and others at random.

    The first `sequences` channels are sequences. Behind them come derived channels, which are zero where one of the
    sequences that they are computed from is, and the maps of a previous stage, which stay. Every case keeps a sequence
    that it has. derived: of each such channel those that it is computed from.
    """
    data = data.clone()
    for number, image in enumerate(data):
        lacking = absent[number] if number < len(absent) else set()
        present = [channel for channel in range(sequences) if channel not in lacking]
        kept = set(present)
        if len(present) > 1 and torch.rand(()) >= complete_cases:
            subset = int(torch.randint(1, 2 ** len(present), ()))  # its bits are the sequences that stay
            kept = {channel for bit, channel in enumerate(present) if subset >> bit & 1}
        lost = [channel for channel in range(sequences) if channel not in kept]
        image[lost + [channel for channel, sources in enumerate(derived, start=sequences) if not sources <= kept]] = 0
    return data
