"""Folders that appear whole or not at all, and what killed runs leave."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from nnunet_brats_ext.storage import output
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.output import (
    check_output,
    partial_file,
    publish,
    staged,
    working_folder,
    write_texts,
    writing,
)

WORK = (
    "import sys, time; from pathlib import Path; from nnunet_brats_ext.storage.output import working_folder\n"
    "with working_folder(Path(sys.argv[1])) as folder:\n"
    "    (folder / 'new').mkdir(); print(folder, flush=True); time.sleep(600)"
)


@pytest.fixture
def start_run(tmp_path):
    """Starts another process that works on tmp_path/out; gives the process and its working folder."""
    processes = []

    def start() -> tuple[subprocess.Popen, Path]:
        process = subprocess.Popen([sys.executable, "-c", WORK, tmp_path / "out"], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in processes:
        process.kill()
        process.wait()


def kill(process: subprocess.Popen) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_the_next_run_removes_what_a_killed_one_left_and_nothing_that_is_in_use(tmp_path, start_run):
    (killed, abandoned), (_, in_use) = start_run(), start_run()
    kill(killed)
    assert abandoned.is_dir()
    with working_folder(tmp_path / "out") as own:
        assert sorted(tmp_path.iterdir()) == sorted([in_use, own])
    assert list(tmp_path.iterdir()) == [in_use]


def test_other_hidden_folders_are_never_removed(tmp_path, start_run):
    process, young = start_run()
    kill(process)
    (young / output.BEGINNING).touch()  # its lock may be about to be taken
    backup = tmp_path / ".out.backup"  # of the user, without a lock
    backup.mkdir()
    (tmp_path / ".out.notes").write_text("mine")
    os.utime(backup, (0, 0))
    with working_folder(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([young.name, ".out.backup", ".out.notes"])


def test_where_locks_do_not_work_nothing_is_removed(tmp_path, start_run, monkeypatch):
    process, left = start_run()
    kill(process)
    monkeypatch.setattr(output, "is_locked", lambda _: True)
    with working_folder(tmp_path / "out"):
        pass
    assert left.is_dir()


def test_the_folder_of_another_user_does_not_stop_a_run(tmp_path, start_run, monkeypatch):
    process, left = start_run()
    kill(process)

    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(output, "is_locked", refuse)
    with working_folder(tmp_path / "out") as own:
        assert own.is_dir()
    assert left.is_dir()


def test_only_its_owner_may_enter_a_working_folder_and_the_published_one_is_as_usual(tmp_path):
    with staged(tmp_path / "out", ["a"]) as stage:
        (stage / "a.nii.gz").touch()
        assert stage.parent.stat().st_mode & 0o077 == 0
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_run_that_fails_leaves_nothing_and_one_that_ends_well_all(tmp_path):
    message = "out could not be written: No space left on device .*make room"
    with pytest.raises(UserError, match=message), staged(tmp_path / "out", ["a"]) as stage:
        (stage / "a.nii.gz").touch()
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())
    with staged(tmp_path / "deep" / "out", ["a"]) as stage:
        (stage / "a.nii.gz").touch()
    assert [path.name for path in (tmp_path / "deep" / "out").iterdir()] == ["a.nii.gz"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_a_defect_keeps_its_traceback_and_leaves_nothing(tmp_path):
    with pytest.raises(TypeError), staged(tmp_path / "out", ["a"]):
        len(5)
    assert not list(tmp_path.iterdir())


def test_an_earlier_run_over_the_same_cases_is_replaced_without_contradictions(tmp_path):
    for name in ("a.nii.gz", "a.npz", "a.pkl", "dataset.json", "notes.txt"):
        (tmp_path / name).write_text("old")
    with staged(tmp_path, ["a"], overwrite=True) as stage:
        (stage / "a.nii.gz").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.nii.gz": "new", "notes.txt": "old"}


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file", "the output folder .*file is a file; choose a folder"),
        ("in", "the output folder .*in is also an input"),
        ("others", r"others already holds maps of other cases \(b.nii.gz\); choose another folder$"),
        ("same", r"same already holds maps \(a.nii.gz\); choose another folder, or replace them with --overwrite$"),
    ],
)
def test_what_cannot_be_an_output_folder_is_refused_before_anything_is_written(tmp_path, out, message):
    (tmp_path / "file").touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "b.nii.gz").touch()
    (tmp_path / "same").mkdir()
    (tmp_path / "same" / "a.nii.gz").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message), staged(tmp_path / out, ["a"], [tmp_path / "in"]):
        raise AssertionError("must not begin")
    assert sorted(tmp_path.rglob("*")) == before


def test_two_runs_into_one_folder_both_end_well(tmp_path):
    command = (
        "import sys; from pathlib import Path; from nnunet_brats_ext.storage.output import staged\n"
        "for number in range(20):\n"
        "    with staged(Path(sys.argv[1]), ['a', 'b'], overwrite=True) as stage:\n"
        "        for case in 'ab': (stage / f'{case}.nii.gz').write_text('whole' * 1000)"
    )
    runs = [subprocess.Popen([sys.executable, "-c", command, tmp_path / "out"]) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    contents = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert contents == dict.fromkeys(("a.nii.gz", "b.nii.gz"), "whole" * 1000)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_appears_during_a_run_is_replaced_only_where_the_user_says_so(tmp_path, monkeypatch, overwrite):
    def another_run_is_faster(growing, target, overwrite=False):
        target.mkdir()
        (target / "a.nii.gz").write_text("another's")
        raise FileExistsError(17, "another run has made it in the meantime", str(target))

    monkeypatch.setattr(output, "publish", another_run_is_faster)
    result = nullcontext() if overwrite else pytest.raises(UserError, match=r"already holds maps \(a.nii.gz\)")
    with result, staged(tmp_path / "out", ["a"], overwrite=overwrite) as stage:
        (stage / "a.nii.gz").write_text("this run's")
    assert (tmp_path / "out" / "a.nii.gz").read_text() == ("this run's" if overwrite else "another's")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(2, "No such file or directory", "in.txt"), "in.txt: No such file or directory"),
        (PermissionError(13, "Permission denied", "a.txt"), "Permission denied"),
        (OSError("the disk is gone"), "the disk is gone"),
    ],
)
def test_an_error_names_its_file_and_only_a_full_disk_asks_for_room(error, message):
    with pytest.raises(UserError, match=f"^a.txt could not be written: {message}$"), writing(Path("a.txt")):
        raise error


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        ("file", "new.json", None),
        ("file", "old.json", None),
        ("file", "deep/er/new.json", None),
        ("folder", "deep/er", None),
        ("folder", "folder", None),
        ("file", "folder", "-o .*folder is a folder; name a file that ends in .json"),
        ("file", "new.txt", r"-o .*new.txt: give a file that ends in .json"),
        ("file", "old.json/new.json", "-o .*new.json: .*old.json is a file and cannot hold it; choose another place"),
        ("folder", "old.json", "-o .*old.json is a file; choose a folder"),
        ("folder", "old.json/deep/er", "-o .*er: .*old.json is a file and cannot hold it"),
        ("file", "closed/new.json", "-o .*new.json: nothing may be written in .*closed; choose another place"),
        ("folder", "closed/deep/er", "-o .*er: nothing may be written in .*closed"),
        ("folder", "closed", "-o .*closed: nothing may be written in .*closed"),
    ],
)
def test_whether_an_output_can_be_written_is_said_before_the_work(tmp_path, monkeypatch, kind, path, message):
    (tmp_path / "old.json").touch()
    for name in ("folder", "closed"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(os, "access", lambda place, mode: place.name != "closed")  # tests may run as root
    before = sorted(tmp_path.rglob("*"))
    refused = pytest.raises(UserError, match=f"^{message}") if message else nullcontext()
    with refused:
        check_output("-o", tmp_path / path, kind, ".json" if kind == "file" else "")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    started = time.time()
    with pytest.raises(UserError, match="could not be written: "), working_folder(tmp_path / "file" / "out"):
        pass
    assert time.time() - started < 5


def test_a_file_that_fails_half_way_leaves_the_earlier_one_and_nothing_else(tmp_path):
    file = tmp_path / "file"
    file.write_text("earlier")
    with pytest.raises(KeyError), partial_file(file) as partial:
        partial.write_text("half")
        raise KeyError
    assert [path.read_text() for path in tmp_path.iterdir()] == ["earlier"]


def test_files_whose_writer_adds_the_endings_take_their_places_together(tmp_path):
    with partial_file(tmp_path / "case", (".npz", ".nii.gz")) as partial:
        for ending in (".npz", ".nii.gz"):
            Path(f"{partial}{ending}").touch()
        assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"case.npz", "case.nii.gz"}
    unwritten = pytest.raises(UserError, match=r"other\.nii\.gz could not be written")
    with unwritten, partial_file(tmp_path / "other", (".nii.gz",)):
        pass


def test_of_texts_that_belong_together_none_is_written_where_one_cannot_be(tmp_path):
    (tmp_path / "folder").mkdir()
    for names in (("first", "folder"), ("folder", "first")):
        with pytest.raises(UserError, match="folder is a folder"):
            write_texts({tmp_path / name: "text" for name in names})
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("there", [None, "empty", "full"])
def test_a_folder_is_published_over_none_an_empty_one_or_on_request_a_full_one(tmp_path, there):
    growing, target = tmp_path / "scratch" / "new", tmp_path / "out"
    growing.mkdir(parents=True)
    (growing / "new").touch()
    if there:
        target.mkdir()
    if there == "full":
        (target / "old").touch()
        with pytest.raises(FileExistsError):
            publish(growing, target)
        assert [path.name for path in target.iterdir()] == ["old"]
    publish(growing, target, overwrite=there == "full")
    assert [path.name for path in target.iterdir()] == ["new"]


def test_where_the_new_folder_cannot_be_published_the_old_one_comes_back(tmp_path):
    scratch, target = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(FileNotFoundError):
        publish(scratch / "missing", target, overwrite=True)
    assert [path.name for path in target.iterdir()] == ["old"]
