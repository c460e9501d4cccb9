"""`nnunet_brats report`: results of `evaluate`, and what else there is, as one HTML page without any other resource."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from nnunet_brats_ext.evaluation.evaluate import summarise
from nnunet_brats_ext.evaluation.ranking import Scores, load_entries, rank_entries
from nnunet_brats_ext.evaluation.report import tables
from nnunet_brats_ext.evaluation.report.charts import BoxPlot, Curve, LineChart, box_plots, line_chart
from nnunet_brats_ext.evaluation.report.inputs import Options, find_case_files
from nnunet_brats_ext.evaluation.report.overlays import CaseFiles, Plane, draw_case
from nnunet_brats_ext.evaluation.report.training import TrainedModel, read_model
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.output import write_text
from nnunet_brats_ext.storage.parallel import for_each_case

PACKAGES = ("nnunet-brats-ext", "nnunetv2", "numpy", "scipy", "SimpleITK")
CURVES = {"dice": "Dice", "filtered_tp": "filtered true positives", "filtered_tn": "filtered true negatives"}


def write_report(sources: Sequence[Path], out: Path, options: Options) -> list[str]:
    """Write the page; gives the sentences in which it says what it had to leave out.

    sources: results.json files of `evaluate`, one per model, of one preset and cohort. Several cases are drawn in
    several processes, for which a script that calls this needs its `if __name__ == "__main__"`.
    """
    entries, results = load_results(sources, options.names)
    regions, metrics = tables.regions_of(results), tables.metrics_of(results)
    headline = tables.headline_of(metrics)
    notes: list[str] = []
    chosen = _choose(entries, options, regions, metrics)
    pictures = _pictures(chosen, results, options, notes)
    models = _models(options, notes)
    content = {
        "title": options.title,
        "facts": _facts(sources, results, options),
        "summaries": [tables.summarise_metric(results, metric, regions) for metric in metrics],
        "headline": headline,
        "plots": {metric: _box_plots(entries, metric, regions) for metric in metrics if not tables.is_count(metric)},
        "empty": tables.count_empty(results, regions),
        "ranking": _ranking(entries, notes),
        "table": tables.case_table(results, headline, regions),
        "drawn": [
            {"chosen": one, "planes": pictures[one.case], "scores": _scores(entries, one.case, regions, headline)}
            for one in chosen
            if one.case in pictures
        ],
        "chosen_metric": options.metric,
        "chosen_by": f"{options.region or 'mean'} {tables.title_of(options.metric)}",
        "predicted": list(dict.fromkeys(name for planes in pictures.values() for name in planes[0].predictions)),
        "models": [(model, _training_charts(model)) for model in models],
        "uncertainty": _uncertainty(options, notes),
        "regions": regions,
        "show": tables.show,
        "title_of": tables.title_of,
        "notes": notes,
    }
    write_text(out, render(content))
    return notes


def load_results(
    sources: Sequence[Path], names: Sequence[str] | None = None
) -> tuple[dict[str, Scores], dict[str, dict[str, Any]]]:
    """Name -> scores, and name -> whole content, of results.json files; checked to be of one preset and cohort."""
    if folders := [str(source) for source in sources if source.is_dir()]:
        raise UserError(f"{', '.join(folders)} is a folder; a report takes the results.json of `nnunet_brats evaluate`")
    if names is not None and len(set(names)) < len(names):
        raise UserError(f"a name is given twice among {', '.join(names)}")
    entries = load_entries(sources, names=names)
    contents = map(read_json, sources)
    results = {
        name: {"cohort": "gli", "labels": "trained", "empty": {}, **one, "summary": summarise(scores)}
        for (name, scores), one in zip(entries.items(), contents, strict=True)
    }
    if lacking := [name for name, one in results.items() if "preset" not in one]:
        raise UserError(f"the results of {', '.join(lacking)} name no preset; `nnunet_brats evaluate` does")
    if not tables.regions_of(results):
        raise UserError("these results share no region")
    if not tables.metrics_of(results):
        raise UserError("these results share no metric")
    return entries, results


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


def _facts(sources: Sequence[Path], results: tables.Results, options: Options) -> list[tuple[str, str]]:
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
        ("results", ", ".join(f"{name}: {source}" for name, source in zip(results, sources, strict=True))),
        *((name, str(folder)) for name, folder in folders.items() if folder),
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _box_plots(entries: Mapping[str, Scores], metric: str, regions: Sequence[str]) -> list[BoxPlot]:
    values = {
        region: {name: tables.values_of(scores, region, metric) for name, scores in entries.items()}
        for region in regions
    }
    return box_plots(values, metric, tables.decimals(metric))


def _ranking(entries: Mapping[str, Scores], notes: list[str]) -> dict[str, Any] | None:
    if len(entries) < 2:
        return None
    try:
        ranking = rank_entries(entries)
    except ValueError as error:
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
    entries: Mapping[str, Scores], options: Options, regions: Sequence[str], metrics: Sequence[str]
) -> list[tables.Chosen]:
    for what, asked, known in (("metric", options.metric, metrics), ("region", options.region, regions)):
        if asked is not None and asked not in known:
            raise UserError(f"no {what} {asked!r} in these results; there are {', '.join(known)}")
    return tables.choose_cases(entries, options.metric, [options.region] if options.region else regions, options.cases)


def _scores(
    entries: Mapping[str, Scores], case: str, regions: Sequence[str], metrics: Sequence[str]
) -> dict[str, list[tuple[str, str]]]:
    """Model -> (region, its scores as text), for the caption of a picture."""
    return {
        name: [
            (region, " / ".join(tables.show(metric, scores[case][region][metric]) for metric in metrics))
            for region in regions
        ]
        for name, scores in entries.items()
    }


def _pictures(
    chosen: Sequence[tables.Chosen], results: tables.Results, options: Options, notes: list[str]
) -> dict[str, list[Plane]]:
    """Case -> its three planes, for the cases that have images and a label map; what is missing goes to the notes."""
    if options.images is None or not chosen:
        notes.append(f"No cases are drawn: {'there are none to choose' if options.images else 'no images were given'}.")
        return {}
    cases = [one.case for one in chosen]
    jobs = find_case_files(cases, results, tables.regions_of(results), options, notes)
    return for_each_case(_Draw(jobs), list(jobs), "Drawing cases", options.processes) if jobs else {}


@dataclass(frozen=True)
class _Draw:
    """Draws a case by its name, in any process."""

    jobs: Mapping[str, CaseFiles]

    def __call__(self, case: str) -> list[Plane]:
        return draw_case(self.jobs[case])


def _models(options: Options, notes: list[str]) -> list[TrainedModel]:
    models = [read_model(folder) for folder in options.models]
    for model in models:
        if without := [fold for fold, epochs in model.folds.items() if not epochs]:
            notes.append(f"{model.name} has no training log of fold {', '.join(without)}.")
    if not models:
        notes.append("No training curves: no model folders were given.")
    return models


def _training_charts(model: TrainedModel) -> list[LineChart]:
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


def _uncertainty(options: Options, notes: list[str]) -> dict[str, Any] | None:
    if options.uncertainty is None:
        return None
    if not options.uncertainty.is_dir():
        raise UserError(f"{options.uncertainty} is no folder; `nnunet_brats uncertainty` writes one")
    path = options.uncertainty / "uncertainty.json"
    if not path.is_file():
        notes.append(f"No filtered Dice curves: {options.uncertainty} has no uncertainty.json (add --reference there).")
        return None
    content = read_json(path)
    charts = [
        line_chart(
            region,
            "threshold: voxels in more doubt are set aside",
            [(title, region, np.arange(101.0), np.array(found["curves"][name])) for name, title in CURVES.items()],
            1.0,
        )
        for region, found in content["summary"].items()
    ]
    scores = {region: found["scores"] for region, found in content["summary"].items()}
    return {"measure": content["measure"], "members": content["members"], "charts": charts, "scores": scores}
