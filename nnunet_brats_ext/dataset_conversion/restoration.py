"""`restore`: predictions as trained become a submission, in the release's numbering, names and headers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from nnunet_brats_ext.brats import remap
from nnunet_brats_ext.dataset_conversion.dataset_folder import read_manifest
from nnunet_brats_ext.dataset_conversion.layouts import Layout, find_layout, layout_of_manifest
from nnunet_brats_ext.dataset_conversion.scan import scan
from nnunet_brats_ext.dataset_conversion.sources import source_number, sources_of
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError, shorten
from nnunet_brats_ext.storage.images import (
    NIFTI_ENDINGS,
    TOLERANCE_MM,
    Grid,
    ending,
    read_grid,
    read_image,
    to_integers,
    write_image,
)
from nnunet_brats_ext.storage.nnunet import MANIFEST, find_dataset, nnunet_folder, require_folder
from nnunet_brats_ext.storage.options import Options, argument, option
from nnunet_brats_ext.storage.output import staged, writing
from nnunet_brats_ext.storage.parallel import for_each
from nnunet_brats_ext.storage.shared_options import overwrite_option, processes_option, scheme_option

ENDING = ".nii.gz"  # of predictions and of submissions


@dataclass(frozen=True)
class RestoreOptions(Options):
    """Options of `restore`."""

    predictions: Path = argument("folder of label maps as trained", metavar="PRED")
    out: Path = option("-o", writes="folder", metavar="OUT", help="folder of the submission")
    dataset_id: int | None = option(
        "-d",
        metavar="ID",
        at_least=1,
        at_most=999,
        default=None,
        help="data set of the cases (default: as the dataset.json of PRED says)",
    )
    release: str | None = option(metavar="NAME", default=None, help="where there is no data set")
    layout: Path | None = option(metavar="FILE", default=None, help="the same for an own layout")
    scheme: str | None = scheme_option("of the labels to write, where it is not the release's own")
    any_name: bool = option(default=False, help="take cases of any name, as opaque names under a container's /input")
    source: Path | None = option(
        metavar="SOURCE", default=None, help="where the release's images are now (default: where they were converted)"
    )
    overwrite: bool = overwrite_option()
    processes: int | None = processes_option()


@dataclass
class SubmissionCase:
    """One predicted label map. violations: what its challenge would refuse. warnings: what it may refuse.

    donor: the image whose header it takes: of the source, or of the data set where the source is gone and the data set
    has it unturned. grid: of that image, or as the manifest has it.
    """

    case: str
    path: Path
    layout: Layout
    donor: Path | None = None
    grid: Grid | None = None
    violations: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Submission:
    """A folder of label maps as the challenge takes them.

    unpredicted: unlabelled cases of the data set that have no prediction, where all others have one.
    """

    folder: Path
    layouts: Sequence[Layout]
    files: Sequence[Path]
    cases: Sequence[SubmissionCase]
    unpredicted: Sequence[str]


@dataclass(frozen=True)
class Origin:
    """Where predicted cases come from: their release and, as far as it is known, their data set and source.

    images: case -> first image of the source.
    """

    layouts: Sequence[Layout]
    dataset: Path | None = None
    manifest: Mapping[str, Any] | None = None
    images: Mapping[str, Path] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return " + ".join(dict.fromkeys(layout.name for layout in self.layouts))

    @property
    def cases(self) -> Mapping[str, Mapping[str, Any]]:
        return self.manifest["cases"] if self.manifest else {}

    def prediction(self, path: Path) -> SubmissionCase:
        case = path.name.removesuffix(ENDING)
        known = self.cases.get(case)
        layout = self.layouts[min(source_number(known) if known else 0, len(self.layouts) - 1)]
        found = SubmissionCase(case, path, layout)
        if not layout.is_case(case):
            form = layout.written or layout.case
            found.violations.append(f"{path.name} is not named like {form}.nii.gz; --any-name takes any name")
        if self.manifest and known is None:
            found.violations.append(f"is no case of {self.dataset}; name the data set it was predicted for with -d")
        places = [self.images.get(case)]
        if self.dataset and not (known and "source_grid" in known):  # whose own images have been turned
            places += [self.dataset / folder / f"{case}_0000{ENDING}" for folder in ("imagesTr", "imagesTs")]
        found.donor = next((place for place in places if place and place.is_file()), None)
        found.grid = Grid.from_json(known.get("source_grid") or known["grid"]) if known else None
        return found

    def of_release(self, files: Sequence[Path]) -> list[Path]:
        """Without the cases that are held out of the release's training data, where others are predicted as well."""
        held_out = {name for name, case in self.cases.items() if case.get("held_out")}
        return [path for path in files if path.name.removesuffix(ENDING) not in held_out] or list(files)

    def unpredicted(self, predicted: Sequence[str]) -> list[str]:
        """The unlabelled cases without prediction, where predictions are of unlabelled cases only."""
        unlabelled = {name for name, case in self.cases.items() if not case["labelled"]}
        return sorted(unlabelled - set(predicted)) if set(predicted) <= unlabelled else []


