"""Where the members of an ensemble doubt: voxel maps per region, and their worth as QU-BraTS measures it.

Mehta et al. 2022, https://arxiv.org/abs/2112.10074: uncertainty is good where it is high on errors and low elsewhere.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.integrate import trapezoid

from nnunet_brats_ext.brats import LABEL_SCHEMES, Head, LabelScheme, to_regions
from nnunet_brats_ext.predictions.folders import (
    Member,
    find_cases,
    images_of_cases,
    open_members,
    problems_between,
    problems_with_heads,
)
from nnunet_brats_ext.predictions.heads import convert, paint
from nnunet_brats_ext.storage.errors import UserError, refuse
from nnunet_brats_ext.storage.images import (
    read_grid,
    read_image,
    read_label_map,
    read_probabilities,
    require_labels,
    write_image,
)
from nnunet_brats_ext.storage.output import staged
from nnunet_brats_ext.storage.parallel import for_each_case

MEASURES = ("entropy", "mutual-information")
SUFFIXES = {"WT": "whole", "TC": "core", "ET": "enhance"}  # QU-BraTS's names of files; other regions keep theirs
CERTAIN, UNSURE = 0, 100  # the scale of the maps

Curves = dict[str, list[float]]


def doubt(members: Iterable[np.ndarray], measure: str = "entropy") -> tuple[np.ndarray, np.ndarray]:
    """The mean probability of members and their uncertainty, both (region, z, y, x); one member in memory at a time.

    entropy: of the mean probability, in bits: 0 where it is 0 or 1, 1 where it is a half. mutual-information: what of
    it comes from the members' disagreement, that is, without the mean of the members' own entropies; zero for one.
    """
    total = own = None
    count = 0
    for member in members:
        if total is None or own is None:
            total, own = np.zeros(member.shape, np.float32), np.zeros(member.shape, np.float32)
        total += member
        if measure == "mutual-information":
            own += binary_entropy(member)
        count += 1
    if total is None or own is None:
        raise UserError("uncertainty needs at least one member")
    mean = total / count
    return mean, np.maximum(binary_entropy(mean) - own / count, 0)


def binary_entropy(probability: np.ndarray) -> np.ndarray:
    """The entropy of a yes-or-no question in bits, within [0, 1]; 0 at the probabilities 0 and 1."""
    yes = np.clip(probability, 0, 1)
    no = 1 - yes
    tiny = np.finfo(np.float32).tiny  # 0 * log 0 is 0
    return -(yes * np.log2(np.maximum(yes, tiny)) + no * np.log2(np.maximum(no, tiny)))


def to_scale(uncertainty: np.ndarray) -> np.ndarray:
    """Uncertainty within [0, 1] as the whole numbers from 0 to 100 that QU-BraTS takes."""
    return np.rint(uncertainty * UNSURE).astype(np.uint8)


def filtered_curves(
    reference: np.ndarray, prediction: np.ndarray, uncertainty: np.ndarray, brain: np.ndarray | None = None
) -> Curves:
    """Curves over the thresholds 0 to 100: what is left when the voxels more uncertain than each are set aside.

    reference, prediction, brain: masks; uncertainty: whole numbers from 0 to 100; all of one shape. `dice`: of the
    voxels left (1 where neither mask has any). `filtered_tp`, `filtered_tn`: the share of true positives and true
    negatives that were set aside (0 where there were none), within the brain if it is given, as in QU-BraTS.
    """
    within = np.True_ if brain is None else brain
    masks = {
        "tp": reference & prediction,
        "fp": ~reference & prediction,
        "fn": reference & ~prediction,
        "brain_tp": reference & prediction & within,
        "brain_tn": ~(reference | prediction) & within,
    }
    left = {name: np.bincount(uncertainty[mask], minlength=UNSURE + 1).cumsum() for name, mask in masks.items()}
    positives = 2 * left["tp"] + left["fp"] + left["fn"]
    dice = np.where(positives, 2 * left["tp"] / np.maximum(positives, 1), 1.0)
    filtered = {}
    for name in ("tp", "tn"):
        count = left[f"brain_{name}"]
        filtered[f"filtered_{name}"] = 1 - count / count[-1] if count[-1] else np.zeros(UNSURE + 1)
    curves = {"dice": dice, **filtered}
    return {name: curve.tolist() for name, curve in curves.items()}


def qu_brats_score(curves: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The areas under the three curves over thresholds scaled to [0, 1], and QU-BraTS's score of them, 1 the best.

    The score rewards Dice that rises as doubt is set aside, and punishes setting aside what was right. The areas are
    those of the challenge's own script at 100 points; at its default of 40 they differ by the coarser steps.
    """
    area = {name: float(trapezoid(curve, dx=1 / UNSURE)) for name, curve in curves.items()}
    score = (area["dice"] + (1 - area["filtered_tp"]) + (1 - area["filtered_tn"])) / 3
    return {**{f"{name}_auc": value for name, value in area.items()}, "score": score}


