"""Distillation: one data set of manual, foreign and pseudo-labels in which no case is trained on and validated."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import FOLDERS
from distillation_bench import SURE, UNSURE, Bench, digest, load, make_bench, read, save
from scipy.ndimage import gaussian_filter, zoom

from nnunet_brats_ext.brats import NCR
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.dataset_conversion.dataset_folder import RawDataset
from nnunet_brats_ext.dataset_conversion.distillation.fingerprints import content_hash, pattern, similar_pairs
from nnunet_brats_ext.dataset_conversion.distillation.sources import (
    MANUAL,
    Candidate,
    channel_order,
    channels_of,
    excluded,
)
from nnunet_brats_ext.dataset_conversion.distillation.targets import confidence
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS
from nnunet_brats_ext.storage.datasets import DatasetDescription


@pytest.fixture
def bench(world, tmp_path, monkeypatch) -> Bench:
    for name in FOLDERS:
        monkeypatch.setenv(name, str(tmp_path / name))
    return make_bench(world, tmp_path)


# ---- the same images under other names -----------------------------------------------------------------------------


def brain(seed: int, shape=(40, 48, 44)) -> np.ndarray:
    """Correlated noise in an ellipsoid: as individual as a cortex, with a head that all have in common."""
    axes = np.meshgrid(*(np.linspace(-1.1, 1.1, n) for n in shape), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 1
    texture = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return np.where(inside, 300 + 800 * texture / texture.std() / 4, 0).clip(0).astype(np.int16)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.astype(np.float32),
        lambda v: v[::-1, :, ::-1],
        lambda v: v.transpose(2, 0, 1),
        lambda v: np.pad(v, 3),
        lambda v: v * 0.013 + 4,
        lambda v: np.sqrt(v.astype(np.float64)),
    ],
    ids=["another type", "flips", "another order of axes", "a margin", "a linear scale", "a rising scale"],
)
def test_the_content_hash_survives(change):
    assert content_hash(change(brain(0))) == content_hash(brain(0)) is not None


def test_the_content_hash_of_different_volumes_differs():
    one = brain(0)
    touched = one.copy()
    touched[tuple(np.argwhere(one > 0)[0])] += 1
    assert len({content_hash(volume) for volume in (one, touched, brain(1))}) == 3


def test_a_blank_or_binary_channel_has_no_content_hash():
    assert content_hash(np.zeros((9, 9, 9))) is None
    assert content_hash((brain(0) > 0).astype(np.uint8)) is None


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    found = list(similar_pairs([pattern(one)[None], pattern(other)[None]], -1.0))
    assert [pair[:2] for pair in found] == [(0, 1)]
    return found[0][2]


@pytest.mark.parametrize(
    "change",
    [
        lambda v: np.where(v, v + np.random.default_rng(5).normal(0, 20, v.shape), 0),
        lambda v: (v // 8).astype(np.uint8)[:, ::-1],
        lambda v: np.where(zoom(v > 0, 1.25, order=0), zoom(v.astype(np.float32), 1.25, order=1), 0),
    ],
    ids=["noise", "coarse steps and a flip", "resampling"],
)
def test_the_pattern_survives_what_the_hash_does_not(change):
    assert content_hash(change(brain(0))) != content_hash(brain(0))
    assert similarity(brain(0), change(brain(0))) > 0.8


def test_the_patterns_of_two_people_differ():
    assert similarity(brain(0), brain(1)) < 0.5


def test_pairs_are_found_across_blocks_and_blank_channels_do_not_count(monkeypatch):
    monkeypatch.setattr("nnunet_brats_ext.dataset_conversion.distillation.fingerprints._BLOCK", 2)
    blank = np.zeros((24, 24, 24), np.float16)
    people = [np.stack([pattern(brain(seed)), pattern(brain(seed + 10))]) for seed in range(4)]
    again = np.stack([np.flip(pattern(brain(1)), (0, 2)), blank])
    assert [pair[:2] for pair in similar_pairs([*people, again], 0.8)] == [(1, 4)]


# ---- small decisions -----------------------------------------------------------------------------------------------


def test_confidence_is_the_distance_from_a_half_in_the_tumour():
    probabilities = np.zeros((2, 1, 1, 3))
    probabilities[:, 0, 0, 0] = 0.9, 0.4  # |2p - 1| = 0.8 and 0.2
    probabilities[:, 0, 0, 1] = 0.7, 0.1  # 0.4 and 0.8; the third voxel is no tumour
    assert confidence(probabilities) == pytest.approx((0.8 + 0.2 + 0.4 + 0.8) / 4)
    assert confidence(np.full((3, 2, 2, 2), 0.1)) == pytest.approx(0.8)  # surely nothing
    assert confidence(np.full((3, 2, 2, 2), 0.5)) == 0


def channels(*names: str, sequences: list[str] | None = None) -> tuple[str, ...]:
    content = {"channel_names": {str(number): name for number, name in enumerate(names)}, "brats_sequences": sequences}
    return channels_of(DatasetDescription(content))


def test_channels_are_matched_by_what_they_show_whatever_they_are_called():
    wanted = channels("T1", "T1ce", "T2", "FLAIR")
    for names in (("FLAIR", "T1", "T1ce", "T2"), ("t2f", "t1n", "T1Gd", "t2w")):
        assert channel_order(channels(*names), wanted) == [1, 2, 3, 0]
    with pytest.raises(ValueError, match=r"its channels are .*'ADC'.*, those of the labelled data set .*'T1ce'"):
        channel_order(channels("FLAIR", "T1", "ADC", "T2"), wanted)


def test_normalised_channels_match_such_only():
    normalised = channels("noNorm", "noNorm", sequences=["FLAIR", "T1"])
    assert channel_order(normalised, channels("noNorm", "noNorm", sequences=["T1", "FLAIR"])) == [1, 0]
    with pytest.raises(ValueError, match="'FLAIR, percentile-minmax'"):
        channel_order(normalised, channels("T1", "FLAIR"))
    unknown = channels("noNorm", "noNorm")
    assert channel_order(unknown, unknown) == [0, 1], "in their order where the file does not say what they show"


def test_names_to_exclude_are_read_as_excel_saves_them_and_those_of_no_case_are_found(tmp_path):
    """Excel begins a .csv with a mark, which is no part of the first name."""
    listed = tmp_path / "held_out.csv"
    listed.write_text("BraTS20_Training_001\nBraTS20_Training_02\n", encoding="utf-8-sig")
    wanted = RawDataset(tmp_path, DatasetDescription({"file_ending": ".nii.gz", "channel_names": {"0": "T1"}}), {})
    exclusion = excluded([listed], wanted)
    assert list(exclusion.names) == ["BraTS20_Training_001", "BraTS20_Training_02"]
    cases = [Candidate(f"BraTS20_Training_00{number}", MANUAL, tmp_path, ()) for number in (1, 2)]
    assert exclusion.unknown(cases) == {listed: ["BraTS20_Training_02"]}
    listed.write_text("BraTS20_Training_001\n", encoding="utf-16")
    with pytest.raises(ValueError, match=r"held_out.csv is no list of names: .* save it as UTF-8"):
        excluded([listed], wanted)


# ---- the command ---------------------------------------------------------------------------------------------------


def test_a_data_set_of_manual_and_pseudo_labels(bench):
    before = digest(bench.labelled)
    dataset = bench.distill("--targets", "soft")
    labelled = load(bench.labelled / "dataset.json")
    made = load(dataset / "dataset.json")
    assert made["numTraining"] == 8
    assert made["labels"] == labelled["labels"]
    assert made["channel_names"] == labelled["channel_names"]
    splits = load(dataset / "splits_final.json")
    for made_fold, own in zip(splits, load(bench.labelled / "splits_final.json"), strict=True):
        assert made_fold["val"] == own["val"]
        assert set(made_fold["train"]) == {*own["train"], SURE, UNSURE}
    assert load(bench.root / "nnUNet_preprocessed" / dataset.name / "splits_final.json") == splits
    for case in (SURE, UNSURE):
        for channel in range(4):
            name = f"{case}_{channel:04d}.nii.gz"
            assert (dataset / "imagesTr" / name).samefile(bench.labelled / "imagesTs" / name), "linked"
        label = dataset / "labelsTr" / f"{case}.nii.gz"
        assert np.array_equal(read(label), read(bench.predictions / f"{case}.nii.gz"))
        assert label.stat().st_nlink == 1, "a new prediction must not change what was trained on"
        levels = np.load(dataset / "soft_targets" / f"{case}.npz")["probabilities"]
        predicted = np.load(bench.predictions / f"{case}.npz")["probabilities"]
        assert levels.dtype == np.uint8
        assert np.abs(levels / 255 - predicted).max() <= 0.5 / 255 + 1e-6
    assert sorted(path.stem for path in (dataset / "soft_targets").iterdir()) == [SURE, UNSURE]
    assert digest(bench.labelled) == before, "the labelled data set stays as it is"


def test_the_manifest_says_where_everything_comes_from(bench):
    manifest = load(bench.distill() / "manifest.json")
    cases = manifest["cases"]
    assert {case: entry["kind"] for case, entry in cases.items() if "Validation" in case} == dict.fromkeys(
        (SURE, UNSURE), "pseudo"
    )
    image = bench.labelled / "imagesTs" / f"{SURE}_0003.nii.gz"
    flair = {"path": str(image.resolve()), "sha256": hashlib.sha256(image.read_bytes()).hexdigest()}
    assert cases[SURE]["files"]["FLAIR"] == flair
    assert cases[SURE]["label"]["path"] == str((bench.predictions / f"{SURE}.nii.gz").resolve())
    assert 0 < cases[UNSURE]["confidence"] < 0.25 < cases[SURE]["confidence"] < 1
    assert manifest["distillation"]["labelled"] == 901
    assert manifest["dropped"] == []
    assert set(manifest["versions"]) >= {"nnunetv2", "numpy", "SimpleITK"}


def test_the_same_distillation_again_is_no_work_and_another_one_is_refused(bench, capsys):
    dataset = bench.distill()
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    capsys.readouterr()
    bench.distill()
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before
    words = ("--pseudo", bench.predictions, bench.labelled / "imagesTs", "--min-confidence", 0.5, "-np", 1)
    assert main(["distill", "-d", "950", "--labelled", "901", *map(str, words)]) == 1
    assert "--overwrite replaces it" in capsys.readouterr().err
    bench.distill("--min-confidence", 0.5, "--overwrite")
    assert load(dataset / "dataset.json")["numTraining"] == 7


def test_what_is_read_and_what_is_not_ours_is_not_overwritten(bench, capsys):
    dataset = bench.distill()
    words = ["distill", "-d", "950", "--labelled", "901", "--overwrite", "-np", "1", "--pseudo", str(bench.predictions)]
    assert main([*words, str(dataset / "imagesTr")]) == 1
    assert f"{dataset / 'imagesTr'} would be lost with {dataset}" in capsys.readouterr().err
    (dataset / "manifest.json").unlink()
    assert main([*words, str(bench.labelled / "imagesTs")]) == 1
    assert "has no manifest.json of ours, so it is not replaced" in capsys.readouterr().err
    assert (dataset / "dataset.json").is_file()


def test_an_interruption_leaves_nothing_behind(bench, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nnunet_brats_ext.dataset_conversion.distillation.distill.write_json", full)
    assert "No space left" in bench.refusal(capsys)
    assert not list(bench.raw.glob(".*"))


def test_predictions_below_a_confidence_are_left_out_and_said_to_be(bench, capsys):
    dataset = bench.distill("--min-confidence", "0.5")
    (dropped,) = load(dataset / "manifest.json")["dropped"]
    assert dropped["key"] == UNSURE
    assert dropped["reason"] == "low confidence"
    assert f"left out: {UNSURE}, low confidence" in capsys.readouterr().out
    assert UNSURE not in str(load(dataset / "splits_final.json"))
    assert not (dataset / "labelsTr" / f"{UNSURE}.nii.gz").exists()


def test_an_unlabelled_copy_of_a_labelled_case_is_left_out(bench):
    """Flipped, as floats, under another name: the manual label wins, so that no validation case is trained on."""
    images = bench.root / "images"
    manual = sorted((bench.labelled / "labelsTr").iterdir())[2].name.removesuffix(".nii.gz")
    for channel in range(4):
        for case, source in (("known", bench.labelled / "imagesTr" / f"{manual}"), ("new", images)):
            if case == "known":
                values = read(Path(f"{source}_{channel:04d}.nii.gz"))[:, ::-1].astype(np.float32)
            else:
                values = read(bench.labelled / "imagesTs" / f"{SURE}_{channel:04d}.nii.gz")
            sitk.WriteImage(sitk.GetImageFromArray(values), str(_made(images / f"{case}_{channel:04d}.nii.gz")))
    predictions = bench.root / "more"
    predictions.mkdir()
    shutil.copy(bench.labelled / "dataset.json", predictions)
    for case in ("known", "new"):
        empty = np.zeros(read(images / f"{case}_0000.nii.gz").shape, np.uint8)
        save(empty, predictions / f"{case}.nii.gz", images / f"{case}_0000.nii.gz")
    dataset = bench.distill("--pseudo", predictions, images)
    dropped = {entry["key"]: entry for entry in load(dataset / "manifest.json")["dropped"]}
    assert set(dropped) == {"known", "new"}
    assert dropped["known"]["reason"] == dropped["new"]["reason"] == "duplicate"
    assert dropped["known"]["because"] == f"{manual}: the same voxels in channel 0, 1, 2, 3"
    assert dropped["new"]["because"].startswith(SURE)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def decathlon(bench: Bench, cases: dict[str, list[np.ndarray]], label: np.ndarray) -> None:
    """Volumes in the order T1, T1ce, T2, FLAIR become data set 960 through MSD Task01's files and `convert`."""
    task = bench.root / "Task01_BrainTumour"
    for case, (t1, t1ce, t2, flair) in cases.items():
        stack = sitk.JoinSeries([sitk.GetImageFromArray(volume) for volume in (flair, t1, t1ce, t2)])
        sitk.WriteImage(stack, str(_made(task / "imagesTr" / f"{case}.nii.gz")))
        sitk.WriteImage(sitk.GetImageFromArray(label), str(_made(task / "labelsTr" / f"{case}.nii.gz")))
    assert main(["convert", str(task), "-d", "960", "--name", "Decathlon", "-np", "1"]) == 0