def restore(predictions: Path | str, out: Path | str, **options: Any) -> Submission:
    """Write a folder of label maps as the release's challenge takes them; `options`: the fields of `RestoreOptions`.

    Headers come from the source images, byte for byte where those are NIfTI. What the challenge would refuse is an
    error that lists all of it, and nothing is written. Without a data set or a source, grids cannot be compared.
    """
    return restore_predictions(RestoreOptions(Path(predictions), Path(out), **options))


def restore_predictions(options: RestoreOptions) -> Submission:
    """The same with its options in one object."""
    predictions, out = options.predictions, options.out
    if not predictions.is_dir():
        raise UserError(f"{predictions} {'is no folder' if predictions.exists() else 'does not exist'}")
    files = sorted(path for path in predictions.glob(f"*{ENDING}") if not path.name.startswith("."))
    if not files:
        raise UserError(f"no {ENDING} file in {predictions}")
    origin = find_origin(options)
    if out.resolve() in _folders_of_label_maps(predictions, origin.dataset):
        raise UserError(f"{out} holds predictions or labels as trained; name a new folder with -o")
    cases = [origin.prediction(path) for path in origin.of_release(files)]
    names = [found.layout.submission.format(case=found.case) for found in cases]
    if out.exists() and (others := sorted({path.name for path in out.iterdir()} - set(names))):
        raise UserError(f"{out} holds other files ({shorten(others, 3)}); name a new folder with -o")
    with staged(out, [name.removesuffix(ENDING) for name in names], overwrite=options.overwrite) as folder:
        restored = for_each(
            partial(restore_case, folder=folder), cases, "Restoring", options.processes, lambda found: found.case
        )
        if any(found.violations for found in restored):
            raise UserError(
                f"{predictions} breaks the rules of {origin.name}, and nothing was written:"
                + "".join(f"\n  {found.case}: {violation}" for found in restored for violation in found.violations)
            )
    return Submission(
        out, origin.layouts, [out / name for name in names], restored, origin.unpredicted([one.case for one in cases])
    )


def _folders_of_label_maps(predictions: Path, dataset: Path | None) -> list[Path]:
    return [folder.resolve() for folder in (predictions, *([dataset / "labelsTr"] if dataset else []))]


def restore_case(found: SubmissionCase, folder: Path) -> SubmissionCase:
    """Check a prediction and, unless its challenge would refuse it, write it under its submission name."""
    layout = found.layout
    try:
        image = read_image(found.path)
        if found.donor:
            donor = read_grid(found.donor, right_angles=True)
            found.grid = donor.of_one_volume if len(donor.size) == 4 else donor
        if found.grid and image.grid.axes != found.grid.axes:
            image = image.turned(found.grid.axes)  # the conversion had turned the case
        grid, labels = image.grid, to_integers(image.array)
    except UserError as error:
        found.violations.append(str(error))
        return found
    if unknown := sorted(set(np.unique(labels).tolist()) - set(layout.numbering.trained)):
        found.violations.append(f"labels {unknown} as trained do not exist in {layout.name}")
    compare_grids(found, grid, layout)
    if not found.violations:
        target = folder / layout.submission.format(case=found.case)
        released = remap(labels, layout.numbering.trained)
        if found.donor and ending(found.donor) in NIFTI_ENDINGS:
            write_with_header_of(found.donor, released, target)
        else:
            write_image(target, released, found.grid or grid)
    return found


