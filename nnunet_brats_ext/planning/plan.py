"""The command `plan`: nnU-Net's plans with the papers' configurations in them, as a file beside them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from nnunet_brats_ext import papers
from nnunet_brats_ext.planning.brats_plans import add_configurations
from nnunet_brats_ext.planning.fitting import Fit
from nnunet_brats_ext.storage.errors import UserError, did_you_mean
from nnunet_brats_ext.storage.json_files import check_schema, read_json, write_json
from nnunet_brats_ext.storage.nnunet import datasets_with_id, find_splits, require_folder, require_known, train_command
from nnunet_brats_ext.storage.options import Options, argument, option
from nnunet_brats_ext.storage.plans import read_plans as plans_in
from nnunet_brats_ext.storage.plans import resolve
from nnunet_brats_ext.storage.shared_options import gpu_memory_option

PLANNERS = {  # plans file -> the planner that makes nnU-Net write it
    "nnUNetPlans": "",
    **{f"nnUNetResEncUNet{size}Plans": f" -pl nnUNetPlannerResEnc{size}" for size in ("M", "L", "XL")},
}
LENGTHS = {"type": "array", "items": {"type": "number", "exclusiveMinimum": 0}, "minItems": 3, "maxItems": 3}
FINGERPRINT = {
    "type": "object",
    "required": ["shapes_after_crop", "spacings"],
    "properties": {
        key: {"type": "array", "items": LENGTHS, "minItems": 1} for key in ("shapes_after_crop", "spacings")
    },
}
STAGES = {"type": "object", "required": ["features_per_stage"], "properties": {"features_per_stage": {"type": "array"}}}
NNUNETS_FOLDS = 5  # which nnU-Net draws where a data set has no splits_final.json
NEEDED = (  # of a configuration in nnU-Net's plans
    "spacing", "median_image_size_in_voxels", "patch_size", "batch_size", "data_identifier", "architecture"
)  # fmt: skip


@dataclass(frozen=True)
class PlanOptions(Options):
    """What plans are made from, what for, and what they are called."""

    dataset_id: int = argument("a data set that nnU-Net has planned", metavar="ID", at_least=1, at_most=999)
    source: str = option("-p", default="nnUNetPlans", metavar="PLANS", help="plans to start from")
    name: str = option(default="BraTSPlans", metavar="PLANS", help="name of the new plans")
    gpu_memory_gb: float | None = gpu_memory_option()
    gpus: str = option(
        default="1", metavar="N", help="that share a batch: 4, or lyu_stage1=4,lyu_stage2=4 for some configurations"
    )
    overwrite: bool = option(default=False, help="replace plans of that name that differ")


@dataclass(frozen=True)
class Planned:
    """What `plan` has chosen.

    file: of the plans. fits: what was chosen for each configuration of a paper. gpus: how many share a batch, by
    configuration. written: whether the file is new or changed. fingerprint: nnU-Net's file of the sizes of all cases;
    None where it is missing, and the median case counts as the largest.
    """

    dataset_id: int
    file: Path
    plans: Mapping[str, Any]
    fits: Mapping[str, Fit]
    gpus: Mapping[str, int]
    written: bool
    fingerprint: Path | None


def plan(dataset_id: int, **options: Any) -> Planned:
    """Write nnU-Net's plans with the papers' configurations under another name. options: those of `PlanOptions`.

    The same plans again change nothing; others need `overwrite`. Configurations that somebody added to an earlier file
    of that name are kept, as nnU-Net's planner keeps them.
    """
    given = PlanOptions(dataset_id, **options)
    check_names(given)
    gpus = read_gpus(given.gpus)
    folder = find_preprocessed(dataset_id, given.source)
    source = read_plans(folder / f"{given.source}.json", dataset_id)
    file = folder / "dataset_fingerprint.json"
    fingerprint = file if file.exists() else None
    plans, fits = add_configurations(
        source, given.name, read_fingerprint(fingerprint) if fingerprint else None, given.gpu_memory_gb, gpus
    )
    target = folder / f"{given.name}.json"
    written = merge(plans, plans_in(target) if target.exists() else None, target, given.overwrite)
    if written:
        write_json(target, plans)
    return Planned(dataset_id, target, plans, fits, gpus, written, fingerprint)


def check_names(options: PlanOptions) -> None:
    for flag, plans in (("-p", options.source), ("--name", options.name)):
        if not re.fullmatch(r"[A-Za-z0-9_-]+", plans):
            raise UserError(f"{flag} {plans!r}: a name without folder and ending, of letters, digits, - and _")
    if options.source == options.name:
        raise UserError(f"--name {options.name} would replace the plans that it is made from; choose another name")


def read_gpus(text: str) -> dict[str, int]:
    """Configuration -> how many GPUs share its batch: from a number for all, or CONFIGURATION=NUMBER, with commas."""
    names = list(papers.configurations())
    gpus: dict[str, int] = {}
    for word in text.split(","):
        name, _, number = word.rpartition("=")
        if not number.isdecimal() or int(number) < 1:
            raise UserError(f"--gpus {word}: expected a number of at least 1, or CONFIGURATION=NUMBER")
        if name and name not in names:
            hint = did_you_mean(name, names)
            raise UserError(f"--gpus {word}: {name} is none of {', '.join(names)}{hint}")
        gpus |= dict.fromkeys([name] if name else names, int(number))
    return gpus


def find_preprocessed(dataset_id: int, source: str) -> Path:
    """The folder of a data set with these plans; without them, an error with the command that makes them."""
    preprocessed = require_folder("nnUNet_preprocessed")
    found = [folder for folder in datasets_with_id(dataset_id, preprocessed) if (folder / f"{source}.json").is_file()]
    if len(found) > 1:
        raise UserError(f"several data sets with ID {dataset_id}: {', '.join(folder.name for folder in found)}")
    if not found:
        require_known(dataset_id, preprocessed)
        raise UserError(
            f"no {source}.json for data set {dataset_id} in {preprocessed}; run: {planning_command(dataset_id, source)}"
        )
    return found[0]


def read_plans(file: Path, dataset_id: int) -> dict[str, Any]:
    """The plans that nnU-Net has made, with everything that is needed of them."""
    plans = plans_in(file)
    entries = plans["configurations"]
    if plans.get("transpose_forward") not in [list(order) for order in permutations(range(3))]:
        raise UserError(f"{file}: transpose_forward should be an order of 0, 1, 2")
    if any("architecture" not in entry for entry in entries.values() if "inherits_from" not in entry):
        raise UserError(f"{file.name} is of an older nnU-Net; run: {planning_command(dataset_id, file.stem)}")
    for name in entries:
        resolved = resolve(entries, name)
        if missing := [key for key in NEEDED if key not in resolved]:
            raise UserError(f"{file}: configuration {name!r} lacks {', '.join(missing)}")
        check_schema(resolved["architecture"]["arch_kwargs"], STAGES, file)
    return plans


def read_fingerprint(file: Path) -> dict[str, Any]:
    """nnU-Net's dataset_fingerprint.json, with the sizes and spacings of all cases."""
    fingerprint = read_json(file)
    check_schema(fingerprint, FINGERPRINT, file)
    if len(fingerprint["shapes_after_crop"]) != len(fingerprint["spacings"]):
        raise UserError(f"{file}: shapes_after_crop and spacings should be lists with an entry per case")
    return fingerprint


