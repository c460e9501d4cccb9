"""Folds without the cases that a training could not learn: what is removed, written and refused."""

import json
from pathlib import Path

import pytest

from nnunet_brats_ext.cli import main
from nnunet_brats_ext.dataset_conversion import filter_cases
from nnunet_brats_ext.dataset_conversion.case_filtering import case_losses_line, judge, read_case_losses
from nnunet_brats_ext.storage.errors import UserError

DATASET, TRAINER = "Dataset137_BraTS", "BraTSDeepSupervisionTrainer"
CASES = [f"case{number}" for number in range(10)]


@pytest.fixture
def trained(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """Two folds of ten cases with logs in which the first training case is hard; gives (preprocessed, model)."""
    for name in ("preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    preprocessed = tmp_path / "preprocessed" / DATASET
    model = tmp_path / "results" / DATASET / f"{TRAINER}__BraTSPlans__3d_fullres"
    preprocessed.mkdir(parents=True)
    splits = [{"train": CASES[:9], "val": CASES[9:]}, {"train": CASES[1:], "val": CASES[:1]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    (preprocessed / "BraTSPlans.json").write_text(json.dumps({"configurations": {"3d_fullres": {}}}))
    for fold, split in enumerate(splits):
        (model / f"fold_{fold}").mkdir(parents=True)
        losses = {case: [0.9 if case == split["train"][0] else 0.1] for case in split["train"]}
        (model / f"fold_{fold}" / "case_losses.jsonl").write_text(case_losses_line(0, losses))
    return preprocessed, model


def load(path: Path):
    return json.loads(path.read_text())


def test_hard_cases_leave_the_training_of_their_fold_and_nothing_else_changes(trained, capsys):
    preprocessed, _ = trained
    done = filter_cases(137, TRAINER, "3d_fullres")
    assert capsys.readouterr() == ("", ""), "a function prints nothing"
    assert (done.splits, done.configuration) == (
        preprocessed / "splits_3d_fullres_filtered.json",
        "3d_fullres_filtered",
    )
    assert {fold: list(found.removed) for fold, found in done.folds.items()} == {0: ["case0"], 1: ["case1"]}
    first, second = load(done.splits)
    assert (first["train"], first["val"], first["removed"]) == (CASES[1:9], CASES[9:], {"case0": 0.9})
    assert (second["train"], second["val"]) == (CASES[2:], CASES[:1])
    assert load(preprocessed / "BraTSPlans.json")["configurations"]["3d_fullres_filtered"] == {
        "inherits_from": "3d_fullres",
        "splits_file": done.splits.name,
    }
    assert filter_cases(137, TRAINER, "3d_fullres") == done, "again is no error"


def test_the_command_prints_the_removed_cases_and_the_next_line(trained, capsys):
    words = ["filter-cases", "137", "-tr", TRAINER, "-c", "3d_fullres", "-f", "1"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "case1 0.900" in printed and "case0" not in printed
    assert f"next: nnUNetv2_train 137 3d_fullres_filtered FOLD -tr {TRAINER} -p BraTSPlans" in printed
    assert main([*words, "--deviations", "99"]) == 1
    assert "splits_3d_fullres_filtered.json holds other folds" in capsys.readouterr().err
    assert main([*words, "--deviations", "99", "--overwrite"]) == 0


REFUSED = [
    (dict(configuration="2d"), r"BraTSPlans.json has no configuration '2d'; it has 3d_fullres"),
    (dict(trainer="Other"), "2 folds have no log of case losses, such as .*fold_0"),
    (dict(folds=(0, 5)), "-f 5: there is no such fold, only 0 to 1"),
    (dict(folds=-1), "-f -1: expected at least 0"),
    (dict(last_epochs=0), "--last-epochs 0: expected at least 1"),
    (dict(deviations=float("nan")), "--deviations nan: expected at least 0"),
    (dict(dataset_id=0), "ID 0: expected at least 1 and at most 999"),
    (dict(dataset_id=999), "no data set 999 in .*; there are Dataset137_BraTS"),
    (dict(plans_name="Gone"), "Gone.json does not exist"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_what_cannot_be_filtered_is_refused_and_nothing_is_written(trained, options, message):
    preprocessed, _ = trained
    before = {path: path.read_bytes() for path in preprocessed.iterdir()}
    with pytest.raises(UserError, match=message):
        filter_cases(**dict(dataset_id=137, trainer=TRAINER, configuration="3d_fullres") | options)
    assert {path: path.read_bytes() for path in preprocessed.iterdir()} == before


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b'{"epoch": 1}', b'{"epoch": 1, "losses": [1]}', b'{"epoch": 1, "losses": {"a": "b"}}', b"\xff"],
)
def test_a_line_that_is_no_epoch_is_named(tmp_path, line):
    path = tmp_path / "case_losses.jsonl"
    path.write_bytes(case_losses_line(0, {"a": [0.5]}).encode() + line + b"\n")
    with pytest.raises(UserError, match=r"case_losses\.jsonl, line 2, is no epoch of case losses: .*; remove it"):
        read_case_losses(path)


def test_a_log_without_losses_and_a_training_that_diverged_are_named(tmp_path):
    path = tmp_path / "case_losses.jsonl"
    path.write_text(case_losses_line(0, {}))
    with pytest.raises(UserError, match="holds no losses: the training it belongs to has not finished an epoch"):
        read_case_losses(path)
    path.write_text('{"epoch": 0, "losses": {"a": NaN}}\n')
    with pytest.raises(UserError, match="the training loss of a is nan: this training has diverged"):
        judge(read_case_losses(path))


def test_the_last_epochs_that_have_losses_count():
    losses = {0: {"a": 0.1, "b": 9.0}, 1: {"a": 0.1, "b": 0.1}, 2: {}}
    assert judge(losses, last_epochs=1, deviations=0.5).removed == {}
    assert judge(losses, last_epochs=2, deviations=0.5).removed == {"b": pytest.approx(4.55)}
