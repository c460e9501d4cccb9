"""From the scores of OM-Net's tasks to logits of nested regions: the inference rule of Zhou et al. 2020 as arithmetic.

The paper decides in turn: voxels near the tumour of task 0 get the best class of task 1, and in its core task 2
separates ET from NCR. As logits of regions, each decision is a sign and each "and" a minimum, so nnU-Net can average
them over windows, mirror images and folds as with any network.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_brats_ext.architectures.omnet.tasks import CORE, ET, TUMOUR

DILATION = 5  # voxels by which the tumour of task 0 is dilated; task 1 decides within it
LIMIT = 30.0  # of a logit; sums of many windows must stay in the range of half precision
Reduce = Callable[..., Tensor]


def fuse_regions(scores: Sequence[Tensor], reduce: Reduce = torch.amax) -> Tensor:
    """Logits of WT, TC and ET from the scores of one, two or three tasks: [(b, 5, *s), (b, 5, *s), (b, 2, *s)].

    Gives (b, 3, *s) in fp32 with WT >= TC >= ET. reduce: `torch.amax` (positive wherever the best class says so: the
    paper's rule, voxel for voxel), or `torch.logsumexp` (calibrated: sigmoid is the sum of the classes' probabilities).
    """
    with torch.autocast(scores[0].device.type, enabled=False):
        coarse, *finer = [task.float() for task in scores]
        labels = finer[0] if finer else coarse
        wt, tc, et = (odds(labels, classes, reduce) for classes in (TUMOUR, CORE, (ET,)))
        if finer:
            wt = torch.minimum(wt, dilate(odds(coarse, TUMOUR, torch.logsumexp)))
        if len(finer) > 1:
            et = odds(finer[1], (1,), reduce)
        tc = torch.minimum(tc, wt)
        return torch.cat([wt, tc, torch.minimum(et, tc)], 1).clamp(-LIMIT, LIMIT)


def odds(scores: Tensor, classes: Collection[int], reduce: Reduce) -> Tensor:
    """The logit of some classes against all others: (b, k, *s) -> (b, 1, *s)."""
    others = [index for index in range(scores.shape[1]) if index not in classes]
    return reduce(scores[:, list(classes)], 1, keepdim=True) - reduce(scores[:, others], 1, keepdim=True)


def dilate(logits: Tensor, voxels: int = DILATION) -> Tensor:
    """Dilation of logits: the largest value in the cube around each voxel, one axis after the other."""
    axes = logits.ndim - 2
    pool = {2: functional.max_pool2d, 3: functional.max_pool3d}[axes]
    for axis in range(axes):
        along = [int(axis == other) for other in range(axes)]
        logits = pool(logits, [1 + 2 * voxels * on for on in along], stride=1, padding=[voxels * on for on in along])
    return logits
