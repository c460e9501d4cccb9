"""What the verbs on scores print: `evaluate`, `rank`, `tune`, `report`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from nnunet_brats_ext.evaluation.by_sequences import JOINED, evaluate_by_sequences, save_by_sequences
from nnunet_brats_ext.evaluation.evaluate import EvaluateOptions, evaluate_folders
from nnunet_brats_ext.evaluation.metric_facts import facts_of_metric
from nnunet_brats_ext.evaluation.ranking import Ranking, RankOptions, rank_results, save_ranking
from nnunet_brats_ext.evaluation.results import Results, save_results
from nnunet_brats_ext.evaluation.tune import TuneOptions, tune_rules
from nnunet_brats_ext.predictions.rule_sets import describe_rule

if TYPE_CHECKING:
    from nnunet_brats_ext.evaluation.report.inputs import ReportOptions

EMPTY = {"prediction": "missed altogether", "reference": "only predicted", "both": "absent, and not predicted"}
LONGEST_NAME = 24  # of an entry on screen, before it takes several lines
SHORT_METRICS = {"lesionwise_dice": "LW dice", "lesionwise_hd95": "LW hd95"}  # as headings of narrow columns


# ---- evaluate -------------------------------------------------------------------------------------------------------


def evaluate(options: EvaluateOptions) -> None:
    given = dict(vars(options))
    out = given.pop("out")
    if given.pop("by_sequences"):
        by_set = evaluate_by_sequences(given.pop("reference"), given.pop("prediction"), **given)
        print_by_sequences(by_set)
        print("written:", *save_by_sequences(by_set, out))
        return
    results = evaluate_folders(**given)
    print_results(results)
    print("written:", *save_results(results, out))


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
    console = console or Console()
    title = SHORT_METRICS.get(metric, metric)
    console.print(f"[bold]{first['preset']}[/bold] ({first['cohort']}), {len(first['cases'])} cases: mean {title}")
    console.print(table)


def print_results(results: Results, console: Console | None = None) -> None:
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
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("", no_wrap=True)
        for region in shown:
            table.add_column(region, justify="right", no_wrap=True)
        for name, *row in zip(names.values(), *(cells[region] for region in shown), strict=True):
            table.add_row(name, *row)
        console.print(table)
    _print_empty(results["empty"], list(summary), n, console)


def _print_empty(empty: Mapping[str, Mapping[str, str]], regions: Sequence[str], n: int, console: Console) -> None:
    for where, meaning in EMPTY.items():
        counts = {region: sum(flags.get(region) == where for flags in empty.values()) for region in regions}
        if found := [f"{region} in {count}" for region, count in counts.items() if count]:
            console.print(f"{meaning}: {', '.join(found)} of {n} {'cases' if n > 1 else 'case'}")


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


def rank(options: RankOptions) -> None:
    given = dict(vars(options))
    out = given.pop("out")
    ranking = rank_results(**given)
    print_ranking(ranking)
    print("written:", *save_ranking(ranking, out))


def print_ranking(ranking: Ranking, console: Console | None = None) -> None:
    """The entries from the best on, and the chance of each lead, whose columns go by place.

    As many columns stand side by side as the console has room for; the rest follows below.
    """
    console = console or Console()
    columns = [[f"{ranking.scores[i]:.3f}" for i in ranking.order]]
    for j, (_, metric) in enumerate(ranking.columns):
        digits = 2 if facts_of_metric(metric).unit == "mm" else 4
        columns.append([f"{ranking.means[i][j]:.{digits}f}" for i in ranking.order])
    headings = ["mean\nrank", *(f"{region}\n{SHORT_METRICS.get(metric, metric)}" for region, metric in ranking.columns)]
    _print_columns(f"BraTS ranking over {len(ranking.cases)} cases", ranking, headings, columns, console)
    leads = [["" if i == j else f"{ranking.p_values[i, j]:.4f}" for i in ranking.order] for j in ranking.order]
    title = "permutation test: one-sided p of the row's lead over the column"
    _print_columns(title, ranking, list(map(str, range(1, len(leads) + 1))), leads, console)
    if ranking.left_out:
        console.print(f"not ranked, because a score is missing: {ranking.left_out} times case x region x metric")


def _print_columns(
    title: str, ranking: Ranking, headings: Sequence[str], columns: Sequence[Sequence[str]], console: Console
) -> None:
    names = [ranking.entries[i] for i in ranking.order]
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
    for number, block in enumerate(blocks):
        table = Table(box=SIMPLE_HEAD, collapse_padding=True, title_justify="left", title=None if number else title)
        table.add_column("", no_wrap=True)
        table.add_column("entry", overflow="fold", max_width=max(name_width, len("entry")))
        for heading, _ in block:
            table.add_column(heading, justify="right", no_wrap=True)
        for row, name in enumerate(names):
            table.add_row(str(row + 1), name, *(column[row] for _, column in block))
        console.print(table)


# ---- tune -----------------------------------------------------------------------------------------------------------


def tune(options: TuneOptions) -> None:
    tuned = tune_rules(**vars(options))
    print_tuning(tuned.report)
    print("written:", *tuned.files)


def print_tuning(report: Mapping[str, Any], console: Console | None = None) -> None:
    """A row per fold, with the rules that the other folds chose, and a sentence on what was written."""
    console = console or Console()
    held_out = report["held_out"]
    objective = report["objective"]
    gain = "gain in mean rank" if objective == "ranking" else f"gain in {facts_of_metric(objective).title}"
    table = Table("fold", "cases", "rules from the other folds", gain, title=f"objective: {objective}")
    for fold, part in report["folds"].items():
        rules = "; ".join(map(describe_rule, part["rules"])) or "no rule"
        table.add_row(fold, str(part["cases"]), rules, f"{part['gain']:+.4f}")
    table.add_row("all", str(held_out["cases"]), f"p = {held_out['p_value']:.4f}", f"{held_out['gain']:+.4f}")
    console.print(table)
    scores = Table("held out", "before", "after")
    for column, before in held_out["before"].items():
        after = held_out["after"][column]
        scores.add_row(column, *("-" if value is None else f"{value:.4f}" for value in (before, after)))
    console.print(scores)
    chosen = "; ".join(map(describe_rule, report["chosen_on_all"])) or "no rule"
    if report["written"]:
        console.print(f"rules chosen on all cases: {chosen}")
    else:
        console.print(
            f"no rules written: on held-out cases they do not help (all cases together would choose {chosen})"
        )


# ---- report ---------------------------------------------------------------------------------------------------------


def report(options: "ReportOptions") -> None:
    from nnunet_brats_ext.evaluation.report.page import write_report

    notes = write_report(**vars(options))
    print(*notes, f"written: {options.out} ({options.out.stat().st_size / 1000:.0f} kB)", sep="\n")
