"""The manifest of a distilled data set: where each case comes from, what was left out and why. And its short form."""

from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from nnunet_brats_ext import __version__
from nnunet_brats_ext.dataset_conversion.distillation.examination import Examination
from nnunet_brats_ext.dataset_conversion.distillation.selection import Selection
from nnunet_brats_ext.dataset_conversion.distillation.sources import MANUAL, PSEUDO, Candidate, Dataset, channels_of
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.nnunet import MANIFEST

FORMAT = 1


def manifest(
    labelled: Dataset,
    kept: Mapping[str, Candidate],
    patients: Mapping[str, str],
    examined: Mapping[str, Examination],
    selection: Selection,
    folds_from: str,
    fingerprint: str,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Like that of a conversion, so that the same commands read it, with `kind`, `source` and `confidence` per case."""
    sequences = [name.split(",")[0] for name in channels_of(labelled.dataset_json)]
    cases = {}
    for key, case in kept.items():
        found = examined[key]
        cases[key] = {
            "labelled": True,
            "kind": case.kind,
            "source": str(case.source.resolve()),
            "name_at_source": case.case,
            "patient": patients[key],
            "known_as": sorted(case.identities - {patients[key]}),
            "grade": case.described.get("grade"),
            "site": case.described.get("site"),
            "files": {name: _file(path, found) for name, path in zip(sequences, case.images, strict=True)},
            "label": _file(case.label, found) if case.label else None,
            "labels": list(found.labels),
            "tumour_voxels": found.tumour_voxels,
            "confidence": found.confidence,
            "probabilities": str(case.npz.resolve()) if case.npz else None,
            "grid": found.grid.to_json(),
            "remarks": selection.remarks.get(key, []),
        }
    own = read_json(labelled.folder / MANIFEST) if (labelled.folder / MANIFEST).is_file() else {}
    packages = ("nnunetv2", "numpy", "SimpleITK", "scipy")
    return {
        "format": FORMAT,
        "made_by": f"nnunet-brats-ext {__version__}",
        "versions": {package: version(package) for package in packages},
        "fingerprint": fingerprint,
        "distillation": dict(options),
        "release": own.get("release"),
        "recognised": f"distilled from {labelled.folder.name}",
        "source": str(labelled.folder.resolve()),
        "label_mapping": own.get("label_mapping", {}),
        "folds": folds_from,
        "skipped": {},
        "unrecognised": [],
        "cases": cases,
        "dropped": [vars(dropped) for dropped in selection.dropped],
    }


def _file(path: Path, found: Examination) -> dict[str, str]:
    return {"path": str(path.resolve()), "sha256": found.sha256[path]}


def summarise(dataset: Path, folds: str, console: Console) -> None:
    """A table from the manifest, all that was left out, then the next command. `folds` may hold rich's markup."""
    content = read_json(dataset / MANIFEST)
    cases = content["cases"]
    table = Table("", Column(overflow="fold"), show_header=False, title=escape(str(dataset)), title_justify="left")
    for kind, count in Counter(case["kind"] for case in cases.values()).items():
        table.add_row(f"{kind} labels", str(count))
    for reason, count in Counter(dropped["reason"] for dropped in content["dropped"]).items():
        table.add_row(f"left out, {reason}", str(count))
    if pseudo := [case for case in cases.values() if case["kind"] == PSEUDO]:
        empty = sum(not case["tumour_voxels"] for case in pseudo)
        table.add_row("pseudo-labels without tumour", f"[bold red]{empty}[/]" if empty else "0")
        if known := sorted(case["confidence"] for case in pseudo if case["confidence"] is not None):
            table.add_row("confidence", f"{known[0]:.3f} to {known[-1]:.3f}, median {known[len(known) // 2]:.3f}")
    twins = [key for key, case in cases.items() if case["kind"] == MANUAL and case["remarks"]]
    if twins:
        table.add_row("manual cases with the same images", f"[bold red]{len(twins)}[/]: {escape(', '.join(twins[:3]))}")
    table.add_row("targets", content["distillation"]["targets"])
    table.add_row("folds", folds)
    console.print(table)
    for dropped in content["dropped"]:
        console.print(
            f"left out: {dropped['key']}, {dropped['reason']}: {dropped['because']}", markup=False, soft_wrap=True
        )
    console.print(
        f"next: nnUNetv2_plan_and_preprocess -d {int(dataset.name[7:10])} --verify_dataset_integrity",
        markup=False,
        soft_wrap=True,
    )
