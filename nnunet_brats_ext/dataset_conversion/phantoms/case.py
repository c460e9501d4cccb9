"""One synthetic patient: a brain, a tumour in it, and the images of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from nnunet_brats_ext.brats import ED, ET, EXTRA, LABEL_SCHEMES, NCR, SEQUENCES, LabelScheme
from nnunet_brats_ext.dataset_conversion.phantoms.anatomy import (
    VoxelGrid,
    draw_pose,
    field_grid,
    grow_brain,
    head_grid,
    load_template,
)
from nnunet_brats_ext.dataset_conversion.phantoms.signals import acquire, compose
from nnunet_brats_ext.dataset_conversion.phantoms.tumours import (
    GLIOMAS,
    MENINGIOMAS,
    Tumour,
    draw_kind,
    draw_tumour,
    grow_tumour,
    is_multifocal,
)

BRATS_SHAPE = (240, 240, 155)
COARSEST_MM = 2.0  # coarser voxels are averaged from finer ones, else cortex and tumour rims alias into noise


@dataclass(frozen=True)
class Phantom:
    """A synthetic patient. Arrays are indexed x (to the left), y (to the back), z (up), as in a BraTS file.

    images: sequence -> int16, background 0. labels: as trained, uint8. grade: HGG, LGG or empty. foci: their number.
    """

    images: Mapping[str, np.ndarray]
    labels: np.ndarray
    grade: str
    foci: int
    spacing_mm: float

    @property
    def origin_mm(self) -> tuple[float, float, float]:
        """As ITK has it, with the identity as direction: (0, -239, 0) for 240 voxels of 1 mm, as in BraTS."""
        return (0.0, -(self.labels.shape[1] - 1) * self.spacing_mm, 0.0)


def make_case(
    seed: int,
    index: int,
    shape: Sequence[int] = BRATS_SHAPE,
    scheme: LabelScheme = LABEL_SCHEMES["glioma_2017"],
    anatomy: str = "auto",
    sequences: Sequence[str] = SEQUENCES,
    contrast: float = 1.0,
) -> Phantom:
    """Case number `index` of a seed: the same head and tumour at every shape (x, y, z), whatever the other cases.

    contrast: of tumours against the brain, relative to that of patients; more makes them quicker to learn.
    A scheme with a further label gets tumours that have it, one without nested regions (radiotherapy) a meningioma.
    """
    head, brain, place, effect, growth, mixture, protocol = np.random.default_rng([seed, index]).spawn(7)
    field = field_grid(shape)
    grid, window = head_grid(field)
    factor = ceil(grid.spacing_mm / COARSEST_MM)
    fine = grid.refined(factor)

    extra = scheme.names.get(EXTRA)
    glioma = scheme.names[ED] == "ED"
    kind = draw_kind(seed, index, GLIOMAS if glioma else MENINGIOMAS)
    template = load_template(anatomy)
    pose = draw_pose(head, template)
    sites_mm = pose.to_head(template.white_matter_mm if glioma else template.surface_mm)
    tumour = draw_tumour(place, kind, sites_mm, glioma and is_multifocal(seed, index), extra is not None)
    tissues, mask = grow_brain(brain, fine, template, pose, tumour.pushes(effect))
    labels = grow_tumour(growth, fine, tumour, tissues, mask, extra)

    parts = compose(mixture, fine, tissues, shown_regions(labels, tumour, extra))
    parts = {name: block_mean(part, factor) for name, part in parts.items()}
    mask = block_mean(mask, factor) > 0.5
    labels = np.where(mask, known_to(scheme, block_majority(labels, factor)), np.uint8(0))
    conspicuity = contrast * protocol.uniform(0.7, 1.2)
    streams = dict(zip(SEQUENCES, protocol.spawn(len(SEQUENCES)), strict=True))
    images = {name: acquire(streams[name], grid, SEQUENCES.index(name), parts, mask, conspicuity) for name in sequences}
    images = {name: in_field(image, field, window) for name, image in images.items()}
    return Phantom(images, in_field(labels, field, window), kind.grade, len(tumour.foci), field.spacing_mm)


def shown_regions(labels: np.ndarray, tumour: Tumour, extra: str | None) -> dict[str, np.ndarray]:
    """Part of `signals.SIGNALS` -> its mask; a core that does not enhance is solid tumour."""
    shown_as = {ED: "ED", NCR: "NCR" if tumour.enhancing_of_core else "solid", ET: "ET", EXTRA: extra}
    return {name: labels == label for label, name in shown_as.items() if name and (labels == label).any()}


def in_field(array: np.ndarray, field: VoxelGrid, window: tuple[slice, ...]) -> np.ndarray:
    """The whole image of a part of it, zero elsewhere."""
    whole = np.zeros(field.shape, array.dtype)
    whole[window] = array
    return whole


def known_to(scheme: LabelScheme, labels: np.ndarray) -> np.ndarray:
    """The labels in the terms of a scheme: without ET the core has one label, without regions the tumour has."""
    if scheme.names[ED] != "ED":
        return (labels > 0).astype(np.uint8)
    return labels if ET in scheme.names else np.where(labels == ET, np.uint8(NCR), labels)


def block_mean(field: np.ndarray, factor: int) -> np.ndarray:
    """The mean over blocks of `factor` voxels along each axis: the partial volume that coarse voxels see."""
    if factor == 1:
        return field
    x, y, z = (n // factor for n in field.shape)
    return field.reshape(x, factor, y, factor, z, factor).mean((1, 3, 5), dtype=np.float32)


def block_majority(labels: np.ndarray, factor: int) -> np.ndarray:
    """The most frequent label of each block; of equally frequent ones the largest, which tends to be the rarer."""
    if factor == 1:
        return labels
    values = np.unique(labels)[::-1]
    return values[np.argmax([block_mean(labels == value, factor) for value in values], axis=0)]
