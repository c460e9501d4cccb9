"""Models of nnU-Net v1 (https://github.com/MIC-DKFZ/nnUNet/tree/nnunetv1): folders with plans.pkl and fold_*/*.model.

v1's `Generic_UNet` is v2's `PlainConvUNet` whose transposed convolutions and segmentation layers have no bias: here
they get one of zero. v1's decoder takes its kernels from the stage below; where that differs, kernels are filled up
with zeros to the larger of both, which computes the same.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional

from nnunet_brats_ext.brats import SEQUENCES, find_sequence
from nnunet_brats_ext.storage.errors import UserError, shorten
from nnunet_brats_ext.weights.key_maps import order_of, renamed
from nnunet_brats_ext.weights.plans import configuration
from nnunet_brats_ext.weights.reading import find_state, read_pickle, read_torch
from nnunet_brats_ext.weights.sources import REGIONS, ForeignModel, Given, State, WeightsSource

TRAINER = "BraTSNNUNetV1Trainer"
LABELS = ("ED", "NCR", "ET")  # 1, 2, 3 in all of v1's BraTS tasks: Task001, 032, 043, 082
CHECKPOINTS = ("model_final_checkpoint.model", "model_best.model", "model_latest.model")
STEM = "conv_blocks_context.0.blocks.0.conv.weight"
NONLINEARITIES = {  # what a trainer's name says of the nonlinearity, which the weights do not show
    r".*LReLU_slope_2en1": ("torch.nn.LeakyReLU", {"negative_slope": 0.2, "inplace": True}),
    r".*_ReLU(_biasInSegOutput)?$": ("torch.nn.ReLU", {"inplace": True}),
    r"(?!.*(ReLUIN|Mish|GeLU|FRN|_GN|ResUNet|ResencUNet|allConv|P_Net)).*": (
        "torch.nn.LeakyReLU",
        {"negative_slope": 0.01, "inplace": True},
    ),
}
NORMALISATIONS = {"nonCT": "ZScoreNormalization", "CT": "CTNormalization", "noNorm": "NoNormalization"}
INTENSITIES = {"mean": "mean", "median": "median", "sd": "std", "mn": "min", "mx": "max"}


def open_model(given: Given) -> ForeignModel | None:
    folder, folds = _files(given.path)
    if not folds:
        return None
    first = next(iter(folds.values()))
    info = _info(first, folder)
    name, plans = str(info.get("name", "")), info.get("plans")
    if not isinstance(plans, Mapping) or "plans_per_stage" not in plans:
        raise UserError(f"{folder} has no plans of nnU-Net v1: plans.pkl, or {first.name}.pkl beside its weights")
    try:
        return _model(given, name, info, plans, folds)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(
            f"{folder}: its plans are not as nnU-Net v1 writes them ({type(error).__name__}: {error}); get it again"
        ) from error


def _files(path: Path) -> tuple[Path, dict[str, Path]]:
    """The folder of a model and the file of each fold; no files where it is no model of v1."""
    if path.is_file():
        of_v1 = path.suffix == ".model"
        fold = path.parent.name.removeprefix("fold_")
        return path.parent.parent, {fold if fold.isdecimal() or fold == "all" else "": path} if of_v1 else {}
    found = {}
    for inside in sorted([*path.glob("fold_[0-9]*"), *path.glob("all")]):
        files = [inside / name for name in CHECKPOINTS if (inside / name).is_file()]
        if files:
            found[inside.name.removeprefix("fold_")] = files[0]
    if not found and (path / "plans.pkl").is_file():
        raise UserError(f"{path} has plans.pkl, and no fold with {CHECKPOINTS[0]}; give the folder of a trained model")
    return path, found


def _info(file: Path, folder: Path) -> dict[str, Any]:
    """What v1 writes beside a checkpoint: trainer, its arguments, plans; or the plans of the model's folder."""
    beside = file.with_name(f"{file.name}.pkl")
    for candidate in (beside, folder / "plans.pkl"):
        if candidate.is_file():
            content = read_pickle(candidate)
            if isinstance(content, Mapping):
                return dict(content) if candidate == beside else {"plans": content, "name": folder.name.split("__")[0]}
    raise UserError(f"{folder} has neither plans.pkl nor {beside.name}, which say how its network is built")


