"""The report: its numbers by hand, its outlines and planes by geometry, and the page itself, in a browser too."""

import base64
import io
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_brats_ext.brats import ED, ET, LABEL_SCHEMES, NCR
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.evaluation.report.charts import MAX_POINTS, box_plots, line_chart, linear_scale, log_scale
from nnunet_brats_ext.evaluation.report.inputs import find_sequence_files, match_predictions
from nnunet_brats_ext.evaluation.report.overlays import CaseFiles, LabelFile, draw_case, trace
from nnunet_brats_ext.evaluation.report.page import training_charts, write_report
from nnunet_brats_ext.evaluation.report.published import published_tables
from nnunet_brats_ext.evaluation.report.tables import case_table, cases_to_draw, count_empty, summarise_metric
from nnunet_brats_ext.evaluation.report.training import read_fold, read_log, read_model
from nnunet_brats_ext.evaluation.results import summarise_scores

REAL_CASE = Path(__file__).parents[3] / "shared" / "real_case"
REGIONS = ("WT", "TC", "ET")


def results_of(dice, empty=None, **further):
    """results.json of one model: case -> Dice (the same in every region), HD95 three times its distance from 1."""
    cases = {
        case: {region: {"dice": d, "sensitivity": d, "hd95": None if d is None else 3 * (1 - d)} for region in REGIONS}
        for case, d in dice.items()
    }
    content = {"preset": "brats2020", "cohort": "gli", "labels": "trained", "cases": cases, "empty": empty or {}}
    return {**content, "summary": summarise_scores(cases), **further}


def save(path, content):
    path.write_text(json.dumps(content))
    return path


def write_volume(path, array, spacing=(1.0, 1.0, 1.0)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), True)
    return path


def tumour(shift=0, shape=(20, 24, 22)):
    """Nested boxes around (10, 8, 7), moved along x."""
    labels = np.zeros(shape, np.uint8)
    for label, radius in ((ED, 5), (NCR, 3), (ET, 2)):
        labels[10 - radius : 10 + radius, 8 - radius : 8 + radius, 7 - radius + shift : 7 + radius + shift] = label
    return labels


@pytest.fixture
def world(tmp_path):
    """Three cases with four sequences, references, and predictions of two models with their results."""
    rng = np.random.default_rng(0)
    for case in ("a", "b", "c"):
        head = np.zeros((20, 24, 22), np.float32)
        head[2:-2, 2:-2, 2:-2] = rng.uniform(50, 100, (16, 20, 18))
        for channel in range(4):
            write_volume(tmp_path / "imagesTs" / f"{case}_{channel:04d}.nii.gz", head + channel)
        write_volume(tmp_path / "labelsTs" / f"{case}.nii.gz", tumour())
        for model, shift in (("one", 1), ("two", 2)):
            write_volume(tmp_path / model / f"{case}.nii.gz", tumour(shift))
    for model, lead in (("one", 0.05), ("two", 0.0)):
        dice = {"a": 0.9 + lead, "b": 0.5 + lead, "c": 0.7 + lead}
        save(tmp_path / f"{model}.json", results_of(dice, empty={"b": {"ET": "prediction"}}))
    return tmp_path


def options(world, **further):
    given = dict(
        reference=world / "labelsTs",
        predictions=[str(world / "one"), str(world / "two")],
        images=world / "imagesTs",
        processes=1,
    )
    return {**given, **further}


def test_the_best_mean_of_each_region_is_marked_low_for_distances_and_never_for_one_model():
    good, bad = results_of({"a": 0.9, "b": 0.8}), results_of({"a": 0.7, "b": 0.6})
    for metric in ("dice", "hd95"):
        summary = summarise_metric({"bad": bad, "good": good}, metric, REGIONS)
        assert [[cell.best for cell in cells] for _, cells in summary.rows] == [[False] * 3, [True] * 3]
    assert not any(cell.best for cell in summarise_metric({"good": good}, "dice", REGIONS).rows[0][1])


