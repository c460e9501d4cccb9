"""The columns of the challenge's own server, offline: the table that BraTS_evaluation 0.0.10 makes for BraTS 2026.

Names, order and statistics are those of `brats-parse-metrics`, so that the two tables can be laid beside each other.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_brats_ext.evaluation.lesion_rows import LesionRow
from nnunet_brats_ext.storage.csv_files import csv_lines

PRESET = "brats2026"
SHARES = {"prec": "precision", "rec": "recall", "f1": "f1"}  # the server's names, and ours
WHOLE = {"dsc": "dice", "nsd": "nsd_0.5voxel", "hd95": "hd95"}
BY_LESION = {"dsc": "dice", "nsd": "nsd_1voxel", "hd95": "hd95"}
ORDER = ("SNFH", "ET", "NETC", "RC", "CC", "ED", "TC", "WT", "GTV")  # of the regions in its configurations
STATISTICS = ("mean", "std", "median")

Results = Mapping[str, Any]  # with the rows of its lesions


def server_file(results_path: Path) -> Path:
    """The file beside a results.json."""
    return results_path.with_name(f"{results_path.stem}_server.csv")


def write_server_columns(models: Mapping[str, Results], results_path: Path) -> dict[Path, Iterator[str]]:
    """The text of the file, in parts, where all models have lesions by the preset of 2026; else nothing.

    models: model -> results; of several, the first column is the model.
    """
    known = all(one["preset"] == PRESET and "lesions" in one for one in models.values())
    return {server_file(results_path): csv_lines(_rows(models))} if known else {}


def _rows(models: Mapping[str, Results]) -> Iterator[Sequence[Any]]:
    several = len(models) > 1
    for number, (name, results) in enumerate(models.items()):
        cases = {case: server_columns(results, case) for case in results["cases"]}
        columns = next(iter(cases.values()))
        model = [name] if several else []
        if number == 0:
            yield (*(["model"] if several else []), "subject_id", *columns)
        for case, values in cases.items():
            yield (*model, case, *(None if np.isnan(value) else value for value in values.values()))
        table = np.array([list(values.values()) for values in cases.values()], dtype=float)
        for statistic, row in zip(STATISTICS, _statistics(table), strict=True):
            yield (*model, statistic, *(None if np.isnan(value) else value for value in row))


def server_columns(results: Results, case: str) -> dict[str, float]:
    """The server's columns of one case; NaN for no score."""
    row: dict[str, float] = {}
    for region in sorted(results["cases"][case], key=ORDER.index):
        scores, key = results["cases"][case][region], region.lower()
        counted = [one for one in results["lesions"][case] if one.region == region and one.counts]
        parts = _of_metastases if results["cohort"] == "met" else _of_others
        row |= {f"{name}_{key}": value for name, value in parts(scores, counted).items()}
    return row


def _of_metastases(scores: Mapping[str, float | None], counted: Sequence[LesionRow]) -> dict[str, float]:
    return {
        **_detection(scores, "all"),
        **_detection(scores, "large"),
        **_by_lesion(scores, counted, ("dsc", "hd95", "nsd")),
        **_detection(scores, "small", ("tp", "fn", "fp")),
        **_whole(scores),
    }


def _of_others(scores: Mapping[str, float | None], counted: Sequence[LesionRow]) -> dict[str, float]:
    return {**_detection(scores, "all"), **_whole(scores), **_by_lesion(scores, counted, ("dsc", "nsd", "hd95"))}


def _detection(
    scores: Mapping[str, float | None], which: str, counted: Sequence[str] = ("tp", "fp", "fn")
) -> dict[str, float]:
    counts, shares = ("", "lesion_") if which == "all" else (f"{which}_", f"{which}_")
    named = {name: f"{counts}n_{name}" for name in counted} | {name: f"{shares}{ours}" for name, ours in SHARES.items()}
    return {f"{which}_instance_{name}": _number(scores[ours]) for name, ours in named.items()}


def _whole(scores: Mapping[str, float | None]) -> dict[str, float]:
    return {f"global_{name}": _number(scores[ours]) for name, ours in WHOLE.items()}


def _by_lesion(
    scores: Mapping[str, float | None], counted: Sequence[LesionRow], order: Sequence[str]
) -> dict[str, float]:
    found = {}
    for name in order:
        values = [one.scores[BY_LESION[name]] for one in counted]
        found[f"lesionwise_{name}_mean"] = _number(scores[f"lesionwise_{BY_LESION[name]}"])
        found[f"lesionwise_{name}_std"] = float(np.std(values)) if values else float("nan")
    return found


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _statistics(table: np.ndarray) -> Iterator[np.ndarray]:
    """Mean, standard deviation of the sample and median of columns, without NaN; NaN where there is nothing."""
    columns = [column[~np.isnan(column)] for column in table.T]
    for statistic, fewest in ((np.mean, 1), (lambda column: np.std(column, ddof=1), 2), (np.median, 1)):
        yield np.array([statistic(column) if len(column) >= fewest else np.nan for column in columns])