def test_the_decathlon_adds_its_own_labels_but_none_of_its_copies_of_brats(bench):
    """Lachinov's leak: Task01 holds cases of BraTS under other names, so that local validation saw its own cases."""
    manual = [path.name.removesuffix(".nii.gz") for path in sorted((bench.labelled / "labelsTr").iterdir())]

    def volumes(case: str, folder: str = "imagesTr") -> list[np.ndarray]:
        return [read(bench.labelled / folder / f"{case}_{channel:04d}.nii.gz") for channel in range(4)]

    label = read(bench.labelled / "labelsTr" / f"{manual[0]}.nii.gz")
    noise = np.random.default_rng(0)
    cases = {
        "BRATS_001": [volume[::-1].astype(np.float32) for volume in volumes(manual[0])],
        "BRATS_002": [np.where(v, v + noise.normal(0, 2, v.shape), 0).astype(np.float32) for v in volumes(manual[1])],
        "BRATS_003": volumes(SURE, "imagesTs"),
        "BRATS_004": [brain(40 + channel, label.shape) for channel in range(4)],
    }
    decathlon(bench, cases, label)
    dataset = bench.distill("--foreign", 960)
    manifest = load(dataset / "manifest.json")
    why = {entry["key"]: (entry["reason"], entry["because"].split(":")[0]) for entry in manifest["dropped"]}
    assert why == {
        "BRATS_001": ("duplicate", manual[0]),
        "BRATS_002": ("duplicate", manual[1]),
        SURE: ("duplicate", "BRATS_003"),  # a foreign label is preferred to a prediction
    }
    kinds = {case: entry["kind"] for case, entry in manifest["cases"].items()}
    assert {case for case, kind in kinds.items() if kind == "foreign"} == {"BRATS_003", "BRATS_004"}
    assert np.array_equal(read(dataset / "imagesTr" / "BRATS_004_0003.nii.gz"), cases["BRATS_004"][3]), "FLAIR is last"
    assert all("BRATS_004" in fold["train"] for fold in load(dataset / "splits_final.json"))


