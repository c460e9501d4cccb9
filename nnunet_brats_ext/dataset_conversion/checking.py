"""`check`: are a patient's images what a network expects, before anything is computed; a line and a picture each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from nnunet_brats_ext.dataset_conversion.layouts import LABEL
from nnunet_brats_ext.dataset_conversion.patient_checks import AGAIN, Finding, check_patient
from nnunet_brats_ext.dataset_conversion.scan import SourceCase
from nnunet_brats_ext.dataset_conversion.sources import find_source
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import LPS, Image, read_image
from nnunet_brats_ext.storage.options import Options, argument, option
from nnunet_brats_ext.storage.output import writing
from nnunet_brats_ext.storage.parallel import for_each
from nnunet_brats_ext.storage.shared_options import processes_option


@dataclass(frozen=True)
class CheckOptions(Options):
    """Options of `check`."""

    sources: tuple[Path, ...] = argument(
        "folders of patients: releases or own folders, as of convert", metavar="SOURCE"
    )
    out: Path | None = option(
        "-o", writes="folder", metavar="FOLDER", default=None, help="write a picture of each patient here"
    )
    release: str | None = option(metavar="NAME", default=None, help="which release it is, where names leave it open")
    layout: Path | None = option(metavar="FILE", default=None, help="the layout of own folders")
    any_name: bool = option(default=False, help="cases have any names; with --release or --layout")
    processes: int | None = processes_option()


@dataclass(frozen=True)
class CheckedPatient:
    """A patient's case and what is likely wrong with it. picture: where one was written."""

    case: str
    findings: Sequence[Finding]
    picture: Path | None = None


def check(*sources: Path | str, **options: object) -> list[CheckedPatient]:
    """What is likely wrong with the patients in some folders; `options` are the fields of `CheckOptions`."""
    return check_sources(CheckOptions(tuple(map(Path, sources)), **options))  # type: ignore[arg-type]


def check_sources(options: CheckOptions) -> list[CheckedPatient]:
    """The same with its options in one object."""
    cases: list[SourceCase] = []
    for root in options.sources:
        found = find_source(root, options.release, options.layout, any_name=options.any_name, allow_missing=True)
        cases += found.cases
    if options.out:
        with writing(options.out):
            options.out.mkdir(parents=True, exist_ok=True)
    return for_each(partial(check_case, out=options.out), cases, "Checking", options.processes, lambda case: case.name)


def check_case(case: SourceCase, out: Path | None = None) -> CheckedPatient:
    """Read a case and check it; a file that cannot be read is a finding like any other."""
    findings = [
        Finding("files", problem, "complete the folder, or describe it with a layout") for problem in case.problems
    ]
    if case.missing and not case.problems:
        advice = "complete the folder, or convert with --missing zero"
        findings.append(Finding("missing", f"no {' and no '.join(case.missing)}", advice))
    images: dict[str, Image] = {}
    for role, path in case.files.items():
        try:
            image = read_image(path, right_angles=True)
            if image.array.ndim != 3:
                raise UserError(f"{path} has {image.array.ndim} axes; check works on files of one volume")
            images[role] = image.turned(LPS)
        except UserError as error:
            findings.append(Finding("files", str(error), AGAIN))
    label = images.pop(LABEL, None)
    ordered = {name: images[name] for name in case.layout.sequences if name in images}
    findings += check_patient(ordered)
    picture = draw(case.name, ordered, label, findings, out / f"{case.name}.png") if out and ordered else None
    return CheckedPatient(case.name, findings, picture)


def draw(case: str, images: Mapping[str, Image], label: Image | None, findings: Sequence[Finding], path: Path) -> Path:
    """Three planes through the middle of every sequence, the outline of the label map on them, and the findings."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 * len(images), 7.2), facecolor="black")
    axes = figure.subplots(3, len(images), squeeze=False)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.92 - 0.02 * max(len(findings), 1), 0.02, 0.02)
    for column, (name, image) in enumerate(images.items()):
        shown = image.array.astype(np.float32)
        values = shown[shown != 0]
        low, high = np.percentile(values, (0.5, 99.5)) if values.size else (0, 1)
        marked = label.array if label and label.array.shape == shown.shape else None
        for row in range(3):
            at = shown.shape[row] // 2
            if marked is not None and marked.any():
                at = int(np.argmax((marked > 0).sum(axis=tuple(axis for axis in range(3) if axis != row))))
            cell = axes[row][column]
            cell.imshow(shown.take(at, row), cmap="gray", vmin=low, vmax=high, origin="upper" if row == 0 else "lower")
            if marked is not None and (outline := marked.take(at, row) > 0).any():
                cell.contour(outline, [0.5], colors="yellow", linewidths=0.6)
            cell.set_axis_off()
        axes[0][column].set_title(name, color="white", fontsize=9)
    text = "\n".join(finding.sentence for finding in findings) or "nothing found"
    figure.suptitle(f"{case}: {text}", color="white", fontsize=8, wrap=True)
    with writing(path):
        figure.savefig(path, dpi=90)
    return path
