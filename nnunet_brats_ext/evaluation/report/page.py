"""The report: results of `evaluate`, and what else there is, as one HTML page without any other resource."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from nnunet_brats_ext.evaluation.pictures import REGION_COLOURS
from nnunet_brats_ext.evaluation.ranking import load_results, rank_entries
from nnunet_brats_ext.evaluation.report import tables
from nnunet_brats_ext.evaluation.report.charts import BoxPlot, Curve, LineChart, box_plots, line_chart
from nnunet_brats_ext.evaluation.report.inputs import ReportOptions, find_case_files
from nnunet_brats_ext.evaluation.report.overlays import CaseFiles, SlicePicture, draw_case
from nnunet_brats_ext.evaluation.report.published import published_table
from nnunet_brats_ext.evaluation.report.training import TrainingRecord, read_model
from nnunet_brats_ext.evaluation.results import CaseScores
from nnunet_brats_ext.storage.errors import UserError
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
    results = load_results(asked.sources, asked.names)
    entries: dict[str, CaseScores] = {name: one["cases"] for name, one in results.items()}
    regions, metrics = tables.regions_of(results), tables.metrics_of(results)
    for what, shared in (("region", regions), ("metric", metrics)):
        if not shared:
            raise UserError(f"these results share no {what}: {', '.join(map(str, asked.sources))}")
    headline = tables.headline_of(metrics)
    notes: list[str] = []
    chosen = _choose(entries, asked, regions, metrics)
    pictures = _pictures(chosen, results, asked, notes)
    models = _models(asked, notes)
    published = published_table(results, regions, [model.trainer for model in models], asked.paper)
    if asked.paper and not published:
        notes.append(f"{', '.join(asked.paper)} published no Dice or HD95 of these regions.")
    content = {
        "title": asked.title,
        "facts": _facts(results, asked),
        "summaries": [tables.summarise_metric(results, metric, regions) for metric in metrics],
        "headline": headline,
        "plots": {metric: _box_plots(entries, metric, regions) for metric in metrics if not tables.is_count(metric)},
        "empty": tables.count_empty(results, regions),
        "published": published,
        "ranking": _ranking(entries, notes),
        "table": tables.case_table(results, headline, regions),
        "drawn": [
            {"chosen": one, "planes": pictures[one.case], "scores": _scores(entries, one.case, regions, headline)}
            for one in chosen
            if one.case in pictures
        ],
        "chosen_metric": asked.metric,
        "chosen_by": f"{asked.region or 'mean'} {tables.title_of(asked.metric)}",
        "predicted": list(dict.fromkeys(name for planes in pictures.values() for name in planes[0].predictions)),
        "models": [(model, _training_charts(model)) for model in models],
        "uncertainty": _uncertainty(asked, notes),
        "regions": regions,
        "region_colours": REGION_COLOURS,
        "format_score": tables.format_score,
        "title_of": tables.title_of,
        "notes": notes,
    }
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
        ("results", ", ".join(f"{name}: {source}" for name, source in zip(results, options.sources, strict=True))),
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


def _ranking(entries: Mapping[str, CaseScores], notes: list[str]) -> dict[str, Any] | None:
    if len(entries) < 2:
        return None
    try:
        ranking = rank_entries(entries)
    except UserError as error:
        notes.append(f"There is no ranking: {error}.")
        return None
    columns = dict.fromkeys(metric for _, metric in ranking.columns)
    return {
        "rows": tables.ranking_rows(ranking),
        "cases": len(ranking.cases),
        "metrics": [tables.title_of(metric) for metric in columns],
        "left_out": ranking.left_out,
    }


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
    """Model -> (region, its scores as text), for the caption of a picture."""
    return {
        name: [
            (region, " / ".join(tables.format_score(metric, scores[case][region][metric]) for metric in metrics))
            for region in regions
        ]
        for name, scores in entries.items()
    }


def _pictures(
    chosen: Sequence[tables.ChosenCase], results: tables.ModelResults, options: ReportOptions, notes: list[str]
) -> dict[str, list[SlicePicture]]:
    """Case -> its three planes, for the cases that have images and a label map; what is missing goes to the notes."""
    if options.images is None or not chosen:
        notes.append(f"No cases are drawn: {'there are none to choose' if options.images else 'no images were given'}.")
        return {}
    cases = [one.case for one in chosen]
    jobs = find_case_files(cases, results, tables.regions_of(results), options, notes)
    return for_each_case(partial(_draw, jobs), list(jobs), "Draw", options.processes) if jobs else {}


def _draw(jobs: Mapping[str, CaseFiles], case: str) -> list[SlicePicture]:
    return draw_case(jobs[case])


def _models(options: ReportOptions, notes: list[str]) -> list[TrainingRecord]:
    models = [read_model(folder) for folder in options.models]
    for model in models:
        if without := [fold for fold, epochs in model.folds.items() if not epochs]:
            notes.append(f"{model.trainer} has no training log of fold {', '.join(without)}.")
    if not models:
        notes.append("No training curves: no model folders were given.")
    return models


def _training_charts(model: TrainingRecord) -> list[LineChart]:
    """The losses, and the pseudo Dice that nnU-Net measures on patches; a line per fold."""
    losses: list[Curve] = []
    dice: list[Curve] = []
    for fold, epochs in model.folds.items():
        numbers, name = np.array(list(epochs), dtype=float), f"fold {fold}"
        losses.append(("training", name, numbers, np.array([epoch.train_loss for epoch in epochs.values()])))
        losses.append(("validation", name, numbers, np.array([epoch.val_loss for epoch in epochs.values()])))
        columns = list(zip_longest(*(epoch.pseudo_dice for epoch in epochs.values()), fillvalue=np.nan))
        fitting = len(model.regions) == len(columns)
        regions = model.regions if fitting else [f"channel {i}" for i in range(len(columns))]
        dice += [(region, name, numbers, np.array(column)) for region, column in zip(regions, columns, strict=True)]
    return [
        line_chart(title, "epoch", curves, top)
        for title, curves, top in (("Loss", losses, None), ("Pseudo Dice on validation patches", dice, 1.0))
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
