"""What `restore` gives back, and what it refuses to hand in."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from data_commands import convert, printed_by_restore, restore
from release_folders import as_image, label_values, write, write_case

from nnunet_brats_ext.brats import remap
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.cli.data import notes
from nnunet_brats_ext.dataset_conversion import restore as restore_all
from nnunet_brats_ext.dataset_conversion.layouts import LAYOUTS
from nnunet_brats_ext.storage.images import Grid, read_image, write_image

FILES = Path(__file__).parents[1] / "data" / "version_0_1" / "text"
RELEASE = LAYOUTS["BraTS2020"]
CASES = ("BraTS20_Validation_001", "BraTS20_Validation_002")
TRAINED = remap(label_values(RELEASE), RELEASE.numbering.released)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Two unlabelled cases, converted as data set 137, and predictions of them; gives the folder of all that."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    for case in CASES:
        write_case(tmp_path / "source", RELEASE, case, training=False)
        write(as_image(TRAINED), tmp_path / "predicted" / f"{case}.nii.gz")
    convert(tmp_path / "source", 137)
    return tmp_path


def values(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def t1_of(world, case):
    return world / "source" / RELEASE.path(case, "T1", training=False)


def test_both_transforms_of_the_sources_header_come_back_with_their_codes(world):
    # A qform and an sform that differ, as some sites write them; ITK would make one of the two.
    path = t1_of(world, CASES[0])
    source = nibabel.load(path)
    header = source.header.copy()
    header.set_sform(source.affine, code=4)
    header.set_qform(source.affine + 0.01 * np.eye(4, k=3), code=2)  # 0.01 mm further along x
    nibabel.save(nibabel.Nifti1Image(np.asarray(source.dataobj), None, header), path)
    restored, _ = restore(world / "predicted", world / "out", dataset_id=137)
    result = nibabel.load(restored).header
    assert (result["qform_code"], result["sform_code"]) == (2, 4)
    np.testing.assert_array_equal(result.get_sform(), header.get_sform())
    np.testing.assert_array_equal(result.get_qform(), header.get_qform())
    assert result.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(values(restored), label_values(RELEASE))


def test_headers_come_from_the_data_set_where_the_source_is_gone(world):
    header = nibabel.load(t1_of(world, CASES[0])).header.copy()
    shutil.rmtree(world / "source")  # the data set has hard links
    restored, _ = restore(world / "predicted", world / "out", dataset_id=137)
    assert nibabel.load(restored).header["srow_y"].tolist() == header["srow_y"].tolist()


def test_a_source_that_moved_is_found_at_its_new_place(world):
    moved = (world / "source").rename(world / "moved")
    shutil.rmtree(world / "raw" / "Dataset137_BraTS2020" / "imagesTs")
    assert "not compared" not in printed_by_restore(world / "predicted", world / "out", dataset_id=137, source=moved)


def test_the_dataset_json_of_predictions_names_their_data_set(world):
    shutil.copy(world / "raw" / "Dataset137_BraTS2020" / "dataset.json", world / "predicted")
    assert main(["restore", str(world / "predicted"), "-o", str(world / "out"), "-np", "1"]) == 0
    assert sorted(path.name for path in (world / "out").iterdir()) == [f"{case}.nii.gz" for case in CASES]
    # nnU-Net puts validation/ two folders below the dataset.json of a trained model
    fold = world / "model" / "fold_0" / "validation"
    shutil.copytree(world / "predicted", fold)
    (fold / "dataset.json").rename(world / "model" / "dataset.json")
    assert len(restore(fold, world / "out2")) == 2


def test_predictions_of_unknown_origin_are_not_guessed(world):
    with pytest.raises(ValueError, match="name it with -d, or --release"):
        restore(world / "predicted", world / "out")


def test_a_release_and_a_source_do_without_a_data_set(world):
    text = printed_by_restore(world / "predicted", world / "out", release="brats2020", source=world / "source")
    assert "2 cases of BraTS2020, labels 0 -> 0, 1 -> 2, 2 -> 1, 3 -> 4" in text
    np.testing.assert_array_equal(values(world / "out" / f"{CASES[0]}.nii.gz"), label_values(RELEASE))


def test_without_a_source_the_grid_is_said_not_to_be_compared(tmp_path):
    write(sitk.Image((5, 6, 7), sitk.sitkUInt8), tmp_path / "predicted" / "BraTS-MEN-RT-0000-1.nii.gz")
    text = printed_by_restore(tmp_path / "predicted", tmp_path / "out", release="BraTS2024-MEN-RT")
    assert "grid not compared" in text


def test_a_grid_that_only_the_challenge_refuses_is_noted(world):
    # The tiny source is not 240 x 240 x 155 itself, so the prediction is as good as it can be.
    text = printed_by_restore(world / "predicted", world / "out", dataset_id=137)
    assert "size 8 x 9 x 10, where BraTS2020 takes 240 x 240 x 155 (2 cases" in text


def test_every_violation_of_every_case_is_listed_and_nothing_written(world):
    folder = world / "predicted"
    write(as_image(TRAINED[:9]), folder / f"{CASES[0]}.nii.gz")
    unknown = TRAINED.copy()
    unknown[0, 0, 0] = 4
    write(as_image(unknown, (0.0, -238.0, 0.0)), folder / f"{CASES[1]}.nii.gz")
    write(as_image(TRAINED), folder / "BraTS20_Validation_003.nii.gz")
    write(as_image(TRAINED), folder / "patient 1.nii.gz")
    with pytest.raises(ValueError) as error:
        restore(folder, world / "out", dataset_id=137)
    for line in (
        "BraTS20_Validation_001: has 8 x 9 x 9 voxels, its source 8 x 9 x 10",
        "BraTS20_Validation_002: labels [4] as trained do not exist in BraTS2020",
        "BraTS20_Validation_002: lies up to 1 mm away from its source",
        "BraTS20_Validation_003: is no case of",
        "patient 1: patient 1.nii.gz is not named like BraTS20_{part}_{number:03d}.nii.gz",
    ):
        assert f"\n  {line}" in str(error.value)
    assert not (world / "out").exists()
    assert not [path for path in world.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("release", "case", "size", "origin", "refused"),
    [
        ("BraTS2020", "BraTS20_Validation_001", (240, 240, 155), (0, -239, 0), []),
        ("BraTS2020", "BraTS20_Validation_001", (240, 240, 155), (0, 0, 0), ["origin 0 x 0 x 0"]),
        ("BraTS2023-GLI", "BraTS-GLI-00001-000", (240, 240, 154), (0, -239, 0), ["size 240 x 240 x 154"]),
        ("BraTS2024-GLI", "BraTS-GLI-00001-100", (182, 218, 182), (9, 9, 9), []),
        ("BraTS2024-GLI", "BraTS-GLI-00001-100", (240, 240, 155), (0, -239, 0), ["size 240 x 240 x 155"]),
        ("BraTS2024-MEN-RT", "BraTS-MEN-RT-0000-1", (17, 3, 5), (1, 2, 3), []),
    ],
)
def test_grids_are_compared_with_the_challenges_rules(tmp_path, release, case, size, origin, refused):
    image = sitk.Image(size, sitk.sitkUInt8)
    image.SetOrigin(origin)
    write(image, tmp_path / "predicted" / f"{case}.nii.gz")
    if refused:
        with pytest.raises(ValueError, match=refused[0]):
            restore(tmp_path / "predicted", tmp_path / "out", release=release)
    else:
        assert len(restore(tmp_path / "predicted", tmp_path / "out", release=release)) == 1


def test_a_truncated_prediction_is_named(world):
    path = world / "predicted" / f"{CASES[0]}.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"BraTS20_Validation_001: .*001.nii.gz is truncated or damaged"):
        restore(world / "predicted", world / "out", dataset_id=137)


def test_missing_predictions_of_the_test_set_are_named(world):
    (world / "predicted" / f"{CASES[1]}.nii.gz").unlink()
    assert f"1 unlabelled cases have no prediction, such as {CASES[1]}" in printed_by_restore(
        world / "predicted", world / "out", dataset_id=137
    )


def test_restoring_again_is_fine_but_a_folder_of_other_files_is_not(world):
    for overwrite in (False, True):
        restore(world / "predicted", world / "out", dataset_id=137, overwrite=overwrite)
    (world / "out" / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"out holds other files \(notes.txt\)"):
        restore(world / "predicted", world / "out", dataset_id=137)


def test_what_is_read_is_not_overwritten(world):
    before = (world / "predicted" / f"{CASES[0]}.nii.gz").read_bytes()
    with pytest.raises(ValueError, match=r"predicted holds predictions or labels as trained; name a new folder"):
        restore(world / "predicted", world / "predicted", dataset_id=137)
    assert (world / "predicted" / f"{CASES[0]}.nii.gz").read_bytes() == before


def test_a_data_set_without_release_needs_one_by_option(world):
    """As one that was distilled from a data set of someone else's."""
    path = world / "raw" / "Dataset137_BraTS2020" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"release": None}))
    with pytest.raises(ValueError, match="does not say which release it is; name it with --release"):
        restore(world / "predicted", world / "out", dataset_id=137)
    assert len(restore(world / "predicted", world / "out", dataset_id=137, release="BraTS2020")) == 2
    path.unlink()  # a data set that we did not make
    with pytest.raises(ValueError, match="does not say which release it is; name it with --release"):
        restore(world / "predicted", world / "out", dataset_id=137)
    text = printed_by_restore(world / "predicted", world / "out", dataset_id=137, overwrite=True, release="BraTS2020")
    assert "not compared" not in text, "the images lie in the data set"


