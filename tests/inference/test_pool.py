"""The pool: the best models of each fold by nnU-Net's validation, and the equal mean of all that are chosen."""

import json
import pickle
import random
import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.evaluation.evaluate_predictions import save_summary_json

from nnunet_brats_ext.cli import main
from nnunet_brats_ext.inference import BraTSPredictor
from nnunet_brats_ext.inference.validations import choose_best
from nnunet_brats_ext.storage.images import read_label_map
from nnunet_brats_ext.trainers import BraTSBaselineTrainer

SCORES = {"one": (0.9, 0.9), "two": (0.8, 0.1), "three": (0.1, 0.8), "four": (0.0, 0.0)}  # of folds 0 and 1
CHOSEN = [("one", 0), ("two", 0), ("one", 1), ("three", 1)]
MODEL = ("-d", "901", "-p", "PoolPlans", "-device", "cpu", "-np", "0", "--tta", "none")
POOL = ("predict", *MODEL, "--models", *(f"BraTSBaselineTrainer:{name}" for name in SCORES))


def folder_of(name: str) -> str:
    return f"BraTSBaselineTrainer__PoolPlans__{name}"


# ---- the choice ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("best", [1, 2, 3, 4])
def test_every_fold_has_its_best_in_whatever_order_they_are_given(best):
    draw = random.Random(best)
    scores = {name: {fold: draw.random() for fold in range(5)} for name in SCORES}
    chosen = choose_best(scores, best).chosen
    for fold, names in chosen.items():
        assert len(names) == best
        left = [scores[name][fold] for name in scores if name not in names]
        assert min(scores[name][fold] for name in names) > max(left, default=-1)
    for order in permutations(scores):
        assert choose_best({name: scores[name] for name in order}, best).chosen == chosen


def test_of_equals_those_given_first_enter():
    scores = {"b": {0: 0.5}, "a": {0: 0.5}, "c": {0: 0.7}, "d": {0: 0.5}}
    assert choose_best(scores, 2).chosen == {0: ["c", "b"]}


@pytest.mark.parametrize("best", [0, 3])
def test_more_than_there_are_cannot_be_chosen(best):
    with pytest.raises(ValueError, match=f"--best {best} of 2 models"):
        choose_best({"a": {0: 0.5}, "b": {0: 0.5}}, best)


# ---- the command, on untrained networks ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(world_on_disk, tmp_path_factory) -> Path:
    """Four models of two folds with random weights, and validations with random probabilities and the scores above."""
    results = tmp_path_factory.mktemp("pool")
    plans = world_on_disk.plans | {"plans_name": "PoolPlans"}
    base = plans["configurations"]["3d_fullres"]
    base["architecture"]["arch_kwargs"] |= dict(
        n_stages=2, features_per_stage=[4, 8], kernel_sizes=[[3, 3, 3]] * 2, strides=[[1, 1, 1], [2, 2, 2]],
        n_conv_per_stage=[1, 1], n_conv_per_stage_decoder=[1],
    )  # fmt: skip
    plans["configurations"] |= {name: {"inherits_from": "3d_fullres"} for name in SCORES}
    labels = sorted((world_on_disk.raw / "labelsTr").iterdir())
    values = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (world_on_disk.settings | {"nnUNet_results": str(results)}).items():
            patch.setenv(name, value)
        for number, (name, scores) in enumerate(SCORES.items()):
            for fold, dice in enumerate(scores):
                torch.manual_seed(10 * number + fold)
                trainer = BraTSBaselineTrainer(
                    plans | {"continue_training": False}, name, fold, world_on_disk.dataset_json, torch.device("cpu")
                )
                trainer.initialize()
                output = Path(trainer.output_folder)
                trainer.save_checkpoint(str(output / "checkpoint_final.pth"))
                validate(output / "validation", labels[fold::2], dice, values)
            for file, content in (("plans", plans), ("dataset", world_on_disk.dataset_json)):
                (output.parent / f"{file}.json").write_text(json.dumps(content))
    return output.parent.parent


