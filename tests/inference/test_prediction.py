"""`predict` from end to end on untrained networks: nnU-Net's own calls, cross-validation, and what is refused when."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from itertools import count as count_up
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock
from weakref import ref

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from untrained_models import CPU, own_images, save_untrained, small_plans

from nnunet_brats_ext.cli import main
from nnunet_brats_ext.evaluation import evaluate_folders
from nnunet_brats_ext.inference import BraTSPredictor, networks, outputs, predict, profiling, workers
from nnunet_brats_ext.inference import predictor as predictor_module
from nnunet_brats_ext.inference.case_files import check_images, find_image_files
from nnunet_brats_ext.inference.cases import ImageCases
from nnunet_brats_ext.inference.logits import Logits, ModelDescription
from nnunet_brats_ext.inference.memory import bytes_of_pass
from nnunet_brats_ext.inference.models import TrainedModel
from nnunet_brats_ext.inference.outputs import PredictionTarget, locked
from nnunet_brats_ext.inference.systems import Member, Passes
from nnunet_brats_ext.inference.training_sizes import TrainingSizes, brain_size_mm
from nnunet_brats_ext.inference.work import RulesStep
from nnunet_brats_ext.inference.workers import Workers
from nnunet_brats_ext.predictions import fusion
from nnunet_brats_ext.predictions.heads import label_probabilities
from nnunet_brats_ext.storage.errors import Notice, UserError
from nnunet_brats_ext.storage.images import (
    read_grid,
    read_image,
    read_label_map,
    read_probabilities,
    turn,
    write_image,
)
from nnunet_brats_ext.storage.nnunet import FOLDERS, find_splits, fold_folders, trained_folds

FINAL = "checkpoint_final.pth"
NAMES = ("-d", "901", "-p", "SmallPlans")
RUN = ("-device", "cpu", "-np", "0", "--tta", "none")
SMALL = ("-tr", "BraTSBaselineTrainer", "-c", "small", *NAMES, *RUN)


@pytest.fixture(scope="module")
def results(world_on_disk, tmp_path_factory) -> Path:
    """A small model, a cascade of two with two checkpoints each, and one that sees whole brains; two folds of each."""
    folder = tmp_path_factory.mktemp("results")
    cascade = {"first": {"next_stage": "second"}, "second": {"previous_stage": "first"}}
    plans = small_plans(world_on_disk, "SmallPlans", {"small": {}, **cascade})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (world_on_disk.settings | {"nnUNet_results": str(folder)}).items():
            patch.setenv(name, value)
        save_untrained(world_on_disk, plans, "small", folds=(0, 1))
        for seed, stage in enumerate(cascade, start=1):
            checkpoints = ("one.pth", "two.pth")
            save_untrained(world_on_disk, plans, stage, folds=(0, 1), checkpoints=checkpoints, seed=seed)
        save_untrained(world_on_disk, plans, "small", "BraTSNoNewNetTrainer", folds=(0, 1), seed=3)
    return folder


@pytest.fixture
def models(results, world, monkeypatch) -> Path:
    monkeypatch.setenv("nnUNet_results", str(results))
    return results / "Dataset901_World"


@pytest.fixture
def own_models(models, tmp_path, monkeypatch) -> Path:
    """The small models once more, to be spoiled."""
    place = tmp_path / "results" / models.name
    for folder in models.glob("*__small"):
        shutil.copytree(folder, place / folder.name)
    monkeypatch.setenv("nnUNet_results", str(place.parent))
    return place


@pytest.fixture
def images(world, tmp_path) -> Path:
    """The unlabelled cases once more, to be spoiled."""
    return Path(shutil.copytree(world.raw / "imagesTs", tmp_path / "images"))


def folder_of(models: Path, configuration: str = "small", trainer: str = "BraTSBaselineTrainer") -> Path:
    return models / f"{trainer}__SmallPlans__{configuration}"


def label_maps(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: read_label_map(path)[0] for path in sorted(folder.glob("*.nii.gz"))}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


# ---- nnU-Net's own calls -------------------------------------------------------------------------------------------


def by_single_array(predictor, images: Path, out: Path) -> None:
    for files in files_of_cases(images):
        image, properties = SimpleITKIO().read_images([str(file) for file in files])
        labels = predictor.predict_single_npy_array(image, properties)
        SimpleITKIO().write_seg(labels, str(out / files[0].name.replace("_0000", "")), properties)


def by_list_of_arrays(predictor, images: Path, out: Path) -> None:
    cases = files_of_cases(images)
    read = [SimpleITKIO().read_images([str(file) for file in files]) for files in cases]
    names = [str(out / files[0].name.removesuffix("_0000.nii.gz")) for files in cases]
    arrays, properties = map(list, zip(*read, strict=True))
    predictor.predict_from_list_of_npy_arrays(arrays, None, properties, names, 1, num_processes_segmentation_export=1)


CALLS = {
    "predict_single_npy_array": by_single_array,
    "predict_from_list_of_npy_arrays": by_list_of_arrays,
    "predict_from_files": lambda predictor, images, out: predictor.predict_from_files(
        str(images), str(out), num_processes_preprocessing=1, num_processes_segmentation_export=1
    ),
    "predict_from_files_sequential": lambda predictor, images, out: predictor.predict_from_files_sequential(
        str(images), str(out)
    ),
}


def files_of_cases(images: Path) -> list[list[Path]]:
    return [
        [first.with_name(first.name.replace("_0000", f"_000{channel}")) for channel in range(4)]
        for first in sorted(images.glob("*_0000.nii.gz"))
    ]


@pytest.fixture(scope="module")
def by_command(results, world_on_disk, tmp_path_factory) -> dict[str, np.ndarray]:
    """What the command makes of a model that sees whole brains, averaged over four mirror images and two folds."""
    out = tmp_path_factory.mktemp("by_command")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (world_on_disk.settings | {"nnUNet_results": str(results)}).items():
            patch.setenv(name, value)
        model = ("-tr", "BraTSNoNewNetTrainer", "-c", "small", *NAMES, "-device", "cpu", "-np", "0")
        assert main(["predict", "-i", str(world_on_disk.raw / "imagesTs"), "-o", str(out), *model]) == 0
    return label_maps(out)


@pytest.mark.parametrize("call", CALLS)
def test_nnunets_own_calls_give_what_the_command_gives(call, models, world, by_command, tmp_path):
    predictor = BraTSPredictor(device=CPU)
    predictor.initialize_from_trained_model_folder(str(folder_of(models, trainer="BraTSNoNewNetTrainer")), (0, 1))
    CALLS[call](predictor, world.raw / "imagesTs", tmp_path)
    assert same(label_maps(tmp_path), by_command)
    assert len(by_command) == 2
    assert any(labels.any() for labels in by_command.values())


def test_folds_are_found_where_none_are_named(models):
    predictor = BraTSPredictor(device=CPU)
    predictor.initialize_from_trained_model_folder(str(folder_of(models)), None, FINAL)
    assert [file.parent.name for file in predictor.checkpoints] == ["fold_0", "fold_1"]


def test_nothing_of_one_model_stays_with_the_next(models):
    predictor = BraTSPredictor(device=CPU)
    for _ in range(2):
        predictor.initialize_from_trained_model_folder(str(folder_of(models, trainer="BraTSNoNewNetTrainer")), [0])
        assert (predictor.tiling, predictor.symmetries) == ("brain", "inplane-mirror")
        predictor.tiling = "sliding"  # as where a whole brain did not fit on the device
        predictor.initialize_from_trained_model_folder(str(folder_of(models)), ["1"])
        assert (predictor.tiling, predictor.symmetries) == ("sliding", "mirror")
        assert [file.parent.name for file in predictor.checkpoints] == ["fold_1"]


def test_windows_on_the_tumour_are_refused_where_there_is_no_previous_stage(models):
    predictor = BraTSPredictor("tumour", device=CPU)
    with pytest.raises(UserError, match="--tiling tumour"):
        predictor.initialize_from_trained_model_folder(str(folder_of(models)), [0])


# ---- from Python, and without torch --------------------------------------------------------------------------------


def test_from_python_a_model_is_its_folder_and_nothing_is_printed(models, world, tmp_path, capfd):
    options = dict(folds=[0], device="cpu", processes=0, symmetries="none")
    capfd.readouterr()
    found = predict(str(world.raw / "imagesTs"), str(tmp_path / "one"), str(folder_of(models)), **options)
    assert capfd.readouterr() == ("", "")
    assert {path.name for path in found.values()} == {path.name for path in (tmp_path / "one").glob("*.nii.gz")}
    assert all(path.name == f"{case}.nii.gz" for case, path in found.items())
    by_names = ["predict", "-i", str(world.raw / "imagesTs"), "-o", str(tmp_path / "two"), *SMALL, "-f", "0"]
    assert main(by_names) == 0
    assert same(label_maps(tmp_path / "one"), label_maps(tmp_path / "two"))


def test_a_models_folder_may_have_any_name(models, world, tmp_path, monkeypatch):
    shutil.copytree(folder_of(models), tmp_path / "my model")
    monkeypatch.delenv("nnUNet_results")
    words = ["predict", "-i", str(world.raw / "imagesTs"), "-o", str(tmp_path / "out"), "-f", "0", *RUN]
    assert main([*words, "-m", str(tmp_path / "my model")]) == 0
    assert len(label_maps(tmp_path / "out")) == 2


def test_help_and_options_load_no_torch():
    code = (
        "import sys; from nnunet_brats_ext.cli.parser import build_parser; "
        "from nnunet_brats_ext.inference.options import AttentionOptions, PredictOptions; "
        "import nnunet_brats_ext.inference.models; "
        "[build_parser(one, 'prog', '').format_help() for one in (AttentionOptions, PredictOptions)]; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- cross-validation ----------------------------------------------------------------------------------------------


CASCADE = ("-tr", "BraTSBaselineTrainer", "-c", "second", *NAMES, *RUN)
VOTE = ("-chk", "one.pth", "two.pth", "-prev_chk", "one.pth", "two.pth", "--combine", "vote", "--rules", "lyu2020")


@pytest.mark.parametrize(
    "words",
    [SMALL, (*CASCADE, "-chk", "one.pth", "-prev_chk", "two.pth"), (*CASCADE, *VOTE)],
    ids=["one model", "cascade", "vote and rules"],
)
def test_cross_validation_is_prediction_of_each_folds_own_cases(words, models, world, tmp_path, capsys):
    command = ["predict", *words, "--cross-validation", "-o", str(tmp_path / "out"), "-f", "0", "1"]
    assert main(command) == 0
    assert ("voxels changed" in capsys.readouterr().out) == ("--rules" in words)
    found = label_maps(tmp_path / "out")
    _, splits = find_splits("Dataset901_World")
    assert {name.removesuffix(".nii.gz") for name in found} == {*splits[0]["val"], *splits[1]["val"]}
    for fold in (0, 1):
        own = own_images(world, fold, tmp_path / f"images {fold}")
        previous = ["-prev_f", str(fold)] if "second" in words else []
        alone = ["predict", *words, "-i", str(own), "-o", str(tmp_path / str(fold)), "-f", str(fold), *previous]
        assert main(alone) == 0
        expected = label_maps(tmp_path / str(fold))
        assert same({name: found[name] for name in expected}, expected)

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.nii.gz")}
    assert main(command) == 0
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.nii.gz")}


def test_an_interrupted_vote_in_cross_validation_goes_on(models, tmp_path, monkeypatch):
    words = ("-tr", "BraTSBaselineTrainer", "-c", "first", "-chk", "one.pth", "two.pth", "--combine", "vote")
    command = ["predict", *words, *NAMES, *RUN, "--cross-validation", "-o", str(tmp_path / "out"), "-f", "0", "1"]
    write, written = PredictionTarget.write, []

    def write_two(*arguments) -> None:
        if len(written) == 2:  # the cases of the first fold
            raise KeyboardInterrupt
        write(*arguments)
        written.append(arguments)

    monkeypatch.setattr(PredictionTarget, "write", write_two)
    assert main(command) == 130
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.nii.gz")}
    assert len(done) == len(written)
    monkeypatch.setattr(PredictionTarget, "write", write)
    assert main(command) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    assert len(label_maps(tmp_path / "out")) == 3
    assert not (tmp_path / "out" / "members").exists()


def test_a_case_is_read_and_preprocessed_once_for_all_members(models, world, tmp_path, monkeypatch):
    """Four sources, four members on each."""
    read, preprocessed = [], []
    read_images, run_case = SimpleITKIO.read_images, DefaultPreprocessor.run_case_npy

    def noted_reading(*arguments):
        read.append(arguments)
        return read_images(*arguments)

    def noted_preprocessing(*arguments):
        preprocessed.append(arguments[2] is None)
        return run_case(*arguments)

    monkeypatch.setattr(SimpleITKIO, "read_images", noted_reading)
    monkeypatch.setattr(DefaultPreprocessor, "run_case_npy", noted_preprocessing)
    command = ["predict", "-i", str(world.raw / "imagesTs"), "-o", str(tmp_path / "out"), *CASCADE, *VOTE[:-2]]
    assert main(command) == 0
    assert preprocessed.count(True) == 2, "the images of both cases"
    assert len(read) == len(preprocessed)


def test_nothing_of_a_member_is_in_memory_while_the_next_predicts(models, world, tmp_path, monkeypatch):
    made, alive = [], []
    predict_average = BraTSPredictor.predict_average

    def noted_logits(*arguments):
        one = Logits(*arguments)
        made.append(ref(one))
        return one

    def noted(*arguments):
        alive.append(sum(one() is not None for one in made))
        return predict_average(*arguments)

    monkeypatch.setattr(networks, "Logits", noted_logits)
    monkeypatch.setattr(BraTSPredictor, "predict_average", noted)
    command = ["predict", "-i", str(world.raw / "imagesTs"), "-o", str(tmp_path / "out"), *CASCADE, *VOTE[:-2]]
    assert main([*command, "-np", "0"]) == 0
    assert len(alive) == len(made) > 2 and not any(alive)


# ---- what is refused, before anything is written -------------------------------------------------------------------


def cut(file: Path, share: float = 0.5) -> None:
    os.truncate(file, int(file.stat().st_size * share))


def change(file: Path, function) -> None:
    image = sitk.ReadImage(str(file), sitk.sitkFloat32)
    file.unlink()
    sitk.WriteImage(function(image), str(file))


def with_nan(image):
    array = sitk.GetArrayFromImage(image)
    array[10, 10, 10] = np.nan
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(image)
    return changed


def stretched(image):
    image.SetSpacing([2 * length for length in image.GetSpacing()])
    return image


def mirrored(image):
    """Its header says that x runs the other way, from the same origin."""
    image.SetDirection([-1, 0, 0, 0, 1, 0, 0, 0, 1])
    return image


def cropped(image):
    return image[:, :, 1:]


SPOILED_IMAGES = {
    "cut": (cut, "truncated or damaged"),
    "empty": (lambda file: file.write_bytes(b""), "is empty"),
    "text": (lambda file: file.write_text("hi"), "no readable image|NIfTI header"),
    "NaN": (lambda file: change(file, with_nan), "infinite or no number"),
    "four axes": (lambda file: change(file, lambda image: sitk.JoinSeries([image, image])), "has 4 axes"),
    "other spacing": (lambda file: change(file, stretched), "differ in spacing_mm"),
    "mirrored": (lambda file: change(file, mirrored), "differ in origin_mm"),
    "other size": (lambda file: change(file, cropped), "differ in size"),
    "missing": (Path.unlink, "needs the channels CASE_0000.nii.gz to CASE_0003.nii.gz of every case; not so"),
    "named otherwise": (
        lambda file: file.rename(file.with_name("t1ce.nii.gz")),
        "`nnunet_brats convert` names",
    ),
}


@pytest.mark.parametrize("kind", SPOILED_IMAGES)
def test_spoiled_images_are_named_before_anything_is_written(kind, models, images, tmp_path, capsys):
    spoil, sentence = SPOILED_IMAGES[kind]
    file = sorted(images.glob("*_0001.nii.gz"))[1]
    spoil(file)
    assert main(["predict", "-i", str(images), "-o", str(tmp_path / "out"), "-f", "0", *SMALL]) == 1
    said = capsys.readouterr().err
    assert any(part in said for part in sentence.split("|")), said
    assert file.name.split("_000")[0] in said or "t1ce.nii.gz" in said
    assert not (tmp_path / "out").exists()


def cut_checkpoint(file: Path, models: Path) -> None:
    cut(file)


def random_bytes(file: Path, models: Path) -> None:
    file.write_bytes(np.random.default_rng(0).bytes(10000))


def of_another_trainer(file: Path, models: Path) -> None:
    shutil.copyfile(folder_of(models, trainer="BraTSNoNewNetTrainer") / "fold_0" / FINAL, file)


def edited(change):
    def edit(file: Path, models: Path) -> None:
        checkpoint = torch.load(file, weights_only=False)
        change(checkpoint)
        torch.save(checkpoint, file)

    return edit


def other_weights(checkpoint: dict) -> None:
    weights = checkpoint["network_weights"]
    checkpoint["network_weights"] = {f"module.{name}": values for name, values in weights.items()}


def nan_weights(checkpoint: dict) -> None:
    next(iter(checkpoint["network_weights"].values())).fill_(float("nan"))


SPOILED_CHECKPOINTS = {
    "cut": (cut_checkpoint, "is damaged, or no checkpoint (BadZipFile"),
    "empty": (lambda file, models: file.write_bytes(b""), "is damaged, or no checkpoint (BadZipFile: its 0 bytes"),
    "random": (random_bytes, "is damaged, or no checkpoint (BadZipFile"),
    "array": (lambda file, models: np.savez(file.open("wb"), a=1), "is damaged, or no checkpoint"),
    "tensor": (
        lambda file, models: torch.save(torch.ones(3), file),
        "is no whole checkpoint of nnU-Net: it lacks network_weights",
    ),
    "of another trainer": (of_another_trainer, "was trained with the trainer BraTSNoNewNetTrainer"),
    "of another network": (edited(other_weights), "does not fit its network"),
    "NaN": (edited(nan_weights), "has weights that are infinite or NaN"),
    "missing": (lambda file, models: file.unlink(), "does not exist; fold_1 holds no checkpoint"),
}


@pytest.mark.parametrize("fold", [0, 1])
@pytest.mark.parametrize("kind", SPOILED_CHECKPOINTS)
def test_spoiled_checkpoints_are_named_before_anything_is_written(kind, fold, own_models, world, tmp_path, capsys):
    spoil, sentence = SPOILED_CHECKPOINTS[kind]
    file = folder_of(own_models) / f"fold_{fold}" / FINAL
    spoil(file, own_models)
    command = ["predict", "-i", str(world.raw / "imagesTs"), "-o", str(tmp_path / "out"), *SMALL, "-f", "0", "1"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert str(file) in said
    assert sentence.replace("fold_1", f"fold_{fold}") in said
    assert len(said) < 1000, "never pages of keys"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("-step_size", "0"), "-step_size 0.0: expected more than 0"),
        (("-step_size", "2"), "-step_size 2.0: expected more than 0 and at most 1"),
        (("-step_size", "nan"), "-step_size nan: expected"),
        (("-np", "-1"), "-np -1: expected at least 0"),
        (("--low-memory", "-5"), "--low-memory -5.0: expected more than 0"),
        (("--low-memory", "0"), "--low-memory 0.0: expected more than 0"),
        (("--patch-size", "0", "8", "8"), "--patch-size 0: expected at least 1"),
        (("--patch-size", "8", "8"), "this model has 3 axes"),
        (("-f", "one"), "-f one: expected the number of a fold, or all"),
        (("--best", "2"), "--best: has no meaning without --for-next-stage or --models"),
        (("--for-next-stage", "--rules", "lyu2020"), "-i, -o, --rules: has no meaning with --for-next-stage"),
        (("--models", "A:b"), "-tr, -c: has no meaning with --models"),
        (("--in-sample",), "--in-sample: has no meaning"),
        (("-m", "somewhere"), "-m somewhere names the model by its folder; leave out -d -tr -c"),
        (("-prev_tr", "BraTSVAETrainer"), "-prev_tr: small has no previous stage"),
        (("--combine", "vote", "--save_probabilities"), "--save_probabilities: a vote has none"),
        (("--half-probabilities",), "--half-probabilities: has no meaning without --save_probabilities"),
        (("-tr", "BraTSBaselineTrianer"), "no trainer 'BraTSBaselineTrianer'; did you mean 'BraTSBaselineTrainer'?"),
        (("-tr", "BraTSVAETrainer"), "there are BraTSBaselineTrainer__SmallPlans__first"),
        (("-d", "902"), "no data set 902"),
    ],
)
def test_options_that_cannot_be_are_quoted(words, sentence, models, world, tmp_path, capsys):
    command = ["predict", "-i", str(world.raw / "imagesTs"), "-o", str(tmp_path / "out"), *SMALL, *words]
    assert main(command) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["-i", "-o", "-d", "-tr", "-c"])
def test_what_is_missing_is_named(missing, models, world, tmp_path, capsys):
    words = ["-i", str(world.raw / "imagesTs"), "-o", str(tmp_path / "out"), *SMALL]
    place = words.index(missing)
    assert main(["predict", *words[:place], *words[place + 2 :]]) == 1
    error = capsys.readouterr().err
    assert f"missing: {missing}" in error


def test_of_several_mistakes_the_first_to_fix_is_named(tmp_path, monkeypatch, capsys):
    for name in FOLDERS:
        monkeypatch.setenv(name, str(tmp_path / name))
    raw = tmp_path / "nnUNet_raw" / "Dataset137_A"
    words = {"-d": "138", "-tr": "BraTSBaselineTrainr", "-c": "3d_fullres"}

    def said() -> str:
        assert main(["predict", *(word for pair in words.items() for word in pair)]) == 1
        return capsys.readouterr().err

    assert "missing: -i, the folder of images (or --cross-validation); -o, the output folder" in said()
    words |= {"-i": "images", "-o": str(tmp_path / "out")}
    assert "no trainer 'BraTSBaselineTrainr'; did you mean 'BraTSBaselineTrainer'?" in said()
    words["-tr"] = "BraTSBaselineTrainer"
    assert f"no data set 138 in {tmp_path / 'nnUNet_results'}" in said()
    raw.mkdir(parents=True)
    words["-d"] = "137"
    assert "nothing is trained on Dataset137_A yet" in (sentence := said())
    assert "nnUNetv2_train Dataset137_A 3d_fullres FOLD -tr BraTSBaselineTrainer -p nnUNetPlans" in sentence


def test_in_bfloat16_few_voxels_differ_and_it_is_said_and_noted(models, world, tmp_path, capsys, monkeypatch):
    command = ["predict", "-i", str(world.raw / "imagesTs"), "-f", "0", *SMALL]
    assert main([*command, "-o", str(tmp_path / "fp32")]) == 0
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)  # torch emulates it elsewhere
    capsys.readouterr()
    assert main([*command, "-o", str(tmp_path / "bf16"), "--precision", "bf16"]) == 0
    assert "networks compute in bf16" in capsys.readouterr().out
    one, other = label_maps(tmp_path / "fp32"), label_maps(tmp_path / "bf16")
    assert one.keys() == other.keys()
    assert not same(one, other), "the logits are others"
    assert all(np.mean(one[name] == other[name]) > 0.97 for name in one)
    assert main([*command, "-o", str(tmp_path / "bf16")]) == 1
    assert "other settings (precision)" in capsys.readouterr().err


def test_bfloat16_is_refused_where_it_would_be_emulated(models, world, tmp_path, capsys, monkeypatch):
    for test in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, test, lambda: False)
    command = ["predict", "-i", str(world.raw / "imagesTs"), "-o", str(tmp_path / "out"), *SMALL]
    assert main([*command, "--precision", "bf16"]) == 1
    assert "--precision bf16: this cpu does not compute in bfloat16" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_probabilities_in_float16_are_the_same_to_its_precision(models, world, tmp_path):
    for name, words in (("whole", ()), ("half", ("--half-probabilities",))):
        assert main([*command_for(world, tmp_path / name, "--save_probabilities"), *words]) == 0
    for path in (tmp_path / "whole").rglob("*.npz"):
        (other,) = (tmp_path / "half").rglob(path.name)
        whole, half = (np.load(file)["probabilities"] for file in (path, other))
        assert (whole.dtype, half.dtype) == (np.float32, np.float16)
        assert np.abs(whole - half).max() < 0.0005
        assert other.stat().st_size < 0.6 * path.stat().st_size


@pytest.mark.parametrize("free", [0, 2**40], ids=["too little memory", "enough"])
def test_a_whole_brain_that_does_not_fit_is_predicted_in_windows(free, models, world, tmp_path, recwarn, monkeypatch):
    monkeypatch.setattr(predictor_module, "free_bytes", lambda device: free)
    command = ["predict", "-i", str(world.raw / "imagesTs"), "-f", "0", *SMALL, "-np", "0", "-o"]
    for tiling in ("brain", "sliding"):
        assert main([*command, str(tmp_path / tiling), "--tiling", tiling]) == 0
    said = [str(warning.message) for warning in recwarn if "does not fit into the memory that is free" in str(warning)]
    assert same(label_maps(tmp_path / "brain"), label_maps(tmp_path / "sliding")) == bool(said) == (free == 0)


def test_windows_without_brain_are_not_looked_at(models, world, images, tmp_path, monkeypatch):
    seen = []
    network = BraTSPredictor._predict_symmetric
    monkeypatch.setattr(
        BraTSPredictor, "_predict_symmetric", lambda self, x, at_once: seen.append(x) or network(self, x, at_once)
    )
    for path in images.glob("*.nii.gz"):  # a brain at one end, and a voxel at the other, so that no crop helps
        image = sitk.ReadImage(str(path))
        array = sitk.GetArrayFromImage(image)
        array[:, :, array.shape[2] // 3 :], array[-1, -1, -1] = 0, 1
        lonely = sitk.GetImageFromArray(array)
        lonely.CopyInformation(image)
        sitk.WriteImage(lonely, str(path))
    command = ["predict", "-i", str(images), "-f", "0", *SMALL, "-np", "0", "--patch-size", "8", "8", "8"]
    looked_at = {}
    for name, words in (("all", []), ("some", ["--skip-empty"])):
        seen.clear()
        assert main([*command, *words, "-o", str(tmp_path / name)]) == 0
        looked_at[name] = len(seen)
    assert looked_at["some"] < looked_at["all"]
    every, some = label_maps(tmp_path / "all"), label_maps(tmp_path / "some")
    for name in every:
        brain = sitk.GetArrayFromImage(sitk.ReadImage(str(images / name.replace(".", "_0000.", 1)))) != 0
        assert np.array_equal(every[name][brain], some[name][brain])
        assert np.count_nonzero(some[name][~brain]) < np.count_nonzero(every[name][~brain]), "random networks"


def test_mirror_images_in_one_batch_give_the_same(models, world, tmp_path):
    command = ["predict", "-i", str(world.raw / "imagesTs"), "-f", "0", *SMALL, "-np", "0", "--tta", "mirror"]
    for number in ("1", "8"):
        assert main([*command, "--symmetries-at-once", number, "-o", str(tmp_path / number)]) == 0
    one, other = label_maps(tmp_path / "1"), label_maps(tmp_path / "8")
    assert all(np.mean(one[name] == other[name]) > 0.999 for name in one)


@pytest.mark.parametrize(("room", "batches"), [(2, {1}), (20, {8}), (0, {1})])
def test_as_many_mirror_images_of_a_brain_are_in_a_batch_as_there_is_memory_for(
    room, batches, models, tmp_path, recwarn, monkeypatch
):
    predictor = BraTSPredictor("brain", "mirror8", symmetries_at_once=8, device=CPU)
    predictor.load(TrainedModel.of(folder_of(models), (0,), (FINAL,)))
    shape = (4, *predictor.patch_size)
    of_one = predictor_module.SCRATCH * bytes_of_pass(predictor.network, (1, *shape))
    monkeypatch.setattr(predictor_module, "free_bytes", lambda device: room * of_one)
    seen = []
    predictor.network.register_forward_hook(
        lambda network, images, logits: seen.append(len(logits)) if logits.device == CPU else None
    )
    predictor.predict_average(torch.rand(shape), {})
    assert set(seen) == (batches if room else {8}), "windows take as many as was asked for"
    assert bool(room) != ("does not fit into the memory that is free" in sentences(recwarn))


def test_a_whole_brain_keeps_to_the_budget(models, recwarn):
    for budget, sentence in ((1, "does not fit into the memory that --low-memory leaves"), (2**20, "")):
        predictor = BraTSPredictor("brain", "none", memory_budget_mb=budget, device=CPU)
        predictor.load(TrainedModel.of(folder_of(models), (0,), (FINAL,)))
        recwarn.clear()
        predictor.predict_average(torch.rand(4, *predictor.patch_size), {})
        assert sentence in sentences(recwarn) and bool(sentences(recwarn)) == bool(sentence)


def test_a_network_built_by_the_caller_gives_fp32_in_bfloat16_too(models, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    loaded = BraTSPredictor("brain", "none", device=CPU)
    loaded.load(TrainedModel.of(folder_of(models), (0,), (FINAL,)))
    predictor = BraTSPredictor("brain", "none", precision="bf16", device=CPU)
    plans = (loaded.plans_manager, loaded.configuration_manager)
    weights, own = [loaded.network.state_dict()], (loaded.dataset_json, "BraTSBaselineTrainer", None)
    predictor.manual_initialization(loaded.network, *plans, weights, *own)
    seen = []
    predictor.network.register_forward_hook(lambda network, images, logits: seen.append(logits.dtype))
    predictor.predict_average(torch.rand(4, *predictor.patch_size), {})
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("trainer", ["BraTSBaselineTrainer", "BraTSNoNewNetTrainer"])
@pytest.mark.parametrize("symmetries", ["paper", "mirror", "dihedral16", "none"])
def test_the_passes_of_a_case_are_counted_before_it_is_predicted(trainer, symmetries, models, world):
    model = TrainedModel.of(folder_of(models, trainer=trainer), (0, 1), (FINAL,))
    predictor = BraTSPredictor("brain", symmetries, device=CPU)
    predictor.load(model)
    predictor.allowed_mirroring_axes = (0, 1, 2)  # what a training leaves in a checkpoint
    seen = []
    predictor.network.register_forward_hook(lambda network, images, logits: seen.append(logits.device.type))
    shape = (len(model.description.channel_names), *model.patch_size)
    predictor.predict_average(torch.rand(shape), {})
    assert seen.count("cpu") == Member(model, Passes("brain", symmetries)).passes_per_case


def test_without_a_gpu_the_cpu_is_used_unless_one_was_asked_for(models, world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["predict", "-i", str(world.raw / "imagesTs"), "-o", str(tmp_path / "out"), "-f", "0"]
    words += ["-tr", "BraTSBaselineTrainer", "-c", "small", *NAMES, "-np", "0", "--tta", "none"]
    assert main([*words, "-device", "cuda"]) == 1
    assert "-device cuda: torch sees no such device" in capsys.readouterr().err
    assert main(words) == 0
    assert "the CPU is used" in capsys.readouterr().out


# ---- the output folder ---------------------------------------------------------------------------------------------


def command_for(world, tmp_path: Path, *more: str) -> list[str]:
    return ["predict", "-i", str(world.raw / "imagesTs"), "-o", str(tmp_path / "out"), *SMALL, "-f", "0", *more]


def test_an_output_that_is_a_file_is_refused(models, world, tmp_path, capsys):
    (tmp_path / "out").touch()
    assert main(command_for(world, tmp_path)) == 1
    assert f"-o {tmp_path / 'out'} is a file" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".nii.gz", ".npz", ".pkl"])
def test_a_damaged_prediction_is_made_again_and_the_others_are_not(ending, models, world, tmp_path):
    command = command_for(world, tmp_path, "--save_probabilities")
    assert main(command) == 0
    whole = label_maps(tmp_path / "out")
    damaged, other = sorted((tmp_path / "out").glob(f"*{ending}"))
    before = other.stat().st_mtime_ns
    cut(damaged)
    assert main(command) == 0
    assert same(label_maps(tmp_path / "out"), whole)
    assert np.load(sorted((tmp_path / "out").glob("*.npz"))[0])["probabilities"].shape[0] == 3
    assert other.stat().st_mtime_ns == before


def test_a_label_map_that_a_full_disk_has_cut_is_an_error_and_leaves_nothing(
    models, world, tmp_path, capsys, monkeypatch
):
    export = outputs.export

    def export_in_part(prediction, place: str, *arguments) -> None:
        export(prediction, place, *arguments)
        cut(Path(f"{place}.nii.gz"))

    monkeypatch.setattr(outputs, "export", export_in_part)
    assert main(command_for(world, tmp_path, "--save_probabilities")) == 1
    assert "nii.gz could not be written: only a part of it was written" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix != ".json"]


def test_settings_are_remembered_once_there_are_predictions(models, world, tmp_path, capsys, monkeypatch):
    write = PredictionTarget.write

    def fail(*arguments) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(PredictionTarget, "write", fail)
    assert main(command_for(world, tmp_path, "-step_size", "1")) == 1
    monkeypatch.setattr(PredictionTarget, "write", write)
    assert main(command_for(world, tmp_path)) == 0, "nothing was predicted with the other settings"
    assert main(command_for(world, tmp_path, "-step_size", "1")) == 1
    assert "other settings (tile_step_size)" in capsys.readouterr().err
    assert main(command_for(world, tmp_path, "-step_size", "1", "--overwrite")) == 0


def test_two_runs_never_write_into_one_folder(models, world, tmp_path, capsys):
    partial = tmp_path / "out" / ".partial-case.npz"
    with locked(tmp_path / "out"):
        partial.touch()
        assert main(command_for(world, tmp_path)) == 1
        assert "another run is predicting into" in capsys.readouterr().err
        assert partial.exists()
    assert main(command_for(world, tmp_path)) == 0
    assert not partial.exists(), "what a killed run left is removed by the next one"
    assert not (tmp_path / "out" / ".lock").exists()


def test_a_run_of_the_version_before_goes_on(models, world, tmp_path):
    """Its predict.json holds the same, key by key."""
    assert main(command_for(world, tmp_path)) == 0
    noted = json.loads((tmp_path / "out" / "predict.json").read_text())
    file = folder_of(models) / "fold_0" / FINAL
    assert noted == {
        "images": str((world.raw / "imagesTs").resolve()),
        "model": {str(file): [file.stat().st_size, file.stat().st_mtime_ns]},
        "rules": None,
        "previous": [],
        "tiling": "paper",
        "test_time_augmentation": "none",
        "combine": "logits",
        "tile_step_size": 0.5,
        "patch_size": None,
    }


# ---- images that are unlike those of training ----------------------------------------------------------------------


def of_spacing(factor: float):
    def change_spacing(image):
        image.SetSpacing([factor * length for length in image.GetSpacing()])
        return image

    return change_spacing


def lower_half(image):
    array = sitk.GetArrayFromImage(image)
    array[len(array) // 2 :] = 0
    half = sitk.GetImageFromArray(array)
    half.CopyInformation(image)
    return half


UNLIKE = {
    "twice the spacing": (
        of_spacing(2),
        r"voxels of 5.34 x 5.34 x 5.34 mm; those of 1 of 2 cases .*_007 \(10.7 x 10.7 x 10.7 mm\)",
    ),
    "a tenth more": (of_spacing(1.1), None),
    "half": (lower_half, r"brains of .* mm; those of 1 of 2 cases .*_007 \(.* mm\); is the skull there, or a part cut"),
}


@pytest.mark.parametrize("fingerprint", [False, True])
@pytest.mark.parametrize("kind", UNLIKE)
def test_images_of_another_size_than_in_training_are_named(kind, fingerprint, own_models, world, images, recwarn):
    model = folder_of(own_models)
    if fingerprint:
        shutil.copy(world.root / "nnUNet_preprocessed" / own_models.name / "dataset_fingerprint.json", model)
    spoil, sentence = UNLIKE[kind]
    files = find_image_files(images, TrainedModel.of(model, [0]).description)
    check_images(files, TrainedModel.of(model, [0]), processes=1)
    assert not sentences(recwarn)
    for file in next(iter(files.values())).values():
        change(file, spoil)
    check_images(files, TrainedModel.of(model, [0]), processes=1)
    said = sentences(recwarn)
    assert re.search(sentence, said) if sentence else not said, said


def test_slices_are_refused_by_a_model_of_volumes(models, world, images, tmp_path, capsys):
    for file in images.glob("*.nii.gz"):
        change(file, lambda image: image[:, :, 16])
    assert main(["predict", "-i", str(images), "-o", str(tmp_path / "out"), "-f", "0", *SMALL]) == 1
    assert "has 2 axes instead of 3; write all slices to one file" in capsys.readouterr().err


REAL = Path(__file__).parents[3] / "shared" / "real_patients" / "BraTS2021_Training_Data"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real patients are not here")
def test_no_real_patient_is_far_from_the_others():
    boxes = []
    for folder in sorted(REAL.iterdir()):
        arrays = [read_image(folder / f"{folder.name}_{kind}.nii.gz").array for kind in ("t1", "t1ce", "t2", "flair")]
        boxes.append(brain_size_mm(arrays, (1, 1, 1)))
    ones = np.ones((2, 3))
    for number, box in enumerate(boxes):
        others = np.array(boxes[:number] + boxes[number + 1 :])
        sizes = TrainingSizes(ones, np.stack([others.min(0), others.max(0)]))
        assert (sizes.far_brain(box), sizes.far_spacing((1, 1, 1))) == (None, None)
        assert sizes.far_brain((155, 240, 240)) == "240 x 240 x 155 mm"


# ---- images with other axes ----------------------------------------------------------------------------------------


def turn_files(files, axes: str) -> None:
    for file in files:
        image = read_image(file).turned(axes)
        write_image(file, image.array, image.grid)


def predicted(images: Path, out: Path, *words: str) -> Path:
    assert main(["predict", "-i", str(images), "-o", str(out), *words]) == 0
    return out


def assert_same_after_turning(expected: Path, found: Path, axes: str) -> None:
    """Every label map and every probability is where it was, the header included."""
    files = sorted(expected.glob("*.nii.gz"))
    assert [path.name for path in files] == [path.name for path in sorted(found.glob("*.nii.gz"))]
    for file in files:
        one, other = read_image(file).turned(axes), read_image(found / file.name)
        assert one.grid.difference(other.grid, 1e-3) is None
        np.testing.assert_array_equal(one.array, other.array)
    for file in expected.glob("*.npz"):
        probabilities = read_probabilities(found / file.name)
        np.testing.assert_array_equal(turn(read_probabilities(file), "LPS", axes), probabilities)


def sentences(recwarn) -> str:
    return " ".join(str(one.message) for one in recwarn if one.category is Notice)


ONE_EACH = ("-f", "0", "-prev_f", "0", "-chk", "one.pth", "-prev_chk", "one.pth")


@pytest.mark.parametrize("axes", ["SAL", "RAS", "PIR"])
def test_images_with_other_axes_give_the_same_label_maps_turned(axes, models, world, images, tmp_path, recwarn):
    words = (*SMALL, "-f", "0", "--save_probabilities")
    expected = predicted(world.raw / "imagesTs", tmp_path / "expected", *words)
    assert "turned" not in sentences(recwarn)
    turn_files(images.glob("*.nii.gz"), axes)
    assert_same_after_turning(expected, predicted(images, tmp_path / "found", *words), axes)
    assert "with the axes LPS; those of 2 of 2 cases are turned to them, and what is" in sentences(recwarn)


def test_the_label_maps_that_a_cascade_refines_lie_on_the_images_too(models, world, images, tmp_path):
    expected = predicted(world.raw / "imagesTs", tmp_path / "expected", *CASCADE, *ONE_EACH, "--keep-members")
    turn_files(images.glob("*.nii.gz"), "SAL")
    found = predicted(images, tmp_path / "found", *CASCADE, *ONE_EACH, "--keep-members")
    assert_same_after_turning(expected, found, "SAL")
    first = found / "previous_stage" / "first"
    assert_same_after_turning(expected / "previous_stage" / "first", first, "SAL")
    words = (*CASCADE, "-f", "0", "-chk", "one.pth", "-prev_stage_predictions", str(first))
    assert_same_after_turning(expected, predicted(images, tmp_path / "given", *words), "SAL")


@pytest.mark.parametrize("combine", ["vote", "probabilities"])
def test_votes_and_means_are_turned_back(combine, models, world, images, tmp_path):
    words = (*SMALL, "--combine", combine, *(["--save_probabilities"] if combine == "probabilities" else []))
    expected = predicted(world.raw / "imagesTs", tmp_path / "expected", *words)
    turn_files(images.glob("*.nii.gz"), "RAS")
    assert_same_after_turning(expected, predicted(images, tmp_path / "found", *words), "RAS")


class LateWorkers(Workers):
    """Workers that do nothing before they must, and then the last first, as a busy machine may."""

    def __init__(self, processes: int):
        super().__init__(0)
        self.waiting = []

    def run(self, function, *arguments):
        self.waiting.append(partial(function, *arguments))

    def finish(self):
        while self.waiting:
            self.waiting.pop()()


def test_a_label_map_is_written_after_the_note_and_after_all_that_is_kept(models, world, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "Workers", LateWorkers)
    written, write = [], PredictionTarget.write

    def noted(target, case, prediction):
        assert (tmp_path / "out" / "predict.json").is_file()
        write(target, case, prediction)
        written.append((target.out.name, case))

    monkeypatch.setattr(PredictionTarget, "write", noted)
    words = (*CASCADE, *ONE_EACH[:4], *VOTE[:6], "--combine", "vote", "--keep-members")
    predicted(world.raw / "imagesTs", tmp_path / "out", *words)
    for case in {case for _, case in written}:
        folders = [folder for folder, of in written if of == case]
        assert folders[-1] == "out" and len(set(folders)) == len(folders) > 2


def test_label_maps_before_rules_are_not_continued_with_another_model(models, world, tmp_path, capsys, monkeypatch):
    """Also where a run was stopped after its last case and before the rules."""
    out = tmp_path / "out"
    command = ["predict", "-i", str(world.raw / "imagesTs"), "-o", str(out), *SMALL, "--rules", "lyu2020"]
    with monkeypatch.context() as patch:
        patch.setattr(RulesStep, "run", Mock(side_effect=KeyboardInterrupt))
        assert main([*command, "-f", "0"]) == 130
    assert len(label_maps(out / "before_rules")) == 2 and not label_maps(out)
    assert main([*command, "-f", "1"]) == 1
    assert "other settings (model)" in capsys.readouterr().err
    assert main([*command, "-f", "0"]) == 0
    assert len(label_maps(out)) == 2


@pytest.mark.parametrize("words", [("-f", "0", "0"), ("-f", "0", "-chk", FINAL, FINAL)])
def test_what_would_count_twice_is_refused(words, models, world, tmp_path, capsys):
    assert main(["predict", "-i", str(world.raw / "imagesTs"), "-o", str(tmp_path / "out"), *SMALL, *words]) == 1
    assert "is given twice, and would count twice" in capsys.readouterr().err


def test_a_copy_of_a_fold_is_no_fold(own_models, world, tmp_path):
    for folder in own_models.glob("*/fold_0"):
        shutil.copytree(folder, folder.with_name("fold_0_before"))
    assert trained_folds(folder_of(own_models)) == (0, 1)
    assert list(fold_folders(folder_of(own_models))) == ["0", "1"]


def test_a_profile_has_every_part_and_the_seconds_of_each_case_alone(models, world, tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "perf_counter", partial(next, count_up()))  # each step takes a second
    words = (*SMALL, "--cross-validation", "--profile")
    assert main(["predict", "-o", str(tmp_path), *words]) == 0
    parts = json.loads((tmp_path / "profile.json").read_text())["parts"]
    assert list(parts) == ["Fold 0: Predict", "Fold 1: Predict"]
    cases = [case for part in parts.values() for case in part["cases"]]
    assert sorted(f"{case}.nii.gz" for case in cases) == list(label_maps(tmp_path))
    steps = [step for part in parts.values() for case in part["cases"].values() for step in case.values()]
    assert {step["seconds"] for step in steps} == {1}


@pytest.mark.parametrize("ties", ["release", "text"])
def test_a_vote_case_by_case_is_the_vote_of_whole_label_maps_and_probabilities(ties, world):
    """Whose labels lie in boxes of their own, beside members that doubt there."""
    rng, plans = np.random.default_rng(0), PlansManager(world.plans)
    model = ModelDescription(plans, plans.get_configuration("3d_fullres"), world.dataset_json)
    shape = (6, 7, 8)
    properties = {
        "spacing": [model.configuration.spacing[axis] for axis in plans.transpose_backward],
        "shape_after_cropping_and_before_resampling": shape,
    }
    for count in (2, 4):
        members = []
        for number in range(count):
            values = rng.uniform(-2, 0, (model.label_manager.num_segmentation_heads, *shape)).astype(np.float32)
            values[:, number : number + 3, 2:5] += 2
            members.append(Logits(values, properties, model))
        passes = Passes(combine="vote", ties=ties)
        system = SimpleNamespace(members=[SimpleNamespace(passes=passes, weight=1.0)] * count)
        whole = [(one.labels(p := one.probabilities()), label_probabilities(p, model.head)) for one in members]
        order = [model.head.labels.index(label) for label in model.description.paint]
        expected = fusion.majority([(labels, p[order]) for labels, p in whole], model.description.paint, ties=ties)
        logits = iter(members)
        assert np.array_equal(networks.vote(system, lambda member, logits=logits: next(logits)).labels, expected)


def test_one_sequence_with_other_axes_is_turned_onto_the_others(models, world, images, tmp_path, recwarn):
    expected = predicted(world.raw / "imagesTs", tmp_path / "expected", *SMALL, "-f", "0")
    turn_files(images.glob("*_0002.nii.gz"), "SAL")
    assert_same_after_turning(expected, predicted(images, tmp_path / "found", *SMALL, "-f", "0"), "LPS")
    assert "(LPS, SAL)" in sentences(recwarn)


def test_axes_that_nobody_has_noted_stay_as_they_are(own_models, images, tmp_path, recwarn):
    for file in own_models.glob("*/dataset.json"):
        content = json.loads(file.read_text())
        content.pop("brats_release")
        file.write_text(json.dumps(content))
    expected = predicted(images, tmp_path / "expected", *SMALL, "-f", "0")
    turn_files(images.glob("*.nii.gz"), "SAL")
    found = predicted(images, tmp_path / "found", *SMALL, "-f", "0")
    assert "turned" not in sentences(recwarn)
    assert label_maps(found).keys() == label_maps(expected).keys()
    assert {read_grid(path).axes for path in found.glob("*.nii.gz")} == {"SAL"}


# ---- patients who lack sequences -----------------------------------------------------------------------------------


def settings_in(folder: Path) -> dict:
    return json.loads((folder / "predict.json").read_text())


def test_an_absent_sequence_is_as_zeros_and_noted(models, world, images, tmp_path, recwarn):
    first = min(images.glob("*_0002.nii.gz"))
    zeros = shutil.copytree(images, tmp_path / "zeros")
    change(zeros / first.name, lambda image: image * 0)
    first.unlink()
    expected = predicted(zeros, tmp_path / "expected", *SMALL, "-f", "0")
    found = predicted(images, tmp_path / "found", *SMALL, "-f", "0", "--missing")
    assert_same_after_turning(expected, found, "LPS")
    case = first.name.removesuffix("_0002.nii.gz")
    assert settings_in(found)["missing"] == {case: ["T2"]}
    assert "missing" not in settings_in(expected)
    assert "BraTSBaselineTrainer was not trained without sequences" in sentences(recwarn)


def test_an_absent_sequence_stays_zero_in_nnunets_normalisation_also_in_a_cascade(models, world, images, tmp_path):
    for file in images.glob("*_0000.nii.gz"):
        file.unlink()
    predictor = BraTSPredictor(device=CPU)
    predictor.load(TrainedModel.of(folder_of(models), [0]))
    files = find_image_files(images, predictor.description.description, missing=True)
    case, _ = ImageCases(files).read([predictor.description], list(files), Workers(0))
    data, _ = case.seen_by(predictor.description)
    assert [bool(channel.any()) for channel in data] == [False, True, True, True]
    predicted(images, tmp_path / "out", *CASCADE, *ONE_EACH, "--missing")
    assert len(label_maps(tmp_path / "out")) == 2


def test_sequences_that_are_not_asked_for_are_as_absent(models, images, tmp_path):
    found = predicted(images, tmp_path / "found", *SMALL, "-f", "0", "--sequences", "T1ce", "FLAIR")
    for channel in (0, 2):
        for file in images.glob(f"*_000{channel}.nii.gz"):
            file.unlink()
    expected = predicted(images, tmp_path / "expected", *SMALL, "-f", "0", "--missing")
    assert_same_after_turning(expected, found, "LPS")
    assert settings_in(found)["missing"] == settings_in(expected)["missing"]


def test_a_trainer_with_sequence_dropout_gets_no_notice(world, images, tmp_path, monkeypatch, recwarn):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    plans = small_plans(world, "SmallPlans", {"small": {}})
    name = "BraTSBaselineSequenceDropoutTrainer"
    save_untrained(world, plans, "small", name)
    min(images.glob("*_0001.nii.gz")).unlink()
    predicted(images, tmp_path / "out", "-tr", name, "-c", "small", *NAMES, *RUN, "--missing")
    assert "was not trained without" not in sentences(recwarn)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--sequences", "PET"), "no channel shows PET"),
        (("--by-sequences", "--sequences", "T1"), "leave out --sequences"),
        (("--sequences", "T1", "--rules", "zhou2020-kmeans"), "looks at all sequences"),
    ],
)
def test_sequences_that_cannot_be_are_refused(words, sentence, models, world, tmp_path, capsys):
    assert main(command_for(world, tmp_path, *words)) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_set_of_sequences_is_predicted_into_a_folder_of_its_own_and_scored_in_one_table(
    models, world, tmp_path, capsys, recwarn, monkeypatch
):
    loaded, load = [], BraTSPredictor.load
    monkeypatch.setattr(BraTSPredictor, "load", lambda self, model: loaded.append(model) or load(self, model))
    images, labels = tmp_path / "images", tmp_path / "labels"
    case = min((world.raw / "labelsTr").glob("*.nii.gz")).name.removesuffix(".nii.gz")
    for folder, source in ((images, "imagesTr"), (labels, "labelsTr")):
        folder.mkdir()
        for file in (world.raw / source).glob(f"{case}*"):
            shutil.copy(file, folder)
    out = predicted(images, tmp_path / "out", *SMALL, "-f", "0", "--by-sequences")
    folders = {path.name: path for path in out.iterdir()}
    assert len(folders) == 15 and len(loaded) == 1
    assert sentences(recwarn).count("was not trained without sequences") == 1
    assert "Searching" not in capsys.readouterr().out
    assert {"T1+T1ce+T2+FLAIR", "T1ce+FLAIR", "T2"} < folders.keys()
    assert settings_in(folders["T1ce+FLAIR"])["missing"] == {case: ["T1", "T2"]}
    assert "missing" not in settings_in(folders["T1+T1ce+T2+FLAIR"])
    capsys.readouterr()
    results = tmp_path / "results.json"
    command = [
        "evaluate",
        str(labels),
        str(out),
        "--by-sequences",
        "-o",
        str(results),
        "-np",
        "1",
        "--labels",
        "trained",
    ]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert all(name.replace("+", " + ") in shown for name in folders)
    scores = json.loads(results.read_text())
    assert next(iter(scores)) == "T1+T1ce+T2+FLAIR"
    alone = evaluate_folders(labels, folders["T1ce+FLAIR"], labels="trained")
    assert scores["T1ce+FLAIR"]["cases"] == json.loads(json.dumps(alone["cases"]))
    assert results.with_name("results_summary.csv").read_text().startswith("sequences,region,metric,mean")
    shutil.rmtree(folders["T2"])
    assert main(command) == 1
    assert "lacks T2" in capsys.readouterr().err
