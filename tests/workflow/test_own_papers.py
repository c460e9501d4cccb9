"""A paper and a trainer of the user's own, in a folder of `nnUNet_extTrainer`, are planned and run as ours are."""

import json
import os
from pathlib import Path

import pytest
from workflow_runs import SMALL, graph_of, write_own

from nnunet_brats_ext import papers
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.papers import EXTERNAL
from nnunet_brats_ext.planning.plan import plan
from nnunet_brats_ext.workflow.recipe import COMPARE, load_recipe, published_recipes


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    place = write_own(tmp_path / "trainers")
    monkeypatch.setenv(EXTERNAL, os.pathsep.join([str(place), os.environ.get(EXTERNAL, "")]))
    return place


def test_its_recipe_runs_by_name_and_is_compared_with_all_others(own):
    assert published_recipes()["narrow2030"] == own / "narrow2030" / "recipe.yaml"
    jobs = graph_of("narrow2030")
    assert set(jobs) >= {f"train/narrow/fold_{fold}" for fold in range(5)}
    postprocessing = jobs["postprocess/test/final"].command
    assert postprocessing[postprocessing.index("--rules") + 1] == "narrow2030"
    assert "narrow2030.final" in load_recipe(COMPARE).evaluated


def test_its_snapshots_are_those_of_paper_py_and_those_that_a_recipe_asks_for(own, tmp_path):
    assert graph_of("narrow2030")["train/narrow/fold_0"].environment == {}, "its trainer keeps them anyway"
    mine = tmp_path / "mine.yaml"
    mine.write_text((own / "narrow2030" / "recipe.yaml").read_text().replace("[1, 2]", "[2, 7]"))
    assert graph_of(mine)["train/narrow/fold_0"].environment == {"nnUNet_brats_snapshots": "7"}


def test_a_subclass_has_its_parents_facts(own, tmp_path):
    parent, mine = papers.find_trainer("BraTSVAETrainer"), papers.find_trainer("MyVAETrainer")
    assert (mine.snapshot_epochs, mine.configuration) == (parent.snapshot_epochs, parent.configuration)
    file = tmp_path / "mine.yaml"
    recipe = SMALL.replace("BraTSBaselineTrainer", "MyVAETrainer").replace("3d_fullres", mine.configuration)
    file.write_text(recipe.replace("plans: nnUNetPlans", f"checkpoints: [{parent.snapshot_epochs[0]}, 5]"))
    assert graph_of(file)["train/one/fold_0"].environment == {"nnUNet_brats_snapshots": "5"}
    file.write_text(recipe.replace("MyVAETrainer", "MyVAETrainr"))
    with pytest.raises(ValueError, match="no trainer 'MyVAETrainr'"):
        load_recipe(file)


def test_its_configuration_is_planned_and_its_commands_printed(own, world, capsys):
    folder = world.root / "nnUNet_preprocessed" / world.dataset
    try:
        assert "narrow" in plan(901, name="OwnPlans").fits
        written = json.loads((folder / "OwnPlans.json").read_text())["configurations"]["narrow"]
        assert written["inherits_from"] == "3d_fullres"
        capsys.readouterr()
        for words in (["--paper", "narrow2030"], ["-tr", "NarrowTrainer"]):
            assert main(["plan", "901", "--name", "OwnPlans", *words]) == 0
            said = capsys.readouterr().out
            assert "do nnUNetv2_train 901 narrow $fold -tr NarrowTrainer -p OwnPlans" in said
            assert "nnunet_brats predict " in said
        assert main(["plan", "901", "--name", "OwnPlans", "-tr", "MyVAETrainer"]) == 0
        assert "do nnUNetv2_train 901 lyu_stage1 $fold -tr MyVAETrainer -p OwnPlans" in capsys.readouterr().out
    finally:
        (folder / "OwnPlans.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("paper.py", "PAPER =", "PAPER = None\nOTHER =", "PAPER is None; expected a Paper"),
        ("paper.py", "import Configuration", "import Configurations", "cannot be used: ImportError"),
        ("recipe.yaml", "NarrowTrainer", "NarowTrainer", "did you mean 'NarrowTrainer'?"),
        ("recipe.yaml", "configuration: narrow", "configuration: narow", "did you mean 'narrow'?"),
        ("recipe.yaml", "narrow2030", "narow2030", "no rules called 'narow2030'"),
    ],
)
def test_what_is_wrong_with_it_is_said_with_its_file(own, capsys, file, old, new, words):
    path = own / "narrow2030" / file
    path.write_text(path.read_text().replace(old, new))
    assert main(["run", "narrow2030", "somewhere"]) == 1
    said = capsys.readouterr().err
    assert str(path) in said
    assert words in said
