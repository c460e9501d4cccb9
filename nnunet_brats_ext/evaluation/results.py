"""What `evaluate` found, as files (JSON for programs, CSV for spreadsheets) and as a table on screen."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from nnunet_brats_ext.storage.output import write_text

_COUNTS = ("n_tp", "n_fp", "n_fn")


def save_results(results: Mapping[str, Any], path: Path) -> list[Path]:
    """Write `path` (JSON) and beside it two tables, one row per case and region and one per region and metric."""
    cases = path.with_suffix(".csv")
    summary = path.with_name(f"{path.stem}_summary.csv")
    write_text(path, json.dumps(results, indent=2, allow_nan=False))
    write_text(cases, _as_csv(_case_rows(results)))
    write_text(summary, _as_csv(_summary_rows(results)))
    return [path, cases, summary]


def print_results(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the summary: mean ± standard deviation and median of all cases or the values of one, and sums of counts.

    Regions are columns, as many side by side as the console has room for.
    """
    console = console or Console()
    summary, n = results["summary"], len(results["cases"])
    console.print(
        f"[bold]{results['preset']}[/bold] ({results['cohort']}), "
        + (f"{n} cases: mean ± standard deviation (median)" if n > 1 else "1 case")
    )
    names = {metric: _row_name(metric, n) for metric in next(iter(summary.values()))}
    cells = {region: [_cell(metric, metrics[metric], n) for metric in names] for region, metrics in summary.items()}
    widest = max(len(cell) for column in cells.values() for cell in column) + 3
    side_by_side = max((console.width - max(map(len, names.values())) - 3) // widest, 1)
    for start in range(0, len(cells), side_by_side):
        shown = list(cells)[start : start + side_by_side]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("", no_wrap=True)
        for region in shown:
            table.add_column(region, justify="right", no_wrap=True)
        for name, *row in zip(names.values(), *(cells[region] for region in shown), strict=True):
            table.add_row(name, *row)
        console.print(table)
    _print_empty(results["empty"], list(summary), n, console)


def _print_empty(empty: Mapping[str, Mapping[str, str]], regions: Sequence[str], n: int, console: Console) -> None:
    for where, meaning in (
        ("prediction", "missed altogether"),
        ("reference", "invented altogether"),
        ("both", "absent, and not predicted"),
    ):
        counts = {region: sum(flags.get(region) == where for flags in empty.values()) for region in regions}
        if found := [f"{region} in {count}" for region, count in counts.items() if count]:
            console.print(f"{meaning}: {', '.join(found)} of {n} {'cases' if n > 1 else 'case'}")


def _row_name(metric: str, n: int) -> str:
    if metric in _COUNTS:
        return f"{metric} (sum)" if n > 1 else metric
    return f"{metric} (mm)" if "hd95" in metric else metric


def _cell(metric: str, statistics: Mapping[str, float | None], n: int) -> str:
    mean, std, median = (statistics[name] for name in ("mean", "std", "median"))
    if mean is None:
        return "-"
    if metric in _COUNTS:
        return f"{mean * (statistics['n'] or 0):.0f}"
    digits = 2 if "hd95" in metric else 5 if metric == "specificity" else 4 if n == 1 else 3
    if n == 1:
        return f"{mean:.{digits}f}"
    fewer = f" n={statistics['n']}" if statistics["n"] != n else ""
    spread = f" ± {std:.{digits}f}" if std is not None else ""
    return f"{mean:.{digits}f}{spread} ({median:.{digits}f}){fewer}"


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
