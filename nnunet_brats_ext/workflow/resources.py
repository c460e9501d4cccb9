"""What each kind of job asks of a machine or of a scheduler, and what a training needs of its GPUs."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from nnunet_brats_ext import papers


@dataclass(frozen=True)
class Needs:
    """CPU cores, main memory and wall time of a job; a training's are those of each of its GPUs.

    The figures are set for BraTS 2021 (1,251 cases of 240 x 240 x 155) with room to spare, and are not measured. A
    training that outlasts its time goes on from its last checkpoint when it is started again.
    """

    cpus: int
    memory_gb: float
    hours: float
    gpus: int = 0


KINDS = {
    "phantom": Needs(2, 4, 1),
    "convert": Needs(8, 16, 6),
    "distill": Needs(8, 16, 6),
    "plan": Needs(8, 32, 6),
    "configure": Needs(1, 4, 1),
    "shrink": Needs(1, 4, 1),
    "preprocess": Needs(8, 48, 24),
    "train": Needs(8, 40, 72, gpus=1),
    "filter": Needs(1, 4, 1),
    "maps": Needs(8, 48, 24, gpus=1),
    "choose": Needs(8, 48, 48, gpus=1),
    "predict": Needs(8, 48, 24, gpus=1),
    "ensemble": Needs(8, 24, 6),
    "tune": Needs(8, 24, 12),
    "postprocess": Needs(8, 16, 6),
    "evaluate": Needs(8, 24, 6),
    "rank": Needs(2, 8, 2),
    "report": Needs(4, 16, 2),
    "restore": Needs(4, 8, 2),
}
SMOKE = Needs(1, 3, 0.25)  # of every job on phantoms


def gpu_memory_gb(configuration: str, gpus: int = 1, budget_gb: float | None = None) -> float | None:
    """The plan's estimate for training a paper's configuration at its paper's size, on each of `gpus`.

    A budget is what `nnunet_brats plan` then fits it to. None for what has not been counted.
    """
    row = papers.configurations().get(configuration)
    if row is None or row.footprint is None or row.patch_size is None:
        return None
    estimate = row.footprint.gpu_gb(row.patch_size, ceil(row.batch_size / gpus))
    return min(estimate, budget_gb) if budget_gb else estimate


def bases(configurations: Sequence[str]) -> dict[str, bool]:
    """Whose preprocessed data configurations of BraTSPlans train on -> whether those are in BraTSPlans only."""
    rows = papers.configurations()
    found = {}
    for name in configurations:
        own = name not in rows or rows[name].resampled
        found[name if own else rows[name].base] = own and name in rows
    return found
