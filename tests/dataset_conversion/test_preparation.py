"""`prepare`: what it asks of brainles-preprocessing, what it writes, and how results come back.

Where the package is not installed, a stand-in with its signatures registers nothing; the tests of real registration
are skipped then.
"""

import importlib
import inspect
import json
import shutil
import sys
from pathlib import Path

import fake_brainles
import numpy as np
import pytest
from data_commands import convert, manifest_of, printed
from scipy import ndimage

from nnunet_brats_ext.cli import data
from nnunet_brats_ext.dataset_conversion import brainles, prepare
from nnunet_brats_ext.dataset_conversion.preparation import PrepareOptions
from nnunet_brats_ext.dataset_conversion.sources import find_source
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import Grid, read_image, write_image

SHAPE = (20, 24, 22)
ATLAS = Grid(SHAPE[::-1], (1.0, 1.0, 1.0), (0.0, -23.0, 0.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
RAW = Grid((11, 12, 20), (2.0, 2.0, 1.0), (0.0, -22.0, 0.0), ATLAS.direction)
STRIPPED = dict(brain_extraction="none", device="cpu")


def brain(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    axes = np.meshgrid(*(np.linspace(-1.3, 1.3, n) for n in shape), indexing="ij")
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5)
    return np.where(sum(axis**2 for axis in axes) < 1, 500 + 2000 * texture, 0).clip(0).astype(np.int16)


@pytest.fixture
def stand_in(monkeypatch, tmp_path) -> Path:
    """The stand-in for the package, and an atlas for it; the file of the atlas."""
    fake_brainles.install(monkeypatch)
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / f"nnUNet_{name}").mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / f"nnUNet_{name}"))
    write_image(tmp_path / "atlas.nii.gz", brain(0, SHAPE), ATLAS)
    return tmp_path / "atlas.nii.gz"


@pytest.fixture
def scans(tmp_path) -> Path:
    """Two time points of a patient, in voxels of 2 x 2 x 1 mm, FLAIR in other axes; a label on the grid of T1ce."""
    for number in (1, 2):
        folder = tmp_path / "scans" / "P1" / f"tp{number}"
        folder.mkdir(parents=True)
        for seed, name in enumerate(("t1", "t1c", "t2", "flair")):
            write_image(folder / f"{name}.nii.gz", brain(seed, RAW.shape), RAW)
        flair = read_image(folder / "flair.nii.gz").turned("SAL")
        write_image(folder / "flair.nii.gz", flair.array, flair.grid)
        write_image(folder / "seg.nii.gz", labels(), RAW)
    (tmp_path / "own.toml").write_text(
        'name = "Own"\ncase = "{patient}_{session}"\nscheme = "glioma_2023"\n[groups]\nsession = \'tp\\d\'\n[files]\n'
        + "\n".join(f'{role} = "{{patient}}/{{session}}/{name}"' for role, name in {
            "T1ce": "t1c", "T1": "t1", "T2": "t2", "FLAIR": "flair", "label": "seg",
        }.items())
    )  # fmt: skip
    return tmp_path / "scans"


def labels() -> np.ndarray:
    array = np.zeros(RAW.shape, np.uint8)
    array[8:12, 5:8, 5:8] = 2
    array[9:11, 6:7, 5:7] = 3
    return array


def prepared(scans: Path, atlas: Path, **options) -> Path:
    out = scans.with_name("prepared")
    prepare(scans, out, **{"atlas": str(atlas), "layout": scans.with_name("own.toml"), **STRIPPED, **options})
    return out


