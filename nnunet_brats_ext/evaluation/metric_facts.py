"""What is known of each metric by its name in results: its title, its unit, and whether a small value is good."""

import re
from typing import Literal, NamedTuple

WHOLE = ("dice", "hd95")
"""What BraTS ranked by until 2022."""
LESIONWISE = ("lesionwise_dice", "lesionwise_hd95")
"""What BraTS ranks by from 2023 on, in most tasks; `Preset.ranked` has each."""


class MetricFacts(NamedTuple):
    """A metric. unit: a share lies between 0 and 1; of a metric that is not ours nothing is known.

    signed: whether it may be negative.
    """

    title: str
    unit: Literal["share", "mm", "ml", "lesions", "unknown"]
    small_is_good: bool = False
    signed: bool = False

    @property
    def highest(self) -> float:
        return 1 if self.unit == "share" else float("inf")

    @property
    def lowest(self) -> float:
        return float("-inf") if self.unit == "unknown" or self.signed else 0


def _detection_facts(which: str, words: str) -> dict[str, MetricFacts]:
    """Counts and shares of lesions. which: the beginning of their names, of all lesions or of one size."""
    counts = which.removeprefix("lesion_")
    return {
        f"{counts}n_tp": MetricFacts(f"{words} found", "lesions"),
        f"{counts}n_fp": MetricFacts(f"False positives ({words.lower()})" if counts else _FALSE, "lesions", True),
        f"{counts}n_fn": MetricFacts(f"{words} missed", "lesions", small_is_good=True),
        f"{which}precision": MetricFacts(f"{words}: precision", "share"),
        f"{which}recall": MetricFacts(f"{words}: recall", "share"),
        f"{which}f1": MetricFacts(f"{words}: F1", "share"),
    }


_FALSE = "False positive lesions"
_WHOLE_FACTS: dict[str, MetricFacts] = {
    "dice": MetricFacts("Dice", "share"),
    "hd95": MetricFacts("HD95 (mm)", "mm", small_is_good=True),
    "hd95_pooled": MetricFacts("HD95, pooled (mm)", "mm", small_is_good=True),
    "sensitivity": MetricFacts("Sensitivity", "share"),
    "ppv": MetricFacts("PPV", "share"),
    "specificity": MetricFacts("Specificity", "share"),
    "nsd": MetricFacts("NSD", "share"),  # of results before 0.3, whose names say no tolerance
    "reference_ml": MetricFacts("Reference volume (ml)", "ml"),
    "prediction_ml": MetricFacts("Predicted volume (ml)", "ml"),
    "volume_error_ml": MetricFacts("Volume error (ml)", "ml", signed=True),
    "absolute_volume_error_ml": MetricFacts("Absolute volume error (ml)", "ml", small_is_good=True),
}
_DETECTION_FACTS: dict[str, MetricFacts] = {
    **_detection_facts("lesion_", "Lesions"),
    **_detection_facts("large_", "Large lesions"),
    **_detection_facts("small_", "Small lesions"),
}
DETECTION = tuple(_DETECTION_FACTS)
METRICS = {**_WHOLE_FACTS, **_DETECTION_FACTS}
_NSD = re.compile(r"nsd_([\d.]+)(mm|voxel)")
_BY_LESION = "lesionwise_"


def facts_of_metric(name: str) -> MetricFacts:
    if name in METRICS:
        return METRICS[name]
    if name.startswith(_BY_LESION) and (of_whole := facts_of_metric(name.removeprefix(_BY_LESION))).unit != "unknown":
        title = of_whole.title
        return of_whole._replace(title=f"Lesion-wise {title}")
    if nsd := _NSD.fullmatch(name):
        return MetricFacts(f"NSD at {nsd[1]} {nsd[2]}", "share")
    return MetricFacts(name, "unknown")


def is_small_good(name: str) -> bool:
    return facts_of_metric(name).small_is_good


def has_better(name: str) -> bool:
    """Whether one value is better than another: not so of volumes, nor of an error that has a sign."""
    facts = facts_of_metric(name)
    return facts.unit != "ml" or facts.small_is_good
