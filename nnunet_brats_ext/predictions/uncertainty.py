"""Voxel-wise uncertainty of an ensemble, and scores of it: pure functions of arrays.

The scores are those of QU-BraTS (Mehta et al. 2022, https://arxiv.org/abs/2112.10074): uncertainty is good where it is
high on errors and low elsewhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.integrate import trapezoid

from nnunet_brats_ext.storage.errors import UserError

MEASURES = ("entropy", "mutual-information")
PERCENT = 100  # of the most uncertain voxels in QU-BraTS's maps; 0 is certain

Curves = dict[str, list[float]]


def mean_and_uncertainty(members: Iterable[np.ndarray], measure: str = "entropy") -> tuple[np.ndarray, np.ndarray]:
    """The mean probability of members and its uncertainty, both (region, z, y, x); one member in memory at a time.

    entropy: of the mean probability, in bits: 0 where it is 0 or 1, 1 where it is a half. mutual-information: the part
    of it that comes from the members' disagreement, that is, without the mean of the members' own entropies; zero for
    one. No members are an error.
    """
    if measure not in MEASURES:
        raise UserError(f"measure {measure!r} is none of {', '.join(MEASURES)}")
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


def to_percent(uncertainty: np.ndarray) -> np.ndarray:
    """Uncertainty within [0, 1] as the whole numbers from 0 to 100 that QU-BraTS takes."""
    return np.rint(uncertainty * PERCENT).astype(np.uint8)


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
    left = {name: np.bincount(uncertainty[mask], minlength=PERCENT + 1).cumsum() for name, mask in masks.items()}
    positives = 2 * left["tp"] + left["fp"] + left["fn"]
    dice = np.where(positives, 2 * left["tp"] / np.maximum(positives, 1), 1.0)
    filtered = {}
    for name in ("tp", "tn"):
        count = left[f"brain_{name}"]
        filtered[f"filtered_{name}"] = 1 - count / count[-1] if count[-1] else np.zeros(PERCENT + 1)
    curves = {"dice": dice, **filtered}
    return {name: curve.tolist() for name, curve in curves.items()}


def qu_brats_score(curves: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The areas under the three curves over thresholds scaled to [0, 1], and QU-BraTS's score of them, 1 the best.

    The score rewards Dice that rises as uncertain voxels are set aside, and punishes setting aside what was right. The
    areas are those of the challenge's own script at 100 points; at its default of 40 they differ by the coarser steps.
    """
    area = {name: float(trapezoid(curve, dx=1 / PERCENT)) for name, curve in curves.items()}
    score = (area["dice"] + (1 - area["filtered_tp"]) + (1 - area["filtered_tn"])) / 3
    return {**{f"{name}_auc": value for name, value in area.items()}, "score": score}


def mean_over_cases(cases: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Region -> the means over cases of the scores and of the curves."""
    regions = next(iter(cases.values()))
    means = {}
    for region in regions:
        found = [case[region] for case in cases.values()]
        scores = {name: float(np.mean([one["scores"][name] for one in found])) for name in found[0]["scores"]}
        curves = {name: np.mean([one["curves"][name] for one in found], axis=0).tolist() for name in found[0]["curves"]}
        means[region] = {"scores": scores, "curves": curves}
    return means
