"""The engine on jobs that take no time: failures, changes, signals, locks, and folders that move."""

import json
import shutil
import signal
import subprocess

import psutil
import pytest

pytest.importorskip("snakemake", reason="Snakemake 9 needs Python 3.11")

from rich.console import Console
from workflow_runs import WRITE, graph_of, kill, kinds, small_run, start, start_elsewhere, wait_for

from nnunet_brats_ext.cli import main
from nnunet_brats_ext.cli.recipes import print_end
from nnunet_brats_ext.workflow.engine import engine_errors, jobs_left, release_stale_lock, snakemake
from nnunet_brats_ext.workflow.recipe import COMPARE, load_recipe, published_recipes
from nnunet_brats_ext.workflow.state import Run, states_of

NOT_COMPARED = [
    name for name in published_recipes() if not any(m.startswith(f"{name}.") for m in load_recipe(COMPARE).models)
]


def states(run: Run) -> dict[str, str]:
    return {name: state for name, (state, _) in states_of(run).items()}


def test_a_failure_stops_only_what_depends_on_it_and_says_what_to_do(tmp_path, capsys):
    run = small_run(tmp_path, "raise SystemExit('CUDA out of memory')")
    start(run)
    assert states(run) == {"convert/a": "done", "tune/b": "failed", "evaluate/c": "waiting", "evaluate/d": "done"}
    assert main(["status", str(tmp_path)]) == 1
    said = capsys.readouterr().out.replace("\n", " ")
    assert "2 done, 1 failed, 1 waiting" in said
    assert "lower --gpu-memory-gb" in said
    assert str(run.log("tune/b")) in said


def test_a_changed_setting_runs_again_only_what_depends_on_it_also_in_a_copied_folder(tmp_path):
    """The copy has a name that Snakemake takes for a pattern, and files whose times say nothing."""
    run = small_run(tmp_path / "run")
    start(run)
    assert set(states(run).values()) == {"done"}
    folder = tmp_path / "a b {x} Ü"
    shutil.copytree(run.folder, folder, copy_function=shutil.copy)
    ended = {name: noted["ended"] for name, (_, noted) in states_of(run).items()}
    run = small_run(folder, WRITE.replace("'x'", "'y'"))
    assert jobs_left(run) == ["tune/b", "evaluate/c"]
    start(run)
    again = {name for name, (state, noted) in states_of(run).items() if noted["ended"] != ended[name]}
    assert again == {"tune/b", "evaluate/c"}
    assert set(states(run).values()) == {"done"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_run_ends_its_jobs_which_are_stopped_and_have_not_failed(tmp_path, capsys, number):
    run = small_run(tmp_path, "import time; time.sleep(300)")
    process = start_elsewhere(tmp_path)
    wait_for(lambda: states(run)["tune/b"] == "running", process)
    family = process.children(recursive=True)
    process.send_signal(number)
    _, alive = psutil.wait_procs([process, *family], timeout=60)
    assert not alive
    assert process.returncode == 0, "it says that it was stopped"
    assert states(run)["tune/b"] == "stopped"
    assert print_end(run, True, Console()) == 130
    assert main(["status", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "goes on when the command of the run is given again" in said
    assert "failed" not in said


def test_a_run_that_was_killed_is_interrupted_and_goes_on(tmp_path):
    run = small_run(tmp_path, "import time; time.sleep(300)")
    process = start_elsewhere(tmp_path)
    wait_for(lambda: states(run)["tune/b"] == "running", process)
    kill(process)
    assert states(run)["tune/b"] == "interrupted"
    run = small_run(tmp_path)
    start(run)
    assert {"tune/b", "evaluate/c"} <= set(jobs_left(run)), "Snakemake's own lock outlives it"
    assert any("lock" in line.lower() for line in engine_errors(run))
    with pytest.raises(ValueError, match="--unlock"):
        release_stale_lock(tmp_path, locked=False)
    release_stale_lock(tmp_path, locked=True)
    start(run)
    assert set(states(run).values()) == {"done"}
    assert run.log("tune/b").read_text().count(" $ python") == 2, "a log keeps every attempt"


@pytest.mark.parametrize("recipe", NOT_COMPARED)  # and `compare` itself, which holds all others
def test_a_dry_run_shows_every_command_and_writes_nothing(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", recipe, "--scale", "smoke", "--dry-run", "-device", "cpu"]) == 0
    said = capsys.readouterr().out
    jobs = graph_of(recipe, smoke=True, source=None, device="cpu")
    assert all(said.count(f"\n{name}") for name in list(jobs)[1:])
    assert f"{sum(kinds(jobs).values())} jobs, 0 done already; nothing was started" in said
    assert not list(tmp_path.iterdir())


def test_snakemake_finds_nothing_in_the_workflow_but_what_it_does_otherwise(tmp_path):
    run = Run(tmp_path, graph_of("lyu2020"))
    run.write()
    said = subprocess.run([*snakemake(tmp_path), "--lint"], capture_output=True, text=True).stderr
    findings = [line.strip() for line in said.splitlines() if line.strip().startswith("*")]
    ours = {
        "* Specify a conda environment or container for each rule.:",  # the one that Snakemake runs in
        "* No log directive defined:",  # jobs write their logs themselves, and keep those of all attempts
    }
    assert set(findings) <= ours, said


def test_a_graph_that_somebody_has_edited_is_refused_with_file_and_key(tmp_path, capsys):
    small_run(tmp_path)
    file = tmp_path / "graph.json"
    whole = json.loads(file.read_text())
    for change, key in (
        (lambda jobs: jobs["tune/b"].pop("command"), "jobs.tune/b: 'command' is a required property"),
        (lambda jobs: jobs["tune/b"].update(command="rm"), "jobs.tune/b.command: 'rm' is not of type 'array'"),
        (lambda jobs: jobs["tune/b"].update(after=["convert/z"]), "jobs.tune/b.after: there is no job 'convert/z'"),
        (lambda jobs: jobs["tune/b"].update(needs=3), "jobs.tune/b.needs: 3 is not of type 'object'"),
    ):
        content = json.loads(json.dumps(whole))
        change(content["jobs"])
        file.write_text(json.dumps(content))
        assert main(["status", str(tmp_path)]) == 1
        assert f"{file}, {key}" in capsys.readouterr().err
