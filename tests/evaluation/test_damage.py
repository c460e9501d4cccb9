"""Damaged files over every command that reads them: an error that names file and entry, and nothing is written."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_brats_ext.brats import ED, ET, LABEL_SCHEMES, NCR
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.evaluation.results import summarise_scores

CASES = ("a", "b")


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """References, predictions in two folds, images, and results of two models, in the current folder."""
    labels = np.random.default_rng(0).choice(np.uint8([0, 0, ED, NCR, ET]), (2, 20, 24, 22))
    for case, one in zip(CASES, labels, strict=True):
        for name in ("references", "predictions"):
            write(tmp_path / name / f"{case}.nii.gz", one)
        for channel in range(4):
            write(tmp_path / "images" / f"{case}_{channel:04d}.nii.gz", one + np.int16(channel))
    dataset = {"labels": LABEL_SCHEMES["glioma_2017"].nnunet_labels()}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    splits = [{"train": [CASES[1 - i]], "val": [CASES[i]]} for i in range(2)]
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text(json.dumps(results()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results():
    scores = {"dice": 0.9, "hd95": 1.5, "n_fp": 2}
    cases = {case: {region: dict(scores) for region in ("WT", "TC", "ET")} for case in CASES}
    content = {"preset": "brats2020", "cohort": "gli", "labels": "trained", "cases": cases, "empty": {}}
    return {**content, "summary": summarise_scores(cases)}


READ_LABEL_MAPS = {
    "evaluate": "evaluate references predictions -o out/out.json -np 1",
    "rank": "rank predictions references --reference references --labels trained -o out/out.json -np 1",
    "tune": "tune references predictions --splits splits.json -o out/out.json -np 1",
    "report": "report one.json two.json --reference references --predictions predictions predictions "
    "--images images -o out/out.html -np 1",
}
READ_RESULTS = {
    "rank": "rank one.json two.json -o out/out.json -np 1",
    "report": "report one.json two.json -o out/out.html -np 1",
}


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def shorten_inside(path):
    """A sound gzip file with half the voxels."""
    import gzip

    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:5000]))


DAMAGE = {
    "cut to 99 %": lambda path: cut(path, 0.99),
    "cut to 60 %": lambda path: cut(path, 0.6),
    "empty": lambda path: path.write_bytes(b""),
    "one byte changed": flip_a_byte,
    "half the voxels": shorten_inside,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    ("verb", "place"),
    [*itertools.product(READ_LABEL_MAPS, ["references", "predictions"]), ("report", "images")],
)
def test_a_damaged_image_is_named_and_nothing_is_written(verb, damage, place, folder, capsys):
    path = folder / place / ("b_0003.nii.gz" if place == "images" else "b.nii.gz")
    DAMAGE[damage](path)
    assert main(READ_LABEL_MAPS[verb].split()) == 1
    assert path.name in capsys.readouterr().err
    assert not list(folder.glob("out/*"))


def test_what_is_not_damaged_is_written(folder):
    for command in (*READ_LABEL_MAPS.values(), *READ_RESULTS.values()):
        assert main(command.split()) == 0


DAMAGED_RESULTS = {
    "no JSON": ("{", "one.json is not JSON"),
    "a list": ([], "one.json should hold an object"),
    "no cases": (lambda r: r.update(cases={}), "one.json holds no cases"),
    "cases in a list": (lambda r: r.update(cases=[1, 2]), "one.json: cases is [1, 2]; expected an object"),
    "a case in a list": (lambda r: r["cases"].update(b=[]), 'one.json: cases["b"] is []; expected an object'),
    "no region": (
        lambda r: r["cases"]["b"].pop("WT"),
        'one.json: cases["b"] has TC, ET, but the first case WT, TC, ET',
    ),
    "no metric": (lambda r: r["cases"]["b"]["TC"].pop("hd95"), 'one.json: cases["b"]["TC"] has dice, n_fp, but the'),
    "text": (lambda r: r["cases"]["a"]["WT"].update(dice="0.9"), '["WT"]["dice"] is "0.9"; expected a number'),
    "a Dice of 5": (lambda r: r["cases"]["a"]["ET"].update(dice=5), '["dice"] is 5; expected a number from 0 to 1'),
    "a distance below 0": (lambda r: r["cases"]["a"]["ET"].update(hd95=-1), '["hd95"] is -1; expected a number from 0'),
    "no finite number": (lambda r: r["cases"]["a"]["ET"].update(hd95=float("inf")), "Infinity; expected a number"),
    "no preset": (lambda r: r.pop("preset"), "one.json lacks 'preset'"),
    "a preset of another kind": (lambda r: r.update(preset=2020), "one.json: preset is 2020; expected a text"),
    "empty regions of another kind": (lambda r: r.update(empty={"a": ["ET"]}), 'empty["a"] is ["ET"]; expected an obj'),
}


@pytest.mark.parametrize("damage", DAMAGED_RESULTS)
@pytest.mark.parametrize("verb", READ_RESULTS)
def test_a_damaged_results_json_is_quoted_with_its_entry(verb, damage, folder, capsys):
    change, message = DAMAGED_RESULTS[damage]
    content = results()
    if callable(change):
        change(content)
    else:
        content = change
    (folder / "one.json").write_text(content if isinstance(content, str) else json.dumps(content))
    assert main(READ_RESULTS[verb].split()) == 1
    assert message in capsys.readouterr().err
    assert not list(folder.glob("out/*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda u: u.pop("summary"), "uncertainty.json lacks 'summary'"),
        (lambda u: u["summary"]["WT"].pop("curves"), "summary[\"WT\"] lacks 'curves'"),
        (lambda u: u["summary"]["WT"]["curves"].update(dice=[1.0]), '["dice"] is [1.0]; expected 101 numbers'),
        (lambda u: u["summary"]["WT"]["scores"].update(score="good"), '["score"] is "good"; expected a number'),
        (lambda u: u.update(members="x"), 'members is "x"; expected a list'),
    ],
)
def test_a_damaged_uncertainty_json_is_quoted_with_its_entry(change, message, folder, capsys):
    curves = {name: [1.0] * 101 for name in ("dice", "filtered_tp", "filtered_tn")}
    scores = dict.fromkeys(("score", "dice_auc", "filtered_tp_auc", "filtered_tn_auc"), 0.5)
    content = {"measure": "entropy", "members": ["x"], "summary": {"WT": {"scores": scores, "curves": curves}}}
    change(content)
    (folder / "uncertainty").mkdir()
    (folder / "uncertainty" / "uncertainty.json").write_text(json.dumps(content))
    assert main([*READ_RESULTS["report"].split(), "--uncertainty", "uncertainty"]) == 1
    assert message in capsys.readouterr().err
    assert not list(folder.glob("out/*"))


@pytest.mark.parametrize("file", ["plans.json", "dataset.json"])
def test_damaged_settings_of_a_model_are_quoted(file, folder, capsys):
    model = folder / "Trainer__Plans__3d_fullres"
    (model / "fold_0").mkdir(parents=True)
    bad = {"plans.json": {"configurations": [1]}, "dataset.json": {"labels": ["WT"]}}[file]
    (model / file).write_text(json.dumps(bad))
    assert main([*READ_RESULTS["report"].split(), "--models", str(model)]) == 1
    assert file in (said := capsys.readouterr().err) and "expected" in said


@pytest.mark.parametrize("verb", READ_LABEL_MAPS)
def test_an_output_that_is_a_folder_is_refused_before_any_work(verb, folder, capsys):
    command = READ_LABEL_MAPS[verb].split()
    out = Path(command[command.index("-o") + 1])
    out.mkdir(parents=True)
    (folder / "references" / "b.nii.gz").unlink()  # work would end in another error
    assert main(command) == 1
    assert f"-o {out} is a folder" in capsys.readouterr().err


@pytest.mark.parametrize(("verb", "table"), [("evaluate", "out.csv"), ("rank", "out_p_values.csv")])
def test_results_and_tables_are_written_together_or_not_at_all(verb, table, folder, capsys):
    (folder / "out" / table).mkdir(parents=True)  # so that one of the files cannot be written
    assert main(READ_LABEL_MAPS[verb].split()) == 1
    assert table in capsys.readouterr().err
    assert [path.name for path in (folder / "out").iterdir()] == [table]
