"""What version 0.1 has trained, begun and written loads and goes on; the files: data/version_0_1/README.md."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunet_brats_ext.postprocessing.rule_files import find_rules
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_brats_ext import trainers
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.dataset_conversion.case_filtering import read_case_losses
from nnunet_brats_ext.training.base import SHORT_EPOCHS, SHORT_ITERATIONS, SNAPSHOTS
from nnunet_brats_ext.workflow.resume import commands_left
from nnunet_brats_ext.workflow.state import open_run, states_of

CPU = torch.device("cpu")
FILES = Path(__file__).with_name("data") / "version_0_1"
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
DONE = {
    "phantom/release", "convert/brats", "plan/brats/nnUNetPlans", "configure/brats", "shrink/brats",
    "preprocess/brats/nnUNetPlans/3d_fullres", "train/stage1/fold_0",
}  # fmt: skip


@pytest.fixture(params=NETWORKS)
def model(request, world, tmp_path, monkeypatch) -> Path:
    """The folder of a model in nnUNet_results, whose trainer builds the narrow network that it has."""
    trainer_class = getattr(trainers, request.param)
    if arguments := NETWORKS[request.param]:
        whole = trainer_class.architecture_for.__func__
        narrow = classmethod(lambda cls, configuration: partial(whole(cls, configuration), **arguments))
        monkeypatch.setattr(trainer_class, "architecture_for", narrow)
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


def test_its_trainings_go_on_to_the_same_weights(model, monkeypatch):
    name, _, configuration = model.name.split("__")
    (model / "fold_0" / "checkpoint_final.pth").unlink(missing_ok=True)
    monkeypatch.setenv(SHORT_EPOCHS, str(EPOCHS[name]))
    monkeypatch.setenv(SHORT_ITERATIONS, "5")
    monkeypatch.setenv(SNAPSHOTS, "1")
    plans, dataset_json = (json.loads((model / file).read_text()) for file in ("plans.json", "dataset.json"))
    trainer = getattr(trainers, name)(plans | {"continue_training": True}, configuration, 0, dataset_json, CPU)
    assert Path(trainer.output_folder) == model / "fold_0"
    trainer.load_checkpoint(str(model / "fold_0" / "checkpoint_latest.pth"))
    trainer.run_training()
    with np.load(model / "logits.npz") as expected:
        np.testing.assert_allclose(logits(model, "final"), expected["final"], atol=1e-3)


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of the interrupted run, with empty files for what is no text."""
    folder = Path(shutil.copytree(FILES / "run", tmp_path / "run"))
    for file in filter(Path.is_file, folder.rglob("*")):
        file.write_text(file.read_text().replace("{ROOT}", str(folder)))
    for file in folder.glob("jobs/**/*.done"):
        ended = json.loads(file.with_suffix(".json").read_text())["ended"]
        os.utime(file, (ended, ended))
    (model,) = folder.glob("nnUNet_results/*/*")
    (model / "fold_0" / "checkpoint_final.pth").touch()
    (model / "fold_1" / "checkpoint_best.pth").touch()
    (raw,) = folder.glob("nnUNet_raw/*")
    (raw / "labelsTr").mkdir()
    for name, size, modified_ns in json.loads((folder / "label_files.json").read_text()):
        (raw / "labelsTr" / name).write_bytes(bytes(size))
        os.utime(raw / "labelsTr" / name, ns=(modified_ns, modified_ns))
    return folder


def test_its_runs_go_on_where_they_stopped(run, capsys):
    pytest.importorskip("snakemake", reason="Snakemake 9 needs Python 3.11")
    opened = open_run(run)
    states = {name: state for name, (state, _) in states_of(opened).items()}
    assert {name for name, state in states.items() if state == "done"} == DONE
    assert [name for name, state in states.items() if state == "failed"] == ["train/stage1/fold_1"]
    assert main(["run", "lyu2020", "--scale", "smoke", "-device", "cpu", "-o", str(run), "--dry-run"]) == 0
    assert "22 jobs, 7 done already" in capsys.readouterr().out


def test_what_its_runs_noted_is_what_this_version_would_note(run):
    jobs = open_run(run).jobs
    for name in DONE:
        if jobs[name].kind in ("train", "preprocess"):
            assert commands_left(jobs[name]) == []
    (left,) = commands_left(jobs["train/stage1/fold_1"])
    assert left == [*jobs["train/stage1/fold_1"].command, "--c"]


def test_its_text_files_are_read():
    assert [rule["rule"] for rule in find_rules(str(FILES / "text" / "brats_rules_final.json")).rules] == [
        "small-et", "small-components"
    ]  # fmt: skip
    for file in FILES.glob("models/*/fold_0/case_losses.jsonl"):
        assert read_case_losses(file)
