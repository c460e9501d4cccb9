"""Ensembling: the rules on arrays, then the folders, written and read as nnU-Net writes and reads them."""

import dataclasses
import itertools
import json
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from prediction_folders import PLAIN, REGIONS, SHAPE, head_of, softmax, write_member

from nnunet_brats_ext.brats import ED, ET, LABEL_SCHEMES, NCR, remap, to_regions
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.predictions import fusion
from nnunet_brats_ext.predictions.ensemble import METHODS, EnsembleOptions, ensemble
from nnunet_brats_ext.predictions.heads import check_convertible, convert_head, label_probabilities, paint
from nnunet_brats_ext.storage.images import read_grid, read_label_map, read_probabilities

REAL_CASE = Path(__file__).parents[3] / "shared" / "real_case"
LABELS = (ED, NCR, ET)
ONES = (1, 1, 1, 1)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def vote(*members, labels=LABELS, weights=None, ties="release"):
    """The label that one voxel gets; a member is its label, or its label and the probabilities of `labels`."""
    pairs = [member if isinstance(member, tuple) else (member, None) for member in members]
    maps = [
        (np.array([[[v]]], np.uint8), None if p is None else np.reshape(p, (len(labels), 1, 1, 1))) for v, p in pairs
    ]
    return int(fusion.majority(iter(maps), labels, weights or [1] * len(members), ties).item())


# --- votes ---------------------------------------------------------------------------------------------------------


def test_the_most_frequent_label_wins():
    assert vote(NCR, NCR, ET, 0, NCR) == NCR
    assert vote(0, 0, 0, ET, ET) == 0


def test_background_gives_way_to_a_tumour_label_with_as_many_votes():
    assert vote(0, 0, 1, 1) == 1


def test_tied_tumour_labels_are_settled_by_the_mean_probability_of_their_own_voters():
    # voters of 1 give it .6 on average, voters of 2 give it .7; what the others think of a label does not count
    members = (1, (0.5, 0.9, 0)), (1, (0.7, 0.9, 0)), (2, (0.99, 0.8, 0)), (2, (0.99, 0.6, 0))
    assert vote(*members) == 2
    assert vote(*reversed(members)) == 2


@pytest.mark.parametrize("winner", LABELS)
def test_in_a_tie_of_all_labels_background_is_dropped_and_probability_decides(winner):
    sure = {label: 0.9 if label == winner else 0.5 for label in LABELS}
    voters = [(label, tuple(sure[label] if other == label else 0 for other in LABELS)) for label in LABELS]
    assert vote((0, (1, 1, 1)), *voters) == winner


@pytest.mark.parametrize("ties", ["release", "text"])
def test_probability_does_not_overrule_a_majority(ties):
    assert vote((1, (0.51, 0, 0)), (1, (0.51, 0, 0)), (3, (0, 0, 1)), ties=ties) == 1


def test_by_the_text_a_tie_goes_to_the_largest_mean_probability_of_all_members_background_included():
    members = (1, (0.55, 0.45, 0)), (2, (0.0, 0.52, 0))  # by all .275 against .485, by the voters .55 against .52
    assert (vote(*members, ties="text"), vote(*members)) == (2, 1)
    doubtful = (0, (0.1, 0, 0)), (1, (0.6, 0, 0))  # background .65 on average, 1 .35
    assert (vote(*doubtful, ties="text"), vote(*doubtful)) == (0, 1)
    assert vote((0, (0.45, 0, 0)), (1, (0.9, 0, 0)), ties="text") == 1
    assert vote(0, (1, (0.6, 0, 0)), ties="text") == 0, "who has no probabilities is certain: background .7"


def test_outside_the_box_of_a_member_all_is_background():
    votes = fusion.Votes((1, 1, 2), LABELS)
    inside = (slice(None), slice(None), slice(0, 1))
    votes.add(np.array([[[1]]], np.uint8), np.array([0.9, 0, 0]).reshape(3, 1, 1, 1), box=inside)
    votes.add(np.array([[[0, 1]]], np.uint8), np.array([[0.3, 0.9], [0, 0], [0, 0]]).reshape(3, 1, 1, 2))
    votes.add(np.array([[[0]]], np.uint8), np.array([0.1, 0, 0]).reshape(3, 1, 1, 1), box=inside)
    assert votes.winners().tolist() == [[[0, 0]]]
    with pytest.raises(AssertionError, match="whole volumes"):  # by the text, doubts count there as well
        fusion.Votes((1, 1, 2), LABELS, "text").add(np.array([[[1]]], np.uint8), box=inside)