def test_without_the_package_one_sentence_says_how_to_install_it(scans, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "brainles_preprocessing", None)
    for options in ({}, {"back": scans}):
        with pytest.raises(UserError, match=r"pip install 'nnunet-brats-ext\[prepare\]'"):
            prepare(scans, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_convert_takes_what_was_prepared_with_patients_labels_and_their_numbering(stand_in, scans, capsys):
    out = prepared(scans, stand_in)
    assert "Thank you" not in capsys.readouterr().out
    source = find_source(out)
    assert source.unrecognised == [] and not any(case.problems for case in source.cases)
    dataset = convert(out, 7, name="Own")
    cases = manifest_of(dataset)["cases"]
    assert {name: case["patient"] for name, case in cases.items()} == {"P1_tp1": "P1", "P1_tp2": "P1"}
    images = [read_image(path) for path in sorted((dataset / "imagesTr").glob("P1_tp1*"))]
    assert len(images) == 4 and all(image.grid.difference(ATLAS) is None for image in images)
    label = read_image(dataset / "labelsTr" / "P1_tp1.nii.gz").array
    assert sorted(np.unique(label)) == [0, 1, 3]  # 2 ED and 3 ET, as trained
    assert fake_brainles.CALLED == [("apply", ("T1ce", False))] * 2  # linear, or the stand-in would fail


def test_label_maps_come_back_to_the_grid_of_the_raw_t1ce(stand_in, scans, tmp_path):
    out = prepared(scans, stand_in)
    maps = tmp_path / "maps"
    maps.mkdir()
    (maps / "P1_tp2.nii.gz").write_bytes((out / "P1_tp2" / "seg.nii.gz").read_bytes())
    done = prepare(out, tmp_path / "raw_space", back=maps)
    assert fake_brainles.CALLED[-1] == ("apply", ("T1ce", True))
    image = read_image(done.made["P1_tp2"])
    assert image.grid.difference(RAW) is None
    np.testing.assert_array_equal(image.array, labels())
    assert [path.name for path in (tmp_path / "raw_space").iterdir()] == ["P1_tp2.nii.gz"]
    (maps / "P9.nii.gz").write_bytes((maps / "P1_tp2.nii.gz").read_bytes())
    with pytest.raises(UserError, match=r"has no preparation.json of P9"):
        prepare(out, tmp_path / "other", back=maps)
    (maps / "P9.nii.gz").rename(maps / "P1_tp1.nii.gz")
    write_image(maps / "P1_tp1.nii.gz", labels(), RAW)
    with pytest.raises(UserError, match=r"P1_tp1.nii.gz does not lie on the prepared images"):
        prepare(out, tmp_path / "other", back=maps)
    assert not (tmp_path / "other").exists()


def test_patients_who_are_done_stay_and_other_settings_are_refused(stand_in, scans, tmp_path):
    out = prepared(scans, stand_in)
    note = out / "P1_tp1" / "preparation.json"
    before = note.stat().st_mtime_ns
    (out / "P1_tp2" / "preparation.json").unlink()
    options = PrepareOptions(
        (scans,), out, atlas=str(stand_in), layout=tmp_path / "own.toml", overwrite=True, **STRIPPED
    )
    assert json.loads(note.read_text())["center"] == "T1ce"
    shown = printed(data.run_prepare, options)
    assert f"2 patients in {out}; please cite" in shown and f"nnunet_brats convert {out} -d ID" in shown
    assert note.stat().st_mtime_ns > before
    assert prepare(scans, out, atlas=str(stand_in), layout=tmp_path / "own.toml", **STRIPPED).finished_before == [
        "P1_tp1", "P1_tp2"
    ]  # fmt: skip
    other = stand_in.with_name("other.nii.gz")
    other.write_bytes(stand_in.read_bytes())
    with pytest.raises(UserError, match="prepared with other settings; choose another folder, or --overwrite"):
        prepared(scans, other)


def test_another_patient_of_the_same_name_is_not_taken_for_finished(stand_in, scans, tmp_path):
    out = prepared(scans, stand_in)
    others = tmp_path / "others"
    shutil.copytree(scans, others)
    options = dict(atlas=str(stand_in), layout=tmp_path / "own.toml", **STRIPPED)
    with pytest.raises(UserError, match=r"P1_tp1, prepared from other files \(FLAIR: .*scans/P1.*, now .*others/P1"):
        prepare(others, out, **options)
    assert prepare(others, out, overwrite=True, **options).finished_before == []
    assert json.loads((out / "P1_tp1" / "preparation.json").read_text())["files"]["T1"].startswith(str(others))


def test_a_layout_of_other_patients_is_not_replaced_by_another(stand_in, scans, tmp_path):
    out = prepared(scans, stand_in)
    before = (out / "layout.toml").read_text()
    others, own = tmp_path / "others", tmp_path / "own.toml"
    shutil.copytree(scans / "P1", others / "P2")
    other = tmp_path / "other.toml"
    other.write_text(own.read_text().replace("glioma_2023", "glioma_2017"))
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"describes P1_tp1, P1_tp2 with another layout \(scheme: glioma_2023, now"):
            prepare(others, out, atlas=str(stand_in), layout=other, overwrite=overwrite, **STRIPPED)
        assert (out / "layout.toml").read_text() == before and not (out / "P2_tp1").exists()
    moved = out.rename(tmp_path / "moved")
    assert len(prepare(others, moved, atlas=str(stand_in), layout=own, **STRIPPED).made) == 2  # the same layout


