"""Who works where: one process at a time in a place, on whatever machine, and its name for those that wait."""

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json, write_json
from nnunet_brats_ext.storage.locks import AlreadyLocked, lock


class InUse(UserError):
    """Another process works in the place."""


def this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}


def is_alive(owner: Mapping[str, Any]) -> bool:
    """Whether the process still runs; of another machine's process nothing is known, and it counts as alive."""
    if owner["host"] != socket.gethostname():
        return True
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def shown_owner(owner: Mapping[str, Any]) -> str:
    if not owner.keys() >= {"host", "pid", "since"}:
        return "another process"
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(owner["since"]))
    return f"process {owner['pid']} on {owner['host']}, since {since}"


@contextmanager
def only_one(place: Path, what: str, patience_s: float = 5) -> Iterator[bool]:
    """Hold the lock file `place`, whose owner is noted in a file beside it; a second process gets an InUse naming it.

    The lock ends with its process. Gives False on a file system without locks.
    """
    note = place.with_name(f"{place.name}.owner.json")
    with ExitStack() as held:
        try:
            locked = held.enter_context(lock(place, patience_s))
        except AlreadyLocked:
            raise InUse(f"{what} by {shown_owner(_read_note(note))}; wait until it ends, or end it") from None
        write_json(note, this_process())
        held.callback(note.unlink, missing_ok=True)
        yield locked


def _read_note(note: Path) -> dict[str, Any]:
    """The owner, if its note is whole: it may be written or removed this very moment."""
    with suppress(UserError):
        return read_json(note)
    return {}
