"""Tuning: the choice is blind to the held-out fold, and the command finds a planted threshold from predictions."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_brats_ext.brats import ED, ET, NCR
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.evaluation.rule_selection import (
    best_candidate,
    candidates,
    gain_per_case,
    parse_grid,
    select_rules,
    try_candidates,
)
from nnunet_brats_ext.predictions.rule_sets import RuleSet, read_rules
from nnunet_brats_ext.predictions.rules import RuleInput

COLUMNS = [("ET", "dice"), ("ET", "hd95")]
OBJECTIVES = ("ranking", "dice", "hd95")


def random_scores(cases=12, options=4, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.random((cases, options)), rng.uniform(0, 50, (cases, options))], axis=2)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_a_fold_gets_does_not_depend_on_its_own_cases(objective):
    scores, folds = random_scores(), [f"fold_{i % 3}" for i in range(12)]
    chosen = select_rules(scores, folds, COLUMNS, objective).chosen
    for fold in chosen:
        mine = np.array([one == fold for one in folds])
        other = scores.copy()
        other[mine] = random_scores(seed=9)[mine]
        assert select_rules(other, folds, COLUMNS, objective).chosen[fold] == chosen[fold]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_case_is_scored_under_the_rules_chosen_without_it(objective):
    scores, folds = random_scores(), [f"fold_{i % 3}" for i in range(12)]
    tuning = select_rules(scores, folds, COLUMNS, objective)
    for i, fold in enumerate(folds):
        np.testing.assert_array_equal(tuning.before[i], scores[i, 0])
        np.testing.assert_array_equal(tuning.after[i], scores[i, tuning.chosen[fold]])


def test_the_best_by_a_metric_is_the_largest_dice_or_the_smallest_distance():
    scores = np.array([[[0.5, 9.0], [0.7, 8.0], [0.6, 7.0]]])  # one case, three candidates
    assert best_candidate(scores, COLUMNS, "dice") == 1
    assert best_candidate(scores, COLUMNS, "hd95") == 2
    assert best_candidate(scores, COLUMNS, "ranking") == 1  # ranks 3+3, 1+2, 2+1: the first of equals


def test_of_equal_candidates_leaving_all_as_it_is_wins():
    scores = np.full((5, 3, 2), 0.9)
    for objective in OBJECTIVES:
        tuning = select_rules(scores, ["a", "a", "b", "b", "b"], COLUMNS, objective)
        assert (tuning.best, set(tuning.chosen.values()), tuning.helps, tuning.p_value) == (0, {0}, False, 1)


def test_a_gain_is_positive_where_a_case_became_better():
    before, after = np.array([[0.5, 9.0], [0.5, 9.0], [0.5, 9.0]]), np.array([[0.6, 9.0], [0.5, 4.0], [0.4, 10.0]])
    np.testing.assert_allclose(gain_per_case(before, after, COLUMNS, "dice"), [0.1, 0, -0.1])
    np.testing.assert_allclose(gain_per_case(before, after, COLUMNS, "hd95"), [0, 5, -1])
    # ranks between the two: better in one of two columns and equal in the other is half a rank
    np.testing.assert_allclose(gain_per_case(before, after, COLUMNS, "ranking"), [0.5, 0.5, -1])


def test_a_missing_score_is_no_gain():
    before, after = np.array([[np.nan, 9.0]]), np.array([[0.6, 8.0]])
    np.testing.assert_array_equal(gain_per_case(before, after, COLUMNS, "dice"), [0])
    np.testing.assert_array_equal(gain_per_case(before, after, COLUMNS, "ranking"), [1])


def test_one_fold_is_an_error():
    with pytest.raises(ValueError, match="there is only a"):
        select_rules(random_scores(2), ["a", "a"], COLUMNS, "dice")


def test_a_grid_takes_one_rule_or_none_of_every_step_and_all_combinations():
    grid = parse_grid(["small-et=50,100", "small-components:WT=0.5ml"])
    options = candidates(grid, "glioma_2017")
    assert len(options) == 3 * 2
    assert options[0] == RuleSet(())
    assert [len(option.rules) for option in options] == [0, 1, 1, 2, 1, 2]


def test_trying_all_candidates_at_once_is_trying_each(seed=3):
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.uint8([0, ED, NCR, ET]), (16, 16, 16), p=[0.97, 0.01, 0.01, 0.01])
    labels[:6, :6, :6] = NCR
    grid = parse_grid(["small-et=5,30,60", "small-components:WT=1,2,4", "small-region:TC=100,300"])
    maps, made = try_candidates(RuleInput(labels), grid, "glioma_2017")
    options = candidates(grid, "glioma_2017")
    assert len(options) == len(made) == 48
    for option, i in zip(options, made, strict=True):
        np.testing.assert_array_equal(maps[i], option.apply(RuleInput(labels))[0])
    assert 1 < len(maps) < 20, "equal maps are made once"


def write(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(labels), path)


@pytest.fixture
def model(tmp_path):
    """Two folds of three cases; where the reference has no ET, up to 40 voxels of it are predicted."""
    for fold in range(2):
        for i in range(3):
            tumour = np.zeros((12, 14, 16), np.uint8)
            tumour[2:10, 2:10, 2:10] = ED
            tumour[4:9, 4:9, 4:9] = NCR
            reference, prediction = tumour.copy(), tumour.copy()
            if i == 0:
                reference[4:9, 4:9, 4:8] = prediction[4:9, 4:9, 4:8] = ET  # 100 voxels, true
            else:
                prediction[4:9, 4:8, 4 : 5 + i % 2] = ET  # 20 or 40 voxels, false
            case = f"case{fold}{i}"
            write(tmp_path / "ref" / f"{case}.nii.gz", reference)
            write(tmp_path / "model" / f"fold_{fold}" / "validation" / f"{case}.nii.gz", prediction)
    return tmp_path / "model"


def test_the_command_finds_the_threshold_that_helps(model, tmp_path, capsys):
    command = ["tune", str(tmp_path / "ref"), str(model), "-o", str(tmp_path / "rules.json"), "-np", "1"]
    assert main([*command, "--grid", "small-et=10,30,41,50,200", "--save", "tuned"]) == 0
    # 41 and 50 both remove all false ET and no true one; 30 misses 40 voxels, 200 takes true ET
    expected = ({"rule": "small-et", "min_voxels": 41},)
    assert read_rules(tmp_path / "rules.json").rules == expected
    assert read_rules(model / "brats_rules_tuned.json").rules == expected
    report = json.loads((tmp_path / "rules_report.json").read_text())
    assert {fold: part["rules"] for fold, part in report["folds"].items()} == {
        "fold_0": list(expected),
        "fold_1": list(expected),
    }
    assert report["held_out"]["before"]["ET dice"] == pytest.approx(1 / 3)
    assert report["held_out"]["after"]["ET dice"] == 1
    # four of six cases gain; those four signs fall this way in 1 of 2^4
    assert report["held_out"]["p_value"] == pytest.approx(1 / 16)
    said = capsys.readouterr().out
    assert "min_voxels=41" in said
    assert "gain in mean rank" in " ".join(said.split())


def test_rules_that_do_not_help_are_not_written_and_the_file_still_applies(model, tmp_path, capsys):
    rules = tmp_path / "rules.json"
    command = ["tune", str(tmp_path / "ref"), str(model), "-o", str(rules), "-np", "1"]
    assert main([*command, "--grid", "small-region:WT=10000", "--objective", "dice"]) == 0
    assert read_rules(rules).rules == ()
    assert "no rules written" in capsys.readouterr().out
    held_out = str(model / "fold_0" / "validation")
    assert main(["postprocess", held_out, "-o", str(tmp_path / "out"), "--rules", str(rules), "-np", "1"]) == 0
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3


def test_folds_may_come_from_a_splits_file(model, tmp_path, capsys):
    for path in model.glob("fold_*/validation/*.nii.gz"):
        write(tmp_path / "flat" / path.name, sitk.GetArrayFromImage(sitk.ReadImage(path)))
    splits = [{"train": [], "val": [f"case{fold}{i}" for i in range(3)]} for fold in range(2)]
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    command = ["tune", str(tmp_path / "ref")]
    grid = ["-np", "1", "--grid", "small-et=41"]
    flat = [str(tmp_path / "flat"), "--splits", str(tmp_path / "splits.json")]
    for name, source in (("a", [str(model)]), ("b", flat)):
        assert main([*command, *source, *grid, "-o", str(tmp_path / f"{name}.json")]) == 0
    reports = [json.loads((tmp_path / f"{name}_report.json").read_text()) for name in "ab"]
    assert reports[0] == reports[1]
    (tmp_path / "splits.json").write_text(json.dumps(splits[:1]))
    assert main([*command, *flat]) == 1
    assert "holds out none of case10, case11, case12" in capsys.readouterr().err


def test_a_case_held_out_twice_or_without_reference_is_named(model, tmp_path, capsys):
    command = ["tune", str(tmp_path / "ref"), str(model), "-o", str(tmp_path / "rules.json"), "-np", "1"]
    (tmp_path / "ref" / "case11.nii.gz").unlink()
    assert main(command) == 1
    assert "ref lacks 1 of 6 cases: case11" in capsys.readouterr().err
    twice = model / "fold_1" / "validation" / "case00.nii.gz"
    twice.write_bytes((model / "fold_0" / "validation" / "case00.nii.gz").read_bytes())
    assert main(command) == 1
    assert "held out in two folds: case00" in capsys.readouterr().err
    assert main(["tune", str(tmp_path / "ref"), str(tmp_path / "ref")]) == 1
    assert "has no fold_0/validation" in capsys.readouterr().err


def test_an_objective_or_a_splits_file_that_makes_no_sense_is_quoted(model, tmp_path, capsys):
    command = ["tune", str(tmp_path / "ref"), str(model), "-o", str(tmp_path / "rules.json")]
    assert main([*command, "--objective", "jaccard"]) == 1
    assert "no objective 'jaccard'; there are ranking, dice" in capsys.readouterr().err
    (tmp_path / "splits.json").write_text('{"val": []}')
    assert main(["tune", str(tmp_path / "ref"), str(tmp_path / "ref"), "--splits", str(tmp_path / "splits.json")]) == 1
    assert "splits.json should hold a list" in capsys.readouterr().err
    assert not (tmp_path / "rules.json").exists()


def test_rules_on_probabilities_and_images_are_tuned_too(model, tmp_path):
    declared = {"labels": {"background": 0, "ED": 1, "NCR": 2, "ET": 3}, "channel_names": {"0": "T1ce"}}
    (model / "dataset.json").write_text(json.dumps(declared))
    for path in model.glob("fold_*/validation/*.nii.gz"):
        labels = sitk.GetArrayFromImage(sitk.ReadImage(path))
        sure = 0.9 if path.name.endswith("0.nii.gz") else 0.6  # of ET: true in the first case of a fold
        hard = np.stack([labels == label for label in range(4)]).astype(np.float32)
        np.savez_compressed(
            path.with_name(path.name.replace(".nii.gz", ".npz")),
            probabilities=hard * sure + (1 - hard) * (1 - sure) / 3,
        )
        write(tmp_path / "images" / path.name.replace(".nii", "_0000.nii"), labels.astype(np.float32))
    command = ["tune", str(tmp_path / "ref"), str(model), "-o", str(tmp_path / "rules.json"), "-np", "1"]
    grid = ["--grid", "unlikely-components:ET=0.5,0.7,0.95", "oedema-to-core", "--images", str(tmp_path / "images")]
    assert main([*command, *grid]) == 0
    expected = {"rule": "unlikely-components", "region": "ET", "min_mean_probability": 0.7}
    assert read_rules(tmp_path / "rules.json").rules == (expected,)
