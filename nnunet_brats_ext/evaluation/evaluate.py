"""Score folders of predictions as a BraTS challenge does: every image is read once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial as bind
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunet_brats_ext import __version__
from nnunet_brats_ext.brats import BACKGROUND, LABEL_SCHEMES
from nnunet_brats_ext.evaluation.label_maps import (
    LabelMaps,
    find_label_maps,
    find_numberings,
    match_cases,
    read_table,
    with_folds,
)
from nnunet_brats_ext.evaluation.lesion_rows import LesionRow, make_rows
from nnunet_brats_ext.evaluation.numbering import TRAINED, Numberings
from nnunet_brats_ext.evaluation.numbering_checks import LabelEvidence, check_channels, check_numbering, gather_evidence
from nnunet_brats_ext.evaluation.presets import Preset, cohort_option, find_preset, preset_option
from nnunet_brats_ext.evaluation.reading import FileFacts, LabelVolume, holds_channels, read_labels
from nnunet_brats_ext.evaluation.results import Results, check_names, name_sources, summarise_scores
from nnunet_brats_ext.evaluation.scoring import score_regions
from nnunet_brats_ext.storage.errors import UserError, each_notice_once
from nnunet_brats_ext.storage.images import Grid
from nnunet_brats_ext.storage.options import Options, argument, option
from nnunet_brats_ext.storage.parallel import for_each
from nnunet_brats_ext.storage.shared_options import processes_option, results_option


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """What `nnunet_brats evaluate` can be asked for."""

    reference: Path = argument("folder of reference label maps (or of case folders), or one file", metavar="REFERENCE")
    prediction: tuple[Path, ...] = argument(
        "predicted label maps: a folder, a trained model or one of its folds, or one file; several are scored side "
        "by side",
        metavar="PREDICTION",
    )
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
    channels: str | None = option(
        default=None, metavar="NAMES", help="what the channels of 4-D files are, in their order, such as TC,WT,ET"
    )
    names: tuple[str, ...] | None = option(
        default=None, help="what to call the predictions; default: where their paths differ"
    )
    pattern: str | None = option(
        default=None, help="how predictions are named in their folder, such as '{case}_pred.nii.gz' or '{case}/pred'"
    )
    reference_pattern: str | None = option(default=None, metavar="PATTERN", help="the same for references")
    table: Path | None = option(
        default=None,
        metavar="CSV",
        help="which files belong together: columns reference, prediction and perhaps case, paths within the folders",
    )
    splits: Path | None = option(
        default=None,
        metavar="FILE",
        help="splits_final.json, where a cross-validation's predictions lie in one folder: mean and SD over folds, too",
    )
    right_angles: bool = option(
        default=False, help="of headers whose axes are not at right angles, take the nearest ones that are"
    )
    partial: bool = option(default=False, help="score only the cases that both folders hold")
    by_sequences: bool = option(
        default=False,
        help="PREDICTION is what `predict --by-sequences` wrote: score every set of sequences, in one table",
    )
    lesions: bool = option("--no-lesions", default=True, help="write no tables of lesions")
    out: Path = results_option("results.json")
    processes: int | None = processes_option()


class _Case(NamedTuple):
    """The files of one case: its reference, and model -> prediction."""

    case: str
    reference: Path
    predictions: Mapping[str, Path]


class _Outcome(NamedTuple):
    """What is known of one prediction of one case.

    scores: by region and metric. lesions: of the case. evidence: what the label maps tell of their numbering. voxels:
    of the volume. tumour: what tells the reference from those of other patients.
    """

    scores: dict[str, dict[str, float | None]]
    lesions: list[LesionRow]
    evidence: LabelEvidence
    voxels: int
    reference: FileFacts
    prediction: FileFacts
    tumour: str


@dataclass(frozen=True)
class _Reading:
    """How the files of a run are to be read and scored."""

    preset: Preset
    numberings: Numberings
    channels: tuple[str, ...]
    right_angles: bool
    lesions: bool

    def read(self, path: Path, side: int) -> LabelVolume:
        to_trained = self.numberings.to_trained(self.preset)[side]
        return read_labels(path, to_trained, self.preset.scheme, self.channels, self.right_angles)


def evaluate_folders(
    reference: Path | str,
    prediction: Path | str,
    preset: str | Preset = "brats2020",
    cohort: str = "gli",
    labels: str | Sequence[str] | None = None,
    channels: str | Sequence[str] | None = None,
    pattern: str | None = None,
    reference_pattern: str | None = None,
    table: Path | str | None = None,
    right_angles: bool = False,
    partial: bool = False,
    processes: int | None = 1,
    nsd_mm: Sequence[float] = (),
    lesions: bool = True,
    splits: Path | str | None = None,
) -> Results:
    """Score all cases of a folder as a BraTS challenge does -> the content of results.json, None for no score.

    reference, prediction: folders of label maps under the same case names, or two files. A release's folder of case
        folders will do; `-seg` and the like at the end of a name do not belong to the case. The prediction may be the
        folder of a trained model, or one of its folds: what each fold predicted for the cases that it held out.
    preset: the name of a challenge year, with a cohort, or a `Preset` of your own.
    labels: the numbering of all files, or of references and of predictions: "trained", "released" (as the preset's
        challenge did) or a name in `LABEL_SCHEMES`; None asks the dataset.json beside each of them.
    channels: what those of 4-D files are, regions or labels, as "TC,WT,ET" or a list.
    pattern, reference_pattern: how predictions and references are named, such as "{case}_pred.nii.gz".
    table: a CSV file with the columns reference, prediction and perhaps case, instead of matching names.
    right_angles: of headers whose axes are not at right angles, take the nearest ones that are.
    partial: score the cases that both folders hold; otherwise a missing or surplus prediction is an error.
    processes: None is one per core, at most 8. With more than one, the calling script needs its
        `if __name__ == "__main__"`.
    nsd_mm: tolerances of further normalised surface Dice.
    lesions: with "lesions", case -> its `LesionRow`s, where the challenge scores lesions; `save_results` writes them
        into files of their own.
    splits: a splits_final.json that says which fold each case is of; a trained model says it itself.

    Cases that cannot be scored are one UserError that names them all. What looks as if it was numbered otherwise is a
    `Notice`.
    """
    files = dict(pattern=pattern, reference_pattern=reference_pattern, table=table)
    reading = dict(labels=labels, channels=channels, right_angles=right_angles)
    options: dict[str, Any] = {**files, **reading, "partial": partial, "processes": processes}
    options |= {"nsd_mm": nsd_mm, "lesions": lesions, "splits": splits}
    return next(iter(evaluate_models(reference, [prediction], preset, cohort, **options).values()))


def evaluate_models(
    reference: Path | str,
    predictions: Sequence[Path | str],
    preset: str | Preset = "brats2020",
    cohort: str = "gli",
    labels: str | Sequence[str] | None = None,
    channels: str | Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    pattern: str | None = None,
    reference_pattern: str | None = None,
    table: Path | str | None = None,
    right_angles: bool = False,
    partial: bool = False,
    processes: int | None = 1,
    nsd_mm: Sequence[float] = (),
    lesions: bool = True,
    splits: Path | str | None = None,
) -> dict[str, Results]:
    """Score several folders of predictions on the same references -> name -> what `evaluate_folders` gives.

    names: of the predictions; by default the part of their paths in which they differ. A reference is read once for
    all of them. The rest is as in `evaluate_folders`.
    """
    rules = find_preset(preset, cohort).with_nsd(nsd_mm)
    check_names(names, len(predictions))
    paths = [Path(one) for one in predictions]
    sources = dict(zip(names or name_sources(paths), paths, strict=True))
    if table is None:
        references = find_label_maps(Path(reference), reference_pattern)
        maps = {name: find_label_maps(path, pattern) for name, path in sources.items()}
        pairs = {name: match_cases(references, found, partial) for name, found in maps.items()}
    else:
        pairs = {name: read_table(Path(table), Path(reference), path) for name, path in sources.items()}
        references = LabelMaps(Path(reference), _side(pairs.values(), 0))
        maps = {name: LabelMaps(path, _side([pairs[name]], 1)) for name, path in sources.items()}
    if splits:
        maps = {name: with_folds(found, Path(splits)) for name, found in maps.items()}
    cases = [
        _Case(case, path, {name: found[case][1] for name, found in pairs.items() if case in found})
        for case, path in _side(pairs.values(), 0).items()
    ]
    named = tuple(channels.split(",") if isinstance(channels, str) else channels or ())
    numberings = _find_numberings(labels, references, maps.values(), rules, bool(named))
    reading = _Reading(rules, numberings, named, right_angles, lesions)
    outcomes = for_each(bind(_score, reading), cases, "Evaluate", processes, name=lambda one: one.case)
    results = {}
    for name, found in maps.items():
        of_model = {case.case: one[name] for case, one in zip(cases, outcomes, strict=True) if name in one}
        evidence = [outcome.evidence for outcome in of_model.values()]
        check_numbering(evidence, numberings, rules)
        check_channels(evidence, named, rules)
        results[name] = _results(name, reading, references.source, found, of_model)
    return results


def _side(pairs: Iterable[Mapping[str, tuple[Path, Path]]], side: int) -> dict[str, Path]:
    """Case -> its reference (0) or prediction (1)."""
    return {case: pair[side] for found in pairs for case, pair in found.items()}


def _find_numberings(
    labels: str | Sequence[str] | None,
    references: LabelMaps,
    models: Iterable[LabelMaps],
    preset: Preset,
    with_channels: bool,
) -> Numberings:
    """What was said of the numbering, or what the files say, which must be the same of all models.

    Files that hold channels are read as trained, whatever was said.
    """
    if labels:
        said = Numberings.parse(labels)
        said.to_trained(preset)  # an unknown one is an error before any work
        sides = references, next(iter(models))
        read = [
            TRAINED if with_channels and holds_channels(maps.first) else name
            for maps, name in zip(sides, said, strict=True)
        ]
        return Numberings(*read)
    with each_notice_once():
        found = {maps.source: find_numberings(references, maps, preset) for maps in models}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{source} is {numberings.prediction}" for source, numberings in found.items())
        raise UserError(f"the predictions are numbered in different ways ({listed}); score them one by one")
    return next(iter(found.values()))


def _results(name: str, reading: _Reading, reference: Path, maps: LabelMaps, found: Mapping[str, _Outcome]) -> Results:
    """The content of results.json."""
    preset = reading.preset
    scores = {case: one.scores for case, one in found.items()}
    empty = {case: _empty_regions(one.evidence, preset) for case, one in found.items()}
    results = {
        "version": __version__,
        "model": name,
        "preset": preset.name,
        "cohort": preset.cohort,
        "labels": str(reading.numberings),
        "channels": list(reading.channels),
        "cases": scores,
        "empty": {case: regions for case, regions in empty.items() if regions},
        "summary": summarise_scores(scores),
        "folds": {case: fold for case, fold in maps.folds.items() if case in found},
        "confusion": _confusion(found, preset),
        "references": {
            "folder": str(reference.absolute()),
            "files": {case: {**one.reference._asdict(), "tumour": one.tumour} for case, one in found.items()},
        },
        "predictions": {
            "folder": str(maps.source.absolute()),
            "files": {case: one.prediction._asdict() for case, one in found.items()},
        },
    }
    if reading.lesions and preset.lesions:
        results["lesions"] = {case: one.lesions for case, one in found.items()}
    return results


def _empty_regions(evidence: LabelEvidence, preset: Preset) -> dict[str, str]:
    """Region -> "reference", "prediction" or "both", for each region that is empty there."""
    found = {region: evidence.absent(labels) for region, labels in preset.regions.items()}
    return {region: where for region, where in found.items() if where}


def _confusion(found: Mapping[str, _Outcome], preset: Preset) -> dict[str, Any]:
    """The names of the labels, and voxels by label of the reference (rows) and of the prediction, case by case."""
    names = LABEL_SCHEMES[preset.scheme].names
    labels = [BACKGROUND, *sorted(names)]
    voxels = {}
    for case, outcome in found.items():
        counts = outcome.evidence.confusion.copy()
        counts[BACKGROUND, BACKGROUND] += outcome.voxels - counts.sum()
        voxels[case] = counts[np.ix_(labels, labels)].tolist()
    return {"labels": ["background", *(names[label] for label in labels[1:])], "voxels": voxels}


def _score(reading: _Reading, case: _Case) -> dict[str, _Outcome]:
    reference = reading.read(case.reference, 0)
    tumour = reference.fingerprint
    return {
        name: _score_pair(reading, reference, reading.read(path, 1), tumour) for name, path in case.predictions.items()
    }


def _score_pair(reading: _Reading, reference: LabelVolume, prediction: LabelVolume, tumour: str) -> _Outcome:
    prediction = prediction.on_grid_of(reference)
    grid = reference.grid if reference.placed else prediction.grid
    regions = score_regions(reference.labels, prediction.labels, grid.spacing_mm[::-1], reading.preset)
    place = bind(_ras_mm, grid)
    return _Outcome(
        {
            region: {metric: value if isfinite(value) else None for metric, value in found.scores.items()}
            for region, found in regions.items()
        },
        make_rows(regions, grid.voxel_volume_mm3 / 1000, place) if reading.lesions else [],
        gather_evidence(reference.labels, prediction.labels),
        reference.labels.size,
        reference.facts,
        prediction.facts,
        tumour,
    )


def _ras_mm(grid: Grid, indices: np.ndarray) -> np.ndarray:
    """Where voxels lie, as viewers show it (NIfTI's x to the right, y to the front): indices (n, 3) in (x, y, z)."""
    lps = (indices * grid.spacing_mm) @ np.reshape(grid.direction, (3, 3)).T + grid.origin_mm
    return lps * (-1, -1, 1)
