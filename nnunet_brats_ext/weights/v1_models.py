"""Models of nnU-Net v1 and of its forks in the words of version 2: everything but the network itself.

A source says what network it is (`NetworkOfV1`); channels, outputs, resolutions and normalisation are v1's plans'.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_brats_ext.brats import SEQUENCES, find_sequence
from nnunet_brats_ext.storage.errors import UserError, shorten
from nnunet_brats_ext.weights.key_maps import order_of
from nnunet_brats_ext.weights.plans import configuration
from nnunet_brats_ext.weights.sources import LABELS, REGIONS, ForeignModel, Given, State
from nnunet_brats_ext.weights.v1_files import ModelOfV1, weights_in, with_pickle

NORMALISATIONS = {"nonCT": "ZScoreNormalization", "CT": "CTNormalization", "noNorm": "NoNormalization"}
LINKS: Mapping[str, Mapping[str, Any]] = {
    "3d_lowres": {"next_stage": "3d_cascade_fullres"},
    "3d_cascade_fullres": {"previous_stage": "3d_lowres"},
}


@dataclass(frozen=True)
class NetworkOfV1:
    """The network of a model. name: what it is, in words. trainer: ours. plans_name: None is that of v1's plans.

    inputs, outputs: how many channels it has. planned: of each stage by its number, the network as the arguments
    `strides`, `network`, `arguments` and `imports` of `weights.plans.configuration`. converted: weights of the file ->
    ours, whose first and last layers are `input_layers` and `output_layers`.
    """

    name: str
    trainer: str
    inputs: int
    outputs: int
    planned: Mapping[int, Mapping[str, Any]]
    converted: Callable[[State], State]
    input_layers: tuple[str, ...]
    output_layers: tuple[str, ...]
    plans_name: str | None = None
    unused: tuple[str, ...] = ()
    initial: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    trained_on: str = ""


def describe(given: Given, v1: ModelOfV1, network: NetworkOfV1) -> ForeignModel:
    """The model as one of version 2; a UserError where its plans name what version 2 does not have."""
    names = _configurations(v1)
    key = names[v1.stage]
    channels = given.channels or _sequences(v1)
    outputs = outputs_of(given, v1, network.outputs)
    inputs = (*channels, *(_labels(given, v1) if v1.cascaded else ()))
    if network.inputs != len(inputs) or len(channels) != len(v1.modalities):
        raise UserError(
            f"{v1.path}: its network takes {network.inputs} channels, not {len(inputs)} ({', '.join(inputs)}); name "
            "them with --channels"
        )
    order = order_of(channels, SEQUENCES) or list(range(len(channels)))
    normalisation = [_normalisation(v1.normalisation[number], v1.path) for number in order]
    masked = [v1.masked[number] for number in order]
    notes = ["at another spacing than the planned one, v1 normalises after resampling and v2 before it"]
    if "noMirror" in v1.trainer:
        notes.append("it was trained without mirroring: predict with --tta none")
    if v1.cascaded:
        notes.append(
            "v1 stretches the label map of the first stage over the cropped image where it crops, and training has "
            "none of this: here the label map is cropped alike"
        )
    return ForeignModel(
        system=f"nnU-Net v1, {v1.trainer or 'unnamed trainer'}, {key}: {network.name}, "
        f"{'regions' if outputs == REGIONS else 'labels'}",
        trainer=network.trainer,
        plans_name=network.plans_name or v1.plans_name,
        configuration=key,
        configurations={
            name: configuration(
                v1.stages[number].patch_size,
                batch_size=v1.stages[number].batch_size,
                spacing=v1.stages[number].spacing,
                median=v1.stages[number].median,
                normalisation=normalisation,
                masked=masked,
                **LINKS.get(name, {}),
                **network.planned[number],
            )
            for number, name in names.items()
            if number in network.planned
        },
        inputs=inputs,
        outputs=outputs,
        folds={fold: partial(_converted, v1, network, file) for fold, file in v1.folds.items()},
        files={fold: with_pickle(file) for fold, file in v1.folds.items()},
        input_layers=network.input_layers,
        output_layers=network.output_layers,
        transpose=v1.transpose,
        unused=network.unused,
        initial=network.initial,
        trained_on=network.trained_on,
        notes=(*notes, *network.notes),
        intensities={str(ours): v1.intensities[number] for ours, number in enumerate(order) if v1.intensities},
    )


def outputs_of(given: Given, v1: ModelOfV1, count: int) -> tuple[str, ...]:
    """Regions where there is a channel per label, as v1's BraTSRegions trainers; else the background and the labels."""
    labels = _labels(given, v1)
    if count == len(labels) == len(REGIONS):
        return REGIONS
    if count == len(labels) + 1:
        return ("background", *labels)
    raise UserError(
        f"{v1.path}: its network has {count} outputs, which are neither {REGIONS} nor the background and {labels}"
    )


def _configurations(v1: ModelOfV1) -> dict[int, str]:
    """The names of the model's own stage and of the one that it is in a cascade with, by number."""
    if v1.axes == 2:
        return {v1.stage: "2d"}
    if len(v1.stages) == 1 or (v1.stage and not v1.cascaded):
        return {v1.stage: "3d_cascade_fullres" if v1.cascaded else "3d_fullres"}
    return {0: "3d_lowres", len(v1.stages) - 1: "3d_cascade_fullres"}


def _converted(v1: ModelOfV1, network: NetworkOfV1, file: Path) -> State:
    """The weights of one fold; a UserError where they are not those of the first, from which the network is known."""
    state = weights_in(file)
    shapes, first = ({name: tuple(value.shape) for name, value in one.items()} for one in (state, v1.state))
    if other := sorted(name for name in shapes.keys() | first.keys() if shapes.get(name) != first.get(name)):
        raise UserError(f"{file} is of another network than the first fold: they differ in {shorten(other, 3)}")
    return network.converted(state)


def _labels(given: Given, v1: ModelOfV1) -> tuple[str, ...]:
    """What labels 1, 2, 3 are: as the user says, or as in all of v1's BraTS tasks, 001, 032, 043, 082 and 500."""
    return given.labels or LABELS[: v1.labels]


def _sequences(v1: ModelOfV1) -> tuple[str, ...]:
    names = [find_sequence(name) for name in v1.modalities]
    if not all(names):
        raise UserError(
            f"{v1.path}: its modalities are {list(v1.modalities)}; name the sequences with --channels, such as T1 T1ce "
            "T2 FLAIR"
        )
    return tuple(name for name in names if name)


def _normalisation(scheme: str, path: Path) -> str:
    if scheme not in NORMALISATIONS:
        raise UserError(f"{path}: nnU-Net v2 has no normalisation {scheme!r}")
    return NORMALISATIONS[scheme]
