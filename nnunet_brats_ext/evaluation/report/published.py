"""What papers published, row by row, beside our scores of what their recipes predict."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from nnunet_brats_ext.evaluation.metric_facts import METRICS, facts_of_metric
from nnunet_brats_ext.evaluation.report.tables import ModelResults, title_of, values_of
from nnunet_brats_ext.evaluation.results import Results, fold_means, means_of
from nnunet_brats_ext.papers import Paper, PublishedResult, find_paper, find_papers, trainers

Column = tuple[str, str]  # region and metric
Digits = Mapping[Column, int]  # after the point
Statistic = Literal["mean", "deviation", "median", "range"]


class ScoreRow(NamedTuple):
    """One system: on which cases it was scored, and its scores as text, one per column.

    weights: how many our network of a row has at inference, in millions.
    """

    system: str
    data: str
    scores: list[str]
    ours: bool
    weights: str = ""


class PublishedTable(NamedTuple):
    """A table of a paper: below each row our counterpart, or why there is none."""

    title: str
    link: str
    columns: list[str]
    rows: list[ScoreRow]

    @property
    def has_weights(self) -> bool:
        return any(row.weights for row in self.rows)


def papers_with_results() -> list[str]:
    """The keys of the papers whose scores are known here."""
    return [key for key, paper in find_papers().items() if paper.results]


def published_tables(
    results: ModelResults,
    regions: Sequence[str],
    trainer_names: Sequence[str],
    keys: Sequence[str],
    spreads: Mapping[str, ModelResults] | None = None,
) -> list[PublishedTable]:
    """The tables that papers print, of these regions and of metrics that these results have.

    trainer_names: the papers of these trainers, without the rows of their other trainers. keys: of further papers.
    spreads: name -> results of single models, for rows over models. Ours are those called as in the paper's recipe;
    where none is, all of them stand above the paper's rows.
    """
    rows: dict[str, list[PublishedResult]] = {}  # key of a paper -> its rows
    for name in trainer_names:
        if facts := trainers().get(name):
            fitting = [one for one in find_paper(facts.paper).results if one.trainer in (None, name)]
            rows.setdefault(facts.paper, []).extend(one for one in fitting if one not in rows.get(facts.paper, []))
    for key in keys:
        rows[key] = list(find_paper(key).results)
    summaries = [one["summary"] for one in results.values()]
    there = {(r, m) for r in regions for m in METRICS if all(m in one.get(r, {}) for one in summaries)}
    found = []
    for key, ones in rows.items():
        paper = find_paper(key)
        known = [row for row in ones if _ours(paper, row, results, spreads or {})]
        for table in dict.fromkeys(row.table for row in ones):
            of_table = [row for row in ones if row.table == table and there & set(row.columns)]
            printed = {column for row in of_table for column in row.columns}
            columns = [(r, m) for m in METRICS for r in regions if (r, m) in there & printed]
            if columns:
                digits = {column: max(_digits(row, column) for row in of_table) for column in columns}
                lines = [] if known else [_row_of(name, one, digits) for name, one in results.items()]
                for row in of_table:
                    lines += _rows(row, _ours(paper, row, results, spreads or {}), digits)
                title = f"{paper.short}, {table}" if table else paper.short
                found.append(PublishedTable(title, paper.link, [f"{r} {title_of(m)}" for r, m in columns], lines))
    return found


def _ours(
    paper: Paper, row: PublishedResult, results: ModelResults, spreads: Mapping[str, ModelResults]
) -> tuple[str, ModelResults] | None:
    """The results that are a row's counterpart, and their name; a recipe that includes others puts theirs before it."""
    for name in (row.prediction, f"{paper.key}.{row.prediction}"):
        if row.over == "models" and name in spreads:
            return name, spreads[name]
        if row.over != "models" and name in results:
            return name, {name: results[name]}
    return None


def _rows(row: PublishedResult, ours: tuple[str, ModelResults] | None, digits: Digits) -> list[ScoreRow]:
    """What a paper prints, and below it ours by the same statistics."""
    printed = {column: _printed(row, *column) for column in digits}
    rows = [ScoreRow(row.system, row.data, [_shown(printed[one], digits[one]) for one in digits], ours=False)]
    if ours:
        name, models = ours
        computed = {column: _computed(models, *column, row.over, set(printed[column])) for column in digits}
        scores = [_shown(computed[column], digits[column]) for column in digits]
        rows.append(ScoreRow(name, _data_of(models, row.over), scores, True, _weights_of(row.trainer)))
    elif row.absent:
        rows.append(ScoreRow("not here", row.absent, [""] * len(digits), ours=True))
    return rows


def _weights_of(trainer: str | None) -> str:
    facts = trainers().get(trainer or "")
    return f"{facts.parameters / 1e6:.3f}" if facts and facts.parameters else ""


def _row_of(name: str, one: Results, digits: Digits) -> ScoreRow:
    scores = [_shown(_computed({name: one}, *column, "cases", {"mean"}), digits[column]) for column in digits]
    return ScoreRow(name, _data_of({name: one}, "cases"), scores, ours=True)


def _digits(row: PublishedResult, column: Column) -> int:
    """As many as the paper prints; at least four of shares and two of all else."""
    given = [value for one in _printed(row, *column).values() for value in np.atleast_1d(one)]
    least = 4 if facts_of_metric(column[1]).unit == "share" else 2
    return max([least, *(len(str(value).partition(".")[2]) for value in given)])


def _printed(row: PublishedResult, region: str, metric: str) -> dict[Statistic, float | tuple[float, float]]:
    given: dict[Statistic, Mapping[str, Mapping[str, float | tuple[float, float]]]] = {
        "mean": row.scores, "deviation": row.deviations, "median": row.medians, "range": row.ranges,
    }  # fmt: skip
    return {name: one[region][metric] for name, one in given.items() if metric in one.get(region, {})}


def _computed(
    models: ModelResults, region: str, metric: str, over: str, wanted: set[Statistic]
) -> dict[Statistic, float | tuple[float, float]]:
    first = next(iter(models.values()))
    if over == "models":
        values = [means_of(one)[region][metric] for one in models.values()]
    else:
        values = (
            fold_means(first, region, metric) if over == "folds" else list(values_of(first["cases"], region, metric))
        )
    known = np.array([value for value in values if value is not None], dtype=float)
    if not known.size:
        return {}
    found: dict[Statistic, float | tuple[float, float]] = {
        "mean": float(known.mean()), "median": float(np.median(known)),
        "range": (float(known.min()), float(known.max())),
    }  # fmt: skip
    if known.size > 1:
        found["deviation"] = float(known.std(ddof=1))
    return {name: value for name, value in found.items() if name in wanted}


def _shown(values: Mapping[Statistic, float | tuple[float, float]], digits: int) -> str:
    """A mean with its deviation in brackets, a median, a range."""
    text = {name: " to ".join(f"{one:.{digits}f}" for one in np.atleast_1d(value)) for name, value in values.items()}
    if "mean" in text and "deviation" in text:
        text["mean"] += f" ({text.pop('deviation')})"
    words: dict[Statistic, str] = {"mean": "", "deviation": "SD ", "median": "median ", "range": ""}
    return "; ".join(f"{words[name]}{text[name]}" for name in words if name in text) or "–"


def _data_of(models: ModelResults, over: str) -> str:
    first = next(iter(models.values()))
    cases = f"{(n := len(first['cases']))} case{'s' * (n != 1)}"
    if over == "cases":
        return cases
    number = len(models) if over == "models" else len(set((first.get("folds") or {}).values()))
    return f"{cases}, over {number} {over}"