def test_a_summary_says_how_many_cases_have_a_score():
    (_, cells), *_ = summarise_metric({"m": results_of({"a": 0.9, "b": None, "c": 0.7})}, "dice", ("WT",)).rows
    assert cells[0].mean == "0.800" and cells[0].note == "2 of 3 cases"
    (_, cells), *_ = summarise_metric({"m": results_of({"a": None})}, "dice", ("WT",)).rows
    assert cells[0].mean == "–"


def test_cases_are_chosen_from_best_to_worst_by_the_mean_over_models_and_a_case_without_score_is_not():
    one = results_of({"a": 0.2, "b": 0.9, "c": 0.6, "d": None, "e": 0.5})["cases"]
    two = results_of({"a": 0.2, "b": 0.7, "c": 0.8, "d": None, "e": 0.1})["cases"]
    chosen = cases_to_draw({"one": one, "two": two}, "dice", REGIONS, 3)
    # means: a 0.2, b 0.8, c 0.7, e 0.3; the middle of four is the third by the round-half-even of 1.5
    assert [(c.case, c.label) for c in chosen] == [("b", "Best case"), ("e", "Median case"), ("a", "Worst case")]
    assert [c.case for c in cases_to_draw({"one": one}, "hd95", REGIONS, 99)] == ["b", "c", "e", "a"]
    assert [c.label for c in cases_to_draw({"one": {"a": one["a"]}}, "dice", REGIONS, 3)] == ["The case"]
    assert cases_to_draw({"one": {"d": one["d"]}}, "dice", REGIONS, 3) == []
    assert cases_to_draw({"one": one}, "dice", REGIONS, 0) == []


def test_rows_carry_remarks_on_empty_regions_and_null_for_no_score():
    found = case_table(
        {"m": results_of({"a": 0.91234, "b": None}, empty={"b": {"ET": "both"}})}, ["dice"], ("WT", "ET")
    )
    assert found["rows"] == [[0, "a", 0.912, 0.912, ""], [0, "b", None, None, "ET in neither"]]
    results = {"m": results_of({"a": 0.9, "b": 0.8}, empty={"a": {"ET": "both"}, "b": {"ET": "prediction"}})}
    assert count_empty(results, ("WT", "ET")) == [("m", "missed", [0, 1]), ("m", "in neither", [0, 1])]


def test_scales_put_their_ends_where_they_should_and_keep_all_values_inside():
    scale = linear_scale(np.array([0.43, 0.99]), 10, 310, top=1.0)
    assert scale(np.array(1.0)) == 310 and scale.low <= 0.43 and all(10 <= t.position <= 310 for t in scale.ticks)
    scale = log_scale(np.array([0.0, 374.0]), 10, 310)
    assert scale(np.array(0.0)) == 10 and 300 < scale(np.array(374.0)) < 310
    for values in ([0.9], [1.0, 1.0], [0.0], [-0.2, 0.4], []):
        assert np.isfinite(linear_scale(np.array(values), 0, 1, top=1.0)(np.array(values))).all()


def test_a_box_has_the_quartiles_and_its_whiskers_stop_before_outliers():
    scores = np.array([0.0, 0.7, 0.8, 0.9, 1.0])  # quartiles 0.7 and 0.9, so 0 lies beyond 0.7 - 1.5 * 0.2
    (plot,) = box_plots({"WT": {"m": scores, "nothing": np.array([])}}, "dice", 3)
    box, nothing = plot.boxes  # the axis runs from 0 to 1 over the pixels 10 to 310
    assert (box.q1, box.median, box.q3, box.low, box.high) == (220, 250, 280, 220, 310)
    assert box.dots.count("m") == 5 and nothing.dots == "" and "5 cases" in box.sentence


def test_long_curves_are_thinned_and_what_is_not_finite_is_left_out():
    x = np.arange(5000.0)
    chart = line_chart("t", "epoch", [("a", "f", x, np.where(x == 7, np.nan, x)), ("b", "g", x[:1], x[:1])])
    assert chart.lines[0].path.count("L") == MAX_POINTS - 1 and "nan" not in chart.lines[0].path
    assert chart.lines[1].path.endswith("h0")  # one epoch is a dot