def test_without_probabilities_the_innermost_of_the_tied_labels_wins():
    assert vote(ED, ED, ET, ET, NCR) == ET
    assert vote(ED, ED, NCR, NCR, ET) == NCR
    assert vote(2, 2, 4, 4, 1, labels=(2, 1, 4)) == 4
    assert vote(2, 2, 1, 1, 4, labels=(2, 1, 4)) == 1, "released numbering: NCR (1) lies inside ED (2)"
    assert vote(ED, ED, ET, ET, NCR, ties="text") == ET
    assert vote(0, 0, ED, ED, ties="text") == ED


def test_a_weight_counts_as_so_many_members():
    assert vote(ED, ET, weights=[2, 1]) == vote(ED, ED, ET) == ED


def test_the_order_of_members_does_not_matter(rng):
    maps = rng.integers(0, 4, (4, *SHAPE)).astype(np.uint8)
    probabilities = rng.random((4, 3, *SHAPE), dtype=np.float32)
    results = [
        fusion.majority(((maps[i], probabilities[i]) for i in order), LABELS, ONES)
        for order in itertools.permutations(range(4))
    ]
    assert all(np.array_equal(results[0], result) for result in results)


def test_a_label_from_another_numbering_is_an_error():
    with pytest.raises(ValueError, match=r"\[4\] are not among the expected \[0, 1, 2, 3\]"):
        vote(4, 1)


# --- the merges of papers ------------------------------------------------------------------------------------------


def test_the_two_pass_merge_follows_the_whole_truth_table():
    # rows: first map 0, ED, NCR, ET; columns: second map 0, ED, NCR, ET (Henry et al., as trained)
    table = [[0, ED, 0, 0], [0, ED, ED, ED], [NCR] * 4, [ET] * 4]
    first, second = np.meshgrid(range(4), range(4), indexing="ij")
    np.testing.assert_array_equal(fusion.two_pass(first, second), table)


def test_the_two_pass_merge_leaves_et_and_tc_of_the_first_map(rng):
    first, second = rng.integers(0, 4, (2, *SHAPE))
    merged = fusion.two_pass(first, second)
    for labels in ((ET,), (NCR, ET)):
        np.testing.assert_array_equal(np.isin(merged, labels), np.isin(first, labels))


def test_strict_nesting_follows_the_whole_truth_table():
    # WT TC ET from 000 to 111: nothing counts outside WT, and ET outside TC stays oedema (101)
    expected = [0, 0, 0, 0, ED, ED, NCR, ET]
    masks = np.array(list(itertools.product((False, True), repeat=3))).T.reshape(3, 1, 1, 8)
    np.testing.assert_array_equal(fusion.paint_masks(fusion.nested(masks)).ravel(), expected)


def test_nesting_probabilities_then_thresholding_is_nesting_masks(rng):
    regions = rng.random((3, *SHAPE))
    np.testing.assert_array_equal(fusion.nested(regions) > 0.5, fusion.nested(regions > 0.5))


# --- means and heads -----------------------------------------------------------------------------------------------


def test_the_mean_reads_one_member_at_a_time(rng):
    alive = 0

    class Tracked(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def members():
        nonlocal alive
        for _ in range(5):
            alive += 1
            assert alive <= 2, "members pile up"
            yield np.ones((3, *SHAPE), np.float16).view(Tracked)

    np.testing.assert_array_equal(fusion.mean(members(), [1] * 5), 1)


def test_weights_scale_to_one_and_half_precision_is_summed_in_single():
    members = [np.full((3, 1, 1, 1), value, np.float16) for value in (0.25, 0.75)]
    result = fusion.mean(members, [1, 3])
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, (0.25 + 3 * 0.75) / 4)


def test_a_mean_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one member"):
        fusion.mean([])


@pytest.mark.parametrize("scheme", ["glioma_2017", "resected_2024", "paediatric_2024"])
def test_hard_masks_survive_the_way_from_regions_to_labels_and_back(scheme, rng):
    facts = LABEL_SCHEMES[scheme]
    regions = {"labels": facts.nnunet_labels(), "regions_class_order": list(facts.paint)}
    plain = {"labels": {"background": 0, **{name: label for label, name in facts.names.items()}}}
    region_head, label_head = head_of(regions, len(facts.regions)), head_of(plain, len(facts.names) + 1)
    label_map = rng.integers(0, len(facts.names) + 1, SHAPE).astype(np.uint8)
    hard = np.stack(list(to_regions(label_map, facts.regions).values())).astype(np.float32)
    soft = convert_head(hard, region_head, label_head)
    np.testing.assert_array_equal(paint(hard, region_head), label_map)
    np.testing.assert_array_equal(paint(soft, label_head), label_map)
    np.testing.assert_array_equal(convert_head(soft, label_head, region_head), hard)


