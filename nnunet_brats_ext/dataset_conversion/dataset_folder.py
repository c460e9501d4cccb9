"""The folder of a data set in nnUNet_raw: its descriptions, whether it is finished, how it is replaced."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_brats_ext.brats import DERIVED_CHANNELS
from nnunet_brats_ext.dataset_conversion.layouts import Layout
from nnunet_brats_ext.dataset_conversion.sources import DatasetFacts
from nnunet_brats_ext.storage.datasets import (
    AXES_KEY,
    DERIVED_KEY,
    NO_NORMALISATION,
    NORMALISATION_KEY,
    SEVERAL_AXES,
    DatasetDescription,
)
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import LPS
from nnunet_brats_ext.storage.json_files import check_schema, read_json
from nnunet_brats_ext.storage.nnunet import MANIFEST
from nnunet_brats_ext.storage.output import publish

MISSING_KEY = "brats_missing"  # of a dataset.json
_TEXT, _TEXT_OR_NONE, _NUMBERS = (
    {"type": "string"},
    {"type": ["string", "null"]},
    {"type": "array", "items": {"type": "number"}},
)
_CASE = {
    "type": "object",
    "required": ["labelled", "patient", "known_as", "grade", "site", "files", "grid"],
    "properties": {
        "labelled": {"type": "boolean"},
        "held_out": {"type": "boolean"},
        "patient": _TEXT,
        "known_as": {"type": "array", "items": _TEXT},
        "grade": _TEXT_OR_NONE,
        "site": _TEXT_OR_NONE,
        "files": {
            "type": "object",
            "additionalProperties": {"type": "object", "required": ["path"], "properties": {"path": _TEXT}},
        },
        "grid": {
            "type": "object",
            "required": ["size", "direction"],
            "properties": {
                "size": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 3, "maxItems": 3}
            },
            "additionalProperties": _NUMBERS,
        },
    },
}
SCHEMA_OF_MANIFEST = {
    "type": "object",
    "required": ["cases"],
    "properties": {
        "cases": {"type": "object", "additionalProperties": _CASE},
        "release": _TEXT_OR_NONE,
        "source": _TEXT_OR_NONE,
        "label_mapping": {"type": "object"},
    },
}


@dataclass(frozen=True)
class RawDataset:
    """A data set in nnUNet_raw.

    description: its dataset.json. manifest: that of `convert` or `distill`; empty where neither made the data set.
    """

    folder: Path
    description: DatasetDescription
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "RawDataset":
        return cls(folder, DatasetDescription.read(folder), read_manifest(folder) or {})

    @property
    def cases(self) -> Mapping[str, Mapping[str, Any]]:
        """Case -> what the manifest says of it."""
        return self.manifest.get("cases", {})

    @property
    def held_out(self) -> list[str]:
        """The labelled cases that are kept to test on."""
        return [case for case, about in self.cases.items() if about.get("held_out")]


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What `convert` or `distill` noted about a data set; None where neither made it."""
    if not (path := folder / MANIFEST).is_file():
        return None
    manifest = read_json(path)
    check_schema(manifest, SCHEMA_OF_MANIFEST, path, "; `nnunet_brats convert` writes it anew")
    return manifest


def is_finished(folder: Path, fingerprint: str) -> bool:
    """Whether the data set of this fingerprint is there, and none of its files, or of what they link to, is missing."""
    try:
        dataset = RawDataset.open(folder)
        if dataset.manifest.get("fingerprint") != fingerprint:
            return False
        ending = dataset.description.ending
        channels = range(len(dataset.description.channel_names))
    except UserError:  # not there, edited or damaged
        return False
    files = []
    for case, about in dataset.cases.items():
        part = "Tr" if about["labelled"] and not about.get("held_out") else "Ts"
        files += [folder / f"images{part}" / f"{case}_{channel:04d}{ending}" for channel in channels]
        files += [folder / f"labels{part}" / f"{case}{ending}"] if about["labelled"] else []
    return all(file.exists() for file in files)


def check_replaceable(target: Path, overwrite: bool, sources: Iterable[Path]) -> None:
    """An error where a data set must not be replaced: it holds sources, is not ours, or `overwrite` is not set."""
    if not target.exists():
        return
    if inside := next((path for path in sources if path.resolve().is_relative_to(target.resolve())), None):
        raise UserError(f"{inside} would be lost with {target}, in which it lies; take another ID with -d, or --name")
    if not (target / MANIFEST).is_file():
        raise UserError(f"{target} exists and has no {MANIFEST} of ours, so it is not replaced; remove it yourself")
    if not overwrite:
        raise UserError(
            f"{target} exists and is another data set, or lacks files; --overwrite replaces it and its folds"
        )


def dataset_json(
    layout: Layout | DatasetFacts,
    name: str,
    training_cases: int,
    normalise: str | None,
    missing: Mapping[str, list[str]] | None = None,
    axes: Collection[str] = (LPS,),
    derived: Sequence[str] = (),
) -> dict[str, Any]:
    """nnU-Net's description of the data set; keys that begin with `brats_` are ours, and nnU-Net ignores them.

    nnU-Net chooses the normalisation by the name of a channel, so channels that come normalised are all called noNorm.
    missing: case -> the sequences that it lacks, which are zeros. axes: that images have. derived: channels behind the
    sequences, of `DERIVED_CHANNELS`.
    """
    scheme = layout.numbering
    nested = any(len(labels) > 1 for labels in scheme.regions.values())
    channels = [*layout.sequences, *derived]
    names = [NO_NORMALISATION if normalise else channel for channel in channels]
    return {
        "name": name,
        "channel_names": {str(channel): shown for channel, shown in enumerate(names)},
        "labels": scheme.nnunet_labels(),
        **({"regions_class_order": list(scheme.paint)} if nested else {}),
        "numTraining": training_cases,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "licence": f"the terms of {layout.name}",
        "brats_release": layout.name,
        "brats_sequences": channels,
        **({NORMALISATION_KEY: normalise} if normalise else {}),
        **({DERIVED_KEY: {name: dict(DERIVED_CHANNELS[name]) for name in derived}} if derived else {}),
        **({MISSING_KEY: missing} if missing else {}),
        **({} if set(axes) == {LPS} else {AXES_KEY: next(iter(axes)) if len(set(axes)) == 1 else SEVERAL_AXES}),
        "brats_label_names": {str(label): name for label, name in scheme.names.items()},
    }


def publish_folder(growing: Path, target: Path, overwrite: bool, fingerprint: str) -> None:
    """Move the finished folder into its place. Where another run has put the same data set there, that one stays."""
    try:
        publish(growing, target, overwrite)
    except FileExistsError as error:
        if not is_finished(target, fingerprint):
            raise UserError(
                f"{target} was made by another run in the meantime, and is another data set; start again with "
                "another ID -d, or replace it with --overwrite"
            ) from error
