"""Synthetic gliomas in BraTS form, for demos, tests and teaching: no patient, no download, no licence to sign."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from nnunet_brats_ext.brats import ED, ET, EXTRA, LABEL_SCHEMES, NCR, SEQUENCES, LabelScheme
from nnunet_brats_ext.dataset_conversion.anatomy import draw_pose, field_grid, grow_brain, head_grid, load_template
from nnunet_brats_ext.dataset_conversion.signals import acquire, compose
from nnunet_brats_ext.dataset_conversion.tumours import (
    GLIOMAS,
    MENINGIOMAS,
    draw_kind,
    draw_tumour,
    grow_tumour,
    is_multifocal,
)

SMALLEST, LARGEST = (32, 32, 32), (240, 240, 155)
COARSEST_MM = 2.0  # coarser voxels are averaged from finer ones, else cortex and tumour rims alias into noise


@dataclass(frozen=True)
class Phantom:
    """A synthetic patient. Arrays are indexed x (to the left), y (to the back), z (up), as in a BraTS file.

    images: sequence -> int16, background 0. labels: as trained, uint8. grade: HGG, LGG or empty.
    """

    images: Mapping[str, np.ndarray]
    labels: np.ndarray
    grade: str
    spacing_mm: float

    @property
    def origin_mm(self) -> tuple[float, float, float]:
        """Of ITK, with the identity as direction: (0, -239, 0) at 240 voxels of 1 mm, as in BraTS."""
        return (0.0, -(self.labels.shape[1] - 1) * self.spacing_mm, 0.0)


def make_case(
    seed: int,
    index: int,
    shape: Sequence[int] = LARGEST,
    scheme: LabelScheme = LABEL_SCHEMES["glioma_2017"],
    anatomy: str = "auto",
    sequences: Sequence[str] = SEQUENCES,
) -> Phantom:
    """Case number `index` of a seed: the same head and tumour at every shape (x, y, z), whatever the other cases.

    A scheme without nested regions (radiotherapy) gets a meningioma, one with a further label a tumour that has it.
    """
    check_shape(shape)
    head, place, effect, growth, mixture, protocol = np.random.default_rng([seed, index]).spawn(6)
    extra = scheme.names.get(EXTRA)
    glioma = ET in scheme.names
    kind = draw_kind(seed, index, GLIOMAS if glioma else MENINGIOMAS)
    template = load_template(anatomy)
    pose = draw_pose(head, template)
    sites_mm = pose.to_head(template.white_matter_mm if glioma else template.surface_mm)
    tumour = draw_tumour(place, kind, sites_mm, glioma and is_multifocal(seed, index), extra is not None)
    image_grid = field_grid(shape)
    grid, window = head_grid(image_grid)
    factor = ceil(grid.spacing_mm / COARSEST_MM)
    fine = grid.refined(factor)
    tissues, mask = grow_brain(head, fine, template, pose, tumour.pushes(effect))
    labels = grow_tumour(growth, fine, tumour, tissues, mask, extra)
    shown_as = {ED: "ED", NCR: "NCR" if tumour.enhancing_of_core else "solid", ET: "ET", EXTRA: extra}
    regions = {name: labels == label for label, name in shown_as.items() if name and (labels == label).any()}
    parts = {name: average(part, factor) for name, part in compose(mixture, fine, tissues, regions).items()}
    mask, labels = average(mask, factor) > 0.5, majority(labels, factor)
    conspicuity = protocol.uniform(0.65, 1.15)
    streams = dict(zip(SEQUENCES, protocol.spawn(len(SEQUENCES)), strict=True))
    images = {}
    for sequence in sequences:
        image = np.zeros(image_grid.shape, np.int16)
        image[window] = acquire(streams[sequence], grid, SEQUENCES.index(sequence), parts, mask, conspicuity)
        images[sequence] = image
    segmentation = np.zeros(image_grid.shape, np.uint8)
    segmentation[window] = labels if glioma else labels > 0
    return Phantom(images, segmentation, kind.grade, image_grid.spacing_mm)


def average(field: np.ndarray, factor: int) -> np.ndarray:
    """The mean over blocks of `factor` voxels along each axis: the partial volume that coarse voxels see."""
    x, y, z = (n // factor for n in field.shape)
    return field.reshape(x, factor, y, factor, z, factor).mean((1, 3, 5), dtype=np.float32) if factor > 1 else field


def majority(labels: np.ndarray, factor: int) -> np.ndarray:
    """The most frequent label of each block; of equally frequent ones the largest, which tends to be the rarer."""
    if factor == 1:
        return labels
    values = np.unique(labels)[::-1]
    return values[np.argmax([average(labels == value, factor) for value in values], axis=0)]


def check_shape(shape: Sequence[int]) -> None:
    bounds = zip(SMALLEST, shape, LARGEST, strict=True) if len(shape) == 3 else [(1, 0, 0)]
    if not all(low <= n <= high for low, n, high in bounds):
        raise ValueError(f"size {' '.join(map(str, shape))} is not within {SMALLEST} and {LARGEST} (x, y, z)")