def validate(folder: Path, labels: list[Path], dice: float, values: np.random.Generator) -> None:
    """What nnU-Net leaves of a validation with --npz."""
    folder.mkdir()
    for path in labels:
        case = path.name.removesuffix(".nii.gz")
        shutil.copyfile(path, folder / path.name)
        shape = read_label_map(path)[0].shape
        np.savez(folder / f"{case}.npz", probabilities=values.random((3, *shape), dtype=np.float32))
        (folder / f"{case}.pkl").write_bytes(pickle.dumps({"case": case}))
    metrics = {region: {"Dice": dice} for region in ((1, 2, 3), (2, 3), (3,))}
    cases = [{"metrics": metrics, "prediction_file": str(folder / path.name)} for path in labels]
    summary = {"metric_per_case": cases, "mean": metrics, "foreground_mean": {"Dice": dice}}
    save_summary_json(summary, str(folder / "summary.json"))


@pytest.fixture
def models(trained, world, monkeypatch) -> Path:
    monkeypatch.setenv("nnUNet_results", str(trained.parent))
    return trained


def probabilities(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.load(path)["probabilities"] for path in sorted(folder.glob("*.npz"))}


def label_maps(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: read_label_map(path)[0] for path in sorted(folder.glob("*.nii.gz"))}


def painted(regions: np.ndarray) -> np.ndarray:
    labels = np.zeros(regions.shape[1:], np.uint8)
    for label, region in enumerate(regions, start=1):
        labels[region > 0.5] = label
    return labels


def assert_mean(out: Path, members: list[dict[str, np.ndarray]]) -> None:
    """`out` holds the equal mean of the members, voxel by voxel, and its label maps."""
    means, maps = probabilities(out), label_maps(out)
    assert means.keys() == members[0].keys()
    for name, mean in means.items():
        expected = np.mean([member[name].astype(np.float64) for member in members], axis=0)
        assert np.abs(mean - expected).max() < 2e-6
        assert np.array_equal(maps[name.replace(".npz", ".nii.gz")], painted(mean))