def test_regions_leave_to_a_label_what_the_regions_inside_do_not_claim():
    head = head_of(REGIONS, 3)
    wt, tc, et = 0.9, 0.6, 0.7  # not nested: ET above TC
    p = np.float32([wt, tc, et]).reshape(3, 1, 1, 1)
    # p(ED) = .9 - max(.6, .7) = .2, p(NCR) = max(.6 - .7, 0) = 0, p(ET) = .7, background 1 - .9 = .1: sum 1
    np.testing.assert_allclose(label_probabilities(p, head).ravel(), [0.2, 0, 0.7], atol=1e-6)
    np.testing.assert_allclose(convert_head(p, head, head_of(PLAIN, 4)).ravel(), [0.1, 0.2, 0, 0.7], atol=1e-6)


def test_labels_from_regions_sum_to_one(rng):
    p = rng.random((3, *SHAPE), dtype=np.float32)
    np.testing.assert_allclose(convert_head(p, head_of(REGIONS, 3), head_of(PLAIN, 4)).sum(0), 1, rtol=1e-6)


def test_a_resection_cavity_takes_nothing_from_the_tumour_around_it():
    facts = LABEL_SCHEMES["resected_2024"]
    head = head_of({"labels": facts.nnunet_labels(), "regions_class_order": list(facts.paint)}, 4)
    p = np.float32([0.4, 0.1, 0, 0.9]).reshape(4, 1, 1, 1)
    np.testing.assert_allclose(label_probabilities(p, head).ravel(), [0.3, 0.1, 0, 0.9], atol=1e-6)


def test_the_number_of_channels_shows_a_softmax_over_a_dataset_with_regions():
    assert head_of(REGIONS, 3).has_regions
    assert not head_of(REGIONS, 4).has_regions
    assert head_of(REGIONS, 4).labels == LABELS
    with pytest.raises(ValueError, match=r"5 channels do not fit .* need 3 or 4"):
        head_of(REGIONS, 5)


def test_another_numbering_in_a_dataset_is_an_error():
    with pytest.raises(ValueError, match=r"label NCR is \[1\], but 2 as trained"):
        head_of({"labels": {"background": 0, "NCR": 1, "ED": 2, "ET": 3}}, 4)


def test_the_same_regions_in_another_order_are_put_in_order(rng):
    reverse = {"labels": {"background": 0, "ET": 3, "TC": [2, 3], "WT": [1, 2, 3]}, "regions_class_order": [3, 2, 1]}
    p = rng.random((3, *SHAPE), dtype=np.float32)
    source, target = head_of(reverse, 3), head_of(REGIONS, 3)
    check_convertible(source, target)
    np.testing.assert_array_equal(convert_head(p, source, target), p[::-1])


def test_heads_that_know_other_labels_are_not_mixed():
    facts = LABEL_SCHEMES["resected_2024"]
    resected = head_of({"labels": facts.nnunet_labels(), "regions_class_order": list(facts.paint)}, 4)
    for head in (head_of(REGIONS, 3), head_of(PLAIN, 4)):
        with pytest.raises(ValueError, match="cannot become"):
            check_convertible(head, resected)


# --- folders -------------------------------------------------------------------------------------------------------


@pytest.fixture
def region_members(tmp_path, rng):
    return [
        write_member(tmp_path / name, {c: rng.random((3, *SHAPE), dtype=np.float32) for c in ("a", "b")}, REGIONS)
        for name in ("A", "B")
    ]


def test_the_mean_is_nnunets_own_and_feeds_it(region_members, tmp_path):
    pytest.importorskip("torch")
    from nnunetv2.ensembling.ensemble import ensemble_folders

    ensemble(region_members, tmp_path / "ours", save_probabilities=True, processes=1)
    ensemble_folders([str(f) for f in region_members], str(tmp_path / "theirs"), True, 1)
    for case in ("a", "b"):
        ours, theirs = (read_label_map(tmp_path / who / f"{case}.nii.gz") for who in ("ours", "theirs"))
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1] == theirs[1], "geometry"
        p = [read_probabilities(tmp_path / who / f"{case}.npz") for who in ("ours", "theirs")]
        np.testing.assert_allclose(*p, rtol=1e-6)
    # nnU-Net takes our folder as a member; averaging it with itself changes nothing
    ensemble_folders([str(tmp_path / "ours")] * 2, str(tmp_path / "again"), False, 1)
    for case in ("a", "b"):
        again, ours = (read_label_map(tmp_path / who / f"{case}.nii.gz")[0] for who in ("again", "ours"))
        np.testing.assert_array_equal(again, ours)


