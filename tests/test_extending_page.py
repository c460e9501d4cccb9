"""docs/extending.md: its files work from a folder outside the package, as nnU-Net and our commands use it."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import World, threads_for_processes
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from page_blocks import DOCS, write_files

from nnunet_brats_ext import papers
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.inference import BraTSPredictor
from nnunet_brats_ext.predictions import find_rules
from nnunet_brats_ext.storage.json_files import read_json, write_json
from nnunet_brats_ext.training.base import BraTSTrainer
from nnunet_brats_ext.training.branches import NetworkWithBranch
from nnunet_brats_ext.workflow.recipe import find_recipe, load_recipe

PAGE = "extending.md"
CPU = torch.device("cpu")
TRAINED = {  # trainer -> configuration, plans
    "TverskyTrainer": ("3d_fullres", "nnUNetPlans"),
    "GroupNormTrainer": ("3d_fullres", "nnUNetPlans"),
    "GatedTrainer": ("3d_fullres", "nnUNetPlans"),
    "AveragedTrainer": ("3d_fullres", "nnUNetPlans"),
    "DoeTrainer": ("doe", "BraTSPlans"),
}
DERIVED = ("TverskyVAETrainer", "ShortVAETrainer")


@pytest.fixture(scope="module")
def environment(world_on_disk, tmp_path_factory) -> dict[str, str]:
    """The page's folder in nnUNet_extTrainer; data with plans of narrow networks, and results, of its own."""
    root = tmp_path_factory.mktemp("extending")
    write_files(PAGE, root)
    folders = {name: root / name for name in ("nnUNet_preprocessed", "nnUNet_results")}
    world = Path(world_on_disk.settings["nnUNet_preprocessed"]) / world_on_disk.dataset
    data = Path(shutil.copytree(world, folders["nnUNet_preprocessed"] / world.name))
    plans = read_json(data / "nnUNetPlans.json")
    network = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [8 * 2**stage for stage in range(network["n_stages"])]
    write_json(data / "nnUNetPlans.json", plans)
    trainers = os.pathsep.join([str(root / "my_trainers"), *filter(None, [os.environ.get("nnUNet_extTrainer")])])
    short = {"nnUNet_brats_epochs": "1", "nnUNet_brats_iterations": "1"}
    return world_on_disk.settings | {name: str(path) for name, path in folders.items()} | short | {
        "nnUNet_extTrainer": trainers
    }  # fmt: skip


@pytest.fixture
def own(world, environment, monkeypatch) -> World:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return world


@pytest.fixture(scope="module")
def planned(world_on_disk, environment) -> str:
    """What `nnunet_brats plan ID --paper doe2026` prints."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        for name, value in environment.items():
            patch.setenv(name, value)
        assert main(["plan", "901", "--paper", "doe2026"]) == 0
    return printed.getvalue()


@pytest.fixture(scope="module")
def trained(world_on_disk, environment, planned) -> Iterator[dict[str, Path]]:
    """Trainer -> folder of its model, of one step each by nnU-Net's own command."""
    models = {}
    with pytest.MonkeyPatch.context() as patch, threads_for_processes(), redirect_stdout(StringIO()):
        for name, value in environment.items():
            patch.setenv(name, value)
        for trainer, (configuration, plans) in TRAINED.items():
            run_training("901", configuration, 0, trainer, plans, device=CPU)
            folder = Path(environment["nnUNet_results"], world_on_disk.dataset)
            models[trainer] = folder / f"{trainer}__{plans}__{configuration}"
        yield models


def trainer_class(name: str) -> Any:
    with redirect_stdout(StringIO()):
        return recursive_find_trainer_class_by_name(name)


# ---- found -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TRAINED, *DERIVED])
def test_nnunet_finds_every_trainer_of_the_page(name, own):
    found = trainer_class(name)
    assert found.__name__ == name
    assert issubclass(found, BraTSTrainer)


def test_no_trainer_of_the_page_is_left_out():
    named = re.findall(r"^class (\w+Trainer)\(", (DOCS / PAGE).read_text(), re.MULTILINE)
    assert sorted(named) == sorted([*TRAINED, *DERIVED])


def test_a_subclass_has_the_facts_of_its_parent_until_it_states_its_own(own):
    parent, derived = papers.find_trainer("BraTSVAETrainer"), papers.find_trainer("TverskyVAETrainer")
    assert derived.prediction == parent.prediction
    assert derived.snapshot_epochs == parent.snapshot_epochs
    assert derived.configuration == "lyu_stage1"
    short = trainer_class("ShortVAETrainer").all_facts()
    assert short.prediction.symmetries == "mirror8"
    assert short.snapshot_epochs == (80, 90)


# ---- trained ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINED)
def test_it_trains_by_nnunets_command_and_reloads_in_nnunets_predictor(name, trained, own):
    validation = trained[name] / "fold_0" / "validation" / "summary.json"
    assert set(read_json(validation)["mean"]) == {"(1, 2, 3)", "(2, 3)", "3"}
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    with redirect_stdout(StringIO()):
        predictor.initialize_from_trained_model_folder(str(trained[name]), (0,), "checkpoint_final.pth")
    assert predictor.trainer_name == name
    patch_size = predictor.configuration_manager.patch_size
    with torch.no_grad():
        assert predictor.network.eval()(torch.zeros(1, 4, *patch_size)).shape == (1, 3, *patch_size)


