"""A folder of label maps in, a folder of mended label maps out."""

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from nnunet_brats_ext.brats import SEQUENCES
from nnunet_brats_ext.predictions.folders import Member, images_of_cases, open_members, problems_with_heads
from nnunet_brats_ext.predictions.heads import convert
from nnunet_brats_ext.predictions.rule_sets import RuleSet, describe
from nnunet_brats_ext.predictions.rules import Case
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError, refuse
from nnunet_brats_ext.storage.images import (
    read_grid,
    read_image,
    read_label_map,
    read_probabilities,
    require_labels,
    write_label_map,
)
from nnunet_brats_ext.storage.output import staged
from nnunet_brats_ext.storage.parallel import for_each_case


def postprocess(
    predictions: Path, out: Path, rule_set: RuleSet, images: Path | None = None, processes: int | None = None
) -> None:
    """Apply rules to every label map of a folder; prints how many cases and voxels each of them changed.

    images: nnU-Net's `imagesTs` with CASE_0000.nii.gz and so on, for rules that look at them. Probabilities are read
    from the .npz of the same folder, for rules that weigh them; they are not copied, because they would contradict
    the new label maps.
    """
    member = open_members([predictions], "needed" if rule_set.needs_probabilities else "ignored")[0]
    cases = list(member.cases)
    channels = images_of_rules(member, images) if rule_set.needs_images else {}
    refuse(problems_with_heads([member], rule_set.scheme.head), "postprocess")
    ending = (member.dataset_json or {}).get("file_ending", ".nii.gz")
    with staged(out, cases, [predictions], ending) as stage:
        work = partial(_write_case, member, rule_set, channels, stage, ending)
        changed = for_each_case(work, cases, "Postprocess", processes)
        (stage / "postprocessing_rules.json").write_text(rule_set.to_json())
        for name in ("dataset.json", "plans.json"):
            if (predictions / name).is_file():
                shutil.copyfile(predictions / name, stage / name)
    print_changes(rule_set, list(changed.values()))


def load_case(member: Member, rule_set: RuleSet, channels: Mapping[str, Sequence[Path]], case: str) -> Case:
    """All that the rules need of one case; a label that their scheme lacks is an error."""
    labels, geometry = read_label_map(member.cases[case])
    require_labels(labels, rule_set.scheme.names, member.cases[case])
    details: dict[str, Any] = {}
    if rule_set.needs_images:
        details["images"] = np.stack([read_image(path)[0].astype(np.float32) for path in channels[case]])
        details["t1ce"] = (
            DatasetDescription(member.dataset_json, member.folder / "dataset.json").channel("T1ce")
            if member.dataset_json
            else SEQUENCES.index("T1ce")
        )
    if member.head:
        target = rule_set.scheme.head
        probabilities = convert(read_probabilities(member.npz(case)), member.head, target)
        details["probabilities"] = dict(zip(target.names, probabilities, strict=True))
    return Case(labels, geometry.voxel_volume_mm3, scheme=rule_set.scheme, **details)


def images_of_rules(member: Member, images: Path | None) -> dict[str, list[Path]]:
    if images is None:
        raise UserError("the rule oedema-to-core needs the images: give --images with CASE_0000.nii.gz and so on")
    return images_of_cases(member, images, "postprocess")


def print_changes(rule_set: RuleSet, changed: Sequence[Sequence[int]]) -> None:
    table = Table("rule", "cases changed", "voxels changed", title=f"{len(changed)} cases")
    for rule, voxels in zip(rule_set.rules, np.transpose(changed), strict=True):
        table.add_row(describe(rule), str(np.count_nonzero(voxels)), str(voxels.sum()))
    Console().print(table)


def _write_case(
    member: Member, rule_set: RuleSet, channels: Mapping[str, Sequence[Path]], stage: Path, ending: str, case: str
) -> list[int]:
    labels, changed = rule_set.apply(load_case(member, rule_set, channels, case))
    write_label_map(stage / f"{case}{ending}", labels, read_grid(member.cases[case]))
    return changed
