"""The facts of BraTS: sequences, labels, regions, and how each release numbers them.

Two numberings exist. *As released* is what a challenge hands out and wants back (ET was 4 until 2022). *As trained* is
nnU-Net's own BraTS numbering and holds everywhere between `convert` and `restore`: 1 ED, 2 NCR, 3 ET, and 4 for the
one label that some cohorts add. With it, painting the regions from the largest to the smallest is painting 1, 2, 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nnunet_brats_ext.storage.errors import UserError

SEQUENCES = ("T1", "T1ce", "T2", "FLAIR")  # channel 0000 to 0003
SEQUENCE_NAMES: Mapping[str, tuple[str, ...]] = {  # as data sets call them; lower case, letters and digits only
    "T1": ("t1", "t1n", "t1w", "t1pre", "t1native"),
    "T1ce": ("t1ce", "t1c", "t1gd", "t1post", "t1ct", "ct1", "t1gad", "t1cw", "t1wce", "t1wc", "t1wgd"),
    "T2": ("t2", "t2w", "t2synth"),
    "FLAIR": ("flair", "t2f", "t2flair", "fla"),
}
DERIVED_CHANNELS: Mapping[str, Mapping[str, float]] = {  # channels computed from sequences, see `derive_channel`
    "T1ce-T1": {"T1ce": 1, "T1": -1},  # what takes up contrast agent: Kim et al. 2024, arxiv.org/abs/2409.08143
}
LABEL_NAMES = (
    "seg",
    "segm",
    "segmentation",
    "label",
    "labels",
    "tumor",
    "tumour",
    "tumormask",
    "tumourmask",
    "mask",
    "gt",
)

BACKGROUND, ED, NCR, ET = 0, 1, 2, 3  # as trained
EXTRA = 4  # as trained: the one further label of a cohort, named in its scheme


@dataclass(frozen=True)
class Head:
    """What the channels of a network's output mean.

    nnU-Net has two heads. A *region head* has one sigmoid per nested region (WT, TC, ET); a *label head* has one
    softmax over the background and every label.

    channels: the labels of each channel; a label head begins with the background, (0,).
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


@dataclass(frozen=True)
class LabelScheme:
    """How a cohort numbers its labels, what they are called, and which regions its challenge scores.

    released: value in the release's files -> value as trained; bijective, so that `restore` is the inverse.
    names: value as trained -> name, background left out.
    regions: name -> labels as trained, from the largest to the smallest; the order of the network's channels.
    paint: the label that region i paints over the regions before it (nnU-Net's `regions_class_order`).
    """

    released: Mapping[int, int]
    names: Mapping[int, str]
    regions: Mapping[str, tuple[int, ...]]
    paint: tuple[int, ...]

    @property
    def trained(self) -> dict[int, int]:
        """Value as trained -> value as released."""
        return {trained: released for released, trained in self.released.items()}

    @property
    def numbers(self) -> str:
        """The numbering in words, such as `1 NCR, 2 ED, 3 ET`."""
        return ", ".join(f"{value} {self.names[label]}" for value, label in self.released.items() if label)

    @property
    def head(self) -> Head:
        """The head of a network that predicts the regions of the cohort."""
        return Head(tuple(self.regions), tuple(self.regions.values()), self.paint)

    @property
    def predicted(self) -> dict[int, int]:
        """Value as trained -> what predictions have in its place: that of the innermost region, such as NCR for NET."""
        return {
            label: [paint for paint, labels in zip(self.paint, self.regions.values(), strict=True) if label in labels][
                -1
            ]
            for label in self.names
        }

    def nnunet_labels(self) -> dict[str, int | list[int]]:
        """The `labels` entry of a dataset.json: nnU-Net takes a list for a region and an int for a plain label."""
        regions = {name: labels[0] if len(labels) == 1 else list(labels) for name, labels in self.regions.items()}
        return {"background": BACKGROUND, **regions}


_GLIOMA_REGIONS = {"WT": (ED, NCR, ET), "TC": (NCR, ET), "ET": (ET,)}
_GLIOMA_NAMES = {ED: "ED", NCR: "NCR", ET: "ET"}