def test_the_command_averages_with_weights_in_several_processes(region_members, tmp_path):
    inputs = [str(folder) for folder in region_members]
    assert main(["ensemble", "-i", *inputs, "-o", str(tmp_path / "out"), "--weights", "3", "1", "-np", "2"]) == 0
    p = [read_probabilities(folder / "a.npz") for folder in region_members]
    expected = paint((3 * p[0] + p[1]) / 4, head_of(REGIONS, 3))
    labels, geometry = read_label_map(tmp_path / "out" / "a.nii.gz")
    np.testing.assert_array_equal(labels, expected)
    assert geometry == read_grid(region_members[0] / "a.nii.gz")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"a.nii.gz", "b.nii.gz", "dataset.json", "plans.json", "ensemble.json"}


@pytest.mark.parametrize("space", ["regions", "labels"])
def test_members_with_both_heads_meet_in_one_space(space, region_members, tmp_path, rng):
    cases = {case: softmax(rng.random((4, *SHAPE), dtype=np.float32)).astype(np.float16) for case in ("a", "b")}
    plain = write_member(tmp_path / "C", cases, PLAIN)
    ensemble([plain, region_members[0]], tmp_path / "out", space=space, save_probabilities=True, processes=1)
    p, r = cases["a"].astype(np.float32), read_probabilities(region_members[0] / "a.npz")
    regions, labels = head_of(REGIONS, 3), head_of(PLAIN, 4)
    as_regions = np.stack([p[1] + p[2] + p[3], p[2] + p[3], p[3]])
    expected = {"regions": (as_regions + r) / 2, "labels": (p + convert_head(r, regions, labels)) / 2}[space]
    target = {"regions": regions, "labels": labels}[space]
    np.testing.assert_allclose(read_probabilities(tmp_path / "out" / "a.npz"), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(read_label_map(tmp_path / "out" / "a.nii.gz")[0], paint(expected, target))
    declared = json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"]
    assert declared == {"regions": REGIONS, "labels": PLAIN}[space]["labels"], "the output declares its own head"


def test_labels_are_averaged_and_the_largest_wins_where_every_member_has_regions(tmp_path):
    rng = np.random.default_rng(0)
    head, labels = head_of(REGIONS, 3), head_of(REGIONS, 4)
    probabilities = [rng.random((3, 16, 20, 10), dtype=np.float32) for _ in range(2)]
    folders = [write_member(tmp_path / name, {"a": p}, REGIONS) for name, p in zip("xy", probabilities, strict=True)]
    maps = {}
    for space in ("regions", "labels"):
        assert ensemble(folders, tmp_path / space, space=space, save_probabilities=True)["space"] == space
        maps[space] = read_label_map(tmp_path / space / "a.nii.gz")[0]
    mean = np.mean([convert_head(p, head, labels) for p in probabilities], axis=0)
    np.testing.assert_array_equal(maps["labels"], mean.argmax(0))
    assert (maps["regions"] != maps["labels"]).sum() > 500
    saved = read_probabilities(tmp_path / "labels" / "a.npz", labels)
    np.testing.assert_allclose(saved, mean, atol=1e-6)
    ensemble([tmp_path / "labels", tmp_path / "regions"], tmp_path / "again")  # what was saved can be read


def test_labels_that_are_predicted_as_another_have_no_channel_where_labels_are_averaged(tmp_path, rng):
    scheme = LABEL_SCHEMES["glioma_2013"]  # NET is predicted as NCR
    description = {"labels": scheme.nnunet_labels(), "regions_class_order": list(scheme.paint)}
    folder = write_member(tmp_path / "x", {"a": rng.random((3, *SHAPE), dtype=np.float32)}, description)
    ensemble([folder], tmp_path / "out", space="labels", save_probabilities=True)
    assert len(np.load(tmp_path / "out" / "a.npz")["probabilities"]) == 4
    ensemble([tmp_path / "out"], tmp_path / "again")


def test_half_precision_halves_the_saved_probabilities(region_members, tmp_path):
    for dtype in ("float32", "float16"):
        ensemble(region_members, tmp_path / dtype, save_probabilities=True, dtype=dtype, processes=1)
        with np.load(tmp_path / dtype / "a.npz") as archive:
            assert archive["probabilities"].dtype == dtype
    np.testing.assert_allclose(
        *(read_probabilities(tmp_path / dtype / "a.npz") for dtype in ("float32", "float16")), atol=2**-11
    )


def test_every_missing_case_and_every_differing_grid_is_named_and_nothing_is_written(tmp_path, rng, capsys):
    array = rng.integers(0, 4, SHAPE).astype(np.uint8)
    members = [
        write_member(tmp_path / "A", {"a": array, "b": array, "c": array}),
        write_member(tmp_path / "B", {"a": array[:-1], "d": array}),
        write_member(tmp_path / "C", {"b": array, "c": array, "d": array}, origin=(0.0, 0.0, 0.0)),
    ]
    out = tmp_path / "out"
    assert main(["ensemble", "-i", *map(str, members), "-o", str(out), "--method", "majority"]) == 1
    message = capsys.readouterr().err
    for line in (
        "A lacks 1 of 4 cases: d",
        "B lacks 2 of 4 cases: b, c",
        "C lacks 1 of 4 cases: a",
        "B differ in size (6, 5, 4) against (6, 5, 3)",
        "b: ",
        "c: ",
        "d: ",
        "C differ in origin_mm (-3.0, 239.0, 7.0) against (0.0, 0.0, 0.0)",
    ):
        assert line in message
    assert not out.exists()


def test_a_member_without_probabilities_is_named_with_its_cases(region_members, tmp_path):
    (region_members[1] / "b.npz").unlink()
    with pytest.raises(ValueError, match=r"B lacks the probabilities of b: predict with --save_probabilities"):
        ensemble(region_members, tmp_path / "out")


def test_probabilities_on_another_grid_than_their_label_map_are_an_error(region_members, tmp_path, rng):
    np.savez_compressed(region_members[1] / "b.npz", probabilities=rng.random((3, 9, 5, 6), dtype=np.float32))
    with pytest.raises(ValueError, match=r"b.npz has probabilities of shape \(9, 5, 6\), its label map \(4, 5, 6\)"):
        ensemble(region_members, tmp_path / "out")


def test_a_truncated_file_stops_the_run_and_leaves_nothing(region_members, tmp_path):
    path = region_members[1] / "b.nii.gz"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises((OSError, ValueError), match=r"b.nii.gz"):
        ensemble(region_members, tmp_path / "out", method="majority", processes=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["A", "B"], "no output, no leftovers"


def test_an_input_is_never_overwritten_and_runs_are_never_mixed(region_members, tmp_path):
    with pytest.raises(ValueError, match="also an input"):
        ensemble(region_members, region_members[0])
    write_member(tmp_path / "out", {"other": np.zeros(SHAPE, np.uint8)})
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"already holds maps of other cases \(other.nii.gz\)"):
            ensemble(region_members, tmp_path / "out", overwrite=overwrite)


def test_from_python_it_prints_nothing_and_gives_what_it_wrote(region_members, tmp_path, capsys):
    settings = ensemble(list(map(str, region_members)), str(tmp_path / "out"), weights=[2, 1], processes=1)
    written = json.loads((tmp_path / "out" / "ensemble.json").read_text())
    assert written == json.loads(json.dumps(settings))
    assert written == {"method": "mean", "weights": [2, 1], "space": "regions", "members": [*map(str, region_members)]}
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ValueError, match="--method medium: expected one of mean, majority, staple, two-pass, nested"):
        ensemble(region_members, tmp_path / "out", method="medium")
    with pytest.raises(ValueError, match="no prediction folder is given"):
        ensemble([], tmp_path / "out")


