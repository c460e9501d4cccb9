"""What is known of each metric by its name in results: its title, its unit, and whether a small value is good."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

WHOLE = ("dice", "hd95")
"""What BraTS ranked by until 2022."""
LESIONWISE = ("lesionwise_dice", "lesionwise_hd95")
"""What BraTS ranks by from 2023 on."""


class MetricFacts(NamedTuple):
    """A metric. unit: a share lies between 0 and 1; of a metric that is not ours nothing is known."""

    title: str
    unit: Literal["share", "mm", "lesions", "unknown"]
    small_is_good: bool = False

    @property
    def highest(self) -> float:
        return 1 if self.unit == "share" else float("inf")

    @property
    def lowest(self) -> float:
        return float("-inf") if self.unit == "unknown" else 0


METRICS: dict[str, MetricFacts] = {
    "dice": MetricFacts("Dice", "share"),
    "hd95": MetricFacts("HD95 (mm)", "mm", small_is_good=True),
    "hd95_pooled": MetricFacts("HD95, pooled (mm)", "mm", small_is_good=True),
    "sensitivity": MetricFacts("Sensitivity", "share"),
    "specificity": MetricFacts("Specificity", "share"),
    "nsd": MetricFacts("NSD", "share"),
    "nsd_0.5mm": MetricFacts("NSD at 0.5 mm", "share"),
    "lesionwise_dice": MetricFacts("Lesion-wise Dice", "share"),
    "lesionwise_hd95": MetricFacts("Lesion-wise HD95 (mm)", "mm", small_is_good=True),
    "lesionwise_nsd": MetricFacts("Lesion-wise NSD", "share"),
    "lesionwise_nsd_0.5mm": MetricFacts("Lesion-wise NSD at 0.5 mm", "share"),
    "n_tp": MetricFacts("Lesions found", "lesions"),
    "n_fp": MetricFacts("False positive lesions", "lesions", small_is_good=True),
    "n_fn": MetricFacts("Lesions missed", "lesions", small_is_good=True),
}
COUNTS = tuple(name for name, facts in METRICS.items() if facts.unit == "lesions")


def facts_of_metric(name: str) -> MetricFacts:
    return METRICS.get(name, MetricFacts(name, "unknown"))


def headline_metrics(summaries: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Those that BraTS ranks by, of what all summaries (region -> metric -> ...) have; else their first two metrics."""
    everywhere = [set(metrics) for summary in summaries for metrics in summary.values()]
    ranked = LESIONWISE if all(metrics.issuperset(LESIONWISE) for metrics in everywhere) else WHOLE
    first = next(iter(summaries[0].values()))
    shared = [metric for metric in first if all(metric in metrics for metrics in everywhere)]
    return [metric for metric in ranked if metric in shared] or shared[:2]


def is_small_good(name: str) -> bool:
    return facts_of_metric(name).small_is_good
