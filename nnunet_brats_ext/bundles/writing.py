"""`bundle`: trained models of a run, or named by hand, become one file with all that prediction needs."""

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

from nnunet_brats_ext import __version__, papers
from nnunet_brats_ext.brats import LABEL_SCHEMES
from nnunet_brats_ext.bundles.archive import write_bundle
from nnunet_brats_ext.bundles.card import write_card
from nnunet_brats_ext.bundles.contents import (
    CARD,
    MODELS,
    BundledModel,
    BundledSystem,
    EnsemblePrediction,
    NetworkPrediction,
    Networks,
    Prediction,
    RulesPrediction,
    Weights,
)
from nnunet_brats_ext.bundles.options import BundleOptions
from nnunet_brats_ext.bundles.runs import Combined, Leaf, NamedNetworks, Plan, Ruled, is_run, plan_of_run
from nnunet_brats_ext.dataset_conversion.dataset_folder import read_manifest
from nnunet_brats_ext.inference.checkpoints import check_checkpoint, open_checkpoint, warn_of_code, write_safetensors
from nnunet_brats_ext.inference.models import TrainedModel, fold_names, open_model
from nnunet_brats_ext.inference.options import check_ties
from nnunet_brats_ext.inference.training_sizes import FINGERPRINT
from nnunet_brats_ext.predictions.rule_sets import collect_rules
from nnunet_brats_ext.storage.datasets import DERIVED_KEY, DatasetDescription
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json, write_json
from nnunet_brats_ext.storage.nnunet import SAFE, nnunet_folder
from nnunet_brats_ext.storage.output import partial_file, working_folder
from nnunet_brats_ext.storage.parallel import progress_bar

PACKAGE = "nnunet-brats-ext"
NOT_STATED = "not stated: ask whoever made it before you use or pass it on"
KEPT_OF_DATASET = (  # of a dataset.json; others, such as paths of images, stay at home
    "name", "channel_names", "labels", "regions_class_order", "numTraining", "file_ending", "brats_release",
    "overwrite_image_reader_writer", "brats_sequences", DERIVED_KEY, "brats_label_names", "brats_axes", "licence",
)  # fmt: skip


@dataclass(frozen=True)
class WrittenBundle:
    """A bundle that was written. before: bytes of the checkpoints that it is made of."""

    file: Path
    system: BundledSystem
    bytes: int
    before: int


def bundle(*sources: Path | str, out: Path | str, **options: Any) -> WrittenBundle:
    """Write a bundle of a run, or of trained models; options: the fields of `BundleOptions`."""
    return bundle_sources(BundleOptions(tuple(map(Path, sources)), Path(out), **options))


def bundle_sources(options: BundleOptions) -> WrittenBundle:
    """The same with its options in one object."""
    if options.out.exists() and not options.overwrite:
        raise UserError(f"{options.out} exists; name another file with -o, or replace it with --overwrite")
    plan = plan_of(options)
    models = list(_models_of(plan))
    if not options.trusted:
        warn_of_code(file for model in models for file in model.files)
    with working_folder(options.out.absolute()) as scratch:
        folder = scratch / "content"
        folder.mkdir()
        with progress_bar("Bundle", sum(len(model.files) for model in models)) as advance:
            names = {model.folder: _name(model, models) for model in models}
            bundled = {names[model.folder]: _write_model(model, folder, advance) for model in models}
        predictions = {name: _prediction(one, names) for name, one in plan.predictions.items()}
        system = BundledSystem(bundled, predictions, list(predictions)[-1], _about(plan, models, options))
        system.check()
        (folder / CARD).write_text(write_card(system), encoding="utf-8")
        with partial_file(options.out) as partial:
            write_bundle(partial, folder, system)
    before = sum(file.stat().st_size for model in models for file in model.files)
    return WrittenBundle(options.out, system, options.out.stat().st_size, before)


# ---- what it is made of ---------------------------------------------------------------------------------------------


OF_MODELS = (
    "folds", "checkpoints", "previous_folds", "previous_checkpoints", "combine", "ties", "weights", "rules"
)  # fmt: skip


def plan_of(options: BundleOptions) -> Plan:
    """The models and how they are combined: as a run did it, or as the options say."""
    runs = [source for source in options.sources if is_run(source)]
    if not runs:
        if options.prediction:
            raise UserError(f"--prediction {options.prediction}: {options.sources[0]} is no folder of a run")
        return plan_of_models(options)
    if len(options.sources) > 1:
        raise UserError(f"{runs[0]} is a run, which makes a bundle by itself; leave out the others")
    defaults = {one.name: one.default for one in options.__dataclass_fields__.values()}
    if given := [name for name in OF_MODELS if getattr(options, name) != defaults[name]]:
        raise UserError(f"{runs[0]} is a run, which says this itself: leave out --{given[0].replace('_', '-')}")
    return plan_of_run(runs[0], options.prediction)


