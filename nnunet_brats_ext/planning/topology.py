"""Which strides and kernels a patch calls for: nnU-Net's rule, https://doi.org/10.1038/s41592-020-01008-z."""

from collections.abc import Sequence
from typing import NamedTuple

from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnunet_brats_ext.papers import Sizes

MIN_EDGE = 4  # nnU-Net's shortest edge of the deepest features


class Topology(NamedTuple):
    """A patch and, per stage and axis, what divides and convolves it; the first stage has stride 1."""

    patch_size: Sizes
    strides: tuple[Sizes, ...]
    kernel_sizes: tuple[Sizes, ...]


def deepest_topology(spacing: Sequence[float], patch_size: Sequence[int], poolings: int) -> Topology:
    """The deepest topology by nnU-Net's rule that leaves the patch as it is, once `poolings` halvings divide it.

    poolings: what the paper's network needs. An axis they do not divide is rounded up; nnU-Net would round up to what
    its own deeper network needs, and turn Lachinov's 144 into 160.
    """
    _, strides, kernel_sizes, padded, _ = _properties(spacing, patch_size, poolings)
    rounded = tuple(int(length) for length in padded)
    depth = len(_properties(spacing, rounded, 99)[1])
    for deepest in range(depth, poolings, -1):
        _, deeper, kernels, padded, _ = _properties(spacing, rounded, deepest)
        if tuple(padded) == rounded:
            return Topology(rounded, deeper, kernels)
    return Topology(rounded, strides, kernel_sizes)


def divisors(spacing: Sequence[float], patch_size: Sequence[int], poolings: int) -> Sizes:
    """What `poolings` halvings need each axis to be a multiple of."""
    return tuple(int(step) for step in _properties(spacing, patch_size, poolings)[4])


def _properties(spacing: Sequence[float], patch_size: Sequence[int], deepest: int):
    return get_pool_and_conv_props(spacing, patch_size, MIN_EDGE, deepest)
