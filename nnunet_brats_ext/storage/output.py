"""Safe output: a file or folder appears whole or not at all, and what a killed run left is removed by the next one."""

import errno
import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from nnunet_brats_ext.storage.errors import UserError, shorten
from nnunet_brats_ext.storage.locks import is_locked, lock

GRACE_S = 60.0  # the lock of a beginning folder younger than this may be about to be taken
LOCK = ".lock"
BEGINNING = ".new"  # a file that is there until the lock has been taken
PARTIAL = ".partial-"  # what the names of unfinished files begin with
SETTINGS_FILES = ("dataset.json", "plans.json", "ensemble.json", "postprocessing_rules.json", "uncertainty.json")


OutputKind = Literal["file", "folder"]
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the operating system while `path` is written into a UserError that names it; a full disk also."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.filename is not None and os.fspath(error.filename) != str(path):
            reason = f"{error.filename}: {reason}"
        raise UserError(f"{path} could not be written: {reason}{_advice(path, error)}") from error


def _advice(path: Path, error: OSError) -> str:
    """Where a disk is full: how much is left of it, and what to do."""
    if error.errno not in NO_ROOM:
        return ""
    place = next((folder for folder in path.absolute().parents if folder.is_dir()), Path.cwd())
    try:
        free = f" ({shutil.disk_usage(place).free / 1e9:.2f} GB free in {place})"
    except OSError:
        free = ""
    return f"{free}; make room or choose another place"


def write_text(path: Path, text: str) -> None:
    """Write a text file at once or not at all; UTF-8."""
    write_texts({path: text})


def write_texts(files: Mapping[Path, str | Iterable[str]]) -> None:
    """Write text files that belong together: all of them or, where one cannot be written, none; UTF-8.

    A long text may come in parts.
    """
    with ExitStack() as stack:
        for path in reversed(list(files)):  # the stack ends with the first, so they take their places in order
            if path.is_dir():
                raise UserError(f"{path} is a folder, where a file of this name is to be written; choose another place")
            text = files[path]
            with stack.enter_context(partial_file(path, shared=True)).open("w", encoding="utf-8") as file:
                file.writelines([text] if isinstance(text, str) else text)


@contextmanager
def partial_file(path: Path, endings: Sequence[str] = ("",), shared: bool = False) -> Iterator[Path]:
    """A path to write to, which becomes `path` in one rename when the block ends well; else it is removed.

    endings: for what adds endings to a name itself, perhaps for several files; they take their places in this order.
    shared: several processes may write the file at a time. Without it, what a killed run left is written over.
    """
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}" if shared else f"{PARTIAL}{path.name}")
    with writing(Path(f"{path}{endings[-1]}")):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            for ending in endings:
                Path(f"{partial}{ending}").replace(f"{path}{ending}")
        finally:
            for ending in endings:
                Path(f"{partial}{ending}").unlink(missing_ok=True)


def check_output(name: str, path: Path, kind: OutputKind, ending: str = "") -> None:
    """An error where a file or folder cannot be written: before the work, not after it.

    name: of the option that gives the path. ending: of the file's name.
    """
    if kind == "file" and path.is_dir():
        raise UserError(f"{name} {path} is a folder; name a file{' that ends in ' + ending if ending else ''}")
    if not path.name.endswith(ending):
        raise UserError(f"{name} {path}: give a file that ends in {ending}")
    if kind == "folder" and path.exists() and not path.is_dir():
        raise UserError(f"{name} {path} is a file; choose a folder")
    place = path.absolute()
    there = place if kind == "folder" and place.is_dir() else next(one for one in place.parents if one.exists())
    if not there.is_dir():
        raise UserError(f"{name} {path}: {there} is a file and cannot hold it; choose another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{name} {path}: nothing may be written in {there}; choose another place")


