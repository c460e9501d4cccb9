"""`nnunet_brats doctor`: is everything set, found and consistent, and what to do where it is not."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_brats_ext import papers, plugin
from nnunet_brats_ext.brats import LABEL_SCHEMES, LabelScheme
from nnunet_brats_ext.dataset_conversion.dataset_folder import read_manifest
from nnunet_brats_ext.dataset_conversion.layouts import LAYOUTS, layout_of_manifest
from nnunet_brats_ext.plugin.requirements import complaint, requirements
from nnunet_brats_ext.storage import shared_memory
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.nnunet import MANIFEST, nnunet_folder

FOLDERS = {
    "nnUNet_raw": "converted datasets",
    "nnUNet_preprocessed": "preprocessed data, best on a fast disk",
    "nnUNet_results": "trained models",
}


LEAST_FREE_GB = 1.0
SLOW_TORCH = "2.9."  # https://github.com/pytorch/pytorch/issues/166122


@dataclass(frozen=True)
class Finding:
    """What one check found; `fix` says what to do, and is empty where nothing is wrong."""

    subject: str
    state: str
    fix: str = ""


def examine() -> Iterator[Finding]:
    """What every check finds, in order."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        check_versions,
        check_device,
        check_folders,
        check_shared_memory,
        check_hook,
        check_trainers,
        check_labels,
        check_datasets,
    )
    for check in checks:
        yield from check()


def check_versions() -> Iterator[Finding]:
    sentences = [sentence for requirement in requirements() if (sentence := complaint(requirement))]
    for sentence in sentences:
        yield Finding("package", *sentence.rsplit("; ", 1))
    if not sentences:
        yield Finding("packages", f"{len(requirements())} requirements met on Python {sys.version.split()[0]}")


def check_device() -> Iterator[Finding]:
    import torch

    if torch.__version__.startswith(SLOW_TORCH):
        state = f"{torch.__version__} is four times slower in 3-D mixed precision, and nnU-Net excludes it"
        yield Finding("torch", state, "run: pip install 'torch!=2.9.*'")
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
        elif (free_gb := shutil.disk_usage(folder).free / 1e9) < LEAST_FREE_GB:
            yield Finding(name, f"{folder} has {free_gb:.2f} GB free", f"make room, or set another {name}")
        else:
            yield Finding(name, f"{folder}, {free_gb:.0f} GB free")


def check_shared_memory() -> Iterator[Finding]:
    """Loader processes hand batches over through /dev/shm; containers often give it 64 MB."""
    if (size_gb := shared_memory.shared_gb()) is not None:
        state = f"{shared_memory.SHARED_MEMORY} has {size_gb:.2f} GB"
        fix = "start the container with --shm-size=8g (docker) or --ipc=host; until then no worker processes are used"
        yield Finding("shared memory", state, fix if shared_memory.too_little_shared() else "")


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
    """Does nnU-Net find every trainer of every paper, and the very class of this package?"""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_brats_ext import trainers

    found = {}
    for name in papers.trainers():
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints every module it looks at
                found[name] = recursive_find_trainer_class_by_name(name)
        except (RuntimeError, ImportError) as error:
            yield Finding(name, f"not found by nnU-Net: {error}", "see the start-up hook above")
    for name, trainer in found.items():
        if name in trainers.OURS and trainer is not getattr(trainers, name):
            source = getattr(sys.modules.get(trainer.__module__), "__file__", trainer.__module__)
            yield Finding(name, f"nnU-Net finds another class of this name in {source}", "rename or remove that class")
    yield Finding("trainers", f"nnU-Net finds {len(found)} of {len(papers.trainers())}")


def round_trip(scheme: LabelScheme, dataset_json: dict) -> str:
    """What nnU-Net's label handling changes on the way label -> regions -> label; empty if nothing."""
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


def _scheme_of(dataset: Path, description: DatasetDescription) -> LabelScheme | None:
    """The numbering that the conversion noted, or that of the release that a dataset.json names."""
    manifest = read_manifest(dataset) or {}
    if manifest.get("sources"):
        return description.scheme
    layout = layout_of_manifest(manifest) if manifest.get("release") else LAYOUTS.get(description.release or "")
    return layout.scheme if layout else None


def check_datasets() -> Iterator[Finding]:
    """The same for every data set in nnUNet_raw that `nnunet_brats convert` wrote, and whether its files exist."""
    raw = nnunet_folder("nnUNet_raw")
    for path in sorted(raw.glob("Dataset*/dataset.json")) if raw else ():
        dataset = path.parent
        ours = (dataset / MANIFEST).is_file()
        again = "it was edited or is damaged" + ("; the command that made it writes it anew with --overwrite" * ours)
        if dangling := [link for link in sorted(dataset.glob("*/*")) if link.is_symlink() and not link.exists()]:
            where = f"{len(dangling)} links lead nowhere, such as {dangling[0]} -> {dangling[0].readlink()}"
            yield Finding(dataset.name, where, "bring the source of the conversion back, or convert it again")
            continue
        try:
            description = DatasetDescription.read(path)
            scheme = _scheme_of(dataset, description)
            trouble = round_trip(scheme, dict(description.content)) if scheme else ""
        except Exception as error:  # nnU-Net raises its own kinds, assertions among them; other data sets still count
            yield Finding(dataset.name, f"{path} cannot be used: {type(error).__name__}: {error}", again)
            continue
        if trouble:
            yield Finding(dataset.name, trouble, again)
        elif scheme:
            yield Finding(dataset.name, "its labels survive the way through regions and back")
