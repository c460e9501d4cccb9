"""One case: its files are inspected, then written into an nnU-Net data set.

Both run in worker processes. Inspecting reads every file in full and writes nothing; writing links the images whose
bytes serve as they are and writes the others. A sequence that a case lacks is written as zeros, which stay zeros in
nnU-Net's normalisation.
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nnunet_brats_ext.brats import DERIVED_CHANNELS, derive_channel, remap
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS, STACK, Layout
from nnunet_brats_ext.dataset_conversion.normalisation import NORMALISATIONS
from nnunet_brats_ext.dataset_conversion.scan import SourceCase
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import LPS, Grid, Image, ending, read_image, to_integers, write_image

SOURCE = "source"
AXES = (LPS, SOURCE)  # what the axes of every image become; source: those of the case's first image
LINKS = ("auto", "hard", "symbolic", "copy")  # how an image gets into a data set; auto: the first that works


@dataclass
class Inspection:
    """What a case's files hold.

    sha256: role -> of the source file. identifying: those of images that are not zero everywhere, for images that are
    may be equal by chance. label_counts: voxels of each value of the label map. labels: as released, background
    included, once the numbering is known. rewrite: sequences whose bytes cannot serve as
    they are. voxels: sequence -> SHA-256 of its voxels, of those that are not zero everywhere; the same in any file
    format and orientation. bytes_to_write: at most. source_grid: of the first image before it was turned.
    """

    case: SourceCase
    grid: Grid | None = None
    source_grid: Grid | None = None
    right_angles: bool = False
    sha256: dict[str, str] = field(default_factory=dict)
    identifying: list[str] = field(default_factory=list)
    label_counts: dict[int, int] = field(default_factory=dict)
    labels: list[int] = field(default_factory=list)
    voxels: dict[str, str] = field(default_factory=dict)
    rewrite: set[str] = field(default_factory=set)
    bytes_to_write: int = 0


def inspect_case(
    case: SourceCase, normalise: str | None, tolerance_mm: float, axes: str = LPS, right_angles: bool = False
) -> Inspection:
    """Read all files of a case; what is wrong with them is added to `case.problems`, other notes to `case.remarks`.

    normalise: a name of `NORMALISATIONS` that the images will be written by. axes: LPS, or SOURCE for those of the
    case's first image; every image is turned to them. right_angles: of axes that
    are not at right angles, take the nearest that are.
    """
    layout = case.layout
    found = Inspection(case, right_angles=right_angles)
    images = _read_files(case, layout, found)
    turned: Counter[str] = Counter()
    for role, image in images.items():
        target = found.grid.axes if found.grid else image.grid.axes if axes == SOURCE else axes
        if (was := image.grid.axes) != target:
            image = image.turned(target)
            turned[f"turned from {was} to {target}"] += 1
            found.rewrite.add(role)
            found.source_grid = found.source_grid or images[role].grid
        found.source_grid = found.source_grid or image.grid
        grid = image.grid
        found.grid = found.grid or grid
        _compare(case, role, grid, found.grid, next(iter(images)), tolerance_mm)
        if role in case.twins:
            _compare_twin(case, role, images[role], right_angles)
        if role == LABEL:
            _count_labels(image, found)
            continue
        if image.array.any():
            found.voxels[role] = _digest(image.array if axes == LPS else image.turned(LPS).array)
            found.identifying.append(found.voxels[role])
        else:
            case.remarks.append(f"{role} is zero everywhere")
        linkable = role in case.files and ending(case.files[role]) == ".nii.gz"
        if normalise or not linkable or right_angles or not _equal_for_nnunet(grid, found.grid):
            found.rewrite.add(role)
        if role in found.rewrite:
            itemsize = 4 if normalise else image.array.itemsize
            filled = normalise is not None and not NORMALISATIONS[normalise].keeps_zeros
            found.bytes_to_write += image.array.size * itemsize if filled else _compressed(image.array, itemsize)
    for how, number in turned.items():
        which = "all images" if number == len(images) else f"{number} of {len(images)} images"
        case.remarks.append(f"{how}: {which}")
    if layout.scheme:
        check_labels(found)
    return found


def _read_files(case: SourceCase, layout: Layout, found: Inspection) -> dict[str, Image]:
    """Role -> image, of all files that can be read, each sequence of a 4-D file by itself."""
    images: dict[str, Image] = {}
    for role in (role for role in layout.roles if role in case.files):
        try:
            image = read_image(case.files[role], found.right_angles)
            found.sha256[role] = image.sha256
            if role != LABEL and image.array.any():
                found.identifying.append(image.sha256)
            images |= _unstack(image, role, layout)
        except UserError as error:
            case.problems.append(f"{role}: {error}")
    return images


def _unstack(image: Image, role: str, layout: Layout) -> dict[str, Image]:
    """The image under its role, or each sequence of a 4-D file; any other number of dimensions is an error."""
    size = "x".join(map(str, image.grid.size))
    if role == STACK and layout.stack:
        if image.array.ndim != 4 or len(image.array) != len(layout.stack):
            raise UserError(f"has the size {size} where {len(layout.stack)} volumes are expected")
        grid = image.grid.of_one_volume
        volumes = {name: Image(image.array[number], grid, "") for number, name in enumerate(layout.stack)}
        return {name: volumes[name] for name in layout.sequences}
    if image.array.ndim != 3:
        raise UserError(f"has the size {size} where one volume is expected")
    return {role: image}


def _compare(
    case: SourceCase, role: str, grid: Grid, reference: Grid, reference_role: str, tolerance_mm: float
) -> None:
    """Note where the grid of an image is not that of the case's first one."""
    if not grid.finite:
        case.problems.append(f"header of {role} has numbers that are infinite or no number")
    elif grid.size != reference.size:
        sizes = ["x".join(map(str, size)) for size in (grid.size, reference.size)]
        case.problems.append(f"{role} has {sizes[0]} voxels, {reference_role} {sizes[1]}")
    elif not _equal_for_nnunet(grid, reference):
        shift = grid.shift_mm(reference)
        if not shift <= tolerance_mm:  # true for NaN, too
            case.problems.append(
                f"{role} lies up to {shift:.3g} mm away from {reference_role}, more than the {tolerance_mm:g} tolerated"
            )
        else:
            case.remarks.append(f"header of {role} moved by {shift:.2g} mm, onto that of {reference_role}")


