"""What the verbs of the group "Data sets" print, from `convert` to `filter-cases`."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from nnunet_brats_ext.dataset_conversion.brainles import CITATION
from nnunet_brats_ext.dataset_conversion.case_filtering import FilterCasesOptions, filter_folds
from nnunet_brats_ext.dataset_conversion.checking import CheckOptions, check_sources
from nnunet_brats_ext.dataset_conversion.conversion import ConvertOptions, convert_sources, describe_bad_cases
from nnunet_brats_ext.dataset_conversion.distillation.distill import DistillOptions, distill_dataset
from nnunet_brats_ext.dataset_conversion.distillation.sources import MANUAL, PSEUDO
from nnunet_brats_ext.dataset_conversion.layouts import LAYOUTS, Layout
from nnunet_brats_ext.dataset_conversion.phantoms.folder import PhantomOptions, write_phantom_folder
from nnunet_brats_ext.dataset_conversion.preparation import PrepareOptions, prepare_patients
from nnunet_brats_ext.dataset_conversion.proposal import SHOWN, UNKNOWN, LayoutOptions, propose_layout
from nnunet_brats_ext.dataset_conversion.restoration import RestoreOptions, Submission, restore_predictions
from nnunet_brats_ext.dataset_conversion.sources import source_number, sources_of
from nnunet_brats_ext.dataset_conversion.splits import PublishedFolds
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import shorten
from nnunet_brats_ext.storage.nnunet import dataset_id, train_command


def run_convert(options: ConvertOptions) -> None:
    """What was found, what was unusual, and the next command."""
    console, done = Console(), convert_sources(options)
    manifest, cases = done.manifest, done.manifest["cases"]
    if done.unchanged:
        say(console, f"{done.folder} is this very conversion, finished; nothing to do")
    labelled = [name for name, case in cases.items() if case["labelled"]]
    unlabelled = [name for name, case in cases.items() if not case["labelled"]]
    held_out = [name for name, case in cases.items() if case.get("held_out")]
    table = facts_table(done.folder)
    for source in (sources := sources_of(manifest)):
        place = f" ({source['source']})" if len(sources) > 1 else ""
        table.add_row("release", escape(f"{source['release']}, {source['recognised']}{place}"))
        table.add_row("labels", escape(", ".join(f"{old} -> {new}" for old, new in source["label_mapping"].items())))
    for title, text in (
        ("labelled cases", str(len(labelled))),
        *([("of them held out", f"{len(held_out)}, in imagesTs and labelsTs{examples(held_out)}")] if held_out else []),
        ("unlabelled cases", f"{len(unlabelled)}{examples(unlabelled) if labelled else ''}"),
        ("patients", f"{len({case['patient'] for case in cases.values()})}{grades(cases)}"),
    ):
        table.add_row(title, escape(text))
    for channel, weights in DatasetDescription.read(done.folder).derived.items():
        table.add_row("further channel", f"{channel}, computed from {' and '.join(weights)}")
    table.add_row("folds", describe_folds(done.folds))
    for title, names in notes(manifest, done.layouts).items():
        table.add_row(escape(title), escape(f"{len(names)} case{'s' if len(names) != 1 else ''}{examples(names)}"))
    if same := [f"{one} is {other}" for one, other in manifest.get("same_images", {}).items()]:
        table.add_row("same images, kept once", escape(f"{len(same)} cases{examples(same)}"))
    if others := [path for source in sources for path in source["unrecognised"]]:
        table.add_row("other files", escape(f"{len(others)} not used{examples(others)}"))
    console.print(table)
    if manifest["skipped"]:
        say(console, "left out: " + describe_bad_cases(manifest["skipped"]))
    if labelled:
        say(console, f"next: nnUNetv2_plan_and_preprocess -d {dataset_id(done.folder.name)} --verify_dataset_integrity")
    else:
        images = done.folder / "imagesTs"
        say(console, f"next: nnUNetv2_predict -i {images} -o PREDICTIONS -d TRAINED_ON -c 3d_fullres -tr TRAINER")


def run_check(options: CheckOptions) -> int:
    """A line per patient, and below it what to do; 1 where something was found."""
    console, checked = Console(), check_sources(options)
    for patient in checked:
        if not patient.findings:
            say(console, f"{patient.case}: nothing found")
        for finding in patient.findings:
            say(console, f"{patient.case}: {finding.kind}: {finding.sentence}\n  -> {finding.fix}")
    wrong = sum(bool(patient.findings) for patient in checked)
    pictures = f", pictures in {options.out}" if options.out else ""
    say(console, f"{len(checked)} patient{'s' if len(checked) != 1 else ''}, {wrong} with findings{pictures}")
    return int(wrong > 0)


def run_prepare(options: PrepareOptions) -> None:
    """How many patients, what was left behind, whom to cite, and the next commands."""
    console, done = Console(), prepare_patients(options)
    if options.back:
        say(console, f"{len(done.made)} label maps in {options.out}, on the grids of the raw scans")
        return
    before = f", {len(done.finished_before)} of them before" if done.finished_before else ""
    say(console, f"{len(done.made)} patients in {options.out}{before}; please cite {CITATION}")
    if done.left_behind:
        names = shorten(done.left_behind)
        say(console, f"their label maps lie on the grid of none of their scans, and were left behind: {names}")
    say(console, f"next: nnunet_brats check {options.out} -o PICTURES; nnunet_brats convert {options.out} -d ID")


def run_layout(options: LayoutOptions) -> None:
    """Three cases with their files, what is left over, the layout, and the next command."""
    console, found = Console(), propose_layout(options)
    source, roles = found.source, found.layout.roles
    evidence = f", known as {found.layout.name}: convert needs no --layout" if found.layout.name in LAYOUTS else ""
    say(console, f"{source.root}: {len(source.cases)} cases{evidence}")
    table = Table(*(Column(title, overflow="fold") for title in ("case", "patient", *roles)))
    for case in source.cases[:SHOWN]:
        files = {role: str(path.relative_to(source.root)) for role, path in case.files.items()}
        table.add_row(*map(escape, (case.name, case.patient, *(files.get(role, "") for role in roles))))
    console.print(table)
    bad = {case.name: case.problems for case in source.cases if case.problems}
    if bad:
        more = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        say(console, describe_bad_cases(dict(list(bad.items())[:SHOWN])) + more)
    if source.unrecognised:
        names = [str(path.relative_to(source.root)) for path in source.unrecognised]
        say(console, f"left over: {len(names)} files{examples(names)}")
    if not options.layout:
        say(console, "\n" + found.text)
    file = options.out or options.layout
    if UNKNOWN in (found.layout.stack or ()):
        say(console, "first state in it which volume is which sequence, in the line that begins with `stack`")
    say(console, f"next: nnunet_brats convert {source.root} --layout {file} -d ID" if file else "-o FILE writes it")


def run_restore(options: RestoreOptions) -> None:
    """How many cases, with which labels, and what the challenge may refuse."""
    console, done = Console(), restore_predictions(options)
    for layout in done.layouts:
        mapping = ", ".join(f"{old} -> {new}" for old, new in sorted(layout.numbering.trained.items()))
        number = sum(found.layout.name == layout.name for found in done.cases)
        say(console, f"{done.folder}: {number} cases of {layout.name}, labels {mapping}")
    for note in submission_notes(done):
        console.print(f"[bold red]note[/]: {escape(note)}", soft_wrap=True)


def submission_notes(done: Submission) -> list[str]:
    """What the challenge may refuse, each with the cases that it is about."""
    warnings: dict[str, list[str]] = {}
    for found in done.cases:
        for warning in found.warnings:
            warnings.setdefault(warning, []).append(found.case)
    lines = [f"{warning} ({len(cases)} cases, such as {cases[0]})" for warning, cases in warnings.items()]
    if missing := done.unpredicted:
        lines.append(f"{len(missing)} unlabelled cases have no prediction, such as {missing[0]}")
    return lines


def run_phantom(options: PhantomOptions) -> None:
    """How many cases were written."""
    rows = write_phantom_folder(options)
    unlabelled = sum(not row["labelled"] for row in rows)
    without = f", {unlabelled} of them without label" if unlabelled else ""
    say(Console(), f"{options.out}: {len(rows)} phantoms as in {options.release}{without}")


def run_distill(options: DistillOptions) -> None:
    """What went in, what was left out and why, and the next command."""
    console, done = Console(), distill_dataset(options)
    for path, names in done.unknown_names.items():
        say(console, f"{path}: {len(names)} names match no case, such as {names[0]!r}")
    if done.unchanged:
        say(console, f"{done.folder} is this very distillation, finished; nothing to do")
    manifest = done.manifest
    cases, dropped = manifest["cases"], manifest["dropped"]
    table = facts_table(done.folder)
    for kind, count in Counter(case["kind"] for case in cases.values()).items():
        table.add_row(f"{kind} labels", str(count))
    for reason, count in Counter(one["reason"] for one in dropped).items():
        table.add_row(f"left out, {reason}", str(count))
    if pseudo := [case for case in cases.values() if case["kind"] == PSEUDO]:
        empty = sum(not case["tumour_voxels"] for case in pseudo)
        table.add_row("pseudo-labels without tumour", f"[bold red]{empty}[/]" if empty else "0")
        if known := [case["confidence"] for case in pseudo if case["confidence"] is not None]:
            table.add_row("confidence", f"{min(known):.3f} to {max(known):.3f}, median {median(known):.3f}")
    if duplicates := [key for key, case in cases.items() if case["kind"] == MANUAL and case["remarks"]]:
        text = f"[bold red]{len(duplicates)}[/]{escape(examples(duplicates))}"
        table.add_row("manual cases with the same images", text)
    table.add_row("targets", manifest["distillation"]["targets"])
    table.add_row("folds", describe_folds(done.folds))
    console.print(table)
    for one in dropped:
        say(console, f"left out: {one['key']}, {one['reason']}: {one['because']}")
    say(console, f"next: nnUNetv2_plan_and_preprocess -d {dataset_id(done.folder.name)} --verify_dataset_integrity")


def run_filter_cases(options: FilterCasesOptions) -> None:
    """The removed cases of each fold, and the next command."""
    console, done = Console(), filter_folds(options)
    removals = Column("removed", overflow="fold")
    table = Table("fold", "cases judged", "mean loss", "limit", removals, title=escape(done.splits.name))
    for number, fold in done.folds.items():
        removed = "\n".join(f"{case} {loss:.3f}" for case, loss in fold.removed.items()) or "none"
        mean = fmean(fold.losses.values())
        table.add_row(str(number), str(len(fold.losses)), f"{mean:.3f}", f"{fold.limit:.3f}", escape(removed))
    console.print(table)
    command = train_command(options.dataset_id, done.configuration, "FOLD", options.trainer, options.plans_name)
    say(console, f"next: {command}")


# ---- parts of tables ------------------------------------------------------------------------------------------------


def say(console: Console, text: str) -> None:
    """Print a sentence as it is, in one line."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def facts_table(folder: Path) -> Table:
    return Table("", Column(overflow="fold"), show_header=False, title=escape(str(folder)), title_justify="left")


