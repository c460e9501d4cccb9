"""A trainer in a folder outside the package: a network on the parts of dynamic-network-architectures, in one line."""

import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from conftest import threads_for_processes
from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import run_training
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny_trainers import CPU, same
from torch import nn

from nnunet_brats_ext import papers
from nnunet_brats_ext.training.environment import EPOCHS, ITERATIONS

FILE = '''
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn

from nnunet_brats_ext.training.base import BraTSTrainer


class BatchNormTrainer(BraTSTrainer):
    """nnU-Net's residual encoder U-Net with batch normalisation: https://arxiv.org/abs/1502.03167."""

    @classmethod
    def build_network(cls, planned, input_channels, num_classes, deep_supervision):
        changes = dict(num_classes=num_classes, deep_supervision=deep_supervision, norm_op=nn.BatchNorm3d)
        return ResidualEncoderUNet(input_channels, **planned.arguments | changes)
'''


@pytest.fixture
def plans(world, tmp_path, monkeypatch) -> PlansManager:
    """nnU-Net's plans of a residual encoder U-Net, and the trainer in a folder that nnU-Net searches."""
    (tmp_path / "batch_norm.py").write_text(FILE)
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(tmp_path), os.environ["nnUNet_extTrainer"]]))
    monkeypatch.setenv(EPOCHS, "1")
    monkeypatch.setenv(ITERATIONS, "1")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()):
        patch.setenv("nnUNet_n_proc_DA", "1")  # the planner cannot do with none
        plan_experiments([901], "ResEncUNetPlanner", gpu_memory_target_in_gb=0.1, overwrite_plans_name="ResEncPlans")
    return PlansManager(str(world.root / "nnUNet_preprocessed" / world.dataset / "ResEncPlans.json"))


def test_a_planned_network_with_another_normalisation_trains_and_reloads(plans, world):
    with redirect_stdout(StringIO()), threads_for_processes():
        run_training("901", "3d_fullres", 0, "BatchNormTrainer", "ResEncPlans", device=CPU)
        model = world.root / "nnUNet_results" / world.dataset / "BatchNormTrainer__ResEncPlans__3d_fullres"
        predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model), (0,))
    layers = list(predictor.network.modules())
    assert any(isinstance(layer, nn.BatchNorm3d) for layer in layers)
    assert not any(isinstance(layer, nn.InstanceNorm3d) for layer in layers)
    stored = torch.load(Path(model, "fold_0", "checkpoint_final.pth"), weights_only=False)["network_weights"]
    assert same(predictor.network.state_dict(), stored)
    assert len(list((model / "fold_0" / "validation").glob("*.nii.gz"))) == 2
    assert papers.find_trainer("BatchNormTrainer").prediction == papers.Prediction()


def test_it_starts_from_the_initialisation_that_nnunet_gives_to_planned_networks(plans):
    trainer_class = recursive_find_trainer_class_by_name("BatchNormTrainer")
    network = trainer_class.build_network_architecture(plans, plans.get_configuration("3d_fullres"), 4, 3)
    biases = [layer.bias for layer in network.modules() if isinstance(layer, nn.Conv3d) and layer.bias is not None]
    assert biases
    assert not any(bias.any() for bias in biases), "He's initialisation, with zero biases"
