"""What `evaluate` found, as files (JSON for programs, CSV for spreadsheets) and as a table on screen."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_UNITS = {"hd95": "mm", "hd95_pooled": "mm", "lesionwise_hd95": "mm"}
_COUNTS = ("n_tp", "n_fp", "n_fn")


def save_results(results: Mapping[str, Any], path: Path) -> list[Path]:
    """Write `path` (JSON) and beside it two tables, one row per case and region and one per region and metric."""
    cases = path.with_suffix(".csv")
    summary = path.with_name(f"{path.stem}_summary.csv")
    _replace(path, json.dumps(results, indent=2, allow_nan=False))
    _replace(cases, _as_csv(_case_rows(results)))
    _replace(summary, _as_csv(_summary_rows(results)))
    return [path, cases, summary]


def print_results(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the summary, one column per region: mean ± standard deviation and median, or the value of a single case."""
    console = console or Console()
    summary, n = results["summary"], len(results["cases"])
    title = f"{results['preset']} ({results['cohort']}): " + (f"{n} cases, mean ± std (median)" if n > 1 else "1 case")
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for region in summary:
        table.add_column(region, justify="right")
    for metric in next(iter(summary.values())):
        name = f"{metric} ({_UNITS[metric]})" if metric in _UNITS else metric
        table.add_row(name, *(_cell(metric, regions[metric], n) for regions in summary.values()))
    console.print(table)
    for where, consequence in (
        ("reference", "not there, but predicted"),
        ("prediction", "missed altogether"),
        ("both", "not there and not predicted"),
    ):
        counts = {
            region: sum(regions.get(region) == where for regions in results["empty"].values()) for region in summary
        }
        if any(counts.values()):
            found = ", ".join(f"{region} in {count}" for region, count in counts.items() if count)
            console.print(f"{consequence}: {found} of {n} {'cases' if n > 1 else 'case'}")


def _cell(metric: str, statistics: Mapping[str, float | None], n: int) -> str:
    mean, std, median = (statistics[name] for name in ("mean", "std", "median"))
    if mean is None:
        return "-"
    digits = 2 if "hd95" in metric or (metric in _COUNTS and n > 1) else 0 if metric in _COUNTS else 4
    spread = f" ± {std:.{digits}f}" if std is not None else ""
    middle = f" ({median:.{digits}f})" if n > 1 else ""
    fewer = f" n={statistics['n']}" if statistics["n"] != n else ""
    return f"{mean:.{digits}f}{spread}{middle}{fewer}"


def _case_rows(results: Mapping[str, Any]) -> Iterable[Sequence[Any]]:
    regions = next(iter(results["cases"].values()))
    metrics = list(next(iter(regions.values())))
    yield ("case", "region", "empty", *metrics)
    for case, regions in results["cases"].items():
        for region, scores in regions.items():
            empty = results["empty"].get(case, {}).get(region, "")
            yield (case, region, empty, *(scores[metric] for metric in metrics))


def _summary_rows(results: Mapping[str, Any]) -> Iterable[Sequence[Any]]:
    yield ("region", "metric", "mean", "std", "median", "q1", "q3", "n")
    for region, metrics in results["summary"].items():
        for metric, statistics in metrics.items():
            yield (region, metric, *statistics.values())


def _as_csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _replace(path: Path, text: str) -> None:
    """Write a file so that it is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text)
    unfinished.replace(path)
