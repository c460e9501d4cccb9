"""Score a folder of predictions as a BraTS challenge does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial as bind
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnunet_brats_ext.evaluation.boxes import find_box
from nnunet_brats_ext.evaluation.label_maps import find_label_maps, find_numberings, match_cases
from nnunet_brats_ext.evaluation.numbering import Numberings, renumber
from nnunet_brats_ext.evaluation.presets import Preset, cohort_option, find_preset, preset_option
from nnunet_brats_ext.evaluation.results import Results, summarise_scores
from nnunet_brats_ext.evaluation.scoring import evaluate_case
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import read_image
from nnunet_brats_ext.storage.options import Options, argument, option
from nnunet_brats_ext.storage.parallel import for_each
from nnunet_brats_ext.storage.shared_options import processes_option, results_option


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """What `nnunet_brats evaluate` can be asked for."""

    reference: Path = argument("folder of reference label maps (or of case folders), or one file", metavar="REFERENCE")
    prediction: Path = argument("folder of predicted label maps with the same names, or one file", metavar="PREDICTION")
    preset: str = preset_option()
    cohort: str = cohort_option()
    labels: str | None = option(
        default=None,
        help="numbering of the files: trained, released, or a scheme's name; two, as released,trained, where "
        "references and predictions differ; default: what their dataset.json says",
    )
    partial: bool = option(default=False, help="score only the cases that both folders hold")
    by_sequences: bool = option(
        default=False,
        help="PREDICTION is what `predict --by-sequences` wrote: score every set of sequences, in one table",
    )
    out: Path = results_option("results.json")
    processes: int | None = processes_option()


class _Pair(NamedTuple):
    """The files of one case."""

    case: str
    reference: Path
    prediction: Path


class _Outcome(NamedTuple):
    """The scores of one case, and where its regions are empty."""

    scores: dict[str, dict[str, float | None]]
    empty: dict[str, str]


def evaluate_folders(
    reference: Path | str,
    prediction: Path | str,
    preset: str | Preset = "brats2020",
    cohort: str = "gli",
    labels: str | Sequence[str] | None = None,
    partial: bool = False,
    processes: int | None = 1,
) -> Results:
    """Score all cases of a folder as a BraTS challenge does -> the content of results.json, None for no score.

    reference, prediction: folders of label maps under the same case names, or two files. A release's folder of case
        folders will do; `-seg` and the like at the end of a name do not belong to the case.
    preset: the name of a challenge year, with a cohort, or a `Preset` of your own.
    labels: the numbering of all files, or of references and of predictions: "trained", "released" (as the preset's
        challenge did) or a name in `LABEL_SCHEMES`; None asks the dataset.json beside each of them.
    partial: score the cases that both folders hold; otherwise a missing or surplus prediction is an error.
    processes: None is one per core, at most 8. With more than one, the calling script needs its
        `if __name__ == "__main__"`.

    Cases that cannot be scored are one UserError that names them all.
    """
    rules = find_preset(preset, cohort)
    references, predictions = find_label_maps(Path(reference)), find_label_maps(Path(prediction))
    pairs = [_Pair(case, *paths) for case, paths in match_cases(references, predictions, partial).items()]
    numberings = Numberings.parse(labels) if labels else find_numberings(references, predictions)
    numberings.to_trained(rules)  # an unknown one is an error before any work
    work = bind(_score, rules, numberings)
    outcomes = for_each(work, pairs, "Evaluate", processes, name=lambda pair: pair.case)
    scores = {pair.case: outcome.scores for pair, outcome in zip(pairs, outcomes, strict=True)}
    return {
        "preset": rules.name,
        "cohort": rules.cohort,
        "labels": str(numberings),
        "cases": scores,
        "empty": {pair.case: outcome.empty for pair, outcome in zip(pairs, outcomes, strict=True) if outcome.empty},
        "summary": summarise_scores(scores),
    }


def _renumbered(path: Path, values: np.ndarray, to_trained: Mapping[int, int]) -> np.ndarray:
    try:
        return renumber(values, to_trained)
    except UserError as error:
        raise UserError(f"{path}: {error}", "--labels says how the files number the labels") from error


def _score(preset: Preset, numberings: Numberings, pair: _Pair) -> _Outcome:
    images = [read_image(path) for path in (pair.reference, pair.prediction)]
    if difference := images[0].grid.difference(images[1].grid):
        raise UserError(f"reference and prediction differ in {difference}; bring them to one grid")
    reference, prediction = (
        _renumbered(path, image.array, mapping)
        for path, image, mapping in zip(
            (pair.reference, pair.prediction), images, numberings.to_trained(preset), strict=True
        )
    )
    scores = evaluate_case(reference, prediction, images[0].grid.spacing_mm[::-1], preset)
    return _Outcome(
        {
            region: {metric: value if isfinite(value) else None for metric, value in metrics.items()}
            for region, metrics in scores.items()
        },
        _empty_regions(reference, prediction, preset),
    )


def _empty_regions(reference: np.ndarray, prediction: np.ndarray, preset: Preset) -> dict[str, str]:
    """Region -> "reference", "prediction" or "both", for each region that is empty there."""
    found = [set(np.unique(labels[find_box(labels)]).tolist()) for labels in (reference, prediction)]
    empty = {}
    for region, values in preset.regions.items():
        absent = [there.isdisjoint(values) for there in found]
        if any(absent):
            empty[region] = "both" if all(absent) else "reference" if absent[0] else "prediction"
    return empty
