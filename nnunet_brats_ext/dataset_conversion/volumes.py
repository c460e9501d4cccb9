"""One image file: read it whole or not at all, tell its grid, compare grids, make a label map of it.

ITK reads a truncated NIfTI file without a word and fills the rest with whatever it likes, and it reads NaN as 0; both
are looked for here first. Arrays are in ITK's order, (z, y, x); sizes, spacings and origins in (x, y, z), mm and LPS.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

ENDINGS = (".nii.gz", ".nii", ".mha")

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's remarks on headers would tear the progress bar


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an image lie."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> "Grid":
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @classmethod
    def from_json(cls, entry: dict[str, list]) -> "Grid":
        return cls(**{key: tuple(value) for key, value in entry.items()})

    def to_json(self) -> dict[str, list]:
        return {key: list(value) for key, value in asdict(self).items()}

    def apply_to(self, image: sitk.Image) -> sitk.Image:
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image

    @property
    def finite(self) -> bool:
        return bool(np.isfinite([*self.spacing, *self.origin, *self.direction]).all())

    def point(self, index: Iterable[int]) -> np.ndarray:
        """Where a voxel lies, in mm."""
        n = len(self.size)
        return np.reshape(self.direction, (n, n)) @ (np.array(list(index)) * self.spacing) + self.origin

    def shift_mm(self, other: "Grid") -> float:
        """How far apart, at most, the same voxel lies on two grids of one size: one number for the whole header."""
        corners = product(*((0, n - 1) for n in self.size))
        return max(float(np.linalg.norm(self.point(corner) - other.point(corner))) for corner in corners)

    def equals(self, other: "Grid") -> bool:
        """Equal as nnU-Net compares: sizes exactly, the rest by `np.allclose`."""
        return self.size == other.size and all(
            np.allclose(getattr(self, name), getattr(other, name)) for name in ("spacing", "origin", "direction")
        )


def ending(path: Path) -> str:
    """The file ending, one of `ENDINGS`, or an empty string."""
    return next((known for known in ENDINGS if path.name.lower().endswith(known)), "")


def read_whole(path: Path) -> tuple[sitk.Image, str]:
    """The image and the SHA-256 of the file; a truncated or damaged one is an error, unlike in ITK. 3-D or 4-D."""
    content = path.read_bytes()
    try:
        unpacked = gzip.decompress(content) if ending(path) == ".nii.gz" else content
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"truncated or damaged: {error}") from error
    if ending(path) != ".mha":  # ITK itself finds an .mha that is too short
        _check_nifti(unpacked)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = " ".join(line.strip() for line in str(error).splitlines() if "rror" in line) or str(error)
        raise ValueError(f"unreadable: {reason}") from error
    check_finite(sitk.GetArrayViewFromImage(image))
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise ValueError(f"has {image.GetNumberOfComponentsPerPixel()} components per voxel instead of one")
    return image, hashlib.sha256(content).hexdigest()


def _check_nifti(content: bytes) -> None:
    kind = nibabel.Nifti2Header if content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nibabel.Nifti1Header
    try:
        header = kind.from_fileobj(BytesIO(content))
        offset, dtype = int(header.get_data_offset()), header.get_data_dtype()
    except Exception as error:  # nibabel raises its own kinds for each way a header can be broken
        raise ValueError(f"no NIfTI header: {error}") from error
    voxels = int(np.prod(header.get_data_shape()))
    if len(content) < (expected := offset + voxels * dtype.itemsize):
        raise ValueError(f"truncated: {len(content)} of {expected} bytes")
    check_finite(np.frombuffer(content, dtype, voxels, offset))


def check_finite(values: np.ndarray) -> None:
    """NaN and infinity in an image or a label map are an error."""
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        raise ValueError("has voxels that are infinite or no number")


def labels_of(image: sitk.Image) -> np.ndarray:
    """The voxels as integers; labels stored as whole floats are common and fine, anything else is an error."""
    values = sitk.GetArrayFromImage(image)
    if np.issubdtype(values.dtype, np.integer):
        return values
    if not np.array_equal(values, np.rint(values)):
        strange = np.unique(values[values != np.rint(values)])[:3]
        raise ValueError(f"labels are not whole numbers: {', '.join(f'{value:g}' for value in strange)}")
    return values.astype(np.int64)


def write_image(image: sitk.Image, path: Path) -> None:
    """Write compressed, and raise OSError where ITK would raise RuntimeError."""
    try:
        sitk.WriteImage(image, str(path), True)
    except RuntimeError as error:
        raise OSError(f"could not write {path}: {error}") from error


def min_max_of_percentiles(image: np.ndarray) -> np.ndarray:
    """Clip to the 1st and 99th percentile of the positive voxels, then scale to [0, 1]: Henry et al. 2020, pipeline A.

    https://arxiv.org/abs/2011.01045. All voxels are clipped, so the background becomes 0, and so does the darkest
    percent of the brain. An image without a positive voxel, or with one value only, becomes 0. Gives float32.
    """
    positive = image[image > 0]
    if positive.size == 0:
        return np.zeros(image.shape, np.float32)
    clipped = np.clip(image.astype(np.float64), *np.percentile(positive, (1, 99)))
    low, high = clipped.min(), clipped.max()
    return ((clipped - low) / (high - low) if high > low else np.zeros(image.shape)).astype(np.float32)
