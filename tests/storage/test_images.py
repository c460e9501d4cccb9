"""Images and label maps: read as ITK reads them, whole or not at all, with the grid of their voxels."""

import gzip
import json
import signal
import struct
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from nnunet_brats_ext.storage import images
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import (
    TOLERANCE_MM,
    Grid,
    ending,
    read_grid,
    read_image,
    read_label_map,
    require_labels,
    to_integers,
    write_image,
    write_label_map,
)

SCALINGS = [
    {},
    {"slope": 1},
    {"slope": 0.37, "intercept": -2.5},
    {"slope": 0},
    {"slope": 1, "intercept": 4},
    {"slope": np.nan, "intercept": np.nan},
]
DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
TURNED = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def nifti_bytes(values, header=None, *, slope=None, intercept=0.0, extension=b"\0\0\0\0", **fields) -> bytes:
    """A NIfTI-1 file, written byte by byte so that no library's writer has a say. values: (x, y, z) or (x, y, z, t)."""
    header = header or nibabel.Nifti1Header()
    header.set_data_dtype(values.dtype)
    header.set_data_shape(values.shape)
    header["magic"], header["vox_offset"] = b"n+1", 348 + len(extension)
    header["xyzt_units"] = 2
    if slope is not None:
        header["scl_slope"], header["scl_inter"] = slope, intercept
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + extension + values.astype(header.get_data_dtype()).tobytes("F")


def random_affine(random: np.random.Generator) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(random.normal(size=(3, 3)))[0] * random.uniform(0.5, 3, 3)
    affine[:3, 3] = random.normal(0, 50, 3)
    return affine


