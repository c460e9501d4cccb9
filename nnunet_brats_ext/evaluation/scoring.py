"""From two label maps to the scores of one case: cut out each region, score it as a whole and by its lesions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf, prod, sqrt
from typing import NamedTuple

import numpy as np

from nnunet_brats_ext.brats import ED, LABEL_SCHEMES
from nnunet_brats_ext.evaluation.boxes import Box, find_box, grow_box, join_boxes
from nnunet_brats_ext.evaluation.lesions import (
    Lesions,
    LesionScoring,
    MetricValues,
    drop_small,
    find_components,
    find_lesions,
    join_touching,
    score_by_dilation,
    score_by_matching,
)
from nnunet_brats_ext.evaluation.metric_facts import COUNTS
from nnunet_brats_ext.evaluation.metrics import Overlap, check_masks
from nnunet_brats_ext.evaluation.numbering import TRAINED, Numberings, renumber
from nnunet_brats_ext.evaluation.presets import PRESETS, DilationRule, MatchingRule, Measure, Preset, find_preset
from nnunet_brats_ext.storage.errors import UserError


class RegionMasks(NamedTuple):
    """The boolean masks of one region on one box of the volume."""

    box: Box
    reference: np.ndarray
    prediction: np.ndarray


class CaseContext(NamedTuple):
    """What the regions of a case share: the preset, its voxels, and its scores where a mask is empty."""

    preset: Preset
    voxels: int
    spacing_mm: tuple[float, ...]
    agreed: MetricValues  # of a region empty in both
    missed: MetricValues  # of a region empty in one


def evaluate_case(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    preset: str | Preset = "brats2020",
    cohort: str = "gli",
    labels: str | Sequence[str] = TRAINED,
) -> dict[str, dict[str, float]]:
    """Score a prediction as a BraTS challenge does -> {region: {metric: value}}; NaN where the challenge has no score.

    reference, prediction: label maps (z, y, x) of integers. spacing_mm: in the same order.
    preset: the name of a challenge year, with a cohort, or a `Preset` of your own. It decides which metrics there are:
        those of whole regions first, then `lesionwise_*` and the counts.
    labels: the numbering of both, or of the reference and of the prediction: "trained", "released" (as the preset's
        challenge did) or a name in `LABEL_SCHEMES`.
    """
    rules = find_preset(preset, cohort)
    if reference.shape != prediction.shape:
        raise UserError(f"the reference has shape {reference.shape}, but the prediction {prediction.shape}")
    for one in (reference, prediction):
        if one.dtype.kind not in "iub":
            raise UserError(f"labels must be integers, not {one.dtype}")
    numberings = Numberings.parse(labels)
    if set(numberings) != {TRAINED}:
        mappings = numberings.to_trained(rules)
        reference, prediction = map(renumber, (reference, prediction), mappings)
    case = _describe_case(reference.shape, spacing_mm, rules)
    regions = _cut_regions(reference, prediction, rules)
    lesions = {
        name: _find_lesions(regions[name], rule, case)
        for name, rule in rules.lesions.items()
        if isinstance(rule, DilationRule)
    }
    return {name: _score_region(regions[name], name, lesions, case) for name in rules.regions}


def lesionwise(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float],
    preset: str | Preset = "brats2023",
    cohort: str = "gli",
    region: str = "WT",
) -> dict[str, float]:
    """Lesion-wise scores of two masks: without any lesion those of an agreement, 1 for Dice (NaN in BraTS 2026).

    -> {"dice", "hd95", "nsd", ..., "n_tp", "n_fp", "n_fn"}: means over lesions, and counts of lesions.

    reference, prediction: boolean masks (z, y, x) of one shape. spacing_mm: in the same order.
    preset, cohort, region: whose rule cuts the masks into lesions and matches them. What other regions contribute to
        it in 2024, whose lesions join those of this region, is left out.

    The rules are those of BraTS 2023 and 2024 (https://github.com/rachitsaluja/BraTS-2023-Metrics) and of panoptica,
    Kofler et al. 2023, https://arxiv.org/abs/2312.02608, for BraTS 2026.
    """
    rules = find_preset(preset, cohort)
    if region not in rules.lesions:
        having = [f"{year} {name}" for year, cohorts in PRESETS.items() for name, one in cohorts.items() if one.lesions]
        raise UserError(
            f"{rules.name} {rules.cohort} has no lesions of {region!r}; presets with lesions: {', '.join(having)}"
        )
    masks = check_masks("lesionwise", reference, prediction)
    rule = rules.lesions[region]
    if isinstance(rule, DilationRule):
        rule = replace(rule, joined_by=())
    alone = replace(rules, regions={region: (ED,)}, lesions={region: rule}, unscored={})
    labels = [np.where(mask, np.uint8(ED), np.uint8(0)) for mask in masks]
    scores = evaluate_case(labels[0], labels[1], spacing_mm, alone)[region]
    return {
        name.removeprefix("lesionwise_"): score
        for name, score in scores.items()
        if name in COUNTS or name.startswith("lesionwise_")
    }


def _describe_case(shape: tuple[int, ...], spacing_mm: Sequence[float], preset: Preset) -> CaseContext:
    voxels = prod(shape)
    penalty = sqrt(sum(size**2 for size in shape)) if preset.penalty_mm is None else preset.penalty_mm
    agreed = {"dice": preset.overlaps["dice"](Overlap(tp=0, fp=0, fn=0, tn=voxels))}
    missed = {"dice": 0.0}
    for name, measure in preset.measures.items():
        agreed[name] = measure.agreed
        missed[name] = penalty if measure.missed == inf else measure.missed
    return CaseContext(preset, voxels, tuple(map(float, spacing_mm)), agreed, missed)


def _cut_regions(reference: np.ndarray, prediction: np.ndarray, preset: Preset) -> dict[str, RegionMasks]:
    """The masks of all regions, each on its own box with room for its dilation as far as the volume goes."""
    margins = {name: rule.dilation for name, rule in preset.lesions.items() if isinstance(rule, DilationRule)}
    tumour = join_boxes([find_box(reference), find_box(prediction)])
    tumour = grow_box(tumour, max(margins.values(), default=0), reference.shape)
    labels = [_check_labels(labels[tumour], preset) for labels in (reference, prediction)]
    regions = {}
    for name, values in {**preset.regions, **preset.unscored}.items():
        masks = [np.logical_or.reduce([part == value for value in values]) for part in labels]
        box = grow_box(find_box(masks[0] | masks[1]), margins.get(name, 0), masks[0].shape)
        regions[name] = RegionMasks(box, masks[0][box], masks[1][box])
    return regions


def _check_labels(labels: np.ndarray, preset: Preset) -> np.ndarray:
    """The labels, if the cohort has them."""
    known = (0, *LABEL_SCHEMES[preset.scheme].names)
    if labels.size and (labels.min() < 0 or labels.max() > max(known)):
        unknown = sorted(set(np.unique(labels).tolist()) - set(known))
        raise UserError(f"labels {unknown} are not among {sorted(known)}, the labels as trained")
    return labels


def _find_lesions(region: RegionMasks, rule: DilationRule, case: CaseContext) -> tuple[Lesions, Lesions]:
    """The lesions of a region's reference and prediction, before those of other regions join any."""
    reference = find_lesions(region.reference, region.box, rule.dilation)
    if rule.filter_prediction is None:
        components = find_components(region.prediction)
        return reference, Lesions(region.box, components, components)
    voxel = np.prod(case.spacing_mm) if rule.filter_prediction == "mm3" else 1
    prediction = find_lesions(region.prediction, region.box, rule.dilation)
    return reference, drop_small(prediction, rule.min_volume / voxel)


def _score_region(
    region: RegionMasks, name: str, lesions: Mapping[str, tuple[Lesions, Lesions]], case: CaseContext
) -> dict[str, float]:
    """All metrics of one region; whole regions are scored without the predicted lesions that a rule removes."""
    rule = case.preset.lesions.get(name)
    if isinstance(rule, DilationRule) and rule.filter_prediction:
        region = region._replace(prediction=lesions[name][1].numbers > 0)
    whole = _score_whole(region, case)
    if rule is None:
        return whole
    if isinstance(rule, MatchingRule):
        # panoptica 2.1.7 reads arrays as (z, y, x) and their spacing as (x, y, z), and does not turn it round
        pair = partial(_score_pair, spacing_mm=case.spacing_mm[::-1], measures=rule.measures)
        scores = score_by_matching(region.reference, region.prediction, rule, _lesion_scoring(pair, case))
    else:
        pair = partial(_score_part, region=region, whole=whole, case=case)
        reference, prediction = lesions[name]
        for other in rule.joined_by:
            reference, prediction = map(join_touching, (reference, prediction), lesions[other])
        scores = score_by_dilation(reference, prediction.numbers, rule, _lesion_scoring(pair, case))
    return {**whole, **{name if name in COUNTS else f"lesionwise_{name}": score for name, score in scores.items()}}


def _lesion_scoring(pair: Callable[[np.ndarray, np.ndarray], MetricValues], case: CaseContext) -> LesionScoring:
    return LesionScoring(pair, case.agreed, case.missed, voxel_mm3=prod(case.spacing_mm))


def _score_whole(region: RegionMasks, case: CaseContext) -> dict[str, float]:
    preset = case.preset
    overlap = Overlap.of(region.reference, region.prediction, case.voxels)
    scores = {name: count(overlap) for name, count in preset.overlaps.items()}
    if overlap.empty == "both":
        return {**scores, **case.agreed}
    if overlap.empty or (preset.disjoint_is_missed and not overlap.tp):
        return {**scores, **case.missed}
    box = find_box(region.reference | region.prediction)
    spacing_mm = (1.0,) * len(box) if preset.whole_in_voxels else case.spacing_mm
    return {**scores, **_measure(region.reference[box], region.prediction[box], spacing_mm, preset.measures)}


def _score_pair(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float], measures: Mapping[str, Measure]
) -> MetricValues:
    """Dice and all measures of a lesion and its prediction."""
    overlap = Overlap.of(reference, prediction, reference.size)
    return {"dice": overlap.dice(), **_measure(reference, prediction, spacing_mm, measures)}


def _score_part(
    lesion: np.ndarray, prediction: np.ndarray, region: RegionMasks, whole: Mapping[str, float], case: CaseContext
) -> MetricValues:
    """As `_score_pair`, but what is all of its region is not measured a second time."""
    parts, wholes = (lesion, prediction), (region.reference, region.prediction)
    if all(np.count_nonzero(one) == np.count_nonzero(all_) for one, all_ in zip(parts, wholes, strict=True)):
        return {name: whole[name] for name in case.agreed}
    return _score_pair(lesion, prediction, case.spacing_mm, case.preset.measures)


def _measure(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float], measures: Mapping[str, Measure]
) -> MetricValues:
    """All measures of two non-empty masks; those that share a kind of surface share its distances."""
    kinds = {measure.surfaces for measure in measures.values()}
    distances = {surfaces: surfaces(reference, prediction, spacing_mm) for surfaces in kinds}
    return {name: measure.reduce(distances[measure.surfaces]) for name, measure in measures.items()}
