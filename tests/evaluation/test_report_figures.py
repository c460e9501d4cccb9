"""What a report draws beyond box plots: numbers in shapes by hand, pictures that results alone give, and files."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_brats_ext.brats import ED, ET, NCR
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.evaluation.pictures import fill
from nnunet_brats_ext.evaluation.ranking import Comparison, rank_entries
from nnunet_brats_ext.evaluation.report.curves import (
    MeanRow,
    confusion_chart,
    means_chart,
    sizes_chart,
    stability_chart,
)
from nnunet_brats_ext.evaluation.report.curves import tests_chart as p_values_chart  # `test` would be collected
from nnunet_brats_ext.evaluation.report.figures import draw_charts, save_figures
from nnunet_brats_ext.evaluation.report.overlays import CaseFiles, LabelFile, draw_case
from nnunet_brats_ext.evaluation.report.page import write_report
from nnunet_brats_ext.evaluation.report.shapes import Block, Dots, Stroke
from nnunet_brats_ext.evaluation.report.tables import failing_region, spread_rows, volumes_text
from nnunet_brats_ext.evaluation.results import read_models
from nnunet_brats_ext.evaluation.statistics import PairedTest
from nnunet_brats_ext.storage.errors import UserError

REGIONS = {"WT": (1, 2, 3), "TC": (2, 3), "ET": (3,)}
TRAINED = {value: value for value in range(4)}


def shapes_of(chart, kind, css=""):
    return [shape for shape in chart.shapes if isinstance(shape, kind) and css in shape.css]


def test_a_mean_lies_on_its_interval_and_folds_beside_it():
    rows = [MeanRow("a", 0.8, 0.7, 0.9, [0.75, 0.85]), MeanRow("b", 0.6, 0.5, 0.7), MeanRow("none", *3 * [np.nan])]
    chart = means_chart("WT", rows, "dice")
    (first, second), (mean, _) = shapes_of(chart, Stroke, "interval"), shapes_of(chart, Dots, "mean")
    (low, y), (high, _) = first.points
    assert low < mean.points[0][0] < high and y == mean.points[0][1] < second.points[0][1]
    assert mean.points[0][0] == pytest.approx((low + high) / 2)
    (marks,) = shapes_of(chart, Dots, "mark")
    assert [x for x, _ in marks.points] == pytest.approx([low + (high - low) / 4, low + 3 * (high - low) / 4])
    assert "none: no score" in [label.text for label in chart.labels]
    assert first.sentence == "a: 0.800, 0.700 to 0.900"


def test_larger_regions_lie_to_the_right_and_better_scores_above():
    chart = sizes_chart("ET", {"m": (np.array([1.0, 10.0, 100.0]), np.array([0.5, 0.7, 1.0]))}, "dice")
    ((a, b, c),) = [dots.points for dots in shapes_of(chart, Dots)]
    assert a[0] < b[0] < c[0] and a[1] > b[1] > c[1]
    assert chart.legend == [(0, "m")]
    distances = sizes_chart("ET", {"m": (np.array([1.0, 10.0]), np.array([0.0, 50.0]))}, "hd95")
    assert [np.isfinite(dots.points).all() for dots in shapes_of(distances, Dots)] == [True]


def test_the_area_of_a_disc_is_how_often_an_entry_takes_a_place():
    scores = {"a": [0.9, 0.9, 0.5], "b": [0.8, 0.8, 0.6]}
    entries = {name: {f"c{i}": {"WT": {"dice": v}} for i, v in enumerate(dice)} for name, dice in scores.items()}
    ranking = rank_entries(entries, ["dice"])
    chart = stability_chart(ranking)
    discs = shapes_of(chart, Dots, "disc c0")  # those of the first entry
    areas = np.array([disc.diameter**2 for disc in discs])
    np.testing.assert_allclose(areas / areas.sum(), ranking.stability.frequencies[0], atol=1e-6)
    assert f"{ranking.stability.tau:.2f}" in chart.title


def test_cells_hold_corrected_p_values_and_shares_of_the_labels_of_the_reference():
    test = PairedTest(9, 0.1, 0.0, 0.2, 0.004, 0.03)
    chart = p_values_chart("WT Dice", [Comparison("WT", "dice", "a", "b", test, 0.012, 0.6)], ["a", "b"])
    cells = shapes_of(chart, Block)
    assert [cell.sentence for cell in cells] == ["p of a against b: 0.012", "p of b against a: 0.600"]
    assert cells[0].strength > 0.3 > cells[1].strength
    voxels = np.array([[97, 3, 0], [10, 90, 0], [0, 0, 0]])
    found = confusion_chart("m", ["background", "ED", "RC"], voxels)
    texts = [label.text for label in found.labels if label.css == "value"]
    assert texts == ["0.970", "0.030", "0", "0.100", "0.900", "0", "–", "–", "–"]


def test_spread_is_over_cases_folds_and_models(tmp_path):
    def results(values, folds):
        cases = {f"c{i}": {"WT": {"dice": value}} for i, value in enumerate(values)}
        content = {"preset": "brats2020", "cases": cases, "folds": dict(zip(cases, folds, strict=True))}
        (tmp_path / "r.json").write_text(json.dumps(content))
        return next(iter(read_models(tmp_path / "r.json").values()))

    models = {"a": results([0.5, 0.7, 0.9, 0.9], "0011"), "b": results([0.8, 0.8, 0.8, 0.8], "0000")}
    rows = spread_rows(models, [("WT", "dice")])
    assert [(row.name, row.over, row.cells) for row in rows] == [
        ("a", "4 cases", ["0.750 (0.191)"]),
        ("a", "2 folds", ["0.750 (0.212)"]),
        ("b", "4 cases", ["0.800 (0.000)"]),
        ("all", "2 models", ["0.775 (0.035)"]),
    ]


def test_the_failing_region_is_that_with_the_worst_mean_over_models():
    case = {"WT": {"dice": 0.9, "hd95": 30.0}, "TC": {"dice": 0.4, "hd95": 2.0}, "ET": {"dice": None, "hd95": None}}
    entries = {"one": {"c": case}}
    assert failing_region(entries, "c", "dice", list(REGIONS)) == "TC"
    assert failing_region(entries, "c", "hd95", list(REGIONS)) == "WT"
    assert volumes_text({"reference_ml": 1.25, "prediction_ml": 2.0}) == "1.2 → 2.0 ml"
    assert volumes_text({"dice": 1.0}) == ""


# ---- pictures -------------------------------------------------------------------------------------------------------


def write(path: Path, labels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(path))
    return path


def tumour(missed: bool = False) -> np.ndarray:
    """A box with a core, and far from it a small enhancing lesion, which may be missed."""
    labels = np.zeros((24, 26, 28), np.uint8)
    labels[4:12, 4:14, 4:14] = ED
    labels[6:10, 6:12, 6:12] = NCR
    if not missed:
        labels[18:21, 20:23, 22:25] = ET
    return labels


@pytest.fixture
def world(tmp_path) -> Path:
    """Two cases, two models, and the results of both in one file."""
    for case in ("a", "b"):
        write(tmp_path / "labels" / f"{case}.nii.gz", tumour())
        write(tmp_path / "one" / f"{case}.nii.gz", np.roll(tumour(), 1, 2))
        write(tmp_path / "two" / f"{case}.nii.gz", tumour(missed=case == "b"))
    command = ["evaluate", *(str(tmp_path / name) for name in ("labels", "one", "two")), "--labels", "trained"]
    assert main([*command, "-o", str(tmp_path / "results.json"), "-np", "1"]) == 0
    return tmp_path


def test_without_images_the_label_map_is_shown_and_slices_run_through_what_failed(world):
    reference = LabelFile(world / "labels" / "b.nii.gz", TRAINED)
    predictions = {name: LabelFile(world / name / "b.nii.gz", TRAINED) for name in ("one", "two")}
    given = CaseFiles("b", REGIONS, {}, reference, predictions, failing="ET")
    axial, coronal, sagittal = draw_case(given)
    assert (axial.number - 1, coronal.number - 1, sagittal.number - 1) == (19, 21, 24), "the lesion"
    assert list(axial.images) == ["label map"]
    assert (axial.sides, coronal.sides, sagittal.sides) == (("R", "L"), ("R", "L"), ("A", "P"))
    whole = draw_case(CaseFiles("b", REGIONS, {}, reference, predictions, failing="TC"))
    assert 6 <= whole[0].number - 1 < 10


def test_the_patients_right_lies_left_in_a_file_of_any_orientation(world):
    path = world / "labels" / "b.nii.gz"
    expected = draw_case(CaseFiles("b", REGIONS, {}, LabelFile(path, TRAINED), {}))
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "RAS"), str(world / "ras.nrrd"))
    found = draw_case(CaseFiles("b", REGIONS, {}, LabelFile(world / "ras.nrrd", TRAINED), {}))
    assert [plane.reference for plane in found] == [plane.reference for plane in expected]


def test_results_alone_name_models_and_files_and_draw_cases_in_rows_and_models_in_columns(world):
    page = world / "page.html"
    notes = write_report([world / "results.json"], page, processes=1)
    assert notes == ["No training curves: no model folders were given."]
    text = page.read_text()
    headings = re.search(r'<table class="cases">.*?</thead>', text, re.S)[0]
    assert re.findall(r'<th scope="col">(.*?)</th>', headings) == ["one", "two"]
    assert text.count('<text class="side"') == text.count('<text class="side right"') > 6
    assert "ET 0.000 / " in text and "ml" in text
    assert "shown is ET" in text
    for part in ("Means with their 95 % intervals", "Size against score", "Stability of the places", "Paired tests"):
        assert part in text
    assert "Confusion between labels" in text
    assert "://" not in text and text.isascii()


def test_predictions_in_another_order_than_the_results_are_refused(world):
    for given in ([str(world / "two"), str(world / "one")], [f"one={world / 'two'}", f"two={world / 'one'}"]):
        with pytest.raises(UserError, match="is not what was scored: its content is another"):
            write_report([world / "results.json"], world / "page.html", predictions=given, processes=1)
    assert not (world / "page.html").exists()
    in_order = [str(world / "one"), str(world / "two")]
    write_report([world / "results.json"], world / "page.html", predictions=in_order, processes=1)


def test_models_whose_files_are_numbered_in_different_ways_are_drawn_together(world):
    (world / "released").mkdir()
    for case in ("a", "b"):
        labels = np.roll(tumour(), 1, 2)
        write(world / "released" / f"{case}.nii.gz", np.array([0, 2, 1, 4], np.uint8)[labels])
    command = ["evaluate", str(world / "labels"), str(world / "released"), "--labels", "trained,glioma_2017"]
    assert main([*command, "-o", str(world / "released.json"), "-np", "1"]) == 0
    write_report([world / "results.json", world / "released.json"], world / "page.html", processes=1)
    drawn = re.findall(r'id="c1p1-m(\d)"[^>]*>(.*?)</g>', (world / "page.html").read_text(), re.S)
    assert [number for number, _ in drawn] == ["0", "1", "2"]
    assert drawn[0][1] == drawn[2][1], "the same tumour in another numbering"


def test_what_changed_since_it_was_scored_is_refused_and_what_is_gone_is_noted(world):
    write(world / "labels" / "b.nii.gz", tumour(missed=True))
    with pytest.raises(UserError, match=r"labels/b.nii.gz is not what was scored: its content is another"):
        write_report([world / "results.json"], world / "page.html", processes=1)
    with pytest.raises(UserError, match="tumour is another"):
        write_report([world / "results.json"], world / "page.html", reference=world / "labels", processes=1)
    shutil.rmtree(world / "labels")
    shutil.rmtree(world / "two")
    notes = write_report([world / "results.json"], world / "page.html", processes=1)
    assert notes[:2] == [
        f"The references are no longer in {world / 'labels'}: pictures show predictions alone.",
        "No predictions were given for two: they are not drawn.",
    ]


def test_figures_are_written_as_vectors_and_as_pictures(world):
    figures = world / "figures"
    command = ["report", str(world / "results.json"), "-o", str(world / "page.html"), "--figures", str(figures)]
    assert main([*command, "-np", "1", "--cases", "2", "--filled", "--sequences", "FLAIR"]) == 0
    names = {path.stem for path in figures.iterdir()}
    assert names >= {f"{kind}_dice" for kind in ("boxes", "intervals", "spread", "sizes", "tests")}
    assert names >= {"stability", "confusion", "cases", "sequences", "overlays"}
    assert {path.name for path in figures.iterdir()} == {f"{name}{end}" for name in names for end in (".pdf", ".png")}
    for name in names:
        assert (figures / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert min(Image.open(figures / f"{name}.png").size) > 200


def test_filled_labels_have_the_colours_of_figure_7_and_leave_the_rest_grey():
    grey, labels = np.full((1, 4), 0.5), np.array([[0, ED, NCR, ET]])
    (background, oedema, core, enhancing), *_ = fill(grey, labels)
    np.testing.assert_allclose(background, 0.5)
    assert [int(colour.argmax()) for colour in (enhancing, oedema, core)] == [0, 1, 2], "red, green, blue"


def test_the_same_chart_gives_the_same_file(tmp_path):
    chart = confusion_chart("m", ["background", "ED"], np.array([[9, 1], [2, 8]]))
    for name in ("one", "two"):
        save_figures(iter([(name, draw_charts([chart]))]), tmp_path)
    assert (tmp_path / "one.pdf").read_bytes() == (tmp_path / "two.pdf").read_bytes()
