"""BraTS ranking: ranks by hand, ties, missing scores, and a permutation test against counting by hand."""

import csv
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from rich.console import Console

from nnunet_brats_ext import __version__
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.cli.scores import print_ranking
from nnunet_brats_ext.evaluation.ranking import (
    load_results,
    rank_entries,
    rank_values,
    save_ranking,
)
from nnunet_brats_ext.evaluation.results import read_results
from nnunet_brats_ext.evaluation.statistics import sign_flip_p_values
from nnunet_brats_ext.storage.errors import Notice, UserError


def entry(dice, hd95):
    """Scores of one region from lists over cases."""
    return {f"c{i}": {"WT": {"dice": d, "hd95": h}} for i, (d, h) in enumerate(zip(dice, hd95, strict=True))}


def test_ranks_count_high_dice_and_low_distance_as_good_and_ties_share_their_mean():
    values = np.array([[[0.9, 3.0]], [[0.9, 1.0]], [[0.5, 2.0]]])
    # Dice: two share the places 1 and 2; HD95: 1 mm, 2 mm, 3 mm
    np.testing.assert_array_equal(rank_values(values, [False, True])[:, 0], [[1.5, 3], [1.5, 1], [3, 2]])


def test_the_final_score_is_the_mean_over_cases_of_the_mean_rank_in_a_case():
    ranking = rank_entries({"a": entry([0.9, 0.5], [1, 9]), "b": entry([0.8, 0.6], [2, 9])})
    # case 0: a first in both; case 1: a second in Dice, both 1.5 in HD95
    np.testing.assert_allclose(ranking.case_ranks, [[1, 1.75], [2, 1.25]])
    np.testing.assert_allclose(ranking.scores, [1.375, 1.625])
    assert [ranking.entries[i] for i in ranking.order] == ["a", "b"]
    np.testing.assert_allclose(ranking.means, [[0.7, 5], [0.7, 5.5]])


def test_an_entry_that_wins_in_all_of_five_cases_has_p_of_one_in_32():
    better, worse = entry([0.9] * 5, [1] * 5), entry([0.8] * 5, [2] * 5)
    p = rank_entries({"worse": worse, "better": better}).p_values
    # of the 2^5 ways to swap the two in some cases only one has a lead as large; all have one at least as bad
    np.testing.assert_allclose(p, [[1, 1], [1 / 32, 1]])


def test_equal_entries_share_their_rank_and_no_lead_is_significant():
    ranking = rank_entries({name: entry([0.9, 0.8], [1, 2]) for name in "abc"})
    np.testing.assert_array_equal(ranking.scores, [2, 2, 2])
    np.testing.assert_array_equal(ranking.p_values, np.ones((3, 3)))


def test_the_order_of_entries_does_not_matter():
    rng = np.random.default_rng(0)
    entries = {name: entry(rng.random(9), rng.random(9)) for name in "abcd"}
    forward, back = rank_entries(entries), rank_entries(dict(reversed(entries.items())))
    np.testing.assert_allclose(forward.scores, back.scores[::-1])
    np.testing.assert_allclose(forward.p_values, back.p_values[::-1, ::-1])


def test_drawn_permutations_approach_the_exact_count():
    rng = np.random.default_rng(1)
    differences = rng.normal(0.3, 1, (16, 4))
    exact = sign_flip_p_values(differences)
    padded = np.concatenate([differences, np.zeros((4, 4))])  # 20 cases are drawn; zeros change nothing
    drawn = sign_flip_p_values(padded, permutations=20_000)
    np.testing.assert_allclose(drawn, exact, atol=0.015)  # four standard errors at p = .5
    np.testing.assert_array_equal(drawn, sign_flip_p_values(padded, permutations=20_000))


def test_no_drawn_p_value_is_zero():
    assert sign_flip_p_values(np.ones((100, 1)), permutations=999) == pytest.approx(1 / 1000)


def test_a_case_without_a_score_is_not_ranked_there():
    ranking = rank_entries({"a": entry([None, 0.9], [None, 1]), "b": entry([0.0, 0.8], [373, 2])}, ["dice"])
    assert ranking.left_out == 1
    np.testing.assert_array_equal(ranking.case_ranks, [[1], [2]])
    np.testing.assert_array_equal(ranking.means, [[0.9], [0.4]])


