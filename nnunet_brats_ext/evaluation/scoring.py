"""From two label maps to the scores of one case: cut out each region, score it as a whole and by its lesions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf, prod, sqrt
from typing import NamedTuple

import numpy as np

from nnunet_brats_ext.brats import ED, LABEL_SCHEMES
from nnunet_brats_ext.evaluation.boxes import Box, find_box, grow_box, join_boxes, shift_box
from nnunet_brats_ext.evaluation.distances import Surfaces
from nnunet_brats_ext.evaluation.lesions import (
    Lesions,
    LesionScoring,
    ScoredLesions,
    drop_small,
    find_components,
    find_lesions,
    join_touching,
    score_by_dilation,
    score_by_matching,
)
from nnunet_brats_ext.evaluation.metric_facts import DETECTION
from nnunet_brats_ext.evaluation.metrics import Overlap, check_masks
from nnunet_brats_ext.evaluation.numbering import TRAINED, Numberings, renumber
from nnunet_brats_ext.evaluation.numbering_checks import check_numbering, gather_evidence
from nnunet_brats_ext.evaluation.presets import (
    PRESETS,
    DilationRule,
    MatchingRule,
    Measure,
    Preset,
    Spacing,
    find_preset,
)
from nnunet_brats_ext.evaluation.surfaces import Surface, SurfaceKind
from nnunet_brats_ext.storage.errors import UserError


class RegionMasks(NamedTuple):
    """The boolean masks of one region on one box of the volume."""

    box: Box
    reference: np.ndarray
    prediction: np.ndarray


class CaseContext(NamedTuple):
    """What the regions of a case share. penalty_mm: the distance where one of two masks is empty."""

    preset: Preset
    voxels: int
    spacing_mm: tuple[float, ...]
    penalty_mm: float

    def agreed(self, measures: Mapping[str, Measure]) -> dict[str, float]:
        """The scores of two empty masks."""
        nothing = Overlap(tp=0, fp=0, fn=0, tn=self.voxels)
        return {"dice": self.preset.overlaps["dice"](nothing), **{name: one.agreed for name, one in measures.items()}}

    def missed(self, measures: Mapping[str, Measure]) -> dict[str, float]:
        """The scores where one of two masks is empty."""
        values = {name: self.penalty_mm if one.missed == inf else one.missed for name, one in measures.items()}
        return {"dice": 0.0, **values}


class RegionScores(NamedTuple):
    """The scores of one region, and where its preset has lesions, each of them; `box` is theirs in the volume."""

    scores: dict[str, float]
    lesions: ScoredLesions | None
    box: Box


def evaluate_case(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    preset: str | Preset = "brats2020",
    cohort: str = "gli",
    labels: str | Sequence[str] = TRAINED,
    nsd_mm: Sequence[float] = (),
) -> dict[str, dict[str, float]]:
    """Score a prediction as a BraTS challenge does -> {region: {metric: value}}; NaN where the challenge has no score.

    reference, prediction: label maps (z, y, x) of integers. spacing_mm: in the same order.
    preset: the name of a challenge year, with a cohort, or a `Preset` of your own. It decides which metrics there are:
        those of whole regions first, then `lesionwise_*` and the counts.
    labels: the numbering of both, or of the reference and of the prediction: "trained", "released" (as the preset's
        challenge did) or a name in `LABEL_SCHEMES`. What looks as if it was numbered otherwise is a `Notice`.
    nsd_mm: tolerances of further normalised surface Dice.
    """
    rules = find_preset(preset, cohort).with_nsd(nsd_mm)
    reference, prediction = as_trained(reference, prediction, rules, labels)
    return {name: region.scores for name, region in score_regions(reference, prediction, spacing_mm, rules).items()}


def as_trained(
    reference: np.ndarray, prediction: np.ndarray, preset: Preset, labels: str | Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Both label maps in the numbering of training, checked. labels: their numbering, as of `evaluate_case`."""
    if reference.shape != prediction.shape:
        raise UserError(f"the reference has shape {reference.shape}, but the prediction {prediction.shape}")
    for one in (reference, prediction):
        if one.dtype == bool:
            raise UserError(
                "these are boolean masks, not label maps; compare masks with `dice`, `hd95`, `nsd` or `lesionwise`, or "
                "make a label map: 1 ED, 2 NCR, 3 ET"
            )
        if one.dtype.kind not in "iu":
            raise UserError(f"labels must be integers, not {one.dtype}")
    numberings = Numberings.parse(labels)
    if set(numberings) != {TRAINED}:
        reference, prediction = map(renumber, (reference, prediction), numberings.to_trained(preset))
    _check_labels(reference, preset)
    _check_labels(prediction, preset)
    check_numbering([gather_evidence(reference, prediction)], numberings, preset)
    return reference, prediction


