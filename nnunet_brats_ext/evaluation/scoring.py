"""From two label maps to the scores of one case: cut out each region, score it as a whole and by its lesions."""

from collections.abc import Mapping, Sequence
from math import inf, sqrt
from typing import NamedTuple

import numpy as np

from nnunet_brats_ext.brats import LABEL_SCHEMES
from nnunet_brats_ext.evaluation.boxes import Box, find_box, grow_box, join_boxes
from nnunet_brats_ext.evaluation.lesions import (
    Lesions,
    Scores,
    drop_small,
    find_components,
    find_lesions,
    join_touching,
    score_by_dilation,
    score_by_matching,
)
from nnunet_brats_ext.evaluation.metrics import Overlap, dice
from nnunet_brats_ext.evaluation.presets import DilationRule, MatchingRule, Measure, Preset, find_preset


class Region(NamedTuple):
    """The boolean masks of one region on one box of the volume."""

    box: Box
    reference: np.ndarray
    prediction: np.ndarray


class Case(NamedTuple):
    """What the regions of a case share: the preset, its voxels, and its scores where a mask is empty."""

    preset: Preset
    voxels: int
    spacing_mm: tuple[float, ...]
    agreed: Scores  # of a region empty in both
    missed: Scores  # of a region empty in one


def evaluate_case(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    preset: str | Preset = "brats2020",
    cohort: str = "gli",
) -> dict[str, dict[str, float]]:
    """Score a prediction as a BraTS challenge does -> {region: {metric: value}}; NaN where the challenge has no score.

    reference, prediction: label maps (z, y, x) of integers in the numbering as trained. spacing_mm: in the same order.
    Which metrics there are depends on the preset: those of whole regions first, then `lesionwise_*` and the counts.
    """
    rules = find_preset(preset, cohort) if isinstance(preset, str) else preset
    if reference.shape != prediction.shape:
        raise ValueError(f"the reference has shape {reference.shape}, but the prediction {prediction.shape}")
    case = _describe_case(reference.shape, spacing_mm, rules)
    regions = _cut_regions(reference, prediction, rules)
    lesions = {
        name: _find_lesions(regions[name], rule, case)
        for name, rule in rules.lesions.items()
        if isinstance(rule, DilationRule)
    }
    return {name: _score_region(regions[name], name, lesions, case) for name in rules.regions}


def _describe_case(shape: tuple[int, ...], spacing_mm: Sequence[float], preset: Preset) -> Case:
    penalty = sqrt(sum(size**2 for size in shape)) if preset.penalty_mm is None else preset.penalty_mm
    return Case(
        preset,
        voxels=int(np.prod(shape)),
        spacing_mm=tuple(map(float, spacing_mm)) if preset.uses_spacing else (1.0,) * len(shape),
        agreed={name: measure.agreed for name, measure in preset.measures.items()},
        missed={name: penalty if m.missed == inf else m.missed for name, m in preset.measures.items()},
    )


def _cut_regions(reference: np.ndarray, prediction: np.ndarray, preset: Preset) -> dict[str, Region]:
    """The masks of all regions, each on its own box with room for its dilation as far as the volume goes."""
    margins = {name: rule.dilation for name, rule in preset.lesions.items() if isinstance(rule, DilationRule)}
    tumour = join_boxes([find_box(reference), find_box(prediction)])
    tumour = grow_box(tumour, max(margins.values(), default=0), reference.shape)
    labels = [_check_labels(labels[tumour], preset) for labels in (reference, prediction)]
    regions = {}
    for name, values in {**preset.regions, **preset.unscored}.items():
        masks = [np.logical_or.reduce([part == value for value in values]) for part in labels]
        box = grow_box(find_box(masks[0] | masks[1]), margins.get(name, 0), masks[0].shape)
        regions[name] = Region(box, masks[0][box], masks[1][box])
    return regions


def _check_labels(labels: np.ndarray, preset: Preset) -> np.ndarray:
    """The labels, if they are integers that the cohort has."""
    if labels.dtype.kind not in "iub":
        raise ValueError(f"labels must be integers, not {labels.dtype}")
    known = (0, *LABEL_SCHEMES[preset.scheme].names)
    if labels.size and (labels.min() < 0 or labels.max() > max(known)):
        unknown = sorted(set(np.unique(labels).tolist()) - set(known))
        raise ValueError(f"labels {unknown} are not among {sorted(known)}, the labels as trained")
    return labels


def _find_lesions(region: Region, rule: DilationRule, case: Case) -> tuple[Lesions, Lesions]:
    """The lesions of a region's reference and prediction, before those of other regions join any."""
    reference = find_lesions(region.reference, region.box, rule.dilation)
    if rule.filter_prediction is None:
        components = find_components(region.prediction)
        return reference, Lesions(region.box, components, components)
    voxel = np.prod(case.spacing_mm) if rule.filter_prediction == "mm3" else 1
    prediction = find_lesions(region.prediction, region.box, rule.dilation)
    return reference, drop_small(prediction, rule.min_volume / voxel)


def _score_region(
    region: Region, name: str, lesions: Mapping[str, tuple[Lesions, Lesions]], case: Case
) -> dict[str, float]:
    rule = case.preset.lesions.get(name)
    prediction = region.prediction
    if isinstance(rule, DilationRule) and rule.filter_prediction:
        prediction = lesions[name][1].numbers > 0
    overlap = Overlap.of(region.reference, prediction, case.voxels)
    whole = {metric: count(overlap) for metric, count in case.preset.overlaps.items()}
    if overlap.empty:
        measured = case.agreed if overlap.empty == "both" else case.missed
    else:
        box = find_box(region.reference | prediction)
        measured = _measure(region.reference[box], prediction[box], case.spacing_mm, case.preset.measures)
    whole.update(measured)
    if rule is None:
        return whole

    def score_pair(lesion: np.ndarray, predicted: np.ndarray) -> Scores:
        pair = Overlap.of(lesion, predicted, case.voxels)
        if isinstance(rule, DilationRule) and pair == overlap:  # the one lesion is the region
            return {"dice": whole["dice"], **measured}
        measures = rule.measures if isinstance(rule, MatchingRule) else case.preset.measures
        return {"dice": dice(pair), **_measure(lesion, predicted, case.spacing_mm, measures)}

    agreed, missed = (
        {"dice": case.preset.overlaps["dice"](Overlap(0, 0, 0, case.voxels)), **case.agreed},
        {"dice": 0.0, **case.missed},
    )
    if isinstance(rule, MatchingRule):
        scores = score_by_matching(region.reference, prediction, rule, score_pair, agreed, missed)
    else:
        found, predicted = lesions[name]
        for other in rule.joined_by:
            found, predicted = join_touching(found, lesions[other][0]), join_touching(predicted, lesions[other][1])
        voxel_mm3 = float(np.prod(case.spacing_mm))
        scores = score_by_dilation(found, predicted.numbers, rule, voxel_mm3, score_pair, agreed, missed)
    return {
        **whole,
        **{metric if metric.startswith("n_") else f"lesionwise_{metric}": v for metric, v in scores.items()},
    }


def _measure(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float], measures: Mapping[str, Measure]
) -> Scores:
    """All measures of two non-empty masks; those that share a kind of surface share its distances."""
    kinds = {measure.surfaces for measure in measures.values()}
    distances = {surfaces: surfaces(reference, prediction, spacing_mm) for surfaces in kinds}
    return {name: measure.reduce(distances[measure.surfaces]) for name, measure in measures.items()}
