"""Weights that are made from their names alone, and the networks that imported models have."""

import json
import pickle
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_brats_ext import trainers
from nnunet_brats_ext.weights.importing import Imported
from nnunet_brats_ext.weights.reading import read_pickle

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


def folder_of_v1(kind: str, folder: Path, folds: tuple[str, ...] = ("fold_0",), **changed: object) -> dict:
    """A model as v1's own trainer has saved it, at weights made from their names; its golden values.

    kind: of a file `nnunet_v1_*.json`; or of another one, for a fork of v1, whose plans are like those of `regions`.
    changed: of what v1 writes beside the weights.
    """
    fork = not (DATA / f"nnunet_v1_{kind}.json").is_file()
    golden = json.loads((DATA / (f"{kind}.json" if fork else f"nnunet_v1_{kind}.json")).read_text())
    info = read_pickle(DATA / f"nnunet_v1_{'regions' if fork else kind}.pkl")
    if fork:
        info["name"] = golden["trainer"]
        info["plans"]["plans_per_stage"][0]["patch_size"] = np.array(golden["patch_size"])
    info |= changed
    for fold in folds:
        (folder / fold).mkdir(parents=True)
        file = folder / fold / "model_final_checkpoint.model"
        state = OrderedDict((name, filled(name, shape)) for name, shape in golden["keys"].items())
        numbers = ([np.float64(0.5)], [np.float64(0.25)])
        torch.save({"epoch": 1, "state_dict": state, "plot_stuff": numbers, "best_stuff": (None, np.float32(1))}, file)
        Path(f"{file}.pkl").write_bytes(pickle.dumps(info))
    return golden
