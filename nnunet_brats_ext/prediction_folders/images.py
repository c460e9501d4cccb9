"""Images, label maps and probability files: arrays in the order z, y, x, and where their voxels lie."""

import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_brats_ext.brats import BACKGROUND

TOLERANCE = 1e-3  # mm for spacing and origin, unit-free for the direction cosines: what file formats round


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of an image lie, in SimpleITK's order: x, y, z."""

    size: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    origin_mm: tuple[float, ...]
    direction: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array: z, y, x."""
        return self.size[::-1]

    @property
    def voxel_volume_mm3(self) -> float:
        return float(np.prod(self.spacing_mm))

    def difference(self, other: "Geometry") -> str | None:
        """The first thing in which two geometries differ, in words; None where they agree within `TOLERANCE`."""
        for name in ("size", "spacing_mm", "origin_mm", "direction"):
            here, there = getattr(self, name), getattr(other, name)
            if len(here) != len(there) or not np.allclose(here, there, rtol=0, atol=TOLERANCE):
                return f"{name} {here} against {there}"
        return None


def read_geometry(path: Path) -> Geometry:
    """The geometry of an image file; reads the header only."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise OSError(f"{path} is no readable image: {_last_line(error)}") from error
    return _geometry(reader)


def read_image(path: Path) -> tuple[np.ndarray, Geometry]:
    """An image as (z, y, x) in the type of the file, with its geometry."""
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise OSError(f"{path} is no readable image: {_last_line(error)}") from error
    return sitk.GetArrayFromImage(image), _geometry(image)


def read_label_map(path: Path) -> tuple[np.ndarray, Geometry]:
    """A label map as uint8, whatever number type its file has; a value that is no label (0.5, -1, 256) is an error."""
    array, geometry = read_image(path)
    labels = array if array.dtype == np.uint8 else array.astype(np.uint8)
    if not np.array_equal(labels, array):
        raise ValueError(f"{path} is no label map: it holds {float(array[labels != array].flat[0])}")
    return labels, geometry


def write_label_map(path: Path, labels: np.ndarray, geometry: Geometry) -> None:
    """Write labels (z, y, x) as uint8, compressed, as nnU-Net's SimpleITKIO does."""
    write_image(path, labels.astype(np.uint8, copy=False), geometry)


def write_image(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write an array (z, y, x) in its own number type with the geometry given."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing_mm)
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.direction)
    sitk.WriteImage(image, str(path), True)


def read_probabilities(path: Path) -> np.ndarray:
    """The probabilities (channel, z, y, x) of an .npz file as float32; a file may hold float16 to save space."""
    try:
        with np.load(path) as archive:
            probabilities = archive["probabilities"].astype(np.float32, copy=False)
    except (KeyError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} holds no array 'probabilities' that can be read: {error}") from error
    if not np.isfinite(probabilities).all():  # which would be taken for background, and for certain
        raise ValueError(f"{path} holds probabilities that are not a number; predict that case again")
    return probabilities


def require_labels(labels: np.ndarray, known: Collection[int], path: Path) -> None:
    """An error where a label map holds labels that are not among these: most often one that is not as trained."""
    if strangers := sorted(set(np.flatnonzero(np.bincount(labels.ravel())).tolist()) - {BACKGROUND, *known}):
        raise ValueError(
            f"{path} holds labels {strangers}, which are not among {sorted({BACKGROUND, *known})}: "
            "label maps as trained are needed, before `restore`"
        )


def probabilities_shape(path: Path) -> tuple[int, ...]:
    """The shape of the probabilities of an .npz file, without reading them."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("probabilities.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return read(file)[0]
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no array 'probabilities' that can be read: {error}") from error


def _geometry(image: sitk.Image | sitk.ImageFileReader) -> Geometry:
    return Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