def test_a_case_without_any_common_score_does_not_count():
    ranking = rank_entries({"a": entry([None, 0.9], [None, 1]), "b": entry([0.0, 0.8], [373, 2])})
    assert ranking.cases == ("c1",)
    np.testing.assert_array_equal(ranking.case_ranks, [[1], [2]])
    partly = rank_entries({"a": entry([None, 0.9], [5, 1]), "b": entry([0.0, 0.8], [3, 2])})
    np.testing.assert_array_equal(partly.case_ranks, [[2, 1], [1, 2]])
    with pytest.raises(ValueError, match="no case in which all entries have a score"):
        rank_entries({"a": entry([None], [None]), "b": entry([0.0], [373])})


def test_lesionwise_scores_are_ranked_where_all_have_them():
    whole = {"dice": 1, "hd95": 0}
    with_lesions = {"c": {"WT": whole | {"lesionwise_dice": 0.5, "lesionwise_hd95": 9}}}
    columns = rank_entries({"a": with_lesions, "b": with_lesions}).columns
    assert columns == (("WT", "lesionwise_dice"), ("WT", "lesionwise_hd95"))
    columns = rank_entries({"a": with_lesions, "b": {"c": {"WT": whole}}}).columns
    assert columns == (("WT", "dice"), ("WT", "hd95"))


def test_entries_over_different_cases_regions_or_metrics_are_an_error():
    with pytest.raises(ValueError, match=r"b lacks 1 cases of a: c1"):
        rank_entries({"a": entry([1, 1], [0, 0]), "b": entry([1], [0])})
    with pytest.raises(ValueError, match=r"b has the regions \['TC'\], a has \['WT'\]"):
        rank_entries({"a": entry([1], [0]), "b": {"c0": {"TC": {"dice": 1, "hd95": 0}}}})
    with pytest.raises(ValueError, match="a, b lacks the metric nsd; choose among dice, hd95"):
        rank_entries({"a": entry([1], [0]), "b": entry([1], [0])}, ["nsd"])
    with pytest.raises(ValueError, match="two entries or more, got a"):
        rank_entries({"a": entry([1], [0])})


def write_results(path, scores, preset="brats2020"):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"preset": preset, "cohort": "gli", "cases": scores}))
    return path


def test_results_are_called_by_what_tells_their_paths_apart(tmp_path):
    one = write_results(tmp_path / "vae" / "results.json", entry([1], [0]))
    two = write_results(tmp_path / "omnet" / "results.json", entry([1], [0]))
    assert list(load_results([one, two])) == ["vae/results", "omnet/results"]
    assert list(load_results([one, two], names=["A", "B"])) == ["A", "B"]
    with pytest.raises(ValueError, match="the same results twice"):
        load_results([one, one])
    other = write_results(tmp_path / "new.json", entry([1], [0]), "brats2023")
    with pytest.raises(ValueError, match="different presets or cohorts"):
        load_results([one, other])


def test_the_command_ranks_results_and_writes_json_and_csv(tmp_path, capsys):
    good = write_results(tmp_path / "good.json", entry([0.9, 0.8], [1, 2]))
    bad = write_results(tmp_path / "bad.json", entry([0.7, 0.6], [3, 4]))
    out = tmp_path / "ranking.json"
    assert main(["rank", str(bad), str(good), "-o", str(out)]) == 0
    content = json.loads(out.read_text())
    assert [row["entry"] for row in content["ranking"]] == ["good", "bad"]
    assert content["ranking"][0]["mean_rank"] == 1
    assert content["p_values"]["good"]["bad"] == pytest.approx(1 / 4)
    assert content["cases"]["c0"] == {"bad": 2, "good": 1}
    assert out.with_suffix(".csv").read_text().splitlines()[1] == "1,good,1.0,0.8500000000000001,1.5,1.0,1.0,1.0"
    assert (tmp_path / "ranking_p_values.csv").read_text().splitlines()[1] == "good,,0.25"
    assert "good" in capsys.readouterr().out


