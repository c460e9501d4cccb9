"""Images, label maps and probabilities: read whole or not at all, with the grid on which their voxels lie.

Arrays are in ITK's order, (z, y, x); sizes, spacings and origins in (x, y, z), mm and LPS. ITK itself reads a truncated
NIfTI file without an error and fills the rest, and reads NaN as 0. So the bytes of a NIfTI file are read here, once,
and checked; ITK reads the header, because nnU-Net's grids are ITK's, and the other formats, which it checks.
"""

import gzip
import hashlib
import zipfile
import zlib
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import SimpleITK as sitk

from nnunet_brats_ext.brats import BACKGROUND, Head
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.output import writing

NIFTI_ENDINGS = (".nii.gz", ".nii")
ENDINGS = (*NIFTI_ENDINGS, ".mha", ".mhd", ".nrrd")
TOLERANCE_MM = 0.1
"""Two grids are the same if no voxel lies farther apart on them than this; file formats round by less."""

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
        return max(float(np.linalg.norm(self.point_mm(corner) - other.point_mm(corner))) for corner in corners)

    def difference(self, other: "Grid", tolerance_mm: float = TOLERANCE_MM) -> str | None:
        """In what two grids differ, in words; None where no voxel lies farther apart than the tolerance."""
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


def _rounded(numbers: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(float(number), 4) for number in numbers)


class Image(NamedTuple):
    """The voxels of a file, (z, y, x) or (t, z, y, x), their grid, and the SHA-256 of the file."""

    array: np.ndarray
    grid: Grid
    sha256: str

    def to_itk(self) -> sitk.Image:
        return self.grid.apply_to(sitk.GetImageFromArray(self.array))


def ending(path: Path) -> str:
    """The file ending, one of `ENDINGS`, or an empty string."""
    return next((known for known in ENDINGS if path.name.lower().endswith(known)), "")


# ---- reading --------------------------------------------------------------------------------------------------------


def read_grid(path: Path) -> Grid:
    """The grid of an image file; reads the header only."""
    return Grid.of(_read_header(path))


def read_image(path: Path) -> Image:
    """An image in the number type of its file, read in full.

    A UserError names a file that is missing, truncated or damaged, has voxels that are infinite or no number, complex
    numbers or several components per voxel.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not content:
        raise UserError(f"{path} is empty (0 bytes); copy or download it again")
    header = _read_header(path)
    grid = Grid.of(header)
    if (components := header.GetNumberOfComponents()) > 1:
        raise UserError(f"{path} has {components} components per voxel instead of one")
    if ending(path) in NIFTI_ENDINGS:
        array = _nifti_voxels(content, path).reshape(grid.shape)
    else:
        try:
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        except RuntimeError as error:
            raise UserError(f"{path} is no readable image: {_reason(error)}") from error
    if np.iscomplexobj(array):
        raise UserError(f"{path} holds complex numbers; write its magnitude instead")
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise UserError(f"{path} has voxels that are infinite or no number")
    return Image(array, grid, hashlib.sha256(content).hexdigest())


def read_label_map(path: Path) -> tuple[np.ndarray, Grid]:
    """A label map as uint8, whatever number type its file has; a value that is no label (0.5, -1, 256) is an error."""
    array, grid, _ = read_image(path)
    labels = array if array.dtype == np.uint8 else array.astype(np.uint8)
    if not np.array_equal(labels, array):
        raise UserError(f"{path} is no label map: it holds {float(array[labels != array].flat[0]):g}")
    return labels, grid


def to_integers(values: np.ndarray) -> np.ndarray:
    """Voxels as integers; labels stored as whole floats are common and fine, anything else is an error."""
    if np.issubdtype(values.dtype, np.integer):
        return values
    if not np.array_equal(values, np.rint(values)):
        odd = np.unique(values[values != np.rint(values)])[:3]
        raise UserError(f"labels are not whole numbers: {', '.join(f'{value:g}' for value in odd)}")
    return values.astype(np.int64)


def require_labels(
    labels: np.ndarray,
    known: Collection[int],
    path: Path,
    advice: str = "label maps as trained are needed, before `restore`",
) -> None:
    """An error where a label map holds other labels than these: most often it is not numbered as trained."""
    if others := sorted(set(np.flatnonzero(np.bincount(labels.ravel())).tolist()) - {BACKGROUND, *known}):
        raise UserError(f"{path} holds labels {others}, which are not among {sorted({BACKGROUND, *known})}: {advice}")


def _read_header(path: Path) -> sitk.ImageFileReader:
    if not path.is_file():
        raise UserError(f"{path} {'is no file' if path.exists() else 'does not exist'}")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UserError(f"{path} is no readable image: {_reason(error)}") from error
    return reader


def _reason(error: Exception) -> str:
    """What ITK says, without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if "rror" in line and ".cxx" not in line] or lines[-1:]
    return " ".join(line.split("): ", 1)[-1] for line in said)


