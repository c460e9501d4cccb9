"""The file of a bundle: a zip of JSON, Markdown and safetensors, of which nothing is executed.

A file is used only after its names, sizes and SHA-256 sums have been compared with bundle.json; plans may name classes
of known packages alone. Loads no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Any

from nnunet_brats_ext.bundles.contents import CARD, FORMAT, MANIFEST, BundledSystem, schema
from nnunet_brats_ext.storage.errors import UserError, shorten
from nnunet_brats_ext.storage.json_files import check_schema, read_json
from nnunet_brats_ext.storage.nnunet import SAFE
from nnunet_brats_ext.storage.output import writing
from nnunet_brats_ext.storage.plans import read_plans, resolve

ENDINGS = (".json", ".md", SAFE)
LARGEST_MANIFEST = 64 * 2**20  # bytes
PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_. +-]*")  # of a path
AGAIN = "ask for it again where it comes from, and use no part of it"
BLOCK = 2**20
ENCRYPTED = 1  # of a zip's flag bits


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files have been checked. folder: where they are now. sha256: of bundle.json, which names them all.

    sizes: bytes of each file.
    """

    folder: Path
    system: BundledSystem
    sha256: str
    sizes: Mapping[str, int]

    def model_folder(self, name: str) -> Path:
        return self.folder / self.system.models[name].folder


@contextmanager
def open_bundle(path: Path | str) -> Iterator[Bundle]:
    """A bundle, of its file or of a folder that it was unpacked to; a zip lies in a temporary folder within the block.

    A UserError where it is damaged, incomplete, or holds anything that a bundle does not.
    """
    path = Path(path)
    if path.is_dir():
        yield _checked_folder(path)
        return
    with TemporaryDirectory(prefix="nnunet_brats_bundle_", ignore_cleanup_errors=True) as place:
        unpack(path, Path(place))
        yield _opened(path, Path(place))


def unpack(path: Path, out: Path) -> None:
    """Write the files of a bundle into a folder, each checked; out: an empty folder."""
    with _open_zip(path) as archive:
        manifest = _read_manifest(archive, path)
        files = manifest["files"]
        _check_members(archive, files, path)
        if (needed := sum(one["bytes"] for one in files.values())) > (free := shutil.disk_usage(out).free):
            raise UserError(
                f"{path} unpacks to {needed / 1e9:.2f} GB, and {out} has {free / 1e9:.2f} GB free; name a larger place "
                "in TMPDIR"
            )
        for name, one in files.items():
            target = out / name
            with writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, target.open("wb") as copy:
                    _copy(source, copy, one, f"{path}: {name}")
        with writing(out / MANIFEST):
            (out / MANIFEST).write_bytes(_member(archive, MANIFEST, LARGEST_MANIFEST, path))
    _check_content(manifest, out, path)


def inspect_bundle(path: Path) -> tuple[BundledSystem, str, Mapping[str, int]]:
    """What bundle.json says, the card, and the sizes of all files; nothing else is read."""
    if path.is_dir():
        bundle = _opened(path, path)
        return bundle.system, (path / CARD).read_text(encoding="utf-8"), bundle.sizes
    with _open_zip(path) as archive:
        manifest = _read_manifest(archive, path)
        _check_members(archive, manifest["files"], path)
        system = _system_of(manifest, path)
        card = _member(archive, CARD, LARGEST_MANIFEST, path).decode(errors="replace")
        return system, card, {name: one["bytes"] for name, one in manifest["files"].items()}


def write_bundle(out: Path, folder: Path, system: BundledSystem) -> None:
    """Pack a folder of files, with bundle.json made of them, into a zip. Weights are stored as they are."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files.pop(MANIFEST, None)
    manifest = {
        **system.to_json(),
        "files": {name: {"bytes": path.stat().st_size, "sha256": file_digest(path)} for name, path in files.items()},
    }
    text = json.dumps(manifest, indent=1)
    _check_manifest(json.loads(text), out)
    _check_content(manifest, folder, out)
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(MANIFEST, text, zipfile.ZIP_DEFLATED)
        for name, path in files.items():
            archive.write(path, name, zipfile.ZIP_STORED if name.endswith(SAFE) else zipfile.ZIP_DEFLATED)


def file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


# ---- checks ---------------------------------------------------------------------------------------------------------


@contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip; what Python says of a broken one becomes an error that names the file."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the file that `nnunet_brats bundle` has written")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, zlib.error, struct.error) as error:
        raise UserError(f"{path} is damaged or no bundle ({error}); {AGAIN}") from error


def _read_manifest(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    if MANIFEST not in archive.namelist():
        hint = ""
        if any(name.endswith(".pth") for name in archive.namelist()):
            hint = "; a zip of nnU-Net is installed by nnUNetv2_install_pretrained_model_from_zip, and runs code"
        raise UserError(f"{path} is no bundle: it has no {MANIFEST}{hint}")
    content = _member(archive, MANIFEST, LARGEST_MANIFEST, path)
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {MANIFEST} is not JSON ({error}); {AGAIN}") from error
    _check_manifest(manifest, path)
    return manifest


def _check_manifest(manifest: Any, path: Path) -> None:
    if isinstance(manifest, dict) and isinstance(number := manifest.get("format"), int) and number > FORMAT:
        raise UserError(f"{path} has the format {number}, and this version reads {FORMAT}; install a newer one")
    check_schema(manifest, schema(), path / MANIFEST, f"; {AGAIN}")
    for name in manifest["files"]:
        _check_name(name, path)


def _check_name(name: str, path: Path) -> None:
    """Only names of files within the folder, of the three kinds that execute nothing."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or "/".join(parts) != name or not all(map(PART.fullmatch, parts)):
        raise UserError(f"{path} names the file {name!r}, which would leave its folder; {AGAIN}")
    if not name.endswith(ENDINGS):
        raise UserError(f"{path} holds {name!r}; a bundle has {', '.join(ENDINGS)} only, which run nothing; {AGAIN}")


