"""Whether label maps are numbered as is said: what their values, their shapes and their agreement tell.

Since BraTS 2023 the released numbering and that of training have the same values, 0 to 3, so that a wrong one is no
error but a wrong score. Oedema surrounds the necrotic core, and a prediction agrees with its reference: label maps
where it is the other way round are most likely numbered otherwise.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np

from nnunet_brats_ext.brats import ED, ET, EXTRA, LABEL_SCHEMES, NCR, LabelScheme
from nnunet_brats_ext.evaluation.boxes import find_box, join_boxes
from nnunet_brats_ext.evaluation.numbering import RELEASED, TRAINED, Numberings, to_trained
from nnunet_brats_ext.evaluation.presets import Preset
from nnunet_brats_ext.storage.errors import Notice, UserError
from nnunet_brats_ext.storage.images import read_image

LABELS = 5  # the background, and 1 to 4 as trained
CLEAR_GAIN = 0.1  # in the mean Dice of the labels
CLEARLY_OUTSIDE = 2.0  # times as large a share of its voxels touches the background; in BraTS 2020 it is 2.5 and more
FEWEST_VOXELS = 50


@dataclass(frozen=True)
class LabelEvidence:
    """What the two label maps of a case show, as trained.

    confusion: voxels by label of the reference and of the prediction, (5, 5). outside: of each label of the reference,
    the share of its voxels that touch the background with a face.
    """

    confusion: np.ndarray
    outside: np.ndarray

    @property
    def voxels(self) -> np.ndarray:
        """Of each label of the reference."""
        return self.confusion.sum(1)

    def absent(self, labels: Sequence[int]) -> str | None:
        """Which of the two has none of some labels: "reference", "prediction" or "both"."""
        missing = [not self.confusion.sum(1)[list(labels)].any(), not self.confusion.sum(0)[list(labels)].any()]
        return "both" if all(missing) else "reference" if missing[0] else "prediction" if missing[1] else None


def gather_evidence(reference: np.ndarray, prediction: np.ndarray) -> LabelEvidence:
    """Of two label maps as trained (z, y, x)."""
    box = join_boxes([find_box(reference), find_box(prediction)])
    padded = [np.pad(labels[box], 1) for labels in (reference, prediction)]
    first, second = (labels.ravel() for labels in padded)
    tumour = np.flatnonzero((first != 0) | (second != 0))
    labels = first[tumour].astype(np.intp)
    confusion = np.bincount(labels * LABELS + second[tumour], minlength=LABELS**2).reshape(LABELS, LABELS)
    touches = np.zeros(len(tumour), bool)
    for stride in np.array(padded[0].strides) // padded[0].itemsize:
        touches |= (first[tumour - stride] == 0) | (first[tumour + stride] == 0)
    outside = np.bincount(labels, touches, LABELS) / np.maximum(np.bincount(labels, minlength=LABELS), 1)
    return LabelEvidence(confusion, outside)


def check_numbering(evidence: Sequence[LabelEvidence], numberings: Numberings, preset: Preset) -> None:
    """Stop (`UserError`) where the values contradict what is said, as `check_values` has it.

    Warn (`Notice`) where most cases would fit another numbering clearly better, and name the option that says so.
    """
    check_values(evidence, numberings, preset)
    scheme = LABEL_SCHEMES[preset.scheme]
    for message in (_surroundings(evidence, numberings, preset), _agreement(evidence, numberings, preset, scheme)):
        if message:
            warnings.warn(message, Notice, stacklevel=3)
            return


def check_channels(evidence: Sequence[LabelEvidence], channels: Sequence[str], preset: Preset) -> None:
    """Warn (`Notice`) where two regions, as predictions in channels hold them, are the same in all cases.

    channels: what was said of the channels. Of the references, some case must have what lies between the two regions.
    """
    regions = {name: set(preset.regions[name]) for name in channels if name in preset.regions}
    confusion = np.sum([one.confusion for one in evidence], axis=0)
    of_reference, of_prediction = confusion.sum(1), confusion.sum(0)
    for inner, outer in permutations(regions, 2):
        between = sorted(regions[outer] - regions[inner])
        if not regions[inner] < regions[outer] or not of_prediction[sorted(regions[inner])].any():
            continue
        if of_reference[between].any() and not of_prediction[between].any():
            names = " and ".join(_name(label, preset) for label in between)
            warnings.warn(
                f"{inner} and {outer} are the same in all {len(evidence)} predictions, but not in the references, "
                f"which have {names} between them; check the order of --channels {','.join(channels)}",
                Notice,
                stacklevel=3,
            )


def _surroundings(evidence: Sequence[LabelEvidence], numberings: Numberings, preset: Preset) -> str | None:
    """What to say where the label read as ED lies within another one, which another numbering calls ED."""
    present = to_trained(numberings.reference, preset)
    values, names = {label: value for value, label in present.items()}, LABEL_SCHEMES[preset.scheme].names
    there = {label for one in evidence for label in np.flatnonzero(one.voxels).tolist()}
    for other in (RELEASED, TRAINED, *LABEL_SCHEMES):
        mapping = to_trained(other, preset)
        read_as = {label: mapping.get(value) for value, label in present.items()}
        found = next((label for label, read in read_as.items() if read == ED), ED)
        if found == ED or ED not in values or not all(read_as[label] in (0, *names) for label in there):
            continue
        asked = [one for one in evidence if one.voxels[[ED, found]].min() >= FEWEST_VOXELS]
        inside_out = sum(one.outside[found] > CLEARLY_OUTSIDE * one.outside[ED] for one in asked)
        if 2 * inside_out > len(asked):
            return (
                f"in {inside_out} of {len(asked)} references the label {values[ED]}, read as {names[ED]}, lies inside "
                f"{values[found]}, read as {names[found]}, though oedema lies outside: they may not be numbered as "
                f"{numberings.reference}. If they are {_describe(other, preset)}, say --labels "
                f"{_suggested(other, numberings)}"
            )
    return None


def _suggested(other: str, numberings: Numberings) -> str:
    """Where both sides were read alike, most likely both are otherwise."""
    both = numberings.reference == numberings.prediction
    return other if both else f"{other},{numberings.prediction}"


def _agreement(
    evidence: Sequence[LabelEvidence], numberings: Numberings, preset: Preset, scheme: LabelScheme
) -> str | None:
    """What to say where predictions agree clearly better with references when their labels are exchanged."""
    labels = list(dict.fromkeys(scheme.predicted.values()))
    known = [one for one in evidence if all((one.confusion.sum(axis)[1:] > 0).sum() > 1 for axis in (0, 1))]
    if len(labels) < 2 or not known:
        return None
    confusion = np.stack([_as_predicted(one.confusion, scheme) for one in known])
    dice = {order: _label_dice(confusion, labels, order) for order in permutations(labels)}
    plain = dice.pop(tuple(labels))
    gains = {order: values - plain for order, values in dice.items()}
    fewest = sorted(gains, key=lambda one: sum(label != other for label, other in zip(labels, one, strict=True)))
    order = max(fewest, key=lambda one: float(gains[one].mean()))
    better = int((gains[order] >= CLEAR_GAIN).sum())
    if 2 * better <= len(known):
        return None
    exchanged = {label: other for label, other in zip(labels, order, strict=True) if label != other}
    values = {label: value for value, label in to_trained(numberings.prediction, preset).items()}
    instead = ", ".join(f"{values[other]} as {scheme.names[label]}" for label, other in exchanged.items())
    return (
        f"in {better} of {len(known)} cases predictions and references fit clearly better when one reads the "
        f"prediction's {instead}: the mean Dice of the labels is {dice[order].mean():.2f}, not {plain.mean():.2f}. The "
        f"references were read as {numberings.reference}, the predictions as {numberings.prediction}"
        f"{_fitting(exchanged, numberings, preset)}"
    )


def _as_predicted(confusion: np.ndarray, scheme: LabelScheme) -> np.ndarray:
    """The confusion (5, 5) where labels that are predicted as another, such as NET as NCR, count as that one."""
    place = np.arange(LABELS)
    place[list(scheme.predicted)] = list(scheme.predicted.values())
    summed = np.zeros_like(confusion)
    np.add.at(summed, (place[:, None], place[None]), confusion)
    return summed


def _label_dice(confusion: np.ndarray, labels: Sequence[int], order: Sequence[int]) -> np.ndarray:
    """The mean Dice of each case over labels that are there, if the prediction's `order` stood for `labels`."""
    shared = confusion[:, labels, order]
    total = confusion.sum(2)[:, labels] + confusion.sum(1)[:, order]
    there = total > 0
    return np.where(there, 2 * shared / np.maximum(total, 1), 0).sum(1) / np.maximum(there.sum(1), 1)


