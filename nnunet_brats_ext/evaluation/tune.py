"""`nnunet_brats tune`: cross-validation predictions in, the rules that help on held-out cases out."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from nnunet_brats_ext.evaluation.presets import Preset, find_preset
from nnunet_brats_ext.evaluation.ranking import LESIONWISE, WHOLE
from nnunet_brats_ext.evaluation.scoring import evaluate_case
from nnunet_brats_ext.evaluation.tuning import (
    Column,
    Grid,
    Tuning,
    candidates,
    parse_grid,
    try_candidates,
    tune_scores,
)
from nnunet_brats_ext.predictions.folders import (
    PredictionFolder,
    find_cases,
    open_folders,
    problems_between,
)
from nnunet_brats_ext.predictions.postprocess import read_rule_input, with_images_for
from nnunet_brats_ext.predictions.rule_sets import RuleSet, describe_rule
from nnunet_brats_ext.storage.errors import UserError, refuse
from nnunet_brats_ext.storage.images import read_label_map
from nnunet_brats_ext.storage.output import write_text
from nnunet_brats_ext.storage.parallel import for_each_case

DEFAULT_GRID = ("small-et=10,20,50,100,200,300,500,1000", "small-components:WT=10,20,50,100,200,500,1000")


def tune(
    reference: Path,
    predictions: Path,
    out: Path,
    grid_texts: Sequence[str] = DEFAULT_GRID,
    objective: str = "ranking",
    preset: str = "brats2020",
    cohort: str = "gli",
    splits: Path | None = None,
    images: Path | None = None,
    processes: int | None = None,
) -> RuleSet:
    """Tune on cross-validation predictions and write the rules, and beside them `*_report.json`.

    predictions: the folder of a trained model (with fold_0/validation and so on), or a folder of label maps with
    `splits`, the splits_final.json that tells their folds. reference: their label maps as trained, as labelsTr.
    objective: `ranking` or a metric. Rules that do not help on held-out cases are not written: the file has none.
    """
    rules = find_preset(preset, cohort)
    grid = parse_grid(grid_texts)
    options = candidates(grid, rules.scheme)
    everything = RuleSet(tuple(rule for step in grid for rule in step), rules.scheme)
    columns = scored_columns(rules, objective)
    folds = find_folds(predictions, splits, "needed" if everything.needs_probabilities else "ignored")
    folds = {fold: with_images_for(everything, member, images) for fold, member in folds.items()}
    members = {case: member for member in folds.values() for case in member.cases}
    fold_of = [fold for fold, member in folds.items() for _ in member.cases]
    references = find_references(reference, members)

    work = partial(_score_case, members, references, everything, grid, columns, preset, cohort)
    scores = for_each_case(work, list(members), "Tune", processes)
    tuning = tune_scores(np.stack(list(scores.values())), fold_of, columns, objective)
    final = options[tuning.best] if tuning.helps else options[0]
    report = describe_tuning(tuning, options, fold_of, columns, objective)
    report |= {"preset": preset, "cohort": cohort, "grid": list(grid_texts)}
    write_text(out, final.to_json())
    write_text(out.with_name(f"{out.stem}_report.json"), json.dumps(report, indent=2) + "\n")
    print_report(report)
    return final


def find_folds(predictions: Path, splits: Path | None, probabilities: str) -> dict[str, PredictionFolder]:
    """Fold -> its held-out predictions; a case in two folds is an error, as it would be tuned on."""
    if splits is None:
        folders = sorted(predictions.glob("fold_[0-9]*/validation"))
        if not folders:
            raise UserError(f"{predictions} has no fold_0/validation: give the folder of a trained model, or --splits")
        folds = {path.parent.name: open_folders([path], probabilities)[0] for path in folders}
    else:
        member = open_folders([predictions], probabilities)[0]
        held_out = _read_splits(splits)
        every = {f"fold_{i}": {c: p for c, p in member.cases.items() if c in cases} for i, cases in enumerate(held_out)}
        folds = {fold: replace(member, cases=cases) for fold, cases in every.items() if cases}
        if strangers := sorted(set(member.cases) - set().union(*held_out)):
            raise UserError(f"{splits} holds out none of {', '.join(strangers)}, predicted in {predictions}")
    times = Counter(case for member in folds.values() for case in member.cases)
    if twice := sorted(case for case, count in times.items() if count > 1):
        raise UserError(f"held out in two folds: {', '.join(twice)}")
    return folds


def _read_splits(path: Path) -> list[set[str]]:
    try:
        return [set(split["val"]) for split in json.loads(path.read_text())]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f'{path} is no splits_final.json, a list of {{"train": [...], "val": [...]}}') from error


def find_references(folder: Path, members: Mapping[str, PredictionFolder]) -> dict[str, Path]:
    """Case -> reference label map, on the same grid as its prediction; the folder may hold more cases."""
    references = {case: path for case, path in find_cases(folder).items() if case in members}
    predictions = {case: member.cases[case] for case, member in members.items()}
    refuse(problems_between({"the predictions": predictions, str(folder): references}), "tune")
    return references


def scored_columns(preset: Preset, objective: str) -> list[Column]:
    """The columns that a tuning looks at: those of the preset year's ranking, and the objective's."""
    nothing = np.zeros((1, 1, 1), np.uint8)
    known = next(iter(evaluate_case(nothing, nothing, preset=preset).values()))
    if objective not in ("ranking", *known):
        raise UserError(f"no objective {objective!r}; there are ranking, {', '.join(known)}")
    metrics = list(LESIONWISE if preset.lesions else WHOLE)
    if objective not in ("ranking", *metrics):
        metrics.append(objective)
    return [(region, metric) for region in preset.regions for metric in metrics]


def _score_case(
    members: Mapping[str, PredictionFolder],
    references: Mapping[str, Path],
    rules: RuleSet,
    grid: Grid,
    columns: Sequence[Column],
    preset: str,
    cohort: str,
    case: str,
) -> np.ndarray:
    loaded = read_rule_input(members[case], rules, case)
    reference, its_grid = read_label_map(references[case])
    maps, made = try_candidates(loaded, grid, rules.scheme_name)
    scores = []
    for labels in maps:
        regions = evaluate_case(reference, labels, its_grid.spacing_mm[::-1], preset, cohort)
        scores.append([regions[region][metric] for region, metric in columns])
    return np.array(scores, dtype=np.float64)[made]


def describe_tuning(
    tuning: Tuning, options: Sequence[RuleSet], folds: Sequence[str], columns: Sequence[Column], objective: str
) -> dict[str, Any]:
    """The report as JSON: per fold and over all held-out cases the gain, and the scores before and after."""

    def means(values: np.ndarray) -> dict[str, float | None]:
        known = [column[~np.isnan(column)] for column in values.T]
        names = [f"{region} {metric}" for region, metric in columns]
        return {name: float(v.mean()) if v.size else None for name, v in zip(names, known, strict=True)}

    def part(cases: np.ndarray) -> dict[str, Any]:
        gain = float(tuning.gains[cases].mean())
        return {"cases": int(cases.sum()), "gain": gain, "before": means(tuning.before[cases])} | {
            "after": means(tuning.after[cases])
        }

    fold_of = np.asarray(folds)
    return {
        "objective": objective,
        "folds": {
            fold: {"rules": list(map(dict, options[choice].rules)), **part(fold_of == fold)}
            for fold, choice in tuning.chosen.items()
        },
        "held_out": {**part(np.ones(len(folds), dtype=bool)), "p_value": tuning.p_value},
        "chosen_on_all": list(map(dict, options[tuning.best].rules)),
        "written": tuning.helps,
    }


def print_report(report: Mapping[str, Any], console: Console | None = None) -> None:
    """A row per fold, with the rules that the other folds chose, and a sentence on what was written."""
    console = console or Console()
    held_out = report["held_out"]
    table = Table("fold", "cases", "rules from the other folds", "gain", title=f"objective: {report['objective']}")
    for fold, part in report["folds"].items():
        rules = "; ".join(map(describe_rule, part["rules"])) or "none"
        table.add_row(fold, str(part["cases"]), rules, f"{part['gain']:+.4f}")
    table.add_row("all", str(held_out["cases"]), f"p = {held_out['p_value']:.4f}", f"{held_out['gain']:+.4f}")
    console.print(table)
    scores = Table("held out", "before", "after")
    for column, before in held_out["before"].items():
        after = held_out["after"][column]
        scores.add_row(column, *("-" if value is None else f"{value:.4f}" for value in (before, after)))
    console.print(scores)
    chosen = "; ".join(map(describe_rule, report["chosen_on_all"])) or "none"
    if report["written"]:
        console.print(f"rules chosen on all cases: {chosen}")
    else:
        console.print(
            f"no rules written: on held-out cases they do not help (all cases together would choose {chosen})"
        )
