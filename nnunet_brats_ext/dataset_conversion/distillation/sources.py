"""The cases of a distillation: of a labelled data set, of others with foreign labels, predictions, and what stays out.

Names and headers are checked before any file is read in full, and one error names all that does not fit.
"""

import csv
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_brats_ext.brats import Head, LabelScheme
from nnunet_brats_ext.dataset_conversion.dataset_folder import RawDataset, read_manifest
from nnunet_brats_ext.dataset_conversion.scan import SourceCase, patient_id, scan
from nnunet_brats_ext.predictions.folders import find_cases, open_folders
from nnunet_brats_ext.storage.datasets import FILE as DATASET_JSON
from nnunet_brats_ext.storage.datasets import NO_NORMALISATION, DatasetDescription
from nnunet_brats_ext.storage.errors import UserError, shorten
from nnunet_brats_ext.storage.json_files import read_json

MANUAL, FOREIGN, PSEUDO = "manual", "foreign", "pseudo"  # of two with the same images, the former's label is taken
EXCLUDED = "excluded"
Regions = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Candidate:
    """A case that may enter the new data set, or whose images must stay out of it.

    case: its name at the source. images: in the order of the labelled data set's channels. head: of `npz`.
    identities: the names of its patient. described: what the manifest of its data set says of it. joined: label of its
    label map -> that of the labelled data set, where it is another.
    """

    case: str
    kind: str
    source: Path
    images: tuple[Path, ...]
    label: Path | None = None
    npz: Path | None = None
    head: Head | None = None
    identities: frozenset[str] = frozenset()
    described: Mapping[str, Any] = field(default_factory=dict)
    joined: Mapping[int, int] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """All that it may be excluded by."""
        return self.identities | {self.case}


@dataclass(frozen=True)
class Exclusion:
    """What must not be trained on.

    names: case or patient -> the file or folder that names it. images: cases known by their images. listed: those that
    the user has listed in files, where names may be misspelt.
    """

    names: Mapping[str, Path]
    images: Sequence[Candidate]
    listed: Sequence[Candidate] = ()

    def unknown(self, cases: Iterable[Candidate]) -> dict[Path, list[str]]:
        """List -> the names in it that are none of these cases or their patients."""
        known = frozenset().union(*(case.names for case in cases))
        found: dict[Path, list[str]] = {}
        for listed in self.listed:
            if not listed.names & known:
                found.setdefault(listed.source, []).append(listed.case)
        return found


# ---- channels -------------------------------------------------------------------------------------------------------


def channels_of(description: DatasetDescription) -> tuple[str, ...]:
    """What each channel shows, and how its images come normalised: such are no match for images that do not.

    Derived channels are left out: they are computed anew, and identify nobody.
    """
    pairs = zip(description.acquired, description.channel_names, strict=False)
    return tuple(
        f"{sequence}, {description.normalisation}" if name.casefold() == NO_NORMALISATION.casefold() else sequence
        for sequence, name in pairs
    )


