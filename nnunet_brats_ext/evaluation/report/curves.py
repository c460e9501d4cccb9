"""Charts of means with their uncertainty, of sizes, of the ranking's stability, of tests, and of confusion."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nnunet_brats_ext.evaluation.metric_facts import facts_of_metric
from nnunet_brats_ext.evaluation.ranking import Comparison, Ranking
from nnunet_brats_ext.evaluation.report.charts import MARGIN, PLOT_LEFT, WIDTH, AxisScale, linear_scale, log_scale
from nnunet_brats_ext.evaluation.report.shapes import Block, Chart, Dots, Label, Stroke, grid_lines
from nnunet_brats_ext.evaluation.report.tables import VOLUMES, ModelResults, decimals, title_of
from nnunet_brats_ext.evaluation.results import fold_means, means_of, summarise_folds, summarise_means

ROW = 34  # pixels of a row with its name above
TOP, PLOT = 8, 170
LONGEST_NAME = 14  # characters, beside or above a cell
COLOURS = 6
BACKGROUND_SHORT = "backgr."


class MeanRow(NamedTuple):
    """A mean with what lies on both sides of it. marks: further values, such as the means of folds."""

    name: str
    mean: float
    low: float
    high: float
    marks: Sequence[float] = ()


def means_chart(title: str, rows: Sequence[MeanRow], metric: str) -> Chart:
    """A dot for each mean on a line from low to high, with smaller dots for the marks; rows without a mean say so."""
    digits = decimals(metric)
    everything = np.array([value for row in rows for value in (row.mean, row.low, row.high, *row.marks)], dtype=float)
    scale = linear_scale(everything[np.isfinite(everything)], 2 * MARGIN, WIDTH - 2 * MARGIN)
    shapes: list[Stroke | Dots | Block] = []
    height = ROW * len(rows) + 24
    shapes += grid_lines([tick.position for tick in scale.ticks], 0, height - 20, vertical=True)
    labels = [Label((tick.position, height - 5), tick.text) for tick in scale.ticks]
    sentences = []
    for number, row in enumerate(rows):
        y = number * ROW + 24
        if not np.isfinite(row.mean):
            labels.append(Label((2, y - 10), f"{row.name}: no score", "name"))
            continue
        labels.append(Label((2, y - 10), row.name, "name"))
        sentence = f"{row.name}: {row.mean:.{digits}f}"
        if np.isfinite([row.low, row.high]).all():
            sentence += f", {row.low:.{digits}f} to {row.high:.{digits}f}"
            ends = [(float(scale(np.array(value))), y) for value in (row.low, row.high)]
            shapes.append(Stroke(ends, "interval", sentence))
        if row.marks:
            places = [(float(scale(np.array(value))), y) for value in row.marks if np.isfinite(value)]
            shapes.append(Dots(places, 4, "mark", f"{sentence}; folds {_listed(row.marks, digits)}"))
        shapes.append(Dots([(float(scale(np.array(row.mean))), y)], 9, "mean", sentence))
        sentences.append(sentence)
    return Chart(
        title,
        f"Means of {title_of(metric)} in {title}: {'; '.join(sentences)}",
        WIDTH,
        height,
        shapes,
        labels,
    )


def _listed(values: Sequence[float], digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def sizes_chart(title: str, points: Mapping[str, tuple[np.ndarray, np.ndarray]], metric: str) -> Chart:
    """Scores over volumes: model -> (volumes of the reference in ml, scores), on a logarithmic axis of volumes."""
    volumes, scores = (np.concatenate([pair[side] for pair in points.values()]) for side in (0, 1))
    x_scale = log_scale(volumes, PLOT_LEFT, WIDTH - MARGIN)
    share = facts_of_metric(metric).unit == "share"
    ends = TOP + PLOT, TOP
    y_scale = linear_scale(scores, *ends, top=1.0) if share else log_scale(scores, *ends)
    shapes: list[Stroke | Dots | Block] = list(_grid(x_scale, y_scale))
    for number, (name, (x, y)) in enumerate(points.items()):
        places = list(zip(x_scale(x).tolist(), y_scale(y).tolist(), strict=True))
        shapes.append(Dots(places, 5, f"point c{number % COLOURS}", f"{name}: {len(places)} cases"))
    legend = [(number % COLOURS, name) for number, name in enumerate(points)]
    description = f"{title_of(metric)} over the volume of {title} in the reference: {', '.join(points)}"
    labels = [
        *_ticks(x_scale, y_scale),
        Label(((PLOT_LEFT + WIDTH) / 2, TOP + PLOT + 31), "volume in the reference (ml)"),
    ]
    return Chart(title, description, WIDTH, TOP + PLOT + 36, shapes, labels, legend)


def _grid(x_scale: AxisScale, y_scale: AxisScale) -> list[Stroke]:
    across = grid_lines([tick.position for tick in y_scale.ticks], PLOT_LEFT, WIDTH - MARGIN, vertical=False)
    return [*across, *grid_lines([tick.position for tick in x_scale.ticks], TOP, TOP + PLOT, vertical=True)]


def _ticks(x_scale: AxisScale, y_scale: AxisScale) -> list[Label]:
    below = [Label((tick.position, TOP + PLOT + 15), tick.text) for tick in x_scale.ticks]
    return [*below, *(Label((PLOT_LEFT - 5, tick.position + 4), tick.text, "tick left") for tick in y_scale.ticks)]


def stability_chart(ranking: Ranking) -> Chart:
    """How often each entry takes each place when cases are drawn anew, as challengeR draws it.

    The area of a disc is the share of resamples; a line goes from the lower to the upper end of the 95 % interval of
    the place, with a bar at its median. Entries are ordered by their places.
    """
    names = [ranking.entries[i] for i in ranking.order]
    frequencies, places = (part[ranking.order] for part in (ranking.stability.frequencies, ranking.stability.places))
    step = min(60.0, (WIDTH - PLOT_LEFT) / len(names))
    width = max(WIDTH, PLOT_LEFT + 26 * len(names))
    step = max(step, (width - PLOT_LEFT) / len(names))
    row = min(step, 44.0)
    y_of = {place: TOP + (place - 0.5) * row for place in range(1, len(names) + 1)}
    bottom = TOP + row * len(names)
    shapes: list[Stroke | Dots | Block] = [*grid_lines(y_of.values(), PLOT_LEFT, width - MARGIN, vertical=False)]
    labels = [Label((PLOT_LEFT - 8, y + 4), str(place), "tick left") for place, y in y_of.items()]
    sentences = []
    for number, name in enumerate(names):
        x = PLOT_LEFT + (number + 0.5) * step
        low, median, high = (TOP + (place - 0.5) * row for place in places[number])
        sentence = f"{name}: place {places[number][1]:g}, 95 % from {places[number][0]:g} to {places[number][2]:g}"
        for place, share in enumerate(frequencies[number], 1):
            if share > 0:
                said = f"{name} takes place {place} in {share:.0%}"
                shapes.append(
                    Dots([(x, y_of[place])], max((row - 6) * np.sqrt(share), 2.0), f"disc c{number % COLOURS}", said)
                )
        shapes.append(Stroke([(x, low), (x, high)], "whisker", sentence))
        shapes.append(Stroke([(x - 7, median), (x + 7, median)], "median", sentence))
        labels.append(Label((x, bottom + 16 + 13 * (number % 2 if len(names) > 3 else 0)), _short(name, 14)))
        sentences.append(sentence)
    tau = f"Kendall's tau {ranking.stability.tau:.2f}"
    legend = [(number % COLOURS, name) for number, name in enumerate(names)]
    return Chart(f"Places ({tau})", "; ".join(sentences), width, bottom + 34, shapes, labels, legend)


def tests_chart(title: str, tests: Sequence[Comparison], entries: Sequence[str]) -> Chart:
    """The p-values of paired tests between all entries in one column, corrected by Holm: a cell per pair.

    Above the diagonal those of the permutation test, below it those of Wilcoxon's; dark cells are below 0.05.
    """
    values = np.full((len(entries), len(entries)), np.nan)
    for one in tests:
        i, j = entries.index(one.first), entries.index(one.second)
        values[i, j], values[j, i] = one.permutation_holm, one.wilcoxon_holm
    texts = [["" if i == j else _p_text(values[i, j]) for j in range(len(entries))] for i in range(len(entries))]
    strengths = np.select([values < 0.001, values < 0.01, values < 0.05], [0.75, 0.55, 0.35], 0.06)
    return _cells(title, entries, entries, np.where(np.isnan(values), 0, strengths), texts, "p of {} against {}: {}")


def _p_text(p: float) -> str:
    return "–" if np.isnan(p) else "< .001" if p < 0.001 else f"{p:.3f}"


def confusion_chart(title: str, labels: Sequence[str], voxels: np.ndarray) -> Chart:
    """What each label of the reference (rows) was predicted as (columns), as shares of the row's voxels."""
    totals = voxels.sum(1, keepdims=True)
    shares = np.divide(voxels, totals, out=np.zeros(voxels.shape), where=totals > 0)
    texts = [
        [_share_text(share) if total else "–" for share in row]
        for row, total in zip(shares, totals.ravel(), strict=True)
    ]
    said = "of {} in the reference predicted as {}: {}"
    names = [BACKGROUND_SHORT if name == "background" else name for name in labels]
    return _cells(title, names, names, 0.8 * shares, texts, said)


