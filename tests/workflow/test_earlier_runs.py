"""A run that version 0.1 has begun goes on, also where its folder has moved (files: data/version_0_1/README.md)."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nnunet_brats_ext.cli import main
from nnunet_brats_ext.workflow import run as run_module
from nnunet_brats_ext.workflow.engine import settle
from nnunet_brats_ext.workflow.resume import commands_left
from nnunet_brats_ext.workflow.run import RunOptions, plan_run
from nnunet_brats_ext.workflow.state import open_run, states_of

FILES = Path(__file__).parents[1] / "data" / "version_0_1" / "run"
OPTIONS = ("--scale", "smoke", "-device", "cpu", "--only", "stage1", "stage2", "final")  # of what there was then


@pytest.fixture
def begun(tmp_path) -> Path:
    """The folder of the interrupted run, moved from elsewhere; empty files for what is no text."""
    folder = Path(shutil.copytree(FILES, tmp_path / "moved here"))
    for file in filter(Path.is_file, folder.rglob("*")):
        file.write_text(file.read_text().replace("{ROOT}", "/where/it/was"))
    (model,) = folder.glob("nnUNet_results/*/*")
    (model / "fold_0" / "checkpoint_final.pth").touch()
    (model / "fold_1" / "checkpoint_best.pth").touch()
    (labels := next(folder.glob("nnUNet_raw/*")) / "labelsTr").mkdir()
    for name, size, modified_ns in json.loads((folder / "label_files.json").read_text()):
        (labels / name).write_bytes(bytes(size))
        os.utime(labels / name, ns=(modified_ns, modified_ns))
    return folder


def done(run) -> set[str]:
    return {name for name, (state, _) in states_of(run).items() if state == "done"}


def test_it_goes_on_with_what_is_left(begun, monkeypatch, capsys):
    before = done(open_run(begun))
    assert "train/stage1/fold_0" in before
    assert main(["run", "lyu2020", *OPTIONS, "-o", str(begun), "--dry-run"]) == 0
    assert f"24 jobs, {len(before)} done already" in capsys.readouterr().out
    monkeypatch.setattr(run_module, "follow", lambda run, *_: settle(run) or True)
    assert main(["run", "lyu2020", *OPTIONS, "-o", str(begun)]) == 130
    run = open_run(begun)
    assert done(run) == before
    assert all(run.done_file(name).exists() == (name in before) for name in run.jobs)
    assert "/where/it/was" not in (begun / "graph.json").read_text()
    monkeypatch.chdir(begun)
    assert commands_left(run.jobs["train/stage1/fold_0"]) == []
    assert commands_left(run.jobs["train/stage1/fold_1"])[0][-1] == "--c"
    assert commands_left(run.jobs["preprocess/brats/nnUNetPlans/3d_fullres"]) == []


def test_what_a_change_concerns_is_done_again(begun):
    _, run = plan_run(RunOptions("lyu2020", folder=begun, scale="smoke", device="cpu"))
    assert done(run) == done(open_run(begun))
    changed = replace(run.jobs["plan/brats/nnUNetPlans"], command=("other",))
    assert done(replace(run, jobs={**run.jobs, changed.name: changed})) == {"phantom/release", "convert/brats"}
