"""The command line: help of every verb, what becomes of errors, and that names exist once."""

import gc
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints
from unittest.mock import Mock

import psutil
import pytest

from nnunet_brats_ext import cli
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.cli.imports import quick_imports
from nnunet_brats_ext.cli.parser import build_parser, is_required
from nnunet_brats_ext.cli.verbs import GROUPS, Verb
from nnunet_brats_ext.predictions.ensemble import METHODS
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.options import Options, shown_name, spec_of

VERBS = [verb for verbs in GROUPS.values() for verb in verbs]


@pytest.fixture
def verb_that_raises(monkeypatch):
    """A function that makes a verb whose run raises an error."""

    def make(error: BaseException) -> None:
        def run(options: Options) -> None:
            raise error

        verb = Verb("fail", "fails", "storage.options:Options", "")
        monkeypatch.setattr(Verb, "load_run", lambda self: run)
        monkeypatch.setattr(cli, "find_verb", lambda name: verb)

    return make


def test_the_overview_lists_every_verb_that_is_not_hidden(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for group, verbs in GROUPS.items():
        assert f"{group}:" in shown
        assert all((f"  {verb.name} " in shown) == (not verb.hidden) for verb in verbs)
    assert max(map(len, shown.splitlines())) <= 120


def test_the_garbage_collector_works_again_after_imports():
    with suppress(ImportError), quick_imports():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
    gc.disable()  # as a program may have it that calls `main`
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_names_of_verbs_are_unique():
    assert len({verb.name for verb in VERBS}) == len(VERBS)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_option_has_help_and_one_spelling_for_what_nnunet_has(verb, capsys):
    options = verb.load_options()
    parser = build_parser(options, verb.name, verb.help)
    shown = parser.format_help()
    for field in options.__dataclass_fields__.values():
        spec = spec_of(field)
        assert spec.help, f"{verb.name}: {field.name} has no help"
        assert not any(alias in shown.split() for alias in spec.aliases), "old spellings are not shown"
        if "-o" in (*spec.flags, *spec.aliases) and verb.name != "import":  # whose -o may also name a data set
            assert "Path" in str(field.type), f"{verb.name}: -o is always a path"
            assert spec.writes, f"{verb.name}: whether {field.name} can be written is checked before the work"
    with pytest.raises(SystemExit) as ended:
        main([verb.name, "--help"])
    assert ended.value.code == 0
    assert callable(verb.load_run())


OUTPUTS = [(verb, field) for verb in VERBS for field in fields(verb.load_options()) if spec_of(field).writes]


@pytest.mark.parametrize(("verb", "field"), OUTPUTS, ids=[f"{verb.name} {field.name}" for verb, field in OUTPUTS])
def test_an_output_below_a_file_is_refused_before_anything_is_read(verb, field, tmp_path, capsys):
    file, spec = tmp_path / "file", spec_of(field)
    file.touch()
    words = []
    for other in fields(verb.load_options()):  # inputs that are not there either
        kind, other_spec = get_type_hints(verb.load_options())[other.name], spec_of(other)
        if other != field and is_required(other):
            words += [*([] if other_spec.positional else other_spec.flags[:1]), "137" if kind is int else "nowhere"]
    out = [*([] if spec.positional else [shown_name(field)]), str(file / f"out{spec.ending}")]
    assert main([verb.name, *out, *words] if spec.positional else [verb.name, *words, *out]) == 1
    assert f"{file} is a file and cannot hold it; choose another place" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


def test_an_unknown_verb_is_quoted_with_the_closest_known_one(capsys):
    assert main(["doctr"]) == 2
    assert "no verb 'doctr'; did you mean 'doctor'?" in capsys.readouterr().err


def test_what_the_user_can_fix_is_one_sentence(verb_that_raises, capsys):
    verb_that_raises(UserError("-d 1000: data set IDs lie between 1 and 999"))
    assert main(["fail"]) == 1
    assert capsys.readouterr().err == "nnunet_brats fail: -d 1000: data set IDs lie between 1 and 999\n"


def test_debug_shows_the_traceback_of_a_users_error_too(verb_that_raises, capsys):
    verb_that_raises(UserError("no such file"))
    assert main(["fail", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [ValueError("shape"), RuntimeError("mat1 and mat2"), TypeError("x"), OSError("ours"), ImportError("no module")],
)
def test_any_other_error_is_a_defect_and_keeps_its_traceback(error, verb_that_raises):
    verb_that_raises(error)
    with pytest.raises(type(error)):
        main(["fail"])


def test_errors_of_the_operating_system_name_the_file(verb_that_raises, capsys):
    verb_that_raises(PermissionError(13, "Permission denied", "/data/results"))
    assert main(["fail"]) == 1
    assert capsys.readouterr().err == "nnunet_brats fail: /data/results: Permission denied\n"


def test_ctrl_c_is_no_failure(verb_that_raises, capsys):
    verb_that_raises(KeyboardInterrupt())
    assert main(["fail"]) == 130
    assert capsys.readouterr().err == "nnunet_brats fail: stopped\n"


def test_ctrl_c_is_no_failure_before_a_verb_has_begun(monkeypatch, capsys):
    monkeypatch.setattr(Verb, "load_options", interrupt := Mock(side_effect=KeyboardInterrupt))
    monkeypatch.setattr("nnunet_brats_ext.plugin.requirements.require_nnunet", interrupt)
    for verb in ("doctor", "predict"):
        assert main([verb]) == 130
        assert capsys.readouterr().err == f"nnunet_brats {verb}: stopped\n"


def test_a_number_out_of_range_is_refused_with_its_option(capsys):
    assert main(["demo", "--epochs", "0"]) == 1
    assert "--epochs 0: expected at least 1" in capsys.readouterr().err


def test_the_help_of_ensemble_says_what_each_method_does(capsys):
    with pytest.raises(SystemExit):
        main(["ensemble", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}: {method.help}" in said for name, method in METHODS.items())


def start_phantoms(out: Path, cases: int, handling: signal.Handlers) -> subprocess.Popen:
    """A command with two workers, which handles Ctrl-C as said from the start."""
    options = ["--cases", str(cases), "--size", "32", "36", "32", "-np", "2"]
    command = [sys.executable, "-m", "nnunet_brats_ext.cli", "phantom", out, *options]
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, handling),
    )


def test_ctrl_c_does_nothing_where_it_is_ignored_as_with_nohup(tmp_path):
    process = start_phantoms(tmp_path / "out", 2, signal.SIG_IGN)
    try:
        while len(children(process)) < 3 and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 0, said


@pytest.mark.parametrize("workers_started", [False, True])
def test_ctrl_c_gives_one_line_also_while_workers_start(workers_started, tmp_path):
    process = start_phantoms(tmp_path / "out", 40, signal.SIG_DFL)
    try:
        wanted = 3 if workers_started else 1  # the first is multiprocessing's resource tracker
        while len(children(process)) < wanted and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "nnunet_brats phantom: stopped"
    assert process.returncode == 130
    assert not list(tmp_path.iterdir())


def children(process: subprocess.Popen) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children()
    return []
