"""Lesion-wise scores: a region is cut into lesions, these are matched, and each is scored on its own.

There are two ways: lesions joined by dilation (BraTS 2023 and 2024), and one-to-one matching of components (2025 and
2026). Both give every lesion with its scores; the lesion-wise scores of the case are means of these.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import nan
from typing import Literal, NamedTuple

import cc3d
import numpy as np

from nnunet_brats_ext.evaluation.boxes import Box, cut_box, share_boxes
from nnunet_brats_ext.evaluation.presets import DilationRule, MatchingRule

MetricValues = Mapping[str, float]  # metric -> value
Outcome = Literal["found", "missed", "only predicted"]
Size = Literal["large", "small"]


@dataclass(frozen=True)
class Lesions:
    """The lesions of one mask, numbered from 1 (not always without gaps); arrays cover `box` of the volume.

    reach: the lesions' dilations under the same numbers.
    """

    box: Box
    numbers: np.ndarray
    reach: np.ndarray


class Numbered:
    """An array of lesion numbers, looked through once. present: the numbers, without 0. voxels: how many by number."""

    def __init__(self, numbers: np.ndarray):
        self.numbers = numbers
        self._flat = np.flatnonzero(numbers != 0)
        self._numbers = numbers.ravel()[self._flat]
        self.voxels = np.bincount(self._numbers, minlength=1)
        self.present = np.flatnonzero(self.voxels)

    @cached_property
    def centroids(self) -> np.ndarray:
        """The mean voxel of each that is present, in the order of the axes -> (lesion, axis)."""
        places = np.unravel_index(self._flat, self.numbers.shape)
        sums = np.stack([np.bincount(self._numbers, axis, minlength=1) for axis in places], axis=1)
        return sums[self.present] / self.voxels[self.present, None]


class LesionScoring(NamedTuple):
    """How lesions of a case are scored.

    measure: the measures of the surfaces of a reference lesion and its prediction, by their numbers. agreed: the scores
    where there is nothing to score. missed: those of a false negative or positive.
    """

    measure: Callable[[int, Sequence[int]], MetricValues]
    agreed: MetricValues
    missed: MetricValues
    voxel_mm3: float


def find_components(mask: np.ndarray) -> np.ndarray:
    """Number the 26-connected components of a boolean mask from 1, in unsigned integers."""
    return cc3d.connected_components(mask, connectivity=26)


def find_lesions(mask: np.ndarray, box: Box, dilation: int) -> Lesions:
    """Cut a boolean mask (z, y, x) into lesions: voxels whose `dilation`-fold dilations are 26-connected.

    As dilations of different lesions are then never connected, the components of the dilated mask are the dilations
    of the lesions, and one labelling serves both. `box` must leave room for the dilation within the volume.
    """
    reach = find_components(dilate_mask(mask, dilation))
    return Lesions(box, np.where(mask, reach, 0), reach)


def drop_small(lesions: Lesions, max_voxels: float) -> Lesions:
    """The lesions of more than `max_voxels` voxels."""
    places = np.flatnonzero(lesions.numbers != 0)
    found = lesions.numbers.ravel()[places]
    small = np.bincount(found, minlength=1) <= max_voxels
    numbers = lesions.numbers.copy()
    numbers.ravel()[places[small[found]]] = 0
    return replace(lesions, numbers=numbers)


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


@dataclass(frozen=True)
class ScoredLesion:
    """A lesion of the reference with what was predicted of it, or one that is only predicted.

    reference: its number in the reference, None where it is only predicted. predicted: numbers in the prediction.
    size: of the reference lesion, by the volume from which lesions count; None where the rule has no such volume.
    counts: whether it enters the means. scores: Dice and distances; those of a miss where nothing was found.
    """

    reference: int | None
    predicted: tuple[int, ...]
    outcome: Outcome
    size: Size | None
    counts: bool
    scores: MetricValues


@dataclass(frozen=True)
class ScoredLesions:
    """The lesions of one region, and what follows from them.

    means: metric -> mean over the lesions that count, or what stands for it where none does. detection: how many
    lesions were found. reference, prediction: the lesions' numbers.
    """

    lesions: Sequence[ScoredLesion]
    means: MetricValues
    detection: MetricValues
    reference: Numbered
    prediction: Numbered


def score_by_dilation(
    reference: Lesions, prediction: np.ndarray, rule: DilationRule, scoring: LesionScoring
) -> ScoredLesions:
    """Score reference lesions against what touches their dilation, and count those that are only predicted.

    prediction: component numbers on the box of `reference`. Lesions too small to count still claim the components that
    touch them.
    """
    numbered, components_of = Numbered(reference.numbers), Numbered(prediction)
    claims, overlaps = _overlaps(reference.reach, prediction), _overlaps(reference.numbers, prediction)
    lesions = []
    for lesion in numbered.present.tolist():
        counts = bool(numbered.voxels[lesion] * scoring.voxel_mm3 > rule.min_volume)
        size: Size = "large" if counts else "small"
        if components := tuple(sorted(claims.get(lesion, ()))):
            shared = sum(overlaps.get(lesion, {}).get(component, 0) for component in components)
            voxels = int(numbered.voxels[lesion] + components_of.voxels[list(components)].sum())
            scores = {"dice": 2 * shared / voxels, **scoring.measure(lesion, components)}
            lesions.append(ScoredLesion(lesion, components, "found", size, counts, scores))
        else:
            lesions.append(ScoredLesion(lesion, (), "missed", size, counts, scoring.missed))
    claimed = set().union(*claims.values())
    alone = [one for one in components_of.present.tolist() if one not in claimed]
    lesions += _only_predicted(alone, rule.false_positives_count, scoring)
    found = sum(one.counts and one.outcome == "found" for one in lesions)
    missed = sum(one.counts and one.outcome == "missed" for one in lesions)
    means = _mean(lesions) or scoring.agreed
    return ScoredLesions(lesions, means, detection(found, len(alone), missed), numbered, components_of)


def score_by_matching(
    reference: np.ndarray, prediction: np.ndarray, rule: MatchingRule, scoring: LesionScoring
) -> ScoredLesions:
    """Score one-to-one matched components, and count those that have no match.

    reference, prediction: component numbers without gaps.
    """
    from scipy.optimize import linear_sum_assignment  # which takes a fifth of a second

    numbered, components_of = Numbered(reference), Numbered(prediction)
    sizes, predicted_sizes = numbered.voxels[1:], components_of.voxels[1:]
    dice = np.full((len(sizes), len(predicted_sizes)), -1e-6)  # panoptica's price of a pair that shares nothing
    for lesion, components in _overlaps(numbered.numbers, components_of.numbers).items():
        for component, shared in components.items():
            dice[lesion - 1, component - 1] = 2 * shared / (sizes[lesion - 1] + predicted_sizes[component - 1])
    matched = {i: j for i, j in zip(*linear_sum_assignment(dice, maximize=True), strict=True) if dice[i, j] > 0}
    large = sizes * scoring.voxel_mm3 >= rule.min_volume
    lesions = []
    for i, is_large in enumerate(large.tolist()):
        size: Size | None = None if not rule.min_volume else "large" if is_large else "small"
        if i in matched:
            component = int(matched[i]) + 1
            scores = {"dice": float(dice[i, matched[i]]), **scoring.measure(i + 1, (component,))}
            lesions.append(ScoredLesion(i + 1, (component,), "found", size, is_large, scores))
        else:
            counts = rule.unmatched_count and is_large
            lesions.append(ScoredLesion(i + 1, (), "missed", size, counts, scoring.missed))
    alone = [component + 1 for component in range(len(predicted_sizes)) if component not in matched.values()]
    lesions += _only_predicted(alone, rule.unmatched_count and bool(large.any()), scoring)
    n_tp, n_fp, n_fn = len(matched), len(alone), len(sizes) - len(matched)
    nothing = not large.any() if rule.min_volume else not n_tp + n_fp + n_fn
    means = scoring.agreed if nothing else _mean(lesions) or scoring.missed
    found = {**detection(n_tp, n_fp, n_fn), **(_detection_by_size(lesions, rule) if rule.min_volume else {})}
    return ScoredLesions(lesions, means, found, numbered, components_of)


def _only_predicted(components: Sequence[int], counts: bool, scoring: LesionScoring) -> list[ScoredLesion]:
    return [ScoredLesion(None, (one,), "only predicted", None, counts, scoring.missed) for one in components]


def detection(n_tp: int, n_fp: int, n_fn: int) -> dict[str, float]:
    """Counts of lesions found, only predicted and missed; precision, recall and F1, NaN where nothing is counted."""
    return {
        "n_tp": n_tp,
        "n_fp": n_fp,
        "n_fn": n_fn,
        "lesion_precision": n_tp / (n_tp + n_fp) if n_tp + n_fp else nan,
        "lesion_recall": n_tp / (n_tp + n_fn) if n_tp + n_fn else nan,
        "lesion_f1": 2 * n_tp / (2 * n_tp + n_fp + n_fn) if n_tp + n_fp + n_fn else nan,
    }


def _detection_by_size(lesions: Sequence[ScoredLesion], rule: MatchingRule) -> dict[str, float]:
    """As the parser of BraTS 2026 has it: what is only predicted counts against large and against small lesions.

    NaN for a size that the reference does not have; otherwise a share of nothing is 0.
    """
    n_fp = sum(one.outcome == "only predicted" for one in lesions)
    found: dict[str, float] = {}
    for size in ("large", "small"):
        of_size = [one for one in lesions if one.size == size]
        n_tp = sum(one.outcome == "found" and one.scores["dice"] >= rule.found_from for one in of_size)
        for name, value in detection(n_tp, n_fp, len(of_size) - n_tp).items():
            value = nan if not of_size else 0 if value != value else value
            found[f"{size}_{name.removeprefix('lesion_')}"] = value
    return found


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


def _overlaps(first: np.ndarray, second: np.ndarray) -> dict[int, dict[int, int]]:
    """Number in `first` -> number in `second` -> places where they coincide; 0 is no number."""
    both = np.flatnonzero((first != 0) & (second != 0))
    base = int(second.max(initial=0)) + 1
    places = first.ravel()[both].astype(np.int64) * base + second.ravel()[both]
    runs = np.flatnonzero(np.diff(places, prepend=-1))  # neighbours in a row mostly are the same pair: less to sort
    pairs, pair = np.unique(places[runs], return_inverse=True)
    counts = np.bincount(pair, np.diff(runs, append=len(places))).astype(int)
    overlaps: dict[int, dict[int, int]] = {}
    for one, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        overlaps.setdefault(one // base, {})[one % base] = count
    return overlaps


def _touching_pairs(lesions: Lesions, others: Lesions) -> set[tuple[int, int]]:
    """Pairs of a lesion and one of `others` that overlap or meet in a face or an edge."""
    box = share_boxes(lesions.box, others.box)  # both have room for a dilation, so that all that touches is in it
    own, other = (cut_box(found.numbers, found.box, box) for found in (lesions, others))
    voxels = np.argwhere((own != 0) & dilate_mask(other != 0, 1)) + 1
    around = np.pad(other, 1)
    steps = [step for step in product((-1, 0, 1), repeat=3) if np.abs(step).sum() < 3]
    near = np.stack([around[tuple((voxels + step).T)] for step in steps])
    numbers = np.broadcast_to(own[tuple((voxels - 1).T)], near.shape)
    return {(one, two) for one, found in _overlaps(numbers, near).items() for two in found}


def _mean(lesions: Sequence[ScoredLesion]) -> dict[str, float]:
    """The means over the lesions that count; nothing where none does."""
    scores = [lesion.scores for lesion in lesions if lesion.counts]
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]} if scores else {}