def score_regions(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float], preset: Preset
) -> dict[str, RegionScores]:
    """As `evaluate_case`, of label maps as trained, with every lesion."""
    case = _describe_case(reference.shape, spacing_mm, preset)
    regions = _cut_regions(reference, prediction, preset)
    lesions = {
        name: _find_lesions(regions[name], rule, case)
        for name, rule in preset.lesions.items()
        if isinstance(rule, DilationRule)
    }
    return {name: _score_region(regions[name], name, lesions, case) for name in preset.regions}


def columns_of(preset: Preset) -> dict[str, float]:
    """The metrics of a preset in their order, with the scores of a region that is absent and not predicted."""
    nothing = np.zeros((1, 1, 1), np.uint8)
    return next(iter(score_regions(nothing, nothing, (1.0, 1.0, 1.0), preset).values())).scores


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
    scores = score_regions(labels[0], labels[1], spacing_mm, alone)[region].scores
    return {
        name.removeprefix("lesionwise_"): score
        for name, score in scores.items()
        if name in DETECTION or name.startswith("lesionwise_")
    }


def _describe_case(shape: tuple[int, ...], spacing_mm: Sequence[float], preset: Preset) -> CaseContext:
    penalty = sqrt(sum(size**2 for size in shape)) if preset.penalty_mm is None else preset.penalty_mm
    return CaseContext(preset, prod(shape), tuple(map(float, spacing_mm)), penalty)


def _cut_regions(reference: np.ndarray, prediction: np.ndarray, preset: Preset) -> dict[str, RegionMasks]:
    """The masks of all regions, each on its own box with room for its dilation as far as the volume goes."""
    margins = {name: rule.dilation for name, rule in preset.lesions.items() if isinstance(rule, DilationRule)}
    tumour = join_boxes([find_box(reference), find_box(prediction)])
    tumour = grow_box(tumour, max(margins.values(), default=0), reference.shape)
    labels = [_check_labels(np.ascontiguousarray(labels[tumour]), preset) for labels in (reference, prediction)]
    regions = {}
    for name, values in {**preset.regions, **preset.unscored}.items():
        masks = [np.logical_or.reduce([part == value for value in values]) for part in labels]
        box = grow_box(find_box(masks[0] | masks[1]), margins.get(name, 0), masks[0].shape)
        regions[name] = RegionMasks(shift_box(box, tumour), *(np.ascontiguousarray(mask[box]) for mask in masks))
    return regions


def _check_labels(labels: np.ndarray, preset: Preset) -> np.ndarray:
    """The labels, if the cohort has them."""
    known = (0, *LABEL_SCHEMES[preset.scheme].names)
    if labels.size and (labels.min() < 0 or labels.max() > max(known)):
        unknown = sorted(set(np.unique(labels).tolist()) - set(known))
        raise UserError(
            f"labels {unknown} are not among {sorted(known)}, the labels as trained",
            "say how they are numbered, or choose a preset whose cohort has them",
        )
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
) -> RegionScores:
    """All metrics of one region; whole regions are scored without the predicted lesions that a rule removes.

    Volumes are those of the label maps.
    """
    rule = case.preset.lesions.get(name)
    volumes = volumes_ml(
        int(np.count_nonzero(region.reference)), int(np.count_nonzero(region.prediction)), case.spacing_mm
    )
    if isinstance(rule, DilationRule):
        found = lesions[name]
        if rule.filter_prediction:
            region = region._replace(prediction=found[1].numbers > 0)
        for other in rule.joined_by:
            found = join_touching(found[0], lesions[other][0]), join_touching(found[1], lesions[other][1])
        numbers = found[0].numbers, found[1].numbers
    elif isinstance(rule, MatchingRule):
        numbers = find_components(region.reference), find_components(region.prediction)
    else:
        numbers = region.reference, region.prediction
    of_lesions = rule.measures if isinstance(rule, MatchingRule) else case.preset.measures
    surfaces = _RegionSurfaces(*numbers, case.spacing_mm)
    whole = {**_score_whole(region, surfaces, case), **volumes}
    if rule is None:
        return RegionScores(whole, None, region.box)
    scoring = LesionScoring(
        partial(surfaces.of_lesion, of_lesions),
        case.agreed(of_lesions),
        case.missed(of_lesions),
        voxel_mm3=prod(case.spacing_mm),
    )
    if isinstance(rule, MatchingRule):
        scored = score_by_matching(*numbers, rule, scoring)
    else:
        scored = score_by_dilation(found[0], numbers[1], rule, scoring)
    means = {f"lesionwise_{name}": score for name, score in scored.means.items()}
    return RegionScores({**whole, **means, **scored.detection}, scored, region.box)


