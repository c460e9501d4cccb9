"""Soft Dice of labels that exclude each other, for networks with a softmax over labels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_brats_ext.losses.dice import SoftDiceLoss
from nnunet_brats_ext.losses.precision import wide
from nnunet_brats_ext.storage.errors import UserError


def labels_of_regions(regions: Sequence[int | Sequence[int]]) -> Tensor:
    """Which labels each region holds: a matrix (region, label) of bool, the labels in the order of their numbers.

    Labels that are in the same regions count as one, such as NCR and NET of BraTS 2013. Regions from which not every
    label can be computed are an error.
    """
    sets = [{region} if isinstance(region, int) else set(region) for region in regions]
    columns = [tuple(label in labels for labels in sets) for label in sorted(set().union(*sets))]
    held = torch.tensor(list(dict.fromkeys(columns))).T
    if held.shape[0] != held.shape[1] or torch.linalg.matrix_rank(held.double()) < len(held):
        raise UserError(
            f"the regions {list(regions)} do not determine their labels, which a softmax over labels needs: define "
            "as many independent regions as there are labels, such as [(1, 2, 3), (2, 3), 3], in dataset.json, or use "
            "another trainer"
        )
    return held


class LabelDiceLoss(nn.Module):
    """Soft Dice of the labels at every scale of a cascade: Lachinov et al. 2019, https://arxiv.org/abs/2002.03688.

    Label logits (b, 1 + l, *s) of each scale, the background and the finest scale first, and target regions (b, r, *s)
    at full size -> scalar, fp32 or wider. Region logits (b, r, *s), a single tensor, are scored at full size.
    With y the labels, averaged down to the scale, and sums over space, per case and label without the background:
    dice = (2 sum(p y) + 1) / (sum(p^2) + sum(y) + 1).

    regions: as `labels_of_regions` gives them. scale_weights: of the losses, the finest first.
    """

    regions_to_labels: Tensor

    def __init__(self, regions: Tensor, scale_weights: Sequence[float] = (0.4, 0.3, 0.2)):
        super().__init__()
        self.register_buffer("regions_to_labels", torch.linalg.inv(regions.double()).round())
        self.scale_weights = tuple(scale_weights)
        self.dice = SoftDiceLoss(1.0, 1.0, squared_target=False)

    def forward(self, logits: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        with torch.autocast(target.device.type, enabled=False):
            if isinstance(logits, Tensor):
                probabilities = [self.labels(wide(logits).sigmoid())]
            else:
                probabilities = [wide(scale).softmax(1)[:, 1:] for scale in logits]
            reference = self.labels(target.to(probabilities[0].dtype))
            losses = [
                weight * (1 - self.dice.dice(p, functional.interpolate(reference, size=p.shape[2:], mode="area")))
                for weight, p in zip(self.scale_weights, probabilities, strict=False)
            ]
            return torch.stack(losses).sum()

    def labels(self, regions: Tensor) -> Tensor:
        """Labels, or their probabilities, from those of the regions: (b, r, *s) -> (b, l, *s)."""
        return torch.einsum("lr,br...->bl...", self.regions_to_labels.to(regions), regions)
