"""`inspect`: what a bundle holds, read without loading anything; and its models as zips that nnU-Net installs."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_brats_ext.bundles.archive import inspect_bundle, open_bundle
from nnunet_brats_ext.bundles.contents import BundledSystem
from nnunet_brats_ext.bundles.options import InspectOptions
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.nnunet import SAFE
from nnunet_brats_ext.storage.output import partial_file, writing


@dataclass(frozen=True)
class Inspected:
    """What a bundle holds. card: its model card. sizes: bytes of each file. written: zips for nnU-Net."""

    system: BundledSystem
    card: str
    sizes: Mapping[str, int]
    written: tuple[Path, ...] = ()


def inspect_file(options: InspectOptions) -> Inspected:
    """What bundle.json says; weights are read only where they are written for nnU-Net or verified."""
    system, card, sizes = inspect_bundle(options.bundle)
    written: tuple[Path, ...] = ()
    if options.nnunet:
        written = tuple(export_to_nnunet(options.bundle, options.nnunet))
    elif options.verify:
        with open_bundle(options.bundle):
            pass
    return Inspected(system, card, sizes, written)


def export_to_nnunet(path: Path, out: Path) -> list[Path]:
    """Write each model of a bundle as nnU-Net exports models: DATASET__TRAINER__PLANS__CONFIGURATION.zip.

    Their checkpoints hold what nnU-Net's prediction reads, made of tensors, texts and numbers: torch loads them with
    `weights_only=True`.
    """
    from nnunet_brats_ext.inference.checkpoints import write_for_nnunet  # loads torch

    written = []
    with open_bundle(path) as bundle:
        for name, model in bundle.system.models.items():
            folder = bundle.model_folder(name)
            target = out / f"{model.dataset}__{folder.name}.zip"
            if target.exists():
                raise UserError(f"{target} exists; choose another folder")
            with writing(out):
                out.mkdir(parents=True, exist_ok=True)
            with partial_file(target) as partial, zipfile.ZipFile(partial, "w") as archive:
                for file in sorted(folder.rglob("*")):
                    if file.suffix == SAFE:
                        place = file.with_suffix(".pth")
                        write_for_nnunet(file, place)
                        archive.write(place, f"{model.dataset}/{place.relative_to(folder.parent)}")
                        place.unlink()
                    elif file.is_file():
                        archive.write(file, f"{model.dataset}/{file.relative_to(folder.parent)}", zipfile.ZIP_DEFLATED)
            written.append(target)
    return written
