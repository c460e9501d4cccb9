"""The ranking of BraTS: Bakas et al. 2018, https://arxiv.org/abs/1811.02629.

In every case, for every region and metric, the entries are ranked; an entry's rank in a case is the mean of these, and
its final score the mean over cases. A permutation test says which differences may be chance.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import permutation_test, rankdata

from nnunet_brats_ext.evaluation.evaluate import evaluate_folders
from nnunet_brats_ext.evaluation.metric_facts import LESIONWISE, WHOLE, is_small_good
from nnunet_brats_ext.evaluation.presets import Preset, cohort_option, preset_option, ranked_metrics
from nnunet_brats_ext.evaluation.results import CaseScores, Results, read_results
from nnunet_brats_ext.storage.csv_files import to_csv
from nnunet_brats_ext.storage.errors import UserError, shorten
from nnunet_brats_ext.storage.json_files import to_json
from nnunet_brats_ext.storage.options import Options, argument, option
from nnunet_brats_ext.storage.output import write_texts
from nnunet_brats_ext.storage.shared_options import processes_option, results_option

EXACT_UP_TO = 16  # cases: 65,536 sign patterns
BATCH = 1000  # permutations at a time, which bounds the memory


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
    out: Path = results_option("ranking.json")
    processes: int | None = processes_option()


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
    means = np.array([[_mean(column) for column in entry.T] for entry in values])
    return Ranking(tuple(entries), cases, columns, case_ranks, means, p_values, int(unranked.sum()))


def score_array(entries: Sequence[CaseScores], cases: Sequence[str], columns: Sequence[tuple[str, str]]) -> np.ndarray:
    """Scores as (entry, case, column), NaN where there is none."""
    table = [[[entry[case][region][metric] for region, metric in columns] for case in cases] for entry in entries]
    return np.array(table, dtype=np.float64)  # None becomes NaN


def sign_flip_p_values(differences: np.ndarray, permutations: int = 100_000) -> np.ndarray:
    """The chance of a mean as large as the observed one if the sign of every case's difference were random.

    differences (case, comparison) -> p (comparison), one-sided: small where the mean is clearly above zero. Up to
    `EXACT_UP_TO` cases all sign patterns are counted; beyond, `permutations` are drawn, and the observed pattern counts
    as one of them, so that no p is zero. Differences that are all zero give 1.
    """
    if len(differences) == 1:  # SciPy asks for two observations; a difference of zero changes nothing
        differences = np.vstack([differences, np.zeros_like(differences)])
    scale = np.abs(differences).sum(0).clip(1e-300)

    def mean(signs: np.ndarray, axis: int) -> np.ndarray:
        return np.round(signs @ differences / scale, 9)  # rounded: equal sums stay equal

    # The sample is the signs, so that all comparisons share the permutations of one call.
    found = permutation_test(
        (np.ones(len(differences)),),
        mean,
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=np.inf if len(differences) <= EXACT_UP_TO else permutations,
        batch=BATCH,
        random_state=np.random.default_rng(0),
    )
    return found.pvalue


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

    names: by default the part of the paths in which they differ. evaluation: as `evaluate_folders` takes it. Results
    of different presets or cohorts are an error.
    """
    paths = [Path(source) for source in sources]
    if names is not None and len(names) != len(paths):
        raise UserError(f"--names {' '.join(names)}: {len(names)} names for {len(paths)} results")
    if names is not None and (twice := [name for name, times in Counter(names).items() if times > 1]):
        raise UserError(f"--names {' '.join(names)}: {', '.join(twice)} is given twice")
    found = []
    for path in paths:
        if not path.is_dir():
            found.append(read_results(path))
        elif reference is None:
            raise UserError(f"{path} is a folder of predictions: give --reference to score it")
        else:
            found.append(evaluate_folders(reference, path, **evaluation))
    kinds = {str(path): f"{one['preset']} {one['cohort']}" for path, one in zip(paths, found, strict=True)}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{path} is {kind}" for path, kind in kinds.items())
        raise UserError(f"results of different presets or cohorts: {listed}")
    return dict(zip(names or _short_names(paths), found, strict=True))


def save_ranking(ranking: Ranking, path: Path | str) -> list[Path]:
    """Write `path` (JSON) and beside it the same as two CSV tables: the entries from the best on, and the p-values.

    All three or none of them are written.
    """
    path = Path(path)
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
    matrix = [["", *entries], *([a, *(p_values[a].get(b, "") for b in entries)] for a in entries)]
    files = {
        path: to_json(content),
        path.with_suffix(".csv"): to_csv([list(rows[0]), *(list(row.values()) for row in rows)]),
        path.with_name(f"{path.stem}_p_values.csv"): to_csv(matrix),
    }
    write_texts(files)
    return list(files)


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


def _short_names(sources: Sequence[Path]) -> list[str]:
    """Short names of paths: the last part, or as many of the last parts as make them differ."""
    parts = [source.with_suffix("").parts if source.suffix == ".json" else source.parts for source in sources]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"the same results twice among {', '.join(map(str, sources))}; give each once")


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
