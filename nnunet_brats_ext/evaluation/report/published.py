"""What papers published, beside the scores of a report."""

from collections.abc import Sequence
from typing import NamedTuple

from nnunet_brats_ext.evaluation.metric_facts import WHOLE
from nnunet_brats_ext.evaluation.report.tables import ModelResults, format_score, title_of
from nnunet_brats_ext.papers import PublishedResult, find_paper, find_papers, trainers


class ScoreRow(NamedTuple):
    """One system: whose it is, on which cases, and its scores as text, one per column."""

    system: str
    data: str
    scores: list[str]


class PublishedTable(NamedTuple):
    """Our means, then those of papers. links: of the papers, by what they are called."""

    columns: list[str]
    ours: list[ScoreRow]
    papers: list[ScoreRow]
    links: dict[str, str]


def papers_with_results() -> list[str]:
    """The keys of the papers whose scores are known here."""
    return [key for key, paper in find_papers().items() if paper.results]


def published_table(
    results: ModelResults, regions: Sequence[str], trainer_names: Sequence[str], keys: Sequence[str]
) -> PublishedTable | None:
    """Dice and HD95 that papers print for the regions of these results; None where there are none.

    trainer_names: the papers of these trainers, without the results of their other trainers. keys: of further papers.
    """
    found: dict[str, list[PublishedResult]] = {}  # key of a paper -> its results
    for name in trainer_names:
        if facts := trainers().get(name):
            fitting = [one for one in find_paper(facts.paper).results if one.trainer in (None, name)]
            found.setdefault(facts.paper, []).extend(one for one in fitting if one not in found.get(facts.paper, []))
    for key in keys:
        found[key] = list(find_paper(key).results)
    shown = {(region, metric) for region in regions for metric in WHOLE}
    every = [
        (find_paper(key), one)
        for key, ones in found.items()
        for one in ones
        if shown & {(region, metric) for region, metrics in one.scores.items() for metric in metrics}
    ]
    columns = [
        (region, metric)
        for metric in WHOLE
        for region in regions
        if any(metric in one.scores.get(region, {}) for _, one in every)
        and all(metric in model["summary"][region] for model in results.values())
    ]
    if not columns:
        return None
    return PublishedTable(
        [f"{region} {title_of(metric)}" for region, metric in columns],
        [
            ScoreRow(
                name,
                f"{(n := len(one['cases']))} case{'s' * (n != 1)}",
                [format_score(m, one["summary"][r][m]["mean"]) for r, m in columns],
            )
            for name, one in results.items()
        ],
        [
            ScoreRow(
                f"{paper.short}: {one.system}",
                one.data,
                [format_score(m, one.scores.get(r, {}).get(m)) for r, m in columns],
            )
            for paper, one in every
        ],
        {paper.short: paper.link for paper, _ in every},
    )
