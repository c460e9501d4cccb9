"""Conversion of probabilities between region heads and label heads, and from probabilities to label maps.

Lachinov et al. 2019 (https://arxiv.org/abs/2002.03688) averaged region heads and label heads; see `brats.Head`.
"""

import numpy as np

from nnunet_brats_ext.brats import BACKGROUND, Head
from nnunet_brats_ext.storage.errors import UserError


def check_convertible(source: Head, target: Head) -> None:
    """An error where `convert_head` would have to invent a channel: one head has a label that the other lacks."""
    if source.has_regions == target.has_regions:
        same = _painted(source) == _painted(target)
    else:
        same = set(source.labels) == set(target.labels)
    if not same:
        raise UserError(
            f"the channels {_shown(source)} cannot become {_shown(target)}: they are of different labels or regions"
        )


def convert_head(probabilities: np.ndarray, source: Head, target: Head) -> np.ndarray:
    """Bring probabilities (channel, z, y, x) from one head to another; the same head returns the array itself.

    Labels become regions by summing the labels of each region. Regions become labels as in `label_probabilities`,
    divided by their sum. On hard nested masks both ways are inverse to each other.
    """
    if source.channels == target.channels:
        return probabilities
    if source.has_regions and target.has_regions:
        return probabilities[[source.channels.index(labels) for labels in target.channels]]
    if target.has_regions:
        position = {label: channel for channel, (label,) in enumerate(source.channels)}
        return np.stack([probabilities[[position[label] for label in region]].sum(0) for region in target.channels])
    tumour = label_probabilities(probabilities, source)
    background = 1 - probabilities.max(0)
    by_label = dict(zip(source.paint, tumour, strict=True)) | {BACKGROUND: background}
    labels = np.stack([by_label[label] for (label,) in target.channels])
    return labels / labels.sum(0)


def label_probabilities(probabilities: np.ndarray, head: Head) -> np.ndarray:
    """The probability of each label of `head.labels`, (label, z, y, x); background left out, not normalised.

    A region leaves to its own label what the regions inside it do not claim: p(ET) = ET, p(NCR) = max(TC - ET, 0),
    p(ED) = max(WT - max(TC, ET), 0). A region beside it, as the resection cavity, takes nothing away.
    """
    if not head.has_regions:
        return probabilities[[channel for channel, labels in enumerate(head.channels) if labels != (BACKGROUND,)]]
    result = probabilities.copy()
    for outer, region in enumerate(head.channels):
        inside = [inner for inner, other in enumerate(head.channels) if set(other) < set(region)]
        if inside:
            np.maximum(probabilities[outer] - probabilities[inside].max(0), 0, out=result[outer])
    return result


def paint(probabilities: np.ndarray, head: Head) -> np.ndarray:
    """The label map (z, y, x) of probabilities, as nnU-Net makes it.

    A region head paints every region above 0.5 in the order of its channels, the later over the earlier (0.5 itself
    is outside); a label head takes the largest channel, the first of equals.
    """
    if not head.has_regions:
        return np.asarray(head.paint, dtype=np.uint8)[probabilities.argmax(0)]
    labels = np.zeros(probabilities.shape[1:], dtype=np.uint8)
    for channel, label in zip(probabilities, head.paint, strict=True):
        labels[channel > 0.5] = label
    return labels


def _painted(head: Head) -> dict[tuple[int, ...], int]:
    return dict(zip(head.channels, head.paint, strict=True))


def _shown(head: Head) -> str:
    return ", ".join(f"{name} {list(labels)}" for name, labels in zip(head.names, head.channels, strict=True))