def test_the_command_writes_stability_and_all_paired_tests_of_three_systems(tmp_path, capsys):
    rng = np.random.default_rng(0)
    files = [
        write_results(tmp_path / f"{name}.json", entry(rng.random(9) * width, rng.random(9)))
        for name, width in (("a", 0.2), ("b", 0.6), ("c", 1.0))
    ]
    assert main(["rank", *map(str, files), "-o", str(tmp_path / "ranking.json")]) == 0
    said = capsys.readouterr().out
    assert "Kendall's tau" in said and "place" in said
    content = json.loads((tmp_path / "ranking.json").read_text())
    for shares in content["stability"]["places"].values():
        assert sum(shares) == pytest.approx(1)
    rows = list(csv.DictReader((tmp_path / "ranking_tests.csv").open()))
    assert [(row["metric"], row["first"], row["second"]) for row in rows[:3]] == [
        ("dice", "a", "b"), ("dice", "a", "c"), ("dice", "b", "c"),
    ]  # fmt: skip
    for row in rows:
        assert float(row["p_wilcoxon"]) <= float(row["p_wilcoxon_holm"]) <= 1
        assert float(row["ci_low"]) <= float(row["difference"]) <= float(row["ci_high"])
    assert content["p_values_holm"]["a"]["b"] >= content["p_values"]["a"]["b"]


# ---- what results are about ----------------------------------------------------------------------------------------


@pytest.fixture
def scored(tmp_path):
    """Two patients' references, and two systems' predictions of the first, each scored into a file of its own."""
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:6, 2:6, 2:6] = 1
    maps = {"patient": labels, "other": np.roll(labels, 1, 2)[:, :, ::-1], "unet": labels, "vae": np.roll(labels, 1, 0)}
    maps["other"][5, 5, 5] = 3
    for name, array in maps.items():
        (tmp_path / name).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(array), tmp_path / name / "case_001.nii.gz")
    for reference, name, file in (("patient", "unet", "x"), ("patient", "vae", "y"), ("other", "vae", "z")):
        command = ["evaluate", str(tmp_path / reference), str(tmp_path / name), "--labels", "trained"]
        assert main([*command, "-o", str(tmp_path / f"{file}.json"), "-np", "1"]) == 0
    return tmp_path


