"""The papers' releases: networks of the authors' own code, at weights that are made from their names alone.

`tests/data/weights` holds, for each, the names and shapes of its weights and what the authors' network gives at two
sizes: logits at seven voxels, and their standard deviation.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from released_weights import DATA, filled, network_of

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.weights.importing import LABELS, ImportOptions, import_weights

RELEASES = {  # file of golden values -> how the authors' code saves, name of the file, our trainer
    "lachinov": (lambda state: {"model": state}, "last_model.pth", "BraTSStudentTrainer"),
    "lyu_stage1": (lambda state: {"epoch": 1, "state_dict": state}, "epoch_1.pth", "BraTSVAETrainer"),
    "lyu_stage2": (lambda state: {"epoch": 1, "state_dict": state}, "epoch_1.pth", "BraTSAttentionVAETrainer"),
    "henry_Att_EquiUnet_group": (
        lambda state: {"state_dict": state, "epoch": 1}, "model_best.pth.tar", "BraTSDeepSupervisionCBAMTrainer"
    ),
    "henry_EquiUnet_inorm": (
        lambda state: {"state_dict": state, "epoch": 1}, "model_best.pth.tar", "BraTSDeepSupervisionBTrainer"
    ),
    "hashemi_2c": (lambda state: {"model": state, "epoch": 1}, "TC-1-epoch-07", "BraTS2DTumorCoreTrainer"),
}  # fmt: skip
XYZ = ("lachinov", "hashemi_2c")  # arrays of the authors are (x, y, z)


def release(name: str, folder: Path) -> tuple[dict, Path]:
    """The golden values of a release, and a file as its authors save it."""
    golden = json.loads((DATA / f"{name}.json").read_text())
    save, file, _ = RELEASES[name]
    torch.save(save({key: filled(key, shape) for key, shape in golden["keys"].items()}), folder / file)
    if name == "henry_EquiUnet_inorm":
        (folder / "run.yaml").write_text("norm_layer: inorm\nnormalisation: zscore\n")
    return golden, folder / file


@pytest.mark.parametrize("name", RELEASES)
def test_an_imported_release_gives_what_the_authors_network_gives(name, tmp_path):
    golden, file = release(name, tmp_path)
    done = import_weights(ImportOptions(source=file, out=str(tmp_path / "model")))
    assert done.model.trainer == RELEASES[name][2]
    network = network_of(done)
    names = (*done.sequences, *(label for label in LABELS if label in done.model.inputs))
    inputs = [done.model.inputs.index(one) for one in names]
    outputs = [done.model.outputs.index(one) for one in done.outputs]
    for size, values, spread in zip(golden["sizes"], golden["values"], golden["spread"], strict=True):
        image = np.random.RandomState(sum(size)).standard_normal((1, len(inputs), *size)).astype(np.float32)[:, inputs]
        turned = image.transpose(0, 1, *range(len(size) + 1, 1, -1)) if name in XYZ else image
        with torch.no_grad():
            logits = network(torch.from_numpy(np.ascontiguousarray(turned)))[0].numpy()
        if name in XYZ:
            logits = logits.transpose(0, *range(len(size), 0, -1))
        found = logits.reshape(len(logits), -1)
        found = found[:, np.linspace(0, found.shape[1] - 1, 7).astype(int)]
        expected = np.array(values)
        if name == "hashemi_2c":
            assert done.outputs[1] == "TC"
            found, expected = found[1:2], expected[:1] - expected[1:]
        else:
            expected = expected[outputs]
        assert np.abs(found - expected).max() < 1e-5 * spread
    assert len(network.state_dict()) + len(done.model.unused) == len(golden["keys"]), "every weight is used or named"
    noted = json.loads((done.folder / "imported_from.json").read_text())
    assert noted["weights_not_needed"] == list(done.model.unused)
    assert len(noted["files"]["0"][0]["sha256"]) == 64


def test_a_weight_that_the_network_does_not_have_is_named(tmp_path):
    _, file = release("lachinov", tmp_path)
    content = torch.load(file)
    content["model"]["extra.weight"] = torch.zeros(1)
    torch.save(content, file)
    with pytest.raises(UserError, match=r"names that this network does not have: extra\.weight"):
        import_weights(ImportOptions(source=file, out=str(tmp_path / "model")))
    assert not (tmp_path / "model").exists()


def test_a_binary_network_needs_its_region(tmp_path):
    _, file = release("hashemi_2c", tmp_path)
    with pytest.raises(UserError, match="--region"):
        import_weights(ImportOptions(source=file.rename(tmp_path / "best"), out=str(tmp_path / "model")))
