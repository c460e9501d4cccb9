"""The models of pipeline A of Henry et al. 2020, as their code saves them, and of B where a network is of that kind.

https://github.com/lescientifik/open_brats2020
"""

from pathlib import Path
from typing import Any

import yaml

from nnunet_brats_ext.architectures.dilated_unet import RELEASED_KEYS, RELEASED_KEYS_WITH_ATTENTION
from nnunet_brats_ext.brats import SEQUENCES
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.weights.key_maps import renamed
from nnunet_brats_ext.weights.plans import configuration_of_paper
from nnunet_brats_ext.weights.sources import ForeignModel, Given, WeightsSource

PLAIN, ATTENTIVE = "encoder1.ConvBnRelu1.conv.weight", "encoder1.UBlock.ConvBnRelu1.conv.weight"
WIDTH = 48
HEADS = ("deep_bottom.0", "deep_bottom2.0", "deep3.0", "deep2.0", "outconv")


def open_model(given: Given) -> ForeignModel | None:
    state = given.state
    attentive = ATTENTIVE in state
    if not attentive and PLAIN not in state:
        return None
    if (stem := state[ATTENTIVE if attentive else PLAIN]).shape[0] != WIDTH:
        raise UserError(
            f"{given.path}: a network of width {stem.shape[0]}, or the authors' `Unet`; those of the paper have {WIDTH}"
        )
    settings = _settings(given.path)
    by_instance, scaled = _norm(settings, given.path), settings.get("normalisation", "minmax") == "minmax"
    if by_instance and attentive:
        raise UserError(f"{given.path}: attention with instance norm, which no trainer of ours has")
    trainer = "BraTSDeepSupervisionTrainer"
    if attentive:
        trainer = "BraTSDeepSupervisionCBAMTrainer"
    elif by_instance:
        trainer = "BraTSDeepSupervisionBTrainer"
    name = "henry_b" if by_instance else "henry"
    normalisation = {"normalisation": ["NoNormalization"] * 4, "masked": [False] * 4} if scaled else {}
    key_map = RELEASED_KEYS_WITH_ATTENTION if attentive else RELEASED_KEYS
    heads = ("output", *(f"heads.{number}.project" for number in range(4)))
    return ForeignModel(
        system=f"{'Att_EquiUnet' if attentive else 'EquiUnet'} of Henry et al. 2020",
        trainer=trainer,
        plans_name="Henry2020Plans",
        configuration=name,
        configurations={name: configuration_of_paper(name, **normalisation)},
        inputs=SEQUENCES,
        outputs=("ET", "TC", "WT"),
        folds={"": lambda: renamed(state, key_map)},
        files={"": [given.path]},
        input_layers=("encoder_stages.0.0.0.weight",),
        output_layers=tuple(f"{head}.{kind}" for head in heads for kind in ("weight", "bias")),
        initial=("heads.",),
        normalised_beforehand=scaled,
        notes=() if settings else ("no .yaml of the training beside it: taken for GroupNorm on images scaled to 0..1",),
    )


def _settings(file: Path) -> dict[str, Any]:
    """What the authors' code writes beside a checkpoint, as EXPERIMENT.yaml; empty where it is not there."""
    for candidate in sorted(file.parent.glob("*.yaml")):
        try:
            content = yaml.safe_load(candidate.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            continue
        if isinstance(content, dict) and "norm_layer" in content:
            return content
    return {}


def _norm(settings: dict[str, Any], file: Path) -> bool:
    """Whether it is instance norm; another norm that the weights cannot show is a UserError."""
    norm = str(settings.get("norm_layer", "group"))
    if norm == "none" or ("group" in norm and norm not in ("group", "group16")):
        raise UserError(
            f"{file}: norm_layer {norm!r} of its training; ours have group norm in 16 groups, or instance norm"
        )
    return "group" not in norm


SOURCE = WeightsSource(
    title="Henry et al. 2020: model_best.pth.tar of EquiUnet or Att_EquiUnet",
    published="the code alone, https://github.com/lescientifik/open_brats2020; its Docker image holds weights",
    licence="not stated",
    trained_on="four fifths of the 369 training cases of BraTS 2020",
    open=open_model,
)