def save(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def same_as_itk(path: Path) -> None:
    found, expected = read_image(path), sitk.ReadImage(str(path))
    assert found.grid == read_grid(path) == Grid.of(expected)
    array = sitk.GetArrayFromImage(expected)
    assert found.array.dtype == array.dtype and found.array.dtype.isnative
    np.testing.assert_array_equal(found.array, array)


def image_file(path: Path, array: np.ndarray, **geometry) -> Path:
    image = sitk.GetImageFromArray(array, isVector=False)
    for name, value in geometry.items():
        getattr(image, f"Set{name}")(value)
    sitk.WriteImage(image, str(path))
    return path


# ---- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 3, 5, 2), (4, 3, 5, 1), (4, 3, 1)], ids=str)
def test_nifti_is_read_as_itk_reads_it(tmp_path, dtype, endianness, shape):
    random = np.random.default_rng(DTYPES.index(dtype))
    for number, scaling in enumerate(SCALINGS):
        header = nibabel.Nifti1Header(endianness=endianness)
        header.set_qform(random_affine(random), int(random.integers(0, 3)))
        header.set_sform(random_affine(random), int(random.integers(0, 3)))
        if dtype[0] == "f":
            values = random.normal(0, 1000, shape).astype(dtype)
        else:
            limits = np.iinfo(dtype)
            values = random.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
        if dtype[1] == "8" and scaling.get("slope", 0):
            values = (values % 1000).astype(dtype)  # beyond the precision of doubles libraries may differ
        content = nifti_bytes(values, header, **scaling)
        same_as_itk(save(tmp_path / f"compressed{number}.nii.gz", content))
        same_as_itk(save(tmp_path / f"plain{number}.nii", content))


@pytest.mark.parametrize(("qform", "sform"), [(0, 0), (1, 0), (0, 1), (1, 1), (2, 4)])
def test_the_grid_is_the_one_that_itk_takes_from_the_two_transforms(tmp_path, qform, sform):
    random = np.random.default_rng(5)
    header = nibabel.Nifti1Header()
    header.set_qform(random_affine(random), qform)
    header.set_sform(random_affine(random), sform)
    same_as_itk(save(tmp_path / "a.nii.gz", nifti_bytes(np.ones((3, 4, 5), np.uint8), header)))


def test_voxels_behind_an_extension_are_found(tmp_path):
    content = nifti_bytes(np.arange(60, dtype=np.int16).reshape(3, 4, 5), extension=b"\1\0\0\0" + b"\x20\0\0\0" * 8)
    same_as_itk(save(tmp_path / "a.nii.gz", content))


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "a.mhd"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_other_formats_are_read_as_itk_reads_them(tmp_path, name, dtype):
    array = np.random.default_rng(0).integers(0, 100, (4, 5, 6)).astype(dtype)
    same_as_itk(image_file(tmp_path / name, array, Spacing=(1.0, 2.0, 3.0), Origin=(5.0, -6.0, 7.0), Direction=TURNED))


def test_a_file_beside_one_of_the_same_name_is_not_confused_with_it(tmp_path):
    """ITK takes the voxels of a.nii for those of a.nii.gz where both are there."""
    for name, value in (("a.nii", 1), ("a.nii.gz", 2)):
        save(tmp_path / name, nifti_bytes(np.full((2, 2, 2), value, np.uint8)))
    assert [read_image(tmp_path / name).array.max() for name in ("a.nii", "a.nii.gz")] == [1, 2]


def test_a_file_is_opened_and_decompressed_once(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii.gz", nifti_bytes(np.ones((20, 20, 20), np.uint8)))
    calls, read_bytes, decompress = Counter(), Path.read_bytes, images.isal_zlib.decompress
    monkeypatch.setattr(Path, "read_bytes", lambda self: (calls.update(["read"]), read_bytes(self))[1])
    unpack = images.isal_zlib
    monkeypatch.setattr(unpack, "decompress", lambda *given: (calls.update(["decompress"]), decompress(*given))[1])
    monkeypatch.setattr(images.sitk, "ReadImage", None)  # reads only the header
    read_image(path)
    assert calls == {"read": 1, "decompress": 1}


def test_a_compressed_file_of_several_members_is_read_in_full(tmp_path):
    content, half = nifti_bytes(np.arange(8**3, dtype=np.uint16).reshape(8, 8, 8)), 800
    for name, parts in (("two", (content[:half], content[half:])), ("one", (content,))):
        (tmp_path / f"{name}.nii.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    assert np.array_equal(*(read_image(tmp_path / f"{name}.nii.gz").array for name in ("one", "two")))


def test_the_hash_is_that_of_the_file(tmp_path):
    path = save(tmp_path / "a.nii.gz", nifti_bytes(np.ones((2, 2, 2), np.uint8)))
    again = save(tmp_path / "b.nii", nifti_bytes(np.ones((2, 2, 2), np.uint8)))
    assert len(read_image(path).sha256) == 64
    assert read_image(path).sha256 != read_image(again).sha256


def test_the_ending_is_found_whatever_its_capitals():
    assert [ending(Path(name)) for name in ("a.nii.gz", "A.NII", "a.b.mha", "a.gz", "nii")] == [
        ".nii.gz", ".nii", ".mha", "", ""]  # fmt: skip


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_a_file_that_is_cut_at_any_byte_is_refused(tmp_path):
    content = nifti_bytes(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    for path, whole in ((tmp_path / "a.nii", content), (tmp_path / "b.nii.gz", gzip.compress(content))):
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(UserError, match=rf"{path.name} .*copy or download it again"):
                read_image(path)
        path.write_bytes(whole)
        assert read_image(path).array.shape == (5, 4, 3)


def test_a_byte_that_flipped_is_noticed_by_the_checksum(tmp_path):
    whole = gzip.compress(nifti_bytes(np.random.default_rng(0).integers(0, 200, (5, 6, 7)).astype(np.uint8)))
    for position in range(10, len(whole), 17):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        (tmp_path / "a.nii.gz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"a.nii.gz is truncated or damaged: .*; copy or download it again"):
            read_image(tmp_path / "a.nii.gz")


def header_field(position: int, kind: str, value) -> bytes:
    content = bytearray(nifti_bytes(np.arange(60, dtype=np.int16).reshape(3, 4, 5)))
    content[position : position + struct.calcsize(kind)] = struct.pack(kind, value)
    return bytes(content)


DAMAGED = {
    "zero bytes": (None, r"a.nii.gz is empty \(0 bytes\)"),
    "text": (b"no image", "is no readable image: it has no NIfTI header"),
    "half the voxels in a valid archive": (
        nifti_bytes(np.ones((4, 4, 4), np.uint8))[:-32],
        "is truncated: it holds 384 of 416 bytes",
    ),
    "negative size": (header_field(42, "<h", -3), "has a damaged header: a size of -3 x 4 x 5 voxels"),
    "size zero": (header_field(44, "<h", 0), "has a damaged header: a size of 3 x 0 x 5 voxels"),
    "nine axes": (header_field(40, "<h", 9), "is no readable image: it has no NIfTI header"),
    "huge size": (header_field(42, "<h", 32767), r"is truncated: it holds 472 of 1311032 bytes"),
    "unknown number type": (header_field(70, "<h", 999), "has a damaged header: no number type has the code 999"),
    "voxels before the file": (header_field(108, "<f", -5), "has a damaged header: its voxels begin at byte -5"),
    "voxels nowhere": (header_field(108, "<f", np.nan), "has a damaged header: its voxels begin at byte nan"),
    "voxels behind the file": (header_field(108, "<f", 1e6), "is truncated"),
    "binary": (header_field(70, "<h", 1), "has a damaged header: no number type has the code 1"),
    "nifti-2": (
        nibabel.Nifti2Image(np.zeros((2, 2, 2)), np.eye(4)).to_bytes(),
        "is in NIfTI-2, .* write it in NIfTI-1",
    ),
    "no magic": (header_field(344, "<4s", b"\0\0\0\0"), "is no readable image: it has no NIfTI header"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, damage, capfd):
    content, message = DAMAGED[damage]
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"" if content is None else gzip.compress(content))
    with pytest.raises(UserError, match=message):
        read_image(path)
    assert capfd.readouterr() == ("", ""), "no library prints beside"
    if "truncated" not in message and "number type" not in message:
        with pytest.raises(UserError, match=r"a.nii.gz"):
            read_grid(path)


VALUES = {
    "not a number": (np.full((2, 2, 2), np.nan, np.float32), "has voxels that are infinite or no number"),
    "infinite": (np.full((2, 2, 2), -np.inf, np.float64), "has voxels that are infinite or no number"),
    "complex": (np.ones((2, 2, 2), np.complex64), "holds complex numbers"),
    "complex double": (np.ones((2, 2, 2), np.complex128), "holds complex numbers"),
    "colours": (
        np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")]),
        "has 3 components per voxel instead of one",
    ),
}


@pytest.mark.parametrize("kind", VALUES)
def test_voxels_that_are_no_single_finite_numbers_are_refused(tmp_path, kind):
    values, message = VALUES[kind]
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match=f"a.nii.gz {message}"):
        read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
@pytest.mark.parametrize("compressed", [True, False])
def test_other_formats_are_refused_when_they_are_cut(tmp_path, name, compressed):
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 200, (5, 6, 7)).astype(np.uint8))
    sitk.WriteImage(image, str(tmp_path / name), compressed)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) - 30])
    with pytest.raises(UserError, match=f"{name} is truncated or damaged; copy or download it again"):
        read_image(tmp_path / name)
    (tmp_path / name).write_bytes(whole[:20])
    with pytest.raises(UserError, match=f"{name} is no readable image"):
        read_image(tmp_path / name)


