"""`phantom`: folders of phantoms in the form of a BraTS release, with the tables that it ships beside the images."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_brats_ext.brats import ET, remap
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS, PRESENT_SCHEME, STACK, Layout, find_layout
from nnunet_brats_ext.dataset_conversion.phantoms.anatomy import ANATOMIES, load_template
from nnunet_brats_ext.dataset_conversion.phantoms.case import BRATS_SHAPE, Phantom, make_case
from nnunet_brats_ext.storage.csv_files import to_csv
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import Grid, write_image
from nnunet_brats_ext.storage.json_files import write_json
from nnunet_brats_ext.storage.options import Options, argument, option
from nnunet_brats_ext.storage.output import publish, working_folder, write_text, writing
from nnunet_brats_ext.storage.parallel import for_each
from nnunet_brats_ext.storage.shared_options import processes_option

SMALLEST = 32  # voxels along an axis; with fewer there is no anatomy left
MANIFEST = "phantoms.json"
NO_ID = "NA"
# The releases that ship a name_mapping.csv: column of ids -> the release that it names, None for the TCIA archive.
_2018: Mapping[str, str | None] = {"BraTS_2017_subject_ID": "BraTS2017", "BraTS_2018_subject_ID": "BraTS2018"}
_2019 = {**_2018, "TCGA_TCIA_subject_ID": None, "BraTS_2019_subject_ID": "BraTS2019"}
_2020 = {**_2019, "BraTS_2020_subject_ID": "BraTS2020"}
NAME_MAPPINGS = {"BraTS2018": _2018, "BraTS2019": _2019, "BraTS2020": _2020}


@dataclass(frozen=True)
class PhantomOptions(Options):
    """Options of `phantom`."""

    out: Path = argument("folder to write, with the folders of the release in it", metavar="OUT", writes="folder")
    release: str = option(metavar="NAME", default="BraTS2020", help="whose folders, names and labels")
    cases: int = option(at_least=1, default=12, help="how many")
    unlabelled: int = option(at_least=0, default=0, help="leave the last N without label file")
    references: Path | None = option(
        metavar="DIR", default=None, writes="folder", help="write the labels of those N here, to score with"
    )
    shape: tuple[int, int, int] | None = option(
        *("--size",), metavar=("X", "Y", "Z"), at_least=SMALLEST, default=None, help="voxels (default: the release's)"
    )
    seed: int = option(at_least=0, default=0, help="the same seed gives the same cases")
    anatomy: str = option(
        choices=ANATOMIES, default="auto", help="mni152 needs nilearn; auto takes it where it is installed"
    )
    contrast: float = option(above=0, below=10, default=1.0, help="of tumours; 1 is that of patients")
    processes: int | None = processes_option(aliases=("--processes",))
    overwrite: bool = option(default=False, help="replace the phantoms that OUT holds")


def write_phantoms(out: Path | str, release: str = "BraTS2020", **options: Any) -> list[dict]:
    """Write a folder of synthetic cases in the form of a BraTS release; gives the rows of its manifest.

    options: the fields of `PhantomOptions`. The last `unlabelled` cases come without label, in the folder for
    validation where the release has one. The shape (x, y, z) is the release's own unless given. `references` is a
    folder for the labels of the unlabelled cases, named and numbered like a submission: the organisers of a challenge
    keep these to themselves. `out` appears when all is written; it may be empty before, or hold phantoms if `overwrite`
    is set.
    """
    return write_phantom_folder(PhantomOptions(Path(out), release, **options))


def write_phantom_folder(options: PhantomOptions) -> list[dict]:
    """The same with its options in one object."""
    release, out = find_layout(options.release), options.out.resolve()
    if release.scheme is None:
        release = release.with_scheme(PRESENT_SCHEME)
    _check_places(out, options)
    load_template(options.anatomy)  # says what to install before any process starts
    with working_folder(out) as scratch:
        folder, held_back = scratch / "new", scratch / "references"
        for made in (folder, held_back):
            made.mkdir()
        write = partial(write_phantom, folder, held_back, release, options)
        rows = for_each(
            write,
            range(options.cases),
            f"{release.name} phantoms",
            options.processes,
            lambda index: f"case {index + 1}",
        )
        _write_name_mapping(folder, release, rows)
        write_json(folder / MANIFEST, _manifest(release, options, rows))
        with writing(out):
            publish(folder, out, options.overwrite)
        if references := options.references:
            with writing(references):
                references.mkdir(parents=True, exist_ok=True)
                for label in held_back.iterdir():
                    shutil.move(label, references / label.name)
    return rows


def _check_places(out: Path, options: PhantomOptions) -> None:
    """An error where `out` holds anything but nothing or, with `overwrite`, phantoms; likewise for the references."""
    if options.unlabelled > options.cases:
        raise UserError(f"--unlabelled {options.unlabelled}: expected at most as many as --cases {options.cases}")
    if out.exists() and any(out.iterdir()):
        if not (out / MANIFEST).is_file():
            raise UserError(f"{out} exists and holds no phantoms ({MANIFEST} is missing): choose another folder")
        if not options.overwrite:
            raise UserError(f"{out} already holds phantoms: choose another folder or add --overwrite")
    if (references := options.references) and references.resolve().is_relative_to(out):
        raise UserError(f"--references {references} is inside {out}, next to the cases; choose another folder")


def _manifest(release: Layout, options: PhantomOptions, rows: Sequence[Mapping]) -> dict[str, Any]:
    return {
        "release": release.name,
        "shape": shape_of(release, options),
        "seed": options.seed,
        "anatomy": options.anatomy,
        "contrast": options.contrast,
        "cases": rows,
    }


def shape_of(release: Layout, options: PhantomOptions) -> tuple[int, ...]:
    """Voxels (x, y, z) of the images: as asked for, else the release's own."""
    return options.shape or release.shape or BRATS_SHAPE