def test_labels_of_2015_become_those_of_the_labelled_data_set_where_net_joins_ncr(bench):
    layout = LAYOUTS["BraTS2015"]
    shape = read(next((bench.labelled / "labelsTr").iterdir())).shape
    for number in (1, 2):
        case, source = layout.case_name(number), bench.root / "BraTS2015"
        for channel, role in enumerate(layout.sequences):
            path = source / layout.path(case, role)
            sitk.WriteImage(sitk.GetImageFromArray(brain(10 * number + channel, shape)), str(_made(path)))
        label = np.zeros(shape, np.uint8)
        label[8:16, 8:16, 8:16] = np.arange(8) % 5  # with all of 0 to 4, as released
        sitk.WriteImage(sitk.GetImageFromArray(label), str(_made(source / layout.path(case, LABEL))))
    assert main(["convert", str(source), "-d", "970", "-np", "1"]) == 0
    foreign = bench.raw / "Dataset970_BraTS2015"
    dataset = bench.distill("--foreign", 970)
    for path in (foreign / "labelsTr").iterdir():
        before, after = read(path), read(dataset / "labelsTr" / path.name)
        assert 4 in before
        np.testing.assert_array_equal(after, np.where(before == 4, NCR, before))
        assert load(dataset / "manifest.json")["cases"][path.name.removesuffix(".nii.gz")]["labels"] == [0, 1, 2, 3]


