"""A pair of label maps that has all that lesion-wise scores depend on."""

import numpy as np

from nnunet_brats_ext.brats import ED, ET, EXTRA, LABEL_SCHEMES, NCR

SHAPE = (40, 48, 56)


def paint(*shapes: tuple[int, tuple[int, int, int], float]) -> np.ndarray:
    """Balls of (label, centre, radius), later ones over earlier ones."""
    labels = np.zeros(SHAPE, np.uint8)
    grid = np.indices(SHAPE)
    for label, centre, radius in shapes:
        labels[sum((axis - at) ** 2 for axis, at in zip(grid, centre, strict=True)) <= radius**2] = label
    return labels


def make_pair(scheme: str) -> tuple[np.ndarray, np.ndarray]:
    """A case with all that lesion-wise scores depend on: near, touching, tiny, missed and only predicted lesions."""
    reference = paint(
        (ED, (14, 16, 18), 9), (ET, (14, 16, 18), 6), (NCR, (14, 16, 18), 3),  # the main lesion
        (ED, (27, 34, 40), 4), (ET, (27, 34, 40), 2),  # another
        (ED, (27, 41, 40), 1.5),  # within three dilations of it, not within one
        (ET, (14, 25, 18), 1), (NCR, (14, 27, 18), 1),  # on the rim of the main lesion
        (ET, (6, 40, 8), 1.5), (ED, (36, 6, 50), 0),  # 19 voxels; a single one
        (EXTRA, (14, 30, 18), 3), (EXTRA, (30, 16, 10), 2.5),
    )  # fmt: skip
    prediction = paint(
        (ED, (15, 15, 19), 9.5), (ET, (15, 15, 19), 5.5), (NCR, (14, 16, 18), 3.2),
        (ED, (27, 35, 41), 3.5), (ET, (29, 35, 41), 1),
        (ET, (15, 25, 18), 1.5), (NCR, (14, 28, 19), 1),
        (ED, (34, 41, 10), 2), (ET, (34, 41, 10), 1), (ED, (4, 4, 50), 0),  # only predicted
        (EXTRA, (15, 31, 18), 2.5), (EXTRA, (8, 8, 44), 2),
    )  # fmt: skip
    if EXTRA not in LABEL_SCHEMES[scheme].names:
        reference, prediction = (np.where(labels == EXTRA, 0, labels) for labels in (reference, prediction))
    if ET not in LABEL_SCHEMES[scheme].names:
        reference, prediction = (np.where(labels == ET, NCR, labels) for labels in (reference, prediction))
    if scheme == "radiotherapy_2024":
        reference, prediction = ((labels > 0).astype(np.uint8) for labels in (reference, prediction))
    return reference, prediction
