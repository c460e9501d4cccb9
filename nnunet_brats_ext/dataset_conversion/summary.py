"""What a finished conversion says: what it found, what was odd, what to type next."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from nnunet_brats_ext.dataset_conversion.releases import Release
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.nnunet import MANIFEST


def summarise(dataset: Path, folds: str, release: Release, console: Console) -> None:
    """A table from the manifest of a data set, then the next command. `folds` may hold rich's markup."""
    manifest = read_json(dataset / MANIFEST)
    cases = manifest["cases"]
    labelled = [name for name, case in cases.items() if case["labelled"]]
    unlabelled = [name for name, case in cases.items() if not case["labelled"]]
    table = Table("", Column(overflow="fold"), show_header=False, title=escape(str(dataset)), title_justify="left")
    for title, text in (
        ("release", f"{release.name}, {manifest['recognised']}"),
        ("labelled cases", str(len(labelled))),
        ("unlabelled cases", f"{len(unlabelled)}{_some(unlabelled) if labelled else ''}"),
        ("patients", f"{len({case['patient'] for case in cases.values()})}{_grades(cases)}"),
        ("labels", ", ".join(f"{old} -> {new}" for old, new in manifest["label_mapping"].items())),
    ):
        table.add_row(title, escape(text))
    table.add_row("folds", folds)
    for title, names in _oddities(manifest, release).items():
        table.add_row(escape(title), escape(f"{len(names)} case{'s' if len(names) != 1 else ''}{_some(names)}"))
    if others := manifest["unrecognised"]:
        table.add_row("other files", escape(f"{len(others)} left alone{_some(others)}"))
    console.print(table)
    if manifest["skipped"]:
        console.print("left out: " + describe_bad(manifest["skipped"]), markup=False, soft_wrap=True)
    command = f"nnUNetv2_plan_and_preprocess -d {int(dataset.name[7:10])} --verify_dataset_integrity"
    if not labelled:
        command = f"nnUNetv2_predict -i {dataset / 'imagesTs'} -o PREDICTIONS -d TRAINED_ON -c 3d_fullres -tr TRAINER"
    console.print(f"next: {command}", markup=False, soft_wrap=True)


def describe_bad(cases: Mapping[str, Sequence[str]]) -> str:
    """Every problem of every bad case, a line each."""
    lines = [f"\n  {case}: {problem}" for case, problems in cases.items() for problem in problems]
    return f"{len(cases)} bad case{'s' if len(cases) > 1 else ''}:" + "".join(lines)


def _oddities(manifest: Mapping[str, Any], release: Release) -> dict[str, list[str]]:
    """Remark, without its numbers -> the cases it was made on; then labels never seen."""
    odd: dict[str, list[str]] = {}
    for name, case in manifest["cases"].items():
        for remark in case["remarks"]:
            words = re.split(r" by \d| in (?!a )| from ", remark)[0]
            odd.setdefault(words, []).append(name)
    labelled = [name for name, case in manifest["cases"].items() if case["labelled"]]
    seen = {label for name in labelled for label in manifest["cases"][name]["labels"]}
    for label, trained in release.scheme.released.items() if labelled else ():
        if trained and label not in seen:
            odd[f"label {label} ({release.scheme.names[trained]}) never found; is it {release.name}?"] = labelled
    return odd


def _grades(cases: Mapping[str, Any]) -> str:
    grades = Counter(case["grade"] for case in cases.values() if case["grade"])
    return "; " + ", ".join(f"{count} {grade}" for grade, count in sorted(grades.items())) if grades else ""


def _some(names: Sequence[str]) -> str:
    return f": {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else ""