def test_a_near_duplicate_that_is_kept_never_trains_the_fold_that_validates_its_original(bench):
    manual = sorted((bench.labelled / "labelsTr").iterdir())[1].name.removesuffix(".nii.gz")
    noise, label = np.random.default_rng(0), read(bench.labelled / "labelsTr" / f"{manual}.nii.gz")
    volumes = [read(bench.labelled / "imagesTr" / f"{manual}_{channel:04d}.nii.gz") for channel in range(4)]
    copy = [np.where(v, v + noise.normal(0, 2, v.shape), 0).astype(np.float32) for v in volumes]
    decathlon(bench, {"BRATS_002": copy}, label)
    dataset = bench.distill("--foreign", 960, "--near-duplicates", "report")
    for fold in load(dataset / "splits_final.json"):
        assert ("BRATS_002" in fold["train"]) == (manual not in fold["val"])
    (remark,) = load(dataset / "manifest.json")["cases"]["BRATS_002"]["remarks"]
    assert manual in remark


def test_what_is_evaluated_stays_out_by_name_by_patient_and_by_images(bench, capsys):
    manual = sorted((bench.labelled / "labelsTr").iterdir())[0].name.removesuffix(".nii.gz")
    names = bench.root / "evaluated.txt"
    names.write_text(f"{manual}\nnobody\n")
    renamed = bench.root / "evaluated"
    for channel in range(4):
        values = read(bench.labelled / "imagesTs" / f"{SURE}_{channel:04d}.nii.gz")
        sitk.WriteImage(sitk.GetImageFromArray(values[..., ::-1]), str(_made(renamed / f"secret_{channel:04d}.nii.gz")))
    dataset = bench.distill("--exclude", names, "--exclude", renamed)
    assert f"{names}: 1 names match no case, such as 'nobody'" in capsys.readouterr().out
    manifest = load(dataset / "manifest.json")
    assert {entry["key"]: entry["reason"] for entry in manifest["dropped"]} == {
        manual: "excluded by name",
        SURE: "excluded by images",
    }
    assert {manual, SURE} & set(manifest["cases"]) == set()
    assert manual not in str(load(dataset / "splits_final.json"))
    by_patient = load(bench.labelled / "manifest.json")["cases"][UNSURE]["patient"]
    (bench.root / "patients.json").write_text(json.dumps([by_patient]))
    other = bench.distill("--exclude", bench.root / "patients.json", dataset="951")
    assert [entry["key"] for entry in load(other / "manifest.json")["dropped"]] == [UNSURE]


