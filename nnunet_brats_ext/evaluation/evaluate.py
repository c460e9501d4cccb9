"""`nnunet_brats evaluate`: two folders of label maps in, the scores of a BraTS challenge out."""

import json
import multiprocessing
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import Progress

from nnunet_brats_ext.brats import LABEL_SCHEMES, remap
from nnunet_brats_ext.dataset_conversion.releases import LABEL
from nnunet_brats_ext.dataset_conversion.scan import scan
from nnunet_brats_ext.evaluation.boxes import find_box
from nnunet_brats_ext.evaluation.presets import Preset, find_preset
from nnunet_brats_ext.evaluation.scoring import evaluate_case
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import Image, read_image

Results = dict[str, Any]

AND = " and "  # between the numberings of references and of predictions
_ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")
_REFERENCE_SUFFIX = re.compile(r"[-_](seg|gtv)$", re.IGNORECASE)  # of the label files of a release


class _Job(NamedTuple):
    """One case to score, small enough to hand to another process."""

    case: str
    reference: Path
    prediction: Path
    to_trained: tuple[Mapping[int, int], Mapping[int, int]]  # of both: value in the file -> value as trained
    preset: str
    cohort: str


class _Outcome(NamedTuple):
    """What scoring one case gave: scores and empty regions, or a problem that the user can mend."""

    scores: dict[str, dict[str, float | None]]
    empty: dict[str, str]
    problem: str | None = None


def evaluate_folders(
    reference: Path | str,
    prediction: Path | str,
    preset: str = "brats2020",
    cohort: str = "gli",
    labels: str | Sequence[str] | None = None,
    partial: bool = False,
    processes: int = 1,
    progress: bool = False,
) -> Results:
    """Score all cases of a folder as a BraTS challenge does -> the content of results.json, None for no score.

    reference, prediction: folders of label maps under the same case names, or two files. A release's folder of case
        folders will do; `-seg` and the like at the end of a name do not belong to the case.
    labels: the numbering of all files, or of references and of predictions: "trained", "released" (as the preset's
        challenge did) or a name in `LABEL_SCHEMES`; None asks the dataset.json beside each of them.
    partial: score the cases that both folders hold; otherwise a missing or surplus prediction is an error.
    processes: with more than one, the calling script needs its `if __name__ == "__main__"`, as workers are spawned.

    Cases that cannot be scored are a ValueError that names them all.
    """
    rules = find_preset(preset, cohort)
    pairs = _match_cases(Path(reference), Path(prediction), partial)
    labels = labels or find_numbering(Path(reference), Path(prediction))
    given = [labels] if isinstance(labels, str) else labels
    if len(given) > 2:
        raise UserError(f"--labels {','.join(given)}: one for all files, or one for references and one for predictions")
    labels = AND.join(dict.fromkeys(given))
    to_trained = numberings(labels, rules)
    jobs = [_Job(case, *paths, to_trained, preset, cohort) for case, paths in pairs.items()]
    with Progress(disable=not progress, transient=True) as bar:
        scored = bar.track(_score_all(jobs, processes), len(jobs), description="scoring")
        outcomes = {job.case: outcome for job, outcome in zip(jobs, scored, strict=True)}
    if problems := [f"{case}: {outcome.problem}" for case, outcome in outcomes.items() if outcome.problem]:
        raise UserError(f"{len(problems)} of {len(jobs)} cases cannot be scored\n  " + "\n  ".join(problems))
    scores = {case: outcome.scores for case, outcome in outcomes.items()}
    return {
        "preset": preset,
        "cohort": cohort,
        "labels": labels,
        "cases": scores,
        "empty": {case: outcome.empty for case, outcome in outcomes.items() if outcome.empty},
        "summary": summarise(scores),
    }


