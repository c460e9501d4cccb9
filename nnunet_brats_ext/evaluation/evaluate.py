"""Score a folder of predictions as a BraTS challenge does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial as bind
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnunet_brats_ext.evaluation.label_maps import find_label_maps, find_numberings, match_cases
from nnunet_brats_ext.evaluation.lesion_rows import LesionRow, make_rows
from nnunet_brats_ext.evaluation.numbering import Numberings, renumber
from nnunet_brats_ext.evaluation.numbering_checks import LabelEvidence, check_numbering, gather_evidence
from nnunet_brats_ext.evaluation.presets import Preset, cohort_option, find_preset, preset_option
from nnunet_brats_ext.evaluation.results import Results, summarise_scores
from nnunet_brats_ext.evaluation.scoring import score_regions
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import Grid, read_image
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
    nsd_mm: tuple[float, ...] = option(
        "--nsd",
        metavar="MM",
        default=(),
        above=0,
        help="tolerances in mm of further normalised surface Dice, as columns nsd_2mm, beside the preset's own",
    )
    partial: bool = option(default=False, help="score only the cases that both folders hold")
    by_sequences: bool = option(
        default=False,
        help="PREDICTION is what `predict --by-sequences` wrote: score every set of sequences, in one table",
    )
    lesions: bool = option("--no-lesions", default=True, help="write no tables of lesions")
    out: Path = results_option("results.json")
    processes: int | None = processes_option()


class _Pair(NamedTuple):
    """The files of one case."""

    case: str
    reference: Path
    prediction: Path


class _Outcome(NamedTuple):
    """The scores of one case, its lesions, and what its label maps tell of their numbering."""

    scores: dict[str, dict[str, float | None]]
    lesions: list[LesionRow]
    evidence: LabelEvidence


def evaluate_folders(
    reference: Path | str,
    prediction: Path | str,
    preset: str | Preset = "brats2020",
    cohort: str = "gli",
    labels: str | Sequence[str] | None = None,
    partial: bool = False,
    processes: int | None = 1,
    nsd_mm: Sequence[float] = (),
    lesions: bool = True,
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
    nsd_mm: tolerances of further normalised surface Dice.
    lesions: with "lesions", case -> its `LesionRow`s, where the challenge scores lesions; `save_results` writes them
        into files of their own.

    Cases that cannot be scored are one UserError that names them all. What looks as if it was numbered otherwise is a
    `Notice`.
    """
    rules = find_preset(preset, cohort).with_nsd(nsd_mm)
    references, predictions = find_label_maps(Path(reference)), find_label_maps(Path(prediction))
    pairs = [_Pair(case, *paths) for case, paths in match_cases(references, predictions, partial).items()]
    numberings = Numberings.parse(labels) if labels else find_numberings(references, predictions, rules)
    numberings.to_trained(rules)  # an unknown one is an error before any work
    work = bind(_score, rules, numberings, lesions)
    outcomes = for_each(work, pairs, "Evaluate", processes, name=lambda pair: pair.case)
    check_numbering([outcome.evidence for outcome in outcomes], numberings, rules)
    by_case = dict(zip((pair.case for pair in pairs), outcomes, strict=True))
    scores = {case: outcome.scores for case, outcome in by_case.items()}
    empty = {case: _empty_regions(outcome.evidence, rules) for case, outcome in by_case.items()}
    results = {
        "preset": rules.name,
        "cohort": rules.cohort,
        "labels": str(numberings),
        "cases": scores,
        "empty": {case: regions for case, regions in empty.items() if regions},
        "summary": summarise_scores(scores),
    }
    if lesions and rules.lesions:
        results["lesions"] = {case: outcome.lesions for case, outcome in by_case.items()}
    return results


def _renumbered(path: Path, values: np.ndarray, to_trained: Mapping[int, int]) -> np.ndarray:
    try:
        return renumber(values, to_trained)
    except UserError as error:
        raise UserError(f"{path}: {error}", "--labels says how the files number the labels") from error


def _score(preset: Preset, numberings: Numberings, with_lesions: bool, pair: _Pair) -> _Outcome:
    images = [read_image(path) for path in (pair.reference, pair.prediction)]
    grid = images[0].grid
    if difference := grid.difference(images[1].grid):
        raise UserError(f"reference and prediction differ in {difference}; bring them to one grid")
    reference, prediction = (
        _renumbered(path, image.array, mapping)
        for path, image, mapping in zip(
            (pair.reference, pair.prediction), images, numberings.to_trained(preset), strict=True
        )
    )
    regions = score_regions(reference, prediction, grid.spacing_mm[::-1], preset)
    return _Outcome(
        {
            region: {metric: value if isfinite(value) else None for metric, value in found.scores.items()}
            for region, found in regions.items()
        },
        make_rows(regions, grid.voxel_volume_mm3 / 1000, bind(_ras_mm, grid)) if with_lesions else [],
        gather_evidence(reference, prediction),
    )


def _ras_mm(grid: Grid, indices: np.ndarray) -> np.ndarray:
    """Where voxels lie, as viewers show it (NIfTI's x to the right, y to the front): indices (n, 3) in (x, y, z)."""
    lps = (indices * grid.spacing_mm) @ np.reshape(grid.direction, (3, 3)).T + grid.origin_mm
    return lps * (-1, -1, 1)


def _empty_regions(evidence: LabelEvidence, preset: Preset) -> dict[str, str]:
    """Region -> "reference", "prediction" or "both", for each region that is empty there."""
    found = {region: evidence.absent(labels) for region, labels in preset.regions.items()}
    return {region: where for region, where in found.items() if where}