def test_a_pseudo_labelled_case_never_trains_the_fold_that_validates_its_patient(bench):
    """Another time point of a labelled patient has other images, so it is no duplicate."""
    manifest = load(bench.labelled / "manifest.json")
    manual = load(bench.labelled / "splits_final.json")[0]["val"][0]
    manifest["cases"][SURE]["known_as"] = [manifest["cases"][manual]["patient"]]
    (bench.labelled / "manifest.json").write_text(json.dumps(manifest))
    for fold in load(bench.distill() / "splits_final.json"):
        assert (SURE in fold["train"]) == (manual not in fold["val"])
        assert UNSURE in fold["train"]


def test_a_release_folder_is_excluded_by_its_images_whatever_its_cases_are_called(bench, world, capsys):
    (source,) = (world.root / "release").rglob(SURE)
    for image in source.iterdir():
        renamed = image.name.replace(SURE, "BraTS20_Validation_123")
        shutil.copy(image, _made(bench.root / "release" / "BraTS20_Validation_123" / renamed))
    dataset = bench.distill("--exclude", bench.root / "release")
    (dropped,) = load(dataset / "manifest.json")["dropped"]
    assert (dropped["key"], dropped["reason"]) == (SURE, "excluded by images")


def test_channels_in_another_order_are_put_into_that_of_the_labelled_data_set(bench):
    """A data set that lists its files in dataset.json, as nnU-Net allows."""
    foreign = bench.raw / "Dataset961_Listed"
    described = load(bench.labelled / "dataset.json")
    for key in list(described):
        if key.startswith("brats_"):
            del described[key]
    described["channel_names"] = {"0": "FLAIR", "1": "T1", "2": "T1ce", "3": "T2"}
    images = [f"scans/patient_{number}.nii.gz" for number in range(4)]
    described["dataset"] = {"patient": {"images": images, "label": "labels/patient.nii.gz"}}
    for number, image in enumerate(images):
        sitk.WriteImage(sitk.GetImageFromArray(brain(80 + number)), str(_made(foreign / image)))
    empty = np.zeros(brain(0).shape, np.uint8)
    save(empty, foreign / "labels" / "patient.nii.gz", foreign / images[0])
    (foreign / "dataset.json").write_text(json.dumps(described))
    dataset = bench.distill("--foreign", 961)
    for channel, seed in enumerate((81, 82, 83, 80)):
        assert np.array_equal(read(dataset / "imagesTr" / f"patient_{channel:04d}.nii.gz"), brain(seed))
    assert "dataset" not in load(dataset / "dataset.json")


