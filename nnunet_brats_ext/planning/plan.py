"""The command `plan`: plans files in nnUNet_preprocessed, a table on the screen, and what to run next."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from nnunet_brats_ext import papers
from nnunet_brats_ext.papers import Footprint
from nnunet_brats_ext.planning.brats_plans import add_configurations
from nnunet_brats_ext.planning.fitting import Fit, shown
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json, write_json
from nnunet_brats_ext.storage.nnunet import find_splits, nnunet_folder

PLAIN_UNET = Footprint(31_198_991, 1, {"fp32": 2237, "mixed": 1387})
"""nnU-Net's PlainConvUNet at six stages, as it plans BraTS; with fewer, an upper bound."""

PLANNERS = {  # plans file -> the planner that makes nnU-Net write it
    "nnUNetPlans": "",
    **{f"nnUNetResEncUNet{size}Plans": f" -pl nnUNetPlannerResEnc{size}" for size in ("M", "L", "XL")},
}


def plan(
    dataset_id: int,
    source: str = "nnUNetPlans",
    name: str = "BraTSPlans",
    gpu_memory_gb: float | None = None,
    gpus: str = "1",
    overwrite: bool = False,
) -> Path:
    """Write the plans `name` beside the plans `source`; the same plans again change nothing, others need `overwrite`.

    Configurations that somebody added to an earlier file of that name are kept, as nnU-Net's planner keeps them.
    gpus: how many share a batch, as `4`, or as `lyu_stage1=4,lyu_stage2=2` for some configurations; else one.
    """
    check_settings(source, name, gpu_memory_gb)
    shares = read_shares(gpus)
    folder = find_preprocessed(dataset_id, source)
    given = read_json(folder / f"{source}.json")
    if any("architecture" not in c for c in given["configurations"].values() if "inherits_from" not in c):
        raise UserError(f"{source}.json is of an older nnU-Net; run: {planning_command(dataset_id, source)}")
    fingerprint = folder / "dataset_fingerprint.json"
    plans, fits = add_configurations(
        given, name, read_json(fingerprint) if fingerprint.exists() else None, gpu_memory_gb, shares
    )
    target = folder / f"{name}.json"
    written = merge(plans, read_json(target) if target.exists() else None, target, overwrite)
    if written:
        write_json(target, plans)

    console = Console()
    show(plans, fits, console)
    if not fingerprint.exists():
        console.print(f"{fingerprint.name} is missing: the median case was taken for the largest.")
    console.print(f"{'Written' if written else 'Nothing new in'} {escape(str(target))}. Next:", soft_wrap=True)
    for command in next_commands(dataset_id, plans, folder, shares):
        console.print(f"  {command}", soft_wrap=True, highlight=False)
    return target


def check_settings(source: str, name: str, gpu_memory_gb: float | None) -> None:
    for plans_name in (source, name):
        if not re.fullmatch(r"[A-Za-z0-9_-]+", plans_name):
            raise UserError(f"plans {plans_name!r}: a name without folder and ending, of letters, digits, - and _")
    if source == name:
        raise UserError(f"-o {name} would replace the plans that it is made from; choose another name")
    if gpu_memory_gb is not None and not gpu_memory_gb > 0:
        raise UserError(f"--gpu-memory-gb {gpu_memory_gb:g}: expected more than 0")


def read_shares(text: str) -> dict[str, int]:
    """Configuration -> how many GPUs share its batch: from a number for all, or CONFIGURATION=NUMBER, with commas."""
    names = list(papers.configurations())
    shares: dict[str, int] = {}
    for word in text.split(","):
        name, _, number = word.rpartition("=")
        if not number.isdecimal() or int(number) < 1:
            raise UserError(f"--gpus {word}: expected a number of at least 1, or CONFIGURATION=NUMBER")
        if name and name not in names:
            raise UserError(f"--gpus {word}: {name} is none of {', '.join(names)}")
        shares |= dict.fromkeys([name] if name else names, int(number))
    return shares


def find_preprocessed(dataset_id: int, source: str) -> Path:
    """The folder of a data set with these plans; without them, an error with the command that makes them."""
    preprocessed = nnunet_folder("nnUNet_preprocessed")
    if preprocessed is None:
        raise UserError("nnUNet_preprocessed is not set: `export nnUNet_preprocessed=/where/nnU-Net/preprocesses`")
    found = sorted(preprocessed.glob(f"Dataset{dataset_id:03d}_*/{source}.json"))
    if len(found) > 1:
        raise UserError(f"several data sets with ID {dataset_id}: {', '.join(path.parent.name for path in found)}")
    if not found:
        raise UserError(
            f"no {source}.json for data set {dataset_id} in {preprocessed}; run: {planning_command(dataset_id, source)}"
        )
    return found[0].parent


