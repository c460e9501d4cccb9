"""Locks between processes, on Linux, macOS and Windows. A lock ends with the process that holds it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # what file systems without locks answer


class AlreadyLocked(Exception):
    """Another process holds the lock."""


@contextmanager
def lock(path: Path, patience_s: float = 0) -> Iterator[bool]:
    """Hold the lock that is the file `path`; AlreadyLocked if another process keeps it for longer than `patience_s`.

    Gives False on a file system without locks, where nothing is held.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path)
    try:
        held.acquire(timeout=patience_s)
    except Timeout:
        raise AlreadyLocked(str(path)) from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in WITHOUT_LOCKS:
            raise
        yield False
        return
    try:
        yield True
    finally:
        held.release()


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock, or may hold it: on a file system without locks nobody can say."""
    try:
        with lock(path) as held:
            return not held
    except AlreadyLocked:
        return True