LABEL_SCHEMES: Mapping[str, LabelScheme] = {
    # The first BraTS labelled oedema and core alone; the enhancing part belongs to the core.
    "glioma_2012": LabelScheme(
        {0: 0, 1: ED, 2: NCR}, {ED: "ED", NCR: "TC"}, {"WT": (ED, NCR), "TC": (NCR,)}, (ED, NCR)
    ),
    # BraTS 2013 to 2016 had labels for non-enhancing tumour (3) and for necrosis (1). Both belong to the core. NET has
    # a value of its own, so that nothing is lost in conversion, and is predicted as NCR, as in every later release.
    "glioma_2013": LabelScheme(
        released={0: 0, 1: NCR, 2: ED, 3: EXTRA, 4: ET},
        names={**_GLIOMA_NAMES, EXTRA: "NET"},
        regions={"WT": (ED, NCR, ET, EXTRA), "TC": (NCR, ET, EXTRA), "ET": (ET,)},
        paint=(ED, NCR, ET),
    ),
    "glioma_2017": LabelScheme({0: 0, 1: NCR, 2: ED, 4: ET}, _GLIOMA_NAMES, _GLIOMA_REGIONS, (ED, NCR, ET)),
    "glioma_2023": LabelScheme({0: 0, 1: NCR, 2: ED, 3: ET}, _GLIOMA_NAMES, _GLIOMA_REGIONS, (ED, NCR, ET)),
    # Post-treatment glioma (2024) and metastases (2024 on): the resection cavity lies outside WT and TC.
    "resected_2024": LabelScheme(
        released={0: 0, 1: NCR, 2: ED, 3: ET, 4: EXTRA},
        names={**_GLIOMA_NAMES, EXTRA: "RC"},
        regions={**_GLIOMA_REGIONS, "RC": (EXTRA,)},
        paint=(ED, NCR, ET, EXTRA),
    ),
    # Paediatric tumours from 2024 on reversed the order and added the cystic component, which belongs to the core.
    "paediatric_2024": LabelScheme(
        released={0: 0, 1: ET, 2: NCR, 3: EXTRA, 4: ED},
        names={**_GLIOMA_NAMES, EXTRA: "CC"},
        regions={"WT": (ED, NCR, ET, EXTRA), "TC": (NCR, ET, EXTRA), "ET": (ET,), "CC": (EXTRA,)},
        paint=(ED, NCR, ET, EXTRA),
    ),
    "decathlon": LabelScheme({0: 0, 1: ED, 2: NCR, 3: ET}, _GLIOMA_NAMES, _GLIOMA_REGIONS, (ED, NCR, ET)),
    # Meningioma before radiotherapy: one target volume, so no nested regions.
    "radiotherapy_2024": LabelScheme({0: 0, 1: 1}, {1: "GTV"}, {"GTV": (1,)}, (1,)),
    "whole_tumour": LabelScheme({0: 0, 1: 1}, {1: "WT"}, {"WT": (1,)}, (1,)),  # one label for all of the tumour
}


def find_sequence(name: str) -> str | None:
    """The sequence of a name in a data set, in any capitals and punctuation; None for a name that is not known."""
    plain = "".join(filter(str.isalnum, name.lower()))
    return next((sequence for sequence, names in SEQUENCE_NAMES.items() if plain in names), None)


def remap(labels: np.ndarray, mapping: Mapping[int, int]) -> np.ndarray:
    """Replace every label; one that the mapping lacks is an error and never becomes background. Gives uint8."""
    values = np.unique(labels)
    if unknown := [float(v) for v in values if v not in mapping]:
        raise UserError(f"labels {unknown} are not among {sorted(mapping)}")
    table = np.zeros(max(mapping) + 1, dtype=np.uint8)
    for value, replacement in mapping.items():
        table[value] = replacement
    return table[labels.astype(np.int64, copy=False)]


def to_regions(segmentation: np.ndarray, regions: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The boolean mask of each region of a label map; `regions` and the map in the same numbering."""
    return {name: np.isin(segmentation, labels) for name, labels in regions.items()}


def derive_channel(images: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """The weighted sum of the z-scores of some sequences, in float32; zero where one of them is zero or missing.

    images: by sequence, of one shape. MR intensities have no unit, and every scanner scales every sequence in its own
    way. So each sequence gets mean 0 and standard deviation 1 over the voxels where none of them is zero.
    """
    arrays = {name: np.asarray(images[name], np.float32) for name in weights}  # as nnU-Net reads them
    inside = np.logical_and.reduce([array != 0 for array in arrays.values()])
    derived = np.zeros(inside.shape, np.float32)
    if inside.any():
        values = {name: array[inside].astype(np.float64) for name, array in arrays.items()}
        scores = {name: (one - one.mean()) / max(one.std(), 1e-8) for name, one in values.items()}
        derived[inside] = sum(weights[name] * one for name, one in scores.items())
    return derived
