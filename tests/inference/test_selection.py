"""`choose`: the best checkpoints of each fold by the paper's inference, and `-chk chosen`, which takes them."""

import json
import random
import shutil
from itertools import permutations
from pathlib import Path

import pytest
from untrained_models import save_untrained, small_plans

from nnunet_brats_ext.cli import main
from nnunet_brats_ext.evaluation import evaluate_folders
from nnunet_brats_ext.evaluation.presets import find_preset
from nnunet_brats_ext.inference import BraTSPredictor, predict
from nnunet_brats_ext.inference.chosen import read_choice
from nnunet_brats_ext.inference.models import TrainedModel
from nnunet_brats_ext.inference.selection import choose, select
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import read_image, read_label_map, write_image

SNAPSHOTS = ("checkpoint_epoch_1.pth", "checkpoint_epoch_10.pth", "checkpoint_epoch_9.pth", "checkpoint_final.pth")
ON_CPU = dict(device="cpu", processes=0)


# ---- the choice ----------------------------------------------------------------------------------------------------


def candidates(number: int) -> list[TrainedModel]:
    return [TrainedModel.of(Path("model"), [0], [f"checkpoint_epoch_{epoch}.pth"]) for epoch in range(number)]


def scores_of(dice: list[list[float]], hd95: float = 1.0) -> dict:
    """candidate x case -> what the candidates score, alike in all regions."""
    return {
        one: {f"case{i}": {region: {"dice": value, "hd95": hd95} for region in ("WT", "TC", "ET")}
              for i, value in enumerate(row)}
        for one, row in zip(candidates(len(dice)), dice, strict=True)
    }  # fmt: skip


PRESET = find_preset("brats2020")


@pytest.mark.parametrize("best", [1, 2, 4])
@pytest.mark.parametrize("by", ["dice", "ET", "ranking"])
def test_the_best_are_those_of_the_highest_score_in_whatever_order_they_are_given(best, by):
    draw = random.Random(best)
    scores = scores_of([[draw.random()] * 3 for _ in range(4)])
    order = sorted(scores, key=lambda one: -scores[one]["case0"]["WT"]["dice"])
    for given in permutations(scores):
        assert list(select({one: scores[one] for one in given}, best, by, PRESET).best) == order[:best]


def test_a_region_and_the_ranking_choose_by_their_own_columns():
    scores = scores_of([[0.9, 0.9], [0.8, 0.8]])
    first, second = scores
    for case in scores[second].values():
        case["ET"]["dice"] = 0.95
        for metrics in case.values():
            metrics["hd95"] = 0.5
    assert [select(scores, 1, by, PRESET).best[0] for by in ("dice", "ET", "hd95", "ranking")] == [
        first, second, second, second
    ]  # fmt: skip


def test_every_case_has_a_choice_of_other_cases_only():
    """In whatever half a case is: were its own scores others, its choice would be the same."""
    draw = random.Random(0)
    for cases in (2, 3, 5, 8):
        scores = scores_of([[draw.random() for _ in range(cases)] for _ in range(3)])
        before = select(scores, 1, "dice", PRESET)
        assert sorted(case for half in before.halves for case in half) == sorted(scores[candidates(1)[0]])
        for case in scores[candidates(1)[0]]:
            other = {one: {**each, case: scores_of([[draw.random()]])[candidates(1)[0]]["case0"]}
                     for one, each in scores.items()}  # fmt: skip
            assert select(other, 1, "dice", PRESET).without(case) == before.without(case)


