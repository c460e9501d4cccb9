"""What `evaluate` found, as files: results.json for programs, which is read again, and CSV tables for spreadsheets."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_brats_ext.evaluation.lesion_rows import lesion_files, write_lesions
from nnunet_brats_ext.evaluation.metric_facts import LESIONWISE, WHOLE, facts_of_metric
from nnunet_brats_ext.evaluation.numbering import TRAINED
from nnunet_brats_ext.evaluation.presets import ranked_metrics
from nnunet_brats_ext.evaluation.server_columns import server_file, write_server_columns
from nnunet_brats_ext.evaluation.statistics import mean_intervals
from nnunet_brats_ext.storage.csv_files import to_csv
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import JsonEntry, to_json
from nnunet_brats_ext.storage.output import write_texts

Results = dict[str, Any]  # the content of results.json, as `evaluate` writes it; and "lesions", case -> rows
Summary = dict[str, dict[str, dict[str, float | None]]]  # region -> metric -> statistics
CaseScores = Mapping[str, Mapping[str, Mapping[str, float | None]]]  # case -> region -> metric -> value


def summarise_scores(cases: CaseScores) -> Summary:
    """{case: {region: {metric: value}}} -> {region: {metric: statistics}}.

    The statistics are those of `STATISTICS`. Cases without a score (None) do not count; n is how many do. The standard
    deviation is the sample's, None for one case, as is the bootstrap interval of the mean, from ci_low to ci_high.
    """
    columns: dict[tuple[str, str], list[float | None]] = {}
    for number, regions in enumerate(cases.values()):
        for region, metrics in regions.items():
            for metric, value in metrics.items():
                column = columns.setdefault((region, metric), [])
                column += [None] * (number - len(column))
                column.append(value)
    table = np.full((len(cases), len(columns)), np.nan)
    for number, column in enumerate(columns.values()):
        table[: len(column), number] = column
    summary: Summary = {}
    for (region, metric), values, interval in zip(columns, table.T, mean_intervals(table).T, strict=True):
        summary.setdefault(region, {})[metric] = _describe(values[~np.isnan(values)], interval)
    return summary


STATISTICS = ("mean", "std", "ci_low", "ci_high", "median", "q1", "q3", "n")


def _describe(values: np.ndarray, interval: np.ndarray) -> dict[str, float | None]:
    if not values.size:
        return {**dict.fromkeys(STATISTICS), "n": 0}
    q1, median, q3 = np.percentile(values, (25, 50, 75)).tolist()
    several = len(values) > 1
    spread = [float(np.std(values, ddof=1)), *interval.tolist()] if several else [None, None, None]
    return dict(zip(STATISTICS, (float(values.mean()), *spread, median, q1, q3, len(values)), strict=True))


def one_per_region(results: Mapping[str, Results]) -> Results:
    """The results of several models as those of one: of each the scores of its own region, in the preset's order.

    Of label maps and lesions, which are of no single model, nothing is left.
    """
    first, *others = results.values()
    regions = list(first["summary"])
    if len(results) != len(regions):
        raise UserError(f"--one-per-region: {len(results)} predictions; give one for each of {', '.join(regions)}")
    of_region = dict(zip(regions, results.values(), strict=True))
    shared = [case for case in first["cases"] if all(case in one["cases"] for one in others)]
    cases = {case: {region: one["cases"][case][region] for region, one in of_region.items()} for case in shared}
    empty = {
        case: {
            region: one["empty"][case][region]
            for region, one in of_region.items()
            if region in one["empty"].get(case, ())
        }
        for case in shared
    }
    return {
        **{key: value for key, value in first.items() if key != "lesions"},
        "model": " + ".join(results),
        "cases": cases,
        "empty": {case: found for case, found in empty.items() if found},
        "summary": summarise_scores(cases),
        "confusion": {"labels": [], "voxels": {}},
        "predictions": {"folder": "", "files": {}},
    }


def summarise_folds(results: Results) -> Summary:
    """The mean over folds of each fold's mean, and its standard deviation; nothing where there are not several folds.

    {region: {metric: {"mean", "std", "n"}}}; n is the number of folds with a score.
    """
    parts = _by_fold(results)
    return summarise_means([_means(part) for part in parts]) if len(parts) > 1 else {}


def fold_means(results: Results, region: str, metric: str) -> list[float | None]:
    """The mean of each fold."""
    return [_mean_of(part, region, metric) for part in _by_fold(results)]


def _by_fold(results: Results) -> list[CaseScores]:
    folds = results.get("folds") or {}
    return [
        {case: scores for case, scores in results["cases"].items() if folds.get(case) == name}
        for name in dict.fromkeys(folds.values())
    ]


def summarise_means(means: Sequence[Mapping[str, Mapping[str, float | None]]]) -> Summary:
    """The mean and standard deviation of several means, of folds or of models: {region: {metric: {mean, std, n}}}."""
    summary: Summary = {}
    for region, metrics in means[0].items():
        for metric in metrics:
            found = [value for one in means if (value := one.get(region, {}).get(metric)) is not None]
            statistics = (float(np.mean(found)) if found else None, _deviation(found), len(found))
            summary.setdefault(region, {})[metric] = dict(zip(("mean", "std", "n"), statistics, strict=True))
    return summary


def _deviation(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _means(cases: CaseScores) -> dict[str, dict[str, float | None]]:
    first = next(iter(cases.values()))
    return {
        region: {metric: _mean_of(cases, region, metric) for metric in metrics} for region, metrics in first.items()
    }


def _mean_of(cases: CaseScores, region: str, metric: str) -> float | None:
    values = [value for regions in cases.values() if (value := regions[region][metric]) is not None]
    return float(np.mean(values)) if values else None


def means_of(results: Results) -> dict[str, dict[str, float | None]]:
    """{region: {metric: mean over cases}}."""
    return {region: {m: one["mean"] for m, one in metrics.items()} for region, metrics in results["summary"].items()}


def headline_metrics(results: Iterable[Results]) -> list[str]:
    """What the challenge ranks by, of the metrics that all results have; else Dice and HD95, or their first two."""
    every = list(results)
    columns = [set(metrics) for one in every for metrics in one["summary"].values()]
    first = next(iter(every[0]["summary"].values()))
    shared = [metric for metric in first if all(metric in one for one in columns)]
    for wanted in (ranked_metrics(every[0]) or (), LESIONWISE, WHOLE):
        if wanted and set(wanted) <= set(shared):
            return list(wanted)
    return [metric for metric in WHOLE if metric in shared] or shared[:2]


# ---- names ----------------------------------------------------------------------------------------------------------


def check_names(names: Sequence[str] | None, number: int) -> None:
    """An error where there is not one name of its own for each of so many results."""
    if names is not None and len(names) != number:
        raise UserError(f"--names {' '.join(names)}: {len(names)} names for {number} results")
    if names is not None and (twice := [name for name, times in Counter(names).items() if times > 1]):
        raise UserError(f"--names {' '.join(names)}: {', '.join(twice)} is given twice")


def name_sources(sources: Sequence[Path]) -> list[str]:
    """Short names of paths: the last part, or as many of the last parts as make them differ."""
    parts = [source.with_suffix("").parts if source.suffix == ".json" else source.parts for source in sources]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"the same results twice among {', '.join(map(str, sources))}; give each once")


# ---- reading --------------------------------------------------------------------------------------------------------


def read_results(path: Path) -> Results:
    """The content of a results.json of one model; `read_models` says what is checked."""
    models = read_models(path)
    if len(models) > 1:
        raise UserError(f"{path} holds the results of {', '.join(models)}; read them with `read_models`")
    return next(iter(models.values()))


def read_models(path: Path) -> dict[str, Results]:
    """Model -> the content of a results.json of one or several models, with the summary computed anew.

    A missing entry, a value that is no number, or a score out of its range, such as a Dice of 5, is a UserError that
    names file and entry. All cases have the regions and metrics of the first. Files of versions before 0.2 say nothing
    of the label maps that they are about; what they lack is empty.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the results.json that `nnunet_brats evaluate` writes")
    content = JsonEntry.read(path)
    if MODELS in content.value:
        return {name: _read_model(one, path, name) for name, one in content[MODELS].items()}
    name = content.get("model", "").text()
    return {name: _read_model(content, path, name)}


