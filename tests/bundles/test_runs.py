"""Which states of a run's jobs its bundle needs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nnunet_brats_ext.bundles import runs
from nnunet_brats_ext.bundles.runs import Leaf, plan_of_run
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.workflow.resources import Needs
from nnunet_brats_ext.workflow.state import Job, Run, signature

COMMANDS = {  # job -> its command and what it waits for
    "train/m": ("nnunet_brats train", ()),
    "predict/p": ("nnunet_brats predict -i images -o predictions/p", ("train/m",)),
    "postprocess/q": ("nnunet_brats postprocess -i predictions/p --rule small-et=500", ("predict/p",)),
    "evaluate/q": ("nnunet_brats evaluate reference predictions/q -o scores/q", ("postprocess/q",)),
    "evaluate/other": ("nnunet_brats evaluate reference predictions/p -o scores/other", ("predict/p",)),
}


def finished_run(folder: Path) -> Run:
    """A run whose jobs are all done; nothing of nnU-Net's is there."""
    jobs = {}
    for name, (command, after) in COMMANDS.items():
        place = "scores/q.json" if name == "evaluate/q" else f"predictions/{name.split('/')[1]}"
        jobs[name] = Job(name, tuple(command.split()), Path(place), after, Needs(1, 1, 0))
    run = Run(folder, jobs)
    run.write()
    for name, job in jobs.items():
        note(run, job, "done")
        run.done_file(name).touch()
    scores = {"preset": "brats2020", "cases": {"a": {}}, "summary": {"WT": {"dice": {"mean": 0.9}}}}
    (folder / "scores").mkdir()
    (folder / "scores" / "q.json").write_text(json.dumps(scores))
    return run


def note(run: Run, job: Job, state: str) -> None:
    who = {"host": "here", "pid": 1, "since": 1.0, "ended": 2.0, "inputs": dict.fromkeys(job.after, 2.0)}
    run.state_file(job.name).parent.mkdir(parents=True, exist_ok=True)
    run.state_file(job.name).write_text(json.dumps({"state": state, **signature(job), **who}))


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.setattr(runs, "_leaf", lambda run, given: Leaf(()))
    monkeypatch.setattr(runs, "read_models", lambda file: {"q": json.loads(file.read_text())})
    return finished_run(tmp_path)


def test_a_run_is_bundled_only_where_all_that_its_prediction_depends_on_is_done_as_planned(run):
    assert set(plan_of_run(run.folder).predictions) == {"p", "q"}
    note(run, run.jobs["evaluate/other"], "failed")
    assert plan_of_run(run.folder).scores["q"]["mean"] == {"WT": {"dice": 0.9}}, "nothing depends on that one"
    note(run, run.jobs["train/m"], "stopped")
    with pytest.raises(UserError, match=r"train/m is stopped, and q depends on it; .*nnunet_brats run"):
        plan_of_run(run.folder)


def test_a_recipe_that_was_changed_since_is_not_bundled_with_the_results_of_before(run):
    job = run.jobs["postprocess/q"]
    changed = replace(job, command=(*job.command[:-1], "small-et=200"))
    replace(run, jobs={**run.jobs, job.name: changed}).write()
    with pytest.raises(UserError, match="postprocess/q is waiting, and q depends on it"):
        plan_of_run(run.folder)
    assert set(plan_of_run(run.folder, "p").predictions) == {"p"}


def test_scores_that_were_not_made_as_planned_are_left_out(run):
    note(run, run.jobs["evaluate/q"], "stopped")
    assert not plan_of_run(run.folder).scores
