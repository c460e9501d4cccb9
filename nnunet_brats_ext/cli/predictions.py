"""What `ensemble`, `postprocess`, `relabel` and `uncertainty` print."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from nnunet_brats_ext.predictions.ensemble import EnsembleOptions, ensemble
from nnunet_brats_ext.predictions.postprocess import Changes, PostprocessOptions, postprocess
from nnunet_brats_ext.predictions.relabel import RelabelOptions, relabel
from nnunet_brats_ext.predictions.rule_sets import describe_rule
from nnunet_brats_ext.predictions.uncertainty_maps import UncertaintyOptions, map_uncertainty


def run_ensemble(options: EnsembleOptions) -> None:
    settings = ensemble(**vars(options))
    shown = ", ".join(f"{name} {value}" for name, value in settings.items() if name != "members" and value is not None)
    print(f"written: {options.out} ({shown})")


def run_postprocess(options: PostprocessOptions) -> None:
    changes = postprocess(**vars(options))
    print_changes(changes)
    if changes.saved:
        print("saved as", changes.saved)


def run_relabel(options: RelabelOptions) -> None:
    mapping = relabel(**vars(options))
    changed = ", ".join(f"{old} is now {new}" for old, new in mapping.items() if old != new)
    print(f"written: {options.out} ({changed or 'no value changes'})")


def run_uncertainty(options: UncertaintyOptions) -> None:
    result = map_uncertainty(**vars(options))
    print(f"written: {options.out} ({result['measure']} of {result['from']})")
    if "summary" in result:
        print_summary(result["summary"])
        if not options.images:
            print("True negatives are of the whole image; with --images they are of the brain, as QU-BraTS has them.")


def print_changes(changes: Changes, console: Console | None = None) -> None:
    """A row per rule: how many cases and voxels it changed."""
    table = Table("rule", "cases changed", "voxels changed", title=f"{len(changes.voxels)} cases")
    for rule, voxels in zip(changes.rule_set.rules, np.transpose([*changes.voxels.values()]), strict=True):
        table.add_row(describe_rule(rule), str(np.count_nonzero(voxels)), str(voxels.sum()))
    (console or Console()).print(table)


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """A row per region with the areas and the score, and how Dice rises as the most uncertain voxels are set aside."""
    thresholds = (100, 75, 50, 25)
    table = Table("", "score", "Dice AUC", "FTP AUC", "FTN AUC", *(f"Dice at {t}" for t in thresholds))
    for region, found in summary.items():
        scores = [found["scores"][n] for n in ("score", "dice_auc", "filtered_tp_auc", "filtered_tn_auc")]
        dice = [found["curves"]["dice"][t] for t in thresholds]
        table.add_row(region, *(f"{value:.4f}" for value in (*scores, *dice)))
    (console or Console()).print(table)
