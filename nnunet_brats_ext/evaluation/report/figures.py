"""The charts of a report as files for papers: PDF, whose text stays text, and PNG, on white."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from nnunet_brats_ext.evaluation.metric_facts import facts_of_metric
from nnunet_brats_ext.evaluation.report.shapes import Chart, Dots, Label, Stroke
from nnunet_brats_ext.storage.output import partial_file

COLOURS = ("#0b63b0", "#c2410c", "#15803d", "#9d2d87", "#7a6000", "#475569")  # as on the page in daylight
STROKES: dict[str, dict[str, Any]] = {
    "grid": dict(color="#d9dee4", linewidth=0.8),
    "interval": dict(color="#5a6470", linewidth=2.5, solid_capstyle="butt"),
    "whisker": dict(color="#1b1f24", linewidth=1.0),
    "median": dict(color="#1b1f24", linewidth=2.0),
}
DOTS: dict[str, dict[str, Any]] = {"mean": dict(color=COLOURS[0]), "mark": dict(color=COLOURS[1])}
OPACITY = {"point": 0.6, "disc": 0.75}
ALIGNED = {"tick": "center", "value": "center", "tick left": "right", "name": "left"}
TEXT_PT = {"name": 9, "value": 8}
PT = 1 / 72  # of an inch: a pixel of the page becomes a point on paper
TITLE_PT, GAP_PT, LEGEND_PT, LINE_PT = 22, 18, 26, 14
PNG_DPI = 200
FONTS = {"pdf.fonttype": 42, "svg.fonttype": "none", "font.size": 8}


def draw_charts(charts: Sequence[Chart], columns: int = 3) -> Figure:
    """Charts side by side, in rows of so many."""
    rows = [charts[start : start + columns] for start in range(0, len(charts), columns)]
    heights = [max(TITLE_PT + chart.height for chart in row) for row in rows]
    width = max(sum(chart.width + GAP_PT for chart in row) for row in rows)
    legend = charts[0].legend
    columns = max(int(width / 110), 1)
    foot = LEGEND_PT + LINE_PT * ((len(legend) - 1) // columns) if legend else 0
    whole = sum(heights) + foot
    figure = Figure(figsize=(width * PT, whole * PT), facecolor="white")
    top = whole
    for row, height in zip(rows, heights, strict=True):
        left = GAP_PT / 2
        for chart in row:
            bottom = top - TITLE_PT - chart.height
            place = (left / width, bottom / whole, chart.width / width, chart.height / whole)
            _draw(figure.add_axes(place), chart)
            left += chart.width + GAP_PT
        top -= height
    if legend:  # the same of all charts of a figure
        handles = [Line2D([], [], marker="o", linestyle="", color=COLOURS[n % len(COLOURS)]) for n, _ in legend]
        figure.legend(
            handles, [text for _, text in legend], loc="lower center", ncols=columns, frameon=False, fontsize=8
        )
    return figure


def _draw(axis: Axes, chart: Chart) -> None:
    axis.set(xlim=(0, chart.width), ylim=(chart.height, 0))
    axis.axis("off")
    axis.set_title(chart.title, fontsize=10, loc="left")
    for order, shape in enumerate(chart.shapes):
        kind, *rest = shape.css.split()
        colour = COLOURS[int(rest[0][1:]) % len(COLOURS)] if rest and rest[0][0] == "c" else COLOURS[0]
        if isinstance(shape, Stroke):
            x, y = np.transpose(shape.points)
            axis.plot(x, y, zorder=order, **{"color": colour, **STROKES.get(kind, {})})
        elif isinstance(shape, Dots):
            x, y = np.transpose(shape.points)
            style = {"color": colour, "alpha": OPACITY.get(kind, 1), **DOTS.get(kind, {})}
            axis.scatter(x, y, s=shape.diameter**2, linewidths=0, zorder=order, **style)
        else:
            patch = Rectangle(
                shape.corner, shape.width, shape.height, facecolor=COLOURS[0], alpha=shape.strength, linewidth=0
            )
            patch.set_zorder(order)
            axis.add_patch(patch)
    for label in chart.labels:
        _write(axis, label, len(chart.shapes))


def _write(axis: Axes, label: Label, order: int) -> None:
    size = TEXT_PT.get(label.css, 8)
    axis.text(*label.place, label.text, ha=ALIGNED[label.css], va="baseline", fontsize=size, zorder=order)


def draw_boxes(values: Mapping[str, Mapping[str, np.ndarray]], metric: str) -> Figure:
    """Box plots of {region: {model: scores}}: a panel per region, a box per model, every case a dot."""
    models = max(map(len, values.values()))
    width = max(0.55 * models + 0.6, 1.6)
    figure = Figure(figsize=(width * len(values) + 0.5, 3.2), facecolor="white", layout="constrained")
    axes = figure.subplots(1, len(values), squeeze=False, sharey=True)[0]
    facts = facts_of_metric(metric)
    lines = dict(medianprops=dict(color=COLOURS[1], linewidth=1.5), flierprops=dict(marker=""))
    for axis, (region, by_model) in zip(axes, values.items(), strict=True):
        axis.boxplot(list(by_model.values()), widths=0.55, **lines)
        for position, found in enumerate(by_model.values(), 1):
            spread = np.random.default_rng(0).uniform(-0.2, 0.2, len(found)) * (len(found) > 1)
            axis.scatter(position + spread, found, s=5, alpha=0.5, linewidths=0, color=COLOURS[0], zorder=1)
        axis.set_xticks(range(1, len(by_model) + 1), list(by_model), rotation=30, ha="right")
        axis.set_title(region, fontsize=10)
        axis.grid(axis="y", color="#e5e9ee")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(facts.title)
    if facts.unit == "mm":
        axes[0].set_yscale("symlog", linthresh=1)
        axes[0].set_ylim(bottom=0)
    return figure


def save_figures(figures: Iterator[tuple[str, Figure]], folder: Path) -> list[Path]:
    """Write each figure as NAME.pdf and NAME.png into a folder, which is made; files of these names are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with rc_context(FONTS):
        for name, figure in figures:
            for ending in (".pdf", ".png"):
                path = folder / f"{name}{ending}"
                # Without the date, so that the same results give the same file.
                metadata = {"CreationDate": None} if ending == ".pdf" else None
                with partial_file(path) as scratch:
                    figure.savefig(scratch, format=ending[1:], dpi=PNG_DPI, metadata=metadata)
                paths.append(path)
    return paths
