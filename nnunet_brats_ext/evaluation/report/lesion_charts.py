"""Charts of lesions, from the rows that `evaluate` writes: size against Dice, and against being found."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnunet_brats_ext.evaluation.lesion_rows import lesion_files
from nnunet_brats_ext.evaluation.report.charts import MARGIN, PLOT_LEFT, WIDTH, AxisScale, linear_scale
from nnunet_brats_ext.evaluation.report.curves import COLOURS, PLOT, TOP
from nnunet_brats_ext.evaluation.report.shapes import Block, Chart, Dots, Label, Stroke, grid_lines
from nnunet_brats_ext.evaluation.results import MODELS
from nnunet_brats_ext.storage.json_files import JsonEntry, read_json

SIZES_MM3 = (0, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, np.inf)  # in which lesions are counted together
TICKS_MM3 = (1, 10, 100, 1000, 10_000, 100_000, 1_000_000)
LARGEST_DOT, SMALLEST_DOT = 14, 4


class Lesion(NamedTuple):
    """A lesion of the reference: its volume, whether it was found, and its Dice."""

    volume_mm3: float
    found: bool
    dice: float


Lesions = Mapping[str, Sequence[Lesion]]  # region -> its lesions


def read_lesions(sources: Sequence[Path], names: Sequence[str]) -> dict[str, Lesions]:
    """Model -> lesions of the reference, from the rows beside results.json files; of models without them nothing.

    names: of the models, in the order of the files and of the models in each. A row that lacks a column, or has one
    that is no number, is a UserError that names it.
    """
    found: list[dict[str, list[Lesion]]] = []
    for path in sources:
        content = read_json(path)
        models = list(content[MODELS]) if MODELS in content else [""]
        of_model: dict[str, dict[str, list[Lesion]]] = {model: {} for model in models}
        _, file = lesion_files(path)
        rows = JsonEntry(read_json(file, list), file).list() if file.is_file() else []
        for row in rows:
            lesions = of_model.get(row.get("model", models[0]).text())
            if lesions is not None and row["lesion"].value is not None:
                volume, dice = 1000 * row["reference_ml"].number(0), row["dice"].number(0, 1)
                one = Lesion(volume, row["outcome"].text() == "found", dice)
                lesions.setdefault(row["region"].text(), []).append(one)
        found += of_model.values()
    return {name: lesions for name, lesions in zip(names, found, strict=True) if lesions}


def draw_lesions(models: Mapping[str, Lesions], regions: Sequence[str]) -> dict[str, list[Chart]]:
    """Name -> charts, one per region that has lesions: `lesions_dice` and `lesions_found`."""
    of_region = {
        region: {name: lesions[region] for name, lesions in models.items() if lesions.get(region)} for region in regions
    }
    of_region = {region: found for region, found in of_region.items() if found}
    charts = {
        "lesions_dice": [dice_chart(region, found) for region, found in of_region.items()],
        "lesions_found": [found_chart(region, found) for region, found in of_region.items()],
    }
    return {name: drawn for name, drawn in charts.items() if drawn}


def dice_chart(region: str, models: Mapping[str, Sequence[Lesion]]) -> Chart:
    """A dot per lesion of the reference: its volume, and its Dice, which is 0 where it was missed."""
    x_scale, y_scale = _scales(models)
    shapes: list[Stroke | Dots | Block] = []
    sentences = []
    for number, (name, lesions) in enumerate(models.items()):
        x, y = x_scale(np.array([one.volume_mm3 for one in lesions])), y_scale(np.array([one.dice for one in lesions]))
        sentence = f"{name}: {len(lesions)} lesions"
        shapes.append(Dots(list(zip(x.tolist(), y.tolist(), strict=True)), 5, f"point c{number % COLOURS}", sentence))
        sentences.append(sentence)
    return _chart(region, f"Dice of lesions of {region} over their volume", shapes, sentences, models, x_scale, y_scale)


def found_chart(region: str, models: Mapping[str, Sequence[Lesion]]) -> Chart:
    """The share of lesions that was found, by their size: larger dots stand for more lesions."""
    x_scale, y_scale = _scales(models)
    shapes: list[Stroke | Dots | Block] = []
    sentences = []
    for number, (name, lesions) in enumerate(models.items()):
        volumes = np.array([one.volume_mm3 for one in lesions])
        is_found = np.array([one.found for one in lesions])
        line, dots = [], []
        for low, high in pairwise(SIZES_MM3):
            inside = (volumes >= low) & (volumes < high)
            if not (count := int(inside.sum())):
                continue
            middle = np.exp(np.log(volumes[inside].clip(1e-3)).mean())
            place = float(x_scale(middle)), float(y_scale(is_found[inside].mean()))
            size = f"from {low:g} to {high:g} mm³" if np.isfinite(high) else f"from {low:g} mm³"
            sentence = f"{name}, {size}: {int(is_found[inside].sum())} of {count} found"
            diameter = min(SMALLEST_DOT + np.sqrt(count), LARGEST_DOT)
            dots.append(Dots([place], diameter, f"disc c{number % COLOURS}", sentence))
            line.append(place)
            sentences.append(sentence)
        shapes += [Stroke(line, f"line c{number % COLOURS}", name), *dots]
    return _chart(region, f"Share of lesions of {region} found", shapes, sentences, models, x_scale, y_scale)


def _scales(models: Mapping[str, Sequence[Lesion]]) -> tuple[AxisScale, AxisScale]:
    """Of volumes in mm³, logarithmic, and of shares."""
    largest = max(one.volume_mm3 for lesions in models.values() for one in lesions)
    high = max(largest, TICKS_MM3[1]) * 1.3
    ticks = tuple(float(tick) for tick in TICKS_MM3 if tick <= high)
    x_scale = AxisScale(0, high, PLOT_LEFT, WIDTH - MARGIN, ticks, logarithmic=True)
    return x_scale, linear_scale(np.array([0.0, 1.0]), TOP + PLOT, TOP, top=1.0)


def _chart(
    title: str,
    what: str,
    shapes: Sequence[Stroke | Dots | Block],
    sentences: Sequence[str],
    models: Mapping[str, Sequence[Lesion]],
    x_scale: AxisScale,
    y_scale: AxisScale,
) -> Chart:
    bottom = TOP + PLOT
    grid = [
        *grid_lines([tick.position for tick in y_scale.ticks], PLOT_LEFT, WIDTH - MARGIN, vertical=False),
        *grid_lines([tick.position for tick in x_scale.ticks], TOP, bottom, vertical=True),
    ]
    labels = [
        *(Label((PLOT_LEFT - 5, tick.position + 4), tick.text, "tick left") for tick in y_scale.ticks),
        *(
            Label((tick.position, bottom + 15), f"{value:,.0f}")
            for tick, value in zip(x_scale.ticks, x_scale.tick_values, strict=True)
        ),
        Label(((PLOT_LEFT + WIDTH) / 2, bottom + 31), "volume of the lesion in the reference (mm³)"),
    ]
    legend = [(number % COLOURS, name) for number, name in enumerate(models)]
    return Chart(title, f"{what}: {'; '.join(sentences)}", WIDTH, bottom + 36, [*grid, *shapes], labels, legend)