def corners(path):
    """The points of every outline of an SVG path of `trace`, in half voxels (x, y)."""
    found = []
    for start, moves in re.findall(r"M(\d+ \d+)l([^z]*)z", path):
        steps = np.array(moves.split(), int).reshape(-1, 2)
        found.append(np.vstack([np.array(start.split(), int), steps]).cumsum(0))
    return found


def test_the_outline_of_one_voxel_is_a_diamond_around_its_centre():
    mask = np.zeros((3, 4), bool)
    mask[1, 2] = True  # centre at x 2.5, y 1.5: in half voxels 5 and 3
    (outline,) = corners(trace(mask))
    assert {tuple(point) for point in outline} == {(4, 3), (6, 3), (5, 2), (5, 4)}


def test_outlines_close_at_the_rim_keep_holes_and_merge_points_on_a_line():
    mask = np.ones((40, 40), bool)
    mask[10:20, 10:20] = False
    outlines = corners(trace(mask))
    assert len(outlines) == 2
    assert all(len(outline) == 8 for outline in outlines)  # a box with its corners cut, whatever its size
    assert min(o.min() for o in outlines) == 0 and max(o.max() for o in outlines) == 80
    assert trace(np.zeros((3, 3), bool)) == ""


def test_pictures_keep_the_proportions_in_mm_and_the_outline_lies_where_the_tumour_is(tmp_path):
    image = write_volume(tmp_path / "i.nii.gz", np.full((20, 24, 22), 9, np.int16), (1, 2, 3))
    reference = write_volume(tmp_path / "r.nii.gz", tumour(), (1, 2, 3))
    scheme = LABEL_SCHEMES["glioma_2017"]
    drawn = LabelFile(reference, {value: value for value in range(4)})
    files = CaseFiles("a", scheme.regions, {"FLAIR": image}, drawn, {"m": drawn})
    axial, coronal, sagittal = draw_case(files)
    # voxels (z 20, y 24, x 22) of 3, 2 and 1 mm
    assert [plane.size_mm for plane in (axial, coronal, sagittal)] == [(48, 22), (60, 22), (60, 48)]
    (outline,) = corners(axial.reference[0].path)
    # WT spans x 2 to 12 and y 3 to 13; in half voxels 4 to 24 and 6 to 26
    assert outline.min(0).tolist() == [4, 6] and outline.max(0).tolist() == [24, 26]
    (outline,) = corners(coronal.reference[0].path)
    # z 5 to 15 of 20, upside down: 5 to 15
    assert outline.min(0).tolist() == [4, 10] and outline.max(0).tolist() == [24, 30]
    picture = Image.open(io.BytesIO(base64.b64decode(axial.images["FLAIR"].partition(",")[2])))
    assert picture.size == (22, 24)


LOG = """
#### nnU-Net
2026-11-21 11:07:23.425546:
2026-11-21 11:07:23.425750: Epoch 0
2026-11-21 11:07:23.426259: Current learning rate: 0.01
2026-11-21 11:07:32.384848: train_loss, of which kl 7.0
2026-11-21 11:07:33.182159: train_loss -0.9812
2026-11-21 11:07:33.182396: val_loss nan
2026-11-21 11:07:33.182463: Pseudo dice [np.float32(0.1781), np.float32(1e-04), np.float64(1.0)]
2026-11-21 11:07:33.425750: Epoch 1
2026-11-21 11:07:43.182158: train_loss, of which task 1 0.25
2026-11-21 11:07:43.182158: train_loss, of which task 3 0.75
2026-11-21 11:07:43.182159: train_loss 0.5
2026-11-21 11:07:43.182463: Pseudo dice [0.25, nan, 0.0]
2026-11-21 11:07:43.425750: Epoch 2
"""


