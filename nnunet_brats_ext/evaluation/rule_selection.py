"""Nested cross-validation of post-processing rules: the cases whose gain is reported took no part in the choice.

For every fold the rules are chosen on the cases of the other folds and tried on its own; the gain over all cases, each
held out once, gets a permutation test. Only then all cases choose the rules that are written.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nnunet_brats_ext.evaluation.metric_facts import is_small_good
from nnunet_brats_ext.evaluation.ranking import rank_values, sign_flip_p_values
from nnunet_brats_ext.predictions.case_clusters import CaseClusters, fit_clusters
from nnunet_brats_ext.predictions.rule_sets import RuleSet, parse_rule
from nnunet_brats_ext.predictions.rules import RuleInput
from nnunet_brats_ext.storage.errors import UserError

RuleGrid = Sequence[Sequence[Mapping[str, Any]]]  # for every step, the rules of which one or none applies
ScoreColumn = tuple[str, str]  # region, metric
FEWEST_CASES = 5  # of a cluster that chooses for itself


@dataclass(frozen=True)
class RuleSelection:
    """What cross-validation found. Candidate 0 is to leave the predictions as they are.

    chosen: fold -> candidate chosen on the other folds. best: chosen on all cases. gains (case): of the objective, each
    case under the rules that were chosen without it. before, after (case, column): its scores.
    """

    chosen: Mapping[str, int]
    best: int
    gains: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @property
    def p_value(self) -> float:
        return float(sign_flip_p_values(self.gains[:, None])[0])

    @property
    def helps(self) -> bool:
        return bool(self.gains.mean() > 0)


def select_rules(
    scores: np.ndarray, folds: Sequence[str], columns: Sequence[ScoreColumn], objective: str
) -> RuleSelection:
    """Choose among candidates by their scores (case, candidate, column); folds names the fold of each case."""
    names = sorted(set(folds))
    if len(names) < 2:
        raise UserError(f"tuning holds out one fold after the other; there is only {', '.join(names) or 'no fold'}")
    fold_of = np.array(folds)
    chosen = {name: best_candidate(scores[fold_of != name], columns, objective) for name in names}
    before = scores[:, 0]
    after = np.stack([case[chosen[fold]] for case, fold in zip(scores, folds, strict=True)])
    gains = gain_per_case(before, after, columns, objective)
    return RuleSelection(chosen, best_candidate(scores, columns, objective), gains, before, after)


@dataclass(frozen=True)
class ClusterSelection:
    """What cross-validation found for rules per cluster, against one set of rules for all cases.

    clusters: of all cases. best: the candidate of each, chosen on all. chosen: fold -> the same from the other folds.
    after (case, column): scores of held-out cases. gains (case): over the one set of rules. interval: of their mean,
    95 % by bootstrap.
    """

    clusters: CaseClusters
    best: tuple[int, ...]
    chosen: Mapping[str, tuple[int, ...]]
    after: np.ndarray
    gains: np.ndarray
    interval: tuple[float, float]

    @property
    def helps(self) -> bool:
        return self.interval[0] > 0


def select_per_cluster(
    scores: np.ndarray,
    features: np.ndarray,
    folds: Sequence[str],
    columns: Sequence[ScoreColumn],
    objective: str,
    number: int,
    images: bool,
    single: RuleSelection,
) -> ClusterSelection:
    """Choose candidates per cluster by their scores (case, candidate, column) and the cases' features (case, feature).

    A held-out case takes part neither in the clusters nor in the choice. single: what was found for all cases alike.
    """
    fold_of = np.array(folds)
    chosen, after = {}, np.empty_like(single.before)
    for fold in sorted(set(folds)):
        held_out = fold_of == fold
        clusters = fit_clusters(features[~held_out], number, images)
        chosen[fold] = _best_of_clusters(scores[~held_out], clusters.nearest(features[~held_out]), columns, objective)
        for case, cluster in zip(np.flatnonzero(held_out), clusters.nearest(features[held_out]), strict=True):
            after[case] = scores[case, chosen[fold][cluster]]
    gains = gain_per_case(single.after if single.helps else single.before, after, columns, objective)
    clusters = fit_clusters(features, number, images)
    best = _best_of_clusters(scores, clusters.nearest(features), columns, objective)
    return ClusterSelection(clusters, best, chosen, after, gains, interval_of_mean(gains))


def _best_of_clusters(
    scores: np.ndarray, clusters: np.ndarray, columns: Sequence[ScoreColumn], objective: str
) -> tuple[int, ...]:
    """The best candidate of each cluster; of one with few cases that of all."""
    groups = [scores[clusters == cluster] for cluster in range(clusters.max() + 1)]
    return tuple(
        best_candidate(group if len(group) >= FEWEST_CASES else scores, columns, objective) for group in groups
    )


def interval_of_mean(values: np.ndarray, resamples: int = 9999) -> tuple[float, float]:
    """The 95 % interval of a mean by the percentile bootstrap, the same every time."""
    drawn = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    low, high = np.percentile(values[drawn].mean(1), (2.5, 97.5))
    return float(low), float(high)


def best_candidate(scores: np.ndarray, columns: Sequence[ScoreColumn], objective: str) -> int:
    """The best candidate of scores (case, candidate, column): by its mean rank among all, or by the mean of a metric.

    The first of equals: leaving all as it is comes before any rule, and a rule before a stricter one.
    """
    return int(order_of_candidates(candidate_means(scores, columns, objective), objective)[0])


def candidate_means(scores: np.ndarray, columns: Sequence[ScoreColumn], objective: str) -> np.ndarray:
    """(candidate): the mean rank of each candidate among all, or the mean of a metric, of scores as above."""
    if objective == "ranking":
        ranks = rank_values(scores.swapaxes(0, 1), [is_small_good(metric) for _, metric in columns])
        return np.nanmean(ranks, axis=(1, 2))
    picked = [i for i, (_, metric) in enumerate(columns) if metric == objective]
    return np.nanmean(np.nanmean(scores[..., picked], axis=0), axis=-1)


def order_of_candidates(means: np.ndarray, objective: str) -> np.ndarray:
    """The candidates from the best to the worst, equals as they are given."""
    small_is_good = objective == "ranking" or is_small_good(objective)
    cost = np.round(means, 12)  # rounded, so that equal candidates stay equal
    return np.argsort(cost if small_is_good else -cost, kind="stable")


def gain_per_case(before: np.ndarray, after: np.ndarray, columns: Sequence[ScoreColumn], objective: str) -> np.ndarray:
    """How much better each case (case, column) became: in mean rank between the two, or in the metric.

    Where one of the two has no score there is nothing to compare, and no gain.
    """
    if objective == "ranking":
        ranks = rank_values(np.stack([before, after]), [is_small_good(metric) for _, metric in columns])
        difference = ranks[0] - ranks[1]
    else:
        picked = [i for i, (_, metric) in enumerate(columns) if metric == objective]
        difference = (after - before)[:, picked] * (-1 if is_small_good(objective) else 1)
    known = ~np.isnan(difference)
    return np.where(known, difference, 0).sum(1) / np.maximum(known.sum(1), 1)


def parse_grid(texts: Sequence[str]) -> RuleGrid:
    """`small-et=50,100,500` -> three rules of which one or none applies; several steps apply in their order."""
    grid = []
    for text in texts:
        head, _, values = text.partition("=")
        grid.append([parse_rule(f"{head}={value}" if value else head) for value in values.split(",")])
    return grid


def candidates(grid: RuleGrid, scheme_name: str) -> list[RuleSet]:
    """Every combination of a grid, one rule or none of each step; the first has no rules."""
    options = itertools.product(*([None, *step] for step in grid))
    return [RuleSet(tuple(rule for rule in chosen if rule), scheme_name) for chosen in options]


def try_candidates(case: RuleInput, grid: RuleGrid, scheme_name: str) -> tuple[list[np.ndarray], np.ndarray]:
    """The distinct label maps that the candidates of a grid make of a case, and for each candidate the map it makes.

    Most thresholds change nothing or the same, so that there are few maps to score.
    """
    maps, made = [case.labels], np.zeros(1, dtype=int)
    for step in grid:
        table = np.empty((len(maps), len(step) + 1), dtype=int)
        for row in range(len(table)):
            table[row, 0] = row
            for column, rule in enumerate(step, 1):
                labels, _ = RuleSet((rule,), scheme_name).apply(replace(case, labels=maps[row]))
                same = (i for i, known in enumerate(maps) if np.array_equal(known, labels))
                table[row, column] = next(same, len(maps))
                if table[row, column] == len(maps):
                    maps.append(labels)
        made = table[made].ravel()
    return maps, made
