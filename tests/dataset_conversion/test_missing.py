"""Cases that lack sequences: zeros in their place, which stay zeros, and who is told."""

import json

import numpy as np
import pytest
from data_commands import convert, manifest_of, restore
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization
from release_folders import write_case

from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import read_image

RELEASE = LAYOUTS["BraTS2021"]


@pytest.fixture
def source(tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    files = {number: write_case(tmp_path / "source", RELEASE, RELEASE.case_name(number)) for number in (1, 2, 3)}
    for role in ("T1", "FLAIR"):
        files[2][role].unlink()
    return tmp_path / "source"


def test_a_missing_sequence_is_a_problem_unless_zeros_are_asked_for(source):
    with pytest.raises(UserError, match="no T1 and no FLAIR"):
        convert(source, 1)


def test_what_is_missing_is_zero_noted_and_stays_zero_in_nnunets_normalisation(source, tmp_path):
    dataset = convert(source, 1, missing="zero")
    case = RELEASE.case_name(2)
    for channel, there in enumerate((False, True, True, False)):
        image = read_image(dataset / "imagesTr" / f"{case}_{channel:04d}.nii.gz")
        assert image.array.any() == there
        if not there:
            scheme = ZScoreNormalization(use_mask_for_norm=False, intensityproperties={})
            assert not scheme.run(image.array.astype(np.float32), np.ones(image.array.shape)).any()
    assert json.loads((dataset / "dataset.json").read_text())["brats_missing"] == {case: ["T1", "FLAIR"]}
    about = manifest_of(dataset)["cases"][case]
    assert (about["missing"], about["remarks"]) == (["T1", "FLAIR"], ["without T1 and FLAIR"])
    assert "missing" not in manifest_of(dataset)["cases"][RELEASE.case_name(1)]
    path = restore(dataset / "labelsTr", tmp_path / "out", dataset_id=1)[1]
    label = read_image(source / RELEASE.path(case, LABEL))
    np.testing.assert_array_equal(read_image(path).array, label.array)


def test_a_case_without_any_sequence_stays_a_problem(source):
    for role in ("T1ce", "T2"):
        (source / RELEASE.path(RELEASE.case_name(2), role)).unlink()
    with pytest.raises(UserError, match="no T1 and no T1ce and no T2 and no FLAIR"):
        convert(source, 1, missing="zero")
