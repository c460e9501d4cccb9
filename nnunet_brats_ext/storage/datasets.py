"""What a dataset.json says, read in one place: which channel is which sequence, which labels and regions there are."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunet_brats_ext.brats import BACKGROUND, LABEL_SCHEMES, Head, LabelScheme, find_sequence
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import LPS
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.nnunet import find_splits

FILE = "dataset.json"
AS_TRAINED = {"ED": 1, "NCR": 2, "ET": 3}
AXES_KEY, SEVERAL_AXES = "brats_axes", "several"
DERIVED_KEY = "brats_derived"
NO_NORMALISATION = "noNorm"  # nnU-Net's name of a channel that it leaves as it is, whatever its capitals
NORMALISATION_KEY, PERCENTILE_MINMAX = "brats_normalisation", "percentile-minmax"  # the way where none is noted


@dataclass(frozen=True)
class DatasetDescription:
    """A dataset.json, the same beside raw data, preprocessed data, a model or predictions.

    content: the JSON object. source: its file, quoted in errors. A key that is missing or of the wrong type is a
    UserError when it is asked for.
    """

    content: Mapping[str, Any]
    source: Path = Path(FILE)

    @classmethod
    def read(cls, path: Path) -> "DatasetDescription":
        """From a file, or from the folder that holds it."""
        file = path / FILE if path.is_dir() else path
        return cls(read_json(file), file)

    @classmethod
    def find(cls, *folders: Path) -> "DatasetDescription | None":
        """The description in the first of some folders that has one."""
        return next((cls.read(folder / FILE) for folder in folders if (folder / FILE).is_file()), None)

    def check(self) -> None:
        """An error where something that nnU-Net reads of it is not as nnU-Net has it."""
        if self.nested:
            self._check_paint()
        if not isinstance(ignored := self.content["labels"].get("ignore", 0), int):
            raise UserError(f"{self.source}: labels['ignore'] is {ignored!r}; expected a number")
        _ = self.channel_names, self.derived, self.ending, self.reader

    @property
    def is_of_nnunet(self) -> bool:
        """Whether it says what nnU-Net asks for; other programs write files of this name, too."""
        return bool({"channel_names", "file_ending"} & self.content.keys())

    # ---- channels --------------------------------------------------------------------------------------------------

    @cached_property
    def channel_names(self) -> tuple[str, ...]:
        """What nnU-Net calls each channel, in order."""
        names = self._get("channel_names", dict, '{"0": "T1", ...}')
        if sorted(names) != sorted(map(str, range(len(names)))) or not all(isinstance(n, str) for n in names.values()):
            raise UserError(f'{self.source}: channel_names {names} should be {{"0": NAME, "1": NAME, ...}}')
        return tuple(names[str(number)] for number in range(len(names)))

    @cached_property
    def sequences(self) -> tuple[str, ...]:
        """What each channel shows, by BraTS's names where they are known: T1, T1ce, T2, FLAIR.

        Channels that come normalised are all called noNorm in `channel_names`; their sequences are noted beside.
        """
        channels = self.channel_names
        if (names := self.content.get("brats_sequences")) is None:
            names = list(channels)
        if not isinstance(names, list) or [type(name) for name in names] != [str] * len(channels):
            raise UserError(f"{self.source}: brats_sequences is {names!r}; expected a name for each of {channels}")
        return tuple(find_sequence(name) or name for name in names)

    @cached_property
    def derived(self) -> dict[str, dict[str, float]]:
        """The channels that are computed from sequences, see `brats.derive_channel`: name -> weight of each sequence.

        They come behind the sequences. Who predicts needs no images of them.
        """
        noted = self._get(DERIVED_KEY, dict) if DERIVED_KEY in self.content else {}
        first = len(self.sequences) - len(noted)
        acquired, derived = self.sequences[:first], self.sequences[first:]
        for name, weights in noted.items():
            known = isinstance(weights, dict) and weights and weights.keys() <= set(acquired)
            if name not in derived or not known or not all(type(value) in (int, float) for value in weights.values()):
                raise UserError(
                    f"{self.source}: {DERIVED_KEY} has {name!r}: {weights!r}; expected a channel behind {acquired} "
                    'and weights of some of these, such as {"T1ce-T1": {"T1ce": 1, "T1": -1}}'
                )
        return noted

    @property
    def acquired(self) -> tuple[str, ...]:
        """The sequences that a case has images of: all channels but the derived ones."""
        return self.sequences[: len(self.sequences) - len(self.derived)]

    def channel(self, sequence: str) -> int:
        """The number of the channel that shows a sequence, such as T1ce; an error where none does."""
        if (sequence := find_sequence(sequence) or sequence) not in self.sequences:
            raise UserError(
                f"{self.source}: no channel shows {sequence}; channel_names are {list(self.channel_names)}. Name the "
                f'sequences there, or beside as "brats_sequences": ["T1", "T1ce", "T2", "FLAIR"]'
            )
        return self.sequences.index(sequence)

    @property
    def normalisation(self) -> str | None:
        """How the images were written normalised, by `convert --normalise`, so that nnU-Net leaves them alone."""
        if not any(name.casefold() == NO_NORMALISATION.casefold() for name in self.channel_names):
            return None
        return self._get(NORMALISATION_KEY, str) if NORMALISATION_KEY in self.content else PERCENTILE_MINMAX

    @property
    def axes(self) -> str | None:
        """Where the axes of all images point, such as LPS; None where they differ, or nobody has noted it.

        `convert` turns images to LPS unless it notes other axes.
        """
        if AXES_KEY not in self.content:
            return LPS if self.release else None
        return None if (axes := self._get(AXES_KEY, str)) == SEVERAL_AXES else axes

    # ---- labels ----------------------------------------------------------------------------------------------------

    @cached_property
    def declared(self) -> dict[str, tuple[int, ...]]:
        """Name -> labels, of all labels and regions but `ignore`, background included."""
        labels = self._get("labels", dict, '{"background": 0, "WT": [1, 2, 3], ...}')
        sets = {}
        for name, value in labels.items():
            values = value if isinstance(value, list | tuple) else [value]
            if not values or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
                raise UserError(f"{self.source}: labels[{name!r}] is {value!r}; expected a number or a list of numbers")
            if name != "ignore":
                sets[name] = tuple(values)
        return sets

    @property
    def has_ignore_label(self) -> bool:
        """Whether nnU-Net leaves voxels of a label `ignore` out of training and scores."""
        return "ignore" in self._get("labels", dict)

    @property
    def labels(self) -> frozenset[int]:
        """All labels, background included."""
        return frozenset({BACKGROUND}.union(*self.declared.values()))

    @property
    def nested(self) -> bool:
        """Whether there are regions of several labels, as BraTS trainers predict them."""
        return any(len(labels) > 1 for labels in self.declared.values())

    @property
    def paint(self) -> tuple[int, ...]:
        """nnU-Net's `regions_class_order`: the label that each region paints; empty without."""
        if (order := self.content.get("regions_class_order")) is None:
            return ()
        if not isinstance(order, list | tuple) or not all(type(label) is int for label in order):
            raise UserError(f"{self.source}: regions_class_order is {order!r}; expected a list of labels")
        return tuple(order)

    def head(self, num_channels: int | None = None) -> Head:
        """The head of a network on this data set.

        With nested regions it is a region head, unless `num_channels`, that of the network's output, says that it is
        a softmax over the background and all labels. A number of channels that fits neither is an error.
        """
        declared = self.declared
        for name, labels in declared.items():
            binary = len(declared) == 2  # a model of ET alone may call it 1
            if not binary and name in AS_TRAINED and labels != (AS_TRAINED[name],):
                raise UserError(
                    f"{self.source}: label {name} is {list(labels)}, but {AS_TRAINED[name]} as trained; convert the "
                    "data set with `nnunet_brats convert`, which numbers labels so"
                )
        values = sorted(set().union(*declared.values()))
        name_of = {labels[0]: name for name, labels in declared.items() if len(labels) == 1}
        names = tuple(name_of.get(value, str(value)) for value in values)
        heads = [Head(names, tuple((value,) for value in values), tuple(values))]
        if self.nested:
            regions = self._check_paint()
            heads.insert(0, Head(tuple(regions), tuple(regions.values()), self.paint))
        for head in heads:
            if num_channels in (None, len(head.channels)):
                return head
        expected = " or ".join(str(len(head.channels)) for head in heads)
        raise UserError(
            f"{self.source}: {num_channels} channels do not fit the labels {list(declared)}, which need {expected}"
        )

    def _check_paint(self) -> dict[str, tuple[int, ...]]:
        """The regions, each of which has a label that it paints."""
        regions = {name: labels for name, labels in self.declared.items() if set(labels) != {BACKGROUND}}
        if len(self.paint) != len(regions):
            raise UserError(
                f"{self.source}: regions_class_order {list(self.paint)} does not fit the regions {list(regions)}"
            )
        return regions

    @property
    def scheme_name(self) -> str | None:
        """The name of the label scheme whose regions the data set has; None where it has others."""
        if not self.nested and len(self.declared) != 2:
            return None
        regions = {frozenset(labels) for labels in self.declared.values() if set(labels) != {BACKGROUND}}
        fitting = [n for n, one in LABEL_SCHEMES.items() if {frozenset(r) for r in one.regions.values()} == regions]
        called = [n for n in fitting if LABEL_SCHEMES[n].regions.keys() <= self.declared.keys()]
        return next(iter(called or fitting), None)

    @property
    def scheme(self) -> LabelScheme | None:
        return LABEL_SCHEMES[self.scheme_name] if self.scheme_name else None

    # ---- files -----------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """nnU-Net's name of the data set: that of its folder, elsewhere what the file says; or empty.

        nnU-Net finds a data set by its folder, whatever `name` says there.
        """
        if re.fullmatch(r"Dataset\d{3}_.+", folder := self.source.absolute().parent.name):
            return folder
        return self._get("name", str) if "name" in self.content else ""

    @property
    def ending(self) -> str:
        """How its image files end, such as .nii.gz."""
        return self._get("file_ending", str, '".nii.gz"')

    @property
    def reader(self) -> str:
        """What reads its images, by nnU-Net's name; empty where nnU-Net chooses it."""
        key = "overwrite_image_reader_writer"
        return self._get(key, str) if self.content.get(key) is not None else ""

    @property
    def release(self) -> str | None:
        """The BraTS release it was converted from, if `nnunet_brats convert` made it."""
        return self._get("brats_release", str) if self.content.get("brats_release") is not None else None

    @property
    def folds(self) -> int | None:
        """How many folds the data set has, where nnU-Net reads them or beside the file; None where there are none."""
        found = find_splits(self.name, self.source.parent)
        return len(found[1]) if found else None

    def _get(self, key: str, kind: type, example: str = "") -> Any:
        if key not in self.content:
            raise UserError(f"{self.source} lacks {key!r}" + (f", such as {example}" if example else ""))
        if not isinstance(value := self.content[key], kind):
            raise UserError(f"{self.source}: {key} is {value!r}; expected {example or kind.__name__}")
        return value