def map_uncertainty(
    inputs: Sequence[Path],
    out: Path,
    measure: str = "entropy",
    reference: Path | None = None,
    scheme_name: str = "glioma_2017",
    processes: int | None = None,
    images: Path | None = None,
) -> None:
    """Write one map per case and region, CASE_unc_whole.nii.gz and so on, and with a reference uncertainty.json.

    inputs: prediction folders, of members or folds. Probabilities are used where every member has them; of label maps
    alone, the share of votes stands for the probability. reference: label maps as trained. images: as nnU-Net names
    them; the brain, where some sequence is not 0, is then what true positives and true negatives count in.
    """
    if scheme_name not in LABEL_SCHEMES:
        raise UserError(f"scheme {scheme_name!r} is none of {', '.join(LABEL_SCHEMES)}")
    members = open_members(inputs, "if complete")
    if measure == "mutual-information" and len(members) < 2:
        raise UserError("mutual-information measures disagreement: it takes two folders or more")
    scheme = LABEL_SCHEMES[scheme_name]
    head = scheme.head
    refuse(problems_with_heads(members, head), f"bring to the regions of {scheme_name}")
    references = find_cases(reference) if reference else {}
    cases = list(members[0].cases)
    channels = images_of_cases(members[0], images, "find the brain") if images and references else {}
    if references:
        chosen = {case: path for case, path in references.items() if case in members[0].cases}
        refuse(problems_between({str(inputs[0]): members[0].cases, str(reference): chosen}), "score the uncertainty")
    endings = [f"{case}_unc_{SUFFIXES.get(region, region)}" for case in cases for region in head.names]
    with staged(out, endings, inputs) as stage:
        work = partial(_write_case, members, scheme, head, measure, references, channels, stage)
        results = for_each_case(work, cases, "Uncertainty", processes)
        if references:
            summary = summarise(results)
            content = {
                "measure": measure,
                "members": list(map(str, inputs)),
                "true_negatives": "within the brain" if channels else "everywhere",
                "summary": summary,
                "cases": results,
            }
            (stage / "uncertainty.json").write_text(json.dumps(content) + "\n")
    if references:
        print_summary(summary)
        if not channels:
            print("True negatives are of the whole image; with --images they are of the brain, as QU-BraTS has them.")


def summarise(cases: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Region -> the means over cases of the scores and of the curves."""
    regions = next(iter(cases.values()))
    summary = {}
    for region in regions:
        found = [case[region] for case in cases.values()]
        scores = {name: float(np.mean([one["scores"][name] for one in found])) for name in found[0]["scores"]}
        curves = {name: np.mean([one["curves"][name] for one in found], axis=0).tolist() for name in found[0]["curves"]}
        summary[region] = {"scores": scores, "curves": curves}
    return summary


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """A row per region with the areas and the score, and how Dice rises as the most uncertain voxels are set aside."""
    thresholds = (100, 75, 50, 25)
    table = Table("", "score", "Dice AUC", "FTP AUC", "FTN AUC", *(f"Dice at {t}" for t in thresholds))
    for region, found in summary.items():
        scores = [found["scores"][n] for n in ("score", "dice_auc", "filtered_tp_auc", "filtered_tn_auc")]
        dice = [found["curves"]["dice"][t] for t in thresholds]
        table.add_row(region, *(f"{value:.4f}" for value in (*scores, *dice)))
    (console or Console()).print(table)


def _write_case(
    members: Sequence[Member],
    scheme: LabelScheme,
    head: Head,
    measure: str,
    references: Mapping[str, Path],
    channels: Mapping[str, Sequence[Path]],
    stage: Path,
    case: str,
) -> dict[str, Any]:
    mean, uncertainty = doubt((_region_probabilities(member, scheme, head, case) for member in members), measure)
    maps = to_scale(uncertainty)
    geometry = read_grid(members[0].cases[case])
    for region, values in zip(head.names, maps, strict=True):
        write_image(stage / f"{case}_unc_{SUFFIXES.get(region, region)}.nii.gz", values, geometry)
    if case not in references:
        return {}
    truth = to_regions(read_label_map(references[case])[0], scheme.regions)
    predicted = to_regions(paint(mean, head), scheme.regions)
    brain = np.any([read_image(path)[0] != 0 for path in channels[case]], axis=0) if channels else None
    results = {}
    for region, values in zip(head.names, maps, strict=True):
        curves = filtered_curves(truth[region], predicted[region], values, brain)
        results[region] = {"scores": qu_brats_score(curves), "curves": curves}
    return results


def _region_probabilities(member: Member, scheme: LabelScheme, head: Head, case: str) -> np.ndarray:
    if member.head:
        return convert(read_probabilities(member.npz(case)), member.head, head)
    labels = member.label_map(case)
    require_labels(labels, scheme.names, member.cases[case])
    return np.stack(list(to_regions(labels, scheme.regions).values())).astype(np.float32)