def _check_members(archive: zipfile.ZipFile, files: Mapping[str, Any], path: Path) -> None:
    """The members of the zip are those that bundle.json names, each once, of the size that it states."""
    names = [info.filename for info in archive.infolist()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path} holds {twice[0]} twice; {AGAIN}")
    for info in archive.infolist():
        _check_name(info.filename, path)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise UserError(f"{path}: {info.filename} is a link or no plain file; {AGAIN}")
        if info.flag_bits & ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{path}: {info.filename} is encrypted or packed in an unusual way; {AGAIN}")
        if info.filename != MANIFEST and info.filename in files:
            stated = files[info.filename]["bytes"]
            if info.file_size != stated:
                raise UserError(f"{path}: {info.filename} has {info.file_size} bytes instead of {stated}; {AGAIN}")
    if others := sorted(set(names) - {MANIFEST, *files}):
        raise UserError(f"{path} holds {shorten(others, 3)}, which {MANIFEST} does not name; {AGAIN}")
    if missing := sorted({*files, CARD} - set(names)):
        raise UserError(f"{path} lacks {shorten(missing, 3)}; {AGAIN}")


def _member(archive: zipfile.ZipFile, name: str, most: int, path: Path) -> bytes:
    with archive.open(name) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path}: {name} has more than {most} bytes; {AGAIN}")
    return content


def _copy(source: IO[bytes], target: IO[bytes], stated: Mapping[str, Any], name: str) -> None:
    """Copy as many bytes as are stated; more, fewer or others are an error."""
    digest, left = hashlib.sha256(), stated["bytes"]
    while block := source.read(min(BLOCK, left + 1)):
        left -= len(block)
        if left < 0:
            break
        digest.update(block)
        target.write(block)
    if left:
        raise UserError(f"{name} has {'more' if left < 0 else 'fewer'} than its {stated['bytes']} bytes; {AGAIN}")
    if digest.hexdigest() != stated["sha256"]:
        raise UserError(f"{name} is not what {MANIFEST} says: its SHA-256 differs; {AGAIN}")


def _checked_folder(folder: Path) -> Bundle:
    """A bundle that was unpacked before: its files are compared anew."""
    bundle = _opened(folder, folder)
    for name, one in read_json(folder / MANIFEST)["files"].items():
        file = folder / name
        if not file.is_file() or file.is_symlink() or file.stat().st_size != one["bytes"]:
            raise UserError(f"{file} is missing or has another size than {MANIFEST} says; {AGAIN}")
        if file_digest(file) != one["sha256"]:
            raise UserError(f"{file} is not what {MANIFEST} says: its SHA-256 differs; {AGAIN}")
    return bundle


def _opened(path: Path, folder: Path) -> Bundle:
    """A folder with bundle.json as a bundle. path: what errors quote."""
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{path} is no bundle: it has no {MANIFEST}; `nnunet_brats bundle` writes one")
    manifest = read_json(folder / MANIFEST)
    _check_manifest(manifest, path)
    system = _check_content(manifest, folder, path)
    sizes = {name: one["bytes"] for name, one in manifest["files"].items()}
    return Bundle(folder, system, file_digest(folder / MANIFEST), sizes)


def _check_content(manifest: Mapping[str, Any], folder: Path, path: Path) -> BundledSystem:
    """The system of a manifest: complete, and its plans name nothing that could run code."""
    system = _system_of(manifest, path)
    for model in system.models.values():
        place = folder / model.folder
        needed = [place / f"fold_{fold}" / name for fold, name in model.weights]
        for file in (place / "plans.json", place / "dataset.json", *needed):
            if file.relative_to(folder).as_posix() not in manifest["files"]:
                raise UserError(f"{path} lacks {file.relative_to(folder)}; {AGAIN}")
        check_plans(place / "plans.json", path)
    return system


def _system_of(manifest: Mapping[str, Any], path: Path) -> BundledSystem:
    try:
        system = BundledSystem.from_json(manifest)
        system.check()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return system


NAMED = re.compile(  # what plans may name: classes, of packages that nnU-Net builds its networks of
    r"(dynamic_network_architectures|nnunet_brats_ext)\.architectures\.\w+\.[A-Z]\w*"
    r"|nnunet_brats_ext\.architectures\.monai_networks\.(seg_res_net|swin_unetr)"  # functions
    r"|torch\.nn(\.modules\.(conv|instancenorm|batchnorm|normalization|activation|dropout|pooling|linear))?\.[A-Z]\w*"
    r"|dynamic_network_architectures\.building_blocks\.\w+\.[A-Z]\w*"
)


def check_plans(file: Path, path: Path) -> None:
    """A UserError where plans name anything but classes of networks: nnU-Net imports and calls what they name.

    path: of the bundle.
    """
    plans = read_plans(file)
    for name in plans["configurations"]:
        network = resolve(plans["configurations"], name).get("architecture")
        if not network:
            continue
        arguments = network["arch_kwargs"]
        imported = [arguments.get(key) for key in network.get("_kw_requires_import", ())]
        for one in (network["network_class_name"], *filter(None, imported)):
            if not isinstance(one, str) or not NAMED.fullmatch(one):
                raise UserError(
                    f"{path}: the plans of {file.parent.name} name {one!r}, which is no part of a network; {AGAIN}"
                )
