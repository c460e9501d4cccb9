"""nnU-Net's folders as seen from a data set's ID: where they are, what is there already, what its files say."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from nnunet_brats_ext.dataset_conversion.releases import Release

MANIFEST = "manifest.json"
SPLITS = "splits_final.json"
NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def nnunet_folder(variable: str) -> Path | None:
    """The folder that one of nnU-Net's environment variables names."""
    value = os.environ.get(variable)
    return Path(value) if value else None


def raw_folder(otherwise: str = "") -> Path:
    """nnUNet_raw, where data sets lie; where it is not set, an error that says what to type, or do otherwise."""
    folder = nnunet_folder("nnUNet_raw")
    if folder is None:
        raise ValueError(f"nnUNet_raw is not set: `export nnUNet_raw=/where/your/datasets/are`{otherwise}")
    return folder


def dataset_name(dataset_id: int, name: str) -> str:
    """Dataset137_BraTS2020. nnU-Net reads the ID from three digits, so it lies between 1 and 999."""
    if not 1 <= dataset_id <= 999:
        raise ValueError(f"data set ID {dataset_id} is not between 1 and 999")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"data set name {name!r}: letters, digits, - and _ only")
    return f"Dataset{dataset_id:03d}_{name}"


def find_dataset(dataset_id: int, raw: Path) -> Path:
    """The one data set of that ID."""
    found = sorted(raw.glob(f"Dataset{dataset_id:03d}_*"))
    if len(found) != 1:
        raise ValueError(f"{len(found)} data sets with ID {dataset_id} in {raw}" + "".join(f"\n  {p}" for p in found))
    return found[0]


def check_id_is_free(dataset_id: int, name: str, raw: Path) -> None:
    """nnU-Net finds a data set by its ID alone, in three folders: another name under the same ID confuses it."""
    places = {raw, *(folder for variable in NNUNET_FOLDERS if (folder := nnunet_folder(variable)))}
    for place in sorted(places):
        for other in sorted(place.glob(f"Dataset{dataset_id:03d}_*")):
            if other.name != name:
                raise ValueError(f"ID {dataset_id} belongs to {other} already; take another with -d, or --name it so")


def dataset_json(release: Release, name: str, training_cases: int, normalise: bool) -> dict[str, Any]:
    """nnU-Net's description of the data set; keys that begin with `brats_` are ours, and nnU-Net ignores them.

    Channels that come normalised are all called noNorm, since nnU-Net chooses the normalisation by the name.
    """
    scheme = release.scheme
    nested = any(len(labels) > 1 for labels in scheme.regions.values())
    return {
        "name": name,
        "channel_names": {str(i): "noNorm" if normalise else sequence for i, sequence in enumerate(release.sequences)},
        "labels": scheme.nnunet_labels(),
        **({"regions_class_order": list(scheme.paint)} if nested else {}),
        "numTraining": training_cases,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "licence": f"the terms of {release.name}",
        "brats_release": release.name,
        "brats_sequences": list(release.sequences),
        "brats_label_names": {str(label): name for label, name in scheme.names.items()},
    }


def read_json(path: Path) -> Any:
    """The content of a JSON file; a missing or broken one is an error that names it."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def write_json(content: Any, path: Path) -> None:
    """Written beside and moved into place, so that it is never half there."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def replace_folder(growing: Path, target: Path) -> None:
    """Move the finished folder into its place; an old one goes only once the new one is there."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    growing.replace(target)
    shutil.rmtree(old, ignore_errors=True)