def _share_text(share: float) -> str:
    return "0" if share == 0 else "< .001" if share < 0.001 else f"{share:.3f}"


def _cells(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    strengths: np.ndarray,
    texts: Sequence[Sequence[str]],
    said: str,
) -> Chart:
    """A table of cells, coloured by their strength. said: what a cell's sentence is of its row, column and text."""
    left = 8 + 7.2 * max(len(_short(name)) for name in rows)
    width = max(WIDTH, left + 52 * len(columns))
    cell, row = (width - left) / len(columns), 26
    shapes: list[Stroke | Dots | Block] = []
    labels = [Label((left + (j + 0.5) * cell, 14), _short(name, int(cell / 6.8))) for j, name in enumerate(columns)]
    sentences = []
    for i, name in enumerate(rows):
        y = 20 + i * row
        labels.append(Label((left - 6, y + row / 2 + 4), _short(name), "tick left"))
        for j, text in enumerate(texts[i]):
            sentence = said.format(name, columns[j], text)
            if text:
                shapes.append(Block((left + j * cell, y), cell - 2, row - 2, "cell", float(strengths[i, j]), sentence))
                labels.append(Label((left + (j + 0.5) * cell, y + row / 2 + 4), text, "value"))
                sentences.append(sentence)
    return Chart(title, "; ".join(sentences), width, 24 + row * len(rows), shapes, labels)


