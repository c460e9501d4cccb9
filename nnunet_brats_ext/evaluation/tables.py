"""One question about a case or about results each, answered in rows: `pandas.DataFrame(rows)` makes a table of them.

    pandas.DataFrame(lesion_table(reference, prediction, (1.0, 1.0, 1.0), "brats2026", "met"))

Label maps are (z, y, x), spacings in mm in the same order; preset, cohort and labels are as in `evaluate_case`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from nnunet_brats_ext.evaluation.lesion_rows import make_rows, table_of_lesions
from nnunet_brats_ext.evaluation.metric_facts import DETECTION
from nnunet_brats_ext.evaluation.numbering import TRAINED
from nnunet_brats_ext.evaluation.presets import PRESETS, Preset, find_preset
from nnunet_brats_ext.evaluation.scoring import RegionScores, as_trained, evaluate_case, score_regions
from nnunet_brats_ext.storage.errors import UserError

Row = dict[str, Any]  # column -> value
VOLUMES = ("reference_ml", "prediction_ml", "volume_error_ml", "absolute_volume_error_ml")


def region_table(reference: np.ndarray, prediction: np.ndarray, *arguments: Any, **options: Any) -> list[Row]:
    """How good is each region? What `evaluate_case` gives, a row per region. It takes the same arguments."""
    scores = evaluate_case(reference, prediction, *arguments, **options)
    return [{"region": region, **metrics} for region, metrics in scores.items()]


def volume_table(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    preset: str | Preset = "brats2020",
    cohort: str = "gli",
    labels: str | Sequence[str] = TRAINED,
) -> list[Row]:
    """How large is each region? Volumes in ml, and the error of the predicted one with its sign and without."""
    found = _score(reference, prediction, spacing_mm, find_preset(preset, cohort), labels)
    return [{"region": region, **{name: one.scores[name] for name in VOLUMES}} for region, one in found.items()]


def lesion_table(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    preset: str | Preset = "brats2023",
    cohort: str = "gli",
    labels: str | Sequence[str] = TRAINED,
    nsd_mm: Sequence[float] = (),
) -> list[Row]:
    """Which lesions were found, and how well? A row per region and lesion, as in results_lesions.csv.

    The columns are those of `LesionRow`. x_mm, y_mm and z_mm are distances from the array's first voxel.
    """
    preset = _with_lesions(find_preset(preset, cohort).with_nsd(nsd_mm))
    found = _score(reference, prediction, spacing_mm, preset, labels)
    place = partial(np.multiply, np.asarray(spacing_mm, float)[::-1])
    rows = table_of_lesions({"": make_rows(found, prod(spacing_mm) / 1000, place)})
    return [{name: value for name, value in row.items() if name != "case"} for row in rows]


def detection_table(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    preset: str | Preset = "brats2026",
    cohort: str = "met",
    labels: str | Sequence[str] = TRAINED,
) -> list[Row]:
    """How many lesions were found? A row per region and size: n_tp, n_fp, n_fn, precision, recall, f1.

    Sizes are all, and where the challenge tells them apart (metastases, 2026), large and small. NaN: there is none.
    """
    found = _score(reference, prediction, spacing_mm, _with_lesions(find_preset(preset, cohort)), labels)
    return [
        {"region": region, "lesions": size, **columns}
        for region, one in found.items()
        for size, columns in _by_size(one.scores).items()
    ]


def _by_size(scores: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Size -> column -> value: what is large_n_tp among the scores is n_tp of large."""
    sizes: dict[str, dict[str, float]] = {}
    for name in DETECTION:
        size, _, column = name.partition("_")
        if size not in ("large", "small"):
            size, column = "all", name.removeprefix("lesion_")
        if name in scores:
            sizes.setdefault(size, {})[column] = scores[name]
    return sizes


def _score(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float],
    preset: Preset,
    labels: str | Sequence[str],
) -> dict[str, RegionScores]:
    return score_regions(*as_trained(reference, prediction, preset, labels), spacing_mm, preset)


def _with_lesions(preset: Preset) -> Preset:
    if not preset.lesions:
        having = [year for year, cohorts in PRESETS.items() if any(one.lesions for one in cohorts.values())]
        raise UserError(f"{preset.name} {preset.cohort} scores no lesions; {', '.join(having)} do")
    return preset


# ---- of results -----------------------------------------------------------------------------------------------------


def case_table(results: Mapping[str, Any]) -> Iterator[Row]:
    """What `evaluate_folders` found, a row per case and region, as in results.csv."""
    for case, regions in results["cases"].items():
        for region, scores in regions.items():
            yield {"case": case, "region": region, "empty": results["empty"].get(case, {}).get(region, ""), **scores}


def summary_table(results: Mapping[str, Any]) -> Iterator[Row]:
    """Its summary, a row per region and metric, as in results_summary.csv."""
    for region, metrics in results["summary"].items():
        for metric, statistics in metrics.items():
            yield {"region": region, "metric": metric, **statistics}


def lesions_of(results: Mapping[str, Any]) -> Iterable[Row]:
    """The lesions of all cases, as in results_lesions.csv, of `evaluate_folders(..., lesions=True)`."""
    if "lesions" not in results:
        raise UserError("these results have no lesions; they come with evaluate_folders(..., lesions=True)")
    return table_of_lesions(results["lesions"])