def describe_folds(folds: PublishedFolds) -> str:
    """How many folds there are, where nnU-Net reads them, and what to do where it does not; in rich's markup."""
    if not folds.number:
        return "[bold red]none[/]: they need two patients with labels; train with fold `all`"
    number = str(folds.number)
    if folds.number != folds.wanted:
        number = (
            f"[bold red]{folds.number} instead of {folds.wanted}[/], because there are fewer patients, or as in the "
            "data set that is followed"
        )
    source = escape(str(folds.source))
    if folds.place is None:
        return f"{number}; nnUNet_preprocessed is not set, so copy {source} there before you train"
    place = escape(str(folds.place))
    if folds.others_kept:
        return f"[bold red]{place} holds other folds and was kept[/]; copy {source} there to use these"
    return f"{number}, in {place}"


def notes(manifest: Mapping[str, Any], layouts: Sequence[Layout]) -> dict[str, list[str]]:
    """Remark, without its numbers -> the cases it was made on; then labels that no case of a source has."""
    found: dict[str, list[str]] = {}
    for name, case in manifest["cases"].items():
        for remark in case["remarks"]:
            words = re.split(r" by \d| in (?!a )| from ", remark)[0]
            found.setdefault(words, []).append(name)
    for number, layout in enumerate(layouts):
        cases = {name: case for name, case in manifest["cases"].items() if source_number(case) == number}
        labelled = [name for name, case in cases.items() if case["labelled"]]
        seen = {label for name in labelled for label in cases[name]["labels"]}
        for label, trained in layout.numbering.released.items() if labelled else ():
            if trained and label not in seen:
                title = f"label {label} ({layout.numbering.names[trained]}) never found; is it {layout.name}?"
                found[title] = labelled
    return found


def grades(cases: Mapping[str, Any]) -> str:
    counts = Counter(case["grade"] for case in cases.values() if case["grade"])
    return "; " + ", ".join(f"{count} {grade}" for grade, count in sorted(counts.items())) if counts else ""


def examples(names: Sequence[str]) -> str:
    return f": {shorten(names, 3)}" if names else ""