def _read_model(content: JsonEntry, path: Path, name: str) -> Results:
    cases: dict[str, dict[str, dict[str, float | None]]] = {}
    for case, regions in content["cases"].items():
        cases[case] = {
            region: {metric: _score(value, metric) for metric, value in metrics.items()}
            for region, metrics in regions.items()
        }
        _require_same_columns(regions, cases[case], next(iter(cases.values())))
    if not (summary := summarise_scores(cases)):
        raise UserError(f"{path} holds no cases; `nnunet_brats evaluate` writes such files")
    marked = content.get("empty", {}).items()
    return {
        "version": content.get("version", "").text(),
        "model": name,
        "preset": content["preset"].text(),
        "cohort": content.get("cohort", "gli").text(),
        "labels": content.get("labels", TRAINED).text(),
        "channels": [one.text() for one in content.get("channels", []).list()],
        "cases": cases,
        "empty": {case: {region: where.text() for region, where in regions.items()} for case, regions in marked},
        "summary": summary,
        "folds": {case: fold.text() for case, fold in content.get("folds", {}).items()},
        "confusion": _read_confusion(content.get("confusion", {})),
        "references": _read_files(content.get("references", {})),
        "predictions": _read_files(content.get("predictions", {})),
    }


def _numbers(entry: JsonEntry, count: int) -> list[float]:
    values = [one.number(0) for one in entry.list()]
    if len(values) != count:
        raise entry.error(f"{count} numbers")
    return values