def _nifti_voxels(content: bytes, path: Path) -> np.ndarray:
    """The voxels of a NIfTI file as stored, in one axis; scaled where its header says so, as ITK does."""
    try:
        unpacked = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} is truncated or damaged: {error}; copy or download it again") from error
    kind = nibabel.Nifti2Header if unpacked[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nibabel.Nifti1Header
    try:
        header = kind.from_fileobj(BytesIO(unpacked))
        offset, dtype = int(header.get_data_offset()), header.get_data_dtype()
        count = int(np.prod(header["dim"][1 : 1 + header["dim"][0]], dtype=np.int64))
        slope, inter = header.get_slope_inter()
    except Exception as error:  # nibabel raises its own kinds for each way in which a header can be broken
        raise UserError(f"{path} has no NIfTI header that can be read: {error}") from error
    expected = offset + count * dtype.itemsize
    if count < 1 or len(unpacked) < expected:
        raise UserError(f"{path} is truncated: it holds {len(unpacked)} of {expected} bytes; copy or download it again")
    values = np.frombuffer(unpacked, dtype, count, offset)
    values = values.astype(dtype.newbyteorder("="), copy=False)
    if slope is not None and (slope != 1 or inter):
        return (values * np.float64(slope) + np.float64(inter)).astype(np.float32)
    return values


# ---- writing --------------------------------------------------------------------------------------------------------


def write_label_map(path: Path, labels: np.ndarray, grid: Grid) -> None:
    """Write labels (z, y, x) as uint8, compressed, as nnU-Net's SimpleITKIO does."""
    write_image(path, labels.astype(np.uint8, copy=False), grid)


def write_image(path: Path, array: np.ndarray, grid: Grid) -> None:
    """Write an array (z, y, x), compressed, in its own number type with the grid given."""
    with writing(path):
        try:
            sitk.WriteImage(grid.apply_to(sitk.GetImageFromArray(array)), str(path), True)
        except RuntimeError as error:
            raise OSError(0, _reason(error), str(path)) from error


# ---- probabilities --------------------------------------------------------------------------------------------------


def read_probabilities(path: Path, head: Head | None = None) -> np.ndarray:
    """The probabilities (channel, z, y, x) of an .npz file as float32; a file may hold float16 to save space.

    Values that are no number, complex or outside [0, 1] are an error: they are no probabilities, but perhaps logits.
    head: of the network, if known; the channels of a label head must sum to one.
    """
    with _archive(path), np.load(path) as archive:
        stored = archive["probabilities"]
    if np.iscomplexobj(stored) or not np.issubdtype(stored.dtype, np.number):
        raise UserError(f"{path} holds {stored.dtype} numbers instead of probabilities")
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


ROUNDING = 1e-3  # half precision and resampling leave probabilities a little outside [0, 1]
SUM_ROUNDING = 1e-2  # and their sum over a few labels that far from 1


def probabilities_shape(path: Path) -> tuple[int, ...]:
    """The shape of the probabilities of an .npz file, without reading them."""
    with _archive(path), zipfile.ZipFile(path) as archive, archive.open("probabilities.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(file)[0]


class _archive:
    """Turns what numpy and zipfile say of a broken .npz into an error that names the file."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyError | ValueError | zipfile.BadZipFile | EOFError | zlib.error | OSError):
            raise UserError(f"{self.path} holds no array 'probabilities' that can be read: {error}") from error
