"""`nnunet_brats doctor`: is everything set, found and consistent, and how to mend what is not."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape

from nnunet_brats_ext import plugin
from nnunet_brats_ext.brats import LABEL_SCHEMES, LabelScheme
from nnunet_brats_ext.dataset_conversion.releases import RELEASES
from nnunet_brats_ext.plugin.requirements import complaint, requirements
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.nnunet import MANIFEST

FOLDERS = {
    "nnUNet_raw": "converted datasets",
    "nnUNet_preprocessed": "preprocessed data, best on a fast disk",
    "nnUNet_results": "trained models",
}


@dataclass(frozen=True)
class Finding:
    """What one check found; `mend` says what to do, and is empty where all is well."""

    subject: str
    state: str
    mend: str = ""


def examine() -> int:
    """Run every check and print it; returns 1 if something needs mending, else 0."""
    console = Console(soft_wrap=True)
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        check_versions,
        check_device,
        check_folders,
        check_hook,
        check_trainers,
        check_labels,
        check_datasets,
    )
    ill = 0
    for check in checks:
        for finding in check():
            mark = "[red] x[/red]" if finding.mend else "[green]ok[/green]"
            console.print(f"{mark} [bold]{escape(finding.subject)}[/bold]: {escape(finding.state)}", highlight=False)
            if finding.mend:
                ill += 1
                console.print(f"   [yellow]-> {escape(finding.mend)}[/yellow]", highlight=False)
    console.print("All is well." if not ill else f"{ill} to mend.", style="bold")
    return int(ill > 0)


def check_versions() -> Iterator[Finding]:
    sentences = [sentence for requirement in requirements() if (sentence := complaint(requirement))]
    for sentence in sentences:
        yield Finding("package", *sentence.rsplit("; ", 1))
    if not sentences:
        yield Finding("packages", f"{len(requirements())} requirements met on Python {sys.version.split()[0]}")


def check_device() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("GPU", f"torch {torch.__version__} sees {', '.join(names)}")
    else:
        yield Finding("GPU", f"torch {torch.__version__} sees none; give nnU-Net's commands -device cpu")


def check_folders() -> Iterator[Finding]:
    for name, content in FOLDERS.items():
        folder = os.environ.get(name)
        if not folder:
            yield Finding(name, "not set", f"export {name}=/a/folder/for/{name}   ({content})")
        elif not os.access(folder, os.W_OK | os.X_OK):
            yield Finding(name, f"{folder} is missing or not writable", f"mkdir -p '{folder}' or set another {name}")
        else:
            yield Finding(name, folder)


def fresh_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code as the user's next command would, with nothing that this process has set."""
    environment = {name: value for name, value in os.environ.items() if name != plugin.VARIABLE}
    kept = [folder for folder in plugin.searched_folders() if folder != plugin.SHIM]
    if kept:
        environment[plugin.VARIABLE] = os.pathsep.join(kept)
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def check_hook() -> Iterator[Finding]:
    export = f'export {plugin.VARIABLE}="${{{plugin.VARIABLE}:+${plugin.VARIABLE}:}}{plugin.SHIM}"'
    found = fresh_python(f"import os; print(os.environ.get({plugin.VARIABLE!r}, ''))").stdout.strip()
    if plugin.SHIM in found.split(os.pathsep):
        yield Finding("start-up hook", f"{plugin.VARIABLE}={found}")
    elif plugin.SHIM in plugin.searched_folders():
        yield Finding("start-up hook", f"inactive, but {plugin.VARIABLE} is set by hand")
    elif plugin.opted_out():
        yield Finding("start-up hook", f"switched off by {plugin.OPT_OUT}", f"unset {plugin.OPT_OUT}, or {export}")
    else:
        yield Finding("start-up hook", "this Python does not run .pth files", export)


def check_trainers() -> Iterator[Finding]:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_brats_ext import trainers

    for name in trainers.__all__:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net tells every module it looks at
                found = recursive_find_trainer_class_by_name(name)
        except (RuntimeError, ImportError) as error:
            yield Finding(name, f"not found by nnU-Net: {error}", "see the start-up hook above")
            continue
        if found is getattr(trainers, name):
            yield Finding(name, "found by nnU-Net")
        else:
            source = getattr(sys.modules.get(found.__module__), "__file__", found.__module__)
            yield Finding(name, f"nnU-Net finds another class of this name in {source}", "rename or remove that class")


def round_trip(scheme: LabelScheme, dataset_json: dict) -> str:
    """What nnU-Net's label handling turns wrong on the way label -> regions -> label; empty if nothing."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    manager = LabelManager(dataset_json["labels"], dataset_json.get("regions_class_order"))
    labels = np.array(sorted(scheme.trained))
    if manager.has_regions:
        channels = np.stack([np.isin(labels, region) for region in manager.foreground_regions])
    else:
        channels = labels == np.array(manager.all_labels)[:, None]
    back = manager.convert_probabilities_to_segmentation(channels.astype(np.float32))
    # A label that is not the innermost of any region comes back as the one that is painted there: NET as NCR.
    predictable = [label for label in labels if label in (0, *scheme.paint)]
    wrong = {int(a): int(b) for a, b in zip(labels, back, strict=True) if a in predictable and a != b}
    return f"labels come back changed: {wrong}" if wrong else ""


def check_labels() -> Iterator[Finding]:
    broken = {
        name: trouble
        for name, scheme in LABEL_SCHEMES.items()
        if (trouble := round_trip(scheme, {"labels": scheme.nnunet_labels(), "regions_class_order": scheme.paint}))
    }
    if broken:
        yield Finding("labels", str(broken), "please report this with your version of nnunetv2")
    else:
        yield Finding("labels", f"label -> region -> label is the identity for {', '.join(LABEL_SCHEMES)}")


def check_datasets() -> Iterator[Finding]:
    """The same for every dataset in nnUNet_raw that `nnunet_brats convert` has written."""
    for path in sorted(Path(os.environ.get("nnUNet_raw", "/nowhere")).glob("Dataset*/dataset.json")):
        ours = (path.parent / MANIFEST).is_file()
        again = "it was edited or is damaged" + ("; the command that made it writes it anew with --overwrite" * ours)
        try:
            dataset_json = read_json(path)
            release = RELEASES.get(dataset_json.get("brats_release", ""))
            trouble = round_trip(release.scheme, dataset_json) if release else ""
        except Exception as error:  # of nnU-Net's own kinds, assertions among them; the other data sets are still due
            yield Finding(path.parent.name, f"{path} cannot be used: {type(error).__name__}: {error}", again)
            continue
        if trouble:
            yield Finding(path.parent.name, trouble, again)
        elif release:
            yield Finding(path.parent.name, "its labels survive the way through regions and back")