def compare_grids(found: SubmissionCase, grid: Grid, layout: Layout) -> None:
    """Note where the grid of a prediction is not that of its source, or not that which the challenge takes."""
    as_source = found.grid is not None and grid.difference(found.grid, TOLERANCE_MM) is None
    if found.grid is None:
        found.warnings.append("grid not compared, because the source is not known")
    elif grid.size != found.grid.size:
        found.violations.append(f"has {_times(grid.size)} voxels, its source {_times(found.grid.size)}")
    elif not as_source:
        found.violations.append(f"lies up to {grid.shift_mm(found.grid):.3g} mm away from its source")
    for what, expected, actual in (
        ("size", layout.shape, grid.size),
        ("origin", layout.origin_mm, grid.origin_mm),
    ):
        # Not TOLERANCE_MM: these are whole numbers that the release has set and no scanner measured; formats keep them.
        if expected and not np.allclose(actual, expected, atol=1e-3):
            # A source that is not on the challenge's grid is no fault of the prediction; phantoms are such.
            notes = found.warnings if as_source else found.violations
            notes.append(f"{what} {_times(actual)}, where {layout.name} takes {_times(expected)}")


def write_with_header_of(donor: Path, voxels: np.ndarray, target: Path) -> None:
    """Write an array (z, y, x) in its number type with both of NIfTI's transforms and their codes, as a file has them.

    That is why nibabel writes here and not `storage.images`: ITK would make one transform of the two.
    """
    header: Any = nibabel.load(donor).header.copy()
    header.set_data_dtype(voxels.dtype)
    header.extensions.clear()
    header["cal_max"] = header["cal_min"] = 0
    with writing(target):  # no affine: it would overwrite the header's two transforms
        nibabel.save(nibabel.Nifti1Image(voxels.transpose(), None, header), target)


def find_origin(options: RestoreOptions) -> Origin:
    """Where the predicted cases come from: as the user says, else as the dataset.json beside the predictions does."""
    dataset = None
    if options.dataset_id is not None:
        dataset = find_dataset(options.dataset_id, require_folder("nnUNet_raw"))
    elif options.release is None and options.layout is None:
        dataset = _dataset_beside(options.predictions)
    manifest = read_manifest(dataset) if dataset else None
    known = manifest.get("release") if manifest else None
    if known and options.release and find_layout(options.release).name != known:
        raise UserError(f"{dataset} is {known}, not {options.release}")
    if not known and not options.release and not options.layout:
        raise UserError(f"{dataset} does not say which release it is; name it with --release, or --layout FILE")
    layouts = [_as_asked(layout, options) for layout in _layouts(manifest, options)]
    if manifest:
        return Origin(layouts, dataset, manifest, _images_of_manifest(manifest, layouts, options.source))
    first = layouts[0].roles[0]
    scanned = scan(options.source, layouts[0]).cases if options.source else []
    images = {case.name: case.files[first] for case in scanned if first in case.files}
    return Origin(layouts, dataset, manifest, images)


def _layouts(manifest: Mapping[str, Any] | None, options: RestoreOptions) -> list[Layout]:
    """The layout of each source, as the conversion used it, or the one that the user names."""
    if options.layout:
        return [Layout.read(options.layout)]
    if manifest and manifest.get("release"):
        return [layout_of_manifest(source) for source in sources_of(manifest)]
    return [find_layout(str(options.release))]


def _as_asked(layout: Layout, options: RestoreOptions) -> Layout:
    if options.scheme:
        layout = layout.with_scheme(options.scheme)
    if not layout.scheme:
        raise UserError(f"{layout.name} leaves open how labels are numbered; name the numbering with --scheme")
    return layout.with_any_name() if options.any_name else layout


def _images_of_manifest(manifest: Mapping[str, Any], layouts: Sequence[Layout], source: Path | None) -> dict[str, Path]:
    """Case -> its first image in the source, which may have moved since the conversion."""
    sources = sources_of(manifest)
    if source and len(sources) > 1:
        raise UserError(f"--source {source}: the data set has {len(sources)} sources; restore it where they all are")
    images = {}
    for case, about in manifest["cases"].items():
        number = min(source_number(about), len(layouts) - 1)
        layout, root = layouts[number], source or Path(str(sources[number].get("source", "")))
        # A distilled data set has read the channels of another, where a release may keep all in one file.
        role = next((role for role in (layout.roles[0], *layout.sequences) if role in about["files"]), None)
        if role:
            images[case] = root / about["files"][role]["path"]
    return images


def _dataset_beside(predictions: Path) -> Path:
    """The data set that a folder of nnUNetv2_predict, or a fold's validation folder, was made from."""
    raw = nnunet_folder("nnUNet_raw")
    for folder in (predictions, *predictions.resolve().parents[:2]):
        if description := DatasetDescription.find(folder):
            name = description.name
            if raw and name and (raw / name / MANIFEST).is_file():
                return raw / name
    raise UserError(f"no dataset.json says which data set {predictions} belongs to; name it with -d, or --release")


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