def plan_of_models(options: BundleOptions) -> Plan:
    """Models that are named by their folders; several are averaged."""
    folds = fold_names(options.folds)
    leaves: dict[str, Leaf | Combined | Ruled] = {}
    several = len(options.sources) > 1
    if options.weights and len(options.weights) != len(options.sources):
        raise UserError(f"--weights: {len(options.weights)} numbers for {len(options.sources)} models; give one each")
    if several and options.combine == "vote":
        raise UserError("--combine vote: a mean of several models needs their probabilities, which a vote has not")
    check_ties(options.ties, options.combine)
    passes = {"combine": options.combine, **({"ties": options.ties} if options.ties != "release" else {})}
    for source in options.sources:
        model = open_model(source.absolute(), folds, options.checkpoints)
        previous = None
        if model.previous_stage:
            chosen = fold_names(options.previous_folds, "-prev_f")
            previous = model.previous_model(None, chosen, options.previous_checkpoints)
        name = f"{model.names[0]}_{model.names[2]}"
        name = f"{name}_{len(leaves)}" if name in leaves else name
        leaves[name] = Leaf((NamedNetworks(model, previous),), passes, several)
    last = next(reversed(leaves))
    if several:
        weights = {"weights": list(options.weights)} if options.weights else {}
        leaves["mean"] = Combined(tuple(leaves), "mean", weights)
        last = "mean"
    if options.rules:
        rules = collect_rules(options.rules, [], options.sources[0])
        before = leaves[last]
        if rules.needs_probabilities and not isinstance(before, Ruled):
            leaves[last] = replace(before, probabilities=True)
        leaves["rules"] = Ruled(last, rules.as_json())
    return Plan(" + ".join(source.absolute().name for source in options.sources), leaves)


def _models_of(plan: Plan) -> Iterable[TrainedModel]:
    """Every model once, with all checkpoints that any prediction takes of it; first stages first."""
    found: dict[Path, TrainedModel] = {}
    for leaf in plan.predictions.values():
        for named in leaf.networks if isinstance(leaf, Leaf) else ():
            for model in (named.previous, named.model):
                if model is not None:
                    known = found[model.folder].weights if model.folder in found else ()
                    found[model.folder] = replace(model, weights=tuple(dict.fromkeys((*known, *model.weights))))
    return found.values()


def _prediction(one: Leaf | Combined | Ruled, names: Mapping[Path, str]) -> Prediction:
    if isinstance(one, Combined):
        return EnsemblePrediction(one.of, one.method, one.options, one.probabilities)
    if isinstance(one, Ruled):
        return RulesPrediction(one.of, one.rules)
    networks = tuple(_networks(named.model, names, named.weight) for named in one.networks)
    stages = [named.previous for named in one.networks]
    previous = tuple(_networks(stage, names) if stage else None for stage in stages)
    return NetworkPrediction(networks, previous, one.passes, one.probabilities)


def _networks(model: TrainedModel, names: Mapping[Path, str], weight: float = 1.0) -> Networks:
    return Networks(names[model.folder], _safe(model), weight)


def _safe(model: TrainedModel) -> Weights:
    return tuple((fold, safe_name(name)) for fold, name in model.weights)


def safe_name(checkpoint: str) -> str:
    """checkpoint_final.safetensors of checkpoint_final.pth."""
    return Path(checkpoint).stem + SAFE


# ---- models ---------------------------------------------------------------------------------------------------------


def _name(model: TrainedModel, models: Sequence[TrainedModel]) -> str:
    """TRAINER_CONFIGURATION, with the data set's where two have the same."""
    trainer, plans, configuration = model.names
    name = f"{trainer}_{configuration}"
    if sum(one.names == model.names or one.names[::2] == model.names[::2] for one in models) > 1:
        name = f"{model.folder.parent.name}_{trainer}_{plans}_{configuration}"
    return name


def _write_model(model: TrainedModel, folder: Path, advance: Any) -> BundledModel:
    trainer, plans, configuration = model.names
    place = f"{MODELS}/{_plain_name(model.dataset)}/{trainer}__{plans}__{configuration}"
    target = folder / place
    target.mkdir(parents=True)
    content = model.description.content
    write_json(target / "plans.json", model.plans)
    write_json(target / "dataset.json", {key: content[key] for key in KEPT_OF_DATASET if key in content})
    if (model.folder / FINGERPRINT).is_file():
        noted = read_json(model.folder / FINGERPRINT)
        kept = {key: noted[key] for key in ("spacings", "shapes_after_crop") if key in noted}
        write_json(target / FINGERPRINT, kept)
    parameters = 0
    for file in model.files:
        check_checkpoint(file, model.names)
        checkpoint = open_checkpoint(file)
        (target / file.parent.name).mkdir(exist_ok=True)
        write_safetensors(target / file.parent.name / safe_name(file.name), checkpoint)
        parameters = sum(prod(values.shape) for values in checkpoint["network_weights"].values())
        advance()
    package = _package_of(trainer)
    return BundledModel(place, trainer, plans, configuration, _safe(model), package, parameters, _dice(model))


