"""Tiny release folders for tests: 8 x 9 x 10 voxels, named and numbered as any row of `LAYOUTS` says."""

import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_brats_ext.brats import SEQUENCES
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, PRESENT_SCHEME, STACK, Layout

SIZE = (8, 9, 10)
ORIGIN_MM = (0.0, -239.0, 0.0)


def sequence_values(case: str, sequence: str) -> np.ndarray:
    """Different for every case and sequence: T1 in 1000 to 1099, T1ce in 2000 to 2099, ..., with a zero border."""
    values = np.zeros(SIZE[::-1], np.int16)
    random = np.random.default_rng(zlib.crc32(case.encode()))
    values[1:-1, 1:-1, 1:-1] = random.integers(0, 100, (8, 7, 6)) + 1000 * (SEQUENCES.index(sequence) + 1)
    return values


def numbered(layout: Layout) -> Layout:
    """The layout with a numbering where it leaves it open."""
    return layout if layout.scheme else layout.with_scheme(PRESENT_SCHEME)


def label_values(release: Layout) -> np.ndarray:
    """A label map, as released, in which every label of the scheme occurs."""
    values = np.zeros(SIZE[::-1], np.uint8)
    for number, label in enumerate(sorted(numbered(release).numbering.released)):
        values[2 + number, 2 : 4 + number, 3:6] = label
    return values


def as_image(values: np.ndarray, origin_mm: tuple[float, ...] = ORIGIN_MM) -> sitk.Image:
    image = sitk.GetImageFromArray(values)
    image.SetOrigin(origin_mm)
    return image


def write(image: sitk.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def write_case(
    root: Path,
    release: Layout,
    case: str,
    *,
    labels: np.ndarray | None = None,
    grade: str | None = None,
    training: bool = True,
) -> dict[str, Path]:
    """One case in a fresh copy of the release; the default label map has every label. Gives role -> file."""
    contents = {name: as_image(sequence_values(case, name)) for name in release.sequences}
    if release.stack:
        contents = {STACK: sitk.JoinSeries([contents[name] for name in release.stack])}
    if training:
        contents[LABEL] = as_image(label_values(release) if labels is None else labels)
    paths = {role: root / release.path(case, role, grade=grade, training=training) for role in contents}
    for role, path in paths.items():
        write(contents[role], path)
    return paths
