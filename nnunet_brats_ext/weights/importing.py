"""`nnunet_brats import`: trained weights of another system become a model of nnU-Net v2."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunet_brats_ext import __version__, papers
from nnunet_brats_ext.brats import SEQUENCES, find_sequence
from nnunet_brats_ext.storage.datasets import NORMALISATION_KEY
from nnunet_brats_ext.storage.errors import UserError, shorten
from nnunet_brats_ext.storage.json_files import read_json, write_json
from nnunet_brats_ext.storage.nnunet import FINAL, model_name, nnunet_folder, require_folder, require_known
from nnunet_brats_ext.storage.options import Options, argument, option
from nnunet_brats_ext.storage.output import check_output, publish, working_folder, writing
from nnunet_brats_ext.training.checkpoints import writing_checkpoint
from nnunet_brats_ext.weights.key_maps import order_of, permuted, reversed_kernels
from nnunet_brats_ext.weights.plans import dataset_of, joined, plans_of
from nnunet_brats_ext.weights.reading import sha256
from nnunet_brats_ext.weights.sources import LABELS, REGIONS, ForeignModel, Given, WeightsSource, find_sources

PROVENANCE = "imported_from.json"
STARTS = "imported"  # folder of the weights that training starts from: it writes its own over those in fold_N
"""Beside the plans of an imported model: what its weights are, where they came from, and the hash of every file."""

DATASET = "Dataset{}_Imported"


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Options):
    """Which weights, and where the model goes."""

    source: Path = argument("a file of weights, or the folder of a model of nnU-Net v1 or of a MONAI bundle")
    out: str = option(
        "-o",
        metavar="FOLDER|DATASET",
        help="folder of the model; or the number or name of a data set, whose model it becomes, with its plans beside "
        "the data set's, so that training can go on from it",
    )
    fold: int = option("-f", default=0, at_least=0, help="the fold that a single file becomes; folders have their own")
    channels: tuple[str, ...] = option(
        default=(), metavar="SEQUENCE", help="what the channels are, in order, where the source does not say"
    )
    labels: tuple[str, ...] = option(
        default=(), metavar="LABEL", choices=LABELS, help="what labels 1, 2, 3 are, where the source does not say"
    )
    region: str | None = option(
        default=None, choices=REGIONS, help="the region of a network that finds one, where its name does not say"
    )


@dataclass(frozen=True)
class Imported:
    """An imported model: what it was, and what it is now.

    sequences, outputs: in the order of the written weights. made_anew: weights that the file lacks and that prediction
    does not need. plans: where they went beside a data set's own, for training.
    """

    folder: Path
    source: WeightsSource
    model: ForeignModel
    sequences: tuple[str, ...]
    outputs: tuple[str, ...]
    folds: tuple[str, ...]
    made_anew: tuple[str, ...]
    plans: Path | None

    @property
    def start(self) -> Path:
        """What training starts from, where the plans went beside a data set's own: of the first fold."""
        return self.folder / STARTS / f"fold_{self.folds[0]}.pth"