def test_label_maps_and_pairs_vote_alike():
    maps = [np.full((1, 1, 1), label, np.uint8) for label in (ED, ET, ET)]
    assert fusion.majority(maps) == fusion.majority([(one, None) for one in maps], LABELS, ONES[:3]) == ET


def test_every_method_names_options_that_there_are():
    fields = {field.name for field in dataclasses.fields(EnsembleOptions)}
    assert all(fields.issuperset(method.takes) for method in METHODS.values())


def test_a_folder_that_is_not_of_the_region_it_stands_for_is_named(region_members, tmp_path, rng):
    plain = write_member(tmp_path / "C", {c: softmax(rng.random((4, *SHAPE), dtype=np.float32)) for c in "ab"}, PLAIN)
    with pytest.raises(ValueError, match=r"C is read as TC, but its dataset.json has ED, ET, NCR: .*\[2, 3\]"):
        ensemble([region_members[0], plain, region_members[1]], tmp_path / "out", method="nested")


def test_a_run_can_be_repeated(region_members, tmp_path):
    for overwrite in (False, True):
        ensemble(region_members, tmp_path / "out", processes=1, overwrite=overwrite)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_a_run_again_leaves_nothing_of_the_one_before(region_members, tmp_path):
    out = tmp_path / "out"
    ensemble(region_members, out, save_probabilities=True, processes=1)
    assert {path.suffix for path in out.iterdir()} >= {".npz", ".pkl"}
    ensemble(region_members, out, method="majority", processes=1, overwrite=True)
    assert not [path for path in out.iterdir() if path.suffix in (".npz", ".pkl")], "of the mean, not of the vote"
    assert json.loads((out / "ensemble.json").read_text())["method"] == "majority"


