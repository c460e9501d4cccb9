"""The numbers of a report as rows: summaries per model and region, the ranking, every case, and which cases to draw."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nnunet_brats_ext.evaluation.metric_facts import facts_of_metric, has_better, is_small_good
from nnunet_brats_ext.evaluation.ranking import Ranking, score_array
from nnunet_brats_ext.evaluation.results import (
    CaseScores,
    Results,
    Summary,
    headline_metrics,
    means_of,
    summarise_folds,
    summarise_means,
)

ModelResults = Mapping[str, Results]  # model -> content of its results.json

EMPTY = {"reference": "only predicted", "prediction": "missed", "both": "in neither"}  # as results.json marks them


class SummaryCell(NamedTuple):
    """One model's scores in one region over all cases, as text; empty where there is none."""

    mean: str
    std: str
    median: str
    quartiles: str
    note: str  # how many cases count, where not all do
    best: bool


class MetricSummary(NamedTuple):
    """One metric: a row per model, a cell per region."""

    metric: str
    title: str
    better: str  # which values are: lower, higher, or neither
    regions: tuple[str, ...]
    rows: list[tuple[str, list[SummaryCell]]]


class ChosenCase(NamedTuple):
    """A case to draw: its place among all, 1 the best, and why it was taken."""

    case: str
    score: float
    place: int
    label: str


def title_of(metric: str) -> str:
    return facts_of_metric(metric).title


def format_score(metric: str, value: float | None) -> str:
    """A score as text, with two digits of mm and counts and three of shares."""
    if value is None or np.isnan(value):
        return "–"
    return f"{value:.{decimals(metric)}f}"


def decimals(metric: str) -> int:
    return 2 if facts_of_metric(metric).unit in ("mm", "ml", "lesions") else 3


def is_count(metric: str) -> bool:
    return facts_of_metric(metric).unit == "lesions"


def metrics_of(results: ModelResults) -> list[str]:
    """The metrics that all models have, those that the challenge ranks by first."""
    everywhere = [set(metrics) for one in results.values() for metrics in one["summary"].values()]
    first = next(iter(next(iter(results.values()))["summary"].values()))
    shared = set.intersection(*everywhere)
    return [metric for metric in dict.fromkeys((*headline_metrics(results.values()), *first)) if metric in shared]


VOLUMES = ("reference_ml", "prediction_ml")


def volumes_text(scores: Mapping[str, float | None]) -> str:
    """The volumes of a region in the reference and in the prediction, as text; empty in results without volumes."""
    volumes = [scores.get(name) for name in VOLUMES]
    return "" if None in volumes else " → ".join(f"{volume:.1f}" for volume in volumes) + " ml"


def failing_region(entries: Mapping[str, CaseScores], case: str, metric: str, regions: Sequence[str]) -> str:
    """The region of a case with the worst mean over models; the first of equal ones, or where none has a score."""
    array = score_array(list(entries.values()), [case], [(region, metric) for region in regions])[:, 0]
    means = np.array([np.nan if np.isnan(one).all() else np.nanmean(one) for one in array.T])
    signed = np.where(np.isnan(means), -np.inf, means if is_small_good(metric) else -means)
    return regions[int(signed.argmax())]


class SpreadRow(NamedTuple):
    """One model, or all of them: mean (SD) over its cases, folds or models, as text per column."""

    name: str
    over: str
    cells: list[str]


def spread_rows(results: ModelResults, columns: Sequence[tuple[str, str]]) -> list[SpreadRow]:
    """Mean (SD) over cases, over folds where results have some, and over models where there are several.

    columns: of region and metric.
    """
    rows = []
    for name, one in results.items():
        cases = len(one["cases"])
        rows.append(SpreadRow(name, f"{cases} case{'s' * (cases != 1)}", _spread_cells(one["summary"], columns)))
        if over_folds := summarise_folds(one):
            folds = len(set(one["folds"].values()))
            rows.append(SpreadRow(name, f"{folds} folds", _spread_cells(over_folds, columns)))
    if len(results) > 1:
        over_models = summarise_means([means_of(one) for one in results.values()])
        rows.append(SpreadRow("all", f"{len(results)} models", _spread_cells(over_models, columns)))
    return rows


def _spread_cells(summary: Summary, columns: Sequence[tuple[str, str]]) -> list[str]:
    found = [(metric, summary[region][metric]) for region, metric in columns]
    return [
        format_score(metric, one["mean"]) + (f" ({format_score(metric, one['std'])})" if one["std"] is not None else "")
        for metric, one in found
    ]


def regions_of(results: ModelResults) -> tuple[str, ...]:
    """The regions that all models have, in the order of the first."""
    first, *others = results.values()
    return tuple(region for region in first["summary"] if all(region in one["summary"] for one in others))