def import_weights(options: ImportOptions) -> Imported:
    """Recognise weights, bring them into our order, and write them as a model; all of it or nothing."""
    source, model = recognise(options)
    folder, dataset, plans_file = _place(options.out, model)
    wanted = (*SEQUENCES, *(label for label in LABELS if label in model.inputs))
    input_order = order_of(model.inputs, wanted)
    sequences = (wanted if input_order else model.inputs)[: _image_channels(model)]
    outputs = _ordered_outputs(model.outputs)
    plans, description = plans_of(model, dataset), dataset_of(model, sequences, outputs, dataset)
    _check_place(folder, plans, description, tuple(model.folds))
    for_training = _beside(plans, plans_file)
    network = _network(model, plans, len(model.inputs), len(model.outputs))
    notes = {
        "system": model.system,
        "published": source.published,
        "licence": source.licence,
        "trained_on": model.trained_on or source.trained_on,
        "channels_of_the_source": list(model.inputs),
        "outputs_of_the_source": list(model.outputs),
        "weights_not_needed": list(model.unused),
        "notes": list(model.notes),
        "imported_by": f"nnunet_brats_ext {__version__}",
    }
    made_anew: tuple[str, ...] = ()
    with working_folder(folder.absolute()) as scratch:
        growing = scratch / "new"
        growing.mkdir()
        with writing(folder):
            for fold, read in model.folds.items():
                state = dict(read())
                if model.reversed_axes:
                    state = reversed_kernels(state, axes=len(next(iter(model.configurations.values()))["patch_size"]))
                if input_order:
                    state = permuted(state, model.input_layers, 1, input_order)
                if order := order_of(model.outputs, outputs):
                    state = permuted(state, model.output_layers, 0, order)
                state, made_anew = _completed(state, network, model)
                (growing / f"fold_{fold}").mkdir()
                with writing_checkpoint(growing / f"fold_{fold}" / FINAL) as file:
                    torch.save(_checkpoint(state, model, plans, description, fold), file)
                if plans_file is not None:
                    (growing / STARTS).mkdir(exist_ok=True)
                    shutil.copyfile(growing / f"fold_{fold}" / FINAL, growing / STARTS / f"fold_{fold}.pth")
            hashes = {
                fold: [{"file": str(file), "bytes": file.stat().st_size, "sha256": sha256(file)} for file in files]
                for fold, files in model.files.items()
            }
            before = read_json(folder / PROVENANCE)["files"] if (folder / PROVENANCE).is_file() else {}
            for name, content in (("plans", plans), ("dataset", description)):
                write_json(growing / f"{name}.json", content)
            write_json(growing / PROVENANCE, notes | {"weights_made_anew": list(made_anew), "files": before | hashes})
            if (folder / PROVENANCE).is_file():  # further folds of the model that is there
                for fold in model.folds:
                    publish(growing / f"fold_{fold}", folder / f"fold_{fold}")
                for start in growing.glob(f"{STARTS}/*"):
                    (folder / STARTS).mkdir(exist_ok=True)
                    shutil.move(start, folder / STARTS / start.name)
                shutil.move(growing / PROVENANCE, folder / PROVENANCE)
            else:
                publish(growing, folder)
    if plans_file is not None:
        write_json(plans_file, for_training)
    folds = tuple(model.folds)
    return Imported(folder, source, model, sequences, outputs, folds, made_anew, plans_file)


def recognise(options: ImportOptions) -> tuple[WeightsSource, ForeignModel]:
    """The source whose weights these are; a UserError says what they look like where nobody knows them."""
    if not options.source.exists():
        raise UserError(f"{options.source} does not exist")
    channels = tuple(find_sequence(name) or "" for name in options.channels)
    if unknown := [name for name in options.channels if not find_sequence(name)]:
        raise UserError(f"--channels {unknown[0]}: expected one of {', '.join(SEQUENCES)}")
    if options.labels and sorted(options.labels) != sorted(LABELS):
        raise UserError(f"--labels {' '.join(options.labels)}: expected {', '.join(LABELS)} in some order")
    given = Given(options.source, channels, options.labels, options.region)
    for source in find_sources():
        if (model := source.open(given)) is not None:
            if list(model.folds) == [""]:  # one file
                fold = str(options.fold)
                model = replace(model, folds={fold: model.folds[""]}, files={fold: model.files[""]})
            return source, model
    known = "".join(f"\n  {source.title}" for source in find_sources())
    if given.path.is_dir():
        raise UserError(f"{given.path} holds no weights that can be imported; there are importers of:{known}")
    if isinstance(given.content, Mapping) and {"network_weights", "init_args"} <= given.content.keys():
        raise UserError(
            f"{given.path} is a checkpoint of nnU-Net v2 already: use the model's folder, which holds plans.json"
        )
    looks = f"{len(given.state)} weights, such as {shorten(list(given.state), 3)}" if given.state else "no weights"
    raise UserError(f"{given.path} has {looks}, of no network that is known; there are importers of:{known}")


def _image_channels(model: ForeignModel) -> int:
    """Without the labels of a previous stage, which are no channels of an image."""
    staged = model.configurations[model.configuration].get("previous_stage") is not None
    return len(model.inputs) - (len(LABELS) if staged else 0)


def _ordered_outputs(outputs: tuple[str, ...]) -> tuple[str, ...]:
    """Regions from the largest to the smallest, or labels as trained; other names as they are."""
    for wanted in (REGIONS, ("background", *LABELS)):
        if order_of(outputs, wanted):
            return wanted
    return outputs


def _place(out: str, model: ForeignModel) -> tuple[Path, str, Path | None]:
    """The folder of the model, the name of its data set, and where its plans go for training."""
    name = model_name(model.trainer, model.plans_name, model.configuration)
    if out.isdecimal() or re.fullmatch(r"Dataset\d{3}_[\w-]+", out):
        results = require_folder("nnUNet_results")
        dataset = require_known(out, results).name
        preprocessed = nnunet_folder("nnUNet_preprocessed")
        return results / dataset / name, dataset, preprocessed and preprocessed / dataset / f"{model.plans_name}.json"
    folder = Path(out)
    if re.fullmatch(r"Dataset\d{3}_[\w-]+", folder.name):
        return folder / name, folder.name, None
    check_output("-o", folder, "folder")
    inside = re.fullmatch(r"Dataset\d{3}_[\w-]+", parent := folder.absolute().parent.name)
    return folder, parent if inside else DATASET.format("000"), None


