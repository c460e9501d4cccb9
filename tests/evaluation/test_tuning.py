"""Tuning: the choice is blind to the held-out fold, and the command finds a planted threshold from predictions."""

import json
import re

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
    select_per_cluster,
    select_rules,
    try_candidates,
)
from nnunet_brats_ext.predictions.case_clusters import CaseClusters, features_of, fit_clusters
from nnunet_brats_ext.predictions.rule_sets import RuleSet, collect_rules, describe_rule, read_rules
from nnunet_brats_ext.predictions.rules import RuleInput
from nnunet_brats_ext.storage.errors import UserError

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


# ---- rules per cluster -----------------------------------------------------------------------------------------------


def two_kinds(cases=40, seed=0):
    """Scores of three candidates, of which each of two kinds of cases needs another, and features that tell them."""
    rng = np.random.default_rng(seed)
    kind = np.arange(cases) % 2
    scores = np.full((cases, 3, 1), 0.5) + rng.normal(0, 0.01, (cases, 3, 1))
    scores[kind == 0, 1] += 0.2
    scores[kind == 1, 1] -= 0.2
    scores[kind == 1, 2] += 0.2
    scores[kind == 0, 2] -= 0.2
    features = np.stack([10.0 * kind + rng.normal(0, 1, cases), rng.normal(0, 1, cases)], axis=1)
    return scores, features, [f"fold_{i // 2 % 4}" for i in range(cases)], kind


def per_cluster(scores, features, folds, number=2):
    columns = [("ET", "dice")]
    single = select_rules(scores, folds, columns, "dice")
    return single, select_per_cluster(scores, features, folds, columns, "dice", number, False, single)


def test_clusters_that_need_other_rules_get_them_and_gain():
    scores, features, folds, kind = two_kinds()
    _, clustered = per_cluster(scores, features, folds)
    groups = clustered.clusters.nearest(features)
    assert {clustered.best[group] for group in groups[kind == 0]} == {1}
    assert {clustered.best[group] for group in groups[kind == 1]} == {2}
    assert clustered.helps
    assert clustered.interval[0] > 0.1
    assert clustered.gains.mean() == pytest.approx(0.2, abs=0.05)


def test_clusters_that_mean_nothing_are_not_kept():
    scores, features, folds, _ = two_kinds()
    noise = np.random.default_rng(1).normal(0, 1, features.shape)
    assert not per_cluster(scores, noise, folds)[1].helps
    alike = np.repeat(scores[:, :1], 3, axis=1)
    single, clustered = per_cluster(alike, features, folds)
    assert (clustered.helps, clustered.interval, set(clustered.best)) == (False, (0, 0), {0})
    np.testing.assert_array_equal(clustered.after, single.before)


def test_a_held_out_case_takes_part_neither_in_its_clusters_nor_in_their_choice():
    scores, features, folds, _ = two_kinds()
    mine = np.array([one == "fold_2" for one in folds])
    other_scores, other_features = scores.copy(), features.copy()
    other_scores[mine] = 1 - scores[mine]
    other_features[mine] += 100
    first, second = (
        per_cluster(*given, folds)[1].chosen["fold_2"] for given in ((scores, features), (other_scores, other_features))
    )
    assert first == second


def test_a_cluster_of_few_cases_takes_what_is_best_for_all():
    scores, features, folds, _ = two_kinds(cases=40)
    few = features.copy()
    few[:, 0] = 0.0
    few[:3, 0] = 1000.0
    clustered = per_cluster(scores, few, folds)[1]
    rare = clustered.clusters.nearest(few)[0]
    assert clustered.best[rare] == best_candidate(scores, [("ET", "dice")], "dice")


def grouped_case(voxels, brightness=0.0):
    labels = np.zeros((12, 12, 12), np.uint8)
    labels.reshape(-1)[:voxels] = ET
    images = np.ones((4, 12, 12, 12)) + np.random.default_rng(0).normal(0, 0.1, (4, 12, 12, 12))
    images[:, labels == ET] += brightness
    return RuleInput(labels, images=images)


@pytest.mark.parametrize("images", [False, True])
def test_rules_per_cluster_are_stored_and_apply_to_the_cases_of_their_cluster_alone(images, tmp_path):
    small, large = [grouped_case(n) for n in (20, 22, 25)], [grouped_case(n, 5.0) for n in (600, 620, 650)]
    features = np.stack([features_of(case, images) for case in (*small, *large)])
    clusters = fit_clusters(features, 2, images)
    groups = clusters.nearest(features)
    assert len(set(groups[:3])) == len(set(groups[3:])) == 1
    assert groups[0] != groups[3]
    rules = RuleSet(({"rule": "small-et", "min_voxels": 1000, "cluster": int(groups[3])},), clusters=clusters)
    (file := tmp_path / "rules.json").write_text(rules.to_json())
    read = read_rules(file)
    assert read == rules
    assert read.needs_images == images
    assert read.apply(small[0])[1] == [0]
    assert read.apply(large[0])[1] == [600]
    assert describe_rule(read.rules[0]) == f"small-et min_voxels=1000 in cluster {groups[3]}"
    with pytest.raises(UserError, match="2 of the rule files have clusters of their own"):
        collect_rules([str(file), str(file)], [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rules": [{"rule": "small-et", "min_voxels": 5, "cluster": 2}]}, "no cluster 2 among 2, which count from 0"),
        ({"clusters": {"mean": [0]}}, '"clusters" cannot be used: expected images, mean, scale, centres'),
        ({"clusters": {"images": False, "mean": [0], "scale": [0], "centres": [[1]]}}, "numbers of the same count"),
    ],
)
def test_a_rule_file_with_clusters_that_make_no_sense_is_an_error_that_names_it(change, words, tmp_path):
    good = {"clusters": CaseClusters(False, (0.0,), (1.0,), ((0.0,), (1.0,))).as_json(), "rules": []}
    (file := tmp_path / "rules.json").write_text(json.dumps(good | change))
    with pytest.raises(UserError, match=re.escape(words)):
        read_rules(file)


def test_the_command_reports_clusters_and_writes_them_only_where_they_gain(model, tmp_path, capsys):
    command = ["tune", str(tmp_path / "ref"), str(model), "-o", str(tmp_path / "rules.json"), "-np", "1"]
    assert main([*command, "--grid", "small-et=10,30,41,50,200", "--per-cluster", "2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "rules per cluster not written: over one set of rules for all cases they gain +0.0000 in mean rank" in said
    assert read_rules(tmp_path / "rules.json").rules == ({"rule": "small-et", "min_voxels": 41},)
    report = json.loads((tmp_path / "rules_report.json").read_text())
    clustered = report["per_cluster"]
    assert report["written"], "the one set of rules"
    assert clustered["after"].keys() == report["held_out"]["after"].keys()
    assert "after, per cluster" in said
    assert (sum(clustered["cases"]), clustered["interval"], clustered["written"]) == (6, [0, 0], False)
    assert set(clustered["folds"]) == {"fold_0", "fold_1"}
