"""The contract of every trainer: found, trained, resumed, reloaded, and described by its paper.py as it is."""

from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from dynamic_network_architectures.building_blocks.helper import convert_dim_to_conv_op
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from tiny_trainers import CPU, build, distinct_trainers, keep_latest, random_batch, run, same, tiny, weights

from nnunet_brats_ext import papers, trainers
from nnunet_brats_ext.inference.choices import find_symmetries, find_tiling
from nnunet_brats_ext.training.environment import EPOCHS, ITERATIONS, START
from nnunet_brats_ext.training.planned_network import PlannedNetwork
from nnunet_brats_ext.training.seams import PlainTrainer


def require(facts: papers.TrainerFacts) -> None:
    """Skip the test of a trainer whose extra is not installed."""
    if facts.needs:
        pytest.importorskip(facts.needs)


EVERY_TRAINER = pytest.mark.parametrize("name", papers.trainers())


@EVERY_TRAINER
def test_nnunet_finds_it_and_it_names_its_paper(name):
    found = recursive_find_trainer_class_by_name(name)
    assert found is getattr(trainers, name) is papers.find_trainer_class(name)
    assert papers.find_paper(papers.trainers()[name].paper).link in (found.__doc__ or "")


# ---- what paper.py says --------------------------------------------------------------------------------------------


@EVERY_TRAINER
def test_its_configuration_is_of_its_paper_and_leads_to_it(name):
    facts = papers.trainers()[name]
    if facts.configuration in ("2d", "3d_fullres"):
        return  # nnU-Net's own
    assert papers.configurations()[facts.configuration].paper == facts.paper
    if facts.previous_stage:
        previous = papers.configurations()[facts.configuration].previous_stage
        assert papers.trainers()[facts.previous_stage].configuration == previous
    if facts.starts_from:
        assert papers.trainers()[facts.starts_from].configuration == facts.configuration


@EVERY_TRAINER
def test_its_network_has_the_parameters_that_its_paper_py_names(name):
    facts = papers.trainers()[name]
    if facts.parameters is None:
        assert getattr(trainers, name).architecture is None, "only where plans decide"
        return
    configuration = papers.configurations()[facts.configuration]
    axes = 2 if configuration.base == "2d" else 3
    strides = configuration.strides or ((1,) * axes, *((2,) * axes,) * configuration.poolings)
    patch_size = configuration.patch_size or (240,) * axes
    planned = PlannedNetwork(patch_size, convert_dim_to_conv_op(axes), strides)
    channels = 4 + (3 if configuration.previous_stage else 0)
    require(facts)
    trainer_class = getattr(trainers, name)
    trainer_class.check_plans(planned)
    with torch.device("meta"):
        network = trainer_class.build_network(planned, channels, 3, deep_supervision=False)
    assert sum(p.numel() for p in network.parameters()) == facts.parameters


@EVERY_TRAINER
def test_its_prediction_and_attention_exist(name):
    facts = papers.trainers()[name]
    find_tiling(facts.prediction.tiling)
    find_symmetries(facts.prediction.symmetries)
    if facts.attention:
        papers.find_paper(facts.paper).load(facts.attention)


# ---- training ------------------------------------------------------------------------------------------------------


def build_small(world, name: str) -> PlainTrainer:
    changes = {} if papers.trainers()[name].prediction.kept else {"patch_size": [16, 16] if "2D" in name else [16] * 3}
    return build(world, name, fold=1, **changes)


@dataclass
class Training:
    """A training of two epochs of one iteration, with a checkpoint after the first."""

    trainer: PlainTrainer
    after_one_epoch: Path


@pytest.fixture(scope="module", params=distinct_trainers())
def trained(request, world_on_disk) -> Iterator[Training]:
    """Of every trainer, with a small network; all tests of the contract look at the same training."""
    require(papers.trainers()[request.param])
    with pytest.MonkeyPatch.context() as patch, tiny(request.param):
        for variable, value in world_on_disk.settings.items():
            patch.setenv(variable, value)
        patch.setenv(EPOCHS, "2")
        patch.setenv(ITERATIONS, "1")
        patch.setenv(START, "random")
        np.random.seed(0)
        torch.manual_seed(0)
        with redirect_stdout(StringIO()):
            trainer = run(build_small(world_on_disk, request.param), keep_latest)
        yield Training(trainer, Path(trainer.output_folder, "after_1.pth"))


def test_it_trains_and_scores_three_regions(trained):
    log = trained.trainer.logger
    for epoch in range(2):
        assert np.isfinite(log.get_value("train_losses", step=epoch))
        assert np.isfinite(log.get_value("val_losses", step=epoch))
        assert len(log.get_value("dice_per_class_or_region", step=epoch)) == 3


def test_its_checkpoint_names_it_and_predicts_the_same_in_nnunets_predictor(trained):
    trainer = trained.trainer
    final = Path(trainer.output_folder, "checkpoint_final.pth")
    stored = torch.load(final, weights_only=False)
    assert stored["trainer_name"] == type(trainer).__name__
    assert stored["current_epoch"] == 2
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    with redirect_stdout(StringIO()):
        predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (1,), final.name)
    images = random_batch(trainer)["data"]
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        logits, reloaded = trainer.network.eval()(images), predictor.network.eval()(images)
    trainer.set_deep_supervision_enabled(True)
    assert logits.shape == (len(images), 3, *images.shape[2:])
    assert torch.allclose(reloaded, logits, atol=1e-4)


def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(trained, world, monkeypatch):
    monkeypatch.setenv(EPOCHS, "2")
    monkeypatch.setenv(ITERATIONS, "1")
    np.random.seed(99)
    torch.manual_seed(99)
    whole = weights(trained.trainer)
    resumed = build_small(world, type(trained.trainer).__name__)
    resumed.load_checkpoint(str(trained.after_one_epoch))
    assert resumed.current_epoch == 1
    resumed.run_training()
    assert same(weights(resumed), whole)