def _model(
    given: Given, name: str, info: Mapping[str, Any], plans: Mapping[str, Any], folds: Mapping[str, Path]
) -> ForeignModel:
    first = _state(next(iter(folds.values())))
    if STEM not in first:
        raise UserError(
            f"{given.path}: the network of {name or 'this model'} is no Generic_UNet, the only one of v1 that can be "
            f"imported; its weights are {shorten(list(first), 2)}"
        )
    stages = plans["plans_per_stage"]
    arguments = tuple(info.get("init") or ())
    stage = arguments[5] if len(arguments) > 5 and arguments[5] in stages else max(stages)
    staged = "Cascade" in name
    planned = stages[stage]
    axes = len(planned["patch_size"])
    key = (
        "2d" if axes == 2 else "3d_cascade_fullres" if staged else
        "3d_lowres" if len(stages) > 1 and stage == min(stages) else "3d_fullres"
    )  # fmt: skip
    channels = given.channels or _sequences(plans["modalities"], given.path)
    labels = given.labels or LABELS[: int(plans["num_classes"])]
    outputs = _outputs(first, labels, given.path)
    inputs = (*channels, *(labels if staged else ()))
    if first[STEM].shape[1] != len(inputs):
        raise UserError(
            f"{given.path}: its network takes {first[STEM].shape[1]} channels, not {len(inputs)} "
            f"({', '.join(inputs)}); name them with --channels"
        )
    order = order_of(channels, SEQUENCES) or list(range(len(channels)))
    links: dict[str, dict[str, Any]] = {
        "3d_cascade_fullres": {"previous_stage": "3d_lowres"},
        "3d_lowres": {"next_stage": "3d_cascade_fullres"},
    }
    depth = _depth(first)
    network, imports, strides = _architecture(first, name, axes, outputs == REGIONS)
    built = configuration(
        planned["patch_size"],
        strides,
        batch_size=planned["batch_size"],
        network=network.pop("class"),
        arguments=network,
        imports=imports,
        spacing=planned["current_spacing"],
        median=planned["median_patient_size_in_voxels"],
        normalisation=[_normalisation(plans["normalization_schemes"][number], given.path) for number in order],
        masked=[bool(plans["use_mask_for_norm"][number]) for number in order],
        **links.get(key, {}),
    )
    notes = ["at another spacing than the planned one, v1 normalises after resampling and v2 before it"]
    if "noMirror" in name:
        notes.append("it was trained without mirroring: predict with --tta none")
    return ForeignModel(
        system=f"nnU-Net v1, {name or 'unnamed trainer'}, {key}: Generic_UNet with {depth} poolings, "
        f"{'regions' if outputs == REGIONS else 'labels'}",
        trainer=TRAINER,
        plans_name=str(info.get("identifier") or "nnUNetPlansV1"),
        configuration=key,
        configurations={key: built},
        inputs=inputs,
        outputs=outputs,
        folds={fold: partial(_converted, file, depth) for fold, file in folds.items()},
        files={fold: _with_pickle(file) for fold, file in folds.items()},
        input_layers=("encoder.stages.0.0.convs.0.conv.weight",),
        output_layers=tuple(
            f"decoder.seg_layers.{level}.{kind}" for level in range(depth) for kind in ("weight", "bias")
        ),
        transpose=tuple(int(axis) for axis in plans.get("transpose_forward") or (0, 1, 2)),  # type: ignore[arg-type]
        notes=tuple(notes),
        intensities=_intensities(plans, order),
    )