def test_of_equals_the_first_is_chosen_and_a_single_case_chooses_for_itself():
    chosen = select(scores_of([[0.5], [0.5], [0.7]]), 2, "dice", PRESET)
    assert [one.checkpoints for one in chosen.best] == [("checkpoint_epoch_2.pth",), ("checkpoint_epoch_0.pth",)]
    assert chosen.without("case0") == chosen.best


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(world_on_disk, tmp_path_factory) -> Path:
    """A model with four snapshots that sees whole brains, and a second stage with two."""
    place = tmp_path_factory.mktemp("selection")
    stages = {"first": {"next_stage": "second"}, "second": {"previous_stage": "first"}, "small": {}}
    plans = small_plans(world_on_disk, "SmallPlans", stages)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (world_on_disk.settings | {"nnUNet_results": str(place)}).items():
            patch.setenv(name, value)
        save_untrained(world_on_disk, plans, "small", "BraTSNoNewNetTrainer", (0, 1), SNAPSHOTS, seed=1)
        save_untrained(world_on_disk, plans, "first", checkpoints=SNAPSHOTS[:1] + SNAPSHOTS[-1:], seed=2)
        save_untrained(world_on_disk, plans, "second", checkpoints=SNAPSHOTS[:1] + SNAPSHOTS[-1:], seed=3)
    return place / world_on_disk.dataset