def _check_place(folder: Path, plans: dict[str, Any], description: dict[str, Any], folds: tuple[str, ...]) -> None:
    """Further folds may join a model that was imported alike; anything else that is there stays."""
    check_output("-o", folder, "folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / PROVENANCE).is_file():
        raise UserError(f"-o {folder} is there and is no imported model; choose another folder")
    for name, content in (("plans.json", plans), ("dataset.json", description)):
        if read_json(folder / name) != json.loads(json.dumps(content)):
            raise UserError(f"-o {folder} holds another model, with another {name}; choose another folder")
    if there := [fold for fold in folds if (folder / f"fold_{fold}").exists()]:
        raise UserError(f"-o {folder} has fold {', '.join(there)} already; choose another with -f, or another folder")


def _beside(plans: dict[str, Any], file: Path | None) -> dict[str, Any]:
    """The plans for training: with the configurations that other imports have brought to the data set.

    Their normalisation is nnU-Net's, because its preprocessing knows no other; a training writes them over the model's.
    """
    plans = json.loads(json.dumps(plans))
    for configuration in plans["configurations"].values():
        configuration.pop(NORMALISATION_KEY, None)
    if file is None or not file.is_file():
        return plans
    if (together := joined(plans, read_json(file))) is None:
        raise UserError(f"{file} holds other plans of this name; choose another data set or a folder with -o")
    return together


@dataclass(frozen=True)
class _Expected:
    """What the trainer's network has. shapes: by name of a weight. aliases: further names of the same weights.

    initial: weights it starts with, where a file may lack some.
    """

    shapes: Mapping[str, tuple[int, ...]]
    aliases: Mapping[str, str]
    initial: Mapping[str, Tensor]


def _network(model: ForeignModel, plans: dict[str, Any], inputs: int, outputs: int) -> _Expected:
    manager = PlansManager(plans)
    trainer = papers.find_trainer_class(model.trainer)
    torch.manual_seed(0)
    built = trainer.build_network_architecture(
        manager, manager.get_configuration(model.configuration), inputs, outputs, False
    )
    state = built.state_dict()
    owners: dict[int, str] = {}
    aliases = {}
    for name, value in state.items():
        if value.numel() and (owner := owners.setdefault(value.data_ptr(), name)) != name:
            aliases[name] = owner
    return _Expected(
        {name: tuple(value.shape) for name, value in state.items()},
        aliases,
        {name: value for name, value in state.items() if model.initial and name.startswith(model.initial)},
    )


def _completed(
    state: dict[str, Tensor], network: _Expected, model: ForeignModel
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """All weights of the network in its order, and the names of those that the file lacks; a misfit is a UserError."""
    anew = tuple(name for name in network.initial if name not in state)
    state = state | {name: network.initial[name] for name in anew}
    state |= {name: state[owner] for name, owner in network.aliases.items() if owner in state}
    expected, found = network.shapes, {name: tuple(value.shape) for name, value in state.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        shapes = " instead of ".join(str(each.get(wrong[0], "nothing")) for each in (found, expected))
        raise UserError(
            f"{model.system}: {len(wrong)} of {len(expected)} weights do not fit the network of {model.trainer}, such "
            f"as {wrong[0]}, which is {shapes}"
        )
    if bad := [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise UserError(f"{model.system}: weights are infinite or NaN ({shorten(bad, 3)}); get the file again")
    whole = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    whole |= {name: whole[owner] for name, owner in network.aliases.items()}  # stored once
    return {name: whole[name] for name in expected}, anew


def _checkpoint(
    state: dict[str, Tensor], model: ForeignModel, plans: dict[str, Any], description: dict[str, Any], fold: str
) -> dict[str, Any]:
    """What nnU-Net's prediction and `-pretrained_weights` read; training cannot go on from it with --c."""
    axes = len(model.configurations[model.configuration]["patch_size"])
    once = papers.find_trainer(model.trainer).prediction.symmetries == "none"
    return {
        "network_weights": state,
        "trainer_name": model.trainer,
        "init_args": {
            "plans": plans,
            "configuration": model.configuration,
            "fold": int(fold) if fold.isdecimal() else fold,
            "dataset_json": description,
        },
        "inference_allowed_mirroring_axes": None if once else tuple(range(axes)),
    }
