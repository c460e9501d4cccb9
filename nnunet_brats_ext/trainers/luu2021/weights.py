"""The models of Luu & Park 2021, as their fork of nnU-Net v1 saves them: https://github.com/rixez/Brats21_KAIST_MRI_Lab.

Their BL is v1's own network, which is imported as such.
"""

import re

from nnunet_brats_ext.architectures.wide_encoder_unet import RELEASED_KEYS, RELEASED_KEYS_OF_ATTENTION
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.weights.key_maps import renamed
from nnunet_brats_ext.weights.sources import ForeignModel, Given, State, WeightsSource
from nnunet_brats_ext.weights.v1_models import NetworkOfV1, describe

TRAINERS = {  # theirs, all called nnUNetTrainerV2BraTSRegions_DA4_ and this -> ours
    "BN_BD_largeUnet_Groupnorm": ("BL + L + GN: twice as wide an encoder, group norm", "BraTSLuu2021Trainer"),
    "BN_BD_normalUnet_axialattention": ("BL + AA: axial attention in the decoder", "BraTSLuu2021AxialTrainer"),
}
POOLINGS = 5
STRIDES = [(1, 1, 1), *[(2, 2, 2)] * POOLINGS]
STEM, HEAD = "conv_blocks_context.0.blocks.0.conv.weight", f"seg_outputs.{POOLINGS - 1}.weight"


def open_model(given: Given) -> ForeignModel | None:
    v1 = given.model_of_v1
    variant = re.match(r"nnUNetTrainerV2BraTSRegions_DA4_(.+)", v1.trainer) if v1 else None
    if v1 is None or variant is None:
        return None
    if variant[1] not in TRAINERS:
        if "_BD_" in variant[1]:
            raise UserError(
                f"{given.path}: {v1.trainer} of Luu & Park's code, which no trainer of ours builds; those of their "
                f"paper are {', '.join(TRAINERS)}"
            )
        return None
    state = v1.state
    v1.require_kernels(r".*conv\.weight|seg_outputs\.\d\.weight")
    if not {STEM, HEAD} <= state.keys() or f"tu.{POOLINGS}.weight" in state or v1.axes != 3:
        raise UserError(f"{given.path}: {v1.trainer} in 2-D, or with another number of poolings than {POOLINGS}")
    name, trainer = TRAINERS[variant[1]]
    network = NetworkOfV1(
        name=f"Generic_UNet of Luu & Park 2021, {name}",
        trainer=trainer,
        plans_name="Luu2021Plans",
        inputs=state[STEM].shape[1],
        outputs=state[HEAD].shape[0],
        planned={number: {"strides": STRIDES} for number in range(len(v1.stages))},
        converted=_converted,
        input_layers=("encoder_stages.0.0.0.weight",),
        output_layers=("output.weight", *(f"heads.{level}.weight" for level in range(POOLINGS - 1))),
        trained_on="1251 training cases of BraTS 2021",
        notes=(
            "v1 averages probabilities over windows: predict with --tiling gaussian",
            "their system is its mean with their BL; then --rules luu2021",
        ),
    )
    return describe(given, v1, network)


def _converted(state: State) -> State:
    return renamed(state, {**RELEASED_KEYS, **RELEASED_KEYS_OF_ATTENTION})


SOURCE = WeightsSource(
    title="Luu & Park 2021: the folder of a model of their fork, ..._largeUnet_Groupnorm or ..._axialattention",
    published="https://github.com/rixez/Brats21_KAIST_MRI_Lab (a link to Google Drive), BL and BL + L + GN",
    licence="Apache 2.0, of the repository",
    trained_on="1251 training cases of BraTS 2021",
    open=open_model,
)
