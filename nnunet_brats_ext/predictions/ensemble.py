"""Prediction folders in, one prediction folder out, with the files that nnU-Net itself would write.

Each method is a function of one case that returns its label map and, where it has some, its probabilities.
"""

import inspect
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_brats_ext.brats import BACKGROUND, LABEL_SCHEMES, Head
from nnunet_brats_ext.predictions import fusion as rules
from nnunet_brats_ext.predictions.folders import Member, open_members, problems_with_heads
from nnunet_brats_ext.predictions.heads import convert, label_probabilities, paint
from nnunet_brats_ext.storage.errors import UserError, refuse
from nnunet_brats_ext.storage.images import read_grid, read_probabilities, require_labels, write_label_map
from nnunet_brats_ext.storage.output import staged
from nnunet_brats_ext.storage.parallel import for_each_case

GLIOMA = LABEL_SCHEMES["glioma_2017"]
AS_TRAINED = tuple(GLIOMA.paint)  # the order of a vote's labels where no dataset.json tells another

Predicted = tuple[np.ndarray, np.ndarray | None]  # label map (z, y, x), probabilities (channel, z, y, x)


def ensemble(method: str, inputs: Sequence[Path], out: Path, **options: Any) -> None:
    """Run one of `METHODS`; an option that the method does not know is an error."""
    function = METHODS[method]
    if strangers := sorted(set(options) - set(inspect.signature(function).parameters)):
        raise UserError(f"method {method} takes no {', '.join(strangers)}")
    function(inputs, out, **options)


def ensemble_mean(
    inputs: Sequence[Path],
    out: Path,
    weights: Sequence[float] | None = None,
    space: str = "regions",
    save_probabilities: bool = False,
    dtype: str = "float32",
    processes: int | None = None,
) -> None:
    """Average the probabilities of members, each with its own trainer, head and folds; equal weights by default.

    space: where members of both heads meet, `regions` (sigmoid probabilities, threshold 0.5) or `labels` (normalised
    to one, the largest wins). Members with one kind of head only are averaged in that head, as nnU-Net does.
    dtype: of the probabilities that are saved; sums are always float32.
    """
    members = open_members(inputs, "needed")
    heads = {member.folder: member.head for member in members if member.head}
    mixed = len({head.has_regions for head in heads.values()}) == 2
    if mixed:
        source, target = next((f, h) for f, h in heads.items() if h.has_regions == (space == "regions"))
    else:
        source, target = next(iter(heads.items()))
    refuse(problems_with_heads(members, target), f"average with {source}")
    reference = next(member for member in members if member.folder == source)
    function = partial(_mean_of_case, members, _weights(weights, members), target)
    settings = {"method": "mean", "weights": weights, "space": "regions" if target.has_regions else "labels"}
    write_predictions(function, members, reference, out, settings, dtype if save_probabilities else None, processes)


def ensemble_majority(
    inputs: Sequence[Path],
    out: Path,
    weights: Sequence[float] | None = None,
    order: Sequence[int] | None = None,
    processes: int | None = None,
) -> None:
    """Vote over label maps; probabilities settle ties where every member has them for every case.

    order: the tumour labels from the outermost to the innermost; by default the first member's dataset.json tells,
    or 1 2 3. `2 1 4` votes over label maps in the numbering of BraTS until 2022.
    """
    members = open_members(inputs, "if complete")
    declared = (members[0].dataset_json or {}).get("regions_class_order")
    labels = tuple(order or declared or AS_TRAINED)
    refuse(
        [
            f"{member.folder} has probabilities for the labels {sorted(member.head.labels)}, the vote is over {labels}"
            for member in members
            if member.head and set(member.head.labels) != set(labels)
        ],
        "ensemble",
    )
    ties = "own voters' mean probability" if members[0].head else "innermost label"
    settings = {"method": "majority", "weights": weights, "order": labels, "ties": ties}
    function = partial(_vote_of_case, members, _weights(weights, members), labels)
    write_predictions(function, members, members[0], out, settings, processes=processes)


def ensemble_two_pass(inputs: Sequence[Path], out: Path, processes: int | None = None) -> None:
    """Let the first folder of label maps decide ET and NCR, the second oedema against background (Henry et al.)."""
    if len(inputs) != 2:
        raise UserError(f"two-pass takes two folders, the first deciding ET and NCR; got {len(inputs)}")
    members = open_members(inputs, "ignored")
    function = partial(_two_pass_of_case, members)
    write_predictions(function, members, members[0], out, {"method": "two-pass"}, processes=processes)


def ensemble_nested(
    inputs: Sequence[Path],
    out: Path,
    save_probabilities: bool = False,
    dtype: str = "float32",
    processes: int | None = None,
) -> None:
    """Fuse three binary models, given in the order WT, TC, ET, into one label map by strict nesting (Hashemi et al.).

    A folder whose dataset.json names its region (such as `"TC": [2, 3]`) is read as that region; in one with a single
    label, or without dataset.json, all but background counts. Where all three have probabilities these are fused.
    """
    if len(inputs) != 3:
        raise UserError(f"nested takes three folders, of WT, TC and ET in this order; got {len(inputs)}")
    members = open_members(inputs, "if complete")
    labels = [_region_labels(member, region) for member, region in zip(members, GLIOMA.regions, strict=True)]
    function = partial(_nested_of_case, members, labels)
    scheme = {"labels": GLIOMA.nnunet_labels(), "regions_class_order": list(GLIOMA.paint)}
    fused = {"file_ending": ".nii.gz", **(members[0].dataset_json or {}), **scheme}
    reference = replace(members[0], dataset_json=fused)
    settings = {"method": "nested"}
    write_predictions(function, members, reference, out, settings, dtype if save_probabilities else None, processes)


