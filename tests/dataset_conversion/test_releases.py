"""A release goes through `convert` and `restore` and comes out as it was, for every release."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from data_commands import convert, restore
from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases, verify_labels
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from release_folders import label_values, numbered, sequence_values, write_case

from nnunet_brats_ext.brats import remap
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.dataset_conversion.dataset_folder import dataset_json
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS, PRESENT_SCHEME

REAL_CASE = Path(__file__).parents[3] / "shared" / "real_case"


@pytest.fixture
def nnunet(tmp_path, monkeypatch):
    """nnU-Net's folders, empty; gives nnUNet_raw."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path / "raw"


def values(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.mark.parametrize("release", LAYOUTS.values(), ids=LAYOUTS)
def test_convert_then_restore_gives_every_label_back(release, nnunet, tmp_path):
    source = tmp_path / "source" / "release"
    labelled = [release.case_name(number) for number in (1, 2)]
    held_out = release.case_name(3, training=False)
    files = {case: write_case(source, release, case) for case in labelled}
    files[held_out] = write_case(source, release, held_out, training=False)

    dataset = convert(source.parent, 137, scheme=None if release.scheme else PRESENT_SCHEME)
    release = numbered(release)

    description = json.loads((dataset / "dataset.json").read_text())
    assert description["brats_release"] == release.name
    assert description["numTraining"] == 2
    assert list(description["channel_names"].values()) == list(release.sequences)
    trained = remap(label_values(release), release.numbering.released)
    for case in (*labelled, held_out):
        folder = dataset / ("imagesTs" if case == held_out else "imagesTr")
        for channel, sequence in enumerate(release.sequences):
            np.testing.assert_array_equal(
                values(folder / f"{case}_{channel:04d}.nii.gz"), sequence_values(case, sequence)
            )
    assert sorted(path.name for path in (dataset / "labelsTr").iterdir()) == [f"{case}.nii.gz" for case in labelled]
    np.testing.assert_array_equal(values(dataset / "labelsTr" / f"{labelled[0]}.nii.gz"), trained)

    # As if they had been predicted: the two training cases in cross-validation, then the held-out one.
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    for case in (*labelled, held_out):
        predicted = sitk.ReadImage(str(dataset / "labelsTr" / f"{labelled[0]}.nii.gz"))
        sitk.WriteImage(predicted, str(predictions / f"{case}.nii.gz"))
    restored = restore(predictions, tmp_path / "submission", dataset_id=137)
    assert sorted(path.name for path in restored) == sorted(f"{case}.nii.gz" for case in files)
    for path in restored:
        np.testing.assert_array_equal(values(path), label_values(release))
        assert sitk.ReadImage(str(path)).GetOrigin() == (0.0, -239.0, 0.0)
    np.testing.assert_array_equal(values(restored[0]), values(files[labelled[0]][LABEL]))


@pytest.mark.parametrize("release", LAYOUTS.values(), ids=LAYOUTS)
def test_nnunet_accepts_what_convert_writes(release, nnunet, tmp_path):
    for number in (1, 2):
        write_case(tmp_path / "source", release, release.case_name(number))
    dataset = convert(tmp_path / "source", 137, scheme=None if release.scheme else PRESENT_SCHEME)
    description = json.loads((dataset / "dataset.json").read_text())
    manager = LabelManager(description["labels"], description.get("regions_class_order"))
    assert np.all(np.diff(manager.all_labels) == 1)  # nnU-Net wants consecutive labels
    for number in (1, 2):
        case = release.case_name(number)
        images = sorted(map(str, (dataset / "imagesTr").glob(f"{case}_*.nii.gz")))
        label = str(dataset / "labelsTr" / f"{case}.nii.gz")
        assert verify_labels(label, SimpleITKIO, manager.all_labels)
        assert check_cases(images, label, len(release.sequences), SimpleITKIO)


def test_nnunet_lists_the_training_cases(nnunet, tmp_path):
    release = LAYOUTS["BraTS2023-GLI"]
    for number in (1, 2):
        write_case(tmp_path / "source", release, release.case_name(number))
    write_case(tmp_path / "source", release, release.case_name(3), training=False)
    dataset = convert(tmp_path / "source", 137)
    listed = get_filenames_of_train_images_and_targets(str(dataset))
    assert sorted(listed) == ["BraTS-GLI-00001-000", "BraTS-GLI-00002-000"]
    assert all(len(entry["images"]) == 4 for entry in listed.values())


@pytest.mark.parametrize("release", LAYOUTS.values(), ids=LAYOUTS)
def test_nnunets_label_manager_paints_regions_back_to_labels(release):
    scheme = numbered(release).numbering
    description = dataset_json(numbered(release), "Dataset137_Test", 1, normalise=None)
    manager = LabelManager(description["labels"], description.get("regions_class_order"))
    labels = np.array(sorted(scheme.trained)).reshape(1, 1, -1)
    if manager.has_regions:
        heads = [np.isin(labels, region) for region in manager.foreground_regions]
    else:
        heads = [labels == label for label in manager.all_labels]
    painted = manager.convert_probabilities_to_segmentation(np.stack(heads).astype(np.float32))
    # The one label without a region of its own is NET of 2013 and 2015, which is predicted as NCR.
    expected = np.where(labels == 4, 2, labels) if release.scheme_name == "glioma_2013" else labels
    np.testing.assert_array_equal(painted, expected)


@pytest.mark.skipif(not REAL_CASE.is_dir(), reason="the real case is not here")
def test_a_real_case_comes_back_voxel_by_voxel_and_header_by_header(nnunet, tmp_path):
    assert main(["convert", str(REAL_CASE), "-d", "137", "-np", "1"]) == 0
    dataset = nnunet / "Dataset137_BraTS2020"
    assert main(["restore", str(dataset / "labelsTr"), "-o", str(tmp_path / "out"), "-d", "137", "-np", "1"]) == 0
    case = REAL_CASE / "MICCAI_BraTS2020_TrainingData" / "BraTS20_Training_901" / "BraTS20_Training_901"
    restored = nibabel.load(tmp_path / "out" / "BraTS20_Training_901.nii.gz")
    label, t1 = nibabel.load(f"{case}_seg.nii.gz"), nibabel.load(f"{case}_t1.nii.gz")
    np.testing.assert_array_equal(np.asarray(restored.dataobj), np.asarray(label.dataobj))
    np.testing.assert_array_equal(restored.affine, label.affine)
    for code in ("qform_code", "sform_code"):
        assert restored.header[code] == t1.header[code]
    np.testing.assert_array_equal(restored.header.get_qform(), t1.header.get_qform())
    for channel, kind in enumerate(("t1", "t1ce", "t2", "flair")):
        converted = dataset / "imagesTr" / f"BraTS20_Training_901_{channel:04d}.nii.gz"
        assert converted.read_bytes() == Path(f"{case}_{kind}.nii.gz").read_bytes()
