"""What the verbs on scores print: `evaluate`, `rank`, `tune`, `report`."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from nnunet_brats_ext.evaluation.by_sequences import JOINED, evaluate_by_sequences, save_by_sequences
from nnunet_brats_ext.evaluation.evaluate import EvaluateOptions, evaluate_models
from nnunet_brats_ext.evaluation.metric_facts import facts_of_metric
from nnunet_brats_ext.evaluation.results import Results, headline_metrics, one_per_region, save_results, summarise_folds
from nnunet_brats_ext.storage.errors import UserError

if TYPE_CHECKING:  # each verb imports what only it needs: scipy.stats takes half a second
    from nnunet_brats_ext.evaluation.ranking import Ranking, RankOptions
    from nnunet_brats_ext.evaluation.report.inputs import ReportOptions
    from nnunet_brats_ext.evaluation.tune import TuneOptions

EMPTY = {"prediction": "missed altogether", "reference": "only predicted", "both": "absent, and not predicted"}
ANY_WIDTH = 10_000  # columns
LONGEST_NAME = 24  # of an entry on screen, before it takes several lines
SHORT_METRICS = {"lesionwise_dice": "LW dice", "lesionwise_hd95": "LW hd95"}  # as headings of narrow columns


# ---- evaluate -------------------------------------------------------------------------------------------------------


def evaluate(options: EvaluateOptions) -> None:
    given = dict(vars(options))
    out, reference, predictions = (given.pop(name) for name in ("out", "reference", "prediction"))
    apart = given.pop("one_per_region")
    if given.pop("by_sequences"):
        if len(predictions) > 1 or given.pop("names") or given["table"]:
            raise UserError("--by-sequences takes one PREDICTION, whose folders are the names, and no --table")
        by_set = evaluate_by_sequences(reference, predictions[0], **given)
        print_by_sequences(by_set)
        print("written:", *save_by_sequences(by_set, out))
        return
    results = evaluate_models(reference, predictions, **given)
    if apart:
        merged = one_per_region(results)
        results = {merged["model"]: merged}
    print_models(results)
    print("written:", *save_results(results, out))


def wide_console() -> Console:
    """The console, as wide as the terminal or COLUMNS; without either, as in a pipe, as wide as any table."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=ANY_WIDTH if piped else None)


def print_models(results: Mapping[str, Results], console: Console | None = None) -> None:
    """The summary of one model; of several, a row per model with the means that the challenge ranks by."""
    console = console or wide_console()
    first = next(iter(results.values()))
    if len(results) == 1:
        print_results(first, console)
        return
    metrics = headline_metrics(results.values())
    regions = [region for region in first["summary"] if all(region in one["summary"] for one in results.values())]
    counts = sorted({len(one["cases"]) for one in results.values()})
    cases = " to ".join(map(str, counts))
    of = "1 case" if counts == [1] else f"{cases} cases: mean ± standard deviation"
    console.print(f"[bold]{first['preset']}[/bold] ({first['cohort']}), {of}")
    headings = [f"{region}\n{SHORT_METRICS.get(metric, metric)}" for region in regions for metric in metrics]
    columns = [
        [_mean_and_std(metric, one["summary"][region][metric]) for one in results.values()]
        for region in regions
        for metric in metrics
    ]
    _print_columns(None, list(results), headings, columns, console)


def _mean_and_std(metric: str, statistics: Mapping[str, float | None]) -> str:
    mean, std = statistics["mean"], statistics["std"]
    digits = 2 if facts_of_metric(metric).unit == "mm" else 3
    spread = "" if std is None else f" ± {std:.{digits}f}"
    return "-" if mean is None else f"{mean:.{digits}f}{spread}"


def print_by_sequences(results: Mapping[str, Results], console: Console | None = None) -> None:
    """A row per set of sequences: the mean Dice of each region, lesion-wise where the challenge scores so."""
    first = next(iter(results.values()))
    metric = next(iter(next(iter(first["summary"].values()))))
    table = Table("sequences", box=SIMPLE_HEAD, pad_edge=False)
    for region in first["summary"]:
        table.add_column(region, justify="right", no_wrap=True)
    for name, one in results.items():
        means = [metrics[metric]["mean"] for metrics in one["summary"].values()]
        table.add_row(name.replace(JOINED, " + "), *("-" if mean is None else f"{mean:.3f}" for mean in means))
    console = console or wide_console()
    title = SHORT_METRICS.get(metric, metric)
    console.print(f"[bold]{first['preset']}[/bold] ({first['cohort']}), {len(first['cases'])} cases: mean {title}")
    console.print(table)