def test_a_log_gives_losses_and_dice_in_either_of_numpys_spellings_and_may_break_off():
    epochs = read_log(LOG)
    assert list(epochs) == [0, 1, 2]
    assert epochs[0].train_loss == -0.9812 and np.isnan(epochs[0].val_loss)
    assert epochs[0].terms == {"kl": 7.0} and epochs[1].terms == {"task 1": 0.25, "task 3": 0.75}
    assert epochs[0].pseudo_dice == [0.1781, 1e-4, 1.0]
    np.testing.assert_equal(epochs[1].pseudo_dice, [0.25, np.nan, 0.0])
    assert np.isnan(epochs[2].train_loss) and epochs[2].pseudo_dice == []


def test_a_resumed_training_replaces_the_epochs_that_it_repeats(tmp_path):
    def log(name, epochs, loss):
        lines = [f"2026-1-1 1:1:1.0: Epoch {e} \n2026-1-1 1:1:1.0: train_loss {loss} \n" for e in epochs]
        (tmp_path / f"training_log_{name}.txt").write_text("".join(lines))

    log("2026_9_30_10_00_00", range(5), 1)
    log("2026_10_1_10_00_00", range(3, 6), 2)  # later, although its name sorts first
    assert [epoch.train_loss for epoch in read_fold(tmp_path).values()] == [1, 1, 1, 2, 2, 2]


def model_folder(path):
    model = path / "SomeTrainer__nnUNetPlans__3d_lowres"
    for fold in ("fold_0", "fold_1"):
        (model / fold).mkdir(parents=True)
    (model / "fold_0" / "training_log_2026_1_1_1_1_1.txt").write_text(LOG)
    plans = {"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": {"patch_size": [8, 8, 8], "batch_size": 2}}}
    plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "batch_size": 4}
    save(model / "plans.json", plans)
    save(model / "dataset.json", {"labels": {"background": 0, "WT": [1, 2, 3], "TC": [2, 3], "ET": 3}})
    return model


def test_settings_of_a_model_include_what_its_configuration_inherits(tmp_path):
    model = read_model(model_folder(tmp_path))
    settings = dict(model.settings)
    assert settings["patch (voxels)"] == "8 × 8 × 8" and settings["batch"] == "4" and settings["folds"] == "0, 1"
    assert model.regions == REGIONS and model.trainer == "SomeTrainer"
    assert list(read_model(tmp_path / "SomeTrainer__nnUNetPlans__3d_lowres" / "fold_0").folds) == ["0"]
    with pytest.raises(ValueError, match="holds no fold"):
        read_model(tmp_path)


def test_every_term_of_a_loss_has_a_curve_which_begins_when_it_is_trained(tmp_path):
    losses, terms, _ = training_charts(read_model(model_folder(tmp_path)))
    assert [text for _, text in losses.legend] == ["training", "validation"]
    assert (terms.title, [text for _, text in terms.legend]) == (
        "Terms of the training loss",
        ["kl", "task 1", "task 3"],
    )
    assert [line.name for line in terms.lines] == ["fold 0"] * 3


def test_predictions_belong_to_models_by_name_or_by_order():
    assert match_predictions(["x", "y"], ["a", "b"]) == {"a": Path("x"), "b": Path("y")}
    assert match_predictions(["b=y"], ["a", "b"]) == {"b": Path("y")}
    for bad in (["x"], ["c=x"], ["a=x", "y"]):
        with pytest.raises(ValueError, match="predictions"):
            match_predictions(bad, ["a", "b"])


