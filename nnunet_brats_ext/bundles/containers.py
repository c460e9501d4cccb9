"""`container`: a folder from which a container of a bundled system is built, for a challenge or a hospital's machine.

The container needs no network, no environment variables, no user of its own and no shared memory. Loads no torch.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import sys
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nnunet_brats_ext
from nnunet_brats_ext import __version__, papers
from nnunet_brats_ext.bundles.archive import inspect_bundle, open_bundle
from nnunet_brats_ext.bundles.challenges import CHALLENGES, Challenge
from nnunet_brats_ext.bundles.contents import BundledSystem
from nnunet_brats_ext.bundles.numbering import numbers_written
from nnunet_brats_ext.bundles.options import ContainerOptions
from nnunet_brats_ext.plugin.requirements import DISTRIBUTION
from nnunet_brats_ext.storage.csv_files import to_csv
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.output import publish, working_folder, writing

TEMPLATES = ("Dockerfile", "container.def", "entrypoint.sh", "README.md")
SYSTEM, WHEELS = "system", "wheels"
HOOK = "nnunet_brats_ext.pth"


def make_container(options: ContainerOptions) -> list[Path]:
    """Write all that the container is built of into a folder; its files."""
    if options.out.exists() and any(options.out.iterdir()):
        raise UserError(f"{options.out} holds files; choose a new folder with -o")
    challenge = CHALLENGES[options.challenge]
    system = inspect_bundle(options.bundle)[0]
    require_fitting(system, options.challenge, challenge)
    with working_folder(options.out.absolute()) as scratch, writing(options.out):
        folder = scratch / "new"
        (folder / WHEELS).mkdir(parents=True)
        with open_bundle(options.bundle) as bundle:
            shutil.copytree(bundle.folder, folder / SYSTEM)
        (folder / SYSTEM).chmod(0o755)  # a temporary folder is its owner's alone
        write_wheel(folder / WHEELS)
        (folder / "requirements.txt").write_text(
            "".join(f"{line}\n" for line in pinned(extras_of(system))), encoding="utf-8"
        )
        for path in options.trainers:
            _copy_trainers(path, folder / "trainers" / path.resolve().name)
        for name, text in texts(system, challenge, options).items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "entrypoint.sh").chmod(0o755)
        publish(folder, options.out)
    return sorted(path for path in options.out.rglob("*") if path.is_file())


def require_fitting(system: BundledSystem, name: str, challenge: Challenge) -> None:
    """A UserError where a system cannot segment what a challenge gives."""
    needed = [sequence for sequence in system.about["sequences"] if sequence not in challenge.sequences]
    if challenge.layout and needed:
        raise UserError(f"--challenge {name} gives {', '.join(challenge.sequences)}, and no {', '.join(needed)}")
    numbers_written(system, challenge=name)


def texts(system: BundledSystem, challenge: Challenge, options: ContainerOptions) -> dict[str, str]:
    """The text files of the folder by name."""
    environment = Environment(
        loader=PackageLoader("nnunet_brats_ext.bundles", "container"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    smaller = system.smaller_systems()
    content: dict[str, Any] = {
        "title": system.about["title"],
        "note": system.about["note"],
        "name": options.challenge,
        "challenge": challenge,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "time_limit": options.time_limit,
        "smaller": [system.describe_smaller(one) for one in smaller[1:]],
        "trainers": [path.resolve().name for path in options.trainers],
        "image": f"brats-{options.challenge.lower()}",
        "inputs": [challenge.example(sequence) for sequence in challenge.sequences],
    }
    return {name: environment.get_template(f"{name}.jinja").render(content) for name in TEMPLATES}


def _copy_trainers(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise UserError(f"--trainers {source} is no folder; name one of nnUNet_extTrainer")
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))


# ---- packages -------------------------------------------------------------------------------------------------------


def extras_of(system: BundledSystem) -> set[str]:
    """The extras of this package that trainers of a system need."""
    known = papers.trainers()
    trainers = {model.trainer for model in system.models.values()} & known.keys()
    return {needed for name in trainers if (needed := known[name].needs)}


def pinned(extras: Iterable[str] = ()) -> list[str]:
    """NAME==VERSION of everything that this package needs, and some of its extras, as it is installed here."""
    found: dict[str, str] = {}
    waiting = [(DISTRIBUTION, ""), *((DISTRIBUTION, extra) for extra in extras)]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # of another platform or Python
        if canonicalize_name(name) != canonicalize_name(DISTRIBUTION):
            found[canonicalize_name(name)] = installed.version.partition("+")[0]
        for line in installed.requires or []:
            requirement = Requirement(line)
            if _applies(requirement.marker, extra):
                for one in (requirement.name, ""), *((requirement.name, more) for more in requirement.extras):
                    if one not in seen:
                        seen.add(one)
                        waiting.append(one)
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def _applies(marker: Marker | None, extra: str) -> bool:
    return marker is None or marker.evaluate({"extra": extra})


def write_wheel(out: Path) -> Path:
    """This package as a wheel, of the files that run here: nothing is built or downloaded."""
    installed = metadata.distribution(DISTRIBUTION)
    package = Path(nnunet_brats_ext.__file__).parent
    stem = f"{canonicalize_name(DISTRIBUTION).replace('-', '_')}-{__version__}"
    info = f"{stem}.dist-info"
    content = {
        f"{package.name}/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    content[HOOK] = content[f"{package.name}/plugin/{HOOK}"]  # beside the package, where Python looks for it
    described = installed.read_text("METADATA") or installed.read_text("PKG-INFO")  # the latter beside a checkout
    assert described, f"{DISTRIBUTION} is installed without a description"
    of_here = [
        f"Version: {__version__}\n" if line.startswith("Version: ") else line
        for line in described.splitlines(keepends=True)
    ]
    content |= {
        f"{info}/METADATA": "".join(of_here).encode(),
        f"{info}/entry_points.txt": (installed.read_text("entry_points.txt") or "").encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: nnunet_brats container\n"
        b"Root-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [(name, f"sha256={_urlsafe(one)}", len(one)) for name, one in content.items()]
    content[f"{info}/RECORD"] = to_csv([*rows, (f"{info}/RECORD", "", "")]).encode()
    wheel = out / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, one in content.items():
            archive.writestr(name, one)
    return wheel


def _urlsafe(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
