"""The cross-validation of every paper's way of predicting is its prediction: the same tiles, symmetries and stages."""

from pathlib import Path

import numpy as np
import pytest
from tiny_trainers import tiny
from untrained_models import own_images, save_untrained, small_plans

from nnunet_brats_ext import papers
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.storage.images import read_label_map
from nnunet_brats_ext.storage.nnunet import find_splits

RUN = ("-d", "901", "-p", "SmallPlans", "-device", "cpu", "-np", "0", "--trusted")
FOLDS = (0, 1)


def ways_of_predicting() -> list[str]:
    """The first trainer of each paper that predicts so, alone or on a stage before."""
    names: dict[tuple, str] = {}
    for name, facts in papers.trainers().items():
        names.setdefault((facts.paper, facts.prediction, facts.previous_stage is None), name)
    return list(names.values())


@pytest.fixture(params=ways_of_predicting())
def model(request, world, tmp_path, monkeypatch):
    """The words that name an untrained model of two folds, each with weights of its own."""
    facts = papers.trainers()[request.param]
    if facts.needs:
        pytest.importorskip(facts.needs)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    stages = [name for name in (facts.previous_stage, facts.name) if name]
    patch = [8, 16, 16] if facts.prediction.kept else [16] * 3
    plans = small_plans(world, "SmallPlans", {f"of_{name}": {"patch_size": patch} for name in stages})
    plans["configurations"]["of_slices"] = {"inherits_from": "2d", "patch_size": [16, 16]}
    if len(stages) == 2:
        first, second = (f"of_{name}" for name in stages)
        plans["configurations"][first]["next_stage"] = second
        plans["configurations"][second]["previous_stage"] = first
    configuration = "of_slices" if facts.configuration == "hashemi_2d" else f"of_{facts.name}"
    with tiny(stages[0]), tiny(stages[-1]):
        for seed, name in enumerate(stages):
            save_untrained(world, plans, configuration if name == facts.name else first, name, FOLDS, seed=seed)
        previous = ["-prev_tr", facts.previous_stage] if facts.previous_stage else []
        yield ["-tr", facts.name, "-c", configuration, *previous, *RUN]


def label_maps(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: read_label_map(path)[0] for path in sorted(folder.glob("*.nii.gz"))}


def test_a_case_of_the_cross_validation_is_what_its_folds_model_predicts_for_its_images(model, world, tmp_path):
    assert main(["predict", *model, "--cross-validation", "-o", str(tmp_path / "out"), "-f", *map(str, FOLDS)]) == 0
    found = label_maps(tmp_path / "out")
    _, splits = find_splits("Dataset901_World")
    assert set(found) == {f"{case}.nii.gz" for fold in FOLDS for case in splits[fold]["val"]}
    assert any(len(np.unique(labels)) > 1 for labels in found.values()), "random weights, not an empty prediction"
    for fold in FOLDS:
        own = own_images(world, fold, tmp_path / f"images {fold}")
        previous = ["-prev_f", str(fold)] if "-prev_tr" in model else []
        out = tmp_path / f"fold {fold}"
        assert main(["predict", *model, "-i", str(own), "-o", str(out), "-f", str(fold), *previous]) == 0
        for name, expected in label_maps(out).items():
            assert np.array_equal(found[name], expected), name