def summarise_metric(results: ModelResults, metric: str, regions: Sequence[str]) -> MetricSummary:
    """The summary of one metric; the best mean of each region is marked if there are several models."""
    small = is_small_good(metric)
    columns = [[one["summary"][region][metric] for one in results.values()] for region in regions]
    best = [_best([one["mean"] for one in column], small) if has_better(metric) else set() for column in columns]
    rows = [
        (name, [_cell(metric, column[i], len(one["cases"]), i in b) for column, b in zip(columns, best, strict=True)])
        for i, (name, one) in enumerate(results.items())
    ]
    better = ("lower" if small else "higher") if has_better(metric) else ""
    return MetricSummary(metric, title_of(metric), better, tuple(regions), rows)


def _best(means: Sequence[float | None], small_is_good: bool) -> set[int]:
    known = [mean for mean in means if mean is not None]
    if len(means) < 2 or not known:
        return set()
    target = min(known) if small_is_good else max(known)
    return {i for i, mean in enumerate(means) if mean == target}


def _cell(metric: str, statistics: Mapping[str, Any], cases: int, best: bool) -> SummaryCell:
    mean, std, median, q1, q3 = (
        format_score(metric, statistics[name]) for name in ("mean", "std", "median", "q1", "q3")
    )
    note = "" if statistics["n"] == cases else f"{statistics['n']} of {cases} cases"
    if statistics["n"] < 2:
        return SummaryCell(mean, "", "", "", note, best)
    return SummaryCell(mean, std, median, f"{q1} to {q3}", note, best)


def count_empty(results: ModelResults, regions: Sequence[str]) -> list[tuple[str, str, list[int]]]:
    """(model, what, cases per region), for every model and kind of emptiness that occurs."""
    rows = []
    for name, one in results.items():
        for where, words in EMPTY.items():
            found = [sum(marks.get(region) == where for marks in one["empty"].values()) for region in regions]
            if any(found):
                rows.append((name, words, found))
    return rows


def ranking_rows(ranking: Ranking) -> list[dict[str, Any]]:
    """The entries from the best on, with the p-value of each one's lead over every other, and that of Holm.

    On the diagonal both are None.
    """
    return [
        {
            "name": ranking.entries[i],
            "mean_rank": f"{ranking.scores[i]:.3f}",
            "leads": [
                (None, None) if i == j else (float(ranking.p_values[i, j]), float(ranking.corrected[i, j]))
                for j in ranking.order
            ],
        }
        for i in ranking.order
    ]


def case_table(results: ModelResults, metrics: Sequence[str], regions: Sequence[str]) -> dict[str, Any]:
    """Every score of every case and model, as small as it gets, for the script that sorts and filters them.

    rows: [number of the model, case, one number or null per column, then remarks on empty regions].
    """
    columns = [(region, metric) for metric in metrics for region in regions]
    rows = [
        [i, case, *(_rounded(metric, scores[region][metric]) for region, metric in columns), _remarks(one, case)]
        for i, one in enumerate(results.values())
        for case, scores in one["cases"].items()
    ]
    return {
        "models": list(results),
        "columns": [
            {
                "title": f"{region} {title_of(metric)}",
                "decimals": decimals(metric),
                "small": is_small_good(metric),
            }
            for region, metric in columns
        ],
        "rows": rows,
    }


def _rounded(metric: str, value: float | None) -> float | None:
    return None if value is None else round(value, decimals(metric))


def _remarks(results: Mapping[str, Any], case: str) -> str:
    return ", ".join(f"{region} {EMPTY[where]}" for region, where in results["empty"].get(case, {}).items())


def values_of(scores: CaseScores, region: str, metric: str) -> np.ndarray:
    """The scores of all cases that have one."""
    values = (regions[region][metric] for regions in scores.values())
    return np.array([value for value in values if value is not None], dtype=np.float64)


def cases_to_draw(
    entries: Mapping[str, CaseScores], metric: str, regions: Iterable[str], number: int
) -> list[ChosenCase]:
    """Cases spread evenly from the best to the worst by the mean over models and regions: of three, the median between.

    Only cases that all models have count, and of these those with a score. Fewer than `number` give all of them.
    """
    first, *others = entries.values()
    cases = [case for case in first if all(case in other for other in others)]
    columns = [(region, metric) for region in regions]
    if not cases or number < 1:
        return []
    array = score_array(list(entries.values()), cases, columns)
    means = np.array([np.nan if np.isnan(one).all() else np.nanmean(one) for one in array.swapaxes(0, 1)])
    known = np.flatnonzero(~np.isnan(means))
    order = known[np.argsort(means[known] * (1 if is_small_good(metric) else -1), kind="stable")]
    if not order.size:
        return []
    places = np.unique(np.linspace(0, len(order) - 1, min(number, len(order))).round().astype(int))
    return [ChosenCase(cases[order[p]], float(means[order[p]]), int(p) + 1, _label(int(p), len(order))) for p in places]


def _label(place: int, number: int) -> str:
    if number == 1:
        return "The case"
    if place in (0, number - 1):
        return "Worst case" if place else "Best case"
    return "Median case" if place in ((number - 1) // 2, number // 2) else f"Case {place + 1} of {number}"
