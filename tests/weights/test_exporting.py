"""Networks as ONNX and TorchScript compute what they compute in torch, and say how they are to be used."""

import json

import numpy as np
import pytest
import torch
from released_weights import folder_of_v1, network_of

from nnunet_brats_ext.cli import main
from nnunet_brats_ext.weights.exporting import run_onnx, run_torchscript
from nnunet_brats_ext.weights.importing import ImportOptions, import_weights


def test_an_exported_network_computes_the_same_and_is_described(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    folder_of_v1("regions", tmp_path / "v1")
    done = import_weights(ImportOptions(source=tmp_path / "v1", out=str(tmp_path / "model")))
    files = tmp_path / "network.onnx", tmp_path / "program.pt"
    words = f"export -m {tmp_path / 'model'} --onnx {files[0]} --torchscript {files[1]}"
    assert main(words.split()) == 0
    assert "differs from the network by at most" in capsys.readouterr().out
    images = torch.randn(1, 4, 32, 40, 24)
    with torch.no_grad():
        logits = network_of(done)(images)
    for file, run in zip(files, (run_onnx, run_torchscript), strict=True):
        assert (run(file, images) - logits).abs().max() < 1e-4 * logits.std()
    described = json.loads((tmp_path / "network.onnx.json").read_text())
    assert (described["model"]["fold"], described["model"]["checkpoint"]) == (0, "checkpoint_final.pth")
    assert described["input"] == {
        "shape": [1, 4, 32, 40, 24],
        "dtype": "float32",
        "channels": ["T1", "T1ce", "T2", "FLAIR"],
        "previous_stage_labels": [],
    }
    assert described["output"]["logits_of"] == ["WT", "TC", "ET"]
    assert described["output"]["paint"] == [1, 2, 3]
    scheme = {"scheme": "ZScoreNormalization", "within_the_brain_only": True}
    assert described["preprocessing"]["normalisation"] == [scheme] * 4
    assert len(described["windows"]["averaged_over"]) == 8
    assert np.isclose(sum(one["weight"] for one in described["windows"]["averaged_over"]), 8)


def test_export_needs_a_file(tmp_path, capsys):
    folder_of_v1("regions", tmp_path / "v1")
    import_weights(ImportOptions(source=tmp_path / "v1", out=str(tmp_path / "model")))
    assert main(["export", "-m", str(tmp_path / "model")]) == 1
    assert "--onnx or --torchscript" in capsys.readouterr().err