@pytest.fixture
def models(results, world, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    return Path(shutil.copytree(results, tmp_path / results.name))


@pytest.fixture
def passes(monkeypatch) -> list:
    """What was predicted: the checkpoints of each pass."""
    done, whole = [], BraTSPredictor.predict_average

    def counted(self, data, properties, checkpoints=None):
        done.append([file.name for file in checkpoints])
        return whole(self, data, properties, checkpoints)

    monkeypatch.setattr(BraTSPredictor, "predict_average", counted)
    return done


def same_maps(one: Path, other: Path) -> bool:
    files = sorted(path.name for path in one.glob("*.nii.gz"))
    assert files == sorted(path.name for path in other.glob("*.nii.gz")) != []
    return all((read_label_map(one / name)[0] == read_label_map(other / name)[0]).all() for name in files)


def test_scores_are_those_of_the_cross_validation_and_are_made_once(models, world, tmp_path, passes):
    model = models / "BraTSNoNewNetTrainer__SmallPlans__small"
    chosen = choose(model, best=2, **ON_CPU)
    assert [one.checkpoints[0] for one in chosen[0].means] == [SNAPSHOTS[i] for i in (0, 2, 1, 3)], "by epoch"
    assert len(passes) == 3 * 4, "fold 0 has two cases, fold 1 has one"
    for name in SNAPSHOTS:
        out = tmp_path / name
        predict(out=out, model=model, checkpoints=[name], cross_validation=True, **ON_CPU)
        scored = evaluate_folders(world.raw / "labelsTr", out, partial=True)["cases"]
        for fold in (0, 1):
            kept = json.loads((model / f"fold_{fold}" / "scores" / f"{Path(name).stem}.json").read_text())["cases"]
            for case, regions in kept.items():
                assert all(scores == pytest.approx(scored[case][region]) for region, scores in regions.items())

    passes.clear()
    for options in (dict(best=1), dict(best=3, by="ranking"), dict(best=1, by="ET", checkpoints=SNAPSHOTS[:2])):
        choose(model, **options, **ON_CPU)
    assert not passes, "another choice predicts nothing"
    choose(model, symmetries="none", **ON_CPU)
    assert len(passes) == 12, "another inference has scores of its own"
    assert not list(model.glob("fold_*/scores/.*"))


@pytest.mark.parametrize("turned", ["imagesTr", "labelsTr"])
def test_scores_do_not_depend_on_the_axes_of_images_or_references(turned, models, world, tmp_path, monkeypatch):
    model = models / "BraTSNoNewNetTrainer__SmallPlans__small"
    expected = choose(model, best=1, checkpoints=SNAPSHOTS[:1], **ON_CPU)
    raw = tmp_path / "raw" / world.dataset
    shutil.copytree(world.raw, raw)
    monkeypatch.setenv("nnUNet_raw", str(raw.parent))
    for file in (raw / turned).iterdir():
        image = read_image(file).turned("RAS")
        write_image(file, image.array, image.grid)
    for scores in model.glob("fold_*/scores"):
        shutil.rmtree(scores)
    found = choose(model, best=1, checkpoints=SNAPSHOTS[:1], **ON_CPU)
    for fold in expected:
        assert list(found[fold].means.values()) == list(expected[fold].means.values())


def test_chosen_checkpoints_are_those_that_predict(models, world, tmp_path):
    model = models / "BraTSNoNewNetTrainer__SmallPlans__small"
    chosen = choose(model, folds=["1"], best=2, symmetries="none", **ON_CPU)[1]
    names = [one.checkpoints[0] for one in chosen.best]
    images = dict(images=world.raw / "imagesTs", symmetries="none", **ON_CPU)
    predict(out=tmp_path / "chosen", model=model, checkpoints=["chosen"], **images)
    predict(out=tmp_path / "named", model=model, checkpoints=names, folds=["1"], **images)
    assert same_maps(tmp_path / "chosen", tmp_path / "named")
    with pytest.raises(UserError, match=r"fold_0/chosen\.json does not exist"):
        predict(out=tmp_path / "more", model=model, checkpoints=["chosen"], folds=["0", "1"], **images)

    shutil.copyfile(model / "fold_0" / names[0], model / "fold_1" / names[0])
    with pytest.raises(UserError, match=r"is not the one that .*chosen\.json was written for"):
        predict(out=tmp_path / "again", model=model, checkpoints=["chosen"], **images)


def test_the_first_of_what_was_chosen_predict_as_if_they_were_named(models, world, tmp_path):
    """Also in a cross-validation, where each half of the cases has an order of its own."""
    model = models / "BraTSNoNewNetTrainer__SmallPlans__small"
    choose(model, best=2, symmetries="none", **ON_CPU)
    two = {fold: read_choice(model / f"fold_{fold}") for fold in (0, 1)}
    halves = [(fold, cases, names) for fold, one in two.items() for cases, names in one.halves.items()]
    images = dict(images=world.raw / "imagesTs", symmetries="none", model=model, **ON_CPU)
    predict(out=tmp_path / "first", checkpoints=["chosen:1"], folds=["1"], **images)
    predict(out=tmp_path / "named", checkpoints=two[1].checkpoints[:1], folds=["1"], **images)
    assert same_maps(tmp_path / "first", tmp_path / "named")
    predict(out=tmp_path / "both", checkpoints=["chosen:2"], folds=["1"], **images)
    predict(out=tmp_path / "all", checkpoints=["chosen"], folds=["1"], **images)
    assert same_maps(tmp_path / "both", tmp_path / "all")

    own = dict(model=model, symmetries="none", cross_validation=True, **ON_CPU)
    predict(out=tmp_path / "cv", checkpoints=["chosen:1"], **own)
    for fold, cases, names in halves:
        predict(out=(out := tmp_path / f"{fold}_{names[0]}"), checkpoints=names[:1], folds=[str(fold)], **own)
        for case in cases:
            one, other = (read_label_map(folder / f"{case}.nii.gz")[0] for folder in (tmp_path / "cv", out))
            assert (one == other).all()


def test_a_smaller_choice_is_the_begin_of_a_larger_one(models):
    """By whatever score, in each half too: `chosen:1` of a choice of three is the choice of one."""
    model = models / "BraTSNoNewNetTrainer__SmallPlans__small"
    for by in ("dice", "ET", "ranking"):
        choose(model, folds=["0"], best=3, by=by, symmetries="none", **ON_CPU)
        smaller = [read_choice(model / "fold_0", number) for number in (1, 2)]
        for number, found in enumerate(smaller, 1):
            choose(model, folds=["0"], best=number, by=by, symmetries="none", **ON_CPU)
            assert read_choice(model / "fold_0") == found


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (
            "chosen:3",
            r"chosen:3: .*fold_0/chosen\.json holds 2; `nnunet_brats choose -m .*small --best 3` writes as many",
        ),
        ("chosen:0", "chosen:0: expected chosen, or chosen:2 for the best two"),
        ("chosen:x", "chosen:x: expected chosen, or chosen:2 for the best two"),
        ("chosen:", "chosen:: expected chosen, or chosen:2 for the best two"),
    ],
)
def test_more_than_was_chosen_is_refused_with_what_to_do(models, world, tmp_path, word, sentence):
    model = models / "BraTSNoNewNetTrainer__SmallPlans__small"
    choose(model, folds=["0"], best=2, symmetries="none", **ON_CPU)
    with pytest.raises(UserError, match=sentence):
        predict(out=tmp_path / "out", model=model, checkpoints=[word], images=world.raw / "imagesTs", **ON_CPU)
    assert not (tmp_path / "out").exists()


