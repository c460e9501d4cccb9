"""Locks between processes."""

import errno
import os
import signal
import subprocess
import sys

import filelock
import pytest

from nnunet_brats_ext.storage.locks import AlreadyLocked, is_locked, lock

HOLD = (
    "import sys, time; from pathlib import Path; from nnunet_brats_ext.storage.locks import lock\n"
    "with lock(Path(sys.argv[1])) as held: print(held, flush=True); time.sleep(600)"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/deep/lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "deep" / "lock"], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"True\n"
    yield process
    process.kill()
    process.wait()


def test_another_process_keeps_the_lock_until_it_ends_even_by_a_kill(tmp_path, holder):
    path = tmp_path / "deep" / "lock"
    assert is_locked(path)
    with pytest.raises(AlreadyLocked, match="lock"), lock(path, patience_s=0.1):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert not is_locked(path)
    with lock(path) as held:
        assert held and is_locked(path)
    assert not is_locked(path)


def test_the_lock_ends_with_an_error_inside(tmp_path):
    with pytest.raises(KeyError), lock(tmp_path / "lock"):
        raise KeyError
    assert not is_locked(tmp_path / "lock")


@pytest.mark.parametrize("error", [NotImplementedError(), *(OSError(n, "") for n in (errno.ENOSYS, errno.ENOLCK))])
def test_on_a_file_system_without_locks_nothing_is_held_and_anything_may_be(tmp_path, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with lock(tmp_path / "lock") as held:
        assert not held
    assert is_locked(tmp_path / "lock"), "nobody can say, so what lies beside it is left alone"


def test_other_errors_of_the_file_system_are_not_hidden(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.raises(PermissionError), lock(tmp_path / "lock"):
        pass
