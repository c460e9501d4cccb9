"""One job: its cores, its GPUs, what of its result it goes on with, and what its log keeps."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from workflow_runs import graph_of, job

from nnunet_brats_ext.workflow.perform import environment_of, gpus_for, perform
from nnunet_brats_ext.workflow.resources import Needs
from nnunet_brats_ext.workflow.run import local_gpus
from nnunet_brats_ext.workflow.state import Job, Run, states_of


def test_the_cores_of_a_job_are_shared_out_among_its_gpus(tmp_path):
    local, cluster = (graph_of("lyu2020", gpus=4, cpus=cpus)["train/stage1/fold_0"] for cpus in (3, 64))
    assert (local.needs.cpus, cluster.needs.cpus) == (12, 32)
    for one, workers, cores in ((local, "2", "3"), (cluster, "7", "8")):
        environment = environment_of(Run(tmp_path, {}), one)
        assert (environment["nnUNet_n_proc_DA"], environment["nnUNet_def_n_proc"]) == (workers, cores)


def test_nnunets_folders_are_where_the_run_is_or_where_they_were(tmp_path):
    run = Run(tmp_path, {}, {"nnUNet_raw": "nnUNet_raw", "nnUNet_results": "/data/results"})
    environment = environment_of(run, job("convert/a", "pass"))
    assert environment["nnUNet_raw"] == str(tmp_path / "nnUNet_raw")
    assert environment["nnUNet_results"] == "/data/results"


def test_jobs_at_one_time_get_gpus_of_their_own(tmp_path):
    run = Run(tmp_path, {}, {}, (f"test-{os.getpid()}-0", f"test-{os.getpid()}-1"))
    needing = Job("train/m/fold_0", ("nnUNetv2_train",), tmp_path, (), Needs(1, 1, 1, gpus=1))
    with gpus_for(run, needing) as first, gpus_for(run, needing) as second:
        assert sorted([first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]]) == list(run.devices)
    with gpus_for(Run(tmp_path, {}), needing) as under_a_scheduler:
        assert under_a_scheduler == {}


def test_a_job_that_waits_for_gpus_keeps_none_from_others(tmp_path, monkeypatch):
    run = Run(tmp_path, {}, {}, (f"test-{os.getpid()}-0", f"test-{os.getpid()}-1"))
    one, both = (Job("train/m/fold_0", ("nnUNetv2_train",), tmp_path, (), Needs(1, 1, 1, gpus=n)) for n in (1, 2))
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        with gpus_for(run, one):  # another job, which would wait as well if the one that is free were held
            held.close()

    with contextlib.ExitStack() as held:
        held.enter_context(gpus_for(run, one))
        monkeypatch.setattr(time, "sleep", wait)
        with gpus_for(run, both) as given:
            assert given["CUDA_VISIBLE_DEVICES"] == ",".join(run.devices)
    assert len(waits) == 1


def test_gpus_are_those_that_the_environment_leaves(monkeypatch):
    for visible, expected in (
        ("", []),
        ("-1", []),
        ("0,2", ["0", "2"]),
        ("1,-1,2", ["1"]),
        ("GPU-a, GPU-b", ["GPU-a", "GPU-b"]),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert local_gpus() == expected


def test_a_prediction_goes_on_with_other_cores_but_not_with_other_settings_or_elsewhere(tmp_path, monkeypatch):
    code = "from pathlib import Path; out = Path('made'); out.mkdir(exist_ok=True); (out / 'new').touch()"
    folder = tmp_path / "run"
    folder.mkdir()
    for more, moved, expected in (
        (("-np", "2"), False, {"new"}),
        (("-np", "4"), False, {"old", "new"}),
        (("-np", "4", "--tta", "none"), False, {"new"}),
        (("-np", "4", "--tta", "none"), True, {"new"}),  # what it predicted may name the folder of then
    ):
        if moved:
            folder = folder.rename(tmp_path / "moved")
        monkeypatch.chdir(folder)
        predicting = Job("predict/m", ("python", "-c", code, *more), Path("made"), (), Needs(1, 0.1, 0.1))
        assert perform(Run(folder, {predicting.name: predicting}), predicting) == 0
        assert {path.name for path in Path("made").iterdir()} == expected
        (Path("made") / "old").touch()


@pytest.mark.parametrize(
    ("facts", "words", "is_defect"),
    [
        ({"plans": "nowhere.json", "configuration": "a", "fold": 0}, "nowhere.json does not exist", False),
        ({}, "KeyError: 'plans'", True),
    ],
)
def test_a_log_has_a_sentence_for_the_user_and_a_traceback_for_us(tmp_path, facts, words, is_defect):
    training = Job("train/m/fold_0", ("nnUNetv2_train",), Path("m/fold_0"), (), Needs(1, 1, 1), {}, facts)
    run = Run(tmp_path, {training.name: training})
    run.write()
    words_ = [sys.executable, "-m", "nnunet_brats_ext.workflow.perform", training.name]
    assert subprocess.run(words_, cwd=tmp_path).returncode == 1
    log = run.log(training.name).read_text()
    assert words in log
    assert ("Traceback" in log) == is_defect
    assert states_of(run)[training.name][0] == "failed"


def test_a_job_begins_without_heavy_imports():
    """A run has dozens of jobs, and each begins with them; its command brings what it needs itself."""
    heavy = {"torch", "scipy", "SimpleITK"}
    code = f"import sys, nnunet_brats_ext.workflow.perform; sys.exit(sorted({heavy} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
