"""Patch and batch of a configuration: the paper's, within the largest case and a budget of GPU memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from nnunet_brats_ext.papers import Configuration, Footprint, Sizes
from nnunet_brats_ext.planning.topology import Topology, deepest_topology, divisors
from nnunet_brats_ext.storage.errors import UserError

PLAIN_UNET = Footprint(31_198_991, 1, {"fp32": 2237, "mixed": 1387})
"""nnU-Net's PlainConvUNet at six stages, as it plans BraTS; with fewer, an upper bound."""


@dataclass(frozen=True)
class Cases:
    """Spacing in mm, and sizes in voxels, of the preprocessed cases that a configuration trains on."""

    spacing: tuple[float, ...]
    median: tuple[float, ...]
    largest: tuple[int, ...]


@dataclass(frozen=True)
class Fit:
    """What was chosen, and why where it is not the paper's. The estimate is of one GPU; None where none exists."""

    topology: Topology
    batch_size: int
    estimate_gb: float | None
    reasons: tuple[str, ...]


def fit(paper: Configuration, cases: Cases, gpu_memory_gb: float | None = None, gpus: int = 1) -> Fit:
    """The first of the paper's setting and its `reductions` that the budget holds; without budget, the paper's.

    gpu_memory_gb: of each GPU. A budget below the smallest reduction is an error. A network whose footprint is not
    known, for the strides at hand, keeps its paper's setting.
    """
    whole = within_cases(paper, cases)
    reasons = []
    if paper.patch_size is None:
        reasons.append(f"whole, {shown(cases.largest)} at most")
    elif whole.patch_size != paper.patch_size:
        reasons.append(
            f"{shown(paper.patch_size)} -> {shown(whole.patch_size)}: the largest case has {shown(cases.largest)}"
        )
    if paper.footprint is None:
        return Fit(whole, paper.batch_size, None, tuple(reasons))
    if any(set(stride) != {2} for stride in whole.strides[1 : paper.poolings]):
        return Fit(whole, paper.batch_size, None, (*reasons, "no estimate for strides that differ between the axes"))

    for chosen, batch_size in reductions(paper, whole, cases, gpus):
        estimate_gb = paper.footprint.gpu_gb(chosen.patch_size, ceil(batch_size / gpus))
        if gpu_memory_gb is None or estimate_gb <= gpu_memory_gb:
            break
    else:
        raise UserError(
            f"--gpu-memory-gb {gpu_memory_gb:g}: too little for {paper.name}: its smallest setting, a patch of "
            f"{shown(chosen.patch_size)} and {ceil(batch_size / gpus)} sample per GPU, needs about {estimate_gb:.1f} GB"
        )
    changes = [f"batch {paper.batch_size} -> {batch_size}"] if batch_size != paper.batch_size else []
    if chosen != whole:
        changes.append(f"{shown(whole.patch_size)} -> {shown(chosen.patch_size)}")
    if changes:
        reasons.append(f"{', '.join(changes)}: {gpu_memory_gb:g} GB asked, estimate {estimate_gb:.1f} GB")
    return Fit(chosen, batch_size, estimate_gb, tuple(reasons))


def within_cases(paper: Configuration, cases: Cases) -> Topology:
    """The paper's patch, cut to the largest case and rounded up to what its network needs to divide it."""
    patch_size = tuple(map(min, paper.patch_size or cases.largest, cases.largest))
    if paper.strides and patch_size == paper.patch_size:
        return Topology(patch_size, paper.strides, ((3,) * len(patch_size),) * len(paper.strides))
    return deepest_topology(cases.spacing, patch_size, paper.poolings)


def reductions(paper: Configuration, chosen: Topology, cases: Cases, gpus: int = 1) -> Iterator[tuple[Topology, int]]:
    """Patch and batch from the paper's downwards: first the batch, to one sample per GPU, as Lyu & Shu trained.

    Then the patch, as nnU-Net does: the axis that is largest relative to the median case loses one divisor of the
    paper's network, as long as that network keeps its depth.
    """
    batch_size = paper.batch_size
    yield chosen, batch_size
    while batch_size > gpus:
        batch_size = (ceil(batch_size / gpus) - 1) * gpus  # one sample less on every GPU
        yield chosen, batch_size
    while smaller := _smaller(paper, chosen.patch_size, cases):
        chosen = smaller
        yield chosen, batch_size


def _smaller(paper: Configuration, patch_size: Sizes, cases: Cases) -> Topology | None:
    steps = divisors(cases.spacing, patch_size, paper.poolings)
    for axis in sorted(range(len(patch_size)), key=lambda axis: patch_size[axis] / cases.median[axis], reverse=True):
        reduced = tuple(length - steps[i] * (i == axis) for i, length in enumerate(patch_size))
        if divisors(cases.spacing, reduced, paper.poolings) == steps:
            return deepest_topology(cases.spacing, reduced, paper.poolings)
    return None


def shown(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
