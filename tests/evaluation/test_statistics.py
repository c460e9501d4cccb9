"""Intervals, paired tests, Holm's correction and rank stability, against SciPy and against counting by hand."""

import numpy as np
import pytest
from scipy import stats

from nnunet_brats_ext.evaluation.ranking import compare_entries, rank_entries
from nnunet_brats_ext.evaluation.results import summarise_folds, summarise_means, summarise_scores
from nnunet_brats_ext.evaluation.statistics import compare_paired, holm, mean_intervals, rank_stability


def test_the_interval_of_a_mean_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(3).beta(8, 2, (40, 3))
    found = mean_intervals(values)
    for column, interval in zip(values.T, found.T, strict=True):
        wanted = stats.bootstrap((column,), np.mean, n_resamples=20_000, method="percentile", random_state=1)
        np.testing.assert_allclose(interval, wanted.confidence_interval, atol=0.004)


def test_a_case_without_a_score_does_not_count_and_one_case_has_no_interval():
    values = np.array([[0.2, np.nan, np.nan], [0.4, 0.4, np.nan], [0.9, 0.9, 0.9], [0.7, 0.7, np.nan]])
    found = mean_intervals(values)
    np.testing.assert_array_equal(found[:, 1], mean_intervals(values[1:, :1])[:, 0])
    assert np.isnan(found[:, 2]).all()
    assert (mean_intervals(np.full((5, 1), 0.5)) == 0.5).all(), "equal scores have an interval without width"


def test_paired_tests_are_scipys():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.8, 0.1, (12, 2)), rng.normal(0.7, 0.1, (12, 2))
    for column, found in enumerate(compare_paired(first, second)):
        a, b = first[:, column], second[:, column]

        def difference(x, y, axis=-1):
            return np.mean(x - y, axis=axis)

        exact = stats.permutation_test(
            (a, b), difference, permutation_type="samples", vectorized=True, n_resamples=np.inf, alternative="two-sided"
        )
        assert found.p_permutation == pytest.approx(exact.pvalue)
        assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(a, b).pvalue)
        assert found.difference == pytest.approx((a - b).mean())
        assert found.low < found.difference < found.high


def test_systems_that_agree_or_share_no_case_are_not_told_apart():
    same = np.full((6, 2), 0.5)
    assert [(one.p_permutation, one.p_wilcoxon, one.difference) for one in compare_paired(same, same)] == 2 * [
        (1, 1, 0)
    ]
    gone = compare_paired(np.array([[np.nan], [0.5]]), np.array([[0.5], [np.nan]]))[0]
    assert gone.cases == 0 and np.isnan(gone.p_permutation) and np.isnan(gone.p_wilcoxon)


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_less_and_never_falls():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1, 1])
    np.testing.assert_allclose(holm([np.nan, 0.02]), [np.nan, 0.02])
    assert holm([]).size == 0


def test_every_pair_is_compared_in_every_column_and_corrected_within_it():
    rng = np.random.default_rng(0)
    values = rng.random((3, 10, 2)) + np.array([0, 0.2, 0.9])[:, None, None]
    found = compare_entries("abc", [("WT", "dice"), ("ET", "dice")], values)
    assert [(one.region, one.first, one.second) for one in found][:3] == [
        ("WT", "a", "b"), ("WT", "a", "c"), ("WT", "b", "c"),
    ]  # fmt: skip
    for region in ("WT", "ET"):
        own = [one for one in found if one.region == region]
        np.testing.assert_allclose([one.permutation_holm for one in own], holm([one.test.p_permutation for one in own]))
        np.testing.assert_allclose([one.wilcoxon_holm for one in own], holm([one.test.p_wilcoxon for one in own]))


def test_an_entry_that_always_wins_keeps_its_place_and_equal_entries_share_theirs():
    always = np.array([[1.0] * 8, [2.0] * 8, [3.0] * 8])
    found = rank_stability(always)
    np.testing.assert_array_equal(found.frequencies, np.eye(3))
    np.testing.assert_array_equal(found.places, [[1, 1, 1], [2, 2, 2], [3, 3, 3]])
    assert found.tau == 1
    equal = rank_stability(np.full((2, 8), 1.5))
    np.testing.assert_array_equal(equal.frequencies, np.full((2, 2), 0.5))
    assert equal.tau == 1


def test_the_frequency_of_a_place_is_that_of_drawing_such_cases():
    """Entry a wins two of three cases; it loses a resample where the third case was drawn at least twice."""
    found = rank_stability(np.array([[1.0, 1.0, 2.0], [2.0, 2.0, 1.0]]))
    chance = 3 * (1 / 3) ** 2 * (2 / 3) + (1 / 3) ** 3  # 7 / 27
    assert found.frequencies[0, 1] == pytest.approx(chance, abs=0.03)
    np.testing.assert_allclose(found.frequencies.sum(1), 1)
    np.testing.assert_allclose(found.frequencies.sum(0), 1)
    assert found.tau == pytest.approx(1 - 2 * chance, abs=0.06)


def test_scores_do_not_depend_on_the_order_of_the_entries():
    rng = np.random.default_rng(0)
    entries = {name: {f"c{i}": {"WT": {"dice": v, "hd95": v}} for i, v in enumerate(rng.random(9))} for name in "abc"}
    forward, back = rank_entries(entries), rank_entries(dict(reversed(entries.items())))
    np.testing.assert_allclose(forward.stability.frequencies, back.stability.frequencies[::-1])
    np.testing.assert_allclose(forward.corrected, back.corrected[::-1, ::-1])


def test_means_over_folds_and_over_models_are_those_of_their_means():
    dice = {"a": 0.5, "b": 0.7, "c": 0.9, "d": None}
    cases = {case: {"WT": {"dice": value}} for case, value in dice.items()}
    results = {"cases": cases, "folds": {"a": "0", "b": "0", "c": "1", "d": "1"}, "summary": summarise_scores(cases)}
    found = summarise_folds(results)["WT"]["dice"]
    assert found == pytest.approx({"mean": 0.75, "std": np.std([0.6, 0.9], ddof=1), "n": 2})
    assert summarise_folds({**results, "folds": {}}) == {}
    models = [{"WT": {"dice": value}} for value in (0.6, 0.8, None)]
    assert summarise_means(models)["WT"]["dice"] == pytest.approx({"mean": 0.7, "std": np.sqrt(0.02), "n": 2})
