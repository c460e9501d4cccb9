"""Label maps that a second stage refines, stored with other axes than the images: what comes of them is the same."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from untrained_models import save_untrained, small_plans

from nnunet_brats_ext.cli import main
from nnunet_brats_ext.inference.case_files import find_image_files
from nnunet_brats_ext.inference.cases import ImageCases
from nnunet_brats_ext.inference.logits import ModelDescription
from nnunet_brats_ext.inference.workers import Workers
from nnunet_brats_ext.storage.images import (
    read_image,
    read_label_map,
    read_probabilities,
    turn,
    write_image,
    write_label_map,
)

MODEL = ("-d", "901", "-tr", "BraTSAttentionVAETrainer", "-c", "second", "-p", "SmallPlans", "-f", "0")
RUN = ("-device", "cpu")
ALONE = ("-np", "0", "--tta", "none", "--save_probabilities")
AXES = [("LPS", "RAS"), ("SAL", "LPS"), ("RAS", "PIR")]  # of the images and of the maps


@pytest.fixture
def images(world, tmp_path) -> Path:
    """One case of the world's."""
    folder = tmp_path / "images"
    folder.mkdir()
    for file in (world.raw / "imagesTr").glob(f"{a_case(world)}_*"):
        shutil.copyfile(file, folder / file.name)
    return folder


@pytest.fixture
def maps(world, tmp_path) -> Path:
    """Its label map, as the stage before would have made it."""
    folder = tmp_path / "maps"
    folder.mkdir()
    shutil.copy(min((world.raw / "labelsTr").glob("*.nii.gz")), folder)
    return folder


@pytest.fixture(scope="module")
def results(world_on_disk, tmp_path_factory) -> Path:
    """A second stage that nobody has trained."""
    folder = tmp_path_factory.mktemp("results")
    small = {"patch_size": [32, 32, 32]}
    stages = {"first": small | {"next_stage": "second"}, "second": small | {"previous_stage": "first"}}
    plans = small_plans(world_on_disk, "SmallPlans", stages)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (world_on_disk.settings | {"nnUNet_results": str(folder)}).items():
            patch.setenv(name, value)
        save_untrained(world_on_disk, plans, "second", "BraTSAttentionVAETrainer")
    return folder


def a_case(world) -> str:
    return min((world.raw / "labelsTr").glob("*.nii.gz")).name.removesuffix(".nii.gz")


def turn_images(files: Iterable[Path], axes: str) -> None:
    for file in files:
        image = read_image(file).turned(axes)
        write_image(file, image.array, image.grid)


def turn_maps(folder: Path, axes: str) -> None:
    for file in folder.iterdir():
        labels, grid = read_label_map(file)
        write_label_map(file, turn(labels, grid.axes, axes), grid.turned(axes))


# ---- what a network takes ------------------------------------------------------------------------------------------


def seen(world, images: Path, previous: Path | np.ndarray, reader: str = "SimpleITKIO") -> np.ndarray:
    plans = PlansManager(world.plans | {"image_reader_writer": reader})
    model = ModelDescription(plans, plans.get_configuration("3d_fullres"), world.dataset_json)
    files = find_image_files(images, model.description)
    (case,) = ImageCases(files).read([model], list(files), Workers(0))
    return case.seen_by(model, previous)[0].numpy()


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
@pytest.mark.parametrize(("of_images", "of_maps"), [*AXES, ("LPS", "LPS"), ("SAL", "SAL")])
def test_a_network_sees_the_map_in_the_axes_of_its_training_data(of_images, of_maps, reader, world, images, maps):
    labels, _ = read_label_map(maps / f"{a_case(world)}.nii.gz")
    expected = seen(world, images, labels, reader)
    assert not np.array_equal(expected, seen(world, images, turn(labels, "LPS", "RAS"), reader)), "no map to mirror"
    turn_images(images.iterdir(), of_images)
    turn_maps(maps, of_maps)
    np.testing.assert_array_equal(seen(world, images, maps, reader), expected)


@pytest.mark.parametrize("turned", ["0000", "0002"])
def test_one_sequence_with_other_axes_turns_no_map(turned, world, images, maps):
    expected = seen(world, images, maps)
    turn_images(images.glob(f"*_{turned}.nii.gz"), "SAL")
    for axes in ("LPS", "SAL", "RAS"):
        turn_maps(maps, axes)
        np.testing.assert_array_equal(seen(world, images, maps), expected)


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SAL"])
def test_a_reader_that_turns_images_turns_the_map(axes, world, images, maps):
    expected = seen(world, images, maps, "NibabelIOWithReorient")
    turn_maps(maps, axes)
    np.testing.assert_array_equal(seen(world, images, maps, "NibabelIOWithReorient"), expected)


# ---- the commands --------------------------------------------------------------------------------------------------


def run(command: str, images: Path, maps: Path, out: Path, *words: str) -> Path:
    given = ("-i", str(images), "-o", str(out), "-prev_stage_predictions", str(maps))
    assert main([command, *given, *MODEL, *RUN, *words]) == 0
    return out


def assert_same(expected: Path, found: Path, axes: str) -> None:
    """All images of a folder, with their grids, and all probabilities."""
    files = sorted(expected.rglob("*.nii.gz"))
    assert files
    for file in files:
        one, other = read_image(file).turned(axes), read_image(found / file.relative_to(expected))
        assert one.grid.difference(other.grid) is None
        np.testing.assert_array_equal(one.array, other.array)
    for file in expected.rglob("*.npz"):
        probabilities = read_probabilities(found / file.relative_to(expected))
        np.testing.assert_array_equal(turn(read_probabilities(file), "LPS", axes), probabilities)


@pytest.mark.parametrize(("command", "words"), [("predict", ALONE), ("attention", ())])
def test_what_a_second_stage_makes_of_a_map_does_not_depend_on_its_axes(
    command, words, results, world, images, maps, tmp_path, monkeypatch
):
    monkeypatch.setenv("nnUNet_results", str(results))
    expected = run(command, images, maps, tmp_path / "expected", *words)
    for number, (of_images, of_maps) in enumerate(AXES[:2]):
        turn_images(images.iterdir(), of_images)
        turn_maps(maps, of_maps)
        found = run(command, images, maps, tmp_path / f"found {number}", *words)
        assert_same(expected, found, of_images)