def _digest(array: np.ndarray) -> str:
    """Of the shape and the values, in float32: the number types of files differ between releases of one image."""
    values = np.ascontiguousarray(array, np.float32)
    return hashlib.sha256(str(values.shape).encode() + values.tobytes()).hexdigest()


def _compare_twin(case: SourceCase, role: str, image: Image, right_angles: bool) -> None:
    """Note whether the file of the same name and another compression holds the same voxels.

    image: as it was read, not turned. right_angles: as of `read_image`.
    """
    twin = case.twins[role]
    try:
        same = np.array_equal(read_image(twin, right_angles).array, image.array)
    except UserError:
        same = False
    if same:
        case.remarks.append(f"{role} is there a second time as {twin.name}")
    else:
        case.problems.append(f"{role}: {case.files[role].name} and {twin.name} differ; keep one")


def _equal_for_nnunet(grid: Grid, reference: Grid) -> bool:
    """Whether nnU-Net, which compares by `np.allclose`, takes two headers for the same; if not, one is written anew."""
    return grid.size == reference.size and all(
        np.allclose(getattr(grid, name), getattr(reference, name)) for name in ("spacing_mm", "origin_mm", "direction")
    )


def _count_labels(image: Image, found: Inspection) -> None:
    case = found.case
    try:
        values, counts = np.unique(to_integers(image.array), return_counts=True)
    except UserError as error:
        case.problems.append(f"{LABEL} {case.files[LABEL]}: {error}")
        return
    found.label_counts = dict(zip(values.tolist(), counts.tolist(), strict=True))
    found.bytes_to_write += _compressed(image.array, 1)


