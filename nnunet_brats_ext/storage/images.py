"""Images, label maps and probabilities: read whole or not at all, with the grid on which their voxels lie.

Arrays are in ITK's order, (z, y, x); sizes, spacings and origins in (x, y, z), mm and LPS. ITK itself reads a truncated
NIfTI file without an error and fills the rest, and reads NaN as 0. So the bytes of a NIfTI file are read here, once,
and checked; ITK reads the header, because nnU-Net's grids are ITK's, and the other formats, which it checks.
"""

import errno
import gzip
import hashlib
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import nibabel
import numpy as np
import SimpleITK as sitk
from isal import isal_zlib

from nnunet_brats_ext.brats import BACKGROUND, Head
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.output import writing

NIFTI_ENDINGS = (".nii.gz", ".nii")
ENDINGS = (*NIFTI_ENDINGS, ".mha", ".mhd", ".nrrd")
TOLERANCE_MM = 0.1
"""Two grids are the same if no voxel lies farther apart on them than this; file formats round by less."""

LPS = "LPS"
"""The axes of BraTS images: x to the left, y to the back, z up."""

AGAIN = "copy or download it again"

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's remarks on headers would break the progress bar


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an image lie."""

    size: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    origin_mm: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image | sitk.ImageFileReader) -> "Grid":
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @classmethod
    def from_json(cls, entry: dict[str, list]) -> "Grid":
        """Reads what `to_json` wrote, also in manifests before 0.2, whose names had no units."""
        names = {"spacing": "spacing_mm", "origin": "origin_mm"}
        return cls(**{names.get(key, key): tuple(value) for key, value in entry.items()})

    def to_json(self) -> dict[str, list]:
        return {key: list(value) for key, value in asdict(self).items()}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array: z, y, x."""
        return self.size[::-1]

    @property
    def voxel_volume_mm3(self) -> float:
        return float(np.prod(self.spacing_mm))

    @property
    def finite(self) -> bool:
        return bool(np.isfinite([*self.spacing_mm, *self.origin_mm, *self.direction]).all())

    @property
    def of_one_volume(self) -> "Grid":
        """The grid of each volume of a 4-D image."""
        n = len(self.size)
        direction = np.reshape(self.direction, (n, n))[:3, :3]
        return Grid(self.size[:3], self.spacing_mm[:3], self.origin_mm[:3], tuple(direction.ravel().tolist()))

    @property
    def axes(self) -> str:
        """Where the axes x, y, z of a volume point, or nearly so: such as LPS, left, posterior, superior."""
        return "".join(nibabel.orientations.ornt2axcodes(_orientation(self))) if self.finite else LPS

    def turned(self, axes: str) -> "Grid":
        """The grid of the same voxels, with its axes in another order or direction."""
        order, flipped = _turn(self.axes, axes)
        columns = np.reshape(self.direction, (3, 3))[:, order] * np.where(flipped, -1.0, 1.0) + 0.0  # no -0.0
        spacing = tuple(self.spacing_mm[axis] for axis in order)
        first = [self.size[axis] - 1 if flip else 0 for axis, flip in zip(order, flipped, strict=True)]
        corner = dict(zip(order, first, strict=True))
        origin = self.point_mm(corner[axis] for axis in range(3)) + 0.0 if any(flipped) else self.origin_mm
        return Grid(
            tuple(self.size[axis] for axis in order),
            spacing,
            tuple(map(float, origin)),
            tuple(columns.ravel().tolist()),
        )

    def apply_to(self, image: sitk.Image) -> sitk.Image:
        image.SetSpacing(self.spacing_mm)
        image.SetOrigin(self.origin_mm)
        image.SetDirection(self.direction)
        return image

    def point_mm(self, index: Iterable[int]) -> np.ndarray:
        """Where a voxel lies."""
        n = len(self.size)
        return np.reshape(self.direction, (n, n)) @ (np.array(list(index)) * self.spacing_mm) + self.origin_mm

    def shift_mm(self, other: "Grid") -> float:
        """How far apart, at most, the same voxel lies on two grids of one size: one number for the whole header."""
        corners = product(*((0, n - 1) for n in self.size))
        return float(np.max([np.linalg.norm(self.point_mm(corner) - other.point_mm(corner)) for corner in corners]))

    def difference(self, other: "Grid", tolerance_mm: float = TOLERANCE_MM) -> str | None:
        """What differs between two grids; None where no voxel lies farther apart than the tolerance."""
        if self.size != other.size:
            return f"size {self.size} against {other.size}"
        shift = self.shift_mm(other)
        if shift <= tolerance_mm:
            return None
        for name in ("spacing_mm", "direction", "origin_mm"):
            here, there = getattr(self, name), getattr(other, name)
            if not np.allclose(here, there, rtol=0, atol=1e-3):
                return f"{name} {_rounded(here)} against {_rounded(there)}: voxels lie up to {shift:.3g} mm apart"
        return f"their headers: voxels lie up to {shift:.3g} mm apart"