def test_images_are_found_as_nnunet_or_as_a_release_names_them(world):
    assert find_sequence_files(world / "imagesTs")["a"] == {
        "FLAIR": world / "imagesTs" / "a_0003.nii.gz",
        "T1ce": world / "imagesTs" / "a_0001.nii.gz",
    }
    # `convert --normalise` calls all channels noNorm, and notes beside what they show.
    described = {"channel_names": {str(i): "noNorm" for i in range(4)}, "file_ending": ".nii.gz"}
    save(world / "dataset.json", described | {"brats_sequences": ["T1", "T1ce", "T2", "FLAIR"]})
    assert list(find_sequence_files(world / "imagesTs")["a"]) == ["FLAIR", "T1ce"]
    four = ("T1ce", "T1", "T2", "FLAIR")
    assert tuple(find_sequence_files(world / "imagesTs", wanted=four)["a"]) == four
    with pytest.raises(ValueError, match=r"--sequences T1c: .* has T1, T1ce, T2, FLAIR; did you mean 'T1ce'\?"):
        find_sequence_files(world / "imagesTs", wanted=("T1c",))
    release = world / "MICCAI_BraTS2020_TrainingData"
    for kind in ("t1", "t1ce", "t2", "flair", "seg"):
        write_volume(release / "BraTS20_Training_001" / f"BraTS20_Training_001_{kind}.nii.gz", tumour())
    assert {path.name for path in find_sequence_files(release)["BraTS20_Training_001"].values()} == {
        "BraTS20_Training_001_flair.nii.gz",
        "BraTS20_Training_001_t1ce.nii.gz",
    }


