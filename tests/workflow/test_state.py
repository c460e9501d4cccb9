"""States of jobs, and who works where."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from workflow_runs import WRITE, small_run

from nnunet_brats_ext.cli import main
from nnunet_brats_ext.workflow.ownership import only_one
from nnunet_brats_ext.workflow.perform import perform
from nnunet_brats_ext.workflow.resources import Needs
from nnunet_brats_ext.workflow.state import Job, Run, open_run, settle, signature, states_of


def perform_all(run: Run) -> Run:
    """What the engine does, one job after the other."""
    for name, job in run.jobs.items():
        if states_of(run)[name][0] != "done" and all(states_of(run)[before][0] == "done" for before in job.after):
            perform(run, job)
    return run


def states(run: Run) -> list[str]:
    return [state for state, _ in states_of(run).values()]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)  # jobs run in the folder of their run
    return tmp_path


def test_other_cores_and_gpus_are_no_change_but_another_place_is():
    one = Job("train/m/fold_0", ("t", "-np", "2", "-num_gpus", "4", "-npfp", "3", "x"), Path("/a"), (), Needs(1, 1, 1))
    assert signature(one) == signature(replace(one, command=("t", "-np", "8", "x")))
    assert signature(one) != signature(replace(one, command=("t", "-np", "8", "y")))
    assert signature(one) != signature(replace(one, result=Path("/b")))


def test_what_was_done_otherwise_or_on_older_results_is_not_done(folder):
    run = perform_all(small_run(folder))
    assert states(run) == ["done"] * 4
    assert states(small_run(folder, WRITE.replace("'x'", "'y'"))) == ["done", "waiting", "waiting", "done"]
    assert states(small_run(folder)) == ["done"] * 4, "as it was"
    perform(run, run.jobs["convert/a"])
    assert states(run) == ["done", "waiting", "waiting", "waiting"]


def test_snakemake_sees_by_the_times_of_files_what_is_done(folder):
    run = perform_all(small_run(folder))
    for name in run.jobs:
        os.utime(run.done_file(name), (1e9 - len(run.done_file(name).name),) * 2)  # a copy: any order
    settle(run)
    times = {name: run.done_file(name).stat().st_mtime for name in run.jobs}
    assert all(times[before] <= times[name] for name, job in run.jobs.items() for before in job.after)
    settle(changed := small_run(folder, WRITE.replace("'x'", "'y'")))
    assert [changed.done_file(name).exists() for name in changed.jobs] == [True, False, False, True]


def test_a_log_is_kept_and_a_missing_result_is_a_failure(folder, capfd):
    run = perform_all(small_run(folder, "pass"))
    assert states(run) == ["done", "failed", "waiting", "done"]
    assert "is not there" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("state", "finished", "'finished' is not one of"),
        ("command", None, "None is not of type 'array'"),
        ("ended", "now", "'now' is not of type 'number'"),
    ],
)
def test_a_state_that_somebody_has_edited_is_refused_with_file_and_key(folder, capsys, key, value, words):
    run = perform_all(small_run(folder))
    file = run.state_file("tune/b")
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    assert main(["status", str(folder)]) == 1
    said = capsys.readouterr().err
    assert f"{file}, {key}: {words}" in said
    assert "remove the file and give the command of the run again" in said


def test_a_run_can_be_looked_at_from_anywhere(folder, monkeypatch, capsys):
    run = perform_all(small_run(folder))
    monkeypatch.chdir("/")
    assert main(["status", str(folder)]) == 0
    assert f"{folder}: 4 done" in capsys.readouterr().out
    assert open_run(folder).jobs == run.jobs


def test_two_cannot_work_in_one_place_and_the_dead_hold_nothing(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from nnunet_brats_ext.workflow.ownership import only_one\n"
        f"with only_one(Path({str(tmp_path / 'lock')!r}), 'it is used'): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"it is used by process {holder.pid} on .*; wait until it ends"):  # noqa: SIM117
        with only_one(tmp_path / "lock", "it is used", patience_s=0.2):
            pass
    holder.kill()
    holder.wait()
    with only_one(tmp_path / "lock", "it is used") as locked:
        assert locked
    assert [path.name for path in tmp_path.iterdir()] == ["lock"], "the note of the owner goes with the lock"


def test_a_note_of_the_owner_that_is_not_whole_says_less_and_breaks_nothing(tmp_path):
    with only_one(tmp_path / "lock", "it is used"):
        for text in ("{", "[]", "{}"):
            (tmp_path / "lock.owner.json").write_text(text)
            with pytest.raises(ValueError, match="it is used by another process"):  # noqa: SIM117
                with only_one(tmp_path / "lock", "it is used", patience_s=0):
                    pass