def summarise(
    cases: Mapping[str, Mapping[str, Mapping[str, float | None]]],
) -> dict[str, dict[str, dict[str, float | None]]]:
    """{case: {region: {metric: value}}} -> {region: {metric: {"mean", "std", "median", "q1", "q3", "n"}}}.

    Cases without a score (None) do not count; n is how many do. The standard deviation is the sample's, None for one.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for regions in cases.values():
        for region, metrics in regions.items():
            for metric, value in metrics.items():
                column = values.setdefault(region, {}).setdefault(metric, [])
                if value is not None:
                    column.append(value)
    return {
        region: {metric: _describe(column) for metric, column in metrics.items()} for region, metrics in values.items()
    }


def _describe(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {**dict.fromkeys(("mean", "std", "median", "q1", "q3")), "n": 0}
    q1, median, q3 = np.percentile(values, (25, 50, 75)).tolist()
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std, "median": median, "q1": q1, "q3": q3, "n": len(values)}


def find_label_maps(source: Path) -> dict[str, Path]:
    """Case -> label map: those in a folder, else those of the case folders below it; or the one file itself."""
    if not source.exists():
        raise UserError(f"there is no {source}")
    files = [source] if source.is_file() else sorted(path for path in source.iterdir() if _is_label_map(path))
    if not files and (released := _label_maps_of_release(source)):
        return released
    if not files:
        inside = (path for path in source.rglob("*") if _is_label_map(path))
        files = sorted(path for path in inside if _REFERENCE_SUFFIX.search(_stem(path)))
    cases: dict[str, Path] = {}
    for path in files:
        case = _REFERENCE_SUFFIX.sub("", _stem(path))
        if case in cases:
            raise UserError(f"two label maps of case {case}: {cases[case]} and {path}")
        cases[case] = path
    if not cases:
        raise UserError(f"{source} holds no label maps ({', '.join(_ENDINGS)})")
    return cases


def _label_maps_of_release(source: Path) -> dict[str, Path]:
    """Case -> label map of a BraTS release, whatever its copies are like; none if it is not one, or not all of it."""
    try:
        release = scan(source)
    except (OSError, ValueError):
        return {}
    doubtful = any(case.problems for case in release.cases)
    if doubtful or any(_REFERENCE_SUFFIX.search(_stem(path)) for path in release.unrecognised):
        return {}
    return {case.name: case.files[LABEL] for case in release.cases if case.labelled}


def _is_label_map(path: Path) -> bool:
    return bool(_stem(path)) and not path.is_dir()


def _stem(path: Path) -> str:
    """The name without its ending; nothing for hidden files and those that hold no image."""
    ending = next((ending for ending in _ENDINGS if path.name.endswith(ending)), None)
    return "" if ending is None or path.name.startswith(".") else path.name.removesuffix(ending)


def _match_cases(reference: Path, prediction: Path, partial: bool) -> dict[str, tuple[Path, Path]]:
    references, predictions = find_label_maps(reference), find_label_maps(prediction)
    if reference.is_file() and prediction.is_file():  # a pair whatever their names
        return {case: (path, prediction) for case, path in references.items()}
    both = {case: (path, predictions[case]) for case, path in references.items() if case in predictions}
    if not both:
        raise UserError(
            f"{reference} and {prediction} share no case; they hold, for example, "
            f"{next(iter(references))} and {next(iter(predictions))}"
        )
    problems = [
        f"{len(cases)} cases in {here} are missing in {there}: {', '.join(cases[:10])}{' ...' * (len(cases) > 10)}"
        for here, there, cases in (
            (reference, prediction, sorted(set(references) - set(predictions))),
            (prediction, reference, sorted(set(predictions) - set(references))),
        )
        if cases
    ]
    if problems and not partial:
        raise UserError("\n  ".join(problems) + "\n  To score only the cases that both hold, add --partial.")
    return both


def find_numbering(reference: Path, prediction: Path) -> str:
    """How both number their labels: as trained, if a dataset.json in or just above each of them says so.

    It does if its regions are those that `convert` writes. Otherwise a ValueError tells what to add.
    """
    if silent := [source for source in (reference, prediction) if not _says_as_trained(source)]:
        raise UserError(
            f"no dataset.json beside {' or '.join(map(str, silent))} tells how the files number the labels; add "
            f"--labels trained (1 ED, 2 NCR, 3 ET), --labels released, or one of {', '.join(LABEL_SCHEMES)}; where "
            "references and predictions differ, both: --labels released,trained"
        )
    return "trained"


def _says_as_trained(source: Path) -> bool:
    ours = [_region_values(scheme.nnunet_labels()) for scheme in LABEL_SCHEMES.values()]
    if any(_REFERENCE_SUFFIX.search(_stem(path)) for path in find_label_maps(source).values()):
        return False  # names of a release, wherever it lies
    files = (folder / "dataset.json" for folder in (source, *list(source.absolute().parents)[:2]))
    return any(file.is_file() and _declared_regions(file) in ours for file in files)


def _declared_regions(dataset_json: Path) -> set[tuple[int, ...]] | None:
    """The regions of a dataset.json as sets of values; None if it is another program's, as in the download of 2020."""
    try:
        return _region_values(json.loads(dataset_json.read_text())["labels"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _region_values(labels: Mapping[str, int | list[int]]) -> set[tuple[int, ...]]:
    """The values of each region, whatever its name."""
    return {tuple(sorted(value)) if isinstance(value, list) else (int(value),) for value in labels.values()}


def numberings(labels: str, preset: Preset) -> tuple[Mapping[int, int], Mapping[int, int]]:
    """Of references and of predictions, value in the files -> value as trained; labels: as results.json has them."""
    of_references, _, of_predictions = labels.partition(AND)
    return _numbering(of_references, preset), _numbering(of_predictions or of_references, preset)


def _numbering(labels: str, preset: Preset) -> Mapping[int, int]:
    """labels: `trained`, `released`, or a scheme by name."""
    if labels == "trained":
        return {value: value for value in (0, *LABEL_SCHEMES[preset.scheme].names)}
    scheme = preset.scheme if labels == "released" else labels
    if scheme not in LABEL_SCHEMES:
        raise UserError(f"no numbering {labels!r}; there are trained, released, {', '.join(LABEL_SCHEMES)}")
    return LABEL_SCHEMES[scheme].released


def _score_all(jobs: Sequence[_Job], processes: int) -> Iterator[_Outcome]:
    processes = min(processes, len(jobs))
    if processes <= 1:
        yield from map(_score, jobs)
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_score, jobs)


def _score(job: _Job) -> _Outcome:
    try:
        images = [read_image(path) for path in (job.reference, job.prediction)]
        if difference := images[0].grid.difference(images[1].grid):
            raise UserError(f"reference and prediction differ in {difference}")
        reference, prediction = map(_labels, images, job.to_trained)
        scores = evaluate_case(reference, prediction, images[0].grid.spacing_mm[::-1], job.preset, job.cohort)
        empty = _empty_regions(reference, prediction, find_preset(job.preset, job.cohort))
    except UserError as error:
        return _Outcome({}, {}, problem=str(error))
    return _Outcome(
        {
            region: {metric: None if isnan(value) else value for metric, value in metrics.items()}
            for region, metrics in scores.items()
        },
        empty,
    )


def _labels(image: Image, to_trained: Mapping[int, int]) -> np.ndarray:
    """The labels of an image as trained, uint8 (z, y, x); float files will do if their values are whole."""
    values = image.array
    if values.ndim != 3:
        raise UserError(f"a label map has three axes, this has {values.ndim}")
    labels, box = np.zeros(values.shape, np.uint8), find_box(values)
    labels[box] = remap(values[box], to_trained)
    return labels


def _empty_regions(reference: np.ndarray, prediction: np.ndarray, preset: Preset) -> dict[str, str]:
    """Region -> "reference", "prediction" or "both", for each region that is empty there."""
    found = [set(np.unique(labels[find_box(labels)]).tolist()) for labels in (reference, prediction)]
    empty = {}
    for region, values in preset.regions.items():
        absent = [there.isdisjoint(values) for there in found]
        if any(absent):
            empty[region] = "both" if all(absent) else "reference" if absent[0] else "prediction"
    return empty