class Page(HTMLParser):
    """Checks that every element is closed in its turn, and collects attributes and ids."""

    VOID = ("meta", "br", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.attributes = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.note(tag, attributes)

    def handle_startendtag(self, tag, attributes):
        self.note(tag, attributes)

    def note(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(path):
    text = path.read_text()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    wanted = [value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")]
    assert set(wanted) <= set(page.ids)
    return text, page


def test_a_page_has_all_its_parts_is_sound_html_and_asks_for_nothing_outside(world):
    given = options(world, models=[model_folder(world)], uncertainty=world / "uncertainty")
    for suffix in ("whole", "core", "enhance"):
        write_volume(world / "uncertainty" / f"b_unc_{suffix}.nii.gz", tumour() * np.uint8(30))
    curves = {name: [1.0] * 101 for name in ("dice", "filtered_tp", "filtered_tn")}
    scores = dict.fromkeys(("score", "dice_auc", "filtered_tp_auc", "filtered_tn_auc"), 0.5)
    summary = {region: {"scores": scores, "curves": curves} for region in REGIONS}
    save(world / "uncertainty" / "uncertainty.json", {"measure": "entropy", "members": ["x"], "summary": summary})
    notes = write_report([world / "one.json", world / "two.json"], world / "out" / "page.html", **given)
    assert notes[:-1] == [
        "a has no uncertainty map.",
        "c has no uncertainty map.",
        "SomeTrainer has no training log of fold 1.",
    ]
    assert "does not say which label maps the scores are about" in notes[-1]
    text, page = page_of(world / "out" / "page.html")
    for part in ("Best case: a", "Median case: c", "Worst case: b", "Ranking", "ET missed", "Pseudo Dice", "entropy"):
        assert part in text
    links = [value for _, name, value in page.attributes if name in ("href", "src")]
    assert all(value.startswith(("#", "data:image/webp;base64,")) for value in links)
    assert "://" not in text and "@import" not in text and "url(" not in text
    assert text.isascii()
    roles = [value for tag, name, value in page.attributes if tag == "svg" and name == "role"]
    labels = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    assert len(roles) == len(labels) and all(labels)
    assert [path.name for path in (world / "out").iterdir()] == ["page.html"]


def test_results_alone_make_a_page_that_says_what_it_lacks(world):
    notes = write_report([world / "one.json"], world / "page.html")
    assert notes == ["No cases are drawn: no images were given.", "No training curves: no model folders were given."]
    text, page = page_of(world / "page.html")
    assert all(note in text for note in notes) and "ranking" not in page.ids and "pictures" not in page.ids


def test_published_scores_of_a_trainers_paper_and_of_papers_asked_for_stand_beside_ours(world):
    results = {"mine": results_of({"a": 0.9, "b": 0.7})}
    tables = published_tables(results, REGIONS, ["BraTSDeepSupervisionCBAMTrainer", "SomeTrainer"], [])
    assert [table.title for table in tables] == [f"Henry et al. 2020, Table {i}" for i in (1, 2, 3)]
    assert tables[0].columns[:2] == ["WT Dice", "TC Dice"]
    assert "0.80585" in tables[0].rows[1].scores, "with the digits of the paper"
    for table in tables:
        ours, *others = table.rows
        assert (ours.system, ours.data, float(ours.scores[0]), ours.ours) == ("mine", "2 cases", 0.8, True)
        assert others and not any(row.ours for row in others), "no prediction is called as in the recipe"
    assert "U-Net" not in [row.system for row in tables[2].rows], "it is another trainer's"
    by_key = published_tables(results, REGIONS, [], ["henry2020", "lyu2020"])
    assert {table.title.partition(",")[0] for table in by_key} == {"Henry et al. 2020", "Lyu & Shu 2020"}
    assert published_tables(results, ("RC",), [], ["henry2020"]) == []
    assert published_tables(results, REGIONS, ["SomeTrainer"], []) == []
    write_report([world / "one.json"], world / "page.html", paper=["lyu2020"])
    text, page = page_of(world / "page.html")
    assert "published" in page.ids and "other splits" in text
    with pytest.raises(ValueError, match="--paper lyu: expected one of"):
        write_report([world / "one.json"], world / "page.html", paper=["lyu"])


def test_below_a_published_row_stands_the_prediction_of_its_name_by_the_same_statistics(world):
    of_folds = results_of({"a": 0.9, "b": 0.7, "c": 0.6}) | {"folds": {"a": "0", "b": "0", "c": "1"}}
    results = {"henry2020.a_unet": of_folds, "final": of_folds}
    (table,) = [one for one in published_tables(results, ("WT",), [], ["henry2020"]) if one.title.endswith("Table 3")]
    published, ours = table.rows[:2]
    assert (published.system, published.scores) == ("U-Net", ["0.9070 (0.0060)"])
    assert (ours.system, ours.data, ours.scores) == ("henry2020.a_unet", "3 cases, over 2 folds", ["0.7000 (0.1414)"])
    assert [row.ours for row in table.rows] == [False, True, False, False]
    every = published_tables({"omnet": of_folds, "cga_minus": of_folds}, ("WT",), [], ["zhou2020"])
    rows = {row.system: row.weights for row in every[0].rows if row.ours}
    assert rows == {"omnet": "13.879", "cga_minus": "13.824"}
    assert {row.weights for row in every[0].rows if not row.ours} == {""}, "the paper counts fewer of them"
    write_report([world / "one.json"], world / "page.html", names=["mc3"], paper=["zhou2020"])
    assert "M weights" in (text := page_of(world / "page.html")[0]) and "41.470" in text

    models = {name: results_of({"a": value, "b": value}) for name, value in (("57", 0.9), ("66", 0.8), ("67", 0.7))}
    spreads = {"stage2_each": models}
    tables = published_tables(results, ("ET", "WT"), [], ["lyu2020"], spreads)
    (table,) = [one for one in tables if one.title.endswith("Table 2")]
    assert [row.scores[table.columns.index("WT Dice")] for row in table.rows] == [
        "SD 0.0013; 0.8940 to 0.8990", "SD 0.0012; 0.8980 to 0.9020", "SD 0.1000; 0.7000 to 0.9000"
    ]  # fmt: skip
    assert table.rows[-1].data == "2 cases, over 3 models"
    (world / "each.json").write_text(json.dumps({"models": models}))
    write_report(
        [world / "one.json"], world / "page.html", paper=["lyu2020"], spreads=[f"stage2_each={world}/each.json"]
    )
    assert "over 3 models" in page_of(world / "page.html")[0]
    with pytest.raises(ValueError, match=r"--spreads each\.json: expected NAME=RESULTS"):
        write_report([world / "one.json"], world / "page.html", spreads=["each.json"])


def test_what_is_missing_of_a_case_is_noted_and_the_rest_drawn(world):
    (world / "labelsTs" / "a.nii.gz").unlink()
    (world / "one" / "a.nii.gz").unlink()
    (world / "imagesTs" / "b_0003.nii.gz").unlink()
    for path in (world / "imagesTs").glob("c_*"):
        path.unlink()
    notes = write_report([world / "one.json", world / "two.json"], world / "page.html", **options(world))
    assert notes[:3] == [
        "a has no prediction of one.",
        "a has no reference.",
        f"c is not drawn: {world / 'imagesTs'} has no images of it.",
    ]
    text, _ = page_of(world / "page.html")
    assert "a, FLAIR, axial: outlines of the reference and of two" in text
    assert "b, FLAIR" not in text and "b, T1ce, axial: outlines of the reference and of one" in text


def test_models_over_different_cases_are_shown_but_not_ranked(world):
    save(world / "two.json", results_of({"a": 0.9, "z": 0.1}))
    notes = write_report([world / "one.json", world / "two.json"], world / "page.html")
    assert any(one.startswith("There is no ranking: entries are ranked over the same cases") for one in notes)


def test_names_that_look_like_html_are_shown_as_they_are(world):
    evil = '<script>alert("1")</script>'
    save(world / "two.json", results_of({evil: 0.9}))
    write_report([world / "two.json"], world / "page.html", names=[evil], title=evil)
    text, _ = page_of(world / "page.html")
    assert "<script>alert" not in text and text.count("</script>") == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(metric="nsd"), "no metric 'nsd' in these results; there are dice, hd95, sensitivity"),
        (dict(region="RC"), "no region 'RC'"),
        (dict(names=["x", "x"]), "--names x x: x is given twice"),
        (dict(images=Path("nowhere")), "nowhere is no folder of images"),
        (dict(models=[Path("nowhere")]), "is no folder of a trained model"),
        (dict(uncertainty=Path("nowhere")), "nowhere is no folder"),
    ],
)
def test_what_cannot_be_used_is_named(world, given, message):
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        write_report([world / "one.json", world / "two.json"], world / "page.html", **options(world, **given))
    assert not (world / "page.html").exists()