def test_a_data_set_distilled_from_the_decathlon_has_its_channels_in_files_of_their_own(world):
    release = LAYOUTS["MSD-Task01"]
    write_case(world / "task", release, "BRATS_001")
    dataset = convert(world / "task", 138)
    manifest = json.loads((dataset / "manifest.json").read_text())
    files = {name: {"path": str(dataset / "imagesTr" / f"BRATS_001_{channel:04d}.nii.gz")}
             for channel, name in enumerate(release.sequences)}  # fmt: skip
    manifest["cases"]["BRATS_001"]["files"] = files  # as `distill` writes them
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(world / "predicted")
    shutil.copytree(dataset / "labelsTr", world / "predicted")
    (restored,) = restore(world / "predicted", world / "out", dataset_id=138)
    np.testing.assert_array_equal(values(restored), label_values(release))


def test_a_distilled_data_set_notes_a_folder_as_the_source_of_a_case(world):
    path = world / "raw" / "Dataset137_BraTS2020" / "manifest.json"
    manifest = json.loads(path.read_text())
    for about in manifest["cases"].values():
        about["source"] = str(world / "raw" / "Dataset100_Labelled")
    path.write_text(json.dumps(manifest))
    assert len(restore(world / "predicted", world / "out", dataset_id=137)) == 2
    case = {"source": str(world), "labelled": True, "labels": [0, 1], "remarks": []}
    assert list(notes({"cases": {"A": case}}, [RELEASE])) == [
        f"label {label} ({name}) never found; is it BraTS2020?" for label, name in ((2, "ED"), (4, "ET"))
    ]


