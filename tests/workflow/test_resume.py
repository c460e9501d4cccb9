"""What of a job is there already: a training is continued, and one of other settings is kept and trained anew."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nnunet_brats_ext.workflow.resources import Needs
from nnunet_brats_ext.workflow.resume import NOTE, commands_left
from nnunet_brats_ext.workflow.state import Job


@pytest.fixture
def training(tmp_path) -> Job:
    plans = {"configurations": {"base": {"spacing": [1, 1, 1]}, "small": {"inherits_from": "base", "batch_size": 2}}}
    (tmp_path / "BraTSPlans.json").write_text(json.dumps(plans))
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    facts = {"plans": str(tmp_path / "BraTSPlans.json"), "configuration": "small", "fold": 0}
    return Job("train/m/fold_0", ("nnUNetv2_train",), tmp_path / "m" / "fold_0", (), Needs(1, 1, 1), {}, facts)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_training_is_begun_continued_validated_or_left_alone(training):
    assert commands_left(training) == [["nnUNetv2_train"]]
    touch(training.result, "checkpoint_best.pth")
    assert commands_left(training) == [["nnUNetv2_train", "--c"]]
    touch(training.result, "checkpoint_latest.pth")
    assert commands_left(training) == [["nnUNetv2_train", "--c"]]
    touch(training.result, "checkpoint_final.pth")
    assert commands_left(training) == [["nnUNetv2_train", "--val"]]
    touch(training.result, "validation/summary.json")
    assert commands_left(training) == []


def test_other_snapshots_leave_a_finished_fold_alone(training):
    commands_left(training)
    touch(training.result, "checkpoint_final.pth", "validation/summary.json")
    assert commands_left(replace(training, environment={"nnUNet_brats_snapshots": "1 2"})) == []
    assert commands_left(replace(training, environment={"nnUNet_brats_epochs": "2"})) == [["nnUNetv2_train"]]


def test_a_fold_that_somebody_trained_by_hand_is_taken_as_it_is(training):
    touch(training.result, "checkpoint_final.pth", "validation/summary.json")
    assert commands_left(training) == []
    assert (training.result / NOTE).is_file()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("BraTSPlans.json", '"batch_size": 2', '"batch_size": 4'), ("splits_final.json", '"a"', '"c"')],
)
def test_a_fold_of_other_settings_is_put_aside_and_trained_anew(training, tmp_path, file, old, new):
    commands_left(training)
    touch(training.result, "checkpoint_final.pth", "validation/summary.json")
    (tmp_path / file).write_text((tmp_path / file).read_text().replace(old, new))
    assert commands_left(training) == [["nnUNetv2_train"]]
    (aside,) = training.result.parent.glob("earlier_fold_0_*")
    assert (aside / "checkpoint_final.pth").is_file()


def test_plans_that_are_there_are_kept_until_the_data_set_changes(tmp_path):
    plans, dataset = tmp_path / "nnUNetPlans.json", tmp_path / "dataset.json"
    planning = Job("plan/a/nnUNetPlans", ("plan",), plans, (), Needs(1, 1, 1), facts={"dataset": str(dataset)})
    dataset.touch()
    assert commands_left(planning) == [["plan"]]
    plans.touch()
    assert commands_left(planning) == []
    os.utime(dataset, (time.time() + 10,) * 2)
    assert commands_left(planning) == [["plan"]]


def test_plans_that_change_elsewhere_leave_a_finished_fold_alone(training, tmp_path):
    commands_left(training)
    touch(training.result, "checkpoint_final.pth", "validation/summary.json")
    plans = json.loads((tmp_path / "BraTSPlans.json").read_text())
    plans["configurations"]["other"] = {"inherits_from": "base"}
    (tmp_path / "BraTSPlans.json").write_text(json.dumps(plans))
    assert commands_left(training) == []