def test_a_name_that_is_taken_gets_its_sources_before_it(bench):
    images, predictions = bench.root / "images", bench.root / "site-b"
    for channel in range(4):
        image = sitk.GetImageFromArray(brain(70 + channel))
        sitk.WriteImage(image, str(_made(images / f"{SURE}_{channel:04d}.nii.gz")))
    predictions.mkdir()
    shutil.copy(bench.labelled / "dataset.json", predictions)
    empty = np.zeros(brain(0).shape, np.uint8)
    save(empty, predictions / f"{SURE}.nii.gz", images / f"{SURE}_0000.nii.gz")
    dataset = bench.distill("--pseudo", predictions, images)
    case = load(dataset / "manifest.json")["cases"][f"site-b_{SURE}"]
    assert case["name_at_source"] == SURE
    assert case["tumour_voxels"] == 0
    assert np.array_equal(read(dataset / "imagesTr" / f"site-b_{SURE}_0002.nii.gz"), brain(72))


def test_what_does_not_fit_is_refused_and_named(bench, capsys):
    assert "nothing to distill" in bench.refusal(capsys, pseudo=False)
    (bench.root / "all.txt").write_text(f"{SURE}\n{UNSURE}\n")
    assert "no case to distill is left: 2 excluded by name" in bench.refusal(
        capsys, "--exclude", bench.root / "all.txt"
    )
    prediction = bench.predictions / f"{SURE}.nii.gz"
    values = read(prediction)
    values[0, 0, 0] = 4
    save(values, prediction, prediction)
    said = bench.refusal(capsys)
    assert SURE in said
    assert "[4]" in said
    described = load(bench.predictions / "dataset.json")
    del described["brats_sequences"]
    described["channel_names"] = {"0": "FLAIR", "1": "T1", "2": "T1ce", "3": "T2"}
    (bench.predictions / "dataset.json").write_text(json.dumps(described))
    assert "was predicted from" in bench.refusal(capsys)
    (bench.predictions / f"{SURE}.npz").unlink()
    assert "lacks the probabilities" in bench.refusal(capsys, "--targets", "soft")


def test_images_with_other_axes_than_the_labelled_data_set_notes_are_refused(bench, capsys):
    """They would be linked unturned into a data set that says LPS."""
    for path in [*(bench.labelled / "imagesTs").glob(f"{SURE}_*"), bench.predictions / f"{SURE}.nii.gz"]:
        sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "RAS"), str(path))
    said = " ".join(bench.refusal(capsys).split())
    assert "Dataset901_World has images with the axes LPS" in said
    assert f"{SURE} of {bench.predictions} has RAS; turn them with `nnunet_brats convert`" in said
    names = bench.root / "left_out.txt"
    names.write_text(f"{SURE}\n")
    bench.distill("--exclude", names)  # what is left out may have any axes


def test_data_sets_that_note_other_axes_are_refused(bench, capsys):
    other = bench.raw / "Dataset962_Turned"
    shutil.copytree(bench.labelled, other)
    described = load(other / "dataset.json")
    (other / "dataset.json").write_text(json.dumps({**described, "name": other.name, "brats_axes": "RAS"}))
    said = " ".join(bench.refusal(capsys, "--foreign", 962).split())
    assert "axes RAS differ from LPS of Dataset901_World; convert both" in said
