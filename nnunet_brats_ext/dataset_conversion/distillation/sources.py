"""What goes into a distillation: a labelled data set, data sets with labels of others, predictions, what to keep out.

All of it is looked at before anything is read in full, and one error names all that does not fit.
"""

import csv
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_brats_ext.brats import BACKGROUND, Head
from nnunet_brats_ext.dataset_conversion.scan import patient_id, scan
from nnunet_brats_ext.predictions.folders import find_cases, open_folders
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.nnunet import MANIFEST

MANUAL, FOREIGN, PSEUDO = "manual", "foreign", "pseudo"  # where two are the same images, the former's label wins
EXCLUDED = "excluded"
DATASET_JSON = "dataset.json"


@dataclass(frozen=True)
class Candidate:
    """A case that may enter the new data set, or whose images must stay out of it.

    case: its name at the source. images: in the order of the labelled data set's channels. head: of `npz`.
    identities: the names of its patient. described: what the manifest of its data set says of it.
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

    @property
    def names(self) -> frozenset[str]:
        """All that it may be excluded by."""
        return self.identities | {self.case}


@dataclass(frozen=True)
class Exclusion:
    """What must not be trained on. names: case or patient -> where it stands; images: cases known by their images.

    listed: those that someone wrote down, perhaps with a slip of the pen.
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


@dataclass(frozen=True)
class Dataset:
    """A data set in nnUNet_raw; `described` is the cases of its manifest, if `nnunet_brats convert` wrote one."""

    folder: Path
    dataset_json: Mapping[str, Any]
    described: Mapping[str, Mapping[str, Any]]

    @classmethod
    def open(cls, folder: Path) -> "Dataset":
        return cls(folder, read_json(folder / DATASET_JSON), _described(folder))

    @property
    def ending(self) -> str:
        return self.dataset_json["file_ending"]

    @property
    def labels(self) -> set[int]:
        return label_values(self.dataset_json)


def channels_of(dataset_json: Mapping[str, Any]) -> tuple[str, ...]:
    """What each channel shows. One that was normalised beforehand is told from one that nnU-Net normalises."""
    names = [dataset_json["channel_names"][str(i)] for i in range(len(dataset_json["channel_names"]))]
    sequences = dataset_json.get("brats_sequences") or names
    return tuple(
        f"{sequence}, {name}" if name.casefold() == "nonorm" and sequence != name else sequence
        for sequence, name in zip(sequences, names, strict=True)
    )