def volumes_ml(reference: int, prediction: int, spacing_mm: Sequence[float]) -> dict[str, float]:
    """Volumes of so many voxels, and how far the predicted one is off: with its sign, and without."""
    voxel_ml = prod(spacing_mm) / 1000
    error = (prediction - reference) * voxel_ml
    return {
        "reference_ml": reference * voxel_ml,
        "prediction_ml": prediction * voxel_ml,
        "volume_error_ml": error,
        "absolute_volume_error_ml": abs(error),
    }


def _score_whole(region: RegionMasks, surfaces: "_RegionSurfaces", case: CaseContext) -> dict[str, float]:
    preset = case.preset
    overlap = Overlap.of(region.reference, region.prediction, case.voxels)
    scores = {name: count(overlap) for name, count in preset.overlaps.items()}
    if overlap.empty == "both":
        return {**scores, **case.agreed(preset.measures)}
    if overlap.empty or (preset.disjoint_is_missed and not overlap.tp):
        return {**scores, **case.missed(preset.measures)}
    return {**scores, **surfaces.of_whole(preset.measures)}


class _RegionSurfaces:
    """The measures of a region and of its lesions, none of them empty: what several of them need is made once.

    reference, prediction: lesion numbers.
    """

    def __init__(self, reference: np.ndarray, prediction: np.ndarray, spacing_mm: Spacing):
        self.numbers, self.spacing_mm = (reference, prediction), spacing_mm
        self.surfaces: dict[SurfaceKind, tuple[Surface, Surface]] = {}
        self.measured: dict[tuple[SurfaceKind, Spacing], Surfaces] = {}
        self.whole: dict[Measure, float] = {}

    def of_whole(self, measures: Mapping[str, Measure]) -> dict[str, float]:
        for measure in measures.values():
            self.whole[measure] = measure.reduce(self._measured(self._kind(measure)).whole)
        return {name: self.whole[measure] for name, measure in measures.items()}

    def of_lesion(self, measures: Mapping[str, Measure], lesion: int, components: Sequence[int]) -> dict[str, float]:
        """Of a reference lesion and its prediction; what is all of the region is not reduced a second time."""
        kinds = {name: self._kind(measure) for name, measure in measures.items()}
        distances = {kind: self._measured(kind).of_parts([lesion], components) for kind in set(kinds.values())}
        values = {}
        for name, measure in measures.items():
            kind = kinds[name]
            known = measure in self.whole and distances[kind] is self.measured[kind].whole
            values[name] = self.whole[measure] if known else measure.reduce(distances[kind])
        return values

    def _kind(self, measure: Measure) -> tuple[SurfaceKind, Spacing]:
        return measure.surface, measure.spacing(self.spacing_mm)

    def _measured(self, kind: tuple[SurfaceKind, Spacing]) -> Surfaces:
        surface, spacing_mm = kind
        if surface not in self.surfaces:
            box = find_box((self.numbers[0] != 0) | (self.numbers[1] != 0))
            self.surfaces[surface] = surface(self.numbers[0][box]), surface(self.numbers[1][box])
        if kind not in self.measured:
            self.measured[kind] = Surfaces(*self.surfaces[surface], spacing_mm)
        return self.measured[kind]