def test_data_set_and_release_may_not_contradict(world):
    with pytest.raises(ValueError, match="is BraTS2020, not BraTS2021"):
        restore(world / "predicted", world / "out", dataset_id=137, release="BraTS2021")
    (world / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no .nii.gz file in"):
        restore(world / "empty", world / "out", dataset_id=137)


def test_another_data_sets_cases_are_refused(world):
    """Predictions of a model trained on 137 for cases of another data set carry the dataset.json of 137."""
    description = json.loads((world / "raw" / "Dataset137_BraTS2020" / "dataset.json").read_text())
    (world / "predicted" / "dataset.json").write_text(json.dumps(description))
    for case in CASES:
        (world / "predicted" / f"{case}.nii.gz").unlink()
    write(as_image(TRAINED), world / "predicted" / "BraTS20_Testing_001.nii.gz")
    with pytest.raises(ValueError, match=r"is no case of .*Dataset137_BraTS2020; name the data set"):
        restore(world / "predicted", world / "out")


# ---- data sets of earlier versions ---------------------------------------------------------------------------------


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """What version 0.1 has noted beside a data set, whose images and source are gone; gives the manifest."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    dataset = tmp_path / "raw" / "Dataset901_World"
    dataset.mkdir()
    for name in ("manifest.json", "dataset.json", "splits_final.json"):
        text = (FILES / name).read_text().replace("{ROOT}", str(tmp_path))
        (dataset / name).write_text(text)
    return json.loads((dataset / "manifest.json").read_text())


def test_predictions_for_a_data_set_of_version_0_1_come_back_on_their_grids(earlier, tmp_path):
    (tmp_path / "predicted").mkdir()
    grids = {name: Grid.from_json(case["grid"]) for name, case in earlier["cases"].items() if not case["labelled"]}
    for name, grid in grids.items():
        labels = np.zeros(grid.shape, np.uint8)
        labels[4:8, 5:9, 6:10] = np.arange(4)
        write_image(tmp_path / "predicted" / f"{name}.nii.gz", labels, grid)
    done = restore_all(tmp_path / "predicted", tmp_path / "out", dataset_id=901, processes=1)
    assert ([path.name.split(".")[0] for path in done.files], done.unpredicted) == (list(grids), [])
    for path, grid in zip(done.files, grids.values(), strict=True):
        image = read_image(path)
        assert image.array[5, 6, 6:10].tolist() == [0, 2, 1, 4]
        assert image.grid.difference(grid) is None


def test_patients_keep_the_folds_that_they_have_in_a_data_set_of_version_0_1(earlier, tmp_path):
    known = [name for name, case in earlier["cases"].items() if case["labelled"]][:4]
    for case in known:
        write_case(tmp_path / "source", RELEASE, case)
    dataset = convert(tmp_path / "source", 2, same_patients_as=901)
    old, new = (
        {case: number for number, fold in enumerate(json.loads(path.read_text())) for case in fold["val"]}
        for path in (tmp_path / "raw/Dataset901_World/splits_final.json", dataset / "splits_final.json")
    )
    assert new == {case: old[case] for case in known}
