"""Every lesion in a row: where it is, how large, what was predicted of it, and its scores.

The lesion-wise scores of a case are the means of its rows with `counts`; where none counts, the preset says what stands
for the mean.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunet_brats_ext.evaluation.lesions import MetricValues, Numbered, ScoredLesions
from nnunet_brats_ext.evaluation.scoring import RegionScores
from nnunet_brats_ext.storage.csv_files import csv_lines

Place = Callable[[np.ndarray], np.ndarray]  # voxels (n, 3) in (x, y, z) -> their positions in mm


class LesionRow(NamedTuple):
    """One lesion of a region.

    lesion: its number in the reference, from 1, the largest, on; None where it is only predicted. predicted_lesions:
    numbers of the predicted lesions that it was matched with, the largest being 1; in BraTS 2023 and 2024 one of these
    may be matched with several lesions, and the volume is that of all of them together.
    outcome: "found", "missed" or "only predicted". size: "large" or "small" by the volume from which the challenge
    counts lesions; None where it counts all, and for what is only predicted.
    counts: whether it enters the mean. scores: Dice and the preset's distances; of what is not found, those of a miss.
    position_mm: the centroid, (x, y, z).
    """

    region: str
    lesion: int | None
    predicted_lesions: tuple[int, ...]
    outcome: str
    size: str | None
    counts: bool
    reference_ml: float
    prediction_ml: float
    scores: MetricValues
    position_mm: tuple[float, float, float]

    def to_dict(self) -> dict[str, Any]:
        """Its columns by name: one per metric, and x_mm, y_mm, z_mm."""
        row = self._asdict()
        scores, position = row.pop("scores"), row.pop("position_mm")
        return {**row, **scores, **dict(zip(("x_mm", "y_mm", "z_mm"), position, strict=True))}


def make_rows(regions: Mapping[str, RegionScores], voxel_ml: float, place: Place) -> list[LesionRow]:
    """The rows of a case, of all regions that have lesions. place: where a voxel lies."""
    return [
        row
        for name, region in regions.items()
        if region.lesions is not None
        for row in _rows_of_region(name, region.lesions, [side.start for side in region.box], voxel_ml, place)
    ]


def _rows_of_region(
    region: str, found: ScoredLesions, corner: Sequence[int], voxel_ml: float, place: Place
) -> Iterator[LesionRow]:
    reference, prediction = (_Places(one, corner, place) for one in (found.reference, found.prediction))
    rows = []
    for one in found.lesions:
        parts = sorted(prediction.rank[part] for part in one.predicted)
        alone = one.reference is None
        where = prediction.positions[one.predicted[0]] if alone else reference.positions[one.reference]
        rows.append(
            LesionRow(
                region,
                None if one.reference is None else reference.rank[one.reference],
                tuple(parts),
                one.outcome,
                one.size,
                one.counts,
                0.0 if one.reference is None else int(found.reference.voxels[one.reference]) * voxel_ml,
                sum(int(found.prediction.voxels[part]) for part in one.predicted) * voxel_ml,
                one.scores,
                where,
            )
        )
    return iter(sorted(rows, key=lambda row: (row.lesion is None, row.lesion or row.predicted_lesions[0])))


class _Places:
    """The place by size, from 1 on, and the position of each lesion."""

    def __init__(self, lesions: Numbered, corner: Sequence[int], place: Place):
        by_size = lesions.present[np.argsort(-lesions.voxels[lesions.present], kind="stable")].tolist()
        self.rank = {number: rank for rank, number in enumerate(by_size, 1)}
        positions = np.round(place((lesions.centroids + corner)[:, ::-1]), 3).tolist()
        self.positions = dict(zip(lesions.present.tolist(), map(tuple, positions), strict=True))


# ---- files ----------------------------------------------------------------------------------------------------------

Rows = Mapping[str, Sequence[LesionRow]]  # case -> its lesions


def table_of_lesions(rows: Rows) -> Iterator[dict[str, Any]]:
    """The rows of all cases by the names of their columns, the case first."""
    return ({"case": case, **row.to_dict()} for case, its_rows in rows.items() for row in its_rows)


def lesion_files(results_path: Path) -> tuple[Path, Path]:
    """The CSV and the JSON file of lesions beside a results.json."""
    return tuple(results_path.with_name(f"{results_path.stem}_lesions{ending}") for ending in (".csv", ".json"))  # type: ignore[return-value]


def write_lesions(models: Mapping[str, Rows], results_path: Path) -> dict[Path, Iterator[str]]:
    """The text of the two files beside a results.json, in parts: a release has many lesions.

    models: model -> its rows; of several models, the first column is the model.
    """
    table, records = lesion_files(results_path)
    return {table: csv_lines(_cells(models)), records: _json_lines(models)}


def _rows_of_models(models: Mapping[str, Rows]) -> Iterator[dict[str, Any]]:
    for model, rows in models.items():
        named = {"model": model} if len(models) > 1 else {}
        yield from ({**named, **row} for row in table_of_lesions(rows))


def _cells(models: Mapping[str, Rows]) -> Iterator[Sequence[Any]]:
    for number, row in enumerate(_rows_of_models(models)):
        if number == 0:
            yield tuple(row)
        yield tuple({**row, "predicted_lesions": " ".join(map(str, row["predicted_lesions"]))}.values())


def _json_lines(models: Mapping[str, Rows]) -> Iterator[str]:
    yield "["
    for number, row in enumerate(_rows_of_models(models)):
        yield f"{',' if number else ''}\n{json.dumps(row)}"
    yield "\n]\n"