def test_an_earlier_description_of_labels_does_not_outlive_them(region_members, tmp_path):
    out = tmp_path / "out"
    ensemble(region_members, out, processes=1)
    assert (out / "dataset.json").is_file()
    released = [write_member(tmp_path / name, dict.fromkeys("ab", np.full(SHAPE, 4, np.uint8))) for name in "CD"]
    ensemble(released, out, method="majority", order=[2, 1, 4], processes=1, overwrite=True)
    assert not (out / "dataset.json").exists(), "it would say that they are as trained"


def test_an_output_that_is_a_file_is_refused_before_work(region_members, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="out is a file"):
        ensemble(region_members, tmp_path / "out", processes=1)
    assert (tmp_path / "out").read_text() == "mine"


def test_two_pass_refuses_label_maps_as_released(tmp_path):
    maps = np.zeros(SHAPE, np.uint8)
    maps[1] = 4
    folders = [write_member(tmp_path / name, {"a": maps}) for name in "AB"]
    with pytest.raises(
        ValueError, match=r"A/a.nii.gz holds labels \[4\], which are not among \[0, 1, 2, 3\]\n.*restore"
    ):
        ensemble(folders, tmp_path / "out", method="two-pass", processes=1)
    with pytest.raises(ValueError, match=r"A/a.nii.gz holds labels \[4\].*\n.*--order.*; .*restore"):
        ensemble(folders, tmp_path / "out", method="majority", processes=1)


def test_weights_must_fit_the_members(region_members, tmp_path):
    with pytest.raises(ValueError, match="--weights 3 numbers for 2 folders"):
        ensemble(region_members, tmp_path / "out", weights=[1, 2, 3])
    for weights in ([1, -1], [0, 0], [inf, 1], [1, nan]):
        with pytest.raises(ValueError, match="weights"):
            ensemble(region_members, tmp_path / "out", weights=weights)
        with pytest.raises(ValueError, match=r"weights \[.*\]: give finite numbers from 0 on"):
            fusion.mean([np.ones(1)] * 2, weights)


@pytest.mark.parametrize("method", ["mean", "majority"])
@pytest.mark.parametrize("weight", ["inf", "nan", "-1"])
def test_a_weight_that_is_no_size_is_quoted(method, weight, region_members, tmp_path, capsys):
    inputs = [str(folder) for folder in region_members]
    command = ["ensemble", "-i", *inputs, "-o", str(tmp_path / "out"), "--method", method, "--weights", weight, "1"]
    assert main(command) == 1
    assert f"--weights {float(weight)}: expected" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_option_of_another_method_is_an_error(region_members, tmp_path):
    with pytest.raises(ValueError, match="--method two-pass takes no --weights"):
        ensemble(region_members, tmp_path / "out", method="two-pass", weights=[1, 1])


def test_probabilities_settle_ties_of_a_vote_where_all_members_have_them(tmp_path):
    # one voxel; A says ED with .4 = .8 - .4, B says ET with .55: ET wins by probability, and the other way round
    p = {"A": (0.8, 0.4, 0.0), "B": (0.6, 0.56, 0.55), "C": (0.99, 0.1, 0.0)}
    members = {
        name: write_member(tmp_path / name, {"a": np.float32(v).reshape(3, 1, 1, 1)}, REGIONS) for name, v in p.items()
    }
    for other, winner in (("A", ET), ("C", ED)):
        out = tmp_path / f"out{other}"
        ensemble([members[other], members["B"]], out, method="majority", processes=1)
        assert read_label_map(out / "a.nii.gz")[0].item() == winner
        assert json.loads((out / "ensemble.json").read_text())["ties"] == "own voters' mean probability"


