"""Weights that are made from their names alone, and the networks that imported models have."""

import json
import shutil
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_brats_ext import trainers
from nnunet_brats_ext.weights.importing import Imported

DATA = Path(__file__).parent / "data" / "weights"


def filled(name: str, shape: list[int]) -> torch.Tensor:
    """A weight that is made from its name."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("running_var"):
        values = 1 + 0.3 * np.abs(values)
    elif len(shape) > 1:
        values = values * np.sqrt(2 * shape[0] / values.size)
    else:
        values = 0.1 * values if name.endswith(("bias", "running_mean")) else 1 + 0.1 * values
    return torch.from_numpy(values.astype(np.float32))


def network_of(done: Imported) -> torch.nn.Module:
    """The network as nnU-Net builds it from what was written."""
    checkpoint = torch.load(done.folder / f"fold_{done.folds[0]}" / "checkpoint_final.pth", weights_only=False)
    plans = PlansManager(checkpoint["init_args"]["plans"])
    configuration = plans.get_configuration(checkpoint["init_args"]["configuration"])
    network = getattr(trainers, checkpoint["trainer_name"]).build_network_architecture(
        plans, configuration, len(done.model.inputs), len(done.outputs), False
    )
    network.load_state_dict(checkpoint["network_weights"])
    return network.eval()


def folder_of_v1(kind: str, folder: Path, folds: tuple[str, ...] = ("fold_0",)) -> dict:
    """A model as v1's own trainer has saved it, at weights made from their names; its golden values."""
    golden = json.loads((DATA / f"nnunet_v1_{kind}.json").read_text())
    for fold in folds:
        (folder / fold).mkdir(parents=True)
        file = folder / fold / "model_final_checkpoint.model"
        state = OrderedDict((name, filled(name, shape)) for name, shape in golden["keys"].items())
        numbers = ([np.float64(0.5)], [np.float64(0.25)])
        torch.save({"epoch": 1, "state_dict": state, "plot_stuff": numbers, "best_stuff": (None, np.float32(1))}, file)
        shutil.copy(DATA / f"nnunet_v1_{kind}.pkl", f"{file}.pkl")
    return golden