def test_no_file_a_folder_and_another_format_are_named(tmp_path):
    for read in (read_image, read_grid, read_label_map):
        for name in ("gone.nii.gz", "gone.mha"):
            with pytest.raises(UserError, match=f"{name} does not exist"):
                read(tmp_path / name)
        with pytest.raises(UserError, match=rf"{tmp_path.name} (cannot be read: Is a directory|is no file)"):
            read(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=r"a.txt is no readable image, whose names end in .nii.gz, .nii, .mha"):
        read_image(tmp_path / "a.txt")


# ---- label maps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.float32, np.float64])
def test_label_maps_of_any_number_type_are_read_alike(tmp_path, dtype):
    labels = np.arange(24).reshape(2, 3, 4) % 4
    found, grid = read_label_map(image_file(tmp_path / "a.nii.gz", labels.astype(dtype), Spacing=(1.0, 2.0, 3.0)))
    np.testing.assert_array_equal(found, labels)
    assert found.dtype == np.uint8
    assert grid.shape == (2, 3, 4)
    assert grid.voxel_volume_mm3 == pytest.approx(6)


@pytest.mark.parametrize("value", [0.5, -1, 256, 300.0])
def test_a_value_that_is_no_label_is_quoted(tmp_path, value):
    path = image_file(tmp_path / "a.nii.gz", np.full((2, 2, 2), value, np.float32))
    with pytest.raises(UserError, match=rf"a.nii.gz is no label map: it holds {value:g};"):
        read_label_map(path)


def test_whole_floats_are_integers_and_others_are_quoted():
    assert to_integers(np.array([0.0, 3.0])).dtype == np.int64
    assert to_integers(integers := np.array([1, 2], np.int8)) is integers
    with pytest.raises(UserError, match=r"labels are not whole numbers: 0.25, 1.5$"):
        to_integers(np.array([1.5, 0.25, 2]))


def test_labels_that_are_not_as_trained_are_named():
    require_labels(np.array([0, 1, 3], np.uint8), {1, 2, 3}, Path("a.nii.gz"))
    with pytest.raises(
        UserError,
        match=r"a.nii.gz holds labels \[4\], which are not among \[0, 1, 2, 3\]; .*`restore`.*`convert`.*--labels",
    ):
        require_labels(np.array([0, 4], np.uint8), {1, 2, 3}, Path("a.nii.gz"))


# ---- what is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["b.nii.gz", "b.nii", "b.mha", "b.nrrd"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_what_is_written_is_read_back_with_its_grid(tmp_path, name, dtype):
    grid = Grid((4, 3, 2), (1.0, 2.0, 3.0), (5.0, -6.0, 7.0), TURNED)
    array = np.random.default_rng(0).integers(0, 100, grid.shape).astype(dtype)
    write_image(tmp_path / name, array, grid)
    found = read_image(tmp_path / name)
    assert found.grid == grid and found.array.dtype == dtype
    np.testing.assert_array_equal(found.array, array)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found.to_itk()), array)


