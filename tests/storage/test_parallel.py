"""One function over many cases: order, failures, killed processes, progress."""

import io
import os
import signal
from functools import partial

import pytest
from rich.console import Console

from nnunet_brats_ext.storage import parallel
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.parallel import (
    available_cores,
    default_processes,
    for_each,
    for_each_case,
    progress_bar,
    progress_shown,
)

both = pytest.mark.parametrize("processes", [1, 2])


def double(case: str) -> str:
    if case in ("bad", "worse"):
        raise UserError(f"{case} is bad")
    if case.startswith("advised"):
        raise UserError(f"{case} is bad", "give another")
    if case == "gone":
        raise FileNotFoundError(2, "No such file or directory", "gone.nii.gz")
    if case == "defect":
        raise TypeError("a defect")
    if case == "killer":
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * case


def write_name(folder, case: str) -> None:
    (folder / case).touch()
    double(case)


@both
def test_results_keep_the_order_of_the_items(processes):
    items = [f"{number:02d}" for number in range(20, 0, -1)]
    assert for_each(double, items, "Double", processes) == [2 * item for item in items]
    assert list(for_each_case(double, iter(items), "Double", processes)) == items
    assert for_each(double, [], "Double", processes) == []


@both
def test_one_error_names_all_failures_in_order_and_the_others_are_done(processes, tmp_path):
    with pytest.raises(UserError) as caught:
        for_each(partial(write_name, tmp_path), ["a", "worse", "c", "gone", "bad"], "Doubling", processes)
    assert str(caught.value) == (
        "Doubling: 3 of 5 cases failed:\n"
        "  worse: worse is bad\n"
        "  gone: [Errno 2] No such file or directory: 'gone.nii.gz'\n"
        "  bad: bad is bad"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"a", "worse", "c", "gone", "bad"}


@both
def test_advice_that_many_failures_have_in_common_is_stated_once(processes):
    with pytest.raises(UserError) as caught:
        for_each(double, ["advised 1", "advised 2", "bad"], "Doubling", processes)
    assert str(caught.value).splitlines()[1:] == [
        "  advised 1: advised 1 is bad",
        "  advised 2: advised 2 is bad",
        "  bad: bad is bad",
        "give another",
    ]


@both
def test_a_name_for_messages_can_be_given(processes):
    with pytest.raises(UserError, match=r"\n  case BAD: bad is bad"):
        for_each(double, ["bad"], "Double", processes, lambda item: f"case {item.upper()}")


@both
def test_a_defect_stops_the_work_and_keeps_its_traceback(processes, tmp_path):
    items = ["defect", *map(str, range(40))]
    with pytest.raises(TypeError, match="a defect") as caught:
        for_each(partial(write_name, tmp_path), items, "Double", processes)
    remote = str(caught.value.__cause__)
    assert "in double" in remote if processes == 2 else caught.traceback[-1].name == "double"
    assert len(list(tmp_path.iterdir())) < len(items)


def test_a_killed_process_ends_the_run_with_advice():
    with pytest.raises(UserError, match=r"a process was killed, .* memory ran out; use fewer with -np\. In a script"):
        for_each_case(double, ["killer", "a"], "Double", 2)


def test_no_more_processes_are_started_than_there_are_items(monkeypatch):
    started = []
    monkeypatch.setattr(parallel, "_outcomes", lambda _, __, processes: started.append(processes) or iter(()))
    for_each(double, [], "Double", 8)
    assert started == [1]
    monkeypatch.setattr(parallel, "available_cores", lambda: 64)
    assert default_processes() == 8
    monkeypatch.setattr(parallel, "available_cores", lambda: 3)
    assert default_processes() == 3


def test_the_cores_are_those_of_this_process():
    assert 1 <= available_cores() <= os.cpu_count()


def test_bars_are_shown_only_where_they_are_asked_for(capsys):
    for_each(double, ["a", "b"], "Doubling", 1)
    assert capsys.readouterr() == ("", "")
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    with progress_shown(), progress_bar("Doubling", 2, console) as advance:
        advance()
        advance()
    assert "Doubling" in stream.getvalue() and "2/2" in stream.getvalue()
    with progress_shown():
        for_each(double, ["a", "b"], "Doubling", 1)
    out, error = capsys.readouterr()
    assert out == "" and "Doubling" in error, "on the error stream"
    for_each(double, ["a", "b"], "Doubling", 1)
    assert capsys.readouterr() == ("", "")
