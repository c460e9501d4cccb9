"""nnU-Net's folders as seen from a data set's ID: where they are, what is there already, what its files say."""

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nnunet_brats_ext.dataset_conversion.releases import Release
from nnunet_brats_ext.prediction_folders.runs import write_text_whole

BEGUN_S = 60.0  # after which a scratch folder is locked, or left by a run that was killed
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
    found = _datasets(dataset_id, raw)
    if len(found) != 1:
        raise ValueError(f"{len(found)} data sets with ID {dataset_id} in {raw}" + "".join(f"\n  {p}" for p in found))
    return found[0]


def check_id_is_free(dataset_id: int, name: str, raw: Path) -> None:
    """nnU-Net finds a data set by its ID alone, in three folders: another name under the same ID confuses it."""
    places = {raw, *(folder for variable in NNUNET_FOLDERS if (folder := nnunet_folder(variable)))}
    for place in sorted(places):
        for other in _datasets(dataset_id, place):
            if other.name != name:
                raise ValueError(f"ID {dataset_id} belongs to {other} already; take another with -d, or --name it so")


def _datasets(dataset_id: int, place: Path) -> list[Path]:
    """The folders of that ID; an archive beside them is no data set."""
    return sorted(path for path in place.glob(f"Dataset{dataset_id:03d}_*") if path.is_dir())


def is_finished(dataset: Path, fingerprint: str) -> bool:
    """Whether a data set of ours has this fingerprint, and none of its files, or of what they link to, is gone."""
    description, manifest = dataset / "dataset.json", dataset / MANIFEST
    if not (description.is_file() and manifest.is_file()) or read_json(manifest).get("fingerprint") != fingerprint:
        return False
    content = read_json(description)
    if not {"file_ending", "channel_names"} <= content.keys():
        return False
    names = [f"_{channel:04d}{content['file_ending']}" for channel in range(len(content["channel_names"]))]
    files = []
    for case, about in read_json(manifest)["cases"].items():
        images = dataset / ("imagesTr" if about["labelled"] else "imagesTs")
        files += [images / f"{case}{name}" for name in names]
        files += [dataset / "labelsTr" / f"{case}{content['file_ending']}"] if about["labelled"] else []
    return all(file.exists() for file in files)


def check_replaceable(target: Path, overwrite: bool, sources: Iterable[Path]) -> None:
    """Refuse to replace a data set that holds what is to be read, is none of ours, or was not to be replaced."""
    if not target.exists():
        return
    if inside := next((path for path in sources if path.resolve().is_relative_to(target.resolve())), None):
        raise ValueError(f"{inside} would be lost with {target}, in which it lies; take another ID with -d, or --name")
    if not (target / MANIFEST).is_file():
        raise ValueError(f"{target} exists and has no {MANIFEST} of ours, so it is not replaced; remove it yourself")
    if not overwrite:
        raise ValueError(
            f"{target} exists and is another data set, or lacks files; --overwrite replaces it and its folds"
        )


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
    write_text_whole(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def scratch_beside(target: Path) -> Iterator[str]:
    """A hidden folder of this run alone, on the disk of `target`; what is left in it goes with the `with` block.

    Only its owner may enter it, so what is to be published grows in a folder inside. A run that was killed leaves its
    folder, but not its lock on it: the next one removes it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}."
    for left in target.parent.glob(f"{prefix}*"):
        if left.is_dir() and time.time() - left.stat().st_mtime > BEGUN_S and _is_free(left):
            shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=prefix, dir=target.parent, ignore_cleanup_errors=True) as scratch:
        lock = os.open(scratch, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield scratch
        finally:
            os.close(lock)


def _is_free(folder: Path) -> bool:
    """Whether nobody holds the lock on a folder."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def publish_folder(growing: Path, target: Path, overwrite: bool, fingerprint: str) -> None:
    """Move the finished folder into its place; an old one moves out of it, into the same scratch folder.

    Where another run has put the same data set there in the meantime, that one stays.
    """
    old = growing.with_name("old")
    if overwrite:
        with suppress(FileNotFoundError):
            target.replace(old)
    try:
        growing.replace(target)
    except OSError:
        if not target.exists() and old.exists():
            old.replace(target)
        if not is_finished(target, fingerprint):
            raise