def planning_command(dataset_id: int, source: str) -> str:
    planner = PLANNERS.get(source, f" -overwrite_plans_name {source}")
    return f"nnUNetv2_plan_and_preprocess -d {dataset_id} --verify_dataset_integrity{planner}"


def merge(plans: dict[str, Any], earlier: Mapping[str, Any] | None, target: Path, overwrite: bool) -> bool:
    """Take over what somebody added to the earlier file; whether the file has to be written."""
    if earlier is None:
        return True
    kept = earlier["configurations"]
    for name, configuration in kept.items():
        plans["configurations"].setdefault(name, configuration)
    if plans == earlier:
        return False
    differing = sorted(
        name for name, configuration in plans["configurations"].items() if configuration != kept.get(name)
    )
    if not overwrite:
        raise UserError(
            f"{target} exists and differs ({', '.join(differing) or 'beside the configurations'}); models may have "
            f"been trained with it. Replace it with --overwrite, or choose another name with --name"
        )
    return True


# ---- what to run next ------------------------------------------------------------------------------------------------


def folds_of(dataset: str, *places: Path) -> range:
    """The folds of a data set: those of its splits_final.json, or as many as nnU-Net draws where it has none."""
    found = find_splits(dataset, *places)
    return range(len(found[1]) if found else NNUNETS_FOLDS)


def missing_data(planned: Planned) -> Iterator[str]:
    """The configurations whose preprocessed data the papers' configurations need, and that are not there."""
    entries, rows = planned.plans["configurations"], papers.configurations().values()
    for source in sorted({one.name if one.resampled else one.base for one in rows if one.name in entries}):
        if not (planned.file.parent / entries[source]["data_identifier"]).is_dir():
            yield source


def next_commands(planned: Planned) -> Iterator[str]:
    """What makes missing data, and what trains every trainer that a paper has for these configurations."""
    dataset, name = planned.dataset_id, planned.plans["plans_name"]
    for source in missing_data(planned):
        yield f"nnUNetv2_preprocess -d {dataset} -plans_name {name} -c {source}"
    folds = " ".join(map(str, folds_of(planned.file.parent.name)))
    for trainer in papers.trainers().values():
        if trainer.configuration in planned.fits and not trainer.as_written_of:
            gpus = gpus_of(planned, trainer.configuration)
            options = ["-num_gpus", str(gpus)] if gpus > 1 else []
            command = train_command(dataset, trainer.configuration, "$fold", trainer.name, name, options)
            yield f"for fold in {folds}; do {command}; done"


def gpus_of(planned: Planned, configuration: str) -> int:
    """On how many GPUs a configuration trains: as many as asked for, but nnU-Net wants a sample for each."""
    return min(planned.gpus.get(configuration, 1), planned.plans["configurations"][configuration]["batch_size"])
