"""MONAI's published weights for BraTS: the bundle `brats_mri_segmentation`, and Swin UNETR for BraTS 2021."""

import re
from pathlib import Path
from typing import Any

from nnunet_brats_ext.architectures.monai_networks import require_monai
from nnunet_brats_ext.brats import find_sequence
from nnunet_brats_ext.dataset_conversion.normalisation import ZSCORE_NONZERO
from nnunet_brats_ext.storage.datasets import NORMALISATION_KEY
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.weights.plans import configuration
from nnunet_brats_ext.weights.sources import ForeignModel, Given, State, WeightsSource

TRAINER = "BraTSMonaiTrainer"
CHANNELS, OUTPUTS = ("T1ce", "T1", "T2", "FLAIR"), ("TC", "WT", "ET")  # of the bundle and of its data conversion
SWIN_CHANNELS = ("FLAIR", "T1ce", "T1", "T2")  # as the list of cases of BraTS 2021 names the files
ISOTROPIC = ((1, 1, 1), (2, 2, 2))
NETWORKS = "nnunet_brats_ext.architectures.monai_networks"
BUNDLE_PATCH, SWIN_PATCH = (240, 240, 160), (128, 128, 128)  # (x, y, z), as MONAI reads images
NORMALISED: dict[str, Any] = {NORMALISATION_KEY: ZSCORE_NONZERO}
SEG_RES_NET, SWIN = "convInit.conv.weight", "swinViT.patch_embed.proj.weight"


def open_model(given: Given) -> ForeignModel | None:
    folder = given.path
    if folder.is_dir():
        if not (folder / "configs" / "metadata.json").is_file():
            return None
        file = folder / "models" / "model.pt"
        if not file.is_file():
            raise UserError(f"{folder} is a MONAI bundle without models/model.pt; download its weights, too")
        return open_model(Given(file, given.channels, given.labels, given.region))
    if SEG_RES_NET in given.state:
        return _seg_res_net(given)
    return _swin_unetr(given) if SWIN in given.state else None


def _seg_res_net(given: Given) -> ForeignModel:
    state = given.state
    down = _counts(state, r"down_layers\.(\d+)\.(\d+)\.conv1\.conv\.weight", before=1)
    up = _counts(state, r"up_layers\.(\d+)\.(\d+)\.conv1\.conv\.weight")
    arguments = {
        "spatial_dims": state[SEG_RES_NET].ndim - 2,
        "init_filters": state[SEG_RES_NET].shape[0],
        "blocks_down": down,
        "blocks_up": up,
        "dropout_prob": 0.2,
    }
    return _model(
        given,
        "SegResNet of MONAI" + _bundle(given.path),
        "segresnet",
        configuration(
            BUNDLE_PATCH,
            [ISOTROPIC[min(stage, 1)] for stage in range(len(down))],
            batch_size=1,
            network=f"{NETWORKS}.seg_res_net",
            arguments=arguments,
            median=(137, 171, 140),
            **NORMALISED,
        ),
        _channels(given, CHANNELS),
        (SEG_RES_NET,),
        ("conv_final.2.conv.weight", "conv_final.2.conv.bias"),
        "the bundle: 200 of the 285 training cases of BraTS 2018",
    )


def _swin_unetr(given: Given) -> ForeignModel:
    state = given.state
    depths = [
        len({m[1] for name in state if (m := re.match(rf"swinViT\.layers{stage}\.0\.blocks\.(\d+)\.", name))})
        for stage in range(1, 5)
    ]
    heads = [
        state[f"swinViT.layers{stage}.0.blocks.0.attn.relative_position_bias_table"].shape[1] for stage in range(1, 5)
    ]
    arguments = {"feature_size": state[SWIN].shape[0], "depths": depths, "num_heads": heads}
    return _model(
        given,
        "Swin UNETR of MONAI",
        "swinunetr",
        configuration(
            SWIN_PATCH,
            [ISOTROPIC[min(stage, 1)] for stage in range(6)],
            batch_size=1,
            network=f"{NETWORKS}.swin_unetr",
            arguments=arguments,
            median=(137, 171, 140),
            **NORMALISED,
        ),
        _channels(given, SWIN_CHANNELS),
        (SWIN, "encoder1.layer.conv1.conv.weight", "encoder1.layer.conv3.conv.weight"),
        ("out.conv.conv.weight", "out.conv.conv.bias"),
        "training cases of BraTS 2021, four folds of five",
    )


