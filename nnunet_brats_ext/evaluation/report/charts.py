"""Box plots and line charts as shapes in pixels, which the template draws as SVG in the page's own colours.

Not by matplotlib, because its SVG makes the page heavy: with two models and 100 cases, 18 box plots take 47 kB here,
and 679 kB by matplotlib (167 kB with its dots joined into one path and numbers rounded, 116 kB without dots); the whole
page takes 82 kB. Nor do its charts follow light and dark, or show a sentence under the pointer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.cbook import boxplot_stats
from matplotlib.ticker import MaxNLocator

from nnunet_brats_ext.evaluation.metric_facts import facts_of_metric

WIDTH = 320  # of a chart, in units that are pixels on a wide screen
MARGIN = 10  # left and right of what is plotted in a box plot, so that no tick's text is cut
ROW_HEIGHT, BOX_HEIGHT = 40, 18  # of a model in a box plot: its name above its box
PLOT_LEFT, PLOT_TOP, PLOT_HEIGHT = 42, 8, 170  # of a line chart
MAX_POINTS = 200  # of a line; more could not be seen
LOG_TICKS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 400)


class Tick(NamedTuple):
    position: float
    text: str


@dataclass(frozen=True)
class AxisScale:
    """Values onto a stretch of pixels, linear or (for distances from 0 on) by log(1 + value)."""

    low: float
    high: float
    start: float
    end: float
    tick_values: tuple[float, ...]
    logarithmic: bool = False

    def __call__(self, values: np.ndarray) -> np.ndarray:
        bend = np.log1p if self.logarithmic else np.asarray
        low, high = bend(self.low), bend(self.high)
        return self.start + (bend(np.clip(values, self.low, self.high)) - low) / (high - low) * (self.end - self.start)

    @property
    def ticks(self) -> list[Tick]:
        return [Tick(round(float(self(np.array(value))), 1), f"{value:g}") for value in self.tick_values]


def linear_scale(values: np.ndarray, start: float, end: float, top: float | None = None) -> AxisScale:
    """From a round number below the values to one above, or to `top`."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    high = high if top is None else top
    low = min(low, high - 0.02 * max(abs(high), 1e-3))  # equal values need some room too
    ticks = np.round(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high), 10)
    ticks = ticks if top is None else ticks[ticks <= top + 1e-9]
    return AxisScale(float(ticks[0]), float(ticks[-1]) if top is None else top, start, end, tuple(ticks.tolist()))


def log_scale(values: np.ndarray, start: float, end: float) -> AxisScale:
    """From 0 to a little more than the largest value."""
    high = max(float(values.max()) if values.size else 0, 1.0) * 1.05
    return AxisScale(0, high, start, end, tuple(tick for tick in LOG_TICKS if tick <= high), logarithmic=True)


class BoxRow(NamedTuple):
    """One model's row: positions in pixels, and a sentence to show under the pointer and to read out."""

    name: str
    top: float
    middle: float
    q1: float
    median: float
    q3: float
    low: float
    high: float
    cases: int
    dots: str  # an SVG path of points; equal pixels are drawn once
    sentence: str


class BoxPlot(NamedTuple):
    """One region and metric: a row per model."""

    title: str
    height: float
    ticks: list[Tick]
    boxes: list[BoxRow]


def box_plots(values: Mapping[str, Mapping[str, np.ndarray]], metric: str, decimals: int) -> list[BoxPlot]:
    """A plot per region of {region: {model: scores of the cases}}, on one scale; a model without scores is empty."""
    everything = np.concatenate([scores for models in values.values() for scores in models.values()])
    start, end = MARGIN, WIDTH - MARGIN
    facts = facts_of_metric(metric)
    if facts.unit in ("mm", "ml") and not facts.signed:
        scale = log_scale(everything, start, end)
    else:
        scale = linear_scale(everything, start, end, top=1.0 if facts.unit == "share" else None)
    return [
        BoxPlot(
            region,
            ROW_HEIGHT * len(models) + 24,
            scale.ticks,
            [_box(name, scores, i * ROW_HEIGHT, scale, decimals) for i, (name, scores) in enumerate(models.items())],
        )
        for region, models in values.items()
    ]


def _box(name: str, scores: np.ndarray, top: float, scale: AxisScale, decimals: int) -> BoxRow:
    middle = top + ROW_HEIGHT - BOX_HEIGHT / 2 - 2
    if not scores.size:
        return BoxRow(name, top, middle, 0, 0, 0, 0, 0, 0, "", f"{name}: no scores")
    (found,) = boxplot_stats(scores)
    parts = [found[key] for key in ("q1", "med", "q3", "whislo", "whishi")]
    texts = [f"{value:.{decimals}f}" for value in parts]
    sentence = f"{name}: median {texts[1]}, quartiles {texts[0]} to {texts[2]}, {len(scores)} cases"
    q1, median, q3, low, high = scale(np.array(parts)).round(1).tolist()
    return BoxRow(name, top, middle, q1, median, q3, low, high, len(scores), _dots(scale(scores), middle), sentence)


def _dots(positions: np.ndarray, middle: float) -> str:
    jitter = np.random.default_rng(0).uniform(-1, 1, len(positions)) * (BOX_HEIGHT / 2 - 2) * (len(positions) > 1)
    places = np.unique(np.column_stack([positions, middle + jitter]).round().astype(int), axis=0)
    steps = np.diff(places, axis=0, prepend=[[0, 0]])  # each from the last: fewer digits
    return "".join(f"m{x} {y}h0" for x, y in steps)


class Line(NamedTuple):
    """A curve: an SVG path, which colour it has (lines of one legend entry share it), and what it is called."""

    path: str
    colour: int
    name: str


class LineChart(NamedTuple):
    """Curves over one horizontal axis, with a legend of (colour, text)."""

    title: str
    x_label: str
    height: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    legend: list[tuple[int, str]]


Curve = tuple[str, str, np.ndarray, np.ndarray]  # legend entry, name, x, y


def line_chart(title: str, x_label: str, curves: Sequence[Curve], top: float | None = None) -> LineChart:
    """A chart of curves; what is not finite is left out of them. top: where the vertical axis ends, if it is known."""
    curves = [(entry, name, *_thin(x[np.isfinite(y)], y[np.isfinite(y)])) for entry, name, x, y in curves]
    bottom = PLOT_TOP + PLOT_HEIGHT
    x_scale = linear_scale(np.concatenate([x for *_, x, _ in curves]), PLOT_LEFT, WIDTH - MARGIN)
    y_scale = linear_scale(np.concatenate([y for *_, y in curves]), bottom, PLOT_TOP, top)
    entries = list(dict.fromkeys(entry for entry, *_ in curves))
    lines = [Line(_path(x_scale(x), y_scale(y)), entries.index(entry), name) for entry, name, x, y in curves if len(x)]
    return LineChart(title, x_label, bottom + 34, x_scale.ticks, y_scale.ticks, lines, list(enumerate(entries)))


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbours, so that no line has more than `MAX_POINTS` points."""
    if len(x) <= MAX_POINTS:
        return x, y
    parts = zip(np.array_split(x, MAX_POINTS), np.array_split(y, MAX_POINTS), strict=True)
    means = np.array([(a.mean(), b.mean()) for a, b in parts])
    return means[:, 0], means[:, 1]


def _path(x: np.ndarray, y: np.ndarray) -> str:
    points = [f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True)]
    return f"M{points[0]}h0" if len(points) == 1 else "M" + "L".join(points)