def channel_order(present: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where each wanted channel is among the present ones; other channels are an error.

    Channels of one name, as of a data set that does not say what its channels show, are taken in their order.
    """
    here, there = ([name.casefold() for name in names] for names in (present, wanted))
    if sorted(here) != sorted(there) or (len(set(here)) < len(here) and here != there):
        raise UserError(f"its channels are {list(present)}, those of the labelled data set {list(wanted)}")
    return [here.index(name) for name in there] if len(set(here)) == len(here) else list(range(len(here)))


# ---- labelled data sets ---------------------------------------------------------------------------------------------


def labelled_cases(dataset: RawDataset, kind: str, wanted: RawDataset) -> list[Candidate]:
    """The training cases of a data set, their channels in the order of `wanted`."""
    here, there = dataset.description, wanted.description
    joined = joined_labels(here, there)
    problems = [
        f"{what} {getattr(here, attribute)} differs from {getattr(there, attribute)} of {wanted.folder.name}"
        for what, attribute in (("labels", "declared"), ("regions_class_order", "paint"), ("file_ending", "ending"))
        if getattr(here, attribute) != getattr(there, attribute) and not (joined and attribute == "declared")
    ]
    if here.axes and there.axes and here.axes != there.axes:
        problems.append(f"axes {here.axes} differ from {there.axes} of {wanted.folder.name}")
    order: list[int] = []
    try:
        order = channel_order(channels_of(here), channels_of(there))
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError(f"{dataset.folder}: {'; '.join(problems)}; convert both with `nnunet_brats convert`")
    cases = [
        _candidate(case, kind, dataset.folder, [images[i] for i in order], dataset.cases, label=label, joined=joined)
        for case, (images, label) in training_files(dataset).items()
    ]
    _require_files(cases)
    return cases


def joined_labels(here: DatasetDescription, there: DatasetDescription) -> dict[int, int]:
    """The labels that join others where data sets differ in these alone, as NET of BraTS 2015 joins NCR; else none."""
    return _joined(here.scheme.predicted if here.scheme else {}, here.declared, there.declared)


def can_learn_labels(here: LabelScheme, there: LabelScheme) -> bool:
    """Whether labels of a numbering can stand beside those of the labelled data set: the same regions, or joined."""
    same = here.regions == there.regions or _joined(here.predicted, here.regions, there.regions)
    return bool(same) and here.paint == there.paint


def _joined(predicted: Mapping[int, int], here: Regions, there: Regions) -> dict[int, int]:
    joined = {label: other for label, other in predicted.items() if label != other}
    regions = {name: {joined.get(label, label) for label in labels} for name, labels in here.items()}
    return joined if regions == {name: {*labels} for name, labels in there.items()} else {}


def training_files(dataset: RawDataset) -> dict[str, tuple[list[Path], Path]]:
    """Case -> images by channel and label map, found as nnU-Net finds them: listed in dataset.json, or in labelsTr."""
    folder, description = dataset.folder, dataset.description
    if listed := description.content.get("dataset"):
        try:
            return {
                case: ([folder / image for image in files["images"]], folder / files["label"])
                for case, files in sorted(listed.items())
            }
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f'{description.source}: dataset should be {{CASE: {{"images": [FILE, ...], "label": FILE}}, ...}}'
            ) from error
    count = len(description.acquired)
    return {
        case: (_images(folder / "imagesTr", case, count, description.ending), label)
        for case, label in find_cases(folder / "labelsTr", description.ending).items()
    }


# ---- predictions ----------------------------------------------------------------------------------------------------


def predicted_cases(predictions: Path, images: Path, wanted: RawDataset, probabilities: str) -> list[Candidate]:
    """The cases of a prediction folder, with the images that were predicted; a prediction without images is an error.

    probabilities: `needed` or `if complete`, as `open_folders` takes it. The dataset.json of the prediction says what
    the channels of the images are, since the model was given them; one beside the images must agree.
    """
    (folder,) = open_folders([predictions], probabilities)
    predicted, target = folder.description, wanted.description
    if predicted is None:
        raise UserError(f"{predictions} has no {DATASET_JSON}, which says what its labels and channels are")
    if predicted.labels != target.labels:
        raise UserError(
            f"{predictions} predicts the labels {sorted(predicted.labels)}, {wanted.folder.name} has "
            f"{sorted(target.labels)}"
        )
    if predicted.ending != target.ending:
        raise UserError(f"{predictions} has files in {predicted.ending}, {wanted.folder.name} in {target.ending}")
    channels = channels_of(predicted)
    beside = DatasetDescription.find(images.parent)
    if beside and channels_of(beside) != channels:
        raise UserError(f"{predictions} was predicted from {channels}; {beside.source} says {channels_of(beside)}")
    try:
        order = channel_order(channels, channels_of(target))
    except UserError as error:
        raise UserError(f"{predictions}: {error}") from error
    described = (read_manifest(images.parent) or {}).get("cases", {})
    cases = []
    for case, label in folder.cases.items():
        files = _images(images, case, len(channels), target.ending)
        npz = folder.npz(case) if folder.head else None
        ordered = [files[i] for i in order]
        cases.append(_candidate(case, PSEUDO, predictions, ordered, described, label=label, npz=npz, head=folder.head))
    _require_files(cases)
    return cases


# ---- exclusions -----------------------------------------------------------------------------------------------------


def excluded(paths: Sequence[Path], wanted: RawDataset) -> Exclusion:
    """What must not be trained on, from files and folders, and what the labelled data set holds out to test on.

    A file lists names of cases or patients: the first column of a text or .csv file, or a .json list. A folder of
    images in nnU-Net's form excludes by names and by images, any other folder of such files (label maps, predictions)
    by names, and the folder of a release by both. With the name of a case its patient is excluded.
    """
    found: list[Candidate] = []
    listed: list[Candidate] = []
    count, ending = len(wanted.description.channel_names), wanted.description.ending
    for case in wanted.held_out:
        images = _images(wanted.folder / "imagesTs", case, count, ending)
        found.append(_candidate(case, EXCLUDED, wanted.folder / "labelsTs", images, wanted.cases))
    _require_files(found)
    for path in paths:
        if path.is_file():
            listed += [_excluded_case(name, path) for name in _listed(path)]
        elif path.is_dir() and any(path.glob(f"[!.]*{wanted.description.ending}")):
            found += _in_folder(path, wanted.description)
        elif path.is_dir():
            found += _in_release(path, wanted.description)
        else:
            raise UserError(f"--exclude {path}: no such file or folder")
    names = {name: case.source for case in (*found, *listed) for name in case.names}
    return Exclusion(names, [case for case in found if case.images], listed)


def _listed(path: Path) -> list[str]:
    if path.suffix == ".json":
        if not isinstance(content := read_json(path, object), list):
            raise UserError(f"{path} should hold a list of names")
        return [str(name) for name in content]
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # Excel writes a byte order mark first
            return [row[0].strip() for row in csv.reader(file) if row and row[0].strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no list of names: {error}; save it as UTF-8") from error


def _in_folder(folder: Path, wanted: DatasetDescription) -> list[Candidate]:
    """Images in nnU-Net's form, in the labelled data set's order of channels; or only names, from other files."""
    channels, cases = channels_of(wanted), _with_images(folder, wanted.ending)
    if not cases:
        return [_excluded_case(case, folder) for case in find_cases(folder, wanted.ending)]
    beside = DatasetDescription.find(folder.parent)
    try:
        order = channel_order(channels_of(beside) if beside else channels, channels)
    except UserError as error:
        raise UserError(f"--exclude {folder}: {error}") from error
    files = {case: _images(folder, case, len(channels), wanted.ending) for case in cases}
    found = [_excluded_case(case, folder, tuple(files[case][i] for i in order)) for case in cases]
    _require_files(found)
    return found


def _with_images(folder: Path, ending: str) -> list[str]:
    """The cases of a folder of images in nnU-Net's form."""
    first = f"_0000{ending}"
    return [path.name.removesuffix(first) for path in sorted(folder.glob(f"[!.]*{first}"))]


def names_to_exclude(folder: Path, ending: str = ".nii.gz") -> frozenset[str]:
    """The names of cases and patients that a folder leaves out; images, which are read later, may leave out more."""
    if any(folder.glob(f"[!.]*{ending}")):
        cases = _with_images(folder, ending) or list(find_cases(folder, ending))
        return frozenset().union(*(_excluded_case(case, folder).names for case in cases))
    return frozenset().union(*map(names_of, scan(folder).cases))


def names_of(case: SourceCase) -> frozenset[str]:
    """All that a case of a release may be excluded by."""
    return frozenset({case.name, case.patient, patient_id(case.name), *case.known_as})


def _in_release(folder: Path, wanted: DatasetDescription) -> list[Candidate]:
    """A release as it was unpacked; without images where a case lacks sequences or keeps them all in one file."""
    found = []
    for case in scan(folder).cases:
        complete = set(wanted.acquired) <= set(case.files)
        images = tuple(case.files[name] for name in wanted.acquired) if complete else ()
        found.append(_excluded_case(case.name, folder, images, names_of(case)))
    return found


def _excluded_case(
    case: str, source: Path, images: tuple[Path, ...] = (), identities: Collection[str] = ()
) -> Candidate:
    return Candidate(case, EXCLUDED, source, images, identities=frozenset({patient_id(case), *identities}))


# ---- all of them ----------------------------------------------------------------------------------------------------


def _candidate(
    case: str, kind: str, source: Path, images: Sequence[Path], described: Mapping[str, Mapping[str, Any]], **files: Any
) -> Candidate:
    """A case with what the manifest of its data set says of it."""
    about = described.get(case, {})
    identities = {patient_id(case), *about.get("known_as", ()), about.get("patient", patient_id(case))}
    return Candidate(case, kind, source, tuple(images), identities=frozenset(identities), described=about, **files)


def _images(folder: Path, case: str, count: int, ending: str) -> list[Path]:
    return [folder / f"{case}_{channel:04d}{ending}" for channel in range(count)]


def _require_files(cases: Sequence[Candidate]) -> None:
    missing = [path for case in cases for path in (*case.images, case.label) if path and not path.is_file()]
    if missing:
        raise UserError(f"{cases[0].source} lacks the files {shorten([str(path) for path in missing], 5)}")
