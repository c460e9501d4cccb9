"""What version 0.1 has trained and written loads and goes on; the files: data/version_0_1/README.md."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_brats_ext import trainers
from nnunet_brats_ext.dataset_conversion.case_filtering import read_case_losses
from nnunet_brats_ext.predictions.rule_sets import find_rules
from nnunet_brats_ext.training import environment
from nnunet_brats_ext.training.seams import PlainTrainer

CPU = torch.device("cpu")
FILES = Path(__file__).parents[1] / "data" / "version_0_1"
NETWORKS = {
    "BraTSBaselineTrainer": {},
    "BraTSVAETrainer": dict(features_per_stage=(8, 8), n_blocks_per_stage=(1, 1)),
    "BraTSDeepSupervisionTrainer": dict(features_per_stage=(2, 4)),
    "BraTSDeepSupervisionBTrainer": dict(features_per_stage=(2, 4)),
    "BraTSOMNetCGATrainer": dict(features_per_stage=(4, 4)),
    "BraTS2DWholeTumorTrainer": dict(features_per_stage=(2, 4)),
}
EPOCHS = {
    "BraTSBaselineTrainer": 2,
    "BraTSVAETrainer": 2,
    "BraTSDeepSupervisionTrainer": 14,
    "BraTSDeepSupervisionBTrainer": 3,
    "BraTSOMNetCGATrainer": 2,
    "BraTS2DWholeTumorTrainer": 24,
}


@pytest.fixture(params=NETWORKS)
def model(request, world, tmp_path, monkeypatch) -> Path:
    """The folder of a model in nnUNet_results, whose trainer builds the narrow network that it has."""
    trainer_class = getattr(trainers, request.param)
    options = vars(trainer_class).get("network_options", {}) | NETWORKS[request.param]
    monkeypatch.setattr(trainer_class, "network_options", options)
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    (stored,) = FILES.glob(f"models/{request.param}__*")
    return Path(shutil.copytree(stored, tmp_path / world.dataset / stored.name))


def logits(model: Path, checkpoint: str) -> np.ndarray:
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,), f"checkpoint_{checkpoint}.pth")
    shape = (1, 4, 16, 16) if model.name.endswith("2d") else (1, 4, 8, 8, 8)
    image = np.random.RandomState(0).standard_normal(shape).astype(np.float32)
    with torch.no_grad():
        return predictor.network.eval()(torch.from_numpy(image))[0].numpy()


def test_its_checkpoints_predict_the_same(model):
    with np.load(model / "logits.npz") as expected:
        for file in model.glob("fold_0/*.pth"):
            name = file.stem.removeprefix("checkpoint_")
            np.testing.assert_allclose(logits(model, name), expected[name], atol=1e-4)


def load(model: Path, checkpoint: str, monkeypatch) -> PlainTrainer:
    """The trainer as nnUNetv2_train --c makes it, with the environment of the training."""
    name, _, configuration = model.name.split("__")
    monkeypatch.setenv(environment.EPOCHS, str(EPOCHS[name]))
    monkeypatch.setenv(environment.ITERATIONS, "5")
    monkeypatch.setenv(environment.SNAPSHOTS, "1")
    plans, dataset_json = (json.loads((model / file).read_text()) for file in ("plans.json", "dataset.json"))
    trainer = getattr(trainers, name)(plans | {"continue_training": True}, configuration, 0, dataset_json, CPU)
    assert Path(trainer.output_folder) == model / "fold_0"
    trainer.logger.plot_progress_png = lambda folder: None  # takes as long as an epoch
    trainer.load_checkpoint(str(model / "fold_0" / f"checkpoint_{checkpoint}.pth"))
    return trainer


def test_its_trainings_go_on_to_the_same_weights(model, monkeypatch):
    (model / "fold_0" / "checkpoint_final.pth").unlink(missing_ok=True)
    load(model, "latest", monkeypatch).run_training()
    with np.load(model / "logits.npz") as expected:
        # Processors round differently; without the optimiser's state the largest difference is 5 to 100 times as large.
        spread = max(1.0, float(expected["final"].std()))
        np.testing.assert_allclose(logits(model, "final"), expected["final"], atol=1e-3 * spread)


@pytest.mark.parametrize("model", ["BraTSDeepSupervisionTrainer"], indirect=True)
def test_a_mean_that_it_ended_with_counts_as_all_its_sets_where_the_training_goes_on(model, monkeypatch):
    trainer = load(model, "final", monkeypatch)
    assert trainer.average.n_averaged == len(trainer.timeline.snapshots) > 1
    for name, value in trainer.average.module.state_dict().items():
        assert torch.equal(value, trainer.bare_network.state_dict()[name])


def test_its_text_files_are_read():
    assert [rule["rule"] for rule in find_rules(str(FILES / "text" / "brats_rules_final.json")).rules] == [
        "small-et", "small-components"
    ]  # fmt: skip
    for file in FILES.glob("models/*/fold_0/case_losses.jsonl"):
        assert read_case_losses(file)
