"""Commands that make data sets: what is refused at once with the option quoted, and the functions behind them."""

import json

import pytest
import SimpleITK as sitk
from release_folders import write_case

from nnunet_brats_ext import dataset_conversion
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS
from nnunet_brats_ext.storage.errors import UserError

RELEASE = LAYOUTS["BraTS2020"]
CASES = ("BraTS20_Training_001", "BraTS20_Training_002", "BraTS20_Training_003")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """nnU-Net's folders, and three cases of a release; the working directory is above all of them."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    for case in CASES:
        write_case(tmp_path / "source", RELEASE, case)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snapshot(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


OUT_OF_RANGE = [
    ("convert source -d 0", "-d 0: expected at least 1 and at most 999"),
    ("convert source -d 1000", "-d 1000: expected at least 1 and at most 999"),
    ("convert source -d 137 --folds 0", "--folds 0: expected at least 2"),
    ("convert source -d 137 --folds 1", "--folds 1: expected at least 2"),
    ("convert source -d 137 -np 0", "-np 0: expected at least 1"),
    ("convert source -d 137 --tolerance nan", "--tolerance nan: expected at least 0 and at most 100"),
    ("convert source -d 137 --tolerance -1", "--tolerance -1.0: expected at least 0"),
    ("convert source -d 137 --same-patients-as 0", "--same-patients-as 0: expected at least 1"),
    ("restore source -o out -d 0", "-d 0: expected at least 1"),
    ("restore source -o out -np 0", "-np 0: expected at least 1"),
    ("phantom out --cases 0", "--cases 0: expected at least 1"),
    ("phantom out --unlabelled -1", "--unlabelled -1: expected at least 0"),
    ("phantom out --contrast nan", "--contrast nan: expected more than 0 and less than 10"),
    ("phantom out --size 40 40 8", "--size 8: expected at least 32"),
    ("phantom out --seed -1", "--seed -1: expected at least 0"),
    ("phantom out -np 0", "-np 0: expected at least 1"),
    ("phantom out --processes 0", "-np 0: expected at least 1"),
    ("distill -d 0 --labelled 137", "-d 0: expected at least 1"),
    ("distill -d 138 --labelled 0", "--labelled 0: expected at least 1"),
    ("distill -d 138 --labelled 137 --foreign 1 --foreign 1000", "--foreign 1000: expected at least 1 and at most 999"),
    ("distill -d 138 --labelled 137 --folds 1", "--folds 1: expected at least 2"),
    ("distill -d 138 --labelled 137 --similarity nan", "--similarity nan: expected at least 0 and at most 1"),
    ("distill -d 138 --labelled 137 --min-confidence 7", "--min-confidence 7.0: expected at least 0 and at most 1"),
    ("filter-cases 0 -tr T -c 2d", "ID 0: expected at least 1 and at most 999"),
    ("filter-cases 137 -tr T -c 2d --last-epochs 0", "--last-epochs 0: expected at least 1"),
]


@pytest.mark.parametrize(("words", "message"), OUT_OF_RANGE, ids=[words for words, _ in OUT_OF_RANGE])
def test_what_is_out_of_range_is_refused_before_anything_is_read(world, capsys, words, message):
    before = snapshot(world)
    assert main(words.split()) == 1
    assert message in capsys.readouterr().err
    assert snapshot(world) == before


PLACES = [
    ("convert gone -d 137", "gone does not exist"),
    ("convert file -d 137", "file is not a folder; unpack it first"),
    ("convert source -d 137 -o file", "-o file is a file; choose a folder"),
    ("convert source -d 137 --overlay gone", "gone does not exist"),
    ("convert source -d 137 --name-mapping gone.csv", "--name-mapping gone.csv: no such file"),
    ("convert source -d 137 --release BraTS1999", "no release is called 'BraTS1999'; known are BraTS2012"),
    ("convert source -d 137 --same-patients-as 5", "no data set 5 in"),
    ("restore gone -o out -d 136", "gone does not exist"),
    ("restore file -o out -d 136", "file is no folder"),
    ("restore source -o file -d 136", "-o file is a file; choose a folder"),
    ("restore source -o out", "no .nii.gz file in source"),
    ("phantom file", "OUT file is a file; choose a folder"),
    ("phantom out --references file --unlabelled 1", "--references file is a file; choose a folder"),
    ("phantom out --references out/labels --unlabelled 1", "--references out/labels is inside"),
    ("phantom source", "holds no phantoms (phantoms.json is missing): choose another folder"),
    ("distill -d 138 --labelled 137", "nothing to distill: name predictions with --pseudo"),
    ("distill -d 138 --labelled 137 --foreign 3", "no data set 137 in"),
]


@pytest.mark.parametrize(("words", "message"), PLACES, ids=[words for words, _ in PLACES])
def test_a_place_that_cannot_be_is_named_and_nothing_is_written(world, capsys, words, message):
    before = snapshot(world)
    assert main([*words.split(), "--anatomy", "procedural"][: None if "phantom" in words else -2]) == 1
    error = capsys.readouterr().err
    assert message in error and "Errno" not in error and len(error.splitlines()) == 1
    assert snapshot(world) == before


MANIFESTS = {
    "no cases": '{"release": "BraTS2020"}',
    "cases of another form": '{"release": "BraTS2020", "cases": ["a"]}',
    "a case of another form": '{"release": "BraTS2020", "cases": {"BraTS20_Training_001": {}}}',
    "no json": "{",
    "a list": "[]",
}


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_manifest_that_was_changed_is_named(world, capsys, manifest):
    folder = dataset_conversion.convert("source", 137, folds=2, processes=1).folder
    path = folder / "manifest.json"
    path.write_text(MANIFESTS[manifest])
    for words in (
        ["restore", str(folder / "labelsTr"), "-o", "out", "-d", "137"],
        ["convert", "source", "-d", "138", "--same-patients-as", "137"],
        ["distill", "-d", "138", "--labelled", "137", "--foreign", "137"],
    ):
        assert main(words) == 1
        assert str(path) in capsys.readouterr().err
    assert main(["convert", "source", "-d", "137"]) == 1
    assert "is another data set, or lacks files; --overwrite replaces it" in capsys.readouterr().err
    assert not (world / "out").exists()


def test_functions_take_text_print_nothing_and_give_what_was_made(world, capsys):
    done = dataset_conversion.convert("source", 137, folds=3, processes=1)
    assert (done.folder, done.unchanged, done.layouts[0].name) == (
        world / "raw" / "Dataset137_BraTS2020",
        False,
        "BraTS2020",
    )
    assert (done.folds.number, done.folds.wanted, done.folds.others_kept) == (3, 3, False)
    assert done.folds.place == world / "preprocessed" / done.folder.name / "splits_final.json"
    assert list(done.manifest["cases"]) == list(CASES)
    assert dataset_conversion.convert("source", 137, folds=3, processes=1).unchanged
    submission = dataset_conversion.restore(str(done.folder / "labelsTr"), "out", dataset_id=137, processes=1)
    assert [path.name for path in submission.files] == [f"{case}.nii.gz" for case in CASES]
    assert submission.unpredicted == []
    for path, case in zip(submission.files, CASES, strict=True):
        released = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        source = sitk.GetArrayFromImage(sitk.ReadImage(str("source" / RELEASE.path(case, LABEL))))
        assert (released == source).all()
    rows = dataset_conversion.write_phantoms("phantoms", cases=1, shape=(32, 32, 32), anatomy="procedural", processes=1)
    assert [row["case"] for row in rows] == ["BraTS20_Training_001"]
    assert json.loads((world / "phantoms" / "phantoms.json").read_text())["cases"] == rows
    assert capsys.readouterr() == ("", "")


def test_names_of_the_package_are_functions_and_others_are_errors():
    for name in dataset_conversion.__all__:
        assert callable(getattr(dataset_conversion, name))
    with pytest.raises(AttributeError, match="no attribute 'konvert'"):
        dataset_conversion.konvert  # noqa: B018
    with pytest.raises(TypeError, match="unexpected keyword argument 'fold'"):
        dataset_conversion.convert("source", 137, fold=5)
    with pytest.raises(UserError, match="--link lazy: expected one of auto, hard, symbolic, copy"):
        dataset_conversion.convert("source", 137, link="lazy")