def test_four_dimensions_are_written_and_read_back(tmp_path):
    array = np.random.default_rng(0).integers(0, 100, (2, 3, 4, 5)).astype(np.int16)
    grid = Grid(array.shape[::-1], (1.0, 2.0, 3.0, 1.0), (0.0, 0.0, 0.0, 0.0), tuple(np.eye(4).ravel()))
    write_image(tmp_path / "a.nii.gz", array, grid)
    found = read_image(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(found.array, array)
    assert found.grid.of_one_volume == Grid((5, 4, 3), (1.0, 2.0, 3.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))


def test_label_maps_are_written_as_bytes(tmp_path):
    grid = Grid((2, 2, 2), (1.0,) * 3, (0.0,) * 3, tuple(np.eye(3).ravel()))
    write_label_map(tmp_path / "a.nii.gz", np.full((2, 2, 2), 3, np.int64), grid)
    assert sitk.ReadImage(str(tmp_path / "a.nii.gz")).GetPixelID() == sitk.sitkUInt8


@pytest.fixture
def small_files():
    """No file may grow beyond 1000 bytes in this process, as if the disk were full."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.mha"])
def test_a_full_disk_is_an_error_also_where_itk_says_nothing(tmp_path, name, small_files):
    grid = Grid((20, 20, 20), (1.0,) * 3, (0.0,) * 3, tuple(np.eye(3).ravel()))
    noise = np.random.default_rng(0).integers(0, 255, grid.shape).astype(np.uint8)
    message = rf"{name} could not be written: .* no space left on the device\? \(.* GB free in .*\); make room"
    with pytest.raises(UserError, match=message):
        write_image(tmp_path / name, noise, grid)


# ---- grids ----------------------------------------------------------------------------------------------------------

lengths = st.floats(-200, 200)


@st.composite
def grids(draw, size=(4, 5, 6)) -> Grid:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    direction = tuple(np.linalg.qr(random.normal(size=(3, 3)))[0].ravel().tolist())
    spacing = draw(st.tuples(*[st.floats(0.5, 5)] * 3))
    return Grid(size, spacing, draw(st.tuples(lengths, lengths, lengths)), direction)


@given(grids(), grids())
def test_a_difference_of_grids_is_symmetric(one, other):
    assert (one.difference(other) is None) == (other.difference(one) is None)
    assert one.shift_mm(other) == pytest.approx(other.shift_mm(one))
    assert one.difference(one) is None


@given(grids(), st.floats(0, 1), st.integers(0, 2))
def test_grids_are_the_same_within_the_tolerance(grid, shift, axis):
    origin = list(grid.origin_mm)
    origin[axis] += shift
    moved = Grid(grid.size, grid.spacing_mm, tuple(origin), grid.direction)
    if abs(shift - TOLERANCE_MM) > 1e-6:
        assert (grid.difference(moved) is None) == (shift < TOLERANCE_MM)
    assert grid.difference(moved, tolerance_mm=2) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(size=(4, 5, 7)), r"^size \(4, 5, 6\) against \(4, 5, 7\)$"),
        (
            dict(spacing_mm=(1, 1, 1.2)),
            r"^spacing_mm \(1.0, 1.0, 1.0\) against \(1.0, 1.0, 1.2\): .* up to 1 mm apart$",
        ),
        (dict(origin_mm=(0, 0, 3)), r"^origin_mm \(0.0, 0.0, 0.0\) against \(0.0, 0.0, 3.0\): .* up to 3 mm apart$"),
        (dict(direction=(1, 0, 0, 0, 1, 0, 0, 0, -1)), "^direction .* up to 10 mm apart$"),
        (dict(origin_mm=(0, 0, float("nan"))), "^origin_mm .*nan"),
    ],
)
def test_what_differs_between_grids_is_quoted(change, message):
    grid = dict(size=(4, 5, 6), spacing_mm=(1.0,) * 3, origin_mm=(0.0,) * 3, direction=tuple(np.eye(3).ravel()))
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(Grid(**grid).difference(Grid(**grid | change)))


@given(grids())
def test_a_grid_survives_json(grid):
    entry = json.loads(json.dumps(grid.to_json()))
    assert Grid.from_json(entry) == grid
    old = {key.removesuffix("_mm"): value for key, value in entry.items()}  # manifests before 0.2
    assert Grid.from_json(old) == grid


@given(grids(), st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 5)))
def test_a_voxel_lies_where_itk_says(grid, index):
    image = grid.apply_to(sitk.Image(grid.size, sitk.sitkUInt8))
    np.testing.assert_allclose(grid.point_mm(index), image.TransformIndexToPhysicalPoint(index), atol=1e-9)
    assert Grid.of(image) == grid
    assert grid.finite and not Grid(grid.size, (float("inf"), 1, 1), grid.origin_mm, grid.direction).finite