def test_it_is_the_equal_mean_of_every_model_and_fold_that_is_chosen(models, world, tmp_path, capsys):
    images, out = str(world.raw / "imagesTs"), tmp_path / "pool"
    command = [*POOL, "-i", images, "-o", str(out), "--save_probabilities", "--keep-members"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "0.9000 *" in said
    alone = []
    for name, fold in CHOSEN:
        each = tmp_path / f"{name}_{fold}"
        words = ["predict", *MODEL, "-tr", "BraTSBaselineTrainer", "-c", name, "-f", str(fold), "-i", images]
        assert main([*words, "-o", str(each), "--save_probabilities"]) == 0
        alone.append(probabilities(each))
    assert len(alone[0]) == 2
    assert_mean(out, alone)
    assert sorted(path.name for path in (out / "members").iterdir()) == sorted(map(folder_of, ("one", "two", "three")))

    noted = json.loads((out / "pool.json").read_text())
    assert noted["chosen"] == {str(f): [folder_of(name) for name, fold in CHOSEN if fold == f] for f in (0, 1)}
    assert noted["scores"][folder_of("two")] == {"0": 0.8, "1": 0.1}


def test_an_interrupted_pool_goes_on_and_is_not_mixed_with_another(models, world, tmp_path, monkeypatch, capsys):
    """Three models predict each of two cases."""
    out = tmp_path / "pool"
    command = [*POOL, "-i", str(world.raw / "imagesTs"), "-o", str(out)]
    predict, passes = BraTSPredictor.predict_average, []

    def stop_in_the_second_case(*arguments):
        if len(passes) == 4:
            raise KeyboardInterrupt
        passes.append(arguments)
        return predict(*arguments)

    monkeypatch.setattr(BraTSPredictor, "predict_average", stop_in_the_second_case)
    assert main(command) == 130
    assert len(label_maps(out)) == 1
    assert main([*command, "--best", "1"]) == 1
    assert "other settings (best, chosen, models)" in capsys.readouterr().err

    passes.clear()
    assert main(command) == 0
    assert len(passes) == 3, "the other case"
    assert len(label_maps(out)) == 2
    assert not (out / "members").exists()
    for words in (command, ["predict", *command[1:]]):
        assert main(words) == 0
        assert "2 cases are in" in capsys.readouterr().out
        assert len(passes) == 3, "nothing is left to do, by the old name of the verb or the new one"

    passes.clear()
    assert main([*command, "--best", "1", "--overwrite"]) == 0
    assert len(passes) == 2, "the best of both folds is one and the same model, which sees each case once"

    (out / "pool.json").unlink()
    assert main(command) == 1
    assert f"{out} already holds maps (" in capsys.readouterr().err


def test_the_cross_validation_takes_each_fold_by_the_models_chosen_in_it(models, tmp_path):
    out = tmp_path / "pool"
    assert main([*POOL, "--cross-validation", "-o", str(out), "--save_probabilities"]) == 0
    alone = {}
    for name, fold in CHOSEN:
        each = tmp_path / f"{name}_{fold}"
        words = ["predict", *MODEL, "-tr", "BraTSBaselineTrainer", "-c", name, "-f", str(fold), "--cross-validation"]
        assert main([*words, "-o", str(each), "--save_probabilities"]) == 0
        alone[name, fold] = probabilities(each)
    first = [alone["one", 0] | alone["one", 1], alone["two", 0] | alone["three", 1]]
    assert len(first[0]) == 3
    assert_mean(out, first)
    assert {path.name for path in out.glob("*.json")} == {"dataset.json", "plans.json", "pool.json"}
    assert not (out / "members").exists()


TRAIN = "nnUNetv2_train Dataset901_World two 1 -tr BraTSBaselineTrainer -p PoolPlans"


@pytest.mark.parametrize(
    ("missing", "options", "sentence"),
    [
        ("checkpoint_final.pth", (), f"fold_1 lacks checkpoint_final.pth: {TRAIN}\n"),
        ("validation/summary.json", (), f"fold_1 lacks validation/summary.json: {TRAIN} --val\n"),
        ("validation/summary.json", ("--cross-validation",), f"{TRAIN} --val\n"),
        ("", ("--best", "5"), "--best 5 of 4 models: choose 1 to 4"),
        ("", ("-f", "0", "2"), "fold_2 lacks checkpoint_final.pth"),
        ("", ("-f", "all"), "-f all: --models are chosen by the validations of numbered folds"),
        ("", ("--models", "BraTSBaselineTrainer"), "--models BraTSBaselineTrainer: expected TRAINER:CONFIGURATION"),
        ("", ("--models", "BraTSBaselineTrainer:five"), "there are BraTSBaselineTrainer__PoolPlans__four"),
        ("", ("--models", *["BraTSBaselineTrainer:one"] * 2), "given twice among BraTSBaselineTrainer:one, "),
    ],
)
def test_what_cannot_be_chosen_is_said_with_what_to_do(
    missing, options, sentence, models, world, tmp_path, monkeypatch, capsys
):
    shutil.copytree(models, tmp_path / models.name)
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    for path in (tmp_path / models.name / folder_of("two") / "fold_1").glob(missing or "none"):
        path.unlink()
    given = () if "--cross-validation" in options else ("-i", str(world.raw / "imagesTs"))
    assert main([*POOL, *given, "-o", str(tmp_path / "out"), *options]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_validations_of_different_cases_and_without_dice_are_not_compared(models, tmp_path, monkeypatch, capsys):
    shutil.copytree(models, tmp_path / models.name)
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    file = tmp_path / models.name / folder_of("two") / "fold_0" / "validation" / "summary.json"
    summary = json.loads(file.read_text())
    command = [*POOL, "--cross-validation", "-o", str(tmp_path / "out")]
    file.write_text(json.dumps(summary | {"metric_per_case": summary["metric_per_case"][1:]}))
    assert main(command) == 1
    assert "validated on different cases in fold 0" in capsys.readouterr().err
    file.write_text(json.dumps(summary | {"foreground_mean": {"Dice": float("nan")}}))
    assert main(command) == 1
    assert f"{file} has no Dice" in capsys.readouterr().err
