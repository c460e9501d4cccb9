"""Group normalisation that is exact in every memory format: Wu & He 2018, https://arxiv.org/abs/1803.08494."""

from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 2**14  # voxels at once, so that what is in between stays in the processor's cache


class GroupNorm(nn.GroupNorm):
    """torch.nn.GroupNorm, with exact statistics also for channels last on a CPU: (b, c, *s) -> (b, c, *s).

    There torch adds up all values of a channel one after another in fp32. Over a whole brain, results are then wrong by
    0.005 where they should be within 1e-6. The weights are those of torch's.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.is_contiguous():
            return super().forward(x)
        return _ChannelsLast.apply(x, self.weight, self.bias, self.num_groups, self.eps)


class _ChannelsLast(torch.autograd.Function):
    """Statistics block by block, summed in fp64, and all in fp32 at least; the gradient by torch's own kernel."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        per_group = x.shape[1] // groups
        wide = torch.promote_types(x.dtype, torch.float32)
        voxels = x.movedim(1, -1).flatten(1, -2)  # (b, n, c), without a copy

        def mean_of_group(values: Tensor) -> Tensor:
            return values.unflatten(1, (groups, per_group)).sum(2) / (voxels.shape[1] * per_group)

        sums, squares = x.new_zeros((2, *x.shape[:2]), dtype=torch.float64)
        for block in voxels.split(BLOCK, dim=1):
            values = block.to(wide)
            sums += values.sum(1)
            squares += values.square().sum(1)
        mean = mean_of_group(sums)
        scale = (mean_of_group(squares) - mean.square()).clamp_min(0).add(eps).rsqrt()
        context.save_for_backward(x, weight, mean.to(x.dtype), scale.to(x.dtype))
        context.groups = groups
        factor = scale.repeat_interleave(per_group, 1) * weight
        offset = (bias - mean.repeat_interleave(per_group, 1) * factor)[:, None].to(wide)
        factor = factor[:, None].to(wide)
        result = torch.empty_like(x, memory_format=_format(x))
        outputs = result.movedim(1, -1).flatten(1, -2)
        for block, output in zip(voxels.split(BLOCK, dim=1), outputs.split(BLOCK, dim=1), strict=True):
            output.copy_(torch.addcmul(offset, block.to(wide), factor))
        return result

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = context.saved_tensors
        gradient = gradients[0].to(x.dtype).contiguous(memory_format=_format(x))
        sizes = (*x.shape[:2], x[0, 0].numel())
        found = torch.ops.aten.native_group_norm_backward(
            gradient, x, mean, scale, weight.to(x.dtype), *sizes, context.groups, [True, True, True]
        )
        return (*found, None, None)


def _format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.ndim == 4 else torch.channels_last_3d
