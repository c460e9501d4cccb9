"""Tune post-processing rules: cross-validation predictions in, the rules that help on held-out cases out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunet_brats_ext.evaluation.metric_facts import has_better
from nnunet_brats_ext.evaluation.presets import Preset, cohort_option, find_preset, preset_option
from nnunet_brats_ext.evaluation.rule_selection import (
    ClusterSelection,
    RuleGrid,
    RuleSelection,
    ScoreColumn,
    candidates,
    parse_grid,
    select_per_cluster,
    select_rules,
    try_candidates,
)
from nnunet_brats_ext.evaluation.scoring import columns_of, score_regions
from nnunet_brats_ext.predictions.case_clusters import CaseClusters, features_of
from nnunet_brats_ext.predictions.folders import PredictionFolder, find_cases, open_folders, problems_between
from nnunet_brats_ext.predictions.postprocess import read_rule_input, with_images_for
from nnunet_brats_ext.predictions.rule_sets import CLUSTER, RuleSet, save_rules
from nnunet_brats_ext.storage.errors import UserError, refuse, shorten
from nnunet_brats_ext.storage.images import read_label_map
from nnunet_brats_ext.storage.json_files import to_json
from nnunet_brats_ext.storage.nnunet import fold_folders, read_splits
from nnunet_brats_ext.storage.options import Options, argument, option
from nnunet_brats_ext.storage.output import write_texts
from nnunet_brats_ext.storage.parallel import for_each_case
from nnunet_brats_ext.storage.shared_options import processes_option, results_option

DEFAULT_GRID = ("small-et=10,20,50,100,200,300,500,1000", "small-components:WT=10,20,50,100,200,500,1000")


@dataclass(frozen=True)
class TuneOptions(Options):
    """What `nnunet_brats tune` can be asked for.

    predictions: with `splits` one folder of label maps. objective: a Preset's metric, or the ranking of its year.
    """

    reference: Path = argument("reference label maps as trained, such as labelsTr", metavar="REFERENCE")
    predictions: Path = argument("folder of a trained model with fold_*/validation", metavar="PREDICTIONS")
    out: Path = results_option("rules.json", "the rules, with *_report.json beside them")
    splits: Path | None = option(default=None, help="splits_final.json, if predictions is one folder of label maps")
    grid: tuple[str, ...] = option(
        default=DEFAULT_GRID,
        metavar="RULE=V,V,...",
        help="what to try, in this order: small-et=50,100,500 small-components:WT=10,50 "
        "unlikely-components:ET=0.6,0.7 oedema-to-core; of every step one or none is chosen",
    )
    objective: str = option(default="ranking", help="ranking, or a metric such as dice")
    preset: str = preset_option()
    cohort: str = cohort_option()
    per_cluster: int | None = option(
        default=None,
        at_least=2,
        metavar="N",
        help="rules for each of N groups of similar cases, kept only where they gain on held-out cases beyond the "
        "interval of that gain; groups are by volumes and components, with --images also by the tumour's contrast",
    )
    images: Path | None = option(default=None, help="images as nnU-Net names them, for oedema-to-core and clusters")
    save: str | None = option(
        default=None, metavar="NAME", help="save the rules beside the trained model too, so named"
    )
    processes: int | None = processes_option()


class TriedCase(NamedTuple):
    """A case under every candidate: scores (candidate, column); and the features that it is grouped by."""

    scores: np.ndarray
    features: np.ndarray


class TunedRules(NamedTuple):
    """The rules, none where they do not help on held-out cases, the report on them, and the files of both."""

    rules: RuleSet
    report: dict[str, Any]
    files: list[Path]


def tune_rules(reference: Path | str, predictions: Path | str, out: Path | str, **options: Any) -> TunedRules:
    """Choose rules by cross-validation and write them, and beside them `*_report.json`.

    reference: label maps as trained, as labelsTr. predictions: the folder of a trained model (with fold_0/validation
    and so on), or a folder of label maps with `splits`, the splits_final.json that says which fold each case is of.
    options: as in `TuneOptions`.
    """
    asked = TuneOptions(reference, predictions, out, **options)  # type: ignore[arg-type]
    preset = find_preset(asked.preset, asked.cohort)
    grid = parse_grid(asked.grid)
    rule_sets = candidates(grid, preset.scheme)
    with_images = asked.per_cluster is not None and asked.images is not None
    looking = CaseClusters(images=True) if with_images else None
    everything = RuleSet(tuple(rule for step in grid for rule in step), preset.scheme, looking)
    columns = scored_columns(preset, asked.objective)
    folds = find_folds(asked.predictions, asked.splits, "needed" if everything.needs_probabilities else "ignored")
    folds = {fold: with_images_for(everything, member, asked.images) for fold, member in folds.items()}
    members = {case: member for member in folds.values() for case in member.cases}
    fold_of = [fold for fold, member in folds.items() for _ in member.cases]
    references = find_references(asked.reference, members)

    work = partial(_score_case, members, references, everything, grid, columns, preset, asked.per_cluster is not None)
    found = list(for_each_case(work, list(members), "Tune", asked.processes).values())
    scores, features = np.stack([one.scores for one in found]), np.stack([one.features for one in found])
    selection = select_rules(scores, fold_of, columns, asked.objective)
    final = rule_sets[selection.best] if selection.helps else rule_sets[0]
    report = describe_selection(selection, rule_sets, fold_of, columns, asked.objective)
    if asked.per_cluster is not None:
        clustered = select_per_cluster(
            scores, features, fold_of, columns, asked.objective, asked.per_cluster, with_images, selection
        )
        if clustered.helps:
            final = rules_per_cluster(clustered, rule_sets)
        report["per_cluster"] = describe_clusters(clustered, rule_sets, features, columns)
        report["written"] = selection.helps or clustered.helps
    report |= {"preset": asked.preset, "cohort": asked.cohort, "grid": list(asked.grid)}
    files = {asked.out: final.to_json(), asked.out.with_name(f"{asked.out.stem}_report.json"): to_json(report)}
    write_texts(files)
    saved = [save_rules(final, asked.predictions, asked.save)] if asked.save else []
    return TunedRules(final, report, [*files, *saved])


def find_folds(predictions: Path, splits: Path | None, probabilities: str) -> dict[str, PredictionFolder]:
    """Fold -> its held-out predictions; a case in two folds is an error, as it would be tuned on."""
    if splits is None:
        folders = [folder / "validation" for fold, folder in fold_folders(predictions).items() if fold != "all"]
        if not (folders := [folder for folder in folders if folder.is_dir()]):
            raise UserError(f"{predictions} has no fold_0/validation: give the folder of a trained model, or --splits")
        folds = {path.parent.name: open_folders([path], probabilities)[0] for path in folders}
    else:
        member = open_folders([predictions], probabilities)[0]
        held_out = [set(split["val"]) for split in read_splits(splits)]
        every = {f"fold_{i}": {c: p for c, p in member.cases.items() if c in cases} for i, cases in enumerate(held_out)}
        folds = {fold: replace(member, cases=cases) for fold, cases in every.items() if cases}
        if unknown := sorted(set(member.cases) - set().union(*held_out)):
            raise UserError(f"{splits} holds out none of {shorten(unknown)}, predicted in {predictions}")
    times = Counter(case for member in folds.values() for case in member.cases)
    if twice := sorted(case for case, count in times.items() if count > 1):
        raise UserError(f"held out in two folds: {shorten(twice)}; keep each case in one")
    return folds


def find_references(folder: Path, members: Mapping[str, PredictionFolder]) -> dict[str, Path]:
    """Case -> reference label map, on the same grid as its prediction; the folder may hold more cases."""
    references = {case: path for case, path in find_cases(folder).items() if case in members}
    predictions = {case: member.cases[case] for case, member in members.items()}
    refuse(problems_between({"the predictions": predictions, str(folder): references}), "tune")
    return references


def scored_columns(preset: Preset, objective: str) -> list[ScoreColumn]:
    """Region and metric of the scores to look at: those of the preset year's ranking, and the objective."""
    known = [metric for metric in columns_of(preset) if has_better(metric)]
    if objective not in ("ranking", *known):
        raise UserError(f"no objective {objective!r}; there are ranking, {', '.join(known)}")
    metrics = list(preset.ranked)
    if objective not in ("ranking", *metrics):
        metrics.append(objective)
    return [(region, metric) for region in preset.regions for metric in metrics]