def _with_pickle(file: Path) -> list[Path]:
    beside = file.with_name(f"{file.name}.pkl")
    return [file, beside] if beside.is_file() else [file]


def _state(file: Path) -> State:
    return find_state(read_torch(file)) or {}


def _depth(state: State) -> int:
    return 1 + max(int(m[1]) for name in state if (m := re.match(r"tu\.(\d+)\.weight", name)))


def _architecture(state: State, trainer: str, axes: int, whole: bool) -> tuple[dict[str, Any], list[str], list[Any]]:
    """The network in the words of v2's plans, its arguments that are classes, and its strides; from the weights."""
    if "tu.0.weight" not in state:
        raise UserError(f"{trainer}: a Generic_UNet that enlarges by interpolation cannot be imported")
    nonlinearity = next((use for pattern, use in NONLINEARITIES.items() if re.fullmatch(pattern, trainer)), None)
    if nonlinearity is None:
        raise UserError(f"{trainer}: its normalisation or nonlinearity is not one that can be imported")
    depth, names = _depth(state), _key_map(state)
    convs = [[old for old, new in names.items() if new.startswith(f"encoder.stages.{s}.")] for s in range(depth + 1)]
    weights = [[state[f"{old}conv.weight"] for old in stage] for stage in convs]
    decoder = [sum(new.startswith(f"decoder.stages.{u}.") for new in names.values()) for u in range(depth)]
    kernels = _kernels(state)
    strides = [(1,) * axes, *(tuple(state[f"tu.{u}.weight"].shape[2:]) for u in range(depth)[::-1])]
    norm = "BatchNorm" if any(name.endswith("running_mean") for name in state) else "InstanceNorm"
    arguments = {
        "class": "nnunet_brats_ext.architectures.whole_unet.WholeUNet"
        if whole
        else "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "n_stages": depth + 1,
        "features_per_stage": [stage[-1].shape[0] for stage in weights],
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": [list(kernel) for kernel in kernels],
        "n_conv_per_stage": [len(stage) for stage in weights],
        "n_conv_per_stage_decoder": decoder,
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.{norm.lower()}.{norm}{axes}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": nonlinearity[0],
        "nonlin_kwargs": nonlinearity[1],
    }
    return arguments, ["conv_op", "norm_op", "dropout_op", "nonlin"], strides


def _kernels(state: State) -> list[tuple[int, ...]]:
    """The kernel of each stage that holds those of encoder and decoder."""
    depth = _depth(state)
    found: dict[int, tuple[int, ...]] = {}
    for old, new in _key_map(state).items():
        kind, _, number, *_ = new.split(".")
        stage = int(number) if kind == "encoder" else depth - 1 - int(number)
        kernel = tuple(state[f"{old}conv.weight"].shape[2:])
        found[stage] = tuple(map(max, kernel, found.get(stage, kernel)))
    return [found[stage] for stage in range(depth + 1)]


