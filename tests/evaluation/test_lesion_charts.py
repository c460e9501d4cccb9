"""Charts of lesions in a report: what lies where, and where the rows come from."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from label_maps import make_pair

from nnunet_brats_ext.cli import main
from nnunet_brats_ext.evaluation.report.lesion_charts import Lesion, dice_chart, found_chart, read_lesions
from nnunet_brats_ext.evaluation.report.shapes import Dots, Stroke

LESIONS = [Lesion(5, False, 0.0), Lesion(8, True, 0.4), Lesion(200, True, 0.9), Lesion(2000, True, 0.95)]


def test_larger_lesions_lie_to_the_right_and_better_ones_above():
    chart = dice_chart("ET", {"m": LESIONS})
    (dots,) = [shape for shape in chart.shapes if isinstance(shape, Dots)]
    across, down = np.array(dots.points).T
    assert (np.diff(across) > 0).all() and (np.diff(down) < 0).all()
    assert (chart.legend, dots.sentence) == ([(0, "m")], "m: 4 lesions")


def test_shares_are_of_lesions_of_about_one_size():
    chart = found_chart("ET", {"a": LESIONS, "b": LESIONS[2:]})
    dots = [shape for shape in chart.shapes if isinstance(shape, Dots)]
    assert [one.sentence for one in dots] == [
        "a, from 0 to 10 mm³: 1 of 2 found",
        "a, from 100 to 300 mm³: 1 of 1 found",
        "a, from 1000 to 3000 mm³: 1 of 1 found",
        "b, from 100 to 300 mm³: 1 of 1 found",
        "b, from 1000 to 3000 mm³: 1 of 1 found",
    ]
    top, bottom = dots[1].points[0][1], found_chart("ET", {"a": LESIONS[:1]}).shapes[-1].points[0][1]
    assert dots[0].points[0][1] == pytest.approx((top + bottom) / 2)  # a half of them
    assert dots[0].diameter > dots[1].diameter
    lines = [shape for shape in chart.shapes if isinstance(shape, Stroke) and "line" in shape.css]
    assert [line.points for line in lines] == [[one.points[0] for one in dots[:3]], [one.points[0] for one in dots[3:]]]


def test_a_report_draws_the_lesions_of_every_model_that_has_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, labels in zip(("truth", "a"), make_pair("resected_2024"), strict=True):
        for name in (folder, "b") if folder == "truth" else (folder,):
            (tmp_path / name).mkdir()
            sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / name / "case.nii.gz"))
    score = ["--preset", "brats2026", "--cohort", "met", "--labels", "trained", "-np", "1", "-o"]
    assert main(["evaluate", "truth", "a", "b", *score, "both.json"]) == 0
    assert main(["evaluate", "truth", "b", *score, "alone.json"]) == 0
    assert main(["evaluate", "truth", "a", *score, "bare.json", "--no-lesions"]) == 0
    paths = [tmp_path / name for name in ("both.json", "alone.json", "bare.json")]
    found = read_lesions(paths, ["first", "second", "third", "fourth"])
    assert list(found) == ["first", "second", "third"]
    assert found["second"] == found["third"] != found["first"]
    assert {one.dice for one in found["third"]["WT"]} == {1}
    rows = json.loads((tmp_path / "alone_lesions.json").read_text())
    assert len(found["third"]["ET"]) == sum(row["region"] == "ET" and row["lesion"] is not None for row in rows)
    assert main(["report", "both.json", "-o", "page.html", "--cases", "0", "-np", "1"]) == 0
    assert "Size of lesions against being found" in (tmp_path / "page.html").read_text()
    rows[0]["dice"] = "good"
    (tmp_path / "alone_lesions.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r'alone_lesions.json: 0\["dice"\] is "good"; expected a number'):
        read_lesions(paths[1:2], ["one"])