def columns_to_choose_by(by: str, preset: Preset) -> list[ScoreColumn]:
    """Region and metric of the scores that `choose --by` looks at: a region's Dice, a metric, or the ranking's."""
    if by in preset.regions:
        return [(by, "dice")]
    try:
        columns = scored_columns(preset, by)
    except UserError as error:
        raise UserError(f"--by {by}: {error}, {', '.join(preset.regions)}") from error
    return columns if by == "ranking" else [(region, metric) for region, metric in columns if metric == by]


def _score_case(
    members: Mapping[str, PredictionFolder],
    references: Mapping[str, Path],
    rules: RuleSet,
    grid: RuleGrid,
    columns: Sequence[ScoreColumn],
    preset: Preset,
    grouped: bool,
    case: str,
) -> TriedCase:
    loaded = read_rule_input(members[case], rules, case)
    reference, its_grid = read_label_map(references[case])
    maps, made = try_candidates(loaded, grid, rules.scheme_name)
    scores = []
    for labels in maps:
        regions = score_regions(reference, labels, its_grid.spacing_mm[::-1], preset)
        scores.append([regions[region].scores[metric] for region, metric in columns])
    features = features_of(loaded, images=rules.clusters is not None) if grouped else np.zeros(0)
    return TriedCase(np.array(scores, dtype=np.float64)[made], features)