def print_results(results: Results, console: Console | None = None) -> None:
    """Print the summary: mean ± standard deviation and median of all cases or the values of one, and sums of counts.

    Regions are columns, as many side by side as the console has room for.
    """
    console = console or wide_console()
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
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("", no_wrap=True)
        for region in shown:
            table.add_column(region, justify="right", no_wrap=True)
        for name, *row in zip(names.values(), *(cells[region] for region in shown), strict=True):
            table.add_row(name, *row)
        console.print(table)
    _print_empty(results["empty"], list(summary), n, console)
    _print_folds(results, console)


def _print_empty(empty: Mapping[str, Mapping[str, str]], regions: Sequence[str], n: int, console: Console) -> None:
    for where, meaning in EMPTY.items():
        counts = {region: sum(flags.get(region) == where for flags in empty.values()) for region in regions}
        if found := [f"{region} in {count}" for region, count in counts.items() if count]:
            console.print(f"{meaning}: {', '.join(found)} of {n} {'cases' if n > 1 else 'case'}")


def _print_folds(results: Results, console: Console) -> None:
    over_folds = summarise_folds(results)
    for metric in headline_metrics([results]) if over_folds else ():
        found = {region: metrics[metric] for region, metrics in over_folds.items()}
        folds = max(int(one["n"] or 0) for one in found.values())
        means = ", ".join(f"{region} {_mean_and_std(metric, one)}" for region, one in found.items())
        console.print(f"{metric}, mean ± standard deviation of {folds} folds: {means}")


def _row_name(metric: str, n: int) -> str:
    if facts_of_metric(metric).unit == "lesions":
        return f"{metric} (sum)" if n > 1 else metric
    return f"{metric} (mm)" if facts_of_metric(metric).unit == "mm" else metric


def _cell(metric: str, statistics: Mapping[str, float | None], n: int) -> str:
    mean, std, median = (statistics[name] for name in ("mean", "std", "median"))
    if mean is None:
        return "-"
    if facts_of_metric(metric).unit == "lesions":
        return f"{mean * (statistics['n'] or 0):.0f}"
    digits = 2 if facts_of_metric(metric).unit == "mm" else 5 if metric == "specificity" else 4 if n == 1 else 3
    if n == 1:
        return f"{mean:.{digits}f}"
    fewer = f" n={statistics['n']}" if statistics["n"] != n else ""
    spread = f" ± {std:.{digits}f}" if std is not None else ""
    return f"{mean:.{digits}f}{spread} ({median:.{digits}f}){fewer}"


# ---- rank -----------------------------------------------------------------------------------------------------------


def rank(options: "RankOptions") -> None:
    from nnunet_brats_ext.evaluation.ranking import rank_results, save_ranking

    given = dict(vars(options))
    out = given.pop("out")
    ranking = rank_results(**given)
    print_ranking(ranking)
    print("written:", *save_ranking(ranking, out))


def print_ranking(ranking: "Ranking", console: Console | None = None) -> None:
    """The entries from the best on, and the chance of each lead, whose columns go by place.

    As many columns stand side by side as the console has room for; the rest follows below.
    """
    console = console or wide_console()
    names = [ranking.entries[i] for i in ranking.order]
    places = ranking.stability.places
    columns = [
        [f"{ranking.scores[i]:.3f}" for i in ranking.order],
        [f"{places[i, 0]:g} to {places[i, 2]:g}" for i in ranking.order],
    ]
    for j, (_, metric) in enumerate(ranking.columns):
        digits = 2 if facts_of_metric(metric).unit == "mm" else 4
        columns.append([f"{ranking.means[i][j]:.{digits}f}" for i in ranking.order])
    headings = ["mean\nrank", "place\n95 %"]
    headings += [f"{region}\n{SHORT_METRICS.get(metric, metric)}" for region, metric in ranking.columns]
    _print_columns(f"BraTS ranking over {len(ranking.cases)} cases", names, headings, columns, console)
    leads = [["" if i == j else _p_value(ranking, i, j) for i in ranking.order] for j in ranking.order]
    title = "permutation test: one-sided p of the row's lead over the column; * below 0.05 corrected by Holm"
    _print_columns(title, names, list(map(str, range(1, len(leads) + 1))), leads, console)
    console.print(
        f"with the cases drawn anew, Kendall's tau to this ranking is {ranking.stability.tau:.2f} on average; "
        "place 95 % is where an entry then lies"
    )
    if ranking.left_out:
        console.print(f"not ranked, because a score is missing: {ranking.left_out} times case x region x metric")


