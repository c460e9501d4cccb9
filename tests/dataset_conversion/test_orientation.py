"""Images in other orientations: turned without a changed voxel, and predictions come back to where they were."""

import gzip
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from data_commands import convert, manifest_of, restore
from release_folders import write_case

from nnunet_brats_ext.brats import SEQUENCES
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import Grid, Image, read_grid, read_image, write_image

REAL = Path(__file__).parents[3] / "shared" / "real_patients" / "BraTS2021_Training_Data"
RELEASE = LAYOUTS["BraTS2021"]
CASES = ("BraTS2021_00001", "BraTS2021_00002")
ALL_AXES = ["".join(p) for order in permutations(("LR", "PA", "SI")) for p in product(*order)]


@pytest.fixture(autouse=True)
def raw(tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))


def turn_file(path: Path, axes: str, to: Path | None = None) -> None:
    image = read_image(path).turned(axes)
    write_image(to or path, image.array, image.grid)


@pytest.fixture
def source(tmp_path):
    files = {case: write_case(tmp_path / "source", RELEASE, case) for case in CASES}
    return tmp_path / "source", files


def images(dataset: Path) -> list[Image]:
    return [read_image(path) for path in sorted(dataset.glob("*Tr/*.nii.gz"))]


def assert_same_images(one: Path, other: Path) -> None:
    for here, there in zip(images(one), images(other), strict=True):
        np.testing.assert_array_equal(here.array, there.array)
        assert here.grid.difference(there.grid, 1e-3) is None


@pytest.mark.parametrize("axes", ALL_AXES)
def test_a_turned_image_has_every_voxel_where_it_was(axes):
    tilted = np.linalg.qr(np.eye(3) + np.random.default_rng(0).uniform(-0.3, 0.3, (3, 3)))[0]
    tilted *= np.sign(np.diag(tilted))
    grid = Grid((4, 3, 5), (1.0, 2.0, 0.5), (3.0, -7.0, 11.0), tuple(tilted.ravel()))
    image = Image(np.arange(60).reshape(grid.shape), grid, "")
    turned = image.turned(axes)
    assert (turned.grid.axes, turned.array.shape) == (axes, turned.grid.shape)

    def places(one):
        return {int(one.array[index[::-1]]): one.grid.point_mm(index) for index in np.ndindex(one.grid.size)}

    before, after = places(image), places(turned)
    for value, place in before.items():
        np.testing.assert_allclose(after[value], place, atol=1e-9)
    back = turned.turned("LPS")
    np.testing.assert_array_equal(back.array, image.array)
    np.testing.assert_allclose(back.grid.origin_mm, grid.origin_mm, atol=1e-9)


@pytest.mark.parametrize("axes", ["RAS", "SAL"])
def test_one_sequence_in_another_orientation_is_turned_onto_the_others(source, axes):
    folder, files = source
    expected = convert(folder, 1, link="copy")
    turn_file(files[CASES[0]]["T2"], axes)
    turn_file(files[CASES[1]][LABEL], axes)
    dataset = convert(folder, 2)
    assert_same_images(dataset, expected)
    remarks = [about["remarks"] for about in manifest_of(dataset)["cases"].values()]
    assert remarks == [[f"turned from {axes} to LPS: 1 of 5 images"]] * 2


@pytest.mark.parametrize("axes", ["RAS", "SAL", "PIR"])
def test_whole_cases_become_lps_and_predictions_come_back(source, tmp_path, axes):
    folder, files = source
    expected = convert(folder, 1, link="copy")
    for path in (path for roles in files.values() for path in roles.values()):
        turn_file(path, axes)
    dataset = convert(folder, 2)
    assert_same_images(dataset, expected)
    restored = restore(dataset / "labelsTr", tmp_path / "out", dataset_id=2)
    for path, roles in zip(restored, files.values(), strict=True):
        back, label = read_image(path), read_image(roles[LABEL])
        np.testing.assert_array_equal(back.array, label.array)
        assert (back.grid.axes, back.grid.difference(label.grid)) == (axes, None)
    kept = convert(folder, 3, axes="source")
    assert {image.grid.axes for image in images(kept)} == {axes}
    assert (DatasetDescription.read(dataset).axes, DatasetDescription.read(kept).axes) == ("LPS", axes)
    for path in files[CASES[0]].values():
        turn_file(path, "LPS")
    assert DatasetDescription.read(convert(folder, 4, axes="source")).axes is None


