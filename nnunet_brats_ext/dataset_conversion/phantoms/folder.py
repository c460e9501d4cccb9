"""Folders of phantoms, as a BraTS release lays them out, with the tables that it ships beside the images."""

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk

from nnunet_brats_ext.brats import ET, remap
from nnunet_brats_ext.dataset_conversion.phantoms.anatomy import load_template
from nnunet_brats_ext.dataset_conversion.phantoms.case import BRATS_SHAPE, Phantom, make_case
from nnunet_brats_ext.dataset_conversion.releases import LABEL, RELEASES, STACK, Release, find_release
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.parallel import for_each

SMALLEST = 32  # voxels along an axis; with fewer there is no anatomy left
MANIFEST = "phantoms.json"
NO_ID = "NA"
# The releases that ship a name_mapping.csv: column of ids -> the release that it names, None for the TCIA archive.
_2018: Mapping[str, str | None] = {"BraTS_2017_subject_ID": "BraTS2017", "BraTS_2018_subject_ID": "BraTS2018"}
_2019 = {**_2018, "TCGA_TCIA_subject_ID": None, "BraTS_2019_subject_ID": "BraTS2019"}
_2020 = {**_2019, "BraTS_2020_subject_ID": "BraTS2020"}
NAME_MAPPINGS = {"BraTS2018": _2018, "BraTS2019": _2019, "BraTS2020": _2020}


@dataclass(frozen=True)
class Order:
    """What to make: all that a case depends on, besides its own number."""

    release: Release
    shape: tuple[int, ...]
    seed: int
    anatomy: str
    contrast: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.contrast < 10:
            raise UserError(f"contrast {self.contrast} is not between 0 and 10; 1 is that of patients")
        if len(self.shape) != 3 or min(self.shape) < SMALLEST:
            raise UserError(f"size {' '.join(map(str, self.shape))} is not three numbers (x y z) from {SMALLEST} on")


def write_phantoms(
    out: Path,
    release: str = "BraTS2020",
    cases: int = 12,
    unlabelled: int = 0,
    shape: Sequence[int] | None = None,
    seed: int = 0,
    anatomy: str = "auto",
    processes: int | None = None,
    overwrite: bool = False,
    references: Path | None = None,
    contrast: float = 1.0,
) -> list[dict]:
    """Write a folder of synthetic cases as a BraTS release lays it out, and return the rows of its manifest.

    The last `unlabelled` cases come without label, in the folder for validation where the release has one. The shape
    (x, y, z) is the release's own unless given. `out` appears when all is written; it may be empty before, or hold
    phantoms if `overwrite` is set. `references` is a folder for the labels of the unlabelled cases, which the
    organisers of a challenge keep to themselves; named and numbered like a submission.
    """
    if cases < 1 or not 0 <= unlabelled <= cases:
        raise UserError(f"{cases} cases, {unlabelled} of them unlabelled: at least one case, and no more than all")
    row = find_release(release)
    order = Order(row, tuple(shape or row.shape or BRATS_SHAPE), seed, anatomy, contrast)
    out = out.resolve()
    check_vacant(out, overwrite)
    load_template(anatomy)  # a missing anatomy is told before any process starts
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        folder, kept_back = Path(scratch, "new"), Path(scratch, "references")
        for made in (folder, kept_back):
            made.mkdir()
        labelled = [index < cases - unlabelled for index in range(cases)]
        write = partial(write_case, folder, kept_back, order)
        manifest = for_each(
            write, list(enumerate(labelled)), f"{row.name} phantoms", processes, lambda one: str(one[0])
        )
        _write_name_mapping(folder, row, manifest)
        settings = dict(release=row.name, shape=order.shape, seed=seed, anatomy=anatomy, contrast=contrast)
        (folder / MANIFEST).write_text(json.dumps({**settings, "cases": manifest}, indent=1))
        if out.exists():
            out.rename(Path(scratch, "old"))
        folder.rename(out)
        if references:
            references.mkdir(parents=True, exist_ok=True)
            for label in kept_back.iterdir():
                shutil.move(label, references / label.name)
    return manifest


def check_vacant(out: Path, overwrite: bool) -> None:
    """Refuse a path that holds anything but what may be replaced: nothing, or with `overwrite` earlier phantoms."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MANIFEST).is_file():
        raise UserError(f"{out} exists and holds no phantoms ({MANIFEST} is missing): choose another folder")
    if not overwrite:
        raise UserError(f"{out} already holds phantoms: choose another folder or add --overwrite")


def write_case(folder: Path, kept_back: Path, order: Order, case: tuple[int, bool]) -> dict:
    """Write the files of one case and return its row of the manifest; the label of an unlabelled one is kept back."""
    (index, labelled), release = case, order.release
    phantom = make_case(
        order.seed, index, order.shape, release.scheme, order.anatomy, release.sequences, order.contrast
    )
    grade = release.grades[int(phantom.grade == "LGG")] if release.grades else None
    name = release.case_name(index + 1, grade=grade, training=labelled)
    images = {role: as_image(array, phantom) for role, array in phantom.images.items()}
    if release.stack:
        images = {STACK: sitk.JoinSeries([images[sequence] for sequence in release.stack])}
    label = as_image(remap(phantom.labels, release.scheme.trained), phantom)
    if labelled:
        images[LABEL] = label
    else:
        sitk.WriteImage(label, str(kept_back / release.submission.format(case=name)), useCompression=True)
    for role, image in images.items():
        path = folder / release.path(name, role, grade=grade, training=labelled)
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(path), useCompression=True)
    facts = dict(
        grade=phantom.grade, labelled=labelled, foci=phantom.foci, enhancing=bool((phantom.labels == ET).any())
    )
    return dict(case=name, number=index + 1, **facts)


def as_image(array: np.ndarray, phantom: Phantom) -> sitk.Image:
    """An array (x, y, z) as an image with the phantom's geometry."""
    image = sitk.GetImageFromArray(array.T)
    image.SetSpacing([phantom.spacing_mm] * 3)
    image.SetOrigin(phantom.origin_mm)
    return image


def _write_name_mapping(folder: Path, release: Release, manifest: Sequence[Mapping]) -> None:
    """The table of grades and of each patient's names in earlier releases, where the release ships one."""
    columns = NAME_MAPPINGS.get(release.name)
    training = [row for row in manifest if row["labelled"]]
    if not columns or not training:
        return
    root = release.path(training[0]["case"], LABEL).parts[0]
    with (folder / root / "name_mapping.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Grade", *columns])
        for row in training:
            ids = [RELEASES[name].case_name(row["number"]) if name else NO_ID for name in columns.values()]
            table.writerow([row["grade"], *ids])
