"""Models with a channel computed from sequences: every form of prediction adds it by itself."""

import contextlib
import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import FOLDERS, plan_and_preprocess
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tiny_trainers import make_tiny
from untrained_models import CPU, save_untrained, small_plans

from nnunet_brats_ext import dataset_conversion, trainers
from nnunet_brats_ext.bundles import bundle, segment
from nnunet_brats_ext.bundles.archive import inspect_bundle
from nnunet_brats_ext.inference import BraTSPredictor, predict, show_attention
from nnunet_brats_ext.inference.case_files import find_image_files
from nnunet_brats_ext.inference.cases import ImageCases
from nnunet_brats_ext.inference.models import TrainedModel
from nnunet_brats_ext.inference.workers import Workers
from nnunet_brats_ext.predictions.ensemble import ensemble
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import read_image, read_label_map, write_image
from nnunet_brats_ext.weights.exporting import describe

RUN = dict(device="cpu", processes=0, disable_tta=True)


@pytest.fixture(scope="module")
def made(world_on_disk, tmp_path_factory):
    """The world's release converted with T1ce - T1, a small model of it, and a cascade; two folds each."""
    root = tmp_path_factory.mktemp("derived")
    world = replace(world_on_disk, root=root, dataset="Dataset902_Derived")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        for name, value in world.settings.items():
            patch.setenv(name, value)
        for name in FOLDERS:
            (root / name).mkdir()
        release = world_on_disk.root / "release"
        dataset_conversion.convert(release, 902, name="Derived", add="t1ce-t1", folds=2, processes=1)
        plan_and_preprocess(902, "3d_fullres")
        cascade = {"first": {"next_stage": "second"}, "second": {"previous_stage": "first"}}
        plans = small_plans(world, "SmallPlans", {"small": {}, **cascade})
        for seed, name in enumerate(("small", *cascade)):
            save_untrained(world, plans, name, folds=(0, 1), seed=seed)
        make_tiny(trainers.BraTSAttentionVAETrainer, patch)
        save_untrained(world, plans, "small", "BraTSAttentionVAETrainer")
    return world


@pytest.fixture
def world(made, world, monkeypatch):
    """With its environment set."""
    for name, value in made.settings.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def four(world, tmp_path) -> Path:
    """The images of the unlabelled cases without the derived channel."""
    skip = shutil.ignore_patterns("*_0004.nii.gz")
    return Path(shutil.copytree(world.raw / "imagesTs", tmp_path / "four", ignore=skip))


def model(world, configuration: str = "small", trainer: str = "BraTSBaselineTrainer") -> Path:
    return world.root / "nnUNet_results" / world.dataset / f"{trainer}__SmallPlans__{configuration}"


def label_maps(folder: Path) -> list[np.ndarray]:
    return [read_label_map(path)[0] for path in sorted(folder.glob("*.nii.gz"))]


def assert_same(one: Path, other: Path) -> None:
    pairs = list(zip(label_maps(one), label_maps(other), strict=True))
    assert pairs
    for first, second in pairs:
        np.testing.assert_array_equal(first, second)


def test_four_images_give_what_nnunet_gives_of_five(world, four, tmp_path, recwarn):
    predictor = nnUNetPredictor(
        device=CPU, use_mirroring=False, perform_everything_on_device=False, verbose=False, allow_tqdm=False
    )
    (tmp_path / "nnunet").mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        predictor.initialize_from_trained_model_folder(str(model(world)), (0,), "checkpoint_final.pth")
        predictor.predict_from_files_sequential(str(world.raw / "imagesTs"), str(tmp_path / "nnunet"))
    predict(four, tmp_path / "ours", model(world), folds="0", **RUN)
    assert_same(tmp_path / "nnunet", tmp_path / "ours")
    predict(world.raw / "imagesTs", tmp_path / "of_five", model(world), folds="0", **RUN)
    assert_same(tmp_path / "nnunet", tmp_path / "of_five")
    assert "another" not in " ".join(str(one.message) for one in recwarn)


def test_turned_images_give_the_same(world, four, tmp_path):
    predict(four, tmp_path / "expected", model(world), folds="0", **RUN)
    for file in four.glob("*.nii.gz"):
        image = read_image(file).turned("SAL")
        write_image(file, image.array, image.grid)
    predict(four, tmp_path / "found", model(world), folds="0", **RUN)
    for path in (tmp_path / "found").glob("*.nii.gz"):
        found = read_image(path).turned("LPS").array
        np.testing.assert_array_equal(found, read_label_map(tmp_path / "expected" / path.name)[0])


