"""The ranking of BraTS: Bakas et al. 2018, https://arxiv.org/abs/1811.02629.

In every case, for every region and metric, the entries are ranked; an entry's rank in a case is the mean of these, and
its final score the mean over cases. A permutation test says which leads may be chance, and resampling the cases how
stable the places are. Every score is compared between every two entries as well.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from nnunet_brats_ext.evaluation.evaluate import evaluate_folders
from nnunet_brats_ext.evaluation.metric_facts import LESIONWISE, WHOLE, is_small_good
from nnunet_brats_ext.evaluation.presets import Preset, cohort_option, preset_option, ranked_metrics
from nnunet_brats_ext.evaluation.results import CaseScores, Results, check_names, name_sources, read_models
from nnunet_brats_ext.evaluation.statistics import (
    PairedTest,
    RankStability,
    compare_paired,
    holm,
    rank_stability,
    sign_flip_p_values,
)
from nnunet_brats_ext.storage.csv_files import to_csv
from nnunet_brats_ext.storage.errors import Notice, UserError, raise_problems, shorten
from nnunet_brats_ext.storage.json_files import to_json
from nnunet_brats_ext.storage.options import Options, argument, option
from nnunet_brats_ext.storage.output import write_texts
from nnunet_brats_ext.storage.shared_options import processes_option, results_option

MOST_PAIRED = 10_000  # permutations of each paired test of scores, of which there are many


@dataclass(frozen=True)
class RankOptions(Options):
    """What `nnunet_brats rank` can be asked for."""

    sources: tuple[Path, ...] = argument("results.json files, or folders of predictions", metavar="RESULTS")
    names: tuple[str, ...] | None = option(default=None, help="what to call them; default: where their paths differ")
    metrics: tuple[str, ...] | None = option(
        default=None, help="what to rank by; default: what the challenge ranks by, as `nnunet_brats presets` lists it"
    )
    reference: Path | None = option(default=None, help="reference label maps, to score folders")
    preset: str = preset_option("to score folders: ")
    cohort: str = cohort_option("to score folders: ")
    labels: str | None = option(default=None, help="to score folders: as for `evaluate`")
    permutations: int = option(default=100_000, at_least=1, help="of the test, where there are too many to try all")
    out: Path = results_option("ranking.json", "the file to write, with three CSV tables beside it")
    processes: int | None = processes_option()


@dataclass(frozen=True)
class Ranking:
    """The outcome; entries in the order in which they were given.

    case_ranks (entry, case): the mean rank of an entry in a case. means (entry, column): its mean scores.
    p_values (entry, entry): of "the row's entry ranks better than the column's", one-sided; 1 on the diagonal.
    corrected: the same, corrected by Holm for all of them. tests: every pair of entries in every column.
    left_out: how many of the cases x columns have no score for some entry, and so no ranks.
    """

    entries: tuple[str, ...]
    cases: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]  # region, metric
    case_ranks: np.ndarray
    means: np.ndarray
    p_values: np.ndarray
    corrected: np.ndarray
    stability: RankStability
    tests: Sequence["Comparison"]
    left_out: int

    @property
    def scores(self) -> np.ndarray:
        return self.case_ranks.mean(1)

    @property
    def order(self) -> np.ndarray:
        """The entries from the best to the worst."""
        return np.argsort(self.scores, kind="stable")


@dataclass(frozen=True)
class Comparison:
    """Two entries in one column: the paired tests, whose p-values are corrected by Holm for all pairs of the column."""

    region: str
    metric: str
    first: str
    second: str
    test: PairedTest
    permutation_holm: float
    wilcoxon_holm: float


def rank_values(values: np.ndarray, small_is_good: Sequence[bool]) -> np.ndarray:
    """The ranks of entries within every case and column, 1 the best, equal values sharing the mean of their ranks.

    values and ranks (entry, case, column). NaN for all entries of a case and column where one of them is NaN.
    """
    signed = np.where(np.asarray(small_is_good), values, -values)
    return np.where(np.isnan(values).any(0), np.nan, rankdata(signed, axis=0))


def rank_entries(
    entries: Mapping[str, CaseScores], metrics: Sequence[str] | None = None, permutations: int = 100_000
) -> Ranking:
    """Rank two or more entries over the same cases and regions.

    metrics: by default the lesion-wise Dice and HD95 where all entries have them, else the whole regions'. Where one
    entry has no score (None) for a region and metric of a case, none is ranked there. Cases, regions or metrics that
    only some entries have are an error.
    """
    if len(entries) < 2:
        raise UserError(f"a ranking takes two entries or more, got {', '.join(entries) or 'nothing'}")
    cases, regions = _shared_cases_and_regions(entries)
    everywhere = [scores[case][region] for scores in entries.values() for case in cases for region in regions]
    metrics = metrics or (LESIONWISE if all(LESIONWISE[0] in one for one in everywhere) else WHOLE)
    for metric in metrics:
        lacking = [n for n, one in entries.items() if any(metric not in one[c][r] for c in cases for r in regions)]
        if lacking:
            raise UserError(f"{', '.join(lacking)} lacks the metric {metric}; choose among {', '.join(everywhere[0])}")
    columns = tuple((region, metric) for region in regions for metric in metrics)
    values = score_array(list(entries.values()), cases, columns)
    ranks = rank_values(values, [is_small_good(metric) for _, metric in columns])
    unranked = np.isnan(ranks[0])
    ranked = ~unranked.all(1)
    if not ranked.any():
        raise UserError(
            f"there is no case in which all entries have a score: {', '.join(entries)} by {', '.join(metrics)}; rank "
            "other metrics, or leave the entry out that has none"
        )
    cases = tuple(case for case, known in zip(cases, ranked, strict=True) if known)
    case_ranks = np.nanmean(ranks[:, ranked], axis=2)
    better = case_ranks[None] - case_ranks[:, None]  # (row, column, case): positive where the row ranks better
    number = len(entries)
    p_values = sign_flip_p_values(better.reshape(number * number, -1).T, permutations).reshape(number, number)
    corrected, others = p_values.copy(), ~np.eye(number, dtype=bool)
    corrected[others] = holm(p_values[others])
    return Ranking(
        tuple(entries),
        cases,
        columns,
        case_ranks,
        np.array([[_mean(column) for column in entry.T] for entry in values]),
        p_values,
        corrected,
        rank_stability(case_ranks),
        compare_entries(tuple(entries), columns, values, min(permutations, MOST_PAIRED)),
        int(unranked.sum()),
    )


def compare_entries(
    entries: Sequence[str], columns: Sequence[tuple[str, str]], values: np.ndarray, permutations: int = 10_000
) -> list[Comparison]:
    """Paired tests of every two entries in every column, from scores (entry, case, column)."""
    pairs = list(combinations(range(len(entries)), 2))
    first, second = (np.concatenate([values[pair[side]] for pair in pairs], axis=1) for side in (0, 1))
    flat = compare_paired(first, second, permutations)
    found = []
    for number, (region, metric) in enumerate(columns):
        tests = flat[number :: len(columns)]
        corrected = (holm([one.p_permutation for one in tests]), holm([one.p_wilcoxon for one in tests]))
        for (i, j), test, *p in zip(pairs, tests, *corrected, strict=True):
            found.append(Comparison(region, metric, entries[i], entries[j], test, *map(float, p)))
    return found


def score_array(entries: Sequence[CaseScores], cases: Sequence[str], columns: Sequence[tuple[str, str]]) -> np.ndarray:
    """Scores as (entry, case, column), NaN where there is none."""
    table = [[[entry[case][region][metric] for region, metric in columns] for case in cases] for entry in entries]
    return np.array(table, dtype=np.float64)  # None becomes NaN


def rank_results(
    sources: Sequence[Path | str],
    names: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    reference: Path | str | None = None,
    preset: str | Preset = "brats2020",
    cohort: str = "gli",
    labels: str | Sequence[str] | None = None,
    permutations: int = 100_000,
    processes: int | None = 1,
) -> Ranking:
    """Rank results.json files and folders of predictions; the latter are scored against `reference` on the way.

    names, metrics: as for `load_results` and `rank_entries`. The rest scores folders, as in `evaluate_folders`.
    """
    evaluation = dict(preset=preset, cohort=cohort, labels=labels, processes=processes, lesions=False)
    results = load_results(sources, names, reference, **evaluation)
    metrics = metrics or ranked_metrics(next(iter(results.values())))
    return rank_entries({name: one["cases"] for name, one in results.items()}, metrics, permutations)


def load_results(
    sources: Sequence[Path | str],
    names: Sequence[str] | None = None,
    reference: Path | str | None = None,
    **evaluation: Any,
) -> dict[str, Results]:
    """Name -> results, from results.json files and from prediction folders, which are scored against `reference`.

    names: by default what the results call the models, or else the part of the paths in which they differ. evaluation:
    as `evaluate_folders` takes it. Results of different presets or cohorts are an error, and so are scores of one case
    against the label maps of different patients. Results of versions before 0.2 do not say what they are about;
    a sentence says so.
    """
    found: list[tuple[Path, Results]] = []
    for path in map(Path, sources):
        if not path.is_dir():
            found += [(path, one) for one in read_models(path).values()]
        elif reference is None:
            raise UserError(f"{path} is a folder of predictions: give --reference to score it")
        else:
            found.append((path, evaluate_folders(reference, path, **evaluation)))
    check_names(names, len(found))
    kinds = {f"{path} is {one['preset']} {one['cohort']}": (one["preset"], one["cohort"]) for path, one in found}
    if len(set(kinds.values())) > 1:
        raise UserError(f"results of different presets or cohorts: {', '.join(kinds)}")
    results = dict(zip(names or _names(found), (one for _, one in found), strict=True))
    unknown = [str(path) for path, one in found if not one["references"]["files"]]
    if unknown and len(found) > 1:
        warnings.warn(
            f"{shorten(unknown)} does not say which label maps the scores are about, so whether all are about the same "
            "patients was not checked; `evaluate` of this version notes it",
            Notice,
            stacklevel=2,
        )
    _require_same_references(results)
    return results


def _names(found: Sequence[tuple[Path, Results]]) -> list[str]:
    """What results call their models; the part in which their predictions' paths differ, or else their own paths."""
    names = [one["model"] for _, one in found]
    if all(names) and len(set(names)) == len(names):
        return names
    folders = [Path(one["predictions"]["folder"]) for _, one in found]
    known = all(one["predictions"]["folder"] for _, one in found) and len(set(folders)) == len(folders)
    return name_sources(folders if known else [path for path, _ in found])