METHODS: Mapping[str, Callable[..., None]] = {
    "mean": ensemble_mean,
    "majority": ensemble_majority,
    "two-pass": ensemble_two_pass,
    "nested": ensemble_nested,
}


def write_predictions(
    function: Callable[[str], Predicted],
    members: Sequence[Member],
    reference: Member,
    out: Path,
    settings: Mapping[str, Any],
    dtype: str | None = None,
    processes: int | None = None,
) -> None:
    """Run `function` on every case and write a folder that nnU-Net's own commands take as a prediction.

    Geometry, dataset.json, plans.json and the .pkl of each case come from `reference`; `ensemble.json` tells what was
    done. dtype: of the probabilities to save; None saves none.
    """
    cases = list(reference.cases)
    if dtype and any(member.head is None for member in members):
        raise UserError("there are no probabilities to save: not every member has .npz and dataset.json")
    if dtype and (missing := [c for c in cases if not (reference.folder / f"{c}.pkl").is_file()]):
        raise UserError(f"{reference.folder} lacks the .pkl beside the .npz of {', '.join(missing)}")
    folders = [member.folder for member in members]
    ending = (reference.dataset_json or {}).get("file_ending", ".nii.gz")
    with staged(out, cases, folders, ending) as stage:
        work = partial(_write_case, function, reference, stage, ending, dtype)
        for_each_case(work, cases, "Ensemble", processes)
        settings = {**settings, "members": [str(folder) for folder in folders]}
        (stage / "ensemble.json").write_text(json.dumps(settings, indent=2) + "\n")
        if reference.dataset_json:
            (stage / "dataset.json").write_text(json.dumps(reference.dataset_json, indent=4) + "\n")
        if (reference.folder / "plans.json").is_file():
            shutil.copyfile(reference.folder / "plans.json", stage / "plans.json")


def _write_case(
    function: Callable[[str], Predicted], reference: Member, stage: Path, ending: str, dtype: str | None, case: str
) -> None:
    labels, probabilities = function(case)
    if dtype and probabilities is not None:
        np.savez_compressed(stage / f"{case}.npz", probabilities=probabilities.astype(dtype))
        shutil.copyfile(reference.folder / f"{case}.pkl", stage / f"{case}.pkl")
    write_label_map(stage / f"{case}{ending}", labels, read_grid(reference.cases[case]))


def _mean_of_case(members: Sequence[Member], weights: Sequence[float], target: Head, case: str) -> Predicted:
    one_at_a_time = (convert(read_probabilities(m.npz(case)), m.head, target) for m in members if m.head)
    probabilities = rules.mean(one_at_a_time, weights)
    return paint(probabilities, target), probabilities


def _vote_of_case(members: Sequence[Member], weights: Sequence[float], labels: Sequence[int], case: str) -> Predicted:
    one_at_a_time = ((m.label_map(case), _label_probabilities(m, labels, case)) for m in members)
    return rules.majority(one_at_a_time, labels, weights), None


def _label_probabilities(member: Member, labels: Sequence[int], case: str) -> np.ndarray | None:
    if member.head is None:
        return None
    probabilities = label_probabilities(read_probabilities(member.npz(case)), member.head)
    return probabilities[[member.head.labels.index(label) for label in labels]]


def _two_pass_of_case(members: Sequence[Member], case: str) -> Predicted:
    known = (members[0].dataset_json or {}).get("regions_class_order") or AS_TRAINED
    first, second = maps = [member.label_map(case) for member in members]
    for member, labels in zip(members, maps, strict=True):
        require_labels(labels, known, member.cases[case])
    return rules.two_pass(first, second), None


def _nested_of_case(members: Sequence[Member], labels: Sequence[tuple[int, ...] | None], case: str) -> Predicted:
    if all(member.head for member in members):
        regions = [_region_probability(member, chosen, case) for member, chosen in zip(members, labels, strict=True)]
        probabilities = rules.nested(np.stack(regions))
        return rules.paint_masks(probabilities > 0.5), probabilities
    maps = [member.label_map(case) for member in members]
    masks = [m != BACKGROUND if c is None else np.isin(m, c) for m, c in zip(maps, labels, strict=True)]
    return rules.paint_masks(rules.nested(np.stack(masks))), None


def _region_labels(member: Member, region: str) -> tuple[int, ...] | None:
    """The labels of a region in a member's numbering; None where everything but background is that region."""
    declared = dict((member.dataset_json or {}).get("labels", {}))
    if region in declared:
        return tuple(np.atleast_1d(declared[region]).tolist())
    if len(others := sorted(set(declared) - {"background", "ignore"})) > 1:
        raise UserError(f"{member.folder} has no region {region} but {', '.join(others)}; which of them is meant?")
    return None


def _region_probability(member: Member, labels: tuple[int, ...] | None, case: str) -> np.ndarray:
    probabilities = read_probabilities(member.npz(case))
    channels = member.head.channels if member.head else ()
    if labels in channels:
        return probabilities[channels.index(labels)]
    wanted = [i for i, (label, *_) in enumerate(channels) if label != BACKGROUND and (not labels or label in labels)]
    return probabilities[wanted].sum(0)


def _weights(weights: Sequence[float] | None, members: Sequence[Member]) -> Sequence[float]:
    weights = weights or [1.0] * len(members)
    if len(weights) != len(members) or min(weights) < 0 or not sum(weights) > 0:
        raise UserError(f"weights {list(weights)} do not fit {len(members)} members: one number each, none below zero")
    return weights