def test_predictions_come_back_turned_where_the_source_is_gone(source, tmp_path):
    """The manifest has noted the grid of the source; the data set's own images are in LPS."""
    folder, files = source
    for path in (path for roles in files.values() for path in roles.values()):
        turn_file(path, "RAS")
    dataset = convert(folder, 1, link="copy")
    labels = [read_image(roles[LABEL]) for roles in files.values()]
    folder.rename(tmp_path / "gone")
    for path, label in zip(restore(dataset / "labelsTr", tmp_path / "out", dataset_id=1), labels, strict=True):
        back = read_image(path)
        assert (back.grid.axes, back.grid.difference(label.grid)) == ("RAS", None)
        np.testing.assert_array_equal(back.array, label.array)


def test_a_second_copy_of_a_turned_file_is_compared_as_it_is(source):
    folder, files = source
    plain = files[CASES[0]]["T2"]
    turn_file(plain, "RAS")
    plain.with_name(plain.name.removesuffix(".gz")).write_bytes(gzip.decompress(plain.read_bytes()))
    remarks = manifest_of(convert(folder, 1))["cases"][CASES[0]]["remarks"]
    assert f"T2 is there a second time as {plain.name.removesuffix('.gz')}" in remarks


@pytest.mark.skipif(not REAL.is_dir(), reason="the real patients are not here")
def test_real_patients_in_any_orientation_give_the_same_bytes_and_come_back(tmp_path):
    real = sorted(REAL.iterdir())[0]
    kinds = ("t1", "t1ce", "t2", "flair", "seg")
    datasets = {}
    for number, axes in enumerate(("RAS", "SAL", "ILA"), start=1):
        folder = tmp_path / axes / real.name
        folder.mkdir(parents=True)
        for kind in kinds:
            turn_file(real / f"{real.name}_{kind}.nii.gz", axes, folder / f"{real.name}_{kind}.nii.gz")
        datasets[axes] = convert(tmp_path / axes, number)
    bytes_of = [[path.read_bytes() for path in sorted(one.glob("*Tr/*.nii.gz"))] for one in datasets.values()]
    assert bytes_of[0] == bytes_of[1] == bytes_of[2]
    assert_same_images(datasets["SAL"], convert(real, 4))
    (path,) = restore(datasets["SAL"] / "labelsTr", tmp_path / "out", dataset_id=2)
    label = read_image(tmp_path / "SAL" / real.name / f"{real.name}_seg.nii.gz")
    back = read_image(path)
    np.testing.assert_array_equal(back.array, label.array)
    assert back.grid.difference(label.grid) is None


def skew(path: Path) -> None:
    image = nibabel.load(path)
    affine = image.affine.copy()
    affine[0, 1] += 0.05
    changed = nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header)
    changed.set_qform(None, 0)
    changed.set_sform(affine, 1)
    changed.header["qform_code"] = 0
    nibabel.save(changed, path)


def test_axes_that_are_not_at_right_angles_get_a_sentence_and_an_option(source, tmp_path):
    folder, files = source
    for path in files[CASES[0]].values():
        skew(path)
    with pytest.raises(UserError, match=r"T1: .*not at right angles.*--right-angles .*lie up to 0\.\d+ mm"):
        convert(folder, 1)
    dataset = convert(folder, 2, right_angles=True)
    for number, sequence in enumerate(SEQUENCES):
        written = read_image(dataset / "imagesTr" / f"{CASES[0]}_{number:04d}.nii.gz")
        np.testing.assert_array_equal(written.array, read_image(files[CASES[0]][sequence], right_angles=True).array)
    (path, _) = restore(dataset / "labelsTr", tmp_path / "out", dataset_id=2, any_name=True)
    back = nibabel.load(path)
    np.testing.assert_allclose(back.affine, nibabel.load(files[CASES[0]][LABEL]).affine)  # the header of the source
    with pytest.raises(UserError, match="not at right angles"):
        read_grid(files[CASES[0]]["T1"])


def test_a_compressed_file_without_gz_in_its_name_and_the_reverse(source):
    folder, files = source
    plain = files[CASES[0]]["T2"]
    content = gzip.decompress(plain.read_bytes())
    plain.write_bytes(content)  # .nii.gz that is not gzipped
    dataset = convert(folder, 1)
    assert sitk.ReadImage(str(dataset / "imagesTr" / f"{CASES[0]}_0002.nii.gz")).GetSize() == (8, 9, 10)
    plain.unlink()
    plain.with_name(plain.name.removesuffix(".gz")).write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match=r"is compressed, which its name does not say; rename it to .*_t2.nii.gz"):
        convert(folder, 2)
