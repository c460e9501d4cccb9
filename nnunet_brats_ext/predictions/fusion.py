"""How several predictions become one: pure functions of arrays (z, y, x), in the numbering as trained."""

from collections.abc import Iterable, Iterator, Sequence
from math import isfinite
from typing import TypeVar

import numpy as np
import SimpleITK as sitk

from nnunet_brats_ext.brats import BACKGROUND, ED, LABEL_SCHEMES
from nnunet_brats_ext.papers import Source
from nnunet_brats_ext.storage.errors import UserError

TUMOUR_LABELS = LABEL_SCHEMES["glioma_2017"].paint  # ED, NCR, ET: from the outermost to the innermost, WT to ET

Member = TypeVar("Member")
LabelVote = np.ndarray | tuple[np.ndarray, np.ndarray | None]  # label map, and the probability of each label if known


def mean(members: Iterable[np.ndarray], weights: Sequence[float] | None = None) -> np.ndarray:
    """The weighted mean of probability arrays of one shape, as float32; no members are an error.

    weights: one per member, of any sum; None weighs all alike. Members are taken from the iterable one at a time and
    dropped, so that memory does not grow with their number.
    """
    total, sum_of_weights = None, 0.0
    for member, weight in _weighted(members, weights):
        scaled = np.multiply(member, weight, dtype=np.float32)
        total = scaled if total is None else np.add(total, scaled, out=total)
        sum_of_weights += weight
    if total is None:
        raise UserError("a mean needs at least one member")
    total /= np.float32(sum_of_weights)
    return total


class Votes:
    """The votes of several label maps, counted voxel by voxel, with one of the tie rules of Lyu and Shu 2020.

    Their release (https://github.com/shu-hai/two-stage-VAE-Attention-gate-BraTS2020) drops background from a tie with
    tumour labels. Between these the larger mean probability decides, each label's taken over those members that voted
    for it. Their text (https://arxiv.org/abs/2011.02881) takes the category of the largest mean probability over all
    members, background being one of them; a member without probabilities is certain of its labels. Where that is equal
    too, the innermost label wins, by either rule: nnU-Net paints it last, and BraTS lets ET overrule the rest. Equal
    votes are exact as long as weights are whole numbers.

    shape: of the volume (z, y, x). labels: the tumour labels from the outermost to the innermost, such as ED, NCR, ET.
    ties: whose rule, the release's or the text's. Memory does not grow with the number of members.
    """

    def __init__(self, shape: Sequence[int], labels: Sequence[int] = TUMOUR_LABELS, ties: Source = "release"):
        self.labels, self.by_text = tuple(labels), ties == "text"
        self._weight = 0.0  # of all members; background has the votes that no label has
        self._votes = np.zeros((len(labels), *shape), dtype=np.float32)
        self._support = np.zeros_like(self._votes)  # sums of probabilities
        self._doubt = np.zeros(shape, dtype=np.float32) if self.by_text else None  # the same of background

    def add(
        self,
        label_map: np.ndarray,
        probabilities: np.ndarray | None = None,
        weight: float = 1.0,
        box: tuple[slice, ...] = (),
    ) -> None:
        """Count one member. A label outside `labels` is an error.

        probabilities: of each of `labels`, (label, z, y, x), where they are known. box: the part of the volume that
        both are of, where the label map is background everywhere outside it. By the text's rule a member's doubts count
        there as well, so that it takes whole volumes only.
        """
        assert not (box and self.by_text), "the text's rule needs the probabilities of whole volumes"
        part, scale = (slice(None), *box), np.float32(weight)
        votes, support = self._votes[part], self._support[part]
        self._weight += weight
        background = label_map == BACKGROUND
        known = np.count_nonzero(background)
        for channel, label in enumerate(self.labels):
            voted = label_map == label
            known += np.count_nonzero(voted)
            votes[channel] += scale * voted  # a product takes a sixth of the time of an index
            if self.by_text:
                support[channel] += scale * (voted if probabilities is None else probabilities[channel])
            elif probabilities is not None:
                support[channel] += scale * probabilities[channel] * voted
        if self._doubt is not None:
            self._doubt += scale * (background if probabilities is None else 1 - probabilities.sum(0))
        if known < label_map.size:
            others = sorted(set(np.unique(label_map).tolist()) - {BACKGROUND, *self.labels})
            raise UserError(f"labels {others} are not among the expected {[BACKGROUND, *self.labels]}")

    def winners(self) -> np.ndarray:
        """The label map that the votes come to."""
        winners = np.zeros(self._votes.shape[1:], dtype=np.uint8)
        voted = self._votes.any(0)
        of_labels = self._votes[:, voted]
        of_background = np.zeros_like(of_labels[0]) if self._doubt is None else self._doubt[voted]
        votes = np.stack([np.float32(self._weight) - of_labels.sum(0), *of_labels])
        support = np.stack([of_background, *self._support[:, voted]])
        leading = votes == votes.max(0)
        if not self.by_text:
            leading[0] &= ~leading[1:].any(0)
            np.divide(support, votes, out=support, where=leading)  # a leading label has votes
        support[~leading] = -1
        innermost_first = np.asarray((BACKGROUND, *self.labels)[::-1], dtype=np.uint8)
        winners[voted] = innermost_first[support[::-1].argmax(0)]
        return winners


