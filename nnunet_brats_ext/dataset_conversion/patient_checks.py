"""What can be wrong with a patient's images before a network sees them: pure functions of arrays, with their limits.

The limits were set with four patients of BraTS 2021 and the same patients spoiled on purpose, the brightness of tumours
in FLAIR also with one of TCGA-LGG; next to each limit is what those patients have. docs/own_data.md says how others
fare. They are meant for adults with glioma: a finding says look, and not more.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from nnunet_brats_ext.storage.images import TOLERANCE_MM, Image

PREPROCESSING = "register, resample and extract the brain with `nnunet_brats prepare`, by brainles-preprocessing"
AGAIN = "convert it from the DICOM files again, with dcm2niix"

MOST_SPACING_OFF_1MM = 0.05
MOST_HEAD_ML = 2000  # brains of the four: 1,293 to 1,617 ml; with 14 mm of scalp: 2,156 to 2,719
LEAST_HEAD_ML = 300
MOST_SHARE_AT_MAXIMUM = 0.005  # of the brain; the four: below 0.00001
LEAST_ENHANCEMENT_SKEWNESS = 0.0  # of T1ce - T1; the four: 4.2 to 4.9, swapped: the same below zero
BRIGHT_IN_FLAIR, LEAST_BRIGHT_ML = 1.5, 2.0  # times the median; of five gliomas 5 to 87 ml, painted over at most 0.8
FOREGROUND = 0.1  # of the 99th percentile: what is darker is air
GRID_MM = 3  # on which images are compared
SHIFTS_MM, TURNS_DEGREES = (6, 12), (6, 12)  # tried to see whether two sequences fit better elsewhere
LEAST_GAIN = 1.02  # of (normalised mutual information - 1) by such a move; the four: at most 1.00


class Finding(NamedTuple):
    """Something that is likely wrong. kind: a word for tables. fix: what to do about it."""

    kind: str
    sentence: str
    fix: str


def check_patient(images: Mapping[str, Image]) -> list[Finding]:
    """Everything that is likely wrong with the sequences of one patient, by name, all in the same axes."""
    found = [*_check_grids(images)]
    for name, image in images.items():
        if not image.array.any():
            found.append(Finding("empty", f"{name} is zero everywhere", AGAIN))
    seen = {name: image for name, image in images.items() if image.array.any()}
    found += [one for name, image in seen.items() for one in _check_intensities(name, image)]
    if (found and {one.kind for one in found} & {"grid", "skull", "part", "inverted"}) or not seen:
        return found  # what follows compares brains voxel by voxel
    small = {name: _at_grid(image) for name, image in seen.items()}
    named = _check_names(seen)
    return [*found, *named, *_check_registration(small), *([] if named else _check_tumour(seen))]


def _check_grids(images: Mapping[str, Image]) -> list[Finding]:
    found = []
    off = [
        name
        for name, image in images.items()
        if max(abs(mm - 1) for mm in image.grid.spacing_mm) > MOST_SPACING_OFF_1MM
    ]
    if off:
        spacing = " x ".join(f"{mm:g}" for mm in images[off[0]].grid.spacing_mm)
        found.append(Finding("spacing", f"{', '.join(off)}: voxels of {spacing} mm instead of 1 mm", PREPROCESSING))
    for name, image in images.items():
        first = next(iter(images))
        if difference := image.grid.difference(images[first].grid, TOLERANCE_MM):
            found.append(Finding("grid", f"{name} lies on another grid than {first}: {difference}", PREPROCESSING))
    return found


def foreground(array: np.ndarray) -> np.ndarray:
    """The voxels that are no air: brighter than a tenth of the 99th percentile of what is not zero."""
    return array > FOREGROUND * np.percentile(array[array != 0], 99)


def _check_intensities(name: str, image: Image) -> list[Finding]:
    array = image.array.astype(np.float32)
    edge = tuple(max(n // 20, 1) for n in array.shape)
    corner = array[: edge[0], : edge[1], : edge[2]]
    middle = array[tuple(slice(n // 3, 2 * n // 3) for n in array.shape)]
    if np.median(corner) > np.median(middle):
        return [Finding("inverted", f"{name}: the corner of the image is brighter than its middle", AGAIN)]
    if array.max() <= 0:
        return [Finding("inverted", f"{name} has no positive voxel", AGAIN)]
    head = foreground(array)
    volume = float(head.sum()) * image.grid.voxel_volume_mm3 / 1000
    found = []
    if volume > MOST_HEAD_ML:
        sentence = f"{name}: {volume:,.0f} ml are no air, more than a brain has; the skull is still there"
        found.append(Finding("skull", sentence, "extract the brain with HD-BET, alone or by `nnunet_brats prepare`"))
    elif volume < LEAST_HEAD_ML:
        found.append(Finding("part", f"{name}: {volume:,.0f} ml are no air, less than a brain has", AGAIN))
    values = array[head]
    share = float((values >= values.max()).mean())
    if share > MOST_SHARE_AT_MAXIMUM:
        found.append(
            Finding("clipped", f"{name}: {share:.1%} of the brain have the highest value; it is clipped", AGAIN)
        )
    return found


def _check_names(images: Mapping[str, Image]) -> list[Finding]:
    """Sequences under each other's names, by what each shows: contrast agent, and water brighter than all else."""
    found = []
    arrays = {name: image.array.astype(np.float32) for name, image in images.items()}
    brain = np.logical_and.reduce([array != 0 for array in arrays.values()])
    if not brain.any():
        return [Finding("grid", "the sequences have no voxel in common that is not zero", PREPROCESSING)]
    water = {name: np.percentile(array[brain], 99) / np.median(array[brain]) for name, array in arrays.items()}
    for other in ("FLAIR", "T1"):
        if {other, "T2"} <= water.keys() and water["T2"] < water[other]:
            sentence = f"water is brighter in {other} than in T2; these two may be swapped"
            found.append(Finding("swapped", sentence, f"look at {other} and T2 and rename them"))
    if {"T1", "T1ce"} <= arrays.keys() and not found:
        change = arrays["T1ce"][brain] / np.median(arrays["T1ce"][brain])
        change = change - arrays["T1"][brain] / np.median(arrays["T1"][brain])
        skewness = float(((change - change.mean()) ** 3).mean() / max(change.std(), 1e-6) ** 3)
        if skewness < LEAST_ENHANCEMENT_SKEWNESS:
            sentence = (
                f"T1 has bright spots that T1ce lacks (skewness of the difference {skewness:.1f}); may be swapped"
            )
            found.append(Finding("swapped", sentence, "look at T1 and T1ce and rename them"))
    return found