def planning_command(dataset_id: int, source: str) -> str:
    planner = PLANNERS.get(source, f" -overwrite_plans_name {source}")
    return f"nnUNetv2_plan_and_preprocess -d {dataset_id} --verify_dataset_integrity{planner}"


def merge(plans: dict[str, Any], earlier: Mapping[str, Any] | None, target: Path, overwrite: bool) -> bool:
    """Take over what somebody added to the earlier file; whether the file has to be written."""
    if earlier is None:
        return True
    for name, configuration in earlier["configurations"].items():
        plans["configurations"].setdefault(name, configuration)
    if plans == earlier:
        return False
    differing = sorted(
        name for name, configuration in plans["configurations"].items()
        if configuration != earlier["configurations"].get(name)
    )  # fmt: skip
    if not overwrite:
        raise UserError(
            f"{target} exists and differs ({', '.join(differing) or 'beside the configurations'}); models may have "
            f"been trained with it. Replace it with --overwrite, or choose another name with -o"
        )
    return True


def show(plans: Mapping[str, Any], fits: Mapping[str, Fit], console: Console) -> None:
    names = ("configuration", "patch (z, y, x)", "batch", "GB", "why")
    table = Table(*(Column(name, no_wrap=name != "why") for name in names), box=SIMPLE, title=plans["plans_name"])
    for name, chosen in fits.items():
        estimate = "" if chosen.estimate_gb is None else f"{chosen.estimate_gb:.1f}"
        paper = papers.find_paper(papers.configurations()[name].paper)
        why = "\n".join([paper.short, *chosen.reasons])
        table.add_row(name, shown(chosen.topology.patch_size), str(chosen.batch_size), estimate, why)
    for name, configuration in plans["configurations"].items():
        if name not in fits and "patch_size" in configuration:
            patch_size, batch_size = configuration["patch_size"], configuration["batch_size"]
            estimate = f"{PLAIN_UNET.gpu_gb(patch_size, batch_size):.1f}" if is_plain_3d(configuration) else ""
            table.add_row(name, shown(patch_size), str(batch_size), estimate, "nnU-Net's own, kept", style="dim")
    console.print(table)
    console.print(
        "GB of each GPU, estimated for mixed precision without torch.compile: activations as counted, 1 GB in reserve. "
        "None is given yet for networks that have not been counted; these keep their paper's patch and batch."
    )


def is_plain_3d(configuration: Mapping[str, Any]) -> bool:
    """Whether the configuration is what the footprint of nnU-Net's network was counted for."""
    architecture = configuration.get("architecture", {})
    return len(configuration["patch_size"]) == 3 and architecture.get("network_class_name", "").endswith(
        "PlainConvUNet"
    )


def next_commands(dataset_id: int, plans: Mapping[str, Any], folder: Path, gpus: Mapping[str, int]) -> Iterator[str]:
    """What makes missing data, and what trains each configuration whose trainer this version has."""
    entries, name = plans["configurations"], plans["plans_name"]
    rows = [one for one in papers.configurations().values() if one.name in entries]
    for source in sorted({one.name if one.resampled else one.base for one in rows}):
        if not (folder / entries[source]["data_identifier"]).is_dir():
            yield f"nnUNetv2_preprocess -d {dataset_id} -plans_name {name} -c {source}"
    found = find_splits(folder.name)
    folds = " ".join(map(str, range(len(found[1])))) if found else "0 1 2 3 4"
    for one in rows:
        # nnU-Net wants a sample for every GPU.
        share = min(gpus.get(one.name, 1), entries[one.name]["batch_size"])
        options = f"-p {name}" + (f" -num_gpus {share}" if share > 1 else "")
        # The next stage learns from what each fold of this one predicts for its own validation cases.
        loop, fold, end = (f"for fold in {folds}; do ", "$fold", "; done") if one.next_stage else ("", "0", "")
        for trainer in papers.trainers().values():
            if trainer.configuration == one.name:
                yield f"{loop}nnUNetv2_train {dataset_id} {one.name} {fold} -tr {trainer.name} {options}{end}"
