"""MedNeXt as its authors' fork of nnU-Net v1 saves it: https://github.com/MIC-DKFZ/MedNeXt."""

from collections.abc import Mapping

from torch import Tensor

from nnunet_brats_ext.architectures.mednext import RELEASED_HEADS, RELEASED_KEYS, RELEASED_UNUSED
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.weights.key_maps import names_left_out, renamed
from nnunet_brats_ext.weights.sources import ForeignModel, Given, State, WeightsSource
from nnunet_brats_ext.weights.v1_models import NetworkOfV1, describe

SIZES = {  # blocks and expansion of the two stages at half and at an eighth of the size -> size
    (2, 2, 2, 2): "S",
    (2, 3, 2, 4): "B",
    (4, 3, 4, 4): "M",
    (4, 4, 8, 8): "L",
}
STRIDES = [(1, 1, 1), *[(2, 2, 2)] * 4]
STEM, HEAD, BLOCKS = "stem.weight", "out_0.conv_out.weight", "dec_block_{}.{}.conv{}.weight"


def open_model(given: Given) -> ForeignModel | None:
    v1 = given.model_of_v1
    if v1 is None or not {STEM, HEAD, BLOCKS.format(3, 0, 1)} <= v1.state.keys():
        return None
    state = v1.state
    v1.require_kernels(r"stem\.weight|.*conv(\d|_out)\.weight")
    size, kernel = size_of(state), state[BLOCKS.format(3, 0, 1)].shape[-1]
    if size is None or kernel not in (3, 5) or v1.axes != 3:
        raise UserError(f"{given.path}: a MedNeXt in 2-D, or of another size than S, B, M and L, with kernel {kernel}")
    network = NetworkOfV1(
        name=f"MedNeXt, size {size} with kernel {kernel}",
        trainer=f"BraTSMedNeXt{size}{'Kernel5' if kernel == 5 else ''}Trainer",
        plans_name="Roy2023Plans",
        inputs=state[STEM].shape[1],
        outputs=state[HEAD].shape[1],
        planned={number: {"strides": STRIDES} for number in range(len(v1.stages))},
        converted=_converted,
        input_layers=(STEM,),
        output_layers=tuple(
            f"{head}.{kind}" for head in ("output", *(f"heads.{n}" for n in range(4))) for kind in ("weight", "bias")
        ),
        unused=names_left_out(state, RELEASED_UNUSED),
        initial=("heads.",),
        notes=("v1 averages probabilities over windows: predict with --tiling gaussian",),
    )
    return describe(given, v1, network)


def size_of(state: Mapping[str, Tensor]) -> str | None:
    """S, B, M or L, by the blocks of two stages of the decoder and the channels inside them."""
    found = []
    for stage in (1, 3):
        blocks = [number for number in range(9) if BLOCKS.format(stage, number, 2) in state]
        wide = state[BLOCKS.format(stage, 0, 2)].shape if blocks else (0, 1)
        found += [len(blocks), wide[0] // wide[1]]
    return SIZES.get(tuple(found))  # type: ignore[arg-type]


def _converted(state: State) -> State:
    """The heads are transposed convolutions of size 1: (input, output) there, (output, input) here."""
    turned = {
        name: value.transpose(0, 1) if name.startswith(RELEASED_HEADS) and value.ndim > 1 else value
        for name, value in state.items()
    }
    return renamed(turned, RELEASED_KEYS, RELEASED_UNUSED)


SOURCE = WeightsSource(
    title="Roy et al. 2023: MedNeXt, the folder of a model of their nnunet_mednext, size S, B, M or L",
    published="the code alone, https://github.com/MIC-DKFZ/MedNeXt; the weights are those that its users have trained",
    licence="of whoever trained it; the code is Apache 2.0",
    trained_on="what its task says",
    open=open_model,
)
