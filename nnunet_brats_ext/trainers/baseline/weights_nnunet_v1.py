"""Models of nnU-Net v1 (https://github.com/MIC-DKFZ/nnUNet/tree/nnunetv1): folders with plans.pkl and fold_*/*.model.

v1's `Generic_UNet` is v2's `PlainConvUNet` whose transposed convolutions and segmentation layers have no bias: here
they get one of zero. v1's decoder takes its kernels from the stage below; where that differs, kernels are filled up
with zeros to the larger of both, which computes the same.
"""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from nnunet_brats_ext.storage.errors import UserError, shorten
from nnunet_brats_ext.weights.key_maps import renamed
from nnunet_brats_ext.weights.sources import REGIONS, ForeignModel, Given, State, WeightsSource
from nnunet_brats_ext.weights.v1_files import ModelOfV1, StageOfV1
from nnunet_brats_ext.weights.v1_models import NetworkOfV1, describe, outputs_of

STEM = "conv_blocks_context.0.blocks.0.conv.weight"
KERNELS = r"(conv_blocks_.*\.conv|tu\.\d+|seg_outputs\.\d+)\.weight"
MOST_FEATURES = {2: 480, 3: 320}  # of a stage of v1's network, by its axes
NONLINEARITIES = {  # what a trainer's name says of the nonlinearity, which the weights do not show
    r".*LReLU_slope_2en1": ("torch.nn.LeakyReLU", {"negative_slope": 0.2, "inplace": True}),
    r".*_ReLU(_biasInSegOutput)?$": ("torch.nn.ReLU", {"inplace": True}),
    r"(?!.*(ReLUIN|Mish|GeLU|FRN|_GN|ResUNet|ResencUNet|allConv|P_Net)).*": (
        "torch.nn.LeakyReLU",
        {"negative_slope": 0.01, "inplace": True},
    ),
}


def open_model(given: Given) -> ForeignModel | None:
    v1 = given.model_of_v1
    if v1 is None:
        return None
    state = v1.state
    if STEM not in state:
        raise UserError(
            f"{given.path}: the network of {v1.trainer or 'this model'} is no Generic_UNet, the only one of v1 that "
            f"can be imported; its weights are {shorten(list(state), 2)}"
        )
    v1.require_kernels(KERNELS)
    try:
        network = _network(given, v1, state)
    except KeyError as error:
        raise UserError(f"{given.path}: a Generic_UNet without {error}, or a part of one; get it again") from error
    return describe(given, v1, network)


def _network(given: Given, v1: ModelOfV1, state: State) -> NetworkOfV1:
    depth = _depth(state)
    *_, outputs = (state[f"seg_outputs.{level}.weight"].shape[0] for level in range(depth))
    own = _architecture(state, v1.trainer, v1.axes, outputs_of(given, v1, outputs) == REGIONS)
    others = {number: _planned(v1, one, own) for number, one in enumerate(v1.stages) if one.strides and one.kernels}
    return NetworkOfV1(
        name=f"Generic_UNet with {depth} poolings",
        trainer="BraTSNNUNetV1Trainer",
        inputs=state[STEM].shape[1],
        outputs=outputs,
        planned={**others, v1.stage: own},
        converted=_converted,
        input_layers=("encoder.stages.0.0.convs.0.conv.weight",),
        output_layers=tuple(
            f"decoder.seg_layers.{level}.{kind}" for level in range(depth) for kind in ("weight", "bias")
        ),
    )


def _depth(state: State) -> int:
    return 1 + max((int(m[1]) for name in state if (m := re.match(r"tu\.(\d+)\.weight", name))), default=0)


def _architecture(state: State, trainer: str, axes: int, whole: bool) -> dict[str, Any]:
    """The network in the words of v2's plans, from the weights."""
    if "tu.0.weight" not in state:
        raise UserError(f"{trainer}: a Generic_UNet that enlarges by interpolation cannot be imported")
    nonlinearity = next((use for pattern, use in NONLINEARITIES.items() if re.fullmatch(pattern, trainer)), None)
    if nonlinearity is None:
        raise UserError(f"{trainer}: its normalisation or nonlinearity is not one that can be imported")
    depth, names = _depth(state), _key_map(state)
    convs = [[old for old, new in names.items() if new.startswith(f"encoder.stages.{s}.")] for s in range(depth + 1)]
    weights = [[state[f"{old}conv.weight"] for old in stage] for stage in convs]
    decoder = [sum(new.startswith(f"decoder.stages.{u}.") for new in names.values()) for u in range(depth)]
    norm = "BatchNorm" if any(name.endswith("running_mean") for name in state) else "InstanceNorm"
    return {
        "strides": [(1,) * axes, *(tuple(state[f"tu.{u}.weight"].shape[2:]) for u in range(depth)[::-1])],
        "network": "nnunet_brats_ext.architectures.whole_unet.WholeUNet"
        if whole
        else "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arguments": {
            "n_stages": depth + 1,
            "features_per_stage": [stage[-1].shape[0] for stage in weights],
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": [list(kernel) for kernel in _kernels(state)],
            "n_conv_per_stage": [len(stage) for stage in weights],
            "n_conv_per_stage_decoder": decoder,
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.{norm.lower()}.{norm}{axes}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": nonlinearity[0],
            "nonlin_kwargs": nonlinearity[1],
        },
        "imports": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _planned(v1: ModelOfV1, stage: StageOfV1, own: dict[str, Any]) -> dict[str, Any]:
    """The same network at another stage, from v1's plans; own: that of the model."""
    depth, most = len(stage.strides), MOST_FEATURES[len(stage.patch_size)]
    below = [*stage.kernels[1:], stage.kernels[-1]]  # from which v1's decoder takes its kernels
    return own | {
        "strides": [(1,) * len(stage.patch_size), *stage.strides],
        "arguments": own["arguments"]
        | {
            "n_stages": depth + 1,
            "features_per_stage": [min(v1.features * 2**number, most) for number in range(depth + 1)],
            "kernel_sizes": [list(map(max, *pair)) for pair in zip(stage.kernels, below, strict=True)],
            "n_conv_per_stage": [v1.convolutions] * (depth + 1),
            "n_conv_per_stage_decoder": [v1.convolutions] * depth,
        },
    }


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


def _converted(state: State) -> State:
    """The weights under v2's names, with biases of zero where v1 has none."""
    depth = _depth(state)
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


SOURCE = WeightsSource(
    title="nnU-Net v1: the folder of a model, with plans.pkl and fold_*/model_final_checkpoint.model",
    published="https://zenodo.org/record/4635763 (Task082_BraTS2020), https://zenodo.org/record/3734294 "
    "(Task001_BrainTumour)",
    licence="as stated there, or by whoever trained it; the code is Apache 2.0",
    trained_on="what its task says: Task082 the 369 training cases of BraTS 2020, Task001 the 484 of the Decathlon",
    open=open_model,
)