def test_binary_members_are_fused_from_label_maps_or_probabilities(tmp_path, rng):
    p = rng.random((3, *SHAPE), dtype=np.float32)
    maps = [
        write_member(tmp_path / f"map{i}", {"a": (p[i] > 0.5).astype(np.uint8) * label})
        for i, label in enumerate((1, 2, 3))
    ]
    softmaxes = [
        write_member(
            tmp_path / f"softmax{region}",
            {"a": np.stack([1 - p[i], p[i]])},
            {"labels": {"background": 0, region: 1}},
        )
        for i, region in enumerate(("WT", "TC", "ET"))
    ]
    full = write_member(tmp_path / "full", {"a": fusion.nested(p)}, REGIONS)
    expected = fusion.paint_masks(fusion.nested(p > 0.5))
    ensemble(maps, tmp_path / "from_maps", method="nested", processes=1)
    ensemble(softmaxes, tmp_path / "from_softmaxes", method="nested", save_probabilities=True, processes=1)
    ensemble([*softmaxes[:2], full], tmp_path / "from_both", method="nested", save_probabilities=True, processes=1)
    for name in ("from_maps", "from_softmaxes", "from_both"):
        np.testing.assert_array_equal(read_label_map(tmp_path / name / "a.nii.gz")[0], expected)
        assert json.loads((tmp_path / name / "dataset.json").read_text())["labels"] == REGIONS["labels"]
    for name in ("from_softmaxes", "from_both"):
        np.testing.assert_allclose(read_probabilities(tmp_path / name / "a.npz"), fusion.nested(p))
    with pytest.raises(ValueError, match="there are none to save"):
        ensemble(maps, tmp_path / "out", method="nested", save_probabilities=True)


def test_two_pass_and_nested_count_their_folders(region_members, tmp_path):
    with pytest.raises(ValueError, match=r"two-pass takes 2 folders \(for ET and NCR, for oedema\), not 1"):
        ensemble(region_members[:1], tmp_path / "out", method="two-pass")
    with pytest.raises(ValueError, match=r"nested takes 3 folders \(WT, TC, ET\), not 2"):
        ensemble(region_members, tmp_path / "out", method="nested")


@pytest.mark.skipif(not REAL_CASE.is_dir(), reason="the real case is not here")
def test_the_vote_over_five_real_candidates_differs_from_brats_toolkit_only_where_its_tie_rule_says_so(tmp_path):
    """BraTS Toolkit asks for more than half of the votes and leaves background where no label has them.

    With five voters that happens in 195 voxels, each with two tumour labels of two votes and a third of one: all five
    see tumour, and the Toolkit leaves a hole. The tie rule gives these to the innermost of the two.
    """
    files = sorted((REAL_CASE / "candidates").glob("*.nii.gz"))
    for path in files:
        (tmp_path / path.name[:5]).mkdir()
        (tmp_path / path.name[:5] / "case.nii.gz").symlink_to(path)
    members = [tmp_path / path.name[:5] for path in files]
    ensemble(members, tmp_path / "out", method="majority", order=[2, 1, 4], processes=1)
    ours, geometry = read_label_map(tmp_path / "out" / "case.nii.gz")
    theirs = read_label_map(REAL_CASE / "candidates_majority_vote.nii.gz")[0]
    assert geometry == read_grid(files[0])

    differing = ours != theirs
    assert differing.sum() == 195
    votes = np.stack([read_label_map(path)[0] for path in files])[:, differing]
    counts = np.stack([(votes == label).sum(0) for label in (2, 1, 4)])
    assert (theirs[differing] == 0).all()
    assert (np.sort(counts, axis=0) == [[1], [2], [2]]).all()
    innermost = np.array([2, 1, 4])[2 - (counts[::-1] == 2).argmax(0)]
    np.testing.assert_array_equal(ours[differing], innermost)
    # by tied pair: 48 voxels ED and NCR, 60 ED and ET, 87 NCR and ET
    assert [int((counts[i] == 1).sum()) for i in (2, 1, 0)] == [48, 60, 87]

    trained = LABEL_SCHEMES["glioma_2017"].released
    assert np.array_equal(
        fusion.majority(((remap(read_label_map(p)[0], trained), None) for p in files), LABELS, [1] * 5),
        remap(ours, trained),
    ), "the vote does not depend on the numbering"


