"""Random damage to one file of an input: never a traceback, and never another result without a word.

NNUNET_BRATS_TEST_EXAMPLES sets how many examples of each command are tried.
"""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spoiling import CASE, RELEASE, copy_of, restore, run

from nnunet_brats_ext.storage.images import read_image

EXAMPLES = int(os.environ.get("NNUNET_BRATS_TEST_EXAMPLES", "12"))
CHANNELS = range(4)
FILES = {
    "convert": [*(f"{RELEASE}_{name}.nii.gz" for name in ("t1", "t1ce", "t2", "flair", "seg"))],
    "predict": [f"images/{CASE}_{channel:04d}.nii.gz" for channel in CHANNELS],
    "ensemble": [f"{folder}/{CASE}{ending}" for folder in "AB" for ending in (".nii.gz", ".npz")],
    "postprocess": [f"A/{CASE}.nii.gz"],
    "postprocess (probabilities)": [f"A/{CASE}.nii.gz", f"A/{CASE}.npz"],
    "evaluate": [f"{folder}/{CASE}.nii.gz" for folder in ("references", "A")],
}
WITHOUT_COMPARISON = ("postprocess", "postprocess (probabilities)")  # one label map alone: its grid is what it says


def cut(file: Path, share: float) -> None:
    os.truncate(file, int(file.stat().st_size * share))


def flip_bit(file: Path, share: float, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * share)] ^= 1 << bit
    file.write_bytes(content)


def rename(file: Path, form: str) -> None:
    file.rename(file.with_name(form.format(name=file.name, stem=file.name.split(".")[0])))


def swap(file: Path, other: Path) -> None:
    aside = file.with_name("aside")
    file.rename(aside)
    other.rename(file)
    aside.rename(other)


def change(file: Path, function: Callable[[sitk.Image], sitk.Image]) -> None:
    image = function(sitk.ReadImage(str(file)))
    file.unlink()
    sitk.WriteImage(image, str(file))


def resized(image: sitk.Image, way: str) -> sitk.Image:
    if way == "spacing":
        image.SetSpacing([1.5 * length for length in image.GetSpacing()])
        return image
    if way == "moved":
        image.SetOrigin([length + 3 for length in image.GetOrigin()])
        return image
    return {"crop": lambda: image[1:], "pad": lambda: sitk.ConstantPad(image, (0, 2, 0), (0, 0, 0), 0)}[way]()


def retyped(image: sitk.Image, kind: str) -> sitk.Image:
    array = sitk.GetArrayFromImage(image)
    if kind == "nan":
        array = array.astype(np.float32)
        array[3, 3, 3] = np.nan
    elif kind == "half":
        array = array + 0.5
    else:
        array = array.astype(kind)
    other = sitk.GetImageFromArray(array)
    other.CopyInformation(image)
    return other


@st.composite
def damages(draw: st.DrawFn, command: str) -> tuple[str, Callable[[Path], None]]:
    """Which file, and what is done to it, with a name for the report."""
    name = draw(st.sampled_from(FILES[command]))
    kinds = ["cut", "flip", "rename"]
    if name.endswith(".nii.gz"):
        kinds += ["retype"]
        kinds += [] if command in WITHOUT_COMPARISON else ["resize"]
        # Which of the two T1 has contrast agent is not seen in every patient, and nor is whose image a file holds.
        kinds += ["swap"] if command == "predict" else []
    kind = draw(st.sampled_from(kinds))
    share = draw(st.floats(0, 0.999))
    if kind == "cut":
        return name, lambda root: cut(root / name, share)
    if kind == "flip":
        bit = draw(st.integers(0, 7))
        return name, lambda root: flip_bit(root / name, share, bit)
    if kind == "rename":
        forms = ["x{name}", "{name}.bak", "{stem}.NII.GZ", "{stem}", "{stem}_0000.nii.gz"]
        form = draw(st.sampled_from(forms))
        return name, lambda root: rename(root / name, form)
    if kind == "resize":
        way = draw(st.sampled_from(["spacing", "moved", "crop", "pad"]))
        return name, lambda root: change(root / name, lambda image: resized(image, way))
    if kind == "retype":
        of_labels = [] if command == "predict" or ("_seg" not in name and command == "convert") else ["half"]
        number = draw(st.sampled_from(["float32", "float64", "int32", "complex64", "nan", *of_labels]))
        return name, lambda root: change(root / name, lambda image: retyped(image, number))
    pairs = [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    one, two = (f"images/{CASE}_{channel:04d}.nii.gz" for channel in draw(st.sampled_from(pairs)))
    return one, lambda root: swap(root / one, root / two)


def results(root: Path) -> dict[str, object]:
    """What a command has written, in a form that can be compared."""
    found: dict[str, object] = {}
    for path in sorted((root / "out").rglob("*")):
        name = str(path.relative_to(root))
        if path.name.endswith(".nii.gz"):
            array, grid, _ = read_image(path)
            found[name] = (array.astype(np.float64).tobytes(), grid)
        elif path.name == "out.json":
            found[name] = json.loads(path.read_text())["cases"]
    return found


WHOLE: dict[str, dict[str, object]] = {}


@pytest.mark.parametrize("command", FILES)
def test_random_damage_is_no_traceback_and_no_other_result(command, everything, capsys):
    if command not in WHOLE:
        assert run(command) == 0
        WHOLE[command] = results(everything)
        assert WHOLE[command]
        restore(everything, copy_of(everything))

    examples = EXAMPLES if command != "predict" else max(1, EXAMPLES // 2)

    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(damage=damages(command))
    def check(damage):
        name, spoil = damage
        try:
            spoil(everything)
            capsys.readouterr()
            with warnings.catch_warnings(record=True) as noticed:
                status = run(command)
            said = capsys.readouterr()
            case = CASE if CASE in name else Path(RELEASE).name
            if status:
                assert status == 1
                assert "nnunet_brats" in said.err
                assert case in said.err or Path(name).name in said.err
                assert not (everything / "out").exists() or not results(everything)
            elif not any(case in str(one.message) for one in noticed) and case not in said.out + said.err:
                assert results(everything) == WHOLE[command]
        finally:
            restore(everything, copy_of(everything))

    check()
