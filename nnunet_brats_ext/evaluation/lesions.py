"""Lesion-wise scores: a region is cut into lesions, these are matched, and each is scored on its own.

There are two ways: lesions joined by dilation (BraTS 2023 and 2024), and one-to-one matching of components (2026).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.ndimage import find_objects, label
from scipy.optimize import linear_sum_assignment

from nnunet_brats_ext.evaluation.boxes import Box, cut_box, join_boxes, share_boxes
from nnunet_brats_ext.evaluation.presets import DilationRule, MatchingRule

MetricValues = Mapping[str, float]  # metric -> value
_TOUCHING_EVERYWHERE = np.ones((3, 3, 3), bool)  # 26 neighbours


@dataclass(frozen=True)
class Lesions:
    """The lesions of one mask, numbered from 1 (not always without gaps); arrays cover `box` of the volume.

    reach: the lesions' dilations under the same numbers.
    """

    box: Box
    numbers: np.ndarray
    reach: np.ndarray


class LesionScoring(NamedTuple):
    """How lesions of a case are scored.

    pair: the scores of a reference lesion and its prediction, two masks. agreed: those where there is nothing to score.
    missed: those of a false negative or positive.
    """

    pair: Callable[[np.ndarray, np.ndarray], MetricValues]
    agreed: MetricValues
    missed: MetricValues
    voxel_mm3: float


def find_components(mask: np.ndarray) -> np.ndarray:
    """Number the 26-connected components of a boolean mask from 1."""
    return label(mask, _TOUCHING_EVERYWHERE)[0]


def find_lesions(mask: np.ndarray, box: Box, dilation: int) -> Lesions:
    """Cut a boolean mask (z, y, x) into lesions: voxels whose `dilation`-fold dilations are 26-connected.

    As dilations of different lesions are then never connected, the components of the dilated mask are the dilations
    of the lesions, and one labelling serves both. `box` must leave room for the dilation within the volume.
    """
    reach = find_components(dilate_mask(mask, dilation))
    return Lesions(box, np.where(mask, reach, 0), reach)


def drop_small(lesions: Lesions, max_voxels: float) -> Lesions:
    """The lesions of more than `max_voxels` voxels."""
    large = _sizes(lesions.numbers) > max_voxels
    if large[1:].all():
        return lesions
    return replace(lesions, numbers=np.where(large[lesions.numbers], lesions.numbers, 0))


def join_touching(lesions: Lesions, others: Lesions) -> Lesions:
    """Join the lesions whose first touching lesion among `others` is the same one, as the script of BraTS 2024 does.

    The first is the one whose dilation comes first in (x, y, z) order. Lesions that share a later one stay separate.
    """
    if lesions.numbers.max(initial=0) < 2:
        return lesions
    first: dict[int, int] = {}
    touching = _touching_pairs(lesions, others)
    order = {other: int(np.argmax((others.reach == other).T)) for other in {other for _, other in touching}}
    for own, other in sorted(touching, key=lambda pair: order[pair[1]]):
        first.setdefault(own, other)
    leaders: dict[int, int] = {}
    joined = np.arange(lesions.reach.max() + 1, dtype=np.int32)
    for own, other in first.items():
        joined[own] = leaders.setdefault(other, own)
    if len(leaders) == len(first):  # no two have their first neighbour in common
        return lesions
    return replace(lesions, numbers=joined[lesions.numbers], reach=joined[lesions.reach])


def score_by_dilation(
    reference: Lesions, prediction: np.ndarray, rule: DilationRule, scoring: LesionScoring
) -> dict[str, float]:
    """Mean scores over reference lesions and false positives, and their counts n_tp, n_fp, n_fn.

    prediction: component numbers on the box of `reference`. Lesions too small to count still claim the components that
    touch them.
    """
    sizes = _sizes(reference.numbers)
    claims = _overlaps(reference.reach, prediction)
    pair_masks = _PairMasks(reference.numbers, prediction)
    scores, n_tp = [], 0
    for lesion in np.flatnonzero(sizes[1:] * scoring.voxel_mm3 > rule.min_volume) + 1:
        components = claims.get(int(lesion), {})
        n_tp += bool(components)
        scores.append(scoring.pair(*pair_masks(int(lesion), list(components))) if components else scoring.missed)
    n_fn = len(scores) - n_tp
    claimed = set().union(*claims.values())
    n_fp = len(set(np.flatnonzero(_sizes(prediction)).tolist()) - claimed)
    if rule.false_positives_count:
        scores += [scoring.missed] * n_fp
    return {**(_mean(scores) if scores else scoring.agreed), "n_tp": n_tp, "n_fp": n_fp, "n_fn": n_fn}


def score_by_matching(
    reference: np.ndarray, prediction: np.ndarray, rule: MatchingRule, scoring: LesionScoring
) -> dict[str, float]:
    """Mean scores over one-to-one matched components of two boolean masks, and the counts n_tp, n_fp, n_fn of all."""
    reference, prediction = find_components(reference), find_components(prediction)
    sizes, predicted_sizes = _sizes(reference)[1:], _sizes(prediction)[1:]
    dice = np.full((len(sizes), len(predicted_sizes)), -1e-6)  # panoptica's price of a pair that shares nothing
    for lesion, components in _overlaps(reference, prediction).items():
        for component, shared in components.items():
            dice[lesion - 1, component - 1] = 2 * shared / (sizes[lesion - 1] + predicted_sizes[component - 1])
    matched = [(i, j) for i, j in zip(*linear_sum_assignment(dice, maximize=True), strict=True) if dice[i, j] > 0]
    n_tp, n_fp, n_fn = len(matched), len(predicted_sizes) - len(matched), len(sizes) - len(matched)
    pair_masks = _PairMasks(reference, prediction)
    counts = sizes * scoring.voxel_mm3 >= rule.min_volume
    scores = [scoring.pair(*pair_masks(i + 1, [j + 1])) for i, j in matched if counts[i]]
    if rule.unmatched_count:
        scores += [scoring.missed] * (int(counts.sum()) - len(scores) + n_fp)
    nothing = not counts.any() if rule.min_volume else not n_tp + n_fp + n_fn
    means = scoring.agreed if nothing else _mean(scores) if scores else scoring.missed
    return {**means, "n_tp": n_tp, "n_fp": n_fp, "n_fn": n_fn}


def dilate_mask(mask: np.ndarray, iterations: int) -> np.ndarray:
    """Dilate a boolean mask (z, y, x) by the 18 neighbours in faces and edges, again and again, within the array."""
    bits = np.packbits(mask, axis=-1, bitorder="little")  # an eighth of the memory to pass over
    for _ in range(iterations):
        along_z, along_y = _widen(bits, 0), _widen(bits, 1)
        bits = _widen(along_z, 1) | _widen_bits(along_z) | _widen_bits(along_y)
    return np.unpackbits(bits, axis=-1, count=mask.shape[-1], bitorder="little").view(bool)


def _widen(bits: np.ndarray, axis: int) -> np.ndarray:
    wide = bits.copy()
    ahead, behind = wide.swapaxes(0, axis), bits.swapaxes(0, axis)
    ahead[1:] |= behind[:-1]
    ahead[:-1] |= behind[1:]
    return wide


def _widen_bits(bits: np.ndarray) -> np.ndarray:
    """Widen along the packed axis; each byte gets a bit from its neighbours."""
    wide = bits | bits << 1 | bits >> 1
    wide[..., 1:] |= bits[..., :-1] >> 7
    wide[..., :-1] |= bits[..., 1:] << 7
    return wide


def _sizes(numbers: np.ndarray) -> np.ndarray:
    """Voxels of each number; of 0, which is none, none."""
    return np.bincount(numbers[numbers > 0])


def _overlaps(first: np.ndarray, second: np.ndarray) -> dict[int, dict[int, int]]:
    """Number in `first` -> number in `second` -> places where they coincide; 0 is no number."""
    both = np.flatnonzero((first != 0) & (second != 0))
    base = int(second.max(initial=0)) + 1
    pairs, counts = np.unique(first.ravel()[both].astype(np.int64) * base + second.ravel()[both], return_counts=True)
    overlaps: dict[int, dict[int, int]] = {}
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        overlaps.setdefault(pair // base, {})[pair % base] = count
    return overlaps


def _touching_pairs(lesions: Lesions, others: Lesions) -> set[tuple[int, int]]:
    """Pairs of a lesion and one of `others` that overlap or meet in a face or an edge."""
    box = share_boxes(lesions.box, others.box)  # both have room for a dilation, so that all that touches is in it
    own, other = (cut_box(found.numbers, found.box, box) for found in (lesions, others))
    voxels = np.argwhere((own != 0) & dilate_mask(other != 0, 1)) + 1
    around = np.pad(other, 1)
    return {
        (one, two)
        for step in product((-1, 0, 1), repeat=3)
        if np.abs(step).sum() < 3
        for one, found in _overlaps(own[tuple((voxels - 1).T)], around[tuple((voxels + step).T)]).items()
        for two in found
    }


class _PairMasks:
    """Cuts a lesion and its predicted components out of two numbered arrays, on the smallest box that holds them."""

    def __init__(self, reference: np.ndarray, prediction: np.ndarray):
        self.reference, self.prediction = reference, prediction
        boxes = [find_objects(numbers) if numbers.size else [] for numbers in (reference, prediction)]
        self.reference_boxes, self.prediction_boxes = boxes

    def __call__(self, lesion: int, components: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        boxes = [self.reference_boxes[lesion - 1], *(self.prediction_boxes[component - 1] for component in components)]
        box = join_boxes(boxes)
        return self.reference[box] == lesion, np.isin(self.prediction[box], components)


def _mean(scores: Sequence[MetricValues]) -> dict[str, float]:
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
