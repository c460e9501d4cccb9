"""What `convert` links, writes, refuses and repeats."""

import gzip
import hashlib
import json
import shutil
import zipfile
from collections import namedtuple
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from data_commands import convert, printed_by_convert
from nnunetv2.preprocessing.normalization.default_normalization_schemes import NoNormalization, ZScoreNormalization
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme
from release_folders import as_image, label_values, sequence_values, write, write_case

from nnunet_brats_ext.brats import SEQUENCES
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.dataset_conversion import cases as cases_module
from nnunet_brats_ext.dataset_conversion import conversion
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS
from nnunet_brats_ext.dataset_conversion.normalisation import (
    NORMALISATIONS,
    PERCENTILE_MINMAX,
    min_max_of_percentiles,
)
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.nnunet import find_dataset

RELEASE = LAYOUTS["BraTS2020"]
CASES = ("BraTS20_Training_001", "BraTS20_Training_002")
NAME = "Dataset137_BraTS2020"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """nnU-Net's folders, empty, and a source of two cases; gives (source, raw, files of case and role)."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    files = {case: write_case(tmp_path / "source", RELEASE, case) for case in CASES}
    return tmp_path / "source", tmp_path / "raw", files


def values(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def manifest_of(dataset):
    return json.loads((dataset / "manifest.json").read_text())


# Links and written files.


@pytest.mark.parametrize("link", ["auto", "hard", "symbolic", "copy"])
def test_images_that_need_no_change_keep_every_byte(world, link):
    source, _, files = world
    dataset = convert(source, 137, link=link)
    for channel, sequence in enumerate(SEQUENCES):
        placed, original = dataset / "imagesTr" / f"{CASES[0]}_{channel:04d}.nii.gz", files[CASES[0]][sequence]
        assert placed.read_bytes() == original.read_bytes()
        assert placed.is_symlink() == (link == "symbolic")
        assert placed.samefile(original) == (link != "copy")
    assert not (dataset / "imagesTs").exists()


def test_where_hard_links_are_impossible_auto_takes_a_symbolic_one(world, monkeypatch):
    source, _, files = world

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(cases_module.os, "link", refuse)
    dataset = convert(source, 137)
    assert (dataset / "imagesTr" / f"{CASES[0]}_0000.nii.gz").readlink() == files[CASES[0]]["T1"]
    with pytest.raises(ValueError, match="hard: Invalid cross-device link"):
        convert(source, 138, link="hard")


def test_uncompressed_and_float_typed_files_are_written_anew(world):
    source, _, files = world
    label = files[CASES[0]][LABEL]
    write(sitk.Cast(sitk.ReadImage(str(label)), sitk.sitkFloat64), label)
    t2 = files[CASES[0]]["T2"]
    write(sitk.ReadImage(str(t2)), t2.with_name(t2.name.removesuffix(".gz")))
    t2.unlink()
    dataset = convert(source, 137)
    np.testing.assert_array_equal(
        values(dataset / "imagesTr" / f"{CASES[0]}_0002.nii.gz"), sequence_values(CASES[0], "T2")
    )
    converted = sitk.ReadImage(str(dataset / "labelsTr" / f"{CASES[0]}.nii.gz"))
    assert converted.GetPixelID() == sitk.sitkUInt8


def test_a_header_within_the_tolerance_is_made_equal_and_remarked(world):
    source, _, files = world
    moved = as_image(sequence_values(CASES[0], "FLAIR"), (0.0, -239.0, 0.03))
    write(moved, files[CASES[0]]["FLAIR"])
    write(as_image(label_values(RELEASE), (0.02, -239.0, 0.0)), files[CASES[0]][LABEL])
    dataset = convert(source, 137)
    for path in (dataset / "imagesTr" / f"{CASES[0]}_0003.nii.gz", dataset / "labelsTr" / f"{CASES[0]}.nii.gz"):
        assert sitk.ReadImage(str(path)).GetOrigin() == (0.0, -239.0, 0.0)
    np.testing.assert_array_equal(
        values(dataset / "imagesTr" / f"{CASES[0]}_0003.nii.gz"), sitk.GetArrayFromImage(moved)
    )
    assert manifest_of(dataset)["cases"][CASES[0]]["remarks"] == [
        "header of FLAIR moved by 0.03 mm, onto that of T1",
        "header of label moved by 0.02 mm, onto that of T1",
    ]
    with pytest.raises(ValueError, match=r"FLAIR lies up to 0.03 mm away from T1, more than the 0.01 tolerated"):
        convert(source, 138, tolerance_mm=0.01)


def test_percentile_min_max_is_henrys():
    # Positive voxels 1 to 101: numpy's linear percentiles are 2 and 100, so 2 -> 0, 51 -> 49/98, 100 and 101 -> 1.
    image = np.array([-5, 0, *range(1, 102)], np.int16)
    scaled = min_max_of_percentiles(image)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled[[0, 1, 2, 3, 52, 101, 102]], [0, 0, 0, 0, 0.5, 1, 1])
    assert not min_max_of_percentiles(np.zeros(5)).any()
    assert not min_max_of_percentiles(np.full(5, 3)).any()


def test_z_scores_are_over_the_images_own_voxels_or_over_the_volume():
    image = np.array([[0, 2], [4, 0]], np.int16)
    own = NORMALISATIONS["zscore-nonzero"].function(image)
    np.testing.assert_allclose(own, [[0, -1], [1, 0]])  # 3 and 1 are mean and deviation of 2 and 4
    volume = NORMALISATIONS["zscore-volume"].function(image)
    np.testing.assert_allclose(volume, (image - 1.5) / np.sqrt(11 / 4), rtol=1e-6)
    for one in NORMALISATIONS.values():
        assert one.function(image).dtype == np.float32
        assert not one.function(np.zeros((2, 2))).any() and not one.function(np.full((2, 2), 3)).any()
        assert one.keeps_zeros == (not one.function(image)[image == 0].any())


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_normalised_images_are_declared_so_that_nnunet_leaves_them_alone(name, world):
    source, _, _ = world
    dataset = convert(source, 137, normalise=name)
    assert DatasetDescription.read(dataset).normalisation == name
    description = json.loads((dataset / "dataset.json").read_text())
    assert [get_normalization_scheme(name) for name in description["channel_names"].values()] == [NoNormalization] * 4
    assert description["brats_sequences"] == list(SEQUENCES)
    for channel, sequence in enumerate(SEQUENCES):
        written = values(dataset / "imagesTr" / f"{CASES[0]}_{channel:04d}.nii.gz")
        expected = NORMALISATIONS[name].function(sequence_values(CASES[0], sequence))
        np.testing.assert_array_equal(written, expected)
    plain = json.loads((convert(source, 138) / "dataset.json").read_text())
    assert [get_normalization_scheme(name) for name in plain["channel_names"].values()] == [ZScoreNormalization] * 4


def test_the_manifest_names_the_source_of_every_file(world):
    source, _, files = world
    manifest = manifest_of(convert(source, 137))
    assert (manifest["release"], manifest["source"]) == ("BraTS2020", str(source))
    assert manifest["label_mapping"] == {"0": 0, "1": 2, "2": 1, "4": 3}
    entry = manifest["cases"][CASES[0]]
    assert (entry["labelled"], entry["patient"], entry["labels"]) == (True, CASES[0], [0, 1, 2, 4])
    assert entry["grid"]["size"] == [8, 9, 10]
    for role, path in files[CASES[0]].items():
        assert source / entry["files"][role]["path"] == path
        assert entry["files"][role]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_several_processes_do_what_one_does(world):
    source, _, _ = world
    one = convert(source, 137, normalise=PERCENTILE_MINMAX)
    two = convert(source, 138, normalise=PERCENTILE_MINMAX, processes=2)
    for path in one.rglob("*.nii.gz"):
        np.testing.assert_array_equal(values(path), values(two / path.relative_to(one)))
    assert manifest_of(one)["cases"] == manifest_of(two)["cases"]


# Bad input.


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def truncate_inside(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-200]))


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def rewrite(change):
    return lambda path: write(change(sitk.ReadImage(str(path))), path)


def set_voxel(value, pixel_type):
    def change(image):
        image = sitk.Cast(image, pixel_type)
        image[1, 1, 1] = value
        return image

    return rewrite(change)


def shift(image):
    image.SetOrigin((0, -239, 1))
    return image


def header_without_numbers(path):
    image = nibabel.load(path)
    header = image.header.copy()
    header.set_sform(np.eye(4))
    header["qform_code"], header["sform_code"], header["srow_x"][3] = 0, 1, np.nan
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, header), path)


DEFECTS = {
    "missing": ("T1ce", lambda path: path.unlink(), "no T1ce"),
    "truncated": ("T2", truncate, "_t2.nii.gz is truncated or damaged: Compressed file ended"),
    "short inside": ("T2", truncate_inside, "_t2.nii.gz is truncated: it holds 1592 of 1792 bytes"),
    "damaged": ("T1", flip_a_byte, "_t1.nii.gz is truncated or damaged"),
    "broken link": ("T1", lambda path: (path.unlink(), path.symlink_to("nowhere")), "_t1.nii.gz does not exist"),
    "empty file": ("T1", lambda path: path.write_bytes(b""), "_t1.nii.gz is empty (0 bytes); copy or"),
    "no image": ("T1", lambda path: path.write_bytes(gzip.compress(b"text" * 500)), "is no readable image: it has no"),
    "not a number": ("FLAIR", set_voxel(np.nan, sitk.sitkFloat32), "_flair.nii.gz has voxels that are infinite or"),
    "two volumes": ("T1", rewrite(lambda image: sitk.JoinSeries([image] * 2)), "has the size 8x9x10x2 where one"),
    "other size": ("T2", rewrite(lambda image: image[:, :, :9]), "T2 has 8x9x9 voxels, T1 8x9x10"),
    "nowhere": ("T2", header_without_numbers, "header of T2 has numbers that are infinite or"),
    "reference nowhere": ("T1", header_without_numbers, "header of T1 has numbers that are infinite or"),
    "elsewhere": ("T2", rewrite(shift), "T2 lies up to 1 mm away from T1, more than the 0.1 tolerated"),
    "unknown label": (LABEL, set_voxel(3, sitk.sitkUInt8), "label 3 in 1 voxels; BraTS2020 has [0, 1, 2, 4]"),
    "fractional label": (LABEL, set_voxel(0.5, sitk.sitkFloat32), "labels are not whole numbers: 0.5"),
    "label not a number": (LABEL, set_voxel(np.nan, sitk.sitkFloat32), "_seg.nii.gz has voxels that are infinite or"),
    "negative label": (LABEL, set_voxel(-1, sitk.sitkInt16), "label -1 in 1 voxels"),
    "label of other size": (LABEL, rewrite(lambda image: image[:, :, :9]), "label has 8x9x9 voxels, T1 8x9x10"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_bad_file_is_named_and_nothing_is_written(world, defect):
    source, raw, files = world
    role, spoil, message = DEFECTS[defect]
    spoil(files[CASES[1]][role])
    with pytest.raises(ValueError) as error:
        convert(source, 137)
    first, line, last = str(error.value).split("\n", 1)[0], str(error.value).split("\n")[1], str(error.value)
    assert first == "1 bad case:"
    assert line.startswith(f"  {CASES[1]}: ") and message in line
    assert "Nothing was written" in last
    assert list(raw.iterdir()) == []


def test_all_bad_cases_are_reported_at_once_and_can_be_left_out(world, capsys):
    source, raw, files = world
    third = write_case(source, RELEASE, "BraTS20_Training_003")
    truncate(files[CASES[1]]["T1"])
    third["T2"].unlink()
    third["T1"].unlink()
    assert main(["convert", str(source), "-d", "137", "-np", "1"]) == 1
    message = capsys.readouterr().err
    assert "2 bad cases:" in message
    assert f"{CASES[1]}: T1" in message and "BraTS20_Training_003: no T1 and no T2" in message
    assert main(["convert", str(source), "-d", "137", "-np", "1", "--skip-bad"]) == 0
    manifest = manifest_of(raw / NAME)
    assert list(manifest["cases"]) == [CASES[0]]
    assert manifest["skipped"]["BraTS20_Training_003"] == ["no T1 and no T2"]
    assert "left out: 2 bad cases:" in capsys.readouterr().out


def test_leaving_out_all_cases_is_no_conversion(world):
    source, raw, files = world
    for case in CASES:
        files[case]["T1"].unlink()
    with pytest.raises(ValueError, match="2 bad cases"):
        convert(source, 137, skip_bad=True)
    assert list(raw.iterdir()) == []


def test_a_full_disk_is_noticed_before_anything_is_written(world, monkeypatch):
    source, raw, _ = world
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: usage(1000, 990, 10))
    with pytest.raises(ValueError, match=r"has 0.00 GB free, .* Nothing was written"):
        convert(source, 137)
    assert list(raw.iterdir()) == []
    # The labels of the two cases take a few hundred bytes, their images some ten thousand.
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: usage(10_000, 0, 5_000))
    with pytest.raises(ValueError, match="may take"):
        convert(source, 137, link="copy")
    convert(source, 137)


def test_a_disk_that_fills_up_on_the_way_leaves_nothing_behind(world, monkeypatch):
    source, raw, _ = world

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cases_module, "write_image", fail)
    with pytest.raises(ValueError, match=r"Training_001: .*No space left"):
        convert(source, 137)
    assert list(raw.iterdir()) == []


# Runs that are repeated, interrupted, or in the way of each other.


def test_the_same_conversion_again_is_no_work_and_no_error(world):
    source, raw, _ = world
    before = (convert(source, 137) / "dataset.json").stat().st_mtime_ns
    assert "this very conversion, finished; nothing to do" in printed_by_convert(source, 137)
    assert (raw / NAME / "dataset.json").stat().st_mtime_ns == before


def test_another_conversion_in_its_place_needs_to_be_asked_for(world):
    source, raw, _ = world
    convert(source, 137)
    other = dict(normalise=PERCENTILE_MINMAX)
    with pytest.raises(ValueError, match="is another data set, or lacks files; --overwrite replaces it"):
        convert(source, 137, **other)
    convert(source, 137, **other, overwrite=True)
    assert manifest_of(raw / NAME)["normalise"] == PERCENTILE_MINMAX
    assert [path.name for path in raw.iterdir()] == [NAME]


def test_a_changed_source_is_another_conversion(world):
    source, _, files = world
    convert(source, 137, link="copy")
    write(as_image(sequence_values(CASES[1], "T1")), files[CASES[0]]["T1"])
    with pytest.raises(ValueError, match="another data set"):
        convert(source, 137, link="copy")


def test_two_of_the_same_conversion_at_once_both_end_well(world, monkeypatch):
    """The second begins and ends while the first is writing."""
    source, raw, _ = world
    write_case, others = conversion.write_case, [conversion.write_case]

    def write_after_another(*arguments, **options):
        if others:
            monkeypatch.setattr(conversion, "write_case", others.pop())
            convert(source, 137)
        write_case(*arguments, **options)

    monkeypatch.setattr(conversion, "write_case", write_after_another)
    dataset = convert(source, 137)
    assert [path.name for path in raw.iterdir()] == [NAME]
    assert len(list((dataset / "imagesTr").iterdir())) == 8 and len(list((dataset / "labelsTr").iterdir())) == 2


def test_another_data_set_that_came_in_between_stays(world, monkeypatch):
    source, raw, _ = world
    write_case = conversion.write_case

    def write_after_another(*arguments, **options):
        monkeypatch.setattr(conversion, "write_case", write_case)
        convert(source, 137, seed=1)
        write_case(*arguments, **options)

    monkeypatch.setattr(conversion, "write_case", write_after_another)
    with pytest.raises(ValueError, match=f"{NAME} was made by another run in the meantime, and is another data set"):
        convert(source, 137)
    assert [path.name for path in raw.iterdir()] == [NAME]
    assert "nothing to do" in printed_by_convert(source, 137, seed=1)


def test_others_may_enter_the_data_set(world):
    source, raw, _ = world
    (raw / "usual").mkdir()
    assert convert(source, 137).stat().st_mode == (raw / "usual").stat().st_mode


@pytest.mark.parametrize("inside", [".", "unpacked"])
def test_a_source_in_the_place_of_its_data_set_is_not_overwritten(world, inside):
    source, raw, _ = world
    place = raw / NAME / inside
    shutil.copytree(source, place)
    (raw / NAME / "manifest.json").write_text("{}")
    before = sorted(raw.rglob("*"))
    with pytest.raises(ValueError, match=r"would be lost with .*, in which it lies; take another ID"):
        convert(place, 137, overwrite=True)
    with pytest.raises(ValueError, match="would be lost"):
        convert(source, 137, overlays=[place], overwrite=True)
    assert sorted(raw.rglob("*")) == before


def test_a_folder_that_is_not_ours_is_not_overwritten(world):
    source, raw, _ = world
    (raw / NAME / "imagesTr").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has no manifest.json of ours, so it is not replaced; remove it yourself"):
        convert(source, 137, overwrite=True)
    assert (raw / NAME / "imagesTr").is_dir()


def test_links_become_copies_when_asked(world):
    source, _, _ = world
    image = convert(source, 137, link="symbolic") / "imagesTr" / f"{CASES[0]}_0000.nii.gz"
    with pytest.raises(ValueError, match="--overwrite replaces it"):
        convert(source, 137, link="copy")
    convert(source, 137, link="copy", overwrite=True)
    assert image.is_file() and not image.is_symlink()
    before = image.stat().st_mtime_ns
    convert(source, 137, link="copy", overwrite=True)
    assert image.stat().st_mtime_ns > before, "whoever asks to overwrite has a reason"


@pytest.mark.parametrize("lost", [f"imagesTr/{CASES[1]}_0002.nii.gz", f"labelsTr/{CASES[0]}.nii.gz", "dataset.json"])
def test_a_data_set_that_lacks_files_is_not_finished(world, lost):
    source, raw, _ = world
    convert(source, 137)
    (raw / NAME / lost).unlink()
    with pytest.raises(ValueError, match="or lacks files; --overwrite replaces it"):
        convert(source, 137)
    convert(source, 137, overwrite=True)
    assert (raw / NAME / lost).is_file()


def test_a_link_to_nothing_is_a_missing_file(world):
    source, _, _ = world
    dataset = convert(source, 137, link="symbolic")
    link = dataset / "imagesTr" / f"{CASES[0]}_0000.nii.gz"
    link.unlink()
    link.symlink_to("nowhere")
    with pytest.raises(ValueError, match="or lacks files"):
        convert(source, 137, link="symbolic")


def test_an_archive_beside_the_data_sets_takes_no_id(world):
    source, raw, _ = world
    zipfile.ZipFile(raw / "Dataset137_Packed.zip", "w").close()
    dataset = convert(source, 137)
    assert find_dataset(137, raw) == dataset


@pytest.mark.parametrize("folder", ["raw", "preprocessed", "results"])
def test_an_id_that_is_taken_is_refused(world, tmp_path, folder):
    (tmp_path / folder / "Dataset137_Other").mkdir()
    with pytest.raises(ValueError, match=r"ID 137 belongs to .*Dataset137_Other already"):
        convert(world[0], 137)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(dataset_id=0), "-d 0: expected at least 1 and at most 999"),
        (dict(dataset_id=1000), "-d 1000: expected at least 1 and at most 999"),
        (dict(dataset_id=1, name="a b"), "data set name 'a b'"),
    ],
)
def test_ids_and_names_are_those_nnunet_can_read(world, options, message):
    with pytest.raises(ValueError, match=message):
        convert(world[0], **options)


def test_without_nnunets_folder_the_error_has_the_line_to_type(world, tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(ValueError, match=r"`export nnUNet_raw=.*, or name a folder with -o"):
        convert(world[0], 137)
    assert convert(world[0], 137, out=tmp_path / "elsewhere") == tmp_path / "elsewhere" / NAME


# What is printed at the end.


def test_two_cases_of_the_same_image_are_remarked(world):
    source, _, files = world
    shutil.copy(files[CASES[0]]["T1"], files[CASES[1]]["T1"])
    dataset = convert(source, 137)
    cases = manifest_of(dataset)["cases"]
    assert cases[CASES[1]]["remarks"] == [f"duplicate image in {CASES[0]}"]
    assert cases[CASES[1]]["patient"] == cases[CASES[0]]["patient"] == CASES[0]
    assert cases[CASES[1]]["known_as"] == [CASES[1]]
    assert not (dataset / "splits_final.json").exists(), "one patient alone gives no folds"


def test_blank_images_are_no_duplicates(world):
    source, _, files = world
    for case in CASES:
        write(as_image(np.zeros_like(sequence_values(case, "T1"))), files[case]["T1"])
    cases = manifest_of(convert(source, 137))["cases"]
    assert [(case["patient"], case["remarks"]) for case in cases.values()] == [
        (name, ["T1 is zero everywhere"]) for name in CASES
    ]


def test_the_command_prints_what_was_found_and_what_to_type_next(world):
    source, _, files = world
    write_case(source, RELEASE, "BraTS20_Validation_001", training=False)
    labels = label_values(RELEASE)
    labels[labels == 4] = 1
    for case in CASES:
        write(as_image(labels), files[case][LABEL])
    text = printed_by_convert(source, 137)
    assert "BraTS2020, by the names of its files" in text
    assert "1: BraTS20_Validation_001" in text  # unlabelled
    assert "2 instead of 5" in text  # folds, for two patients
    assert "label 4 (ET) never found; is it BraTS2020?" in text
    assert "next: nnUNetv2_plan_and_preprocess -d 137 --verify_dataset_integrity" in text


def test_a_source_without_labels_is_for_prediction(world, tmp_path):
    source, _, files = world
    for case in CASES:
        files[case][LABEL].unlink()
    text = printed_by_convert(source, 137)
    assert "next: nnUNetv2_predict -i" in text and "none" in text
    assert (
        sorted(path.name for path in (tmp_path / "raw" / NAME / "imagesTs").iterdir())[0] == f"{CASES[0]}_0000.nii.gz"
    )


def test_an_overlay_corrects_the_label(world, tmp_path):
    source, _, _ = world
    corrected = np.zeros_like(label_values(RELEASE))
    corrected[5, 5, 5] = 4
    write(as_image(corrected), tmp_path / "fix" / f"{CASES[0]}_seg.nii.gz")
    dataset = convert(source, 137, overlays=[tmp_path / "fix"])
    np.testing.assert_array_equal(values(dataset / "labelsTr" / f"{CASES[0]}.nii.gz"), np.where(corrected == 4, 3, 0))
    assert manifest_of(dataset)["cases"][CASES[0]]["files"][LABEL]["path"] == str(
        tmp_path / "fix" / f"{CASES[0]}_seg.nii.gz"
    )


def test_a_source_reached_by_a_relative_path_is_remembered_whole(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest = manifest_of(convert(Path("source"), 137))
    assert "nothing to do" in printed_by_convert(tmp_path / "source", 137)
    assert manifest["source"] == str(tmp_path / "source")
    assert all(not entry["path"].startswith(("/", "..")) for entry in manifest["cases"][CASES[0]]["files"].values())
    shutil.rmtree(tmp_path / "source")
