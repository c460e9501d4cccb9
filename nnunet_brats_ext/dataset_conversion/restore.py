"""`nnunet_brats restore`: predictions as trained become a submission, in the release's numbering, names and headers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from rich.console import Console

from nnunet_brats_ext.brats import remap
from nnunet_brats_ext.dataset_conversion.releases import RELEASES, Release, find_release
from nnunet_brats_ext.dataset_conversion.scan import scan
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import TOLERANCE_MM, Grid, ending, read_image, to_integers, write_image
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.nnunet import MANIFEST, find_dataset, nnunet_folder, require_folder
from nnunet_brats_ext.storage.output import working_folder
from nnunet_brats_ext.storage.parallel import for_each


@dataclass
class SubmissionCase:
    """One predicted label map, the source image whose header it takes, and what speaks against submitting it."""

    case: str
    path: Path
    release: str
    donor: Path | None = None  # an image of the source, or of the data set where the source is gone
    grid: Grid | None = None  # that image's, or as the manifest remembers it
    violations: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Origin:
    """Where predicted cases come from: their release and, as far as it is known, their data set and source."""

    release: Release
    dataset: Path | None = None
    manifest: Mapping[str, Any] | None = None
    images: Mapping[str, Path] = field(default_factory=dict)  # case -> first image of the source

    def prediction(self, path: Path) -> SubmissionCase:
        case = path.name.removesuffix(".nii.gz")
        found = SubmissionCase(case, path, self.release.name)
        if not self.release.is_case(case):
            found.violations.append(f"{path.name} is not named like {self.release.case_format}.nii.gz")
        known = self.manifest["cases"].get(case) if self.manifest else None
        if self.manifest and known is None:
            found.violations.append(f"is no case of {self.dataset}; name the data set it was predicted for with -d")
        places = [self.images.get(case)]
        if self.dataset:
            places += [self.dataset / folder / f"{case}_0000.nii.gz" for folder in ("imagesTr", "imagesTs")]
        found.donor = next((place for place in places if place and place.is_file()), None)
        found.grid = Grid.from_json(known["grid"]) if known else None
        return found


def restore(
    predictions: Path,
    output: Path,
    dataset_id: int | None = None,
    release: str | None = None,
    source: Path | None = None,
    processes: int = 1,
    console: Console | None = None,
) -> list[Path]:
    """Write a folder of label maps as the release's challenge takes them; gives the files written.

    Headers come from the source images, byte for byte where those are NIfTI. Anything the challenge would refuse is an
    error that lists all of it, and nothing is written. Without a data set or a source, grids cannot be compared.
    """
    console = console or Console()
    files = sorted(path for path in predictions.glob("*.nii.gz") if not path.name.startswith("."))
    if not files:
        raise UserError(f"no .nii.gz file in {predictions}")
    origin = _origin(predictions, dataset_id, release, source)
    checked = for_each(
        check, [origin.prediction(path) for path in files], "Checking", processes, lambda found: found.case
    )
    if any(found.violations for found in checked):
        raise UserError(
            f"{predictions} breaks the rules of {origin.release.name}, and nothing was written:"
            + "".join(f"\n  {found.case}: {violation}" for found in checked for violation in found.violations)
        )
    labels = [origin.dataset / "labelsTr"] if origin.dataset else []
    if output.resolve() in [folder.resolve() for folder in (predictions, *labels)]:
        raise UserError(f"{output} holds predictions or labels as trained; name a new folder with -o")
    names = [origin.release.submission.format(case=found.case) for found in checked]
    if output.exists() and (strays := {path.name for path in output.iterdir()} - set(names)):
        raise UserError(f"{output} holds other files ({', '.join(sorted(strays)[:3])}); name a new folder with -o")
    with working_folder(output.absolute()) as scratch:
        for_each(partial(write, folder=scratch), checked, "Writing", processes, lambda found: found.case)
        output.mkdir(parents=True, exist_ok=True)
        written = [(scratch / name).replace(output / name) for name in names]
    _report(origin, checked, output, console)
    return written


def check(found: SubmissionCase) -> SubmissionCase:
    """Read a prediction and note all that its challenge would refuse, or that is not as the source is."""
    release = RELEASES[found.release]
    try:
        array, grid, _ = read_image(found.path)
        values = set(np.unique(to_integers(array)).tolist())
        if found.donor:
            donor = read_image(found.donor).grid
            found.grid = donor.of_one_volume if len(donor.size) == 4 else donor
    except UserError as error:
        found.violations.append(str(error))
        return found
    if unknown := sorted(values - set(release.scheme.trained)):
        found.violations.append(f"labels {unknown} as trained do not exist in {release.name}")
    as_source = found.grid is not None and grid.size == found.grid.size and grid.shift_mm(found.grid) <= TOLERANCE_MM
    if found.grid is None:
        found.warnings.append("grid not compared, for the source is not known")
    elif grid.size != found.grid.size:
        found.violations.append(f"has {_times(grid.size)} voxels, its source {_times(found.grid.size)}")
    elif not as_source:
        found.violations.append(f"lies up to {grid.shift_mm(found.grid):.3g} mm away from its source")
    for what, expected, actual in (
        ("size", release.shape, grid.size),
        ("origin", release.origin_mm, grid.origin_mm),
    ):
        if expected and not np.allclose(actual, expected, atol=1e-3):
            # A source that is not on the challenge's grid is no fault of the prediction; phantoms are such.
            notes = found.warnings if as_source else found.violations
            notes.append(f"{what} {_times(actual)}, where {release.name} takes {_times(expected)}")
    return found


def write(found: SubmissionCase, folder: Path) -> None:
    """Write one checked prediction under its submission name: labels as released, the donor's own header."""
    release = RELEASES[found.release]
    array, grid, _ = read_image(found.path)
    labels = remap(to_integers(array), release.scheme.trained)
    target = folder / release.submission.format(case=found.case)
    if found.donor and ending(found.donor) != ".mha":
        _write_with_header_of(found.donor, labels, target)
        return
    write_image(target, labels, found.grid or grid)