def test_a_label_map_on_the_grid_of_no_scan_is_left_behind_and_a_patient_without_t1ce_is_taken(stand_in, scans):
    for folder in scans.glob("*/*"):
        (folder / "t1c.nii.gz").unlink()
        write_image(folder / "seg.nii.gz", np.zeros(SHAPE, np.uint8), ATLAS)
    out = scans.with_name("prepared")
    done = prepare(scans, out, atlas=str(stand_in), layout=scans.with_name("own.toml"), **STRIPPED)
    assert done.left_behind == ["P1_tp1", "P1_tp2"]
    assert json.loads((out / "P1_tp1" / "preparation.json").read_text())["center"] == "T1"
    assert sorted(path.name for path in (out / "P1_tp1").glob("*.nii.gz")) == ["flair.nii.gz", "t1.nii.gz", "t2.nii.gz"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, r"fetch its atlases .*https://zenodo.org/records/1, unpack them, and put them into atlases/1_v1.0.0"),
        ({"atlas": "t1.png"}, r"--atlas t1.png: expected sri24, mni152, or an image file"),
        ({"brain_extraction": "hd-bet", "atlas": "here"}, r"0.model from https://zenodo.org/records/2540695 and put"),
    ],
)
def test_what_cannot_be_fetched_is_named_with_its_place(options, sentence, stand_in, scans, tmp_path):
    if options.get("atlas") == "here":
        options = options | {"atlas": str(stand_in)}
    with pytest.raises(UserError, match=sentence):
        prepare(scans, tmp_path / "out", **{**STRIPPED, **options})
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"lies in .*scans, whose scans it would be read with"):
        prepare(scans, scans / "out", atlas=str(stand_in))


def test_on_a_cpu_hd_bet_is_one_network_without_mirror_images(stand_in, scans, monkeypatch):
    monkeypatch.setattr(sys.modules["brainles_hd_bet.utils"], "maybe_download_parameters", lambda fold: None)
    prepared(scans, stand_in, brain_extraction="hd-bet")
    assert set(fake_brainles.CALLED[:4]) == {("hd-bet", ("fast", "cpu", False))}


# ---- the package itself ---------------------------------------------------------------------------------------------


@pytest.fixture
def package():
    return pytest.importorskip("brainles_preprocessing", reason="the extra `prepare` is not installed")


def test_the_stand_in_has_the_packages_signatures(package):
    for module, contents in fake_brainles.CONTENTS.items():
        for name, fake in contents.items():
            real = getattr(importlib.import_module(module), name)
            if inspect.isclass(fake) and name not in ("logger", "ZenodoException"):
                for method in (one for one, value in vars(fake).items() if inspect.isfunction(value)):
                    ours, theirs = (inspect.signature(getattr(one, method)).parameters for one in (fake, real))
                    assert ours.keys() <= theirs.keys(), f"{module}.{name}.{method}"


def test_real_registration_brings_moved_scans_together_and_labels_back(package, tmp_path):
    still = ndimage.zoom(brain(0, SHAPE), 2, order=1)
    grid = Grid(still.shape[::-1], (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), ATLAS.direction)
    write_image(tmp_path / "atlas.nii.gz", still, grid)
    folder = tmp_path / "scans" / "P1"
    folder.mkdir(parents=True)
    moves = {"t1c": (2, 0, -1), "t1": (0, 2, 1), "t2": (-2, 1, 0), "flair": (1, -1, 2)}
    for number, (name, move) in enumerate(moves.items()):
        write_image(folder / f"{name}.nii.gz", ndimage.shift(still // (number + 1), move, order=1), grid)
    label = (still > np.percentile(still[still > 0], 80)).astype(np.uint8)
    (tmp_path / "maps").mkdir()
    write_image(tmp_path / "maps" / "P1.nii.gz", label, grid)
    prepare(tmp_path / "scans", tmp_path / "out", atlas=str(tmp_path / "atlas.nii.gz"), **STRIPPED)
    for name in ("t1ce", "t1", "t2", "flair"):
        image = read_image(tmp_path / "out" / "P1" / f"{name}.nii.gz")
        assert image.grid.difference(grid) is None
        assert np.corrcoef(image.array.ravel(), still.ravel())[0, 1] > 0.97, name
    done = prepare(tmp_path / "out", tmp_path / "back", back=tmp_path / "maps")
    back, moved = read_image(done.made["P1"]).array, ndimage.shift(label, moves["t1c"], order=0)
    assert 2 * (back & moved).sum() / (back.sum() + moved.sum()) > 0.9


def test_no_word_of_the_package_stays_on_the_screen(package, capsys):
    brainles.require()
    assert capsys.readouterr().out == ""