def _read_confusion(entry: JsonEntry) -> dict[str, Any]:
    labels = [one.text() for one in entry.get("labels", []).list()]
    voxels = entry.get("voxels", {}).items()
    rows = {case: matrix.list() for case, matrix in voxels}
    if wrong := [case for case, matrix in rows.items() if len(matrix) != len(labels)]:
        raise entry["voxels"][wrong[0]].error(f"{len(labels)} rows, one per label")
    return {
        "labels": labels,
        "voxels": {case: [_numbers(row, len(labels)) for row in matrix] for case, matrix in rows.items()},
    }


def _read_files(entry: JsonEntry) -> dict[str, Any]:
    files = entry.get("files", {}).items()
    return {
        "folder": entry.get("folder", "").text(),
        "files": {case: {key: value.text() for key, value in one.items()} for case, one in files},
    }


def _score(entry: JsonEntry, metric: str) -> float | None:
    facts = facts_of_metric(metric)
    return None if entry.value is None else entry.number(facts.lowest, facts.highest)


def _require_same_columns(entry: JsonEntry, regions: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """An error where a case lacks a region or metric of the first case, or has another one."""
    pairs = [(entry, regions, first), *((entry[r], regions[r], first[r]) for r in first if r in regions)]
    for place, here, there in pairs:
        if here.keys() != there.keys():
            raise UserError(f"{place} has {', '.join(here)}, but the first case {', '.join(there)}")


# ---- writing --------------------------------------------------------------------------------------------------------


MODELS = "models"


def save_results(results: Results | Mapping[str, Results], path: Path | str) -> list[Path]:
    """Write `path` (JSON) and beside it two tables, one row per case and region and one per region and metric.

    results: of one model, or model -> results; of several, the JSON has them under "models", and each table is one for
    all of them, with a column of models. As well, where the results have them, the rows of lesions as CSV and JSON. All
    or none of the files are written.
    """
    path = Path(path)
    models: dict[str, Results] = {"": results} if "cases" in results else dict(results)  # type: ignore[dict-item]
    several = len(models) > 1
    cases = [row for name, one in models.items() for row in _with_model(name, _case_rows(one), several)]
    summaries = [row for name, one in models.items() for row in _with_model(name, summary_rows(one), several)]
    if several:
        summaries += _rows_over_models(models)
    kept = {name: {key: value for key, value in one.items() if key != "lesions"} for name, one in models.items()}
    files: dict[Path, str | Iterable[str]] = {
        path: to_json({MODELS: kept} if several else next(iter(kept.values()))),
        path.with_suffix(".csv"): to_csv(_one_heading(cases)),
        path.with_name(f"{path.stem}_summary.csv"): to_csv(_one_heading(summaries)),
    }
    if lesions := {name: one["lesions"] for name, one in models.items() if "lesions" in one}:
        files |= write_lesions(lesions, path) | write_server_columns(models, path)
    write_texts(files)
    for stale in {*lesion_files(path), server_file(path)} - set(files):  # of other results that were here
        stale.unlink(missing_ok=True)
    return list(files)


def _with_model(name: str, rows: Iterable[Sequence[Any]], several: bool) -> Iterable[Sequence[Any]]:
    heading, *others = rows
    return [("model", *heading), *((name, *row) for row in others)] if several else [heading, *others]


def _one_heading(rows: Sequence[Sequence[Any]]) -> Iterable[Sequence[Any]]:
    return (row for number, row in enumerate(rows) if number == 0 or row != rows[0])


def _rows_over_models(models: Mapping[str, Results]) -> Iterable[Sequence[Any]]:
    """Mean and standard deviation of the models' means, in the columns of the summary."""
    for region, metrics in summarise_means([means_of(one) for one in models.values()]).items():
        for metric, found in metrics.items():
            yield (f"mean of {len(models)} models", region, metric, *(found.get(name) for name in STATISTICS))


def _case_rows(results: Results) -> Iterable[Sequence[Any]]:
    regions = next(iter(results["cases"].values()))
    metrics = list(next(iter(regions.values())))
    folds = results.get("folds")
    yield ("case", *(["fold"] if folds else []), "region", "empty", *metrics)
    for case, regions in results["cases"].items():
        for region, scores in regions.items():
            yield (
                case,
                *([folds.get(case, "")] if folds else []),
                region,
                results["empty"].get(case, {}).get(region, ""),
                *(scores[metric] for metric in metrics),
            )


def summary_rows(results: Results) -> Iterable[Sequence[Any]]:
    """The names of the columns, then a row per region and metric."""
    folds = summarise_folds(results)
    yield ("region", "metric", *STATISTICS, *(["folds_mean", "folds_std", "folds"] if folds else []))
    for region, metrics in results["summary"].items():
        for metric, statistics in metrics.items():
            over_folds = folds[region][metric].values() if folds else []
            yield (region, metric, *(statistics[name] for name in STATISTICS), *over_folds)