@contextmanager
def working_folder(target: Path) -> Iterator[Path]:
    """A hidden folder on the disk of `target`, for this run alone; it is removed when the block ends.

    Only its owner may enter it, so what is to be published grows in a folder inside. A run that was killed leaves its
    folder, but not its lock on it: the next run with this target removes it.
    """
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{target.name}."
        for folder in target.parent.iterdir():
            if folder.name.startswith(prefix) and _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)
        scratch = TemporaryDirectory(prefix=prefix, dir=target.parent, ignore_cleanup_errors=True)
    with scratch as name:
        Path(name, BEGINNING).touch()
        with lock(Path(name, LOCK)):
            Path(name, BEGINNING).unlink()
            try:
                yield Path(name)
            finally:  # the lock file last, by which the next run knows what a kill in between has left
                for path in Path(name).iterdir():
                    if path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    elif path.name != LOCK:
                        path.unlink(missing_ok=True)


def publish(growing: Path, target: Path, overwrite: bool = False) -> None:
    """Move a finished folder out of a working folder into its place.

    With `overwrite`, the one that is there moves into the working folder, and back if the new one cannot take its
    place. Where another run has put one there in the meantime, that one stays, and this is a FileExistsError.
    """
    old = growing.with_name("old")
    with suppress(OSError):
        target.rmdir()  # an empty one, which Windows would not replace
    if overwrite:
        with suppress(FileNotFoundError):
            target.replace(old)
    try:
        growing.replace(target)
    except OSError as error:
        if target.exists():
            raise FileExistsError(
                errno.EEXIST, "another run has made it in the meantime; choose another place", str(target)
            ) from error
        if old.exists():
            old.replace(target)
        raise


def _is_abandoned(folder: Path) -> bool:
    """Whether a run that was killed has left this working folder: it has a lock, and nobody holds it."""
    try:
        lock_file = folder / LOCK
        old = time.time() - folder.stat().st_mtime > GRACE_S
        return lock_file.is_file() and (old or not (folder / BEGINNING).is_file()) and not is_locked(lock_file)
    except OSError:  # gone in the meantime, or another user's
        return False


def refuse_maps(
    folder: Path, there: Collection[str], replaceable: Collection[str] = (), overwrite: bool = False
) -> None:
    """The rule of all commands that write a folder of maps: those that are there stay, unless the user says otherwise.

    there: names of the maps in the folder. replaceable: those that this run writes as well; other ones always stay,
    because a folder that mixes two runs would be scored as one.
    """
    if others := sorted(set(there) - set(replaceable)):
        of_others = "of other cases " if replaceable else ""
        raise UserError(f"{folder} already holds maps {of_others}({shorten(others, 3)}); choose another folder")
    if there and not overwrite:
        names = shorten(sorted(there), 3)
        advice = "choose another folder, or replace them with --overwrite"
        raise UserError(f"{folder} already holds maps ({names}); {advice}")


def _refuse_those_there(out: Path, cases: Sequence[str], ending: str, overwrite: bool) -> None:
    there = [path.name for path in out.glob(f"[!.]*{ending}")]
    refuse_maps(out, there, [case + ending for case in cases], overwrite)


@contextmanager
def staged(
    out: Path, cases: Sequence[str], sources: Sequence[Path] = (), ending: str = ".nii.gz", overwrite: bool = False
) -> Iterator[Path]:
    """A folder that becomes `out`, or moves its files there, when the block ends well; else it is removed.

    `out` may be there, but must be none of `sources` and hold no maps (`refuse_maps`). With `overwrite` they may be of
    the same cases, from an earlier run; none of its files that would contradict this one stay.
    """
    check_output("the output folder", out, "folder")
    if any(out.resolve() == source.resolve() for source in sources):
        raise UserError(f"the output folder {out} is also an input; choose another")
    with working_folder(out.absolute()) as scratch:  # first, because it removes what a killed run has left
        _refuse_those_there(out, cases, ending, overwrite)
        stage = scratch / "new"
        stage.mkdir()
        with writing(out):
            yield stage
            if not out.exists():
                with suppress(FileExistsError):
                    publish(stage, out)  # at once, so that a run that is killed here leaves no part of it
                    return
            _refuse_those_there(out, cases, ending, overwrite)  # another run may have ended in the meantime
            for name in (*(f"{case}{suffix}" for case in cases for suffix in (".npz", ".pkl")), *SETTINGS_FILES):
                (out / name).unlink(missing_ok=True)
            for path in sorted(stage.iterdir()):
                path.replace(out / path.name)
