"""What all pictures share: slices, orientation, grey values, contours, and panels."""

import json

import numpy as np
import SimpleITK as sitk

from nnunet_brats_ext.demo import draw_cases
from nnunet_brats_ext.evaluation.pictures import (
    REGION_COLOURS,
    HeadImage,
    PicturePanel,
    blend,
    draw_grid,
    find_contours,
    find_slices,
    read_upright,
    upright,
)
from nnunet_brats_ext.storage.images import read_grid


def test_planes_run_through_most_tumour_of_the_reference_else_of_a_prediction_else_through_the_middle():
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[2, 3:6, 4] = 1
    labels[2, 4, 4:7] = 1
    box = (slice(0, 9),) * 3
    assert find_slices([labels], box) == (2, 4, 4)
    assert find_slices([np.zeros_like(labels), labels], box) == (2, 4, 4)
    assert find_slices([np.zeros_like(labels)], (slice(2, 8),) * 3) == (5, 5, 5)


def test_a_volume_stored_in_another_orientation_is_shown_alike(tmp_path):
    array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    upright = sitk.GetImageFromArray(array)
    for code in ("LPS", "RAS", "ASL"):
        sitk.WriteImage(sitk.DICOMOrient(upright, code), str(tmp_path / "image.nii.gz"))
        found, _ = read_upright(tmp_path / "image.nii.gz")
        np.testing.assert_array_equal(found, array)


def test_an_array_on_the_grid_of_a_file_is_turned_as_the_file_is(tmp_path):
    array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    image = sitk.DICOMOrient(sitk.GetImageFromArray(array), "RIP")
    sitk.WriteImage(image, str(tmp_path / "image.nii.gz"))
    stored = sitk.GetArrayFromImage(image)
    np.testing.assert_array_equal(upright(stored, read_grid(tmp_path / "image.nii.gz")), array)


def test_grey_values_span_the_window_and_are_black_outside_the_head():
    image = np.zeros((5, 20, 20), np.float32)
    image[:, 5:15, 5:15] = np.linspace(-2, 2, 100).reshape(10, 10)  # normalised, with values around 0 inside
    image[:, 8, 8] = 0
    head = HeadImage.of("case", image, (1.0, 1.0, 1.0))
    grey = head.grey(image[2])
    assert grey[0, 0] == 0 and grey[5, 5] == 0 and grey[14, 14] == 1
    assert 0.3 < grey[8, 8] < 0.7, "0 inside the head is grey"
    assert [(side.start, side.stop) for side in head.box] == [(0, 5), (2, 18), (2, 18)]
    empty = HeadImage.of("case", np.zeros((5, 6, 7)), (1.0, 1.0, 1.0))
    assert not empty.grey(empty.image[0]).any() and empty.crop(empty.image[0]).shape == (6, 7)


def test_contours_are_closed_at_the_rim_keep_holes_and_have_no_points_on_straight_lines():
    mask = np.ones((40, 30), bool)
    mask[10:20, 10:20] = False
    outer, hole = sorted(find_contours(mask), key=np.ptp, reverse=True)
    assert len(outer) == len(hole) == 8  # a box with its corners cut
    assert outer.min(0).tolist() == [-0.5, -0.5] and outer.max(0).tolist() == [29.5, 39.5]  # x, y
    assert find_contours(np.zeros((3, 3), bool)) == []


def test_colours_lie_over_grey_by_their_opacity():
    red = np.array([[[1.0, 0, 0]]])
    assert blend(np.array([[0.5]]), red, 0).tolist() == [[[0.5, 0.5, 0.5]]]
    assert blend(np.array([[0.5]]), red, 1).tolist() == red.tolist()
    assert blend(np.array([[0.5]]), red, np.array([[0.5]])).tolist() == [[[0.75, 0.25, 0.25]]]


def test_panels_are_outlined_in_the_colours_of_the_regions_with_a_legend_of_those_there_are():
    labels = np.zeros((20, 16), np.uint8)
    labels[8:12, 6:10] = 1
    panels = [[PicturePanel(np.zeros((20, 16)), "image")], [PicturePanel(np.zeros((20, 16, 3)), "map", labels)] * 2]
    figure = draw_grid(panels, ["first", "second"], {"WT": (1, 2, 3), "TC": (2, 3)}, "title", aspect=2.0)
    image, _, with_labels, _ = figure.axes
    assert (image.get_title(), image.get_ylabel(), image.get_aspect()) == ("image", "first", 2.0)
    assert image.get_legend() is None
    assert [text.get_text() for text in with_labels.get_legend().get_texts()] == ["WT"]
    (line,) = with_labels.lines
    assert line.get_color() == REGION_COLOURS[0]
    assert line.get_xdata().tolist()[0] == line.get_xdata().tolist()[-1], "closed"


def test_the_demo_draws_a_row_per_case_with_the_outlines_of_every_entry(tmp_path):
    labels = np.zeros((10, 20, 16), np.uint8)
    images = tmp_path / "imagesTr"
    images.mkdir()
    channels = {str(i): name for i, name in enumerate(("T1", "T1ce", "T2", "FLAIR"))}
    description = {"channel_names": channels, "labels": {"background": 0}, "numTraining": 2, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    labels[3:6, 8:12, 6:10] = 4
    for name in ("a", "b"):
        for channel in (1, 3):
            image = sitk.GetImageFromArray(np.pad(np.ones((8, 14, 10), np.int16) + channel, ((1, 1), (3, 3), (3, 3))))
            sitk.WriteImage(image, str(images / f"{name}_{channel:04d}.nii.gz"))
        for folder in ("reference", "entry"):
            (tmp_path / folder).mkdir(exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / folder / f"{name}.nii.gz"))
    maps = {folder: tmp_path / folder for folder in ("reference", "entry")}
    picture = draw_cases(images, maps, tmp_path / "cases.png")
    assert picture.stat().st_size > 5000