# --- STAPLE --------------------------------------------------------------------------------------------------------


def staple_members(rng, number=3):
    """Label maps of one tumour, each with errors of its own."""
    truth = np.zeros((8, 9, 10), np.uint8)
    truth[1:7, 1:8, 1:8], truth[2:6, 2:7, 2:7], truth[3:5, 3:6, 3:6] = ED, NCR, ET
    wrong = [rng.random(truth.shape) < 0.1 * (i + 1) for i in range(number)]
    return [np.where(one, rng.integers(0, 4, truth.shape), truth).astype(np.uint8) for one in wrong]


def simpleitks_staple(members):
    """With 200 where it is undecided."""
    return sitk.GetArrayFromImage(sitk.MultiLabelSTAPLE([sitk.GetImageFromArray(one) for one in members], 200))


def test_staple_is_simpleitks_and_leaves_no_voxel_undecided(rng):
    members = staple_members(rng)
    theirs = simpleitks_staple(members)
    ours = fusion.staple(members)
    np.testing.assert_array_equal(ours[theirs != 200], theirs[theirs != 200])
    assert set(np.unique(ours)) <= {0, *LABELS}


def test_what_staple_leaves_undecided_is_voted_on_or_background():
    """Two members that are wrong alike often: nothing tells them apart where they disagree."""
    first, second = np.zeros((2, 6, 6, 6), np.uint8)
    first[:3], second[:3] = ET, ET
    first[3, :3], second[3, 3:] = ET, ET
    undecided = simpleitks_staple([first, second]) == 200
    assert undecided.any()
    assert (fusion.staple([first, second])[undecided] == ET).all(), "a tumour label before background"
    assert (fusion.staple([first, second], undecided="background")[undecided] == 0).all()
    with pytest.raises(ValueError, match="two members or more"):
        fusion.staple([first])


def test_staple_of_folders_keeps_what_it_was_told(tmp_path, rng, capsys):
    for name, labels in zip("ABC", staple_members(rng), strict=True):
        write_member(tmp_path / name, {"a": labels.astype(np.int64), "b": labels.astype(np.uint8)})
    folders = [str(tmp_path / name) for name in "ABC"]
    assert main(["ensemble", "--method", "staple", "-i", *folders, "-o", str(tmp_path / "out"), "-np", "1"]) == 0
    (a, grid), (b, _) = (read_label_map(tmp_path / "out" / f"{case}.nii.gz") for case in "ab")
    np.testing.assert_array_equal(a, b)
    assert grid == read_grid(tmp_path / "A" / "a.nii.gz")
    settings = json.loads((tmp_path / "out" / "ensemble.json").read_text())
    assert (settings["method"], settings["order"], settings["undecided"]) == ("staple", [1, 2, 3], "vote")
    assert main(["ensemble", "--undecided", "vote", "-i", *folders, "-o", str(tmp_path / "other")]) == 1
    assert "--method mean takes no --undecided" in capsys.readouterr().err
    write_member(tmp_path / "D", {case: np.full((8, 9, 10), 4, np.uint8) for case in "ab"})
    with pytest.raises(ValueError, match=r"holds labels \[4\],(.|\n)* give --order"):
        ensemble([*folders, tmp_path / "D"], tmp_path / "other", method="staple", processes=1)


FUSION = Path(__file__).parents[3] / "shared" / "real_scores" / "fusion"


@pytest.mark.skipif(not FUSION.is_dir(), reason="needs the real label maps")
def test_two_real_members_disagree_in_13080_voxels_that_a_vote_settles_and_staple_mostly_calls_background():
    first, second = (read_label_map(FUSION / f"{name}.nii.gz")[0] for name in ("unet", "resunet"))
    theirs = read_label_map(FUSION / "baseline_staple.nii.gz")[0]
    tied = first != second
    assert np.count_nonzero(tied) == 13_080
    assert not theirs[tied].any()
    np.testing.assert_array_equal(fusion.staple([first, second], (2, 1, 4), "background"), theirs)
    found = fusion.staple([first, second], (2, 1, 4))[tied]
    assert np.unique(found, return_counts=True)[1].tolist() == [12_100, 980]
    assert fusion.majority([first, second], (2, 1, 4))[tied].all()