def check_labels(found: Inspection) -> None:
    """Note the labels of a case, and which of them do not exist in the numbering of its layout."""
    case, layout = found.case, found.case.layout
    for value, count in found.label_counts.items():
        if value in layout.stray_labels:
            case.remarks.append(f"label {value} -> {layout.stray_labels[value]} in {count} voxels")
        elif value not in layout.numbering.released:
            case.problems.append(_unknown_label(value, count, case))
    found.labels = sorted({layout.stray_labels.get(value, value) for value in found.label_counts})


def _unknown_label(value: int, count: int, case: SourceCase) -> str:
    layout = case.layout
    others = [
        other.name
        for other in LAYOUTS.values()
        if not other.generic and other.is_case(case.name) and value in other.numbering.released
    ]
    advice = f"; it exists in {', '.join(others)}: is this that release?" if others else ""
    return f"label {value} in {count} voxels; {layout.name} has {sorted(layout.numbering.released)}{advice}"


def _compressed(values: np.ndarray, itemsize: int) -> int:
    """An upper bound in bytes: at worst what is not zero does not shrink at all."""
    return int(np.count_nonzero(values)) * itemsize + values.size // 100 + 1000


def write_case(
    found: Inspection, folder: Path, link: str, normalise: str | None = None, derived: Sequence[str] = ()
) -> None:
    """Write an inspected case without problems into imagesTr and labelsTr of a data set, or into imagesTs and labelsTs.

    normalise: a name of `NORMALISATIONS`. derived: channels to compute from the sequences as they are written, of
    `DERIVED_CHANNELS`.

    What is changed is read here a second time, after the inspection: nothing may be written before all cases are
    inspected, and they would not fit into memory. Other images are linked, unread.
    """
    case, layout, grid = found.case, found.case.layout, found.grid
    assert grid is not None, "a case without problems has images"
    stacked = {}
    if STACK in case.files:
        stacked = _unstack(read_image(case.files[STACK], found.right_angles), STACK, layout)
    part = "Tr" if case.trains else "Ts"
    images = folder / f"images{part}"
    needed = {sequence for name in derived for sequence in DERIVED_CHANNELS[name]}
    arrays: dict[str, np.ndarray] = {}

    def target(channel: int) -> Path:
        return images / f"{case.name}_{channel:04d}.nii.gz"

    for channel, sequence in enumerate(layout.sequences):
        linked = sequence not in found.rewrite and sequence not in case.missing
        if linked:
            link_file(case.files[sequence], target(channel), link)
        if linked and sequence not in needed:
            continue
        if sequence in case.missing:
            array = np.zeros(grid.shape, np.uint8)
        else:
            image = stacked[sequence] if stacked else read_image(case.files[sequence], found.right_angles)
            array = image.turned(grid.axes).array
            array = NORMALISATIONS[normalise].function(array) if normalise else array
        if not linked:
            write_image(target(channel), array, grid)
        if sequence in needed:
            arrays[sequence] = array
    for channel, name in enumerate(derived, start=len(layout.sequences)):
        write_image(target(channel), derive_channel(arrays, DERIVED_CHANNELS[name]), grid)
    if case.labelled:
        image = read_image(case.files[LABEL], found.right_angles).turned(grid.axes)
        labels = remap(to_integers(image.array), label_mapping(layout))
        write_image(folder / f"labels{part}" / f"{case.name}.nii.gz", labels, grid)


def label_mapping(layout: Layout) -> Mapping[int, int]:
    """Label in the source's files, stray ones included -> label as trained."""
    released = layout.numbering.released
    return {**released, **{stray: released[meant] for stray, meant in layout.stray_labels.items()}}


def link_file(source: Path, target: Path, link: str) -> None:
    """Give a file a second place, by one of `LINKS`."""
    source = source.resolve()
    ways: dict[str, Callable] = {"hard": os.link, "symbolic": os.symlink, "copy": shutil.copyfile}
    errors = []
    for way in ways if link == "auto" else (link,):
        try:
            ways[way](source, target)
            return
        except OSError as error:
            errors.append(f"{way}: {error.strerror}")
    raise UserError(f"could not place {source} at {target} ({'; '.join(errors)}); try another --link")