def _plain_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def _package_of(trainer: str) -> tuple[str, str]:
    """The package that a trainer is of, and its version; of a trainer of the user's own, that it is so."""
    module = papers.find_trainer_class(trainer).__module__.split(".")[0]
    if module == "nnunet_brats_ext":
        return PACKAGE, __version__
    if module == "nnunetv2":
        return "nnunetv2", metadata.version("nnunetv2")
    return f"{module} (a trainer of the maker's own, in nnUNet_extTrainer)", ""


def _dice(model: TrainedModel) -> dict[str, float]:
    """Fold -> mean Dice of nnU-Net's validation, of the folds that have one."""
    found = {}
    for fold in model.folds:
        file = model.folder / f"fold_{fold}" / "validation" / "summary.json"
        if file.is_file():
            value = read_json(file).get("foreground_mean", {}).get("Dice")
            if isinstance(value, int | float) and value == value:
                found[str(fold)] = float(value)
    return found


# ---- what people want to know ---------------------------------------------------------------------------------------


def _about(plan: Plan, models: Sequence[TrainedModel], options: BundleOptions) -> dict[str, Any]:
    last = models[-1]
    description = last.description
    differing = [one.folder.name for one in models if one.description.acquired != description.acquired]
    if differing:
        raise UserError(f"{differing[0]} and {last.folder.name} take other sequences; a system has the same throughout")
    if len(ways := {one.description.normalisation or "not" for one in models}) > 1:
        raise UserError(
            f"the models take images normalised differently by `convert --normalise`: {', '.join(sorted(ways))}"
        )
    trainers = {one.names[0] for one in models}
    own = {papers.find_trainer(name).paper for name in trainers} - {""}
    cited = [f"{paper.title}. {paper.short}. {paper.link}" for paper in map(papers.find_paper, sorted(own))]
    scheme = scheme_of(description)
    return {
        "title": options.title or plan.title,
        "sequences": list(description.acquired),
        "normalised_beforehand": description.normalisation is not None,
        "normalisation": description.normalisation,
        "scheme": scheme,
        "labels": names_of_labels(description),
        "regions": {name: list(labels) for name, labels in description.declared.items() if name != "background"},
        "data": [_data(name, one, plan.raw) for name, one in {m.dataset: m for m in models}.items()],
        "scores": plan.scores,
        "licence": options.licence or NOT_STATED,
        "citations": list(dict.fromkeys((*cited, NNUNET))),
        "versions": versions(),
        "note": options.note,
    }


NNUNET = (
    "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation. Isensee et al. 2021. "
    "https://doi.org/10.1038/s41592-020-01008-z"
)


def versions() -> dict[str, str]:
    """Of the packages that made the bundle."""
    found = {name: metadata.version(name) for name in ("nnunetv2", "torch", "safetensors", "numpy", "SimpleITK")}
    return {PACKAGE: __version__, **found, "python": sys.version.split()[0]}


def names_of_labels(description: DatasetDescription) -> dict[str, str]:
    """Label as trained -> its name, as far as it is known."""
    noted = description.content.get("brats_label_names")
    if isinstance(noted, dict) and all(isinstance(name, str) for name in noted.values()):
        return dict(noted)
    names: dict[str, str] = {}
    for name, labels in description.declared.items():
        if name != "background" and len(labels) == 1:
            names[str(labels[0])] = name
    known = {"1": "ED", "2": "NCR", "3": "ET"} if {"WT", "TC", "ET"} <= description.declared.keys() else {}
    return {**{str(label): f"label {label}" for label in sorted(description.labels) if label}, **known, **names}


def scheme_of(description: DatasetDescription) -> str | None:
    """The newest of BraTS's numberings for these labels; None for others."""
    names = set(names_of_labels(description).values())
    fitting = [name for name, one in LABEL_SCHEMES.items() if set(one.names.values()) == names and name != "decathlon"]
    return fitting[-1] if fitting else None


def _data(name: str, model: TrainedModel, raw: Path | None) -> dict[str, Any]:
    """A data set by its counts, and by a hash over its images' hashes where `convert` has noted them."""
    noted = model.description.content
    found: dict[str, Any] = {
        "name": name,
        "cases": count if isinstance(count := noted.get("numTraining"), int) and count >= 0 else 0,
        "patients": None,
        "release": release if isinstance(release := noted.get("brats_release"), str) else None,
        "sha256": None,
    }
    raw = raw or nnunet_folder("nnUNet_raw")
    manifest = read_manifest(raw / name) if raw else None
    if manifest:
        cases = {case: one for case, one in manifest["cases"].items() if one["labelled"] and not one.get("held_out")}
        hashes = sorted(str(file.get("sha256")) for one in cases.values() for file in one["files"].values())
        text = json.dumps(hashes).encode()
        patients = len({one["patient"] for one in cases.values()})
        found |= {"cases": len(cases), "patients": patients, "sha256": hashlib.sha256(text).hexdigest()}
    return found
