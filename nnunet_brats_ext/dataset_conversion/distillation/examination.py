"""Reading the files of one case, in a worker process: are they sound, what do they show, how sure is the prediction."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_brats_ext.brats import Head
from nnunet_brats_ext.dataset_conversion.distillation.fingerprints import content_hash, pattern
from nnunet_brats_ext.dataset_conversion.distillation.sources import Candidate
from nnunet_brats_ext.dataset_conversion.distillation.targets import confidence
from nnunet_brats_ext.predictions.heads import convert_head
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import Grid, read_image, read_label_map, read_probabilities


@dataclass(frozen=True)
class Examination:
    """What the files of a case hold.

    sha256: of each file. contents, patterns: of each channel, see `fingerprints`. labels: those of its label map.
    confidence: of a prediction with probabilities, see `targets`.
    """

    sha256: Mapping[Path, str]
    contents: Sequence[str | None]
    patterns: np.ndarray
    grid: Grid
    labels: Sequence[int] = ()
    tumour_voxels: int | None = None
    confidence: float | None = None


def examine(cases: Mapping[str, Candidate], labels: frozenset[int], regions: Head | None, key: str) -> Examination:
    """Read a case in full; what nnU-Net could not train on is an error.

    labels: those that the data set knows. regions: its head; None where its labels are not nested.
    """
    case = cases[key]
    sha256: dict[Path, str] = {}
    contents, patterns, grids = [], [], []
    for path in case.images:
        volume, grid, sha256[path] = read_image(path)
        contents.append(content_hash(volume))
        patterns.append(pattern(volume))
        grids.append(grid)
    found = Examination(sha256, contents, np.stack(patterns), grids[0])
    if case.label is None:
        return found
    label_map, grid = read_label_map(case.label)
    if difference := grid.difference(grids[0]):
        raise UserError(f"{case.label} and its images differ in {difference}")
    present, counts = np.unique(label_map, return_counts=True)
    if strangers := sorted(set(present.tolist()) - labels):
        raise UserError(f"{case.label} holds the labels {strangers}; the data set has {sorted(labels)}")
    sha256[case.label] = hashlib.sha256(case.label.read_bytes()).hexdigest()
    return Examination(
        sha256,
        contents,
        found.patterns,
        found.grid,
        present.tolist(),
        int(counts[present > 0].sum()),
        confidence(region_probabilities(case, regions)) if case.npz and regions else None,
    )


def region_probabilities(case: Candidate, regions: Head) -> np.ndarray:
    """The probabilities of a prediction as those of the data set's regions, (region, z, y, x)."""
    assert case.npz is not None and case.head is not None, "opened with its probabilities"
    return convert_head(read_probabilities(case.npz, case.head), case.head, regions)
