"""The pool: the best models of each fold by their own inference, and the equal mean of all that are chosen."""

import json
import shutil
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from untrained_models import save_untrained, small_plans

from nnunet_brats_ext.cli import main
from nnunet_brats_ext.inference import BraTSPredictor
from nnunet_brats_ext.storage.images import read_label_map

SCORES = {"one": (0.9, 0.9), "two": (0.8, 0.1), "three": (0.1, 0.8), "four": (0.0, 0.0)}  # of folds 0 and 1
CHOSEN = [("one", 0), ("two", 0), ("one", 1), ("three", 1)]
MODEL = ("-d", "901", "-p", "PoolPlans", "-device", "cpu", "-np", "0", "--tta", "none")
POOL = ("predict", *MODEL, "--models", *(f"BraTSBaselineTrainer:{name}" for name in SCORES))


def folder_of(name: str) -> str:
    return f"BraTSBaselineTrainer__PoolPlans__{name}"


# ---- the command, on untrained networks ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(world_on_disk, tmp_path_factory) -> Path:
    """Four models of two folds with random weights, scored, with the Dice above in place of theirs."""
    results = tmp_path_factory.mktemp("pool")
    plans = small_plans(world_on_disk, "PoolPlans", {name: {} for name in SCORES})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (world_on_disk.settings | {"nnUNet_results": str(results)}).items():
            patch.setenv(name, value)
        for number, name in enumerate(SCORES):
            save_untrained(world_on_disk, plans, name, folds=(0, 1), seed=number)
        assert main(["choose", *POOL[1:]]) == 0
    place = results / world_on_disk.dataset
    for name, scores in SCORES.items():
        for fold, dice in enumerate(scores):
            set_dice(place / folder_of(name) / f"fold_{fold}", dice)
    return place


def set_dice(fold: Path, *dice: float) -> None:
    """Give the cases of a fold, in order, the Dice of these numbers."""
    file = fold / "scores" / "checkpoint_final.json"
    content = json.loads(file.read_text())
    for value, (_, regions) in zip(cycle(dice), sorted(content["cases"].items()), strict=False):
        for metrics in regions.values():
            metrics["dice"] = value
    file.write_text(json.dumps(content))


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
    chosen = {str(f): [f"BraTSBaselineTrainer:{name}" for name, fold in CHOSEN if fold == f] for f in (0, 1)}
    assert noted["chosen"] == chosen
    assert noted["scores"] == {
        str(fold): {f"BraTSBaselineTrainer:{name}": pytest.approx(dice[fold]) for name, dice in SCORES.items()}
        for fold in (0, 1)
    }


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
        ("checkpoint_final.pth", ("--cross-validation",), f"fold_1 lacks checkpoint_final.pth: {TRAIN}\n"),
        ("", ("--best", "5"), "--best 5 of 4 candidates in fold 0: choose 1 to 4"),
        ("", ("-f", "0", "2"), "fold_2 lacks checkpoint_final.pth"),
        ("", ("-f", "all"), "-f all: candidates are chosen by the cases that a numbered fold holds out"),
        ("", ("--by", "NCR"), "--by NCR: no objective 'NCR'; there are ranking, dice, "),
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


def test_no_case_is_predicted_by_what_it_has_chosen_itself(models, tmp_path, monkeypatch, capsys):
    """One is better than Two on the first case of the fold and worse on the second, so each goes to the other case."""
    place = Path(shutil.copytree(models, tmp_path / models.name))
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    for name, dice in {"one": (0.9, 0.1), "two": (0.2, 0.8)}.items():
        set_dice(place / folder_of(name) / "fold_0", *dice)
    pair = ["predict", *MODEL, "--models", "BraTSBaselineTrainer:one", "BraTSBaselineTrainer:two", "-f", "0"]
    out, noted = tmp_path / "pool", tmp_path / "noted.json"
    assert main([*pair, "--best", "1", "--cross-validation", "-o", str(out), "--save_probabilities"]) == 0
    alone = {}
    for name in ("one", "two"):
        words = ["predict", *MODEL, "-tr", "BraTSBaselineTrainer", "-c", name, "-f", "0", "--cross-validation"]
        assert main([*words, "-o", str(tmp_path / name), "--save_probabilities"]) == 0
        alone[name] = probabilities(tmp_path / name)
    first, second = sorted(alone["one"])
    assert_mean(out, [{first: alone["two"][first], second: alone["one"][second]}])

    assert main(["choose", *pair[1:], "--best", "1", "-o", str(noted)]) == 0
    assert json.loads(noted.read_text())["chosen"] == {"0": ["BraTSBaselineTrainer:one"]}
    capsys.readouterr()
    words = ["predict", *MODEL, "-tr", "BraTSBaselineTrainer", "-c", "two", "-chk", "chosen", "-i", "IMAGES"]
    assert main([*words, "-o", str(tmp_path / "chosen")]) == 1
    assert "none of its checkpoints was chosen" in capsys.readouterr().err
