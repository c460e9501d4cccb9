"""Views on nnU-Net's cases that decide which patches its data loader draws.

For every row of a batch nnU-Net's loader calls `load_case` once, in the order of the rows. Where a row is to show
foreground it centres the patch on a voxel of the case's `class_locations`. A view that lists one voxel there decides
where the patch lies, for every draw and in the loader's own worker processes.
"""

import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

Case = tuple[Any, Any, Any, dict]  # data (c, *s), segmentation (1, *s), previous stage (*s) or None, properties


class CaseView(nnUNetBaseDataset):
    """Base class of views: the cases of another data set, changed by a subclass that overrides `load_case`."""

    def __init__(self, cases: nnUNetBaseDataset):
        super().__init__(cases.source_folder, list(cases.identifiers), cases.folder_with_segs_from_previous_stage)
        self.cases = cases

    def load_case(self, identifier: str) -> Case:
        return self.cases.load_case(identifier)

    def save_case(self, *arguments: Any) -> None:  # type: ignore[override]
        raise NotImplementedError("a view is for reading")

    def get_identifiers(self, folder: str) -> list[str]:  # type: ignore[override]
        return self.cases.get_identifiers(folder)


class OwnRandomNumbers(CaseView):
    """A view that gives torch's random numbers in every worker process of the loader a state of their own.

    The workers are forks: each starts with the state of the process that made it. batchgenerators gives numpy a seed
    of its own in each, but not torch, so that all workers would draw the same torch numbers in the same order.
    """

    def __init__(self, cases: nnUNetBaseDataset):
        super().__init__(cases)
        self.process = os.getpid()

    def load_case(self, identifier: str) -> Case:
        if self.process != os.getpid():
            self.process = os.getpid()
            torch.manual_seed(int(np.random.randint(2**31)))
        return self.cases.load_case(identifier)


class CentredDraws(CaseView):
    """A view that centres every patch: needs `oversample_foreground_percent = 1.0` in the trainer."""

    @abstractmethod
    def draw_centre(self, case: Case) -> Sequence[int] | None:
        """The voxel of the preprocessed case at index `patch_size // 2` of the patch; None is a random patch."""

    def load_case(self, identifier: str) -> Case:
        case = self.cases.load_case(identifier)
        return centred(case, self.draw_centre(case))


def centred(case: Case, centre: Sequence[int] | None) -> Case:
    """The case with this voxel as the only foreground that nnU-Net's loader finds; None is no foreground."""
    data, segmentation, previous, properties = case
    locations = {} if centre is None else {"drawn": np.array([[0, *centre]])}
    return data, segmentation, previous, properties | {"class_locations": locations}