def _p_value(ranking: "Ranking", row: int, column: int) -> str:
    p = ranking.p_values[row, column]
    return ("<.0001" if p < 0.0001 else f"{p:.4f}") + ("*" if ranking.corrected[row, column] < 0.05 else " ")


def _print_columns(
    title: str | None, names: Sequence[str], headings: Sequence[str], columns: Sequence[Sequence[str]], console: Console
) -> None:
    """A row per name, with as many columns side by side as the console has room for."""
    name_width = min(max(map(len, names)), LONGEST_NAME)
    blocks: list[list[tuple[str, Sequence[str]]]] = [[]]
    left = room = console.width - name_width - 8
    for heading, column in zip(headings, columns, strict=True):
        width = 2 + max(map(len, [*heading.split("\n"), *column]))
        if width > left and blocks[-1]:
            blocks.append([])
            left = room
        left -= width
        blocks[-1].append((heading, column))
    if title:
        console.print(title)
    for block in blocks:
        table = Table(box=SIMPLE_HEAD, collapse_padding=True)
        table.add_column("", no_wrap=True)
        table.add_column("entry", overflow="fold", max_width=max(name_width, len("entry")))
        for heading, _ in block:
            table.add_column(heading, justify="right", no_wrap=True)
        for row, name in enumerate(names):
            table.add_row(str(row + 1), name, *(column[row] for _, column in block))
        console.print(table)


# ---- tune -----------------------------------------------------------------------------------------------------------


def tune(options: "TuneOptions") -> None:
    from nnunet_brats_ext.evaluation.tune import tune_rules

    tuned = tune_rules(**vars(options))
    print_tuning(tuned.report)
    print("written:", *tuned.files)


def print_tuning(report: Mapping[str, Any], console: Console | None = None) -> None:
    """A row per fold, with the rules that the other folds chose, and a sentence on what was written."""
    from nnunet_brats_ext.predictions.rule_sets import describe_rule

    console = console or wide_console()
    held_out = report["held_out"]
    objective = report["objective"]
    unit = "mean rank" if objective == "ranking" else facts_of_metric(objective).title
    table = Table("fold", "cases", "rules from the other folds", f"gain in {unit}", title=f"objective: {objective}")
    for fold, part in report["folds"].items():
        rules = "; ".join(map(describe_rule, part["rules"])) or "no rule"
        table.add_row(fold, str(part["cases"]), rules, f"{part['gain']:+.4f}")
    table.add_row("all", str(held_out["cases"]), f"p = {held_out['p_value']:.4f}", f"{held_out['gain']:+.4f}")
    console.print(table)
    means = {"before": held_out["before"], "after": held_out["after"]}
    if "per_cluster" in report:
        means["after, per cluster"] = report["per_cluster"]["after"]
    scores = Table("held out", *means)
    for column in held_out["before"]:
        values = (by_column[column] for by_column in means.values())
        scores.add_row(column, *("-" if value is None else f"{value:.4f}" for value in values))
    console.print(scores)
    chosen = "; ".join(map(describe_rule, report["chosen_on_all"])) or "no rule"
    if clustered := report.get("per_cluster"):
        _print_clusters(clustered, unit, console)
        if clustered["written"]:
            return
    if report["written"]:
        console.print(f"rules chosen on all cases: {chosen}")
    else:
        console.print(
            f"no rules written: on held-out cases they do not help (all cases together would choose {chosen})"
        )


def _print_clusters(clustered: Mapping[str, Any], unit: str, console: Console) -> None:
    from nnunet_brats_ext.predictions.rule_sets import describe_rule

    table = Table("cluster", "cases", "rules chosen on all its cases")
    for number, (cases, rules) in enumerate(zip(clustered["cases"], clustered["rules"], strict=True)):
        table.add_row(str(number), str(cases), "; ".join(map(describe_rule, rules)) or "no rule")
    console.print(table)
    low, high = clustered["interval"]
    gain = f"{clustered['gain_over_one_set']:+.4f} in {unit}, 95 % interval {low:+.4f} to {high:+.4f}"
    verdict = "rules per cluster written" if clustered["written"] else "rules per cluster not written"
    console.print(f"{verdict}: over one set of rules for all cases they gain {gain}, on held-out cases")


# ---- report ---------------------------------------------------------------------------------------------------------


def report(options: "ReportOptions") -> None:
    from nnunet_brats_ext.evaluation.report.page import write_report

    notes = write_report(**vars(options))
    print(*notes, f"written: {options.out} ({options.out.stat().st_size / 1000:.0f} kB)", sep="\n")