def _write_with_header_of(donor: Path, labels: np.ndarray, target: Path) -> None:
    """Both of NIfTI's transforms, qform and sform, with their codes: ITK would write its own."""
    header: Any = nibabel.load(donor).header.copy()
    header.set_data_dtype(np.uint8)
    header.extensions.clear()
    header["cal_max"] = header["cal_min"] = 0
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    nibabel.save(kind(labels.transpose(), None, header), target)  # no affine: it would overwrite the header's two


def _origin(predictions: Path, dataset_id: int | None, release: str | None, source: Path | None) -> Origin:
    """What is known of the predicted cases: as told, else from the dataset.json that nnU-Net leaves beside them."""
    dataset = None
    if dataset_id is not None:
        dataset = find_dataset(dataset_id, require_folder("nnUNet_raw"))
    elif release is None:
        dataset = _dataset_beside(predictions)
    manifest = read_json(dataset / MANIFEST) if dataset and (dataset / MANIFEST).is_file() else None
    known = manifest["release"] if manifest else None
    if known and release and find_release(release).name != known:
        raise UserError(f"{dataset} is {known}, not {release}")
    if not (name := known or release):
        raise UserError(f"{dataset} does not tell its release; name it with --release")
    found = find_release(name)
    images: dict[str, Path] = {}
    first = found.roles[0]
    if manifest:
        root = source or Path(manifest["source"])
        for case, about in manifest["cases"].items():
            # A distilled data set has read the channels of another, where a release may keep all in one file.
            role = next((role for role in (first, *found.sequences) if role in about["files"]), None)
            if role:
                images[case] = root / about["files"][role]["path"]
    elif source:
        images = {case.name: case.files[first] for case in scan(source, found.name).cases if first in case.files}
    return Origin(found, dataset, manifest, images)


def _dataset_beside(predictions: Path) -> Path:
    """The data set that a folder of nnUNetv2_predict, or a fold's validation folder, was made from."""
    raw = nnunet_folder("nnUNet_raw")
    for folder in (predictions, *predictions.resolve().parents[:2]):
        if (path := folder / "dataset.json").is_file():
            name = read_json(path).get("name", "")
            if raw and name and (raw / name / MANIFEST).is_file():
                return raw / name
    raise UserError(f"which data set {predictions} belongs to is not to be seen; name it with -d, or --release")


def _report(origin: Origin, checked: Sequence[SubmissionCase], output: Path, console: Console) -> None:
    scheme = origin.release.scheme
    mapping = ", ".join(f"{old} -> {new}" for old, new in sorted(scheme.trained.items()))
    console.print(f"{output}: {len(checked)} cases of {origin.release.name}, labels {mapping}", markup=False)
    warnings: dict[str, list[str]] = {}
    for found in checked:
        for warning in found.warnings:
            warnings.setdefault(warning, []).append(found.case)
    for warning, warned in warnings.items():
        console.print(f"[bold red]note[/]: {warning} ({len(warned)} cases, such as {warned[0]})")
    cases = {found.case for found in checked}
    unlabelled = {name for name, case in (origin.manifest or {"cases": {}})["cases"].items() if not case["labelled"]}
    if cases <= unlabelled and (missing := sorted(unlabelled - cases)):
        console.print(f"[bold red]note[/]: {len(missing)} unlabelled cases have no prediction, such as {missing[0]}")


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