def _filled_up(weight: Tensor, kernel: Sequence[int]) -> Tensor:
    """A kernel with zeros around it, to a size."""
    missing = [(wanted - there) // 2 for wanted, there in zip(kernel, weight.shape[2:], strict=True)]
    return functional.pad(weight, [n for each in reversed(missing) for n in (each, each)]) if any(missing) else weight


def _key_map(state: State) -> dict[str, str]:
    """The beginning of the name of each convolution with its normalisation -> ours."""
    found: dict[str, str] = {}
    for name in state:
        if m := re.match(r"conv_blocks_context\.(\d+)\.(?:([01])\.)?blocks\.(\d+)\.", name):
            stage, part, block = m.groups()
            found[m[0]] = f"encoder.stages.{stage}.0.convs.{_place(state, m[0], part, block)}."
        elif m := re.match(r"conv_blocks_localization\.(\d+)\.([01])\.blocks\.(\d+)\.", name):
            level, part, block = m.groups()
            found[m[0]] = f"decoder.stages.{level}.convs.{_place(state, m[0], part, block)}."
    return found


def _place(state: State, beginning: str, part: str | None, block: str) -> int:
    """The place of a block in its stage, of which v1 keeps the last block apart."""
    if part != "1":
        return int(block)
    first = beginning.rsplit("1.blocks.", 1)[0] + "0.blocks."
    return 1 + max(int(m[1]) for name in state if (m := re.match(re.escape(first) + r"(\d+)\.", name)))


def _converted(file: Path, depth: int) -> dict[str, Tensor]:
    """The weights of one fold under v2's names, with biases of zero where v1 has none."""
    state = _state(file)
    key_map = {
        **{f"{old}{part}.": f"{new}{ours}." for old, new in _key_map(state).items()
           for part, ours in (("conv", "conv"), ("instnorm", "norm"))},
        "tu.": "decoder.transpconvs.",
        "seg_outputs.": "decoder.seg_layers.",
    }  # fmt: skip
    ours = renamed(state, key_map)
    kernels = _kernels(state)
    for stage in range(depth + 1):
        for beginning in (f"encoder.stages.{stage}.", f"decoder.stages.{depth - 1 - stage}."):
            for name in (name for name in ours if name.startswith(beginning) and name.endswith("conv.weight")):
                ours[name] = _filled_up(ours[name], kernels[stage])
    for kind, axis in (("transpconvs", 1), ("seg_layers", 0)):
        for level in range(depth):
            weight = ours[f"decoder.{kind}.{level}.weight"]
            ours.setdefault(f"decoder.{kind}.{level}.bias", weight.new_zeros(weight.shape[axis]))
    return ours


def _outputs(state: State, labels: Sequence[str], path: Path) -> tuple[str, ...]:
    """Regions where there is a channel per label, as v1's BraTSRegions trainers; else the background and the labels."""
    count = state[f"seg_outputs.{_depth(state) - 1}.weight"].shape[0]
    if count == len(labels) == len(REGIONS):
        return REGIONS
    if count == len(labels) + 1:
        return ("background", *labels)
    raise UserError(
        f"{path}: its network has {count} outputs, which are neither {REGIONS} nor the background and {labels}"
    )


def _sequences(modalities: Mapping[int, str], path: Path) -> tuple[str, ...]:
    names = [str(modalities[number]) for number in sorted(modalities)]
    if any(find_sequence(name) is None for name in names):
        raise UserError(
            f"{path}: its modalities are {names}; name the sequences with --channels, such as T1 T1ce T2 FLAIR"
        )
    return tuple(str(find_sequence(name)) for name in names)


def _normalisation(scheme: str, path: Path) -> str:
    if scheme not in NORMALISATIONS:
        raise UserError(f"{path}: nnU-Net v2 has no normalisation {scheme!r}")
    return NORMALISATIONS[scheme]


def _intensities(plans: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """v2's names for what v1 measured in the foreground of each channel; empty where it did not."""
    measured = (plans.get("dataset_properties") or {}).get("intensityproperties") or {}
    found = {}
    for ours, number in enumerate(order):
        values = measured.get(number)
        if not isinstance(values, Mapping):
            return {}
        kept = {new: float(values[old]) for old, new in INTENSITIES.items() if old in values}
        found[str(ours)] = kept | {f"percentile_{p}": float(values[f"percentile_{p}"]) for p in ("00_5", "99_5")}
    return found


SOURCE = WeightsSource(
    title="nnU-Net v1: the folder of a model, with plans.pkl and fold_*/model_final_checkpoint.model",
    published="https://zenodo.org/record/4635763 (Task082_BraTS2020), https://zenodo.org/record/3734294 "
    "(Task001_BrainTumour)",
    licence="as stated there, or by whoever trained it; the code is Apache 2.0",
    trained_on="what its task says: Task082 the 369 training cases of BraTS 2020, Task001 the 484 of the Decathlon",
    open=open_model,
)