def _orientation(grid: Grid) -> np.ndarray:
    """nibabel's orientation of a grid: for each axis, the axis of the patient that it is nearest to, and its sign."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag((-1, -1, 1)) @ np.reshape(grid.direction, (3, 3)) @ np.diag(grid.spacing_mm)
    return nibabel.orientations.io_orientation(affine)


def turn(array: np.ndarray, axes: str, to: str) -> np.ndarray:
    """An array (..., z, y, x) whose axes x, y, z point to `axes`, such as LPS, with those of `to`; not resampled."""
    order, flipped = _turn(axes, to)
    last = array.ndim - 1
    array = np.transpose(array, [*range(last - 2), *(last - axis for axis in order[::-1])])
    reversed_axes = tuple(last - 2 + number for number, flip in enumerate(flipped[::-1]) if flip)
    return np.ascontiguousarray(np.flip(array, reversed_axes))


def _turn(axes: str, to: str) -> tuple[list[int], list[bool]]:
    """For each new axis, the present one that it was, and whether it runs the other way."""
    present, wanted = map(nibabel.orientations.axcodes2ornt, (axes, to))
    moves = nibabel.orientations.ornt_transform(present, wanted)  # present axis -> new axis, sign
    order = [int(np.flatnonzero(moves[:, 0] == axis)[0]) for axis in range(3)]
    return order, [bool(moves[axis, 1] < 0) for axis in order]


def _rounded(numbers: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(float(number), 4) for number in numbers)


class Image(NamedTuple):
    """The voxels of a file, (z, y, x) or (t, z, y, x), their grid, and the SHA-256 of the file."""

    array: np.ndarray
    grid: Grid
    sha256: str

    def to_itk(self) -> sitk.Image:
        return _to_itk(self.array, self.grid)

    def turned(self, axes: str) -> "Image":
        """The same voxels with the axes of the volume in another order or direction: nothing is resampled."""
        return Image(turn(self.array, self.grid.axes, axes), self.grid.turned(axes), self.sha256)


def ending(path: Path) -> str:
    """The file ending, one of `ENDINGS`, or an empty string."""
    return next((known for known in ENDINGS if path.name.lower().endswith(known)), "")


# ---- reading --------------------------------------------------------------------------------------------------------


def read_grid(path: Path, right_angles: bool = False) -> Grid:
    """The grid of an image file; reads the header only. right_angles: as of `read_image`."""
    if ending(path) in NIFTI_ENDINGS:
        with _reading(path), path.open("rb") as file:
            packed = file.read(2) == GZIP_MAGIC
            file.seek(0)
            start = gzip.GzipFile(fileobj=file).read(NIFTI_HEADER_BYTES) if packed else file.read(NIFTI_HEADER_BYTES)
        header = _nifti_header(start, path)
        if not has_right_angles(header):
            return _nearest_grid(header, path, right_angles)
    return Grid.of(_read_itk_header(path))


def read_image(path: Path, right_angles: bool = False, any_form: bool = False) -> Image:
    """An image in the number type of its file, read in full.

    right_angles: take the nearest grid whose axes are at right angles where those of the file are not, which is an
    error without. any_form: also what nnU-Net does not read, a compressed file that is called .nii, and several
    components per voxel, which become the first axis of the array; the grid is that of each.

    A UserError names a file that is missing, truncated or damaged, has voxels that are infinite or no number, complex
    numbers or several components per voxel.
    """
    with _reading(path):
        content = path.read_bytes()
    if not content:
        raise UserError(f"{path} is empty (0 bytes); {AGAIN}")
    nifti = _nifti_voxels(content, path) if ending(path) in NIFTI_ENDINGS else None
    if nifti and not has_right_angles(nifti[1]):
        grid = _nearest_grid(nifti[1], path, right_angles)
        shape = grid.shape if nifti[0].size == np.prod(grid.shape) else (-1, *grid.shape)
        return _checked(nifti[0].reshape(shape), grid, content, path)
    if any_form and nifti and ending(path) == ".nii" and content.startswith(GZIP_MAGIC):
        header = _read_itk_header_of(nifti[1])
    else:
        header = _read_itk_header(path)
    if header.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise UserError(f"{path} holds complex numbers; write their magnitude instead")
    if (components := header.GetNumberOfComponents()) > 1 and (not any_form or (nifti and nifti[0].dtype.fields)):
        raise UserError(f"{path} has {components} components per voxel instead of one; write one of them")
    grid = Grid.of(header)
    if nifti is None:
        try:
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        except RuntimeError as error:
            raise UserError(f"{path} is truncated or damaged; {AGAIN}") from error
        array = np.moveaxis(array, -1, 0) if components > 1 else array
        if any_form and len(grid.size) == 3 and grid.finite:  # ITK takes any axes in these formats
            grid = _at_right_angles(grid, path, right_angles)
    else:
        array = nifti[0].reshape((components, *grid.shape) if components > 1 else grid.shape)
    return _checked(array, grid, content, path)


def _checked(array: np.ndarray, grid: Grid, content: bytes, path: Path) -> Image:
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise UserError(f"{path} has voxels that are infinite or no number; write the image without them")
    return Image(array, grid, hashlib.sha256(content).hexdigest())


def read_label_map(path: Path) -> tuple[np.ndarray, Grid]:
    """A label map as uint8, whatever number type its file has; a value that is no label (0.5, -1, 256) is an error."""
    image = read_image(path)
    return to_labels(image.array, path), image.grid


def to_labels(array: np.ndarray, path: Path) -> np.ndarray:
    """The voxels of a label map as uint8; a value that is no label is an error that names the file."""
    labels = array if array.dtype == np.uint8 else array.astype(np.uint8)
    if not np.array_equal(labels, array):
        raise UserError(
            f"{path} is no label map: it holds {float(array[labels != array].flat[0]):g}; "
            "labels are whole numbers, 0 to 255"
        )
    return labels


def to_integers(values: np.ndarray) -> np.ndarray:
    """Voxels as integers; labels stored as whole floats are common and fine, anything else is an error."""
    if np.issubdtype(values.dtype, np.integer):
        return values
    if not np.array_equal(values, np.rint(values)):
        odd = np.unique(values[values != np.rint(values)])[:3]
        raise UserError(f"labels are not whole numbers: {', '.join(f'{value:g}' for value in odd)}")
    return values.astype(np.int64)


AS_TRAINED_NEEDED = (
    "label maps as trained are needed (1 ED, 2 NCR, 3 ET): give the folder that `restore` was given, the labelsTr "
    "that `convert` writes, or what `relabel` makes of these; `evaluate` and `rank` take other numberings by --labels"
)


def require_labels(
    labels: np.ndarray,
    known: Collection[int],
    path: Path,
    advice: str = "",
) -> None:
    """An error where a label map holds other labels than these: most often it is not numbered as trained.

    advice: what else may be the reason.
    """
    expected = {BACKGROUND, *known}
    if others := sorted(set(np.flatnonzero(np.bincount(labels.ravel())).tolist()) - expected):
        words = f"{path} holds labels {others}, which are not among {sorted(expected)}"
        raise UserError(words, advice + AS_TRAINED_NEEDED)


GZIP_MAGIC = b"\x1f\x8b"
NIFTI_HEADER_BYTES = 348


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors of the file system and of gzip into one that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is truncated or damaged: {error}; {AGAIN}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_itk_header(path: Path) -> sitk.ImageFileReader:
    if not path.is_file():
        raise UserError(f"{path} {'is no file' if path.exists() else 'does not exist'}")
    if ending(path) == ".nii":
        with path.open("rb") as file:
            if file.read(2) == GZIP_MAGIC:
                raise UserError(f"{path} is compressed, which its name does not say; rename it to {path.name}.gz")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        known = "" if ending(path) else f", whose names end in {', '.join(ENDINGS)}"
        raise UserError(f"{path} is no readable image{known}; {AGAIN}") from error
    return reader


def _read_itk_header_of(header: nibabel.Nifti1Header) -> sitk.ImageFileReader:
    """What ITK makes of the header of a NIfTI file whose name it would not take."""
    with TemporaryDirectory() as folder:
        (place := Path(folder, "header.nii")).write_bytes(header.binaryblock + bytes(4))
        return _read_itk_header(place)


def _nifti_header(start: bytes, path: Path) -> nibabel.Nifti1Header:
    """The header that a NIfTI file of these first bytes has; one that cannot be is an error."""
    if start[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c"):
        raise UserError(f"{path} is in NIfTI-2, which neither ITK nor nnU-Net reads; write it in NIfTI-1")
    header = nibabel.Nifti1Header(start, check=False) if len(start) == NIFTI_HEADER_BYTES else None
    if header is None or header["sizeof_hdr"] != NIFTI_HEADER_BYTES or not header["magic"].item().startswith(b"n+"):
        raise UserError(f"{path} is no readable image: it has no NIfTI header; {AGAIN}")
    shape = header["dim"][1 : 1 + int(header["dim"][0])].tolist()
    if not shape or min(shape) < 1:
        raise UserError(f"{path} has a damaged header: a size of {' x '.join(map(str, shape))} voxels; {AGAIN}")
    if not NIFTI_HEADER_BYTES <= header["vox_offset"] < np.inf:
        raise UserError(f"{path} has a damaged header: its voxels begin at byte {header['vox_offset']}; {AGAIN}")
    return header


def _nifti_dtype(header: nibabel.Nifti1Header, path: Path) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except (KeyError, nibabel.spatialimages.HeaderDataError):
        dtype = np.dtype("V")
    if dtype.kind in "iufc" or dtype.fields:
        return dtype
    raise UserError(f"{path} has a damaged header: no number type has the code {header['datatype']}; {AGAIN}")


OFF_RIGHT_ANGLE = 1e-4
"""How far the cosine of two axes may be from 0; more than headers round by, and about what ITK refuses."""


def has_right_angles(header: nibabel.Nifti1Header) -> bool:
    """Whether one of the two transforms of a NIfTI header has axes at right angles, as ITK needs it."""
    if header["qform_code"] > 0 or header["sform_code"] <= 0:
        return True
    columns = header.get_sform()[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if not np.isfinite(columns).all() or not lengths.all():
        return True  # reported as what it is
    cosines = (columns / lengths).T @ (columns / lengths)
    return bool(np.abs(cosines - np.eye(3)).max() <= OFF_RIGHT_ANGLE)


def _nearest_grid(header: nibabel.Nifti1Header, path: Path, accepted: bool) -> Grid:
    """The nearest grid with axes at right angles to those of a NIfTI header."""
    affine = np.diag((-1.0, -1.0, 1.0, 1.0)) @ header.get_sform()
    size = tuple(int(n) for n in header["dim"][1:4])
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    direction = tuple((affine[:3, :3] / lengths).ravel().tolist())
    return _at_right_angles(
        Grid(size, tuple(lengths.tolist()), tuple(affine[:3, 3].tolist()), direction), path, accepted
    )


def _at_right_angles(grid: Grid, path: Path, accepted: bool) -> Grid:
    """The grid, if its axes are at right angles; else the nearest one where accepted: of its axes' polar decomposition.

    Where it is not, an error says how far voxels would move.
    """
    axes = np.reshape(grid.direction, (3, 3))
    if np.abs(axes.T @ axes - np.eye(3)).max() <= OFF_RIGHT_ANGLE:
        return grid
    left, _, right = np.linalg.svd(axes)
    nearest = replace(grid, direction=tuple((left @ right).ravel().tolist()))
    if not accepted:
        raise UserError(
            f"{path} has axes that are not at right angles, which ITK and nnU-Net do not read. --right-angles takes "
            f"the nearest ones that are; voxels then lie up to {grid.shift_mm(nearest):.2g} mm from where the header "
            "has them"
        )
    return nearest


MOST_PACKED = 1032  # times smaller than its content can a file be


def _decompress(content: bytes) -> bytes:
    """As `gzip.decompress`, several times as fast for a file of one member, which ends with the size of its content."""
    size = int.from_bytes(content[-4:], "little")
    if 0 < size <= MOST_PACKED * len(content):
        with suppress(isal_zlib.error):  # type: ignore[arg-type]  # a class, whatever its stub says
            unpacked = isal_zlib.decompress(content, zlib.MAX_WBITS | 16, size)  # checks the content's CRC as well
            if len(unpacked) == size:
                return unpacked
    return gzip.decompress(content)


def _nifti_voxels(content: bytes, path: Path) -> tuple[np.ndarray, nibabel.Nifti1Header]:
    """The voxels of a NIfTI file in one axis, scaled where its header says so, as ITK does; and the header."""
    with _reading(path):
        unpacked = _decompress(content) if content.startswith(GZIP_MAGIC) else content
    header = _nifti_header(unpacked[:NIFTI_HEADER_BYTES], path)
    dtype = _nifti_dtype(header, path)
    count = int(np.prod(header["dim"][1 : 1 + int(header["dim"][0])], dtype=object))
    offset = int(header["vox_offset"])
    if len(unpacked) < (expected := offset + count * dtype.itemsize):
        raise UserError(f"{path} is truncated: it holds {len(unpacked)} of {expected} bytes; {AGAIN}")
    values = np.frombuffer(unpacked, dtype, count, offset)
    values = values.astype(dtype.newbyteorder("="), copy=False)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope) or (slope == 1 and not intercept):
        return values, header
    values = values.astype(np.float64 if values.dtype == np.float64 else np.float32)
    scaled = values * np.float64(slope) + np.float64(intercept if np.isfinite(intercept) else 0)
    return scaled.astype(values.dtype), header


# ---- writing --------------------------------------------------------------------------------------------------------


def write_label_map(path: Path, labels: np.ndarray, grid: Grid) -> None:
    """Write labels (z, y, x) as uint8, compressed, as nnU-Net's SimpleITKIO does."""
    write_image(path, labels.astype(np.uint8, copy=False), grid)