def test_label_maps_on_another_grid_or_with_unknown_labels_leave_an_older_page_as_it_was(world):
    sources, page = [world / "one.json", world / "two.json"], world / "page.html"
    page.write_text("older")
    write_volume(world / "one" / "a.nii.gz", tumour(), (1, 1, 2))
    write_volume(world / "two" / "b.nii.gz", tumour() + np.uint8(6))
    with pytest.raises(
        ValueError, match=r"a: .*differ in spacing_mm(.|\n)*b: .*labels \[.*9.0\] are not among(.|\n)*evaluate --labels"
    ):
        write_report(sources, page, **options(world))
    assert page.read_text() == "older"


def test_what_is_no_results_json_is_refused(world):
    with pytest.raises(ValueError, match=r"takes the results\.json"):
        write_report([world], world / "page.html")
    save(world / "bad.json", {"cases": results_of({"a": 0.9})["cases"]})
    with pytest.raises(ValueError, match=r"bad\.json lacks 'preset'"):
        write_report([world / "bad.json"], world / "page.html")


def test_a_thousand_cases_of_four_models_stay_below_a_megabyte(tmp_path):
    rng = np.random.default_rng(0)
    sources = [
        save(tmp_path / f"m{i}.json", results_of({f"BraTS2021_{c:05d}": d for c, d in enumerate(rng.beta(9, 1, 1000))}))
        for i in range(4)
    ]
    write_report(sources, tmp_path / "page.html")
    assert 100_000 < (tmp_path / "page.html").stat().st_size < 1_000_000


def test_the_command_writes_the_page_and_prints_its_notes(world, capsys):
    page = world / "page.html"
    assert main(["report", str(world / "one.json"), "-o", str(page), "--names", "mine", "--title", "T"]) == 0
    assert "no images were given" in capsys.readouterr().out
    text, _ = page_of(page)
    assert "<h1>T</h1>" in text and "mine" in text
    assert main(["report", str(world / "none.json"), "-o", str(page)]) == 1