def _model(
    given: Given,
    system: str,
    name: str,
    planned: dict[str, Any],
    channels: tuple[str, ...],
    input_layers: tuple[str, ...],
    output_layers: tuple[str, ...],
    trained_on: str,
) -> ForeignModel:
    require_monai()
    given_outputs = given.state[output_layers[0]].shape[0]
    if (given_inputs := given.state[input_layers[0]].shape[1]) != len(channels) or given_outputs != len(OUTPUTS):
        raise UserError(
            f"{given.path}: {system} with {given_inputs} channels and {given_outputs} outputs; for BraTS it has "
            f"{len(channels)} and {len(OUTPUTS)}"
        )
    state: State = given.state
    return ForeignModel(
        system=system,
        trainer=TRAINER,
        plans_name="MonaiPlans",
        configuration=name,
        configurations={name: planned},
        inputs=channels,
        outputs=OUTPUTS,
        folds={"": lambda: state},
        files={"": [given.path]},
        input_layers=input_layers,
        output_layers=output_layers,
        trained_on=trained_on,
        transpose=(2, 1, 0),  # MONAI reads images as (x, y, z); windows of attention cannot be turned
        notes=(
            "z-scores are over the non-zero voxels of each sequence; with nnUNetv2_predict and in training on they are "
            "over the brain, and differ where a sequence has zeros in it",
        ),
    )


def _counts(state: State, pattern: str, before: int = 0) -> list[int]:
    """Blocks per stage, of a network whose stages hold so many other layers before them."""
    found = [(int(m[1]), int(m[2])) for name in state if (m := re.match(pattern, name))]
    return [
        max(block for stage, block in found if stage == number) + 1 - before
        for number in range(max(stage for stage, _ in found) + 1)
    ]


def _bundle(file: Path) -> str:
    """Name and version of the bundle that a file lies in, as far as it says."""
    metadata = file.parent.parent / "configs" / "metadata.json"
    if not metadata.is_file():
        return ""
    content = read_json(metadata)
    return f", bundle {content.get('name') or file.parent.parent.name} {content.get('version', '')}".rstrip()


def _channels(given: Given, default: tuple[str, ...]) -> tuple[str, ...]:
    """What the user says, what the bundle's metadata say, or the default."""
    if given.channels:
        return given.channels
    metadata = given.path.parent.parent / "configs" / "metadata.json"
    if not metadata.is_file():
        return default
    try:
        definition = read_json(metadata)["network_data_format"]["inputs"]["image"]["channel_def"]
        names = [definition[str(number)] for number in range(len(definition))]
    except (KeyError, TypeError):
        return default
    sequences = [find_sequence(name) if isinstance(name, str) else None for name in names]
    return tuple(name for name in sequences if name) if all(sequences) else default


SOURCE = WeightsSource(
    title="MONAI: the bundle brats_mri_segmentation (SegResNet), and Swin UNETR for BraTS 2021",
    published="https://github.com/Project-MONAI/model-zoo (brats_mri_segmentation), "
    "https://github.com/Project-MONAI/research-contributions/tree/main/SwinUNETR/BRATS21",
    licence="Apache 2.0; the data of BraTS under its own terms",
    trained_on="SegResNet: 200 of the 285 training cases of BraTS 2018. Swin UNETR: training cases of BraTS 2021, four "
    "folds of five for each file",
    open=open_model,
)
