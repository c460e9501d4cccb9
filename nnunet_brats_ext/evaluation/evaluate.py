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
)
from nnunet_brats_ext.evaluation.numbering import TRAINED, Numberings
from nnunet_brats_ext.evaluation.presets import Preset, cohort_option, find_preset, preset_option
from nnunet_brats_ext.evaluation.reading import FileFacts, LabelVolume, confusion_of, holds_channels, read_labels
from nnunet_brats_ext.evaluation.results import Results, check_names, name_sources, summarise_scores
from nnunet_brats_ext.evaluation.scoring import evaluate_case
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
    right_angles: bool = option(
        default=False, help="of headers whose axes are not at right angles, take the nearest ones that are"
    )
    partial: bool = option(default=False, help="score only the cases that both folders hold")
    by_sequences: bool = option(
        default=False,
        help="PREDICTION is what `predict --by-sequences` wrote: score every set of sequences, in one table",
    )
    out: Path = results_option("results.json")
    processes: int | None = processes_option()


class _Case(NamedTuple):
    """The files of one case: its reference, and model -> prediction."""

    case: str
    reference: Path
    predictions: Mapping[str, Path]


class _Outcome(NamedTuple):
    """What is known of one prediction of one case.

    scores: by region and metric. empty: where regions are empty. confusion: voxels by label of the reference and of
    the prediction. tumour: what tells the reference from those of other patients.
    """

    scores: dict[str, dict[str, float | None]]
    empty: dict[str, str]
    volumes_ml: dict[str, list[float]]
    confusion: list[list[int]]
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

    Cases that cannot be scored are one UserError that names them all.
    """
    files = dict(pattern=pattern, reference_pattern=reference_pattern, table=table)
    reading = dict(labels=labels, channels=channels, right_angles=right_angles)
    options: dict[str, Any] = {**files, **reading, "partial": partial, "processes": processes}
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
) -> dict[str, Results]:
    """Score several folders of predictions on the same references -> name -> what `evaluate_folders` gives.

    names: of the predictions; by default the part of their paths in which they differ. A reference is read once for
    all of them. The rest is as in `evaluate_folders`.
    """
    rules = find_preset(preset, cohort)
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
    cases = [
        _Case(case, path, {name: found[case][1] for name, found in pairs.items() if case in found})
        for case, path in _side(pairs.values(), 0).items()
    ]
    named = tuple(channels.split(",") if isinstance(channels, str) else channels or ())
    numberings = Numberings.parse(labels) if labels else _find_numberings(references, maps)
    numberings.to_trained(rules)  # an unknown one is an error before any work
    work = bind(_score, _Reading(rules, numberings, named, right_angles))
    outcomes = for_each(work, cases, "Evaluate", processes, name=lambda one: one.case)
    return {
        name: _results(
            name,
            _Reading(rules, numberings, named, right_angles),
            references.source,
            maps[name],
            {case.case: one[name] for case, one in zip(cases, outcomes, strict=True) if name in one},
        )
        for name in sources
    }


def _side(pairs: Iterable[Mapping[str, tuple[Path, Path]]], side: int) -> dict[str, Path]:
    """Case -> its reference (0) or prediction (1)."""
    return {case: pair[side] for found in pairs for case, pair in found.items()}


def _find_numberings(references: LabelMaps, maps: Mapping[str, LabelMaps]) -> Numberings:
    """What the files say of their numbering; those that hold channels have none."""
    numberings = Numberings(TRAINED, TRAINED)
    for found in maps.values():
        sides = [one for one in (references, found) if one.numbered_as_trained or not holds_channels(one.first)]
        if sides:
            numberings = find_numberings(sides[0], sides[-1])
    return numberings


def _results(name: str, reading: _Reading, reference: Path, maps: LabelMaps, found: Mapping[str, _Outcome]) -> Results:
    """The content of results.json."""
    scores = {case: one.scores for case, one in found.items()}
    preset = reading.preset
    return {
        "version": __version__,
        "model": name,
        "preset": preset.name,
        "cohort": preset.cohort,
        "labels": str(reading.numberings),
        "cases": scores,
        "empty": {case: one.empty for case, one in found.items() if one.empty},
        "summary": summarise_scores(scores),
        "folds": {case: fold for case, fold in maps.folds.items() if case in found},
        "volumes_ml": {case: one.volumes_ml for case, one in found.items()},
        "confusion": {
            "labels": _label_names(preset),
            "voxels": {case: one.confusion for case, one in found.items()},
        },
        "references": {
            "folder": str(reference.absolute()),
            "files": {case: {**one.reference._asdict(), "tumour": one.tumour} for case, one in found.items()},
        },
        "predictions": {
            "folder": str(maps.source.absolute()),
            "files": {case: one.prediction._asdict() for case, one in found.items()},
        },
    }


def _score(reading: _Reading, case: _Case) -> dict[str, _Outcome]:
    reference = reading.read(case.reference, 0)
    facts = reference.facts, reference.fingerprint
    return {
        name: _score_pair(reading.preset, reference, reading.read(path, 1), *facts)
        for name, path in case.predictions.items()
    }


def _score_pair(
    preset: Preset, reference: LabelVolume, prediction: LabelVolume, facts: FileFacts, tumour: str
) -> _Outcome:
    prediction = prediction.on_grid_of(reference)
    grid = reference.grid if reference.placed else prediction.grid
    scores = evaluate_case(reference.labels, prediction.labels, grid.spacing_mm[::-1], preset)
    labels = sorted(LABEL_SCHEMES[preset.scheme].names)
    confusion = confusion_of(reference.labels, prediction.labels, [BACKGROUND, *labels])
    voxels = {
        region: [int(counts[[labels.index(value) + 1 for value in values]].sum()) for counts in _sides(confusion)]
        for region, values in preset.regions.items()
    }
    voxel_ml = grid.voxel_volume_mm3 / 1000
    return _Outcome(
        {
            region: {metric: value if isfinite(value) else None for metric, value in metrics.items()}
            for region, metrics in scores.items()
        },
        {region: _EMPTY[counts[0] > 0, counts[1] > 0] for region, counts in voxels.items() if not all(counts)},
        {region: [round(count * voxel_ml, 6) for count in counts] for region, counts in voxels.items()},
        confusion.tolist(),
        facts,
        prediction.facts,
        tumour,
    )


_EMPTY = {(False, False): "both", (False, True): "reference", (True, False): "prediction"}


def _sides(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels per label in the reference and in the prediction."""
    return confusion.sum(1), confusion.sum(0)


def _label_names(preset: Preset) -> list[str]:
    names = LABEL_SCHEMES[preset.scheme].names
    return ["background", *(names[label] for label in sorted(names))]
