"""What the channels of a member's probabilities mean, and how members with different heads meet in one space.

nnU-Net has two heads. A *region head* has one sigmoid per nested region (WT, TC, ET); a *label head* has one softmax
over the background and every label. Lachinov et al. 2019 (https://arxiv.org/abs/2002.03688) averaged both kinds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_brats_ext.brats import BACKGROUND, ED, ET, NCR, LabelScheme

AS_TRAINED = {"ED": ED, "NCR": NCR, "ET": ET}


@dataclass(frozen=True)
class Head:
    """The channels of one head.

    channels: the labels that each channel stands for; a label head begins with the background, (0,).
    paint: the label that each channel gives to a voxel; nnU-Net's `regions_class_order` for a region head.
    """

    names: tuple[str, ...]
    channels: tuple[tuple[int, ...], ...]
    paint: tuple[int, ...]

    @property
    def has_regions(self) -> bool:
        return (BACKGROUND,) not in self.channels

    @property
    def labels(self) -> tuple[int, ...]:
        """The tumour labels that it can predict, in the order of its channels."""
        return tuple(label for label in self.paint if label != BACKGROUND)


def region_head(scheme: LabelScheme) -> Head:
    """The head that a network has which predicts the regions of a cohort."""
    return Head(tuple(scheme.regions), tuple(scheme.regions.values()), scheme.paint)


def head_of(dataset_json: Mapping[str, Any], num_channels: int) -> Head:
    """The head that a dataset.json declares; the number of channels tells where a network departed from it.

    A dataset with regions may be predicted by a network with a softmax over the labels (one channel more than there
    are labels). Numbers of channels that fit neither are an error.
    """
    if not isinstance(dataset_json.get("labels"), Mapping):
        raise ValueError("its dataset.json has no labels")
    declared = {name: value for name, value in dataset_json["labels"].items() if name != "ignore"}
    for name, value in declared.items():
        binary = len(declared) == 2  # a model of ET alone may call it 1
        if not binary and name in AS_TRAINED and value not in (AS_TRAINED[name], [AS_TRAINED[name]]):
            raise ValueError(
                f"label {name} is {value}, but {AS_TRAINED[name]} as trained; convert the dataset "
                "with `nnunet_brats convert`, or its label maps and channels cannot be told apart"
            )
    sets = {name: tuple(value) if isinstance(value, list) else (value,) for name, value in declared.items()}
    values = sorted(set().union(*sets.values()))
    name_of = {labels[0]: name for name, labels in sets.items() if len(labels) == 1}
    by_label = Head(
        tuple(name_of.get(value, str(value)) for value in values), tuple((v,) for v in values), tuple(values)
    )
    regions = {name: labels for name, labels in sets.items() if set(labels) != {BACKGROUND}}
    by_region = Head(tuple(regions), tuple(regions.values()), tuple(dataset_json.get("regions_class_order") or ()))
    heads = [by_label]
    if any(len(labels) > 1 for labels in sets.values()):
        heads = [by_region, by_label]
        if len(by_region.paint) != len(regions):
            raise ValueError(f"regions_class_order {list(by_region.paint)} does not fit the regions {list(regions)}")
    for head in heads:
        if len(head.channels) == num_channels:
            return head
    expected = " or ".join(str(len(head.channels)) for head in heads)
    raise ValueError(f"{num_channels} channels do not fit the labels {list(declared)}, which need {expected}")


def check_convertible(source: Head, target: Head) -> None:
    """Raise where `convert` would have to invent a channel: one head knows a label or region that the other lacks."""
    if source.has_regions == target.has_regions:
        same = dict(zip(source.channels, source.paint, strict=True)) == dict(
            zip(target.channels, target.paint, strict=True)
        )
    else:
        same = set(source.labels) == set(target.labels)
    if not same:
        raise ValueError(
            f"channels {list(source.names)} for labels {list(source.channels)} cannot become "
            f"{list(target.names)} for labels {list(target.channels)}"
        )


def convert(probabilities: np.ndarray, source: Head, target: Head) -> np.ndarray:
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
