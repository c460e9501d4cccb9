"""Scores that share work between regions and lesions against a slow computation that shares nothing."""

from functools import partial

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter

from nnunet_brats_ext.brats import LABEL_SCHEMES
from nnunet_brats_ext.evaluation.boxes import find_box
from nnunet_brats_ext.evaluation.distances import Distances, SurfaceDistances, Surfaces, Target
from nnunet_brats_ext.evaluation.metrics import border_dice, directed_hd95, pooled_hd95, surfel_dice, surfel_hd95
from nnunet_brats_ext.evaluation.presets import PRESETS, DilationRule, Measure, find_preset
from nnunet_brats_ext.evaluation.scoring import score_regions
from nnunet_brats_ext.evaluation.surfaces import Surface, surfel_surface, voxel_surface

LESION_PRESETS = [(year, cohort) for year, cohorts in PRESETS.items() for cohort, one in cohorts.items() if one.lesions]


def random_pair(scheme: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two label maps with several lesions each, some of them touching, near, missed and false."""
    random = np.random.default_rng(seed)
    shape, labels = (20, 24, 28), list(LABEL_SCHEMES[scheme].names)
    shared = gaussian_filter(random.normal(size=shape), 2.5)
    pair = []
    for _ in range(2):
        own = gaussian_filter(random.normal(size=shape), 1.2)
        field = shared / shared.std() + 0.6 * own / own.std()
        painted = np.zeros(shape, np.uint8)
        for label, level in zip(labels, np.quantile(field, np.linspace(0.8, 0.97, len(labels))), strict=True):
            painted[field > level] = label
        painted[random.random(shape) < 0.001] = random.choice(labels)
        pair.append(painted)
    return pair[0], pair[1]


def slow_distances(surfaces: Surfaces) -> SurfaceDistances:
    """The distances by distance transforms of the whole lattice."""
    sides = surfaces.reference, surfaces.prediction
    return SurfaceDistances(
        slow_side(*sides, surfaces.spacing_mm),
        slow_side(*sides[::-1], surfaces.spacing_mm),
        surfaces.spacing_mm,
        *(side.areas_mm2(surfaces.spacing_mm) for side in sides),
    )


def slow_side(here: Surface, there: Surface, spacing_mm: tuple[float, ...]) -> Distances:
    transform = distance_transform_edt(there.parts == 0, sampling=spacing_mm)
    return Distances(here.points, Target(there, spacing_mm), transform.ravel()[here.points], np.ones(len(here.points)))


def slow_score(measure: Measure, reference: np.ndarray, prediction: np.ndarray, spacing_mm: tuple[float, ...]) -> float:
    box = find_box(reference | prediction)
    surfaces = measure.surface(reference[box]), measure.surface(prediction[box])
    return measure.reduce(slow_distances(Surfaces(*surfaces, measure.spacing(spacing_mm))))


@pytest.mark.parametrize(("year", "cohort"), LESION_PRESETS)
def test_lesions_score_as_if_each_was_measured_alone(year, cohort):
    """Bit for bit, at spacings whose multiples are exact."""
    preset = find_preset(year, cohort).with_nsd([2.0])
    for seed, spacing_mm in ((0, (1.0, 1.0, 1.0)), (1, (0.5, 2.0, 0.75))):
        found = score_regions(*random_pair(preset.scheme, seed), spacing_mm, preset)
        for name, region in found.items():
            lesions = region.lesions
            assert lesions is not None
            rule = preset.lesions[name]
            measures = preset.measures if isinstance(rule, DilationRule) else rule.measures
            for one in lesions.lesions:
                if one.outcome != "found":
                    continue
                reference = lesions.reference.numbers == one.reference
                prediction = np.isin(lesions.prediction.numbers, one.predicted)
                shared = np.count_nonzero(reference & prediction)
                dice = 2 * shared / (np.count_nonzero(reference) + np.count_nonzero(prediction))
                expected = {
                    metric: slow_score(one, reference, prediction, spacing_mm) for metric, one in measures.items()
                }
                assert one.scores == {"dice": dice, **expected}, (name, one)
            sides = lesions.reference.numbers > 0, lesions.prediction.numbers > 0
            if all(side.any() for side in sides) and (not preset.disjoint_is_missed or (sides[0] & sides[1]).any()):
                for metric, measure in preset.measures.items():
                    assert region.scores[metric] == slow_score(measure, *sides, spacing_mm), (name, metric)


def random_masks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ellipsoids, near each other or far apart."""
    random = np.random.default_rng(seed)
    masks = np.zeros((2, *random.integers(8, 30, 3)), bool)
    axes = np.ogrid[tuple(slice(size) for size in masks.shape[1:])]
    for mask in masks:
        for _ in range(random.integers(1, 4)):
            centre, radii = random.integers(mask.shape), random.integers(1, 8, 3)
            scaled = ((axis - at) / radius for axis, at, radius in zip(axes, centre, radii, strict=True))
            mask |= sum(one**2 for one in scaled) < 1
    return masks[0], masks[1]


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.5, 2.0, 0.75)])
def test_percentiles_and_shares_need_no_distance_that_does_not_decide_them(spacing_mm):
    searched = 0
    for seed in range(40):
        masks = random_masks(seed)
        for kind, reductions in (
            (voxel_surface, (directed_hd95, pooled_hd95, partial(border_dice, tolerance_mm=4.0))),
            (surfel_surface, (surfel_hd95, partial(surfel_dice, tolerance_mm=1.0))),
        ):
            reference, prediction = map(kind, masks)
            slow = slow_distances(Surfaces(reference, prediction, spacing_mm))
            for reduce in reductions:
                whole = Surfaces(reference, prediction, spacing_mm).whole
                assert reduce(whole) == reduce(slow), (seed, reduce)
                searched += all((side.part > 0).all() for side in (whole.reference, whole.prediction))
    assert 0 < searched < 40 * 5  # some cases are decided by what is near, and others are not


def test_a_perfect_match_of_the_main_lesion_is_untouched_by_false_lesions_nearby():
    """What is nearest to a lesion may belong to another one, which does not count for it."""
    reference, prediction = np.zeros((2, 20, 20, 40), np.uint8)
    reference[5:15, 5:15, 5:15] = 1
    prediction[5:15, 5:15, 8:18] = 1
    prediction[9:11, 9:11, 2:4] = 1  # nearer to the reference's far side than the lesion itself
    found = score_regions(reference, prediction, (1.0, 1.0, 1.0), find_preset("brats2026", "men"))["WT"]
    assert found.lesions is not None
    lesion = next(one for one in found.lesions.lesions if one.outcome == "found")
    prediction[..., :5] = 0
    only = score_regions(reference, prediction, (1.0, 1.0, 1.0), find_preset("brats2026", "men"))["WT"]
    assert only.lesions is not None
    assert lesion.scores == only.lesions.lesions[0].scores
