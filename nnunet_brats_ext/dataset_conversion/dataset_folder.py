"""The folder of a data set that we made: is it finished, may it be replaced, how does it appear whole."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nnunet_brats_ext.dataset_conversion.releases import Release
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.nnunet import MANIFEST


def is_finished(dataset: Path, fingerprint: str) -> bool:
    """Whether a data set of ours has this fingerprint, and none of its files, or of what they link to, is gone."""
    description, manifest = dataset / "dataset.json", dataset / MANIFEST
    if not (description.is_file() and manifest.is_file()) or read_json(manifest).get("fingerprint") != fingerprint:
        return False
    try:
        about_all = DatasetDescription.read(description)
        names = [f"_{channel:04d}{about_all.ending}" for channel in range(len(about_all.channel_names))]
    except UserError:  # edited or damaged
        return False
    files = []
    for case, about in read_json(manifest)["cases"].items():
        images = dataset / ("imagesTr" if about["labelled"] else "imagesTs")
        files += [images / f"{case}{name}" for name in names]
        files += [dataset / "labelsTr" / f"{case}{about_all.ending}"] if about["labelled"] else []
    return all(file.exists() for file in files)


def check_replaceable(target: Path, overwrite: bool, sources: Iterable[Path]) -> None:
    """Refuse to replace a data set that holds what is to be read, is none of ours, or was not to be replaced."""
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