def test_a_cross_validation_is_not_continued_with_another_choice_of_the_halves(models, world, tmp_path):
    model = models / "BraTSNoNewNetTrainer__SmallPlans__small"
    named = dict(out=tmp_path / "out", model=model, folds=["0"], symmetries="none", cross_validation=True, **ON_CPU)
    choose(model, folds=["0"], best=2, checkpoints=SNAPSHOTS[:2], symmetries="none", **ON_CPU)
    predict(checkpoints=["chosen"], **named)
    predict(checkpoints=["chosen"], **named)
    file = model / "fold_0" / "chosen.json"
    content = json.loads(file.read_text())
    content["halves"][0]["checkpoints"].pop()
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="made with other settings"):
        predict(checkpoints=["chosen"], **named)


def test_an_interrupted_choice_goes_on_and_a_second_stage_shares_the_maps_of_the_first(models, monkeypatch, passes):
    model, counted = models / "BraTSBaselineTrainer__SmallPlans__second", BraTSPredictor.predict_average

    def stop_in_the_second_case(*arguments):
        if len(passes) == 4:
            raise KeyboardInterrupt
        return counted(*arguments)

    words = ["choose", "-m", str(model), "-device", "cpu", "-np", "0", "--tta", "none"]
    with monkeypatch.context() as patch:
        patch.setattr(BraTSPredictor, "predict_average", stop_in_the_second_case)
        assert main(words) == 130
    assert passes == [[SNAPSHOTS[3]], [SNAPSHOTS[0]], [SNAPSHOTS[3]], [SNAPSHOTS[3]]]
    assert not (model / "fold_0" / "chosen.json").exists()
    assert main(words) == 0
    assert passes[4:] == [[SNAPSHOTS[3]], [SNAPSHOTS[0]], [SNAPSHOTS[3]]], "the second case, whose first map was lost"
    assert json.loads((model / "fold_0" / "chosen.json").read_text())["checkpoints"]

    first = models / "BraTSBaselineTrainer__SmallPlans__first"
    assert main(["choose", "-m", str(first), *words[3:]]) == 0
    passes.clear()
    assert main([*words, "-prev_chk", "chosen"]) == 0
    assert len(passes) in (0, 6), "scores over another first stage are others"
    passes.clear()
    assert main([*words, "-prev_chk", "chosen:1"]) == 0
    assert not passes, "the same first stage by another name"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(best=5), "--best 5 of 4 candidates in fold 0: choose 1 to 4"),
        (dict(folds=["all"]), "-f all: candidates are chosen by the cases that a numbered fold holds out"),
        (dict(folds=["2"]), "fold_2 holds no checkpoint"),
        (dict(checkpoints=["checkpoint_best.pth"], folds=["0"]), "fold_0 lacks checkpoint_best.pth"),
        (dict(by="NCR"), "--by NCR: no objective 'NCR'; there are ranking, dice"),
        (dict(best=0), "--best 0: expected at least 1"),
    ],
)
def test_what_cannot_be_chosen_is_said_with_what_to_do(options, sentence, models):
    model = models / "BraTSNoNewNetTrainer__SmallPlans__small"
    with pytest.raises(UserError) as error:
        choose(model, **options, **ON_CPU)
    assert sentence in str(error.value)
    assert not list(model.glob("fold_*/scores"))


def test_maps_for_a_next_stage_are_of_named_checkpoints(models):
    first = models / "BraTSBaselineTrainer__SmallPlans__first"
    for word in ("chosen", "chosen:1"):
        with pytest.raises(UserError, match=f"-chk {word}: a map has the name of its checkpoint"):
            predict(model=first, for_next_stage=True, checkpoints=[word], device="cpu")