def majority(
    members: Iterable[LabelVote],
    labels: Sequence[int] = TUMOUR_LABELS,
    weights: Sequence[float] | None = None,
    ties: Source = "release",
) -> np.ndarray:
    """The most frequent label of each voxel, where ties are settled as in `Votes`; no members are an error.

    members: label maps, or pairs of a label map and the probability of each of `labels`, (label, z, y, x).
    """
    votes = None
    for member, weight in _weighted(members, weights):
        label_map, probabilities = member if isinstance(member, tuple) else (member, None)
        votes = Votes(label_map.shape, labels, ties) if votes is None else votes
        votes.add(label_map, probabilities, weight)
    if votes is None:
        raise UserError("a vote needs at least one member")
    return votes.winners()


UNDECIDED = ("vote", "background")


def staple(
    members: Sequence[np.ndarray], labels: Sequence[int] = TUMOUR_LABELS, undecided: str = UNDECIDED[0]
) -> np.ndarray:
    """Label maps weighed by how well each agrees with the estimated truth: multi-label STAPLE, as SimpleITK has it.

    Rohlfing, Russakoff and Maurer 2004, https://doi.org/10.1109/TMI.2004.830803. Where several labels are as likely,
    SimpleITK leaves a voxel undecided, as it does with many of those where two members disagree. Such voxels become
    what `majority` makes of the members ("vote": a tumour label before background, the innermost first) or background.

    labels: the tumour labels from the outermost to the innermost. A label outside them is an error. Two members or more
    are needed. The whole volume counts: the labels' frequencies in it are the prior.
    """
    if len(members) < 2:
        raise UserError("STAPLE needs two members or more")
    mark = max(set(range(256)) - {BACKGROUND, *labels})  # of undecided voxels
    images = [sitk.GetImageFromArray(one.astype(np.uint8, copy=False)) for one in members]
    fused = sitk.GetArrayFromImage(sitk.MultiLabelSTAPLE(images, mark))
    open_voxels = fused == mark
    voted = majority(members, labels)  # which refuses other labels
    fused[open_voxels] = voted[open_voxels] if undecided == "vote" else BACKGROUND
    return fused


def two_pass(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The first label map decides ET and NCR, the second oedema against background: Henry et al. 2020.

    https://arxiv.org/abs/2011.01045. A voxel changes only where both maps hold background or oedema, so ET and TC of
    the result are those of the first map exactly.
    """
    outer = (BACKGROUND, ED)
    return np.where(np.isin(first, outer) & np.isin(second, outer), second, first)


def nested(regions: np.ndarray) -> np.ndarray:
    """Confine each of the regions WT, TC, ET, (3, z, y, x), to the one before it: strict nesting.

    Hashemi et al., "A Memory-efficient Deep Framework for Multi-Modal MRI-based Brain Tumor Segmentation", train one
    binary network per region and leave their fusion open. Masks are intersected; probabilities take the minimum,
    which is the same at any threshold.
    """
    return np.minimum.accumulate(regions, axis=0)


def paint_masks(regions: np.ndarray) -> np.ndarray:
    """The label map of nested masks WT, TC, ET, (3, z, y, x)."""
    labels = np.zeros(regions.shape[1:], dtype=np.uint8)
    for mask, label in zip(regions, TUMOUR_LABELS, strict=True):
        labels[mask] = label
    return labels


def check_weights(weights: Sequence[float]) -> None:
    """An error where weights are infinite, not a number, below zero, or all zero."""
    if not all(isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights) > 0:
        raise UserError(f"weights {list(weights)}: give finite numbers from 0 on, one of them above 0")


def _weighted(members: Iterable[Member], weights: Sequence[float] | None) -> Iterator[tuple[Member, float]]:
    if weights is None:
        return ((member, 1.0) for member in members)
    check_weights(weights)
    return zip(members, weights, strict=True)