def _short(name: str, most: int = LONGEST_NAME) -> str:
    return name if len(name) <= most else f"{name[: max(most - 1, 1)]}…"


# ---- of results -----------------------------------------------------------------------------------------------------


def draw_curves(
    results: ModelResults, headline: Sequence[str], regions: Sequence[str], ranking: Ranking | None
) -> dict[str, list[Chart]]:
    """Name -> charts: of means, of spread, of sizes, of the ranking and of confusion; those that there are."""
    found: dict[str, list[Chart]] = {}
    for metric in headline:
        found[f"intervals_{metric}"] = [
            means_chart(region, _interval_rows(results, region, metric), metric) for region in regions
        ]
        found[f"spread_{metric}"] = [
            means_chart(region, _spread_rows(results, region, metric), metric) for region in regions
        ]
        points = {region: _points(results, region, metric) for region in regions}
        found[f"sizes_{metric}"] = [sizes_chart(region, one, metric) for region, one in points.items() if one]
    if ranking and len(ranking.cases) > 1:
        found["stability"] = [stability_chart(ranking)]
        for metric in dict.fromkeys(metric for _, metric in ranking.columns):
            own = {
                region: [one for one in ranking.tests if (one.region, one.metric) == (region, metric)]
                for region in regions
            }
            found[f"tests_{metric}"] = [
                tests_chart(f"{region} {title_of(metric)}", tests, ranking.entries) for region, tests in own.items()
            ]
    found["confusion"] = [
        confusion_chart(name, confusion["labels"], np.sum(list(confusion["voxels"].values()), axis=0))
        for name, confusion in ((name, one["confusion"]) for name, one in results.items())
        if confusion["voxels"]
    ]
    return {name: charts for name, charts in found.items() if charts}


def _tests_of(ranking: Ranking, region: str, metric: str) -> list[Comparison]:
    return [one for one in ranking.tests if (one.region, one.metric) == (region, metric)]


def _interval_rows(results: ModelResults, region: str, metric: str) -> list[MeanRow]:
    found = {name: one["summary"][region][metric] for name, one in results.items()}
    return [MeanRow(name, _nan(one["mean"]), _nan(one["ci_low"]), _nan(one["ci_high"])) for name, one in found.items()]


def _spread_rows(results: ModelResults, region: str, metric: str) -> list[MeanRow]:
    """Mean ± SD over cases, and over folds with the mean of each as a mark; then over models."""
    rows = []
    for name, one in results.items():
        rows.append(_spread_row(f"{name}: cases", one["summary"][region][metric]))
        if over_folds := summarise_folds(one):
            rows.append(_spread_row(f"{name}: folds", over_folds[region][metric], fold_means(one, region, metric)))
    if len(results) > 1:
        means = [means_of(one) for one in results.values()]
        marks = [one[region][metric] for one in means]
        rows.append(_spread_row("models", summarise_means(means)[region][metric], marks))
    return rows


def _spread_row(name: str, statistics: Mapping[str, float | None], marks: Sequence[float | None] = ()) -> MeanRow:
    mean, std = _nan(statistics["mean"]), _nan(statistics["std"])
    return MeanRow(name, mean, mean - std, mean + std, [mark for mark in marks if mark is not None])


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _points(results: ModelResults, region: str, metric: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Model -> volumes in the reference and scores, of the cases that have both and where the region is."""
    found = {}
    for name, one in results.items():
        pairs = [(scores[region].get(VOLUMES[0]), scores[region][metric]) for scores in one["cases"].values()]
        known = [(volume, score) for volume, score in pairs if volume and score is not None]
        if known:
            found[name] = tuple(np.array(known).T)
    return found