def _fitting(exchanged: Mapping[int, int], numberings: Numberings, preset: Preset) -> str:
    """The options that would exchange these labels, of the prediction or of the reference."""
    prediction, reference = (to_trained(name, preset) for name in (numberings.prediction, numberings.reference))
    back = {other: label for label, other in exchanged.items()}  # as the prediction's labels should be read
    options = []
    for name in (TRAINED, RELEASED, *LABEL_SCHEMES):
        new = to_trained(name, preset)
        if all(new.get(value) == back.get(label, label) for value, label in prediction.items()):
            options.append(f"{numberings.reference},{name}")
        elif all(new.get(value) == exchanged.get(label, label) for value, label in reference.items()):
            options.append(f"{name},{numberings.prediction}")
    return f"; say --labels {' or --labels '.join(options[:2])} if that is so" if options else ""


def _describe(name: str, preset: Preset) -> str:
    mapping, names = to_trained(name, preset), LABEL_SCHEMES[preset.scheme].names
    numbers = ", ".join(f"{value} {names[label]}" for value, label in sorted(mapping.items()) if label)
    return f"{name} ({numbers})"


# ---- what the values alone tell -------------------------------------------------------------------------------------

OLD_ET = 4  # until 2022, when 3 was no label


def check_values(evidence: Sequence[LabelEvidence], numberings: Numberings, preset: Preset) -> None:
    """A UserError where all label maps of one side have 4 and none has 3, but 3 is said to be ET and 4 a cavity.

    Such are the releases until 2022, where 4 is ET. A numbering that is given by its scheme's name is believed.
    """
    confusion = np.sum([one.confusion for one in evidence], axis=0)
    for side, name, voxels in zip(
        ("references", "predictions"), numberings, (confusion.sum(1), confusion.sum(0)), strict=True
    ):
        mapping = to_trained(name, preset)
        if name != RELEASED or (mapping.get(3), mapping.get(OLD_ET)) != (ET, EXTRA):
            continue
        if voxels[EXTRA] and not voxels[ET]:
            old = LABEL_SCHEMES["glioma_2017"].numbers
            raise UserError(
                f"the {side} hold 4 and never 3; --labels {RELEASED} reads them as {preset.name} {preset.cohort} "
                f"numbers labels, {LABEL_SCHEMES[preset.scheme].numbers}, but until 2022 4 was ET",
                f"say --labels glioma_2017 ({old}), or --labels {preset.scheme} if 4 is {_name(EXTRA, preset)}; two, "
                f"such as --labels glioma_2017,{preset.scheme}, where references and predictions differ",
            )


def infer_numbering(files: Iterable[Path], preset: Preset) -> str | None:
    """The numbering that the values in label maps leave, or None where several are possible; reads until it is clear.

    Until 2022 gliomas had the label 4, which those as trained do not have. Since 2023 both have 1 to 3.
    """
    if to_trained(RELEASED, preset) == to_trained(TRAINED, preset):
        return TRAINED
    if set(LABEL_SCHEMES[preset.scheme].names) != {ED, NCR, ET}:
        return None
    for path in files:
        array = read_image(path, right_angles=True, any_form=True).array
        values = np.unique(array[find_box(array)])
        if (values >= 3).any():
            return "glioma_2017" if set(values.tolist()) <= {0, 1, 2, OLD_ET} else None
    return None


def _name(label: int, preset: Preset) -> str:
    return LABEL_SCHEMES[preset.scheme].names[label]
