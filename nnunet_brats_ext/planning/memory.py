"""How much GPU memory a training step needs: an estimate with constants that `benchmarks/memory.py` counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

GIB = 2**30  # what nnU-Net and the makers of GPUs call a GB of their memory
RESERVE_BYTES = GIB  # CUDA's context, workspaces of its libraries, fragmentation: assumed, not measured
Precision = Literal["fp32", "mixed"]


@dataclass(frozen=True)
class Footprint:
    """What one step of training a network keeps, at the width of its paper and with halvings of all axes.

    parameters: plus `parameters_per_voxel` of the patch, where fully connected layers freeze its size.
    optimiser_state: values per parameter; Adam 2, momentum 1.
    bytes_per_voxel: of the patch, per sample and by precision, at the peak of the step.
    """

    parameters: int
    optimiser_state: int
    bytes_per_voxel: Mapping[Precision, float]
    parameters_per_voxel: float = 0

    def constant_bytes(self, patch_size: Sequence[int], precision: Precision = "mixed") -> float:
        """Weights and the optimiser's state; mixed precision keeps a copy of the weights in 16 bits."""
        per_parameter = 4 * (1 + self.optimiser_state) + (2 if precision == "mixed" else 0)
        return per_parameter * self._parameters(patch_size)

    def step_bytes(self, patch_size: Sequence[int], batch_size: int, precision: Precision = "mixed") -> float:
        """The peak of a step without the GPU's reserve.

        The activations are gone by the time all gradients are there: the larger of the two counts.
        """
        activations = batch_size * prod(patch_size) * self.bytes_per_voxel[precision]
        return self.constant_bytes(patch_size, precision) + max(activations, 4 * self._parameters(patch_size))

    def gpu_gb(self, patch_size: Sequence[int], batch_size: int) -> float:
        """GPU memory in GB of training as nnU-Net does on CUDA, in mixed precision; `batch_size` of this GPU."""
        return (RESERVE_BYTES + self.step_bytes(patch_size, batch_size)) / GIB

    def _parameters(self, patch_size: Sequence[int]) -> float:
        return self.parameters + self.parameters_per_voxel * prod(patch_size)


# A new row: add the network to `benchmarks/memory.py`, run it, and copy its column "B/voxel" at 128 x 128 x 128.
# GroupNorm computes in fp32 under autocast and its output is cast again: mixed precision saves Lyu's networks nothing.
FOOTPRINTS: Mapping[str, Footprint] = {
    "lyu_stage1": Footprint(20_152_439, 2, {"fp32": 3005, "mixed": 3314}, parameters_per_voxel=5.03125),
    "lyu_stage2": Footprint(20_371_648, 2, {"fp32": 3086, "mixed": 3389}, parameters_per_voxel=5.03125),
    # Lachinov: the second teacher's counts are an upper bound for the student, which shares its configuration.
    "no_new_net": Footprint(14_490_753, 2, {"fp32": 2055, "mixed": 1261}),
    "lachinov_vae": Footprint(4_875_991, 2, {"fp32": 2058, "mixed": 1917}, parameters_per_voxel=3.015625),
    "cascaded_unet": Footprint(9_557_124, 1, {"fp32": 1144, "mixed": 641}),
    # Ranger keeps slow weights beside Adam's two moments; with CBAM, without it a little less.
    "henry": Footprint(23_207_760, 3, {"fp32": 3567, "mixed": 3662}),
    "henry_b": Footprint(23_154_735, 2, {"fp32": 3409, "mixed": 2155}),
    "hashemi_2d": Footprint(31_045_763, 2, {"fp32": 8411, "mixed": 4471}),  # per pixel, at 240 x 240
    "omnet": Footprint(13_823_991, 1, {"fp32": 14338, "mixed": 7615}),  # with guided attention; three rows per sample
    # nnU-Net's PlainConvUNet at six stages, as it plans BraTS; with fewer, an upper bound.
    "nnunet": Footprint(31_198_991, 1, {"fp32": 2237, "mixed": 1387}),
}