def channel_order(present: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where each wanted channel lies among the present ones, by name; sets of names that differ are an error."""
    here, there = ([name.casefold() for name in names] for names in (present, wanted))
    if sorted(here) != sorted(there) or (len(set(here)) < len(here) and here != there):
        raise UserError(f"its channels are {list(present)}, those of the labelled data set {list(wanted)}")
    return [here.index(name) for name in there] if len(set(here)) == len(here) else list(range(len(here)))


def label_values(dataset_json: Mapping[str, Any]) -> set[int]:
    """All labels that a dataset.json declares, background included."""
    values = (value if isinstance(value, list) else [value] for value in dataset_json["labels"].values())
    return {BACKGROUND}.union(*values)


def labelled_cases(dataset: Dataset, kind: str, wanted: Dataset) -> list[Candidate]:
    """The training cases of a data set, their channels in the order of `wanted`."""
    problems = []
    for key in ("labels", "regions_class_order", "file_ending"):
        here, there = dataset.dataset_json.get(key), wanted.dataset_json.get(key)
        if here != there:
            problems.append(f"{key} {here} differs from {there} of {wanted.folder.name}")
    try:
        order = channel_order(channels_of(dataset.dataset_json), channels_of(wanted.dataset_json))
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise UserError(f"{dataset.folder}: {'; '.join(problems)}; convert both with `nnunet_brats convert`")
    cases = []
    for case, (images, label) in training_files(dataset).items():
        described = dataset.described.get(case, {})
        ordered = tuple(images[i] for i in order)
        cases.append(
            Candidate(
                case, kind, dataset.folder, ordered, label, identities=_identities(case, described), described=described
            )
        )
    _require_files(cases)
    return cases


def training_files(dataset: Dataset) -> dict[str, tuple[list[Path], Path]]:
    """Case -> images by channel and label map, found as nnU-Net finds them: listed in dataset.json, or in labelsTr."""
    if listed := dataset.dataset_json.get("dataset"):
        return {
            case: ([dataset.folder / image for image in files["images"]], dataset.folder / files["label"])
            for case, files in sorted(listed.items())
        }
    count = len(dataset.dataset_json["channel_names"])
    return {
        case: (_images(dataset.folder / "imagesTr", case, count, dataset.ending), label)
        for case, label in find_cases(dataset.folder / "labelsTr", dataset.ending).items()
    }


def predicted_cases(predictions: Path, images: Path, wanted: Dataset, probabilities: str) -> list[Candidate]:
    """The cases of a prediction folder, with the images that were predicted; a prediction without images is an error.

    probabilities: `needed` or `if complete`, as `open_folders` takes it. What the channels of the images are says the
    dataset.json of the prediction, since the model was fed with them; one beside the images must agree.
    """
    (folder,) = open_folders([predictions], probabilities)
    if folder.description is None:
        raise UserError(f"{predictions} has no {DATASET_JSON}, which tells what its labels and channels are")
    predicted = folder.description.content
    if (values := label_values(predicted)) != wanted.labels:
        raise UserError(f"{predictions} predicts the labels {sorted(values)}, {wanted.folder.name} has {wanted.labels}")
    if (ending := predicted["file_ending"]) != wanted.ending:
        raise UserError(f"{predictions} has files in {ending}, {wanted.folder.name} in {wanted.ending}")
    channels = channels_of(predicted)
    beside = images.parent / DATASET_JSON
    if beside.is_file() and channels_of(read_json(beside)) != channels:
        raise UserError(f"{predictions} was predicted from {channels}; {beside} says {channels_of(read_json(beside))}")
    try:
        order = channel_order(channels, channels_of(wanted.dataset_json))
    except ValueError as error:
        raise UserError(f"{predictions}: {error}") from error
    described = _described(images.parent)
    cases = []
    for case, label in folder.cases.items():
        files = _images(images, case, len(channels), wanted.ending)
        about = described.get(case, {})
        ordered = tuple(files[i] for i in order)
        npz = folder.npz(case) if folder.head else None
        cases.append(
            Candidate(case, PSEUDO, predictions, ordered, label, npz, folder.head, _identities(case, about), about)
        )
    _require_files(cases)
    return cases


def excluded(paths: Sequence[Path], wanted: Dataset) -> Exclusion:
    """What must not be trained on, from files and folders.

    A file lists names of cases or patients: the first column of a text or .csv file, or a .json list. A folder of
    images in nnU-Net's form counts by names and by images, any other folder of such files (label maps, predictions) by
    names, and the folder of a release by both. With the name of a case its patient is excluded.
    """
    found: list[Candidate] = []
    listed: list[Candidate] = []
    for path in paths:
        if path.is_file():
            listed += [_kept_out(name, path) for name in _listed(path)]
        elif path.is_dir() and any(path.glob(f"[!.]*{wanted.ending}")):
            found += _in_folder(path, wanted)
        elif path.is_dir():
            found += _in_release(path, wanted)
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
        with path.open(newline="", encoding="utf-8-sig") as file:  # Excel begins it with a mark
            return [row[0].strip() for row in csv.reader(file) if row and row[0].strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no list of names: {error}; save it as UTF-8") from error


def _in_folder(folder: Path, wanted: Dataset) -> list[Candidate]:
    """Images in nnU-Net's form, in the labelled data set's order of channels; or only names, from other files."""
    channels, first = channels_of(wanted.dataset_json), f"_0000{wanted.ending}"
    cases = [path.name.removesuffix(first) for path in sorted(folder.glob(f"[!.]*{first}"))]
    if not cases:
        return [_kept_out(case, folder) for case in find_cases(folder, wanted.ending)]
    beside = folder.parent / DATASET_JSON
    order = channel_order(channels_of(read_json(beside)) if beside.is_file() else channels, channels)
    files = {case: _images(folder, case, len(channels), wanted.ending) for case in cases}
    found = [_kept_out(case, folder, tuple(files[case][i] for i in order)) for case in cases]
    _require_files(found)
    return found


def _in_release(folder: Path, wanted: Dataset) -> list[Candidate]:
    """A release as it was unpacked; without images where a case lacks sequences or keeps them all in one file."""
    sequences = [name.split(",")[0] for name in channels_of(wanted.dataset_json)]
    found = []
    for case in scan(folder).cases:
        images = tuple(case.files[name] for name in sequences) if set(sequences) <= set(case.files) else ()
        found.append(_kept_out(case.name, folder, images, {case.patient, *case.known_as}))
    return found


def _kept_out(case: str, source: Path, images: tuple[Path, ...] = (), identities: Collection[str] = ()) -> Candidate:
    return Candidate(case, EXCLUDED, source, images, identities=frozenset({patient_id(case), *identities}))


def _images(folder: Path, case: str, count: int, ending: str) -> list[Path]:
    return [folder / f"{case}_{channel:04d}{ending}" for channel in range(count)]


def _described(dataset: Path) -> Mapping[str, Mapping[str, Any]]:
    """What a data set's manifest says of its cases; nothing where there is none of ours."""
    return read_json(dataset / MANIFEST).get("cases", {}) if (dataset / MANIFEST).is_file() else {}


def _identities(case: str, described: Mapping[str, Any]) -> frozenset[str]:
    return frozenset({patient_id(case), *described.get("known_as", ()), described.get("patient", patient_id(case))})


def _require_files(cases: Sequence[Candidate]) -> None:
    missing = [path for case in cases for path in (*case.images, case.label) if path and not path.is_file()]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(f"{cases[0].source} needs {', '.join(map(str, missing[:5]))}{more}")
