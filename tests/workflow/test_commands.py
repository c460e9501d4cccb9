"""The commands that `plan` prints: everything of a paper or a trainer from a planned data set to the submission."""

import json
import re
import shlex
from pathlib import Path

import pytest

from nnunet_brats_ext import papers
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.planning.plan import Planned, plan
from nnunet_brats_ext.workflow.commands import commands_of_paper, commands_of_trainer
from nnunet_brats_ext.workflow.recipe import load_recipe, published_recipes
from nnunet_brats_ext.workflow.recipe_parts import base_data

FOLDS = 3
WITH_RECIPES = [key for key, paper in papers.find_papers().items() if paper.recipe]
ORDER = ("preprocess", "train", "predict", "restore")


@pytest.fixture
def planned(world, tmp_path, monkeypatch) -> Planned:
    """Plans of the world's data set under another root, with three folds."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    source, folder = (
        world.root / "nnUNet_preprocessed" / world.dataset,
        tmp_path / "nnUNet_preprocessed" / world.dataset,
    )
    folder.mkdir(parents=True)
    for file in ("nnUNetPlans.json", "dataset_fingerprint.json"):
        (folder / file).write_text((source / file).read_text())
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}] * FOLDS))
    (folder / "nnUNetPlans_3d_fullres").mkdir()
    return plan(901)


def of_verb(commands: list[str], verb: str) -> list[str]:
    return [one for one in commands if re.search(rf"(nnUNetv2_|nnunet_brats ){verb}\b", one)]


@pytest.mark.parametrize("paper", WITH_RECIPES)
def test_a_papers_commands_lead_from_the_plans_to_a_submission_with_the_folds_that_there_are(paper, planned):
    commands = commands_of_paper(paper, planned)
    assert commands[-1].startswith(f"nnunet_brats restore {paper}/predictions/test/")
    trainings = of_verb(commands, "train")
    assert trainings
    recipe = load_recipe(published_recipes()[paper])
    first = next(iter(recipe.data.values())).folds
    for model in _models(paper):
        own = base_data(recipe, model).folds
        folds = " ".join(map(str, model.folds or range(FOLDS if own == first else own)))
        assert [
            one for one in trainings if f"-tr {model.trainer} " in one and one.startswith(f"for fold in {folds}; do")
        ]
    assert {one.trainer for one in _models(paper)} == {re.search(r"-tr (\w+)", one)[1] for one in trainings}
    assert not of_verb(commands, "evaluate")
    assert not [one for one in commands if " convert " in one and " -d 901 " in one], "the data set is there"
    assert not [one for one in commands if "preprocess -d 901 -plans_name nnUNetPlans -c 3d_fullres" in one]
    assert all(shlex.split(one) for one in commands)


def _models(paper: str):
    recipe = load_recipe(published_recipes()[paper])
    return [model for name in recipe.submissions for model in _all_models(recipe, name)]


def _all_models(recipe, name: str):
    before = [model for source in recipe.sources_of(name) for model in _all_models(recipe, source)]
    own = [recipe.models[name]] if name in recipe.models else []
    distilled = [recipe.data[model.data].distill for model in own if recipe.data[model.data].distill]
    return [*own, *before, *(model for one in distilled for model in _all_models(recipe, one))]


def test_two_stages_come_one_after_the_other_with_rules_at_the_end(planned):
    commands = commands_of_paper("lyu2020", planned)
    text = "\n".join(commands)
    parts = [
        "for fold in 0 1 2; do nnUNetv2_train 901 lyu_stage1 $fold -tr BraTSVAETrainer -p BraTSPlans",
        "nnunet_brats predict --for-next-stage -d 901 -tr BraTSVAETrainer -c lyu_stage1",
        "for fold in 0 1 2; do nnUNetv2_train 901 lyu_stage2 $fold -tr BraTSAttentionVAETrainer",
        "nnunet_brats predict -i ",
        "nnunet_brats postprocess -i lyu2020/predictions/test/stage2 -o lyu2020/predictions/test/final --rules lyu2020",
        "nnunet_brats restore lyu2020/predictions/test/final -o lyu2020/submission -d 901",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_gpus_and_names_are_those_of_the_plans(planned):
    shared = plan(901, name="Mine", gpus="2")
    for one in of_verb(commands_of_paper("lyu2020", shared), "train"):
        assert "-p Mine" in one
        assert "-num_gpus 2" in one
    assert not [one for one in commands_of_paper("lyu2020", planned) if "-num_gpus" in one]


def test_a_trainer_comes_with_the_one_of_the_stage_before(planned):
    trainings = of_verb(commands_of_trainer("BraTSAttentionVAETrainer", planned), "train")
    assert [re.search(r"-tr (\w+)", one)[1] for one in trainings] == ["BraTSVAETrainer", "BraTSAttentionVAETrainer"]
    commands = commands_of_trainer("nnUNetTrainer", planned)
    assert of_verb(commands, "train") == [
        "for fold in 0 1 2; do nnUNetv2_train 901 3d_fullres $fold -tr nnUNetTrainer -p BraTSPlans -device cuda; done"
    ]


def test_they_are_printed_whole(planned, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["plan", "901", "--paper", "lyu2020"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[-len(commands := commands_of_paper("lyu2020", planned)) :] == commands
    with pytest.raises(SystemExit):
        main(["plan", "901", "--paper", "lyu2021"])
    assert "--paper" in capsys.readouterr().err


def test_another_data_set_of_the_paper_is_made_of_the_same_release(planned, tmp_path):
    (made,) = [one for one in commands_of_paper("henry2020", planned) if " convert " in one]
    assert made.startswith("nnunet_brats convert RELEASE -d 902 ")
    assert f"--folds {FOLDS} --normalise percentile-minmax --same-patients-as 901" in made
    raw = tmp_path / "nnUNet_raw" / planned.file.parent.name
    raw.mkdir(parents=True)
    (raw / "manifest.json").write_text(json.dumps({"source": "/data/My release"}))
    (made,) = [one for one in commands_of_paper("henry2020", planned) if " convert " in one]
    assert made.startswith("nnunet_brats convert '/data/My release' -d 902 ")
    assert Path(shlex.split(made)[2]) == Path("/data/My release")


def test_a_trainer_that_starts_from_anothers_weights_comes_after_it(planned):
    trainings = of_verb(commands_of_trainer("BraTSMedNeXtSKernel5Trainer", planned), "train")
    names = [re.search(r"-tr (\w+)", one)[1] for one in trainings]
    assert names == ["BraTSMedNeXtSTrainer", "BraTSMedNeXtSKernel5Trainer"]
