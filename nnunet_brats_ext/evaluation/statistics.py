"""Statistics of scores: bootstrap intervals of means, paired tests between systems, Holm's correction.

Intervals and rank stability draw cases with replacement, as scipy.stats.bootstrap does with its percentile method; here
all columns share the draws, so that one matrix product gives every mean.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
EXACT_UP_TO = 16  # cases: 65,536 sign patterns
BATCH = 1000  # permutations at a time, which bounds the memory


@lru_cache(maxsize=8)
def bootstrap_weights(cases: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How much each case counts in each resample (resample, case): rows sum to one. The same for every call."""
    drawn = np.random.default_rng(0).multinomial(cases, np.full(cases, 1 / cases), size=resamples)
    return (drawn / cases).astype(np.float64)


def mean_intervals(values: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """The bootstrap interval of the mean over cases: (case, column) -> (2, column), NaN with fewer than two cases.

    NaN is a case without a score, which does not count.
    """
    intervals = np.full((2, values.shape[1]), np.nan)
    known = ~np.isnan(values)
    for pattern in np.unique(known, axis=1).T:  # columns that lack the same cases
        columns = (known == pattern[:, None]).all(0)
        if (count := int(pattern.sum())) > 1:
            means = bootstrap_weights(count) @ values[pattern][:, columns]
            tail = 100 * (1 - level) / 2
            intervals[:, columns] = np.percentile(means, (tail, 100 - tail), axis=0)
    return intervals


class PairedTest(NamedTuple):
    """Two systems compared on the cases that both have a score of: the mean difference and two-sided p-values."""

    cases: int
    difference: float
    low: float
    high: float
    p_permutation: float
    p_wilcoxon: float


def compare_paired(first: np.ndarray, second: np.ndarray, permutations: int = 10_000) -> list[PairedTest]:
    """The difference of two systems in each column, first minus second; arrays (case, column), NaN for no score.

    The permutation test exchanges the two systems within cases (Fisher, Pitman); Wilcoxon's signed-rank test compares
    ranks of differences. Without a difference both p are 1, without a common case NaN.
    """
    from scipy.stats import wilcoxon  # scipy.stats takes half a second, which `evaluate` need not wait for

    differences = first - second
    known = ~np.isnan(differences)
    filled = np.where(known, differences, 0)  # a difference of zero does not depend on its sign
    signed = np.column_stack([filled, -filled])
    one_sided = sign_flip_p_values(signed, permutations).reshape(2, -1) if len(filled) else np.ones((2, 0))
    p_values = np.minimum(2 * one_sided.min(0), 1)
    intervals = mean_intervals(differences)
    found = []
    for column, rows in enumerate(known.T):
        values = differences[rows, column]
        if not values.size:
            found.append(PairedTest(0, *(float("nan"),) * 5))
            continue
        ranks = wilcoxon(values).pvalue if values.any() else 1.0
        numbers = (values.mean(), *intervals[:, column], p_values[column], ranks)
        found.append(PairedTest(len(values), *map(float, numbers)))
    return found


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """The p-values of several tests corrected so that the chance of any false positive stays below the level.

    Holm 1979, https://www.jstor.org/stable/4615733. NaN stays NaN and does not count as a test.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(p_values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected


def sign_flip_p_values(differences: np.ndarray, permutations: int = 100_000) -> np.ndarray:
    """The chance of a mean as large as the observed one if the sign of every case's difference were random.

    differences (case, comparison) -> p (comparison), one-sided: small where the mean is clearly above zero. Up to
    `EXACT_UP_TO` cases all sign patterns are counted; beyond, `permutations` are drawn, and the observed pattern counts
    as one of them, so that no p is zero. Differences that are all zero give 1.
    """
    from scipy.stats import permutation_test

    if len(differences) == 1:  # SciPy asks for two observations; a difference of zero changes nothing
        differences = np.vstack([differences, np.zeros_like(differences)])
    scale = np.abs(differences).sum(0).clip(1e-300)

    def mean(signs: np.ndarray, axis: int) -> np.ndarray:
        return np.round(signs @ differences / scale, 9)  # rounded: equal sums stay equal

    # The sample is the signs, so that all comparisons share the permutations of one call.
    found = permutation_test(
        (np.ones(len(differences)),),
        mean,
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=np.inf if len(differences) <= EXACT_UP_TO else permutations,
        batch=BATCH,
        random_state=np.random.default_rng(0),
    )
    return found.pvalue


class RankStability(NamedTuple):
    """How the places of entries vary when the cases are drawn anew.

    frequencies (entry, place): the share of resamples in which the entry takes the place, ties split. places
    (entry, 3): the lower end of the interval, the median and the upper end of its place, from 1. tau: the mean of
    Kendall's rank correlation between the ranking of a resample and that of all cases.
    """

    frequencies: np.ndarray
    places: np.ndarray
    tau: float


def rank_stability(case_ranks: np.ndarray, level: float = LEVEL) -> RankStability:
    """The stability of a ranking by mean rank over cases, from case_ranks (entry, case).

    After challengeR: Wiesenfarth et al. 2021, https://doi.org/10.1038/s41598-021-82017-6. Equal mean ranks share the
    mean of their places.
    """
    entries, cases = case_ranks.shape
    means = np.round(bootstrap_weights(cases) @ case_ranks.T, 9)  # (resample, entry); rounded: equal sums stay equal
    places = _places(means)
    lower, upper = np.floor(places).astype(int) - 1, np.ceil(places).astype(int) - 1
    frequencies = np.zeros((entries, entries))
    for place in range(entries):
        frequencies[:, place] = ((lower == place).mean(0) + (upper == place).mean(0)) / 2
    tail = 100 * (1 - level) / 2
    intervals = np.percentile(places, (tail, 50, 100 - tail), axis=0).T
    return RankStability(frequencies, intervals, _mean_tau(means, np.round(case_ranks.mean(1), 9)))


def _places(means: np.ndarray) -> np.ndarray:
    smaller = (means[:, :, None] > means[:, None, :]).sum(2)
    equal = (means[:, :, None] == means[:, None, :]).sum(2)
    return 1 + smaller + (equal - 1) / 2


def _mean_tau(means: np.ndarray, observed: np.ndarray) -> float:
    """Kendall's tau-b of each row with the observed, averaged; 1 where all entries tie in both."""
    i, j = np.triu_indices(len(observed), 1)
    signs, expected = np.sign(means[:, i] - means[:, j]), np.sign(observed[i] - observed[j])
    norm = np.sqrt((signs**2).sum(1) * (expected**2).sum())
    equal = (signs == expected).all(1)
    return float(np.where(equal, 1.0, (signs @ expected) / np.where(norm > 0, norm, 1)).mean())