def write_phantom(folder: Path, held_back: Path, release: Layout, options: PhantomOptions, index: int) -> dict:
    """Write the files of one case and give its row of the manifest; the label of an unlabelled one is held back."""
    labelled = index < options.cases - options.unlabelled
    phantom = make_case(
        options.seed,
        index,
        shape_of(release, options),
        release.numbering,
        options.anatomy,
        release.sequences,
        options.contrast,
    )
    grade = release.grades[int(phantom.grade == "LGG")] if release.grades else None
    name = release.case_name(index + 1, grade=grade, training=labelled)
    images = dict(phantom.images)
    if release.stack:
        images = {STACK: np.stack([images[sequence] for sequence in release.stack], axis=-1)}
    label = remap(phantom.labels, release.numbering.trained)
    if labelled:
        images[LABEL] = label
    else:
        write_array(held_back / release.submission.format(case=name), label, phantom)
    for role, array in images.items():
        write_array(folder / release.path(name, role, grade=grade, training=labelled), array, phantom)
    return {
        "case": name,
        "number": index + 1,
        "grade": phantom.grade,
        "labelled": labelled,
        "foci": phantom.foci,
        "enhancing": bool((phantom.labels == ET).any()),
    }


def write_array(path: Path, array: np.ndarray, phantom: Phantom) -> None:
    """Write an array (x, y, z) or (x, y, z, t) on the phantom's grid."""
    rest = array.ndim - 3  # one in a 4-D file: a step of 1 from 0 on
    spacing = (*(phantom.spacing_mm,) * 3, *(1.0,) * rest)
    origin = (*phantom.origin_mm, *(0.0,) * rest)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, array.T, Grid(array.shape, spacing, origin, tuple(np.eye(array.ndim).ravel().tolist())))


def _write_name_mapping(folder: Path, release: Layout, cases: Sequence[Mapping]) -> None:
    """The table of grades and of each patient's names in earlier releases, where the release ships one."""
    columns = NAME_MAPPINGS.get(release.name)
    training = [row for row in cases if row["labelled"]]
    if not columns or not training:
        return
    rows = [["Grade", *columns]]
    for row in training:
        ids = [LAYOUTS[name].case_name(row["number"]) if name else NO_ID for name in columns.values()]
        rows.append([row["grade"], *ids])
    root = release.path(training[0]["case"], LABEL).parts[0]
    write_text(folder / root / "name_mapping.csv", to_csv(rows))
