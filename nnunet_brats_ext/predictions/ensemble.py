"""Prediction folders in, one prediction folder out, with the files that nnU-Net itself would write.

A method looks at all folders once and says how it combines a case (`Combination`); `METHODS` is the table of them.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_brats_ext.brats import BACKGROUND, LABEL_SCHEMES, Head
from nnunet_brats_ext.predictions import fusion
from nnunet_brats_ext.predictions.folders import (
    PLANS,
    PredictionFolder,
    open_folders,
    problems_with_heads,
)
from nnunet_brats_ext.predictions.heads import convert_head, label_probabilities, paint
from nnunet_brats_ext.storage.datasets import AS_TRAINED, DatasetDescription
from nnunet_brats_ext.storage.errors import UserError, refuse, shorten
from nnunet_brats_ext.storage.images import read_grid, require_labels, write_label_map
from nnunet_brats_ext.storage.json_files import write_json
from nnunet_brats_ext.storage.options import Options, option, shown_name
from nnunet_brats_ext.storage.output import staged, writing
from nnunet_brats_ext.storage.parallel import for_each_case
from nnunet_brats_ext.storage.shared_options import overwrite_option, processes_option

GLIOMA = LABEL_SCHEMES["glioma_2017"]
SPACES = ("regions", "labels")

ORDER_NEEDED = "to combine others give --order, from the outermost label to the innermost, such as 2 1 4; "

Predicted = tuple[np.ndarray, np.ndarray | None]  # label map (z, y, x), probabilities (channel, z, y, x)


@dataclass(frozen=True)
class EnsembleOptions(Options):
    """Options of `ensemble`; those that not every method takes are None, or False, where they are not given."""

    inputs: tuple[Path, ...] = option("-i", help="prediction folders")
    out: Path = option("-o", writes="folder", help="output folder")
    method: str = option(default="mean", choices=lambda: METHODS, help="how to combine them")
    weights: tuple[float, ...] | None = option(
        default=None, at_least=0, metavar="X", help="one per folder (mean, majority); default: all alike"
    )
    space: str | None = option(
        default=None,
        choices=SPACES,
        help="average regions, or labels of which the largest wins (mean); default: what all have, or regions",
    )
    order: tuple[int, ...] | None = option(
        default=None,
        at_least=1,
        at_most=255,
        help="labels from the outermost to the innermost (majority, staple); default: as trained, 1 2 3",
    )
    undecided: str | None = option(
        default=None,
        choices=fusion.UNDECIDED,
        help="what voxels become where several labels are as likely (staple): what most members say, with a tumour "
        "label before background, or background; default: vote",
    )
    save_probabilities: bool = option(
        "--save_probabilities",
        default=False,
        aliases=("--save-probabilities",),
        help="write .npz and .pkl too (mean, nested)",
    )
    dtype: str | None = option(
        default=None, choices=("float32", "float16"), help="of saved probabilities; default: float32"
    )
    overwrite: bool = overwrite_option()
    processes: int | None = processes_option()


@dataclass(frozen=True)
class Combination:
    """What a method makes of its folders.

    function: case -> label map and, where the method has some, probabilities. reference: the folder that gives grids,
    plans.json and .pkl. description: the dataset.json of the result. settings: for ensemble.json.
    """

    function: Callable[[str], Predicted]
    reference: PredictionFolder
    description: DatasetDescription | None
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """One way to combine prediction folders.

    help: what it does, in a sentence for the command line. prepare: folders and options -> how a case is combined.
    probabilities: whether it uses them, as `open_folders` takes it. takes: the options that not every method has.
    roles: what each folder is for, in their order; empty where any number of folders count alike.
    """

    help: str
    prepare: Callable[[Sequence[PredictionFolder], EnsembleOptions], Combination]
    probabilities: str
    takes: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()


def ensemble(inputs: Sequence[Path | str], out: Path | str, **options: Any) -> dict[str, Any]:
    """Combine prediction folders into one; options as in `EnsembleOptions`. Gives the content of ensemble.json.

    The folder that is written is one that nnU-Net's own commands take, with .npz and .pkl if probabilities are saved.
    An option that the method does not take is an error.
    """
    given = EnsembleOptions(**dict(options, inputs=inputs, out=out))
    method = METHODS[given.method]
    _check_options(given, method)
    folders = open_folders(given.inputs, method.probabilities)
    combination = method.prepare(folders, given)
    reference = combination.reference
    if given.save_probabilities:
        _check_savable(folders, reference)
    dtype = (given.dtype or "float32") if given.save_probabilities else None
    settings = {"method": given.method, **combination.settings, "members": [str(folder.path) for folder in folders]}
    with staged(given.out, list(reference.cases), given.inputs, reference.ending, given.overwrite) as stage:
        work = partial(_write_case, combination, stage, dtype)
        for_each_case(work, reference.cases, "Ensemble", given.processes)
        write_json(stage / "ensemble.json", settings)
        if combination.description:
            write_json(stage / "dataset.json", combination.description.content)
        if (plans := reference.path / PLANS).is_file():
            shutil.copyfile(plans, stage / PLANS)
    return settings


# ---- methods --------------------------------------------------------------------------------------------------------


def _mean(folders: Sequence[PredictionFolder], options: EnsembleOptions) -> Combination:
    """The mean of probabilities. Folders with one kind of head only are averaged in that head, as nnU-Net does.

    Where both kinds meet, or where it is given, `space` decides: regions (sigmoid probabilities, threshold 0.5) or
    labels (normalised to one, the largest wins). Sums are float32 whatever is saved.
    """
    mixed = len({folder.head.has_regions for folder in folders if folder.head}) == 2
    regions = (options.space or "regions") == "regions"
    reference = next(one for one in folders if one.head and (not mixed or one.head.has_regions == regions))
    target, description = reference.head, reference.description
    assert target is not None and description is not None, "opened with its probabilities"
    if options.space and target.has_regions != regions:
        target, description = _other_head(target, description)
    refuse(problems_with_heads(folders, target), f"average with {reference.path}")
    settings = {"weights": options.weights, "space": "regions" if target.has_regions else "labels"}
    function = partial(_mean_of_case, folders, options.weights, target)
    return Combination(function, reference, description, settings)


def _other_head(head: Head, description: DatasetDescription) -> tuple[Head, DatasetDescription]:
    """The regions of a label head, or the labels of a region head, and the dataset.json of probabilities of these."""
    if not head.has_regions:
        if not description.nested:
            raise UserError(f"--space regions: {description.source} has no regions; leave --space out")
        return description.head(), description
    labels = (BACKGROUND, *sorted(head.labels))
    if set(labels) != description.labels:  # those that are predicted as another, such as NET as NCR, have no channel
        names = {label: name for name, label in AS_TRAINED.items()}
        declared = {"background": BACKGROUND, **{names.get(label, str(label)): label for label in labels[1:]}}
        content = {key: value for key, value in description.content.items() if key != "regions_class_order"}
        description = DatasetDescription({**content, "labels": declared}, description.source)
    return description.head(len(labels)), description


def _mean_of_case(
    folders: Sequence[PredictionFolder], weights: Sequence[float] | None, target: Head, case: str
) -> Predicted:
    one_at_a_time = (_converted(folder, target, case) for folder in folders)
    probabilities = fusion.mean(one_at_a_time, weights)
    return paint(probabilities, target), probabilities


def _converted(folder: PredictionFolder, target: Head, case: str) -> np.ndarray:
    _, _, probabilities = folder.read(case)
    assert probabilities is not None and folder.head is not None, "opened with its probabilities"
    return convert_head(probabilities, folder.head, target)


def _majority(folders: Sequence[PredictionFolder], options: EnsembleOptions) -> Combination:
    """The vote of label maps; probabilities settle ties where every folder has them."""
    first = folders[0]
    labels = _voted_labels(first, options)
    problems = [
        f"{folder.path} has probabilities for the labels {sorted(folder.head.labels)}, the vote is over {list(labels)}"
        for folder in folders
        if folder.head and set(folder.head.labels) != set(labels)
    ]
    refuse(problems, "vote")
    ties = "own voters' mean probability" if first.head else "innermost label"
    settings = {"weights": options.weights, "order": labels, "ties": ties}
    function = partial(_majority_of_case, folders, options.weights, labels)
    return Combination(function, first, first.description, settings)


def _voted_labels(first: PredictionFolder, options: EnsembleOptions) -> tuple[int, ...]:
    """The tumour labels from the outermost to the innermost: as asked, as the folder has them, or as trained."""
    return options.order or (first.description.paint if first.description else ()) or fusion.TUMOUR_LABELS


def _majority_of_case(
    folders: Sequence[PredictionFolder], weights: Sequence[float] | None, labels: Sequence[int], case: str
) -> Predicted:
    one_at_a_time = (_vote(folder, labels, case) for folder in folders)
    return fusion.majority(one_at_a_time, labels, weights), None


def _vote(folder: PredictionFolder, labels: Sequence[int], case: str) -> fusion.LabelVote:
    label_map, _, probabilities = folder.read(case)
    require_labels(label_map, labels, folder.cases[case], ORDER_NEEDED)
    if probabilities is None or folder.head is None:
        return label_map
    of_labels = label_probabilities(probabilities, folder.head)
    return label_map, of_labels[[folder.head.labels.index(label) for label in labels]]


def _staple(folders: Sequence[PredictionFolder], options: EnsembleOptions) -> Combination:
    """Label maps weighed by their agreement with the estimated truth."""
    first = folders[0]
    labels, undecided = _voted_labels(first, options), options.undecided or fusion.UNDECIDED[0]
    function = partial(_staple_of_case, folders, labels, undecided)
    return Combination(function, first, first.description, {"order": labels, "undecided": undecided})


def _staple_of_case(folders: Sequence[PredictionFolder], labels: Sequence[int], undecided: str, case: str) -> Predicted:
    members = [folder.read(case).labels for folder in folders]
    for folder, label_map in zip(folders, members, strict=True):
        require_labels(label_map, labels, folder.cases[case], ORDER_NEEDED)
    return fusion.staple(members, labels, undecided), None


def _two_pass(folders: Sequence[PredictionFolder], options: EnsembleOptions) -> Combination:
    """The first folder of label maps decides ET and NCR, the second oedema against background."""
    first = folders[0]
    return Combination(partial(_two_pass_of_case, folders), first, first.description, {})


def _two_pass_of_case(folders: Sequence[PredictionFolder], case: str) -> Predicted:
    description = folders[0].description
    known = (description.paint if description else ()) or fusion.TUMOUR_LABELS
    first, second = maps = [folder.read(case).labels for folder in folders]
    for folder, labels in zip(folders, maps, strict=True):
        require_labels(labels, known, folder.cases[case])
    return fusion.two_pass(first, second), None


def _nested(folders: Sequence[PredictionFolder], options: EnsembleOptions) -> Combination:
    """Three binary models of WT, TC, ET become one label map; their probabilities are fused where all have them.

    A folder whose dataset.json names its region (such as `"TC": [2, 3]`) is read as that region; in one with a single
    label, or without dataset.json, all but background counts.
    """
    labels = [_labels_of_region(folder, region) for folder, region in zip(folders, GLIOMA.regions, strict=True)]
    first = folders[0]
    content = {"file_ending": first.ending, **(first.description.content if first.description else {})}
    content |= {"labels": GLIOMA.nnunet_labels(), "regions_class_order": list(GLIOMA.paint)}
    settings = {"fused": "probabilities" if first.head else "label maps"}
    return Combination(partial(_nested_of_case, folders, labels), first, DatasetDescription(content), settings)


def _nested_of_case(
    folders: Sequence[PredictionFolder], labels: Sequence[tuple[int, ...] | None], case: str
) -> Predicted:
    regions = np.stack([_region(folder, chosen, case) for folder, chosen in zip(folders, labels, strict=True)])
    fused = fusion.nested(regions)
    return (fusion.paint_masks(fused), None) if fused.dtype == bool else (fusion.paint_masks(fused > 0.5), fused)


def _region(folder: PredictionFolder, labels: tuple[int, ...] | None, case: str) -> np.ndarray:
    """The probability of one region, or its mask in a folder of label maps; labels: None is all but background."""
    label_map, _, probabilities = folder.read(case)
    if probabilities is None or folder.head is None:
        return label_map != BACKGROUND if labels is None else np.isin(label_map, labels)
    channels = folder.head.channels
    if labels in channels:
        return probabilities[channels.index(labels)]
    wanted = [i for i, (label, *_) in enumerate(channels) if label != BACKGROUND and (not labels or label in labels)]
    return probabilities[wanted].sum(0)


def _labels_of_region(folder: PredictionFolder, region: str) -> tuple[int, ...] | None:
    """The labels of a region in the numbering of a folder; None where everything but background is that region."""
    declared = folder.description.declared if folder.description else {}
    if region in declared:
        return declared[region]
    if len(others := sorted(set(declared) - {"background"})) > 1:
        raise UserError(
            f"{folder.path} is read as {region}, but its dataset.json has {', '.join(others)}: give the folder of a "
            f"model of {region} alone, or one whose dataset.json names it, such as {GLIOMA.nnunet_labels()[region]}"
        )
    return None


METHODS: Mapping[str, Method] = {
    "mean": Method(
        "of probabilities (.npz), any trainers and heads.",
        _mean,
        "needed",
        ("weights", "space", "save_probabilities", "dtype"),
    ),
    "majority": Method(
        "of label maps, with the tie rule of Lyu and Shu.", _majority, "if complete", ("weights", "order")
    ),
    "staple": Method(
        "of label maps, weighed by their agreement as SimpleITK's multi-label STAPLE does.",
        _staple,
        "ignored",
        ("order", "undecided"),
    ),
    "two-pass": Method("A decides ET and NCR, B oedema.", _two_pass, "ignored", roles=("for ET and NCR", "for oedema")),
    "nested": Method(
        f"binary models of {', '.join(GLIOMA.regions)}, in this order.",
        _nested,
        "if complete",
        ("save_probabilities", "dtype"),
        roles=tuple(GLIOMA.regions),
    ),
}


def describe_methods() -> str:
    """All methods in a line, for the help of `nnunet_brats ensemble`."""
    return " ".join(f"{name}: {method.help}" for name, method in METHODS.items())


# ---- checks and files -----------------------------------------------------------------------------------------------


def _check_options(options: EnsembleOptions, method: Method) -> None:
    special = {name for one in METHODS.values() for name in one.takes}
    for field in fields(options):
        if field.name in special - {*method.takes} and getattr(options, field.name) != field.default:
            raise UserError(f"--method {options.method} takes no {shown_name(field)}")
    folders = len(options.inputs)
    if method.roles and len(method.roles) != folders:
        roles = ", ".join(method.roles)
        raise UserError(f"--method {options.method} takes {len(method.roles)} folders ({roles}), not {folders}")
    if options.weights is not None:
        fusion.check_weights(options.weights)
        if len(options.weights) != folders:
            raise UserError(f"--weights {len(options.weights)} numbers for {folders} folders: give one for each")


def _check_savable(folders: Sequence[PredictionFolder], reference: PredictionFolder) -> None:
    if without := [str(folder.path) for folder in folders if folder.head is None]:
        raise UserError(
            f"--save_probabilities: there are none to save, since {', '.join(without)} has no .npz or no dataset.json"
        )
    if missing := [case for case in reference.cases if not (reference.path / f"{case}.pkl").is_file()]:
        raise UserError(f"{reference.path} lacks the .pkl beside the .npz of {shorten(missing)}; predict them again")


def _write_case(combination: Combination, stage: Path, dtype: str | None, case: str) -> None:
    labels, probabilities = combination.function(case)
    reference = combination.reference
    if dtype and probabilities is not None:
        with writing(npz := stage / f"{case}.npz"):
            np.savez_compressed(npz, probabilities=probabilities.astype(dtype))
        shutil.copyfile(reference.path / f"{case}.pkl", stage / f"{case}.pkl")
    write_label_map(stage / f"{case}{reference.ending}", labels, read_grid(reference.cases[case]))