def write_image(path: Path, array: np.ndarray, grid: Grid) -> None:
    """Write an array (z, y, x) or (t, z, y, x), compressed, in its own number type with the grid given."""
    with writing(path):
        try:
            sitk.WriteImage(_to_itk(array, grid), str(path), True)
            if ending(path) in NIFTI_ENDINGS:
                _nifti_voxels(path.read_bytes(), path)  # ITK writes NIfTI to a full disk without an error
        except (RuntimeError, UserError) as error:
            reason = "only a part of it was written; is there no space left on the device?"
            raise OSError(errno.ENOSPC, reason, str(path)) from error


def _to_itk(array: np.ndarray, grid: Grid) -> sitk.Image:
    return grid.apply_to(sitk.GetImageFromArray(array, isVector=False))


# ---- probabilities --------------------------------------------------------------------------------------------------


def read_probabilities(path: Path, head: Head | None = None) -> np.ndarray:
    """The probabilities (channel, z, y, x) of an .npz file as float32; a file may hold float16 to save space.

    Values that are no number, complex or outside [0, 1] are an error: they are no probabilities, but perhaps logits.
    head: of the network, if known; the channels of a label head must sum to one.
    """
    stored = read_stored_probabilities(path)
    if np.iscomplexobj(stored) or not np.issubdtype(stored.dtype, np.number):
        raise UserError(f"{path} holds {stored.dtype} numbers instead of probabilities")
    if stored.ndim != 4:
        raise UserError(f"{path} holds probabilities of shape {stored.shape}; expected (channel, z, y, x)")
    probabilities = stored.astype(np.float32, copy=False)
    if not np.isfinite(probabilities).all():
        raise UserError(f"{path} holds probabilities that are not a number; predict that case again")
    low, high = float(probabilities.min(initial=0)), float(probabilities.max(initial=0))
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise UserError(f"{path} holds values from {low:g} to {high:g}, which are no probabilities; are they logits?")
    if head and not head.has_regions:
        sums = probabilities.sum(0)
        if np.abs(sums - 1).max(initial=0) > SUM_ROUNDING:
            raise UserError(
                f"{path}: the probabilities of the labels {', '.join(head.names)} sum to {sums.min():g} to "
                f"{sums.max():g} instead of 1; predict that case again"
            )
    return probabilities


def read_stored_probabilities(path: Path) -> np.ndarray:
    """The array of probabilities of an .npz file, in whatever form it was stored; a damaged file is an error."""
    with _reading_npz(path), np.load(path) as archive:
        return archive[PROBABILITIES]


PROBABILITIES = "probabilities"  # nnU-Net's name of the array
ROUNDING = 1e-3  # half precision and resampling leave probabilities a little outside [0, 1]
SUM_ROUNDING = 1e-2  # and their sum over a few labels that far from 1


def probabilities_shape(path: Path) -> tuple[int, ...]:
    """The shape of the probabilities of an .npz file, without reading them."""
    with _reading_npz(path), zipfile.ZipFile(path) as archive, archive.open(f"{PROBABILITIES}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(file)[0]


@contextmanager
def _reading_npz(path: Path) -> Iterator[None]:
    """Turn what numpy and zipfile say of a broken .npz into an error that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; predict with --save_probabilities") from None
    except (KeyError, ValueError, zipfile.BadZipFile, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path} holds no array '{PROBABILITIES}' that can be read: {error}") from error
