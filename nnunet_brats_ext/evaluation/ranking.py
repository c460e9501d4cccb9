"""Who is better, as BraTS ranks its entries: Bakas et al. 2018, https://arxiv.org/abs/1811.02629.

In every case, for every region and metric, the entries are ranked; an entry's rank in a case is the mean of these, and
its final score the mean over cases. A permutation test says which differences may be chance.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

from nnunet_brats_ext.evaluation.evaluate import evaluate_folders
from nnunet_brats_ext.evaluation.significance import sign_flip_p_values
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.output import write_text

Scores = Mapping[str, Mapping[str, Mapping[str, float | None]]]  # case -> region -> metric -> value

SMALL_IS_GOOD = ("hd95", "hd95_pooled", "lesionwise_hd95", "n_fp", "n_fn")
WHOLE = ("dice", "hd95")  # what BraTS ranked until 2022
LESIONWISE = ("lesionwise_dice", "lesionwise_hd95")  # and from 2023 on
LONGEST_NAME = 24  # on screen, before it takes several lines
METRICS_SHOWN = {"lesionwise_dice": "LW dice", "lesionwise_hd95": "LW hd95"}  # on narrow screens


@dataclass(frozen=True)
class Ranking:
    """The outcome; entries in the order in which they were given.

    case_ranks (entry, case): the mean rank of an entry in a case. means (entry, column): its mean scores.
    p_values (entry, entry): of "the row's entry ranks better than the column's", one-sided; 1 on the diagonal.
    left_out: how many of the cases x columns have no score for some entry, and so no ranks.
    """

    entries: tuple[str, ...]
    cases: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]  # region, metric
    case_ranks: np.ndarray
    means: np.ndarray
    p_values: np.ndarray
    left_out: int

    @property
    def scores(self) -> np.ndarray:
        return self.case_ranks.mean(1)

    @property
    def order(self) -> np.ndarray:
        """The entries from the best to the worst."""
        return np.argsort(self.scores, kind="stable")


def rank_values(values: np.ndarray, small_is_good: Sequence[bool]) -> np.ndarray:
    """The ranks of entries within every case and column, 1 the best, equal values sharing the mean of their ranks.

    values and ranks (entry, case, column). NaN for all entries of a case and column where one of them is NaN.
    """
    signed = np.where(np.asarray(small_is_good), values, -values)
    return np.where(np.isnan(values).any(0), np.nan, rankdata(signed, axis=0))


def rank_entries(
    entries: Mapping[str, Scores], metrics: Sequence[str] | None = None, permutations: int = 100_000
) -> Ranking:
    """Rank two or more entries over the same cases and regions.

    metrics: by default the lesion-wise Dice and HD95 where all entries have them, else the whole regions'. Where one
    entry has no score (None) for a region and metric of a case, none is ranked there. Cases, regions or metrics that
    only some entries have are an error.
    """
    if len(entries) < 2:
        raise UserError(f"a ranking takes two entries or more, got {', '.join(entries) or 'none'}")
    cases, regions = _shared_cases_and_regions(entries)
    everywhere = [scores[case][region] for scores in entries.values() for case in cases for region in regions]
    metrics = metrics or (LESIONWISE if all(LESIONWISE[0] in one for one in everywhere) else WHOLE)
    for metric in metrics:
        lacking = [n for n, one in entries.items() if any(metric not in one[c][r] for c in cases for r in regions)]
        if lacking:
            raise UserError(f"{', '.join(lacking)} lacks the metric {metric}; choose among {', '.join(everywhere[0])}")
    columns = tuple((region, metric) for region in regions for metric in metrics)
    values = score_array(list(entries.values()), cases, columns)
    ranks = rank_values(values, [metric in SMALL_IS_GOOD for _, metric in columns])
    unranked = np.isnan(ranks[0])
    ranked = ~unranked.all(1)
    if not ranked.any():
        raise UserError("there is no case in which all entries have a score")
    cases = tuple(case for case, known in zip(cases, ranked, strict=True) if known)
    case_ranks = np.nanmean(ranks[:, ranked], axis=2)
    better = case_ranks[None] - case_ranks[:, None]  # (row, column, case): positive where the row ranks better
    number = len(entries)
    p_values = sign_flip_p_values(better.reshape(number * number, -1).T, permutations).reshape(number, number)
    means = np.array([[_mean(column) for column in entry.T] for entry in values])
    return Ranking(tuple(entries), cases, columns, case_ranks, means, p_values, int(unranked.sum()))


def score_array(entries: Sequence[Scores], cases: Sequence[str], columns: Sequence[tuple[str, str]]) -> np.ndarray:
    """Scores as (entry, case, column), NaN where there is none."""
    table = [[[entry[case][region][metric] for region, metric in columns] for case in cases] for entry in entries]
    return np.array(table, dtype=np.float64)  # None becomes NaN


def load_entries(
    sources: Sequence[Path],
    reference: Path | None = None,
    names: Sequence[str] | None = None,
    **evaluation: Any,
) -> dict[str, Scores]:
    """Name -> scores, from results.json files and from prediction folders, which are scored against `reference`.

    names: by default the part of the paths in which they differ. evaluation: as `evaluate_folders` takes it. Results
    of different presets or cohorts are an error.
    """
    if names is not None and len(names) != len(sources):
        raise UserError(f"{len(names)} names for {len(sources)} results")
    if names is not None and (twice := [name for name, times in Counter(names).items() if times > 1]):
        raise UserError(f"--names {' '.join(names)}: {', '.join(twice)} is given twice")
    found = []
    for source in sources:
        if not source.is_dir():
            found.append(read_json(source))
        elif reference is None:
            raise UserError(f"{source} is a folder of predictions: give --reference to score it")
        else:
            found.append(evaluate_folders(reference, source, progress=True, **evaluation))
    kinds = {str(source): (one.get("preset"), one.get("cohort")) for source, one in zip(sources, found, strict=True)}
    if len(set(kinds.values())) > 1:
        raise UserError(f"results of different presets or cohorts: {kinds}")
    if bad := [str(source) for source, one in zip(sources, found, strict=True) if not one.get("cases")]:
        raise UserError(f"{', '.join(bad)} holds no cases; `nnunet_brats evaluate` writes such files")
    return dict(zip(names or _short_names(sources), [one["cases"] for one in found], strict=True))


def print_ranking(ranking: Ranking, console: Console | None = None) -> None:
    """The entries from the best on, and the chance of each lead, whose columns go by place.

    As many columns stand side by side as the console has room for; the rest follows below.
    """
    console = console or Console()
    columns = [[f"{ranking.scores[i]:.3f}" for i in ranking.order]]
    for j, (_, metric) in enumerate(ranking.columns):
        digits = 2 if "hd95" in metric else 4
        columns.append([f"{ranking.means[i][j]:.{digits}f}" for i in ranking.order])
    headings = ["mean\nrank", *(f"{region}\n{METRICS_SHOWN.get(metric, metric)}" for region, metric in ranking.columns)]
    _print_columns(f"BraTS ranking over {len(ranking.cases)} cases", ranking, headings, columns, console)
    leads = [["" if i == j else f"{ranking.p_values[i, j]:.4f}" for i in ranking.order] for j in ranking.order]
    title = "permutation test: one-sided p of the row's lead over the column"
    _print_columns(title, ranking, list(map(str, range(1, len(leads) + 1))), leads, console)
    if ranking.left_out:
        console.print(f"not ranked for want of a score: {ranking.left_out} times case x region x metric")


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
        table.add_column("entry", overflow="fold", max_width=name_width)
        for heading, _ in block:
            table.add_column(heading, justify="right", no_wrap=True)
        for row, name in enumerate(names):
            table.add_row(str(row + 1), name, *(column[row] for _, column in block))
        console.print(table)


def save_ranking(ranking: Ranking, path: Path) -> list[Path]:
    """Write `path` (JSON) and beside it the same as two CSV tables: the entries from the best on, and the p-values."""
    entries = [ranking.entries[i] for i in ranking.order]
    columns = [f"{region} {metric}" for region, metric in ranking.columns]
    rows = [
        {"place": place, "entry": ranking.entries[i], "mean_rank": float(ranking.scores[i])}
        | {name: None if np.isnan(mean) else float(mean) for name, mean in zip(columns, ranking.means[i], strict=True)}
        for place, i in enumerate(ranking.order, 1)
    ]
    p_values = {
        ranking.entries[i]: {ranking.entries[j]: float(ranking.p_values[i, j]) for j in ranking.order if j != i}
        for i in ranking.order
    }
    case_ranks = {
        case: {name: float(ranking.case_ranks[i, c]) for i, name in enumerate(ranking.entries)}
        for c, case in enumerate(ranking.cases)
    }
    content = {"ranking": rows, "p_values": p_values, "left_out": ranking.left_out, "cases": case_ranks}
    table, matrix = path.with_suffix(".csv"), path.with_name(f"{path.stem}_p_values.csv")
    write_text(path, json.dumps(content, indent=2) + "\n")
    write_text(table, _as_csv([list(rows[0]), *(list(row.values()) for row in rows)]))
    write_text(matrix, _as_csv([["", *entries], *([a, *(p_values[a].get(b, "") for b in entries)] for a in entries)]))
    return [path, table, matrix]


def _shared_cases_and_regions(entries: Mapping[str, Scores]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    first, *others = entries.items()
    cases = tuple(first[1])
    regions = tuple(first[1][cases[0]])
    problems = []
    for name, scores in others:
        for here, there, gone in (
            (first[0], name, sorted(set(cases) - set(scores))),
            (name, first[0], sorted(set(scores) - set(cases))),
        ):
            if gone:
                problems.append(f"{there} lacks {len(gone)} cases of {here}: {', '.join(gone)}")
        if not problems and set(scores[cases[0]]) != set(regions):
            problems.append(f"{name} has the regions {list(scores[cases[0]])}, {first[0]} has {list(regions)}")
    if problems:
        raise UserError("entries are ranked over the same cases\n  " + "\n  ".join(problems))
    return cases, regions


def _short_names(sources: Sequence[Path]) -> list[str]:
    """What tells paths apart: the last part, or as many of the last parts as it takes."""
    parts = [source.with_suffix("").parts if source.suffix == ".json" else source.parts for source in sources]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"the same results twice among {', '.join(map(str, sources))}")


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _as_csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
