"""Patients are checked: no alarm on real ones, every spoiling found, and the command says what to do."""

import re
from pathlib import Path

import numpy as np
import pytest
from data_commands import printed
from release_folders import write_case
from scipy import ndimage

from nnunet_brats_ext.cli import data
from nnunet_brats_ext.dataset_conversion import check
from nnunet_brats_ext.dataset_conversion.checking import CheckOptions
from nnunet_brats_ext.dataset_conversion.layouts import LAYOUTS
from nnunet_brats_ext.dataset_conversion.patient_checks import check_patient, mutual_information
from nnunet_brats_ext.storage.images import Grid, Image, read_image

REAL = Path(__file__).parents[3] / "shared" / "real_patients" / "BraTS2021_Training_Data"
FAINT = REAL.parents[1] / "real_case" / "MICCAI_BraTS2020_TrainingData" / "BraTS20_Training_901"  # in FLAIR
KINDS = {"T1": "t1", "T1ce": "t1ce", "T2": "t2", "FLAIR": "flair"}
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real patients are not here")


def read_patient(folder: Path) -> dict[str, Image]:
    kinds = {**KINDS, "label": "seg"}
    return {name: read_image(folder / f"{folder.name}_{kind}.nii.gz") for name, kind in kinds.items()}


@pytest.fixture(scope="module")
def patient() -> dict[str, Image]:
    return read_patient(REAL / "BraTS2021_00005")


def changed(patient, change, *names: str) -> dict[str, Image]:
    images = {name: image for name, image in patient.items() if name != "label"}
    return images | {name: images[name]._replace(array=change(images[name].array)) for name in names}


def without_tumour(patient):
    brain = patient["T1"].array != 0
    tumour = ndimage.binary_dilation(patient["label"].array > 0, iterations=4) & brain

    def paint(array):
        array = array.copy()
        array[tumour] = np.median(array[brain & ~tumour])
        return array

    return changed(patient, paint, *KINDS)


def with_scalp(patient):
    brain = patient["T1"].array != 0
    scalp = ndimage.binary_dilation(brain, iterations=20) & ~ndimage.binary_dilation(brain, iterations=6)
    return changed(patient, lambda array: np.where(scalp, np.median(array[brain]), array), *KINDS)


def of_2_mm(patient):
    images = changed(patient, lambda array: array[::2, ::2, ::2], *KINDS)
    return {
        name: Image(one.array, Grid(one.array.shape[::-1], (2.0, 2.0, 2.0), one.grid.origin_mm, one.grid.direction), "")
        for name, one in images.items()
    }


def swapped(one: str, other: str):
    return lambda patient: {**changed(patient, None), one: patient[other], other: patient[one]}


SPOILED = {
    "swapped T1 T1ce": ("swapped", swapped("T1", "T1ce")),
    "swapped T2 FLAIR": ("swapped", swapped("T2", "FLAIR")),
    "swapped T1 T2": ("swapped", swapped("T1", "T2")),
    "inverted": ("inverted", lambda p: changed(p, lambda array: array.max() - array, "T2")),
    "clipped": ("clipped", lambda p: changed(p, lambda a: np.minimum(a, np.percentile(a[a > 0], 98)), "T1")),
    "empty": ("empty", lambda p: changed(p, lambda array: array * 0, "T2")),
    "shifted": ("not registered", lambda p: changed(p, lambda array: np.roll(array, 5, 0), "T1ce")),
    "turned": (
        "not registered",
        lambda p: changed(p, lambda a: ndimage.rotate(a, 10, axes=(0, 1), reshape=False, order=1), "FLAIR"),
    ),
    "no tumour": ("no tumour", without_tumour),
    "skull": ("skull", with_scalp),
    "2 mm": ("spacing", of_2_mm),
}


@real
@pytest.mark.parametrize(
    "folder", [*sorted(REAL.glob("*")), *FAINT.parent.glob(FAINT.name)], ids=lambda folder: folder.name
)
def test_real_patients_have_no_findings(folder):
    assert check_patient(changed(read_patient(folder), None)) == []


@real
@pytest.mark.parametrize(("kind", "spoil"), SPOILED.values(), ids=SPOILED)
def test_every_spoiling_is_found_and_nothing_else(patient, kind, spoil):
    assert {finding.kind for finding in check_patient(spoil(patient))} == {kind}


@real
def test_only_the_sequence_that_was_moved_is_named(patient):
    (finding,) = check_patient(changed(patient, lambda array: np.roll(array, 6, 1), "T2"))
    assert re.match(r"T2 does not lie on the others: they fit better [+-]6 mm along y away", finding.sentence)


def test_the_information_that_images_share_is_all_for_one_image_and_none_for_noise():
    random = np.random.default_rng(0)
    one, other = random.uniform(0.01, 1, (2, 40, 40, 40))
    assert mutual_information(one, one) == pytest.approx(1)
    assert mutual_information(one, other) < 0.01
    assert mutual_information(one, 1.01 - one) > 0.6


def test_broken_and_missing_files_are_findings_and_the_exit_code_says_so(tmp_path):
    layout = LAYOUTS["BraTS2021"]
    files = [write_case(tmp_path / "source", layout, layout.case_name(number)) for number in (1, 2)]
    files[0]["T1"].write_bytes(files[0]["T1"].read_bytes()[:-100])
    files[1]["T2"].write_bytes(b"")
    first, second = check(tmp_path / "source", out=tmp_path / "pictures", processes=1)
    assert "truncated or damaged" in first.findings[0].sentence and "is empty" in second.findings[0].sentence
    assert [path.name for path in sorted((tmp_path / "pictures").iterdir())] == [
        f"{layout.case_name(number)}.png" for number in (1, 2)
    ]
    files[1]["T2"].unlink()
    (missing,) = (one for one in check(tmp_path / "source", processes=1)[1].findings if one.kind == "missing")
    assert (missing.sentence, "--missing zero" in missing.fix) == ("no T2", True)
    shown = printed(data.run_check, CheckOptions((tmp_path / "source",), processes=1))
    assert "dcm2niix" in shown and "2 patients, 2 with findings" in shown
    assert data.run_check(CheckOptions((tmp_path / "source",), processes=1)) == 1