def test_results_keep_the_files_that_they_are_about_and_their_hashes(scored):
    results = json.loads((scored / "x.json").read_text())
    for side, folder in (("references", "patient"), ("predictions", "unet")):
        path = scored / folder / "case_001.nii.gz"
        assert results[side]["folder"] == str(path.parent)
        assert results[side]["files"]["case_001"]["path"] == str(path)
        assert results[side]["files"]["case_001"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (results["preset"], results["version"], results["model"]) == ("brats2020", __version__, "unet")
    assert results["confusion"]["labels"] == ["background", "ED", "NCR", "ET"]
    assert np.array(results["confusion"]["voxels"]["case_001"]).sum() == 8**3


def test_names_come_from_the_results_in_whatever_order_they_are_given(scored):
    one, two = scored / "x.json", scored / "y.json"
    assert list(load_results([one, two])) == ["unet", "vae"]
    assert list(load_results([two, one])) == ["vae", "unet"]
    assert list(load_results([two, one], names=["A", "B"])) == ["A", "B"]
    both = scored / "both.json"
    command = ["evaluate", str(scored / "patient"), *(str(scored / name) for name in ("vae", "unet"))]
    assert main([*command, "--labels", "trained", "-o", str(both), "-np", "1", "--names", "v", "u"]) == 0
    found = load_results([both, one])
    assert list(found) == ["v", "u", "unet"]
    assert found["u"]["cases"] == found["unet"]["cases"]
    assert main(["rank", str(both), "-o", str(scored / "ranking.json")]) == 0
    with pytest.raises(UserError, match="holds the results of v, u"):
        read_results(both)


def test_scores_of_other_patients_under_the_same_names_are_refused(scored, capsys):
    assert main(["rank", str(scored / "x.json"), str(scored / "z.json"), "-o", str(scored / "r.json")]) == 1
    said = capsys.readouterr().err
    assert "different references" in said and "unet and vae, 1 cases: case_001" in said
    assert str(scored / "other" / "case_001.nii.gz") in said


def test_one_patients_label_map_in_another_file_numbering_and_orientation_is_the_same_reference(scored):
    image = sitk.ReadImage(str(scored / "patient" / "case_001.nii.gz"))
    (scored / "release").mkdir()
    released = sitk.DICOMOrient(image * 2, "RAS")  # ED is 1 as trained, 2 as released
    sitk.WriteImage(released, str(scored / "release" / "case_001_seg.nrrd"))
    command = ["evaluate", str(scored / "release"), str(scored / "vae"), "--labels", "released,trained"]
    assert main([*command, "-o", str(scored / "w.json"), "-np", "1"]) == 0
    found = load_results([scored / "x.json", scored / "w.json"])
    assert found["vae"]["cases"] == read_results(scored / "y.json")["cases"]


def test_results_of_an_earlier_version_are_read_with_a_sentence(scored):
    old = Path(__file__).parents[1] / "data" / "version_0_1" / "text" / "results.json"
    content = read_results(old)
    assert content["references"] == {"folder": "", "files": {}} and content["version"] == ""
    for name in ("a", "b"):
        (scored / f"{name}.json").write_text(old.read_text())
    with pytest.warns(Notice, match="does not say which label maps the scores are about"):
        assert list(load_results([scored / "a.json", scored / "b.json"])) == ["a", "b"]


@pytest.mark.parametrize("entries", [2, 20])
def test_names_and_numbers_are_shown_whole_however_many(entries):
    regions = ["WT", "TC", "ET", "NETC", "SNFH", "RC"]
    scores = {f"c{c}": {r: {"lesionwise_dice": 0.1234, "lesionwise_hd95": 321.09} for r in regions} for c in range(2)}
    names = [f"{'v' * 30}.{number:02}" for number in range(entries)]
    console = Console(width=80, file=io.StringIO())
    print_ranking(rank_entries(dict.fromkeys(names, scores), permutations=10), console)
    said = console.file.getvalue()
    assert "…" not in said
    assert said.count("0.1234") == said.count("321.09") == entries * len(regions)
    assert said.count("v") >= 2 * 30 * entries
    assert max(map(len, said.splitlines())) <= 80


def test_a_name_given_twice_is_refused(tmp_path, capsys):
    files = [str(write_results(tmp_path / f"{name}.json", entry([0.9, 0.8], [1, 2]))) for name in "abc"]
    assert main(["rank", *files, "--names", "x", "y", "x", "-o", str(tmp_path / "ranking.json")]) == 1
    assert "x is given twice" in capsys.readouterr().err


def test_the_command_scores_folders_on_the_way(tmp_path, capsys):
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:6, 2:6, 2:6] = 1
    for name, array in (("ref", labels), ("exact", labels), ("shifted", np.roll(labels, 1, 0))):
        (tmp_path / name).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(array), tmp_path / name / "case.nii.gz")
    command = ["rank", str(tmp_path / "shifted"), str(tmp_path / "exact"), "-o", str(tmp_path / "ranking.json")]
    assert main(command) == 1
    assert "give --reference" in capsys.readouterr().err
    assert main([*command, "--reference", str(tmp_path / "ref"), "--labels", "trained", "-np", "1"]) == 0
    ranking = json.loads((tmp_path / "ranking.json").read_text())["ranking"]
    # WT differs; TC and ET are empty in all three, so that both share the rank 1.5: (1 + 1.5 + 1.5) / 3
    assert [(row["entry"], row["mean_rank"]) for row in ranking] == [
        ("exact", pytest.approx(4 / 3)),
        ("shifted", pytest.approx(5 / 3)),
    ]


def test_a_ranking_without_means_is_still_valid_json(tmp_path):
    scores = {"c0": {"WT": {"dice": 0.9}, "ET": {"dice": None}}}
    path, *_ = save_ranking(rank_entries({"a": scores, "b": scores}, ["dice"]), tmp_path / "r.json")
    assert json.loads(path.read_text())["ranking"][0]["ET dice"] is None
