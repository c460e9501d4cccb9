"""The report: results of `evaluate`, and what else there is, as one HTML page without any other resource."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from nnunet_brats_ext.evaluation.pictures import REGION_COLOURS, PicturePanel, draw_grid, fill
from nnunet_brats_ext.evaluation.presets import find_preset
from nnunet_brats_ext.evaluation.ranking import Ranking, load_results, rank_entries
from nnunet_brats_ext.evaluation.report import tables
from nnunet_brats_ext.evaluation.report.charts import BoxPlot, Curve, LineChart, box_plots, line_chart
from nnunet_brats_ext.evaluation.report.curves import draw_curves
from nnunet_brats_ext.evaluation.report.figures import draw_boxes, draw_charts, save_figures
from nnunet_brats_ext.evaluation.report.inputs import ReportOptions, find_case_files, find_spreads
from nnunet_brats_ext.evaluation.report.lesion_charts import draw_lesions, read_lesions
from nnunet_brats_ext.evaluation.report.overlays import CaseFiles, SlicePicture, draw_case
from nnunet_brats_ext.evaluation.report.published import published_tables
from nnunet_brats_ext.evaluation.report.shapes import Chart
from nnunet_brats_ext.evaluation.report.training import TrainingRecord, read_model
from nnunet_brats_ext.evaluation.results import CaseScores, headline_metrics
from nnunet_brats_ext.storage.errors import Notice, UserError
from nnunet_brats_ext.storage.json_files import JsonEntry
from nnunet_brats_ext.storage.output import write_text
from nnunet_brats_ext.storage.parallel import for_each_case

PACKAGES = ("nnunet-brats-ext", "nnunetv2", "numpy", "scipy", "SimpleITK")
UNCERTAINTY_SCORES = ("score", "dice_auc", "filtered_tp_auc", "filtered_tn_auc")
CURVES = {"dice": "Dice", "filtered_tp": "filtered true positives", "filtered_tn": "filtered true negatives"}


def write_report(sources: Sequence[Path | str], out: Path | str, **options: Any) -> list[str]:
    """Write the page; gives the sentences in which it says what it had to leave out.

    sources: results.json files of `evaluate`, one per model, of one preset and cohort. options: as in `ReportOptions`.
    Several cases are drawn in several processes, for which a script that calls this needs its
    `if __name__ == "__main__"`.
    """
    asked = ReportOptions(sources, out, **options)  # type: ignore[arg-type]
    if folders := [str(source) for source in asked.sources if source.is_dir()]:
        raise UserError(f"{', '.join(folders)} is a folder; a report takes the results.json of `nnunet_brats evaluate`")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Notice)
        results = load_results(asked.sources, asked.names)
    notes: list[str] = []
    entries: dict[str, CaseScores] = {name: one["cases"] for name, one in results.items()}
    regions, metrics = tables.regions_of(results), tables.metrics_of(results)
    for what, shared in (("region", regions), ("metric", metrics)):
        if not shared:
            raise UserError(f"these results share no {what}: {', '.join(map(str, asked.sources))}")
    headline = headline_metrics(results.values())
    chosen = _choose(entries, asked, regions, metrics)
    failing = {
        one.case: asked.region or tables.failing_region(entries, one.case, asked.metric, regions) for one in chosen
    }
    pictures = _pictures(failing, results, asked, notes)
    models = _models(asked, notes)
    published = published_tables(
        results, regions, [model.trainer for model in models], asked.paper, find_spreads(asked.spreads)
    )
    if asked.paper and not published:
        notes.append(f"{', '.join(asked.paper)} published no such scores of these regions.")
    ranking = _ranking(entries, headline, notes)
    curves = draw_curves(results, headline, regions, ranking)
    curves |= draw_lesions(read_lesions(asked.sources, list(results)), regions)
    uncertainty = _uncertainty(asked, notes)
    notes += [f"{one.message}." for one in caught]
    content = {
        "title": asked.title,
        "facts": _facts(results, asked),
        "summaries": [tables.summarise_metric(results, metric, regions) for metric in metrics],
        "headline": headline,
        "plots": {metric: _box_plots(entries, metric, regions) for metric in metrics if not tables.is_count(metric)},
        "empty": tables.count_empty(results, regions),
        "published": published,
        "ranking": _ranking_content(ranking) if ranking else None,
        "curves": curves,
        "opened": [name for name in curves if name.startswith(("sizes_", "lesions_"))],
        "tested": list(dict.fromkeys(metric for _, metric in ranking.columns)) if ranking else [],
        "spread": {
            "columns": [f"{region} {tables.title_of(metric)}" for metric in headline for region in regions],
            "rows": tables.spread_rows(results, [(region, metric) for metric in headline for region in regions]),
        },
        "failing": failing,
        "table": tables.case_table(results, headline, regions),
        "drawn": [
            {
                "chosen": one,
                "planes": pictures[one.case],
                "scores": _scores(entries, one.case, regions, headline),
                "short": {
                    name: tables.format_score(asked.metric, scores[one.case][failing[one.case]][asked.metric])
                    for name, scores in entries.items()
                },
            }
            for one in chosen
            if one.case in pictures
        ],
        "chosen_metric": asked.metric,
        "chosen_by": f"{asked.region or 'mean'} {tables.title_of(asked.metric)}",
        "predicted": list(dict.fromkeys(name for planes in pictures.values() for name in planes[0].predictions)),
        "models": [(model, training_charts(model)) for model in models],
        "uncertainty": uncertainty,
        "regions": regions,
        "region_colours": REGION_COLOURS,
        "format_score": tables.format_score,
        "title_of": tables.title_of,
        "notes": notes,
    }
    if asked.figures:
        save_figures(_figures(results, asked, curves, pictures, failing), asked.figures)
    write_text(asked.out, render(content))
    return notes


def render(content: Mapping[str, Any]) -> str:
    """The page as text in ASCII, so that no locale can spoil it."""
    environment = Environment(
        loader=PackageLoader("nnunet_brats_ext.evaluation.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.jinja").render(content)
    return page.encode("ascii", "xmlcharrefreplace").decode()


def _facts(results: tables.ModelResults, options: ReportOptions) -> list[tuple[str, str]]:
    first = next(iter(results.values()))
    counts = sorted({len(one["cases"]) for one in results.values()})
    folders = {name: getattr(options, name) for name in ("reference", "images", "uncertainty")}
    return [
        ("preset", first["preset"]),
        ("cohort", first["cohort"]),
        ("cases", " to ".join(map(str, counts))),
        ("labels", ", ".join(sorted({one["labels"] for one in results.values()}))),
        ("written", datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z")),
        ("versions", ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))),
        ("models", ", ".join(results)),
        ("results", ", ".join(map(str, options.sources))),
        *((name, str(folder)) for name, folder in folders.items() if folder),
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _box_plots(entries: Mapping[str, CaseScores], metric: str, regions: Sequence[str]) -> list[BoxPlot]:
    values = {
        region: {name: tables.values_of(scores, region, metric) for name, scores in entries.items()}
        for region in regions
    }
    return box_plots(values, metric, tables.decimals(metric))


def _ranking(entries: Mapping[str, CaseScores], metrics: Sequence[str], notes: list[str]) -> Ranking | None:
    if len(entries) < 2:
        return None
    try:
        return rank_entries(entries, metrics)
    except UserError as error:
        notes.append(f"There is no ranking: {error}.")
        return None


def _ranking_content(ranking: Ranking) -> dict[str, Any]:
    columns = dict.fromkeys(metric for _, metric in ranking.columns)
    return {
        "rows": tables.ranking_rows(ranking),
        "cases": len(ranking.cases),
        "metrics": [tables.title_of(metric) for metric in columns],
        "left_out": ranking.left_out,
    }


def _figures(
    results: tables.ModelResults,
    options: ReportOptions,
    curves: Mapping[str, Sequence[Chart]],
    pictures: Mapping[str, Sequence[SlicePicture]],
    failing: Mapping[str, str],
) -> Iterator[tuple[str, Figure]]:
    """Every figure of the page with its name, one after the other."""
    for metric in headline_metrics(results.values()):
        values = {
            region: {name: tables.values_of(one["cases"], region, metric) for name, one in results.items()}
            for region in tables.regions_of(results)
        }
        yield f"boxes_{metric}", draw_boxes(values, metric)
    for name, charts in curves.items():
        yield name, draw_charts(charts)
    if pictures:
        yield "cases", _case_figure(results, pictures, failing, options)
        yield "sequences", _sequence_figure(results, pictures)
        if options.sequences:
            yield "overlays", _overlay_figure(results, pictures, options)


def _case_figure(
    results: tables.ModelResults,
    pictures: Mapping[str, Sequence[SlicePicture]],
    failing: Mapping[str, str],
    options: ReportOptions,
) -> Figure:
    """Cases in rows, the reference and the models in columns, with the score of the region that fails."""
    columns = list(dict.fromkeys(name for planes in pictures.values() for name in planes[0].panels))
    rows = []
    for case, (axial, *_) in pictures.items():
        empty = PicturePanel(np.ones_like(next(iter(axial.panels.values())).picture))
        row = [_with_labels(axial.panels.get(name, empty), options) for name in columns]
        for number, name in enumerate(columns):
            score = results[name]["cases"][case][failing[case]][options.metric] if name in results else None
            text = f"{name} {tables.format_score(options.metric, score)}" if name in results else name
            row[number] = replace(row[number], title=text)
        rows.append(row)
    labels = [f"{case}\n{region}" for case, region in failing.items() if case in pictures]
    return draw_grid(rows, labels, _labels_of_regions(results))


def _sequence_figure(results: tables.ModelResults, pictures: Mapping[str, Sequence[SlicePicture]]) -> Figure:
    """Cases in rows, their sequences in columns; behind them the reference, or else a prediction, over the first."""
    rows = [[*axial.sequences.values(), next(iter(axial.panels.values()))] for axial, *_ in pictures.values()]
    return draw_grid(rows, list(pictures), _labels_of_regions(results))


def _overlay_figure(
    results: tables.ModelResults, pictures: Mapping[str, Sequence[SlicePicture]], options: ReportOptions
) -> Figure:
    """The reference and the models of every case in rows, over each of the sequences in columns."""
    rows, labels = [], []
    for case, (axial, *_) in pictures.items():
        for name, panel in axial.panels.items():
            over = [replace(one, labels=panel.labels) for one in axial.sequences.values()]
            rows.append([_with_labels(one, options) for one in over])
            labels.append(f"{case}\n{name}")
    return draw_grid(rows, labels, _labels_of_regions(results))


def _with_labels(panel: PicturePanel, options: ReportOptions) -> PicturePanel:
    """A panel whose label map is outlined, or with `filled` in colour."""
    if not options.filled or panel.labels is None:
        return panel
    return replace(panel, picture=fill(panel.picture, panel.labels), labels=None)


def _labels_of_regions(results: tables.ModelResults) -> dict[str, tuple[int, ...]]:
    first = next(iter(results.values()))
    regions = find_preset(first["preset"], first["cohort"]).regions
    return {region: labels for region, labels in regions.items() if region in tables.regions_of(results)}


def _choose(
    entries: Mapping[str, CaseScores], options: ReportOptions, regions: Sequence[str], metrics: Sequence[str]
) -> list[tables.ChosenCase]:
    for what, asked, known in (("metric", options.metric, metrics), ("region", options.region, regions)):
        if asked is not None and asked not in known:
            raise UserError(f"no {what} {asked!r} in these results; there are {', '.join(known)}")
    return tables.cases_to_draw(entries, options.metric, [options.region] if options.region else regions, options.cases)


def _scores(
    entries: Mapping[str, CaseScores], case: str, regions: Sequence[str], metrics: Sequence[str]
) -> dict[str, list[tuple[str, str]]]:
    """Model -> (region, its scores and volumes as text), for the caption of a picture."""

    def text(scores: Mapping[str, float | None]) -> str:
        found = " / ".join(tables.format_score(metric, scores[metric]) for metric in metrics)
        return f"{found}, {volumes}" if (volumes := tables.volumes_text(scores)) else found

    return {name: [(region, text(scores[case][region])) for region in regions] for name, scores in entries.items()}


def _pictures(
    failing: Mapping[str, str], results: tables.ModelResults, options: ReportOptions, notes: list[str]
) -> dict[str, list[SlicePicture]]:
    """Case -> its three planes, for the cases that have a label map; what is missing goes to the notes."""
    known = options.images or options.reference or any(one["predictions"]["files"] for one in results.values())
    if not known or not failing:
        notes.append(f"No cases are drawn: {'there are none to choose' if known else 'no images were given'}.")
        return {}
    jobs = find_case_files(failing, results, tables.regions_of(results), options, notes)
    work = partial(_draw, jobs, options.figures is not None)
    return for_each_case(work, list(jobs), "Draw", options.processes) if jobs else {}


def _draw(jobs: Mapping[str, CaseFiles], with_panels: bool, case: str) -> list[SlicePicture]:
    return draw_case(jobs[case], with_panels)


def _models(options: ReportOptions, notes: list[str]) -> list[TrainingRecord]:
    models = [read_model(folder) for folder in options.models]
    for model in models:
        if without := [fold for fold, epochs in model.folds.items() if not epochs]:
            notes.append(f"{model.trainer} has no training log of fold {', '.join(without)}.")
    if not models:
        notes.append("No training curves: no model folders were given.")
    return models


def training_charts(model: TrainingRecord) -> list[LineChart]:
    """Losses, terms of the training loss, and the pseudo Dice that nnU-Net measures on patches; a line per fold."""
    losses: list[Curve] = []
    terms: list[Curve] = []
    dice: list[Curve] = []
    for fold, epochs in model.folds.items():
        numbers, name = np.array(list(epochs), dtype=float), f"fold {fold}"
        losses.append(("training", name, numbers, np.array([epoch.train_loss for epoch in epochs.values()])))
        losses.append(("validation", name, numbers, np.array([epoch.val_loss for epoch in epochs.values()])))
        for term in dict.fromkeys(term for epoch in epochs.values() for term in epoch.terms):
            terms.append((term, name, numbers, np.array([epoch.terms.get(term, np.nan) for epoch in epochs.values()])))
        columns = list(zip_longest(*(epoch.pseudo_dice for epoch in epochs.values()), fillvalue=np.nan))
        fitting = len(model.regions) == len(columns)
        regions = model.regions if fitting else [f"channel {i}" for i in range(len(columns))]
        dice += [(region, name, numbers, np.array(column)) for region, column in zip(regions, columns, strict=True)]
    return [
        line_chart(title, "epoch", curves, top)
        for title, curves, top in (
            ("Loss", losses, None),
            ("Terms of the training loss", terms, None),
            ("Pseudo Dice on validation patches", dice, 1.0),
        )
        if any(np.isfinite(y).any() for *_, y in curves)
    ]


def _uncertainty(options: ReportOptions, notes: list[str]) -> dict[str, Any] | None:
    if options.uncertainty is None:
        return None
    if not options.uncertainty.is_dir():
        raise UserError(f"{options.uncertainty} is no folder; `nnunet_brats uncertainty` writes one")
    path = options.uncertainty / "uncertainty.json"
    if not path.is_file():
        notes.append(f"No filtered Dice curves: {options.uncertainty} has no uncertainty.json (add --reference there).")
        return None
    content = JsonEntry.read(path)
    charts, scores = [], {}
    for region, found in content["summary"].items():
        curves = [(title, region, np.arange(101.0), _curve(found["curves"][key])) for key, title in CURVES.items()]
        charts.append(line_chart(region, "threshold: more uncertain voxels are set aside", curves, 1.0))
        scores[region] = {key: found["scores"][key].number() for key in UNCERTAINTY_SCORES}
    members = content["members"].list()
    return {"measure": content["measure"].text(), "members": members, "charts": charts, "scores": scores}


def _curve(entry: JsonEntry) -> np.ndarray:
    values = [one.number(0, 1) for one in entry.list()]
    if len(values) != 101:
        raise entry.error("101 numbers, for the thresholds from 0 to 100")
    return np.array(values)