def test_without_one_of_its_sequences_the_channel_is_absent_too(world, four):
    for file in four.glob("*_0000.nii.gz"):
        file.unlink()
    predictor = BraTSPredictor(device=CPU)
    predictor.load(TrainedModel.of(model(world), (0,)))
    files = find_image_files(four, predictor.description.description, missing=True)
    case, _ = ImageCases(files).read([predictor.description], list(files), Workers(0))
    data, _ = case.seen_by(predictor.description)
    assert [bool(channel.any()) for channel in data] == [False, True, True, True, False]


def test_a_cascade_a_cross_validation_and_all_sets_of_sequences_add_it(world, four, tmp_path):
    predict(four, tmp_path / "cascade", model(world, "second"), **RUN)
    assert len(label_maps(tmp_path / "cascade")) == 2
    predict(out=tmp_path / "own", model=model(world), cross_validation=True, **RUN)
    assert len(label_maps(tmp_path / "own")) == 6
    first = min(four.glob("*_0000.nii.gz")).name.removesuffix("_0000.nii.gz")
    for file in four.glob("*.nii.gz"):
        if not file.name.startswith(first):
            file.unlink()
    assert len(predict(four, tmp_path / "sets", model(world), folds="0", by_sequences=True, **RUN)) == 15


def test_attention_adds_it(world, four, tmp_path, monkeypatch):
    make_tiny(trainers.BraTSAttentionVAETrainer, monkeypatch)
    case = min(four.glob("*_0000.nii.gz")).name.removesuffix("_0000.nii.gz")
    folder = model(world, trainer="BraTSAttentionVAETrainer")
    shown = show_attention(four, tmp_path / "shown", folder, cases=[case], folds="0", device="cpu")
    assert list(shown) == [case] and list(shown[case].glob("*.nii.gz"))
    with pytest.raises(UserError, match="--background T1ce-T1: the images are T1, T1ce, T2, FLAIR"):
        show_attention(four, tmp_path / "other", folder, cases=[case], device="cpu", background="T1ce-T1")


def test_the_channel_is_no_sequence_to_ask_for_and_no_image_to_lack(world, four, tmp_path):
    with pytest.raises(UserError, match="--sequences T1ce-T1: it is computed from T1ce and T1"):
        predict(four, tmp_path / "out", model(world), sequences=["T1ce-T1"], **RUN)
    min(four.glob("*_0003.nii.gz")).unlink()
    with pytest.raises(UserError, match=r"CASE_0000.nii.gz to CASE_0003.nii.gz of every case; not so"):
        predict(four, tmp_path / "out", model(world), **RUN)


def test_an_exported_network_comes_with_what_the_channel_is(world):
    content = describe(TrainedModel.of(model(world), (0,)), (8, 8, 8))["input"]
    assert content["channels"][4] == "T1ce-T1" and content["derived"]["weights"] == {"T1ce-T1": {"T1ce": 1, "T1": -1}}


def test_a_bundle_computes_the_channel_of_those_of_its_models_that_have_one(world, world_on_disk, four, tmp_path):
    """Each with its own channels; what a patient needs is images of the sequences."""
    results = tmp_path / "results"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (world_on_disk.settings | {"nnUNet_results": str(results)}).items():
            patch.setenv(name, value)
        plain = save_untrained(world_on_disk, small_plans(world_on_disk, "Four", {"small": {}}), "small", seed=9)
    folders = [plain, model(world)]
    for number, folder in enumerate(folders):
        options = dict(device="cpu", processes=0, save_probabilities=True, trusted=True)
        predict(four, tmp_path / str(number), folder, **options)
    ensemble([tmp_path / "0", tmp_path / "1"], tmp_path / "mean", processes=1)
    bundle(*folders, out=tmp_path / "two.zip", trusted=True)
    assert inspect_bundle(tmp_path / "two.zip")[0].about["sequences"] == ["T1", "T1ce", "T2", "FLAIR"]
    patients = world_on_disk.root / "release" / "MICCAI_BraTS2020_ValidationData"
    found = segment(tmp_path / "two.zip", patients, out=tmp_path / "out", device="cpu", labels="trained")
    assert len(found.patients) == 2
    for case, one in found.patients.items():
        expected, _ = read_label_map(tmp_path / "mean" / f"{case}.nii.gz")
        assert np.array_equal(read_label_map(one.label_map)[0], expected)
