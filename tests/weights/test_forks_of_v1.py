"""MedNeXt's and Luu & Park's forks of nnU-Net v1: what their networks give, and every size of them.

`tests/data/weights` holds names and shapes of the weights of the authors' networks, and what these give in float64.
"""

import pickle

import numpy as np
import pytest
import torch
from released_weights import folder_of_v1, network_of

from nnunet_brats_ext import trainers
from nnunet_brats_ext.architectures.mednext import RELEASED_KEYS, MedNeXt
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.trainers.roy2023.weights import size_of
from nnunet_brats_ext.weights.importing import ImportOptions, import_weights, recognise
from nnunet_brats_ext.weights.key_maps import renamed
from nnunet_brats_ext.weights.plans import plans_of
from nnunet_brats_ext.weights.reading import read_pickle

FORKS = {  # golden values -> our trainer, its network at their width, weights that it does not need
    "roy_s": ("BraTSMedNeXtSTrainer", {}, ("dummy_tensor",)),
    "luu_wide": ("BraTSLuu2021Trainer", dict(features_per_stage=(8, 16, 32, 64, 64, 64)), ()),
    "luu_axial": ("BraTSLuu2021AxialTrainer", dict(features_per_stage=(4, 8, 16, 32, 64, 64)), ()),
}


@pytest.mark.parametrize("kind", FORKS)
def test_a_model_of_a_fork_gives_what_the_fork_gives(kind, tmp_path, monkeypatch):
    trainer, options, unused = FORKS[kind]
    monkeypatch.setattr(getattr(trainers, trainer), "network_options", options)
    golden = folder_of_v1(kind, tmp_path / "v1")
    done = import_weights(ImportOptions(source=tmp_path / "v1", out=str(tmp_path / "model")))
    assert (done.model.trainer, done.model.unused, done.made_anew) == (trainer, unused, ())
    assert (done.folds, done.model.configuration) == (("0",), "3d_fullres")
    network = network_of(done).double()
    assert len(network.state_dict()) + len(unused) == len(golden["keys"]), "every weight is used or named"
    for size, values, spread in zip(golden["sizes"], golden["values"], golden["spread"], strict=True):
        image = np.random.RandomState(sum(size)).standard_normal((1, 4, *size)).astype(np.float32)
        with torch.no_grad():
            logits = network(torch.from_numpy(image).double())[0].flatten(1).numpy()
        found = logits[:, np.linspace(0, logits.shape[1] - 1, 7).astype(int)]
        assert np.abs(found - np.array(values)).max() < 1e-7 * spread


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("size", ["S", "B", "M", "L"])
def test_every_size_of_mednext_is_recognised_by_its_weights(size, kernel_size):
    options = getattr(trainers, f"BraTSMedNeXt{size}Trainer").all_network_options()
    with torch.device("meta"):
        ours = MedNeXt(4, 3, **(options | dict(kernel_size=kernel_size))).state_dict()
    theirs = {}
    for beginning, new in RELEASED_KEYS.items():
        theirs |= {beginning + name.removeprefix(new): value for name, value in ours.items() if name.startswith(new)}
    assert size_of(theirs) == size
    assert renamed(theirs, RELEASED_KEYS).keys() == ours.keys()


@pytest.mark.parametrize(
    ("kind", "changed", "words"),
    [
        ("luu_wide", {"name": "nnUNetTrainerV2BraTSRegions_DA4_BN_BD_largeUnet"}, "which no trainer of ours builds"),
        (
            "luu_axial",
            {"name": "nnUNetTrainerV2BraTSRegions_DA4_BN_BD"},
            "this network does not have: axial",
        ),
        ("regions", {"name": "nnUNetTrainerV2BraTSRegions_DA4_BN_BD_largeUnet_Groupnorm"}, "number of poolings than 5"),
    ],
)
def test_what_a_fork_has_and_we_have_not_is_named(kind, changed, words, tmp_path):
    folder_of_v1(kind, tmp_path / "v1", **changed)
    with pytest.raises(UserError, match=words):
        import_weights(ImportOptions(source=tmp_path / "v1", out=str(tmp_path / "model")))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("kind", ["regions", "cascade"])
def test_damaged_plans_get_a_sentence(kind, tmp_path):
    """Each entry of the plans empty, or of another kind."""
    folder_of_v1(kind, tmp_path / "v1")
    beside = tmp_path / "v1" / "fold_0" / "model_final_checkpoint.model.pkl"
    info = read_pickle(beside)
    refused = 0
    for key in info["plans"]:
        for value in (None, "damaged", {0: "damaged"}, [1.5]):
            beside.write_bytes(pickle.dumps({**info, "plans": {**info["plans"], key: value}}))
            try:
                _, model = recognise(ImportOptions(source=tmp_path / "v1", out="."))
            except UserError:
                refused += 1
            else:
                plans_of(model, "Dataset901_X")
    assert refused > 20


@pytest.mark.parametrize("kind", ["cascade", "luu_wide", "roy_s"])
def test_damaged_weights_get_a_sentence(kind, tmp_path, monkeypatch):
    """Weights left out, empty, or without axes: those that say what the network is, and some others."""
    if kind in FORKS:
        trainer, options, _ = FORKS[kind]
        monkeypatch.setattr(getattr(trainers, trainer), "network_options", options)
    folder_of_v1(kind, tmp_path / "v1")
    file = tmp_path / "v1" / "fold_0" / "model_final_checkpoint.model"
    state = torch.load(file, weights_only=False)["state_dict"]
    names = [name for name in state if name.startswith(("stem.w", "out_0", "seg_outputs.0", "dec_block_3.0.conv"))]
    needed = [name for name in state if not name.startswith(("dummy", *(f"out_{scale}" for scale in range(1, 5))))]
    for name in (*names[:2], *needed[:: len(needed) // 3]):
        for changed in ({}, {name: state[name][:0]}, {name: torch.zeros(())}):
            torch.save({"state_dict": {**{n: v for n, v in state.items() if n != name}, **changed}}, file)
            with pytest.raises(UserError):
                import_weights(ImportOptions(source=tmp_path / "v1", out=str(tmp_path / "model")))
    assert not (tmp_path / "model").exists()
