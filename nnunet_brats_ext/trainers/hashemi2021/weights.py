"""The models of Hashemi et al. 2021, as their code saves them: https://github.com/Nima-Hs/BraTS."""

import re

from nnunet_brats_ext.architectures.plain_unet_2d import FEATURES, RELEASED_KEYS
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.trainers.hashemi2021.paper import REGIONS as NAMES
from nnunet_brats_ext.weights.key_maps import covers, renamed
from nnunet_brats_ext.weights.plans import configuration_of_paper
from nnunet_brats_ext.weights.sources import REGIONS, ForeignModel, Given, WeightsSource

CONFIGURATION = "hashemi_2d"


def open_model(given: Given) -> ForeignModel | None:
    state = given.state
    if not covers(state, RELEASED_KEYS):
        return None
    if (width := state["conv1.0.weight"].shape[0]) != FEATURES[0]:
        raise UserError(f"{given.path}: a network of width {width}; those of the paper have {FEATURES[0]}")
    outputs = state["convlast.0.weight"].shape[0]
    binary = outputs == 2
    region = _region(given) if binary else None
    if not binary and outputs != len(REGIONS):
        raise UserError(f"{given.path}: a network with {outputs} outputs; those of the paper have 2 or 3")
    called = {short: long for long, short in NAMES.items()}
    planned = configuration_of_paper(CONFIGURATION, masked=[False] * 4)
    if binary:
        planned["architecture"]["arch_kwargs"]["final_relu"] = True
    return ForeignModel(
        system=f"U-Net 2C of Hashemi et al. 2021 for {region}" if binary else "U-Net 3C of Hashemi et al. 2021",
        trainer=f"BraTS2D{called[region] if region else ''}Trainer",
        plans_name="Hashemi2021Plans",
        configuration=CONFIGURATION,
        configurations={CONFIGURATION: planned},
        inputs=("FLAIR", "T1", "T1ce", "T2"),
        outputs=REGIONS,
        folds={"": lambda: renamed(state, RELEASED_KEYS)},
        files={"": [given.path]},
        input_layers=("encoder_stages.0.0.weight",),
        output_layers=(),
        reversed_axes=True,
        notes=(
            "the authors' z-scores are over whole images with their background, nnU-Net's over the box of the brain",
        ),
    )


def _region(given: Given) -> str:
    """What the user says, or the beginning of the file's name: WT-TAG-epoch-NN."""
    found = re.match(r"(WT|TC|ET)\b", given.path.name)
    if given.region or found:
        return given.region or str(found[1] if found else "")
    raise UserError(f"{given.path} is of a network for one region; say which with --region WT, TC or ET")


SOURCE = WeightsSource(
    title="Hashemi et al. 2021: U-Net 2C or 3C, checkpoints/REGION-TAG-epoch-NN",
    published="the code alone, https://github.com/Nima-Hs/BraTS; weights on request",
    licence="not stated",
    trained_on="295 of the 369 training cases of BraTS 2020",
    open=open_model,
)
