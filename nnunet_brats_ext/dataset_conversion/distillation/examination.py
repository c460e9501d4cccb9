"""Reading the files of one case, in a worker process: are they sound, what do they show, how sure is the prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nnunet_brats_ext.brats import Head
from nnunet_brats_ext.dataset_conversion.distillation.fingerprints import content_hash, pattern
from nnunet_brats_ext.dataset_conversion.distillation.sources import Candidate
from nnunet_brats_ext.dataset_conversion.distillation.targets import confidence
from nnunet_brats_ext.predictions.heads import convert_head
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import Grid, read_image, read_probabilities, to_labels


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


def examine_case(cases: Mapping[str, Candidate], labels: frozenset[int], regions: Head | None, key: str) -> Examination:
    """Read a case in full; what nnU-Net could not train on is an error.

    labels: those that the data set knows. regions: its head; None where its labels are not nested.
    """
    case = cases[key]
    images = {path: read_image(path) for path in case.images}
    (first, reference), *others = images.items()
    grid = reference.grid
    for path, image in others:
        if difference := grid.difference(image.grid):
            raise UserError(f"{first} and {path} differ in {difference}; bring them to one grid")
    found = Examination(
        {path: image.sha256 for path, image in images.items()},
        [content_hash(image.array) for image in images.values()],
        np.stack([pattern(image.array) for image in images.values()]),
        grid,
    )
    if case.label is None:
        return found
    image = read_image(case.label)
    if difference := image.grid.difference(grid):
        raise UserError(f"{case.label} and its images differ in {difference}; leave it out with --exclude")
    present, counts = np.unique(to_labels(image.array, case.label), return_counts=True)
    present = np.array([case.joined.get(label, label) for label in present.tolist()])
    if unknown := sorted(set(present.tolist()) - labels):
        raise UserError(f"{case.label} holds the labels {unknown}; the data set has {sorted(labels)}")
    return replace(
        found,
        sha256={**found.sha256, case.label: image.sha256},
        labels=sorted(set(present.tolist())),
        tumour_voxels=int(counts[present > 0].sum()),
        confidence=confidence(region_probabilities(case, regions)) if case.npz and regions else None,
    )


def region_probabilities(case: Candidate, regions: Head) -> np.ndarray:
    """The probabilities of a prediction as those of the data set's regions, (region, z, y, x)."""
    assert case.npz is not None and case.head is not None, "opened with its probabilities"
    return convert_head(read_probabilities(case.npz, case.head), case.head, regions)