class Browser:
    """A headless Chromium over the WebDriver protocol, with the screen of a phone or a desk."""

    def __init__(self, width, dark=False):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
        self.url = f"http://127.0.0.1:{port}"
        for _ in range(100):
            try:
                self.call("GET", "/status")
                break
            except OSError:
                time.sleep(0.1)
        asked = {
            "goog:chromeOptions": {
                "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
            },
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        self.url += "/session/" + self.call("POST", "/session", {"capabilities": {"alwaysMatch": asked}})["sessionId"]
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def devtools(self, command, **parameters):
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def run(self, script):
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def open(self, path):
        self.call("POST", "/url", {"url": path.resolve().as_uri()})

    def messages(self):
        return self.call("POST", "/se/log", {"type": "browser"})

    def screenshot(self):
        content = self.devtools("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("L"))

    def close(self):
        try:
            self.call("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait()


@pytest.mark.skipif(not shutil.which("chromedriver"), reason="needs Chromium and its driver")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)], ids=["desk", "phone"])
def test_in_a_browser_the_page_fits_works_and_logs_no_error(world, width, dark):
    write_report(
        [world / "one.json", world / "two.json"], world / "page.html", **options(world, models=[model_folder(world)])
    )
    browser = Browser(width, dark)
    try:
        browser.open(world / "page.html")
        assert browser.run("return document.documentElement.scrollWidth") <= width
        assert browser.run("return document.querySelectorAll('#table tbody tr').length") == 6
        column = "return [...document.querySelectorAll('#table tbody td:nth-child(3)')].map(td => td.textContent)"
        browser.run("document.querySelectorAll('#table thead button')[2].click()")
        assert browser.run(column) == ["0.500", "0.550", "0.700", "0.750", "0.900", "0.950"]
        browser.run("document.querySelectorAll('#table thead button')[2].click()")
        assert browser.run(column)[0] == "0.950"
        browser.run(
            "const f = document.getElementById('find'); f.value = 'missed'; f.dispatchEvent(new Event('input'))"
        )
        assert browser.run(column) == ["0.550", "0.500"]
        # the picture: images are there, and hiding all layers changes what is seen
        drawn = "return document.querySelector('.picture use').getBoundingClientRect().width"
        assert browser.run(drawn) > 40
        browser.run("document.querySelector('.picture').scrollIntoView({behavior: 'instant'})")
        before = browser.screenshot()
        browser.run("document.querySelectorAll('[data-layer]').forEach(box => box.click())")
        assert (browser.screenshot() != before).any()
        browser.run("document.querySelector('.picture').click()")
        assert browser.run("return document.getElementById('large').open")
        background = np.median(before)
        assert background < 80 if dark else background > 200
        assert browser.messages() == []
    finally:
        browser.close()


@pytest.mark.skipif(not REAL_CASE.is_dir(), reason="needs the real case")
def test_five_algorithms_on_a_real_case_make_a_light_page_with_pictures(tmp_path):
    release = REAL_CASE / "MICCAI_BraTS2020_TrainingData"
    case = "BraTS20_Training_901"
    sources, folders = [], []
    for candidate in sorted((REAL_CASE / "candidates").glob("*.nii.gz")):
        folder = tmp_path / candidate.name.removesuffix(".nii.gz")
        folder.mkdir()
        shutil.copy(candidate, folder / f"{case}.nii.gz")
        folders.append(str(folder))
        sources.append(save(tmp_path / f"{folder.name}.json", results_of({case: 0.9}, labels="released")))
    given = dict(reference=release, predictions=folders, images=release, processes=1)
    notes = write_report(sources, tmp_path / "page.html", **given)
    assert notes[:-1] == ["No training curves: no model folders were given."]
    text, _ = page_of(tmp_path / "page.html")
    assert text.count('class="picture"') == 5 * 6 + 5, "and one of each model in the overview"
    assert text.count("data:image") == 6
    assert len(text) < 300_000
