"""What `evaluate` found, as files: results.json for programs, which is read again, and CSV tables for spreadsheets."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_brats_ext.evaluation.lesion_rows import lesion_files, write_lesions
from nnunet_brats_ext.evaluation.metric_facts import facts_of_metric
from nnunet_brats_ext.evaluation.numbering import TRAINED
from nnunet_brats_ext.storage.csv_files import to_csv
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import JsonEntry, to_json
from nnunet_brats_ext.storage.output import write_texts

Results = dict[str, Any]  # preset, cohort, labels, cases, empty, summary: the content of results.json; lesions
CaseScores = Mapping[str, Mapping[str, Mapping[str, float | None]]]  # case -> region -> metric -> value


def summarise_scores(cases: CaseScores) -> dict[str, dict[str, dict[str, float | None]]]:
    """{case: {region: {metric: value}}} -> {region: {metric: {"mean", "std", "median", "q1", "q3", "n"}}}.

    Cases without a score (None) do not count; n is how many do. The standard deviation is the sample's, None for one.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for regions in cases.values():
        for region, metrics in regions.items():
            for metric, value in metrics.items():
                column = values.setdefault(region, {}).setdefault(metric, [])
                if value is not None:
                    column.append(value)
    return {
        region: {metric: _describe(column) for metric, column in metrics.items()} for region, metrics in values.items()
    }


def _describe(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {**dict.fromkeys(("mean", "std", "median", "q1", "q3")), "n": 0}
    q1, median, q3 = np.percentile(values, (25, 50, 75)).tolist()
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std, "median": median, "q1": q1, "q3": q3, "n": len(values)}


# ---- reading --------------------------------------------------------------------------------------------------------


def read_results(path: Path) -> Results:
    """The content of a results.json, with the summary computed anew.

    A missing entry, a value that is no number, or a score out of its range, such as a Dice of 5, is a UserError that
    names file and entry. All cases have the regions and metrics of the first.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the results.json that `nnunet_brats evaluate` writes")
    content = JsonEntry.read(path)
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
        "preset": content["preset"].text(),
        "cohort": content.get("cohort", "gli").text(),
        "labels": content.get("labels", TRAINED).text(),
        "cases": cases,
        "empty": {case: {region: where.text() for region, where in regions.items()} for case, regions in marked},
        "summary": summary,
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


def save_results(results: Results, path: Path | str) -> list[Path]:
    """Write `path` (JSON) and beside it two tables, one row per case and region and one per region and metric.

    As well, where the results have them, the rows of lesions as CSV and JSON. All or none of them are written.
    """
    path = Path(path)
    files: dict[Path, str | Iterable[str]] = {
        path: to_json({key: value for key, value in results.items() if key != "lesions"}),
        path.with_suffix(".csv"): to_csv(_case_rows(results)),
        path.with_name(f"{path.stem}_summary.csv"): to_csv(summary_rows(results)),
    }
    if "lesions" in results:
        files |= write_lesions(results["lesions"], path)
    write_texts(files)
    for stale in set(lesion_files(path)) - set(files):  # of other results that were here
        stale.unlink(missing_ok=True)
    return list(files)


def _case_rows(results: Results) -> Iterable[Sequence[Any]]:
    regions = next(iter(results["cases"].values()))
    metrics = list(next(iter(regions.values())))
    yield ("case", "region", "empty", *metrics)
    for case, regions in results["cases"].items():
        for region, scores in regions.items():
            empty = results["empty"].get(case, {}).get(region, "")
            yield (case, region, empty, *(scores[metric] for metric in metrics))


def summary_rows(results: Results) -> Iterable[Sequence[Any]]:
    """The names of the columns, then a row per region and metric."""
    yield ("region", "metric", "mean", "std", "median", "q1", "q3", "n")
    for region, metrics in results["summary"].items():
        for metric, statistics in metrics.items():
            yield (region, metric, *statistics.values())
