"""`nnunet_brats export`: a trained network as ONNX or TorchScript, for viewers and servers that have no nnU-Net.

Beside the network goes a JSON file that says what to do with images before it and with logits behind it.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_brats_ext import __version__, papers
from nnunet_brats_ext.inference.choices import find_symmetries
from nnunet_brats_ext.inference.models import PLANS, TrainedModel, fold_names, open_model
from nnunet_brats_ext.inference.predictor import BraTSPredictor
from nnunet_brats_ext.storage.datasets import NORMALISATION_KEY
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import write_json
from nnunet_brats_ext.storage.nnunet import FINAL
from nnunet_brats_ext.storage.options import Options, option
from nnunet_brats_ext.storage.plans import find_configuration
from nnunet_brats_ext.training.checkpoints import writing_checkpoint
from nnunet_brats_ext.weights.reading import sha256

DESCRIPTION = ".json"
OPSET = 18
SLIDING = ("sliding", "gaussian")  # tilings whose windows overlap by half, under a Gaussian
DERIVED = "z-scores of these sequences over the voxels where none of them is zero; zero elsewhere; before all else"
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """Which network, and the file that it becomes."""

    model: Path = option("-m", metavar="FOLDER", help="folder of a trained model")
    fold: str = option("-f", default="0", metavar="FOLD", help="number of the fold, or all")
    checkpoint: str = option("-chk", default=FINAL, metavar="NAME", help="checkpoint of the fold")
    onnx: Path | None = option(default=None, writes="file", ending=".onnx", metavar="FILE", help="ONNX file to write")
    torchscript: Path | None = option(
        default=None, writes="file", ending=".pt", metavar="FILE", help="TorchScript file to write"
    )
    patch_size: tuple[int, ...] = option(
        default=(), metavar="VOXELS", at_least=1, help="size of the input along z, y, x; default: that of training"
    )


@dataclass(frozen=True)
class Exported:
    """files: of networks. difference: the largest from the network itself on random input, by file; in its spread."""

    files: tuple[Path, ...]
    descriptions: tuple[Path, ...]
    difference: dict[str, float]


def export(options: ExportOptions) -> Exported:
    """Write the network in the forms asked for, each compared with the network itself before it takes its place."""
    if not (options.onnx or options.torchscript):
        raise UserError("nothing to export: name a file with --onnx or --torchscript")
    model = open_model(options.model, fold_names([options.fold]), (options.checkpoint,))
    predictor = BraTSPredictor(device=CPU, patch_size=options.patch_size, memory_format=torch.contiguous_format)
    predictor.load(model)
    network = predictor.bare_network.eval()
    network.load_state_dict(predictor.list_of_parameters[0])
    channels = predictor.label_manager.num_segmentation_heads, _channels(model)
    example = torch.randn(1, channels[1], *predictor.patch_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(example)
    content = describe(model, predictor.patch_size)
    files, descriptions, difference = [], [], {}
    writers: list[tuple[Path | None, Callable[[nn.Module, Tensor, Path], None], Callable[[Path, Tensor], Tensor]]] = [
        (options.onnx, _write_onnx, run_onnx),
        (options.torchscript, _write_torchscript, run_torchscript),
    ]
    for file, write, run in writers:
        if file is None:
            continue
        with writing_checkpoint(file) as partial:
            write(network, example, partial)
            found = run(partial, example)
            difference[file.name] = float((found - expected).abs().max() / expected.std())
            hashed = sha256(partial)
        description = file.with_name(file.name + DESCRIPTION)
        write_json(description, {"network": {"file": file.name, "sha256": hashed}, **content})
        files.append(file)
        descriptions.append(description)
    return Exported(tuple(files), tuple(descriptions), difference)


def _channels(model: TrainedModel) -> int:
    previous = len(model.description.labels) - 1 if model.previous_stage else 0
    return len(model.description.channel_names) + previous


def describe(model: TrainedModel, patch_size: tuple[int, ...]) -> dict[str, Any]:
    """What to do before and behind the network, in words and numbers; sizes and axes are (z, y, x) of LPS images."""
    trainer, _, configuration = model.names
    fold, checkpoint = model.weights[0]
    planned = find_configuration(model.plans, configuration, model.folder / PLANS)
    facts, head = papers.find_trainer(trainer).prediction, model.description.head()
    masked = planned["use_mask_for_norm"]
    symmetries = find_symmetries(facts.symmetries)
    return {
        "model": {
            "trainer": trainer,
            "configuration": configuration,
            "data_set": model.dataset,
            "fold": fold,
            "checkpoint": checkpoint,
        },
        "exported_by": f"nnunet_brats_ext {__version__}",
        "input": {
            "shape": [1, _channels(model), *patch_size],
            "dtype": "float32",
            "channels": list(model.description.sequences),
            **({"derived": {"weights": derived, "of": DERIVED}} if (derived := model.description.derived) else {}),
            "previous_stage_labels": list(head.names) if model.previous_stage else [],
        },
        "preprocessing": {
            "axes": model.description.axes,
            "transpose": model.plans.get("transpose_forward", [0, 1, 2]),
            "crop": "to the box around all voxels that are not zero in any channel",
            "spacing_mm": planned["spacing"],
            "resampling": {"order": planned.get("resampling_fn_data_kwargs", {}).get("order", 3)},
            "normalisation": planned.get(NORMALISATION_KEY)
            or [
                {"scheme": scheme, "within_the_brain_only": bool(within)}
                for scheme, within in zip(planned["normalization_schemes"], masked, strict=False)
            ],
        },
        "windows": {
            "tiling": facts.tiling,
            "size": list(patch_size),
            **({"step": 0.5, "weights": "Gaussian, sigma an eighth of the size"} if facts.tiling in SLIDING else {}),
            "averaged_over": facts.symmetries
            if symmetries is None
            else [
                {"flips": list(one.flips), "quarter_turns": one.quarter_turns, "weight": one.weight}
                for one in symmetries
            ],
        },
        "output": {
            "shape": [1, len(head.channels), *patch_size],
            "logits_of": list(head.names),
            "activation": "sigmoid" if head.has_regions else "softmax",
            "threshold": 0.5 if head.has_regions else None,
            "labels": [list(labels) for labels in head.channels],
            "paint": list(head.paint) if head.has_regions else None,
            "numbering": "as trained: 1 oedema, 2 necrosis and non-enhancing tumour, 3 enhancing tumour",
        },
    }


def _write_onnx(network: nn.Module, example: Tensor, file: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("ONNX is not installed: pip install 'nnunet-brats-ext[onnx]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (example,), str(file), input_names=["image"], output_names=["logits"], opset_version=OPSET,
            external_data=False, verbose=False,
        )  # fmt: skip


def run_onnx(file: Path, images: Tensor) -> Tensor:
    """The logits that ONNX Runtime computes on the CPU."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("ONNX Runtime is not installed: pip install 'nnunet-brats-ext[onnx]'") from error
    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": np.ascontiguousarray(images.numpy())})
    return torch.from_numpy(logits)


def _write_torchscript(network: nn.Module, example: Tensor, file: Path) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = BytesIO()  # torch's own writer ends the process on a full disk
        torch.jit.save(torch.jit.trace(network, example, check_trace=False), program)
    file.write_bytes(program.getvalue())


def run_torchscript(file: Path, images: Tensor) -> Tensor:
    """The logits that the program computes."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.jit.load(str(file), map_location="cpu")(images)
