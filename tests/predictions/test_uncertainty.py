"""Uncertainty: entropies by hand, QU-BraTS's curves by counting, and the maps on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_brats_ext.brats import LABEL_SCHEMES, remap
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.predictions.uncertainty import (
    binary_entropy,
    filtered_curves,
    mean_and_uncertainty,
    qu_brats_score,
    to_percent,
)
from nnunet_brats_ext.predictions.uncertainty_maps import map_uncertainty
from nnunet_brats_ext.storage.images import read_grid, read_label_map, write_image, write_label_map

REAL_CASE = Path(__file__).parents[3] / "shared" / "real_case"
SHAPE = (4, 5, 6)


def test_entropy_is_none_where_sure_and_one_bit_at_a_half():
    # at a quarter: .25 * 2 + .75 * log2(4 / 3) = 0.811278
    p = np.float32([0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(binary_entropy(p), [0, 0.811278, 1, 0.811278, 0], atol=1e-6)
    np.testing.assert_array_equal(to_percent(binary_entropy(p)), [0, 81, 100, 81, 0])


def test_mutual_information_is_what_the_members_disagree_about():
    agree = np.full((1, 1, 1, 1), 0.5, np.float32)
    mean, uncertainty = mean_and_uncertainty([agree, agree], "mutual-information")
    assert (mean.item(), uncertainty.item()) == (0.5, 0)
    mean, uncertainty = mean_and_uncertainty([agree * 0, agree * 2], "mutual-information")
    assert (mean.item(), uncertainty.item()) == (0.5, 1)
    assert (
        mean_and_uncertainty([agree, agree], "entropy")[1].item()
        == mean_and_uncertainty([agree * 0, agree * 2], "entropy")[1].item()
        == 1
    )


def test_members_are_read_one_at_a_time_and_their_order_does_not_matter():
    p = np.random.default_rng(0).random((5, 3, *SHAPE), dtype=np.float32)
    for measure in ("entropy", "mutual-information"):
        forward, back = mean_and_uncertainty(iter(p), measure), mean_and_uncertainty(iter(p[::-1]), measure)
        np.testing.assert_allclose(forward, back, atol=1e-6)
        np.testing.assert_allclose(forward[0], p.mean(0), rtol=1e-6)
    with pytest.raises(ValueError, match="at least one member"):
        mean_and_uncertainty([])
    with pytest.raises(ValueError, match="measure 'variance' is none of entropy, mutual-information"):
        mean_and_uncertainty(p, "variance")


def test_curves_count_what_is_left_below_each_threshold():
    # four true positives, at uncertainty 0, 0, 40 and 80; one false positive at 60, one false negative at 20
    reference = np.array([1, 1, 1, 1, 0, 1, 0, 0], bool)
    prediction = np.array([1, 1, 1, 1, 1, 0, 0, 0], bool)
    uncertainty = np.array([0, 0, 40, 80, 60, 20, 0, 100], np.uint8)
    curves = filtered_curves(reference, prediction, uncertainty)
    expected = {0: 1, 19: 1, 20: 4 / 5, 39: 4 / 5, 40: 6 / 7, 59: 6 / 7, 60: 6 / 8, 80: 8 / 10, 100: 8 / 10}
    assert {t: pytest.approx(curves["dice"][t]) for t in expected} == expected
    assert [curves["filtered_tp"][t] for t in (0, 39, 40, 79, 80)] == [0.5, 0.5, 0.25, 0.25, 0]
    assert [curves["filtered_tn"][t] for t in (0, 99, 100)] == [0.5, 0.5, 0]


def test_the_best_uncertainty_is_full_on_errors_and_none_elsewhere():
    rng = np.random.default_rng(1)
    reference, prediction = rng.random((2, 1000)) > 0.5
    perfect = np.where(reference != prediction, 100, 0).astype(np.uint8)
    # without errors Dice is 1 at all thresholds but 100, where it has the trapezoid's last half step
    dice = 2 * (reference & prediction).sum() / (reference.sum() + prediction.sum())
    scores = qu_brats_score(filtered_curves(reference, prediction, perfect))
    assert scores["dice_auc"] == pytest.approx(1 - 0.005 * (1 - dice))
    assert scores["filtered_tp_auc"] == scores["filtered_tn_auc"] == 0
    for other in (np.zeros_like(perfect), np.full_like(perfect, 50), 100 - perfect):
        assert qu_brats_score(filtered_curves(reference, prediction, other))["score"] < scores["score"]


def test_true_negatives_count_within_the_brain_where_it_is_known():
    # Mehta et al.'s evaluation multiplies true positives and true negatives with a mask of the brain, Dice with none
    reference = np.array([1, 1, 0, 0, 0, 0], bool)
    prediction = np.array([1, 1, 0, 0, 0, 1], bool)
    uncertainty = np.array([0, 50, 0, 90, 0, 90], np.uint8)
    brain = np.array([1, 1, 1, 1, 0, 0], bool)
    everywhere, within = (filtered_curves(reference, prediction, uncertainty, mask) for mask in (None, brain))
    assert everywhere["dice"] == within["dice"]
    assert everywhere["filtered_tp"] == within["filtered_tp"]
    assert (everywhere["filtered_tn"][89], within["filtered_tn"][89]) == (pytest.approx(1 / 3), 0.5)


def test_empty_masks_agree_and_nothing_is_set_aside():
    empty, uncertainty = np.zeros(10, bool), np.arange(10, dtype=np.uint8)
    curves = filtered_curves(empty, empty, uncertainty)
    assert set(curves["dice"]) == {1}
    assert set(curves["filtered_tp"]) == {0}
    full = ~empty
    assert set(filtered_curves(full, full, uncertainty)["filtered_tn"]) == {0}


def member(folder, labels, probabilities=None):
    folder.mkdir()
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(image, folder / "a.nii.gz")
    if probabilities is not None:
        np.savez_compressed(folder / "a.npz", probabilities=probabilities)
        declared = {"labels": LABEL_SCHEMES["glioma_2017"].nnunet_labels(), "regions_class_order": [1, 2, 3]}
        (folder / "dataset.json").write_text(json.dumps(declared))
    return folder


@pytest.mark.parametrize("measure", ["entropy", "mutual-information"])
def test_the_command_writes_a_map_per_region_with_the_geometry_of_the_case(tmp_path, measure):
    p = np.random.default_rng(2).random((2, 3, *SHAPE), dtype=np.float32)
    members = [member(tmp_path / f"m{i}", np.zeros(SHAPE, np.uint8), p[i]) for i in range(2)]
    out = tmp_path / "out"
    assert main(["uncertainty", "-i", *map(str, members), "-o", str(out), "--measure", measure, "-np", "1"]) == 0
    _, expected = mean_and_uncertainty(p, measure)
    for i, name in enumerate(("whole", "core", "enhance")):
        values, geometry = read_label_map(out / f"a_unc_{name}.nii.gz")
        np.testing.assert_array_equal(values, to_percent(expected[i]))
        assert geometry == read_grid(members[0] / "a.nii.gz")
    assert len(list(out.iterdir())) == 3


def test_label_maps_alone_vote(tmp_path):
    labels = [np.full(SHAPE, value, np.uint8) for value in (0, 1, 3, 3)]
    members = [member(tmp_path / f"m{i}", array) for i, array in enumerate(labels)]
    command = ["uncertainty", "-i", *map(str, members), "-o", str(tmp_path / "out"), "-np", "1"]
    assert main(command) == 0
    # WT 3 of 4 votes, TC and ET 2 of 4
    for name, expected in (("whole", 81), ("core", 100), ("enhance", 100)):
        assert set(read_label_map(tmp_path / "out" / f"a_unc_{name}.nii.gz")[0].ravel()) == {expected}
    assert main([*command, "--overwrite"]) == 0, "it can be run again"


def test_the_brain_is_where_any_sequence_has_signal(tmp_path, capsys):
    members = [member(tmp_path / name, np.zeros(SHAPE, np.uint8)) for name in ("m", "n")]
    reference = member(tmp_path / "reference", np.zeros(SHAPE, np.uint8))
    uncertain = np.zeros((3, *SHAPE), np.float32)
    uncertain[:, 0] = 0.5  # a quarter of the volume; with the brain of half of it, half of that
    for folder in members:
        np.savez_compressed(folder / "a.npz", probabilities=uncertain)
        declared = {"labels": LABEL_SCHEMES["glioma_2017"].nnunet_labels(), "regions_class_order": [1, 2, 3]}
        declared["channel_names"] = {"0": "T1", "1": "T2"}
        (folder / "dataset.json").write_text(json.dumps(declared))
    images = tmp_path / "images"
    images.mkdir()
    geometry = read_grid(members[0] / "a.nii.gz")
    for channel, layer in enumerate((0, 1)):
        image = np.zeros(SHAPE, np.int16)
        image[layer] = -3
        write_image(images / f"a_{channel:04}.nii.gz", image, geometry)
    command = ["uncertainty", "-i", *map(str, members), "--reference", str(reference), "-np", "1"]
    for options, share in (([], 1 / 4), (["--images", str(images)], 1 / 2)):
        out = tmp_path / f"out{len(options)}"
        assert main([*command, "-o", str(out), *options]) == 0
        found = json.loads((out / "uncertainty.json").read_text())
        assert found["true_negatives"] == ("within the brain" if options else "everywhere")
        assert found["summary"]["WT"]["curves"]["filtered_tn"][50] == pytest.approx(share)
    (images / "a_0001.nii.gz").unlink()
    (images / "a_0000.nii.gz").unlink()
    assert main([*command, "-o", str(tmp_path / "none"), "--images", str(images)]) == 1
    assert "lacks images CASE_0000.nii.gz and so on, channel by channel, of a" in capsys.readouterr().err


def test_label_maps_as_released_are_refused_rather_than_called_certain(tmp_path, capsys):
    members = [member(tmp_path / f"m{i}", np.full(SHAPE, 4 * i, np.uint8)) for i in range(2)]
    assert main(["uncertainty", "-i", *map(str, members), "-o", str(tmp_path / "out"), "-np", "1"]) == 1
    assert "a.nii.gz holds labels [4]" in capsys.readouterr().err


def test_a_reference_as_released_is_refused(tmp_path, capsys):
    members = [member(tmp_path / f"m{i}", np.full(SHAPE, i, np.uint8)) for i in range(2)]
    reference = member(tmp_path / "reference", np.full(SHAPE, 4, np.uint8))
    command = ["uncertainty", "-i", *map(str, members), "-o", str(tmp_path / "out"), "-np", "1"]
    assert main([*command, "--reference", str(reference)]) == 1
    assert "reference/a.nii.gz holds labels [4]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_from_python_it_prints_nothing_and_gives_the_scores(tmp_path, capsys):
    members = [str(member(tmp_path / f"m{i}", np.full(SHAPE, i, np.uint8))) for i in range(2)]
    plain = map_uncertainty(members, str(tmp_path / "plain"), processes=1)
    assert plain == {"measure": "entropy", "members": members, "from": "votes"}
    scored = map_uncertainty(members, str(tmp_path / "scored"), reference=members[1], processes=1)
    assert scored == json.loads((tmp_path / "scored" / "uncertainty.json").read_text())
    assert set(scored["summary"]) == set(scored["cases"]["a"]) == {"WT", "TC", "ET"}
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ValueError, match="only the scores need them"):
        map_uncertainty(members, tmp_path / "out", images=tmp_path)


def test_disagreement_takes_two_members(tmp_path, capsys):
    one = member(tmp_path / "m", np.zeros(SHAPE, np.uint8))
    command = ["uncertainty", "-i", str(one), "-o", str(tmp_path / "out"), "--measure", "mutual-information"]
    assert main(command) == 1
    assert "two folders or more" in capsys.readouterr().err


@pytest.mark.skipif(not REAL_CASE.is_dir(), reason="the real case is not here")
def test_five_real_candidates_are_uncertain_where_their_vote_errs(tmp_path):
    trained = LABEL_SCHEMES["glioma_2017"].released
    files = sorted((REAL_CASE / "candidates").glob("*.nii.gz"))
    truth = REAL_CASE / "MICCAI_BraTS2020_TrainingData" / "BraTS20_Training_901" / "BraTS20_Training_901_seg.nii.gz"
    for name, path in (*((path.name[:5], path) for path in files[1:]), ("truth", truth)):
        (tmp_path / name).mkdir()
        labels, geometry = read_label_map(path)
        write_label_map(tmp_path / name / "case.nii.gz", remap(labels, trained), geometry)
    members = [str(tmp_path / path.name[:5]) for path in files[1:]]  # four of the five, so that the vote errs
    images = tmp_path / "images"
    images.mkdir()
    for channel, sequence in enumerate(("t1", "t1ce", "t2", "flair")):
        image = truth.with_name(truth.name.replace("seg", sequence))
        (images / f"case_{channel:04}.nii.gz").symlink_to(image)
    out = tmp_path / "out"
    command = ["uncertainty", "-i", *members, "-o", str(out), "--reference", str(tmp_path / "truth"), "-np", "1"]
    assert main([*command, "--images", str(images)]) == 0
    found = json.loads((out / "uncertainty.json").read_text())["summary"]
    # What github.com/RagMeh11/QU-BraTS prints for these files at 100 points, the mask being where a sequence is not 0
    # (with its step for numerical stability in double precision, as before NumPy 2; it sums in single precision).
    official = {
        "WT": (0.9962037658691406, 0.10925664901733398, 0.0033712980151176454),
        "TC": (0.9975111389160156, 0.054253826141357424, 0.0004441232234239578),
        "ET": (0.9999587249755859, 0.09811237335205078, 0.0005910716950893402),
    }
    for region, areas in official.items():
        scores, dice = found[region]["scores"], found[region]["curves"]["dice"]
        ours = [scores[f"{name}_auc"] for name in ("dice", "filtered_tp", "filtered_tn")]
        assert ours == pytest.approx(areas, abs=5e-7)
        assert dice[100] < dice[50] <= 1, "setting uncertain voxels aside raises Dice"
        assert 0.9 < scores["score"] < 1