def _at_grid(image: Image) -> np.ndarray:
    """An image on a coarse grid, its brain scaled from 0 to 1; air is zero."""
    factors = [mm / GRID_MM for mm in image.grid.spacing_mm[::-1]]
    array = ndimage.zoom(
        ndimage.gaussian_filter(image.array.astype(np.float32), [0.5 / f for f in factors]), factors, order=1
    )
    values = array[foreground(array)]
    low, high = np.percentile(values, (1, 99))
    return np.where(foreground(array), np.clip((array - low) / max(high - low, 1e-6), 0, 1) + 1e-3, 0)


def mutual_information(one: np.ndarray, other: np.ndarray, bins: int = 32) -> float:
    """The normalised mutual information of two images in [0, 1] where both are not zero, less 1: 0 for none.

    Studholme et al. 1999, https://doi.org/10.1016/S0031-3203(98)00091-0.
    """
    both = (one > 0) & (other > 0)
    if not both.any():
        return 0.0
    counts, _, _ = np.histogram2d(one[both], other[both], bins=bins, range=[(0, 1.001)] * 2)
    joint = counts / counts.sum()

    def entropy(p: np.ndarray) -> float:
        return float(-(p[p > 0] * np.log(p[p > 0])).sum())

    return (entropy(joint.sum(0)) + entropy(joint.sum(1))) / max(entropy(joint), 1e-9) - 1


def best_move(fixed: np.ndarray, moving: np.ndarray) -> tuple[float, str]:
    """How much mutual information the best of some moves gains, as a ratio, and which move that is."""
    here = mutual_information(fixed, moving)
    gains = {}
    for axis, name in enumerate("zyx"):
        for step in (sign * mm for mm in SHIFTS_MM for sign in (1, -1)):
            moved = ndimage.shift(moving, [step / GRID_MM * (axis == one) for one in range(3)], order=1)
            gains[f"{step:+d} mm along {name}"] = mutual_information(fixed, moved)
        for turn in (sign * degrees for degrees in TURNS_DEGREES for sign in (1, -1)):
            axes = tuple(one for one in range(3) if one != axis)
            moved = ndimage.rotate(moving, turn, axes=axes, reshape=False, order=1)
            gains[f"{turn:+d} degrees about {name}"] = mutual_information(fixed, moved)
    best = max(gains, key=lambda move: gains[move])
    return gains[best] / max(here, 1e-9), best


def _check_registration(images: Mapping[str, np.ndarray]) -> list[Finding]:
    """Sequences that fit most of the others better when they are moved; of two sequences, the second."""
    pairs = [pair for pair in combinations(images, 2) if set(pair) != {"T1", "T2"}]  # of which one shows little of both
    gains = {pair: best_move(images[pair[0]], images[pair[1]]) for pair in pairs}
    found = []
    for name in images:
        own = [gain for pair, gain in gains.items() if name in pair]
        if len(images) == 2 and name == next(iter(images)):
            continue
        if own and sum(gain > LEAST_GAIN for gain, _ in own) > len(own) / 2:
            move = max(own)[1]
            sentence = f"{name} does not lie on the others: they fit better {move} away"
            found.append(Finding("not registered", sentence, PREPROCESSING))
    return found


def _check_tumour(images: Mapping[str, Image]) -> list[Finding]:
    """FLAIR without any bright region inside the brain."""
    if (image := images.get("FLAIR")) is None:
        return []
    array = image.array.astype(np.float32)
    brain = foreground(array)
    inside = ndimage.binary_erosion(brain, iterations=max(round(10 / min(image.grid.spacing_mm)), 1))
    bright = ndimage.gaussian_filter(array, 2) > BRIGHT_IN_FLAIR * np.median(array[brain])
    regions, _ = ndimage.label(bright & inside)
    volume = np.bincount(regions.ravel())[1:].max(initial=0) * image.grid.voxel_volume_mm3 / 1000
    if volume >= LEAST_BRIGHT_ML:
        return []
    return [
        Finding(
            "no tumour", f"FLAIR has no bright region of {LEAST_BRIGHT_ML:g} ml", "look whether this is the patient"
        )
    ]
