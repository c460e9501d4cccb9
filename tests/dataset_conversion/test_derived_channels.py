"""A channel computed from sequences: what it holds, what is written of it, and that everything finds it again."""

import json

import numpy as np
import pytest
from data_commands import convert, manifest_of, restore
from release_folders import write_case

from nnunet_brats_ext.brats import DERIVED_CHANNELS, SEQUENCES, derive_channel
from nnunet_brats_ext.dataset_conversion.dataset_folder import RawDataset
from nnunet_brats_ext.dataset_conversion.distillation.distill import write_candidate
from nnunet_brats_ext.dataset_conversion.distillation.sources import MANUAL, labelled_cases
from nnunet_brats_ext.dataset_conversion.layouts import LAYOUTS
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import read_image, write_image

RELEASE = LAYOUTS["BraTS2021"]
WEIGHTS = DERIVED_CHANNELS["T1ce-T1"]


@pytest.fixture
def source(tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    for number in (1, 2, 3):
        files = write_case(tmp_path / "source", RELEASE, RELEASE.case_name(number), training=number < 3)
        t1ce = read_image(files["T1ce"])  # which is T1 + 1000
        write_image(files["T1ce"], t1ce.array[:, ::-1], t1ce.grid)
    return tmp_path / "source"


def random_pair() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    inside = np.pad(np.ones((6, 7, 8), bool), 2)
    return {name: np.where(inside, random.gamma(2, 100, inside.shape), 0) for name in ("T1ce", "T1")}


def test_the_channel_is_the_difference_of_z_scores_whatever_the_scale_of_each_image():
    images = random_pair()
    derived = derive_channel(images, WEIGHTS)
    inside = images["T1"] != 0
    scores = {name: (array[inside] - array[inside].mean()) / array[inside].std() for name, array in images.items()}
    np.testing.assert_allclose(derived[inside], scores["T1ce"] - scores["T1"], rtol=1e-4, atol=1e-5)
    assert not derived[~inside].any() and derived.dtype == np.float32
    scaled = derive_channel({"T1ce": 3 * images["T1ce"], "T1": 0.1 * images["T1"]}, WEIGHTS)
    np.testing.assert_allclose(scaled, derived, atol=1e-4)


def test_the_channel_is_zero_where_a_sequence_is_and_everywhere_where_one_is_missing():
    images = random_pair()
    images["T1"][4] = 0
    assert not derive_channel(images, WEIGHTS)[4].any()
    assert not derive_channel({**images, "T1ce": 0 * images["T1ce"]}, WEIGHTS).any()


def test_a_data_set_has_its_image_and_says_how_it_is_made(source, tmp_path):
    dataset = convert(source, 1, add="t1ce-t1")
    description = DatasetDescription.read(dataset)
    assert description.channel_names == description.sequences == (*SEQUENCES, "T1ce-T1")
    assert (description.acquired, description.derived) == (SEQUENCES, {"T1ce-T1": {"T1ce": 1, "T1": -1}})
    for folder, number in (("imagesTr", 1), ("imagesTs", 3)):
        images = [read_image(dataset / folder / f"{RELEASE.case_name(number)}_000{c}.nii.gz") for c in range(5)]
        arrays = dict(zip(SEQUENCES, (image.array for image in images), strict=False))
        np.testing.assert_array_equal(images[4].array, derive_channel(arrays, WEIGHTS))
        assert images[4].array.any() and images[4].grid.difference(images[0].grid) is None
    assert convert(source, 1, add="t1ce-t1") == dataset
    with pytest.raises(UserError, match="is another data set"):
        convert(source, 1)
    assert len(restore(dataset / "labelsTr", tmp_path / "out", dataset_id=1)) == 2


def test_normalised_images_give_the_channel_of_what_was_written(source):
    dataset = convert(source, 1, add=["t1ce-t1"], normalise="percentile-minmax")
    images = [read_image(path).array for path in sorted((dataset / "imagesTs").glob("*"))]
    np.testing.assert_array_equal(images[4], derive_channel({"T1": images[0], "T1ce": images[1]}, WEIGHTS))
    assert DatasetDescription.read(dataset).channel_names == ("noNorm",) * 5


def test_a_case_without_one_of_its_sequences_has_none(source):
    (source / RELEASE.path(RELEASE.case_name(1), "T1")).unlink()
    dataset = convert(source, 1, add="t1ce-t1", missing="zero")
    assert not read_image(dataset / "imagesTr" / f"{RELEASE.case_name(1)}_0004.nii.gz").array.any()
    assert manifest_of(dataset)["cases"][RELEASE.case_name(1)]["missing"] == ["T1"]


def test_a_data_set_without_its_sequences_is_refused(source, tmp_path):
    radiotherapy = LAYOUTS["BraTS2024-MEN-RT"]
    write_case(tmp_path / "other", radiotherapy, radiotherapy.case_name(1))
    with pytest.raises(UserError, match="--add t1ce-t1: BraTS2024-MEN-RT has no T1"):
        convert(tmp_path / "other", 1, add="t1ce-t1")
    with pytest.raises(UserError, match="--add t2-flair: expected one of t1ce-t1"):
        convert(source, 1, add="t2-flair")


@pytest.mark.parametrize(
    "noted", [{"T1": {"T2": 1}}, {"T1ce-T1": {"PET": 1}}, {"T1ce-T1": 3}, {"T1ce-T1": {}}, {"T1ce-T1": {"T1": "1"}}]
)
def test_a_description_that_cannot_be_is_an_error(noted):
    content = {"channel_names": {"0": "T1", "1": "T1ce", "2": "T1ce-T1"}, "brats_derived": noted}
    with pytest.raises(UserError, match="expected a channel behind"):
        _ = DatasetDescription(content).acquired


def test_distillation_takes_cases_with_or_without_it_and_computes_it(source, tmp_path):
    with_it = RawDataset.open(convert(source, 1, add="t1ce-t1"))
    without = RawDataset.open(convert(source, 2))
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    for one in (with_it, without):
        found = {case.case: case for case in labelled_cases(one, MANUAL, with_it)}
        case = RELEASE.case_name(1)
        assert len(found[case].images) == 4
        for file in tmp_path.glob("*Tr/*"):
            file.unlink()
        write_candidate(found, tmp_path, with_it.description, None, "copy", case)
        written = read_image(tmp_path / "imagesTr" / f"{case}_0004.nii.gz").array
        np.testing.assert_array_equal(written, read_image(with_it.folder / "imagesTr" / f"{case}_0004.nii.gz").array)
    assert json.loads((with_it.folder / "dataset.json").read_text())["brats_sequences"] == [*SEQUENCES, "T1ce-T1"]