def _require_same_references(results: Mapping[str, Results]) -> None:
    """An error where two results have scored a case of one name against label maps of different patients."""
    first: dict[str, tuple[str, Mapping[str, str]]] = {}  # case -> who scored it, and against what
    different: dict[tuple[str, str], list[str]] = {}
    for name, one in results.items():
        for case, file in one["references"]["files"].items():
            other, there = first.setdefault(case, (name, file))
            if there.get("tumour") != file.get("tumour"):
                different.setdefault((other, name), []).append(case)
    problems = []
    for (other, name), cases in different.items():
        files = [results[one]["references"]["files"][cases[0]].get("path") for one in (other, name)]
        problems.append(f"{other} and {name}, {len(cases)} cases: {shorten(cases, 3)}; {files[0]} is not {files[1]}")
    raise_problems(
        "results about different references", problems, ["evaluate all predictions against the same label maps"]
    )


def save_ranking(ranking: Ranking, path: Path | str) -> list[Path]:
    """Write `path` (JSON) and beside it CSV tables: the entries from the best on, the p-values, and all paired tests.

    All files or none of them are written.
    """
    path = Path(path)
    entries = [ranking.entries[i] for i in ranking.order]
    columns = [f"{region} {metric}" for region, metric in ranking.columns]
    rows = [
        {"place": place, "entry": ranking.entries[i], "mean_rank": float(ranking.scores[i])}
        | {name: _or_none(mean) for name, mean in zip(columns, ranking.means[i], strict=True)}
        | dict(zip(("place_low", "place_median", "place_high"), ranking.stability.places[i].tolist(), strict=True))
        for place, i in enumerate(ranking.order, 1)
    ]
    p_values, corrected = (
        {
            ranking.entries[i]: {ranking.entries[j]: float(matrix[i, j]) for j in ranking.order if j != i}
            for i in ranking.order
        }
        for matrix in (ranking.p_values, ranking.corrected)
    )
    case_ranks = {
        case: {name: float(ranking.case_ranks[i, c]) for i, name in enumerate(ranking.entries)}
        for c, case in enumerate(ranking.cases)
    }
    tests = [_test_row(one) for one in ranking.tests]
    content = {
        "ranking": rows,
        "p_values": p_values,
        "p_values_holm": corrected,
        "stability": {
            "kendall_tau": ranking.stability.tau,
            "places": {ranking.entries[i]: ranking.stability.frequencies[i].tolist() for i in ranking.order},
        },
        "tests": tests,
        "left_out": ranking.left_out,
        "cases": case_ranks,
    }
    matrix = [["", *entries], *([a, *(p_values[a].get(b, "") for b in entries)] for a in entries)]
    files = {
        path: to_json(content),
        path.with_suffix(".csv"): to_csv([list(rows[0]), *(list(row.values()) for row in rows)]),
        path.with_name(f"{path.stem}_p_values.csv"): to_csv(matrix),
        path.with_name(f"{path.stem}_tests.csv"): to_csv([list(tests[0]), *(list(row.values()) for row in tests)]),
    }
    write_texts(files)
    return list(files)


def _test_row(one: Comparison) -> dict[str, Any]:
    test = one.test
    return {
        "region": one.region,
        "metric": one.metric,
        "first": one.first,
        "second": one.second,
        "cases": test.cases,
        "difference": _or_none(test.difference),
        "ci_low": _or_none(test.low),
        "ci_high": _or_none(test.high),
        "p_permutation": _or_none(test.p_permutation),
        "p_permutation_holm": _or_none(one.permutation_holm),
        "p_wilcoxon": _or_none(test.p_wilcoxon),
        "p_wilcoxon_holm": _or_none(one.wilcoxon_holm),
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _shared_cases_and_regions(entries: Mapping[str, CaseScores]) -> tuple[tuple[str, ...], tuple[str, ...]]:
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
                problems.append(f"{there} lacks {len(gone)} cases of {here}: {shorten(gone)}")
        if not problems and set(scores[cases[0]]) != set(regions):
            problems.append(f"{name} has the regions {list(scores[cases[0]])}, {first[0]} has {list(regions)}")
    if problems:
        raise UserError(
            "entries are ranked over the same cases; evaluate all on the same references\n  " + "\n  ".join(problems)
        )
    return cases, regions


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