def rules_per_cluster(selection: ClusterSelection, rule_sets: Sequence[RuleSet]) -> RuleSet:
    """The rules of every cluster as one set."""
    of_cluster = [rule_sets[choice] for choice in selection.best]
    rules = [{**rule, CLUSTER: cluster} for cluster, one in enumerate(of_cluster) for rule in one.rules]
    return RuleSet(tuple(rules), rule_sets[0].scheme_name, selection.clusters)


def describe_clusters(
    selection: ClusterSelection, rule_sets: Sequence[RuleSet], features: np.ndarray, columns: Sequence[ScoreColumn]
) -> dict[str, Any]:
    """The report on clusters as JSON: what each chose, held-out scores, and the gain over one set of rules."""

    def rules_of(choices: Sequence[int]) -> list[list[dict[str, Any]]]:
        return [list(map(dict, rule_sets[choice].rules)) for choice in choices]

    cases = np.bincount(selection.clusters.nearest(features), minlength=len(selection.best))
    return {
        "cases": list(map(int, cases)),
        "rules": rules_of(selection.best),
        "folds": {fold: rules_of(choices) for fold, choices in selection.chosen.items()},
        "after": _means(selection.after, columns),
        "gain_over_one_set": float(selection.gains.mean()),
        "interval": list(selection.interval),
        "written": selection.helps,
    }


def _means(values: np.ndarray, columns: Sequence[ScoreColumn]) -> dict[str, float | None]:
    """Of each column the mean of the cases that have a score."""
    known = [column[~np.isnan(column)] for column in values.T]
    names = [f"{region} {metric}" for region, metric in columns]
    return {name: float(v.mean()) if v.size else None for name, v in zip(names, known, strict=True)}


def describe_selection(
    selection: RuleSelection,
    rule_sets: Sequence[RuleSet],
    folds: Sequence[str],
    columns: Sequence[ScoreColumn],
    objective: str,
) -> dict[str, Any]:
    """The report as JSON: per fold and over all held-out cases the gain, and the scores before and after."""

    def part(cases: np.ndarray) -> dict[str, Any]:
        return {
            "cases": int(cases.sum()),
            "gain": float(selection.gains[cases].mean()),
            "before": _means(selection.before[cases], columns),
            "after": _means(selection.after[cases], columns),
        }

    fold_of = np.asarray(folds)
    return {
        "objective": objective,
        "folds": {
            fold: {"rules": list(map(dict, rule_sets[choice].rules)), **part(fold_of == fold)}
            for fold, choice in selection.chosen.items()
        },
        "held_out": {**part(np.ones(len(folds), dtype=bool)), "p_value": selection.p_value},
        "chosen_on_all": list(map(dict, rule_sets[selection.best].rules)),
        "written": selection.helps,
    }