def test_the_tversky_loss_is_the_papers(own):
    loss = trainer_class("TverskyTrainer").region_loss(None)
    target = torch.zeros(1, 1, 10, 10)
    target[..., :4, :] = 1
    logits = torch.full_like(target, -50.0)
    logits[..., :2, :] = 50.0
    logits[..., 9:, :] = 50.0  # 20 found, 20 missed, 10 too much
    assert loss(logits, target).item() == pytest.approx(1 - 21 / (20 + 0.3 * 10 + 0.7 * 20 + 1))
    assert loss(logits, torch.zeros_like(target)).isfinite()


def test_the_network_has_group_norm_and_the_planned_strides(trained, own):
    weights = torch.load(trained["GroupNormTrainer"] / "fold_0" / "checkpoint_final.pth", weights_only=False)
    predictor = BraTSPredictor(device=CPU)
    predictor.initialize_from_trained_model_folder(trained["GroupNormTrainer"], (0,))
    norms = [one for one in predictor.network.modules() if isinstance(one, torch.nn.GroupNorm)]
    assert norms and all(one.num_groups == 8 for one in norms)
    assert weights["network_weights"].keys() == predictor.network.state_dict().keys()


def test_the_branch_exists_only_in_training(trained, own):
    stored = torch.load(trained["GatedTrainer"] / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert not [name for name in stored["network_weights"] if "vae" in name]
    assert [name for name in stored["nnunet_brats_ext"]["training_branch"] if "vae" in name]
    assert NetworkWithBranch.__name__ not in str(stored["init_args"])


# ---- a paper of one's own --------------------------------------------------------------------------------------------


def test_the_papers_command_shows_it(own, capsys):
    assert main(["papers", "doe2026"]) == 0
    shown = capsys.readouterr().out
    for words in ("DoeTrainer", "Both sides of the brain", "both-sides", "rules doe2026", "recipe doe2026", "0.900"):
        assert words in shown


def test_plan_adds_its_configuration_and_prints_its_commands(planned, own, environment):
    plans = read_json(Path(environment["nnUNet_preprocessed"], own.dataset, "BraTSPlans.json"))
    doe = plans["configurations"]["doe"]
    assert doe["batch_size"] == 2
    assert all(size <= paper for size, paper in zip(doe["patch_size"], (96, 128, 112), strict=True))
    for words in ("nnUNetv2_train 901 doe $fold -tr DoeTrainer -p BraTSPlans", "nnunet_brats predict", "--rule"):
        assert words in planned


def test_its_rules_are_found_by_name(own):
    assert [rule["rule"] for rule in find_rules("doe2026").rules] == ["small-et", "small-components"]


def test_its_model_predicts_as_its_paper_says(trained, own, tmp_path):
    predictor = BraTSPredictor(device=CPU)
    predictor.initialize_from_trained_model_folder(trained["DoeTrainer"])
    assert (predictor.tiling, predictor.symmetries) == ("brain", "both-sides")
    names = ("-d", "901", "-tr", "DoeTrainer", "-c", "doe", "-p", "BraTSPlans")
    images, out = str(own.raw / "imagesTs"), tmp_path / "final"
    assert (
        main(["predict", "-i", images, "-o", str(out), *names, "--rules", "doe2026", "-device", "cpu", "-np", "0"]) == 0
    )
    assert len(list(out.glob("*.nii.gz"))) == 2
    assert read_json(out / "predict.json")["rules"]["rules"] == list(papers.find_paper("doe2026").rules["doe2026"])


def test_its_tiling_covers_the_volume(own):
    paper = papers.find_paper("doe2026")
    halves = paper.load("tilings.py:HALVES")
    data = torch.rand(4, 8, 12, 11)

    class Volume:
        divisor = (4, 4, 4)

    Volume.data = data
    assert torch.equal(halves(lambda x: x[:, :3] - 1, Volume), data[:3] - 1)


def test_its_recipe_trains_its_trainer(own, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(find_recipe("doe2026"))
    assert recipe.models["unet"].trainer == "DoeTrainer"
    assert main(["run", "doe2026", "--scale", "smoke", "--dry-run", "-device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "-tr DoeTrainer" in printed
    assert "doe2026" in printed
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"


# ---- the tables ------------------------------------------------------------------------------------------------------


def test_the_table_of_methods_names_all_there_are_to_override():
    marked = {
        name
        for one in BraTSTrainer.__mro__
        for name, member in vars(one).items()
        if (getattr(member, "__doc__", None) or "").startswith("Seam:")
    }
    assert marked
    rows = re.findall(r"^\| (`.*?) \|", (DOCS / PAGE).read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert marked <= named
    assert {name for name in named if name[0].islower()} <= {*dir(BraTSTrainer), *dir(nnUNetTrainer)}


def test_every_mixin_of_the_table_is_where_it_says():
    rows = re.findall(r"^\| `([A-Z]\w+)` \| `(\w+)` \|", (DOCS / PAGE).read_text(), re.MULTILINE)
    assert len(rows) >= 4
    for name, module in rows:
        imported = __import__(f"nnunet_brats_ext.training.{module}", fromlist=[name])
        assert issubclass(getattr(imported, name), nnUNetTrainer)
