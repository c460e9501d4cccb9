"""Folders of predictions as nnU-Net writes them: CASE.nii.gz, and CASE.npz with CASE.pkl beside it on request.

Label maps and probabilities are (z, y, x) and (channel, z, y, x) on the grid of the case's images. A command that
works on them checks everything first (`problems_between`), runs case by case (`for_each_case`) and shows its output
only once all of it is written (`staged`).
"""

import json
import multiprocessing
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import SimpleITK as sitk
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Result = TypeVar("Result")

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
            return archive["probabilities"].astype(np.float32, copy=False)
    except (KeyError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} holds no array 'probabilities' that can be read: {error}") from error


def probabilities_shape(path: Path) -> tuple[int, ...]:
    """The shape of the probabilities of an .npz file, without reading them."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("probabilities.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return read(file)[0]
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no array 'probabilities' that can be read: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; anything else is an error that names the file."""
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold a JSON object, not {type(content).__name__}")
    return content


def find_cases(folder: Path, ending: str = ".nii.gz") -> dict[str, Path]:
    """Case name -> file, for the files of a folder with this ending; none at all is an error."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder")
    cases = {path.name.removesuffix(ending): path for path in sorted(folder.glob(f"[!.]*{ending}"))}
    if not cases:
        raise FileNotFoundError(f"{folder} holds no file that ends in {ending}")
    return cases


def problems_between(folders: Mapping[str, Mapping[str, Path]]) -> list[str]:
    """All that keeps folders from being combined case by case: cases that one lacks, grids that differ.

    folders: what to call each folder in a message -> its label maps, as `find_cases` gives them.
    """
    every = sorted(set().union(*folders.values()))
    problems = []
    for name, cases in folders.items():
        if missing := [case for case in every if case not in cases]:
            problems.append(f"{name} lacks {len(missing)} of {len(every)} cases: {', '.join(missing)}")
    for case in every:
        holders = [name for name in folders if case in folders[name]]
        reference = read_geometry(folders[holders[0]][case])
        for name in holders[1:]:
            if difference := reference.difference(read_geometry(folders[name][case])):
                problems.append(f"{case}: {holders[0]} and {name} differ in {difference}")
    return problems


def refuse(problems: Sequence[str], action: str) -> None:
    """Raise one error that names every problem; none, and nothing happens."""
    if problems:
        raise ValueError("\n  ".join([f"cannot {action}; nothing was written:", *problems]))


@contextmanager
def staged(out: Path, cases: Sequence[str], sources: Sequence[Path] = (), ending: str = ".nii.gz") -> Iterator[Path]:
    """A temporary folder whose files move into `out` when the block ends well, and vanish when it does not.

    `out` may exist from an earlier run over the same cases. It must be none of `sources`, and hold no other case: a
    folder that mixes two runs would be scored as one.
    """
    if any(out.resolve() == source.resolve() for source in sources):
        raise ValueError(f"the output folder {out} is also an input; choose another")
    strangers = sorted({path.name for path in out.glob(f"[!.]*{ending}")} - {case + ending for case in cases})
    if strangers:
        raise ValueError(f"{out} already holds other cases ({', '.join(strangers)}); choose an empty folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield stage
        out.mkdir(exist_ok=True)
        for path in sorted(stage.iterdir()):
            path.replace(out / path.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def write_text_whole(path: Path, text: str) -> None:
    """Write a text file at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def for_each_case(
    function: Callable[[str], Result], cases: Sequence[str], description: str, processes: int | None = None
) -> dict[str, Result]:
    """`function` of every case, in several processes and with a progress bar; the results in the order of `cases`.

    function: picklable, say a `functools.partial` of a module's function. Cases that fail with an error that the user
    can mend do not stop the others; they are all named in the one error at the end. One process runs in this one.
    """
    processes = min(processes or default_processes(), len(cases)) or 1
    results: dict[str, Result] = {}
    failures: dict[str, Exception] = {}
    columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(description, total=len(cases))
        for case, outcome in _outcomes(function, cases, processes):
            try:
                results[case] = outcome()
            except (OSError, ValueError, RuntimeError) as error:
                failures[case] = error
            progress.advance(task)
    refuse([f"{case}: {failures[case]}" for case in cases if case in failures], description.lower())
    return {case: results[case] for case in cases}


def default_processes() -> int:
    """As many as there are cores for us, but no more than 8: a case in full size takes about half a gigabyte."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)


def _outcomes(
    function: Callable[[str], Result], cases: Sequence[str], processes: int
) -> Iterator[tuple[str, Callable[[], Result]]]:
    if processes == 1:
        for case in cases:
            yield case, lambda case=case: function(case)  # type: ignore[misc]
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(function, case): case for case in cases}
        for future in as_completed(futures):
            case = futures.pop(future)  # a finished future keeps its result alive
            yield case, future.result


def _geometry(image: sitk.Image | sitk.ImageFileReader) -> Geometry:
    return Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
