"""`nnunet_brats predict`: all stages, folds and checkpoints of a model in one command, on nnU-Net's predictor."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nnunet_brats_ext.inference.cases import (
    background,
    find_images,
    is_complete,
    preprocess,
    previous_labels_missing,
    write_prediction,
)
from nnunet_brats_ext.inference.models import TrainedModel
from nnunet_brats_ext.inference.predictor import FROM_TRAINER, BraTSPredictor
from nnunet_brats_ext.inference.profiling import Profile
from nnunet_brats_ext.predictions.ensemble import ensemble
from nnunet_brats_ext.predictions.postprocess import apply_rules
from nnunet_brats_ext.predictions.rule_sets import RuleSet
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.output import write_text
from nnunet_brats_ext.storage.parallel import progress_bar

console = Console()
SETTINGS = "predict.json"
HOW = ("processes", "low_memory_mb", "profile", "device")  # of a mode, what does not change the result


@dataclass(frozen=True)
class Mode:
    """How to predict. tiling and test_time_augmentation: `paper` is what the model's trainer names.

    combine: what becomes of several folds and checkpoints: their mean `logits`, as nnU-Net, their mean
    `probabilities`, or a `vote` over the label maps of each. low_memory_mb: results stay off the device, one set of
    weights is in memory while it predicts, and for a 2-D network as many slices as fit, of a volume that lies in a file
    in the output folder. profile: tell time and memory of every step; all of them are then done in this process.
    processes: that preprocess, and as many that write; 0 is this one.
    """

    tiling: str = FROM_TRAINER
    test_time_augmentation: str = FROM_TRAINER
    combine: str = "logits"
    tile_step_size: float = 0.5
    patch_size: tuple[int, ...] | None = None
    device: str = "cuda"
    low_memory_mb: float | None = None
    profile: bool = False
    processes: int = 3

    def predictor(self) -> BraTSPredictor:
        return BraTSPredictor(
            self.tiling,
            self.test_time_augmentation,
            "probabilities" if self.combine == "probabilities" else "logits",
            self.patch_size,
            self.low_memory_mb,
            torch.device(self.device),
            tile_step_size=self.tile_step_size,
            perform_everything_on_device=self.device != "cpu" and self.low_memory_mb is None,
        )

    @property
    def deciding(self) -> dict[str, Any]:
        """What of it changes the result."""
        return {key: value for key, value in asdict(self).items() if key not in HOW}

    @property
    def workers(self) -> int:
        return 0 if self.profile else min(self.processes, 1) if self.low_memory_mb else self.processes


def predict(
    images: Path,
    out: Path,
    model: TrainedModel,
    mode: Mode,
    previous: TrainedModel | Sequence[Path] | None = None,
    save_probabilities: bool = False,
    rules: RuleSet | None = None,
    overwrite: bool = False,
    keep_members: bool = False,
) -> None:
    """Predict the images of a folder into `out`; what an interrupted run has finished there is not done again.

    previous: for a second stage, the model of the first, or folders of its predictions. Several of them, and with
    `vote` every fold and checkpoint of both stages, are members of their own, in `out/members`, which go once they
    are combined. rules: post-processing of the result; the label maps before it stay in `out/before_rules`.
    """
    dataset_json = read_json(model.folder / "dataset.json")
    cases = find_images(images, dataset_json)
    claim(out / SETTINGS, settings_of(model, mode, previous, images, rules), overwrite)
    with_probabilities = save_probabilities and not rules  # which would contradict the probabilities
    if all(is_complete(out, case, dataset_json["file_ending"], with_probabilities) for case in cases):
        console.print(f"{len(cases)} cases are in {out} already; --overwrite predicts them anew")
        return
    sources = _previous_predictions(cases, out, model, mode, previous)
    result = out / "before_rules" if rules else out
    models = model.members if mode.combine == "vote" else [model]
    combinations = [(source, one) for source in sources for one in models]
    if len(combinations) == 1:
        run(cases, result, models[0], mode, sources[0], save_probabilities, "Predict")
    else:
        members = out / "members"
        folders: list[Path] = []
        for source, one in combinations:
            number = f"{len(folders):02d}"  # sources of one name may lie in different places
            folders.append(members / "__".join([number, one.label, *(["on", source.name] if source else [])]))
            run(cases, folders[-1], one, mode, source, True, f"Member {len(folders)} of {len(combinations)}")
        vote = mode.combine == "vote"
        options = {} if vote else {"save_probabilities": save_probabilities}
        ensemble(folders, result, method="majority" if vote else "mean", processes=mode.processes or 1, **options)
        if not keep_members:
            shutil.rmtree(members)
    if rules:
        apply_rules(result, out, rules, images, mode.processes or 1)
    console.print(f"{len(cases)} cases predicted into {out}")


def run(
    cases: Mapping[str, list[str]],
    out: Path,
    model: TrainedModel,
    mode: Mode,
    previous: Path | None,
    save_probabilities: bool,
    description: str,
) -> None:
    """Predict those cases that `out` lacks, by the average over the folds and checkpoints of one model."""
    predictor = mode.predictor()
    profile = Profile(predictor.device, predictor.meter)
    with profile.step("load"):
        predictor.load(model.folder, model.folds, model.checkpoints)
    profile.finish_load()
    ending = predictor.dataset_json["file_ending"]
    out.mkdir(parents=True, exist_ok=True)
    for partial in out.glob(".partial-*"):
        partial.unlink()
    for name in ("dataset.json", "plans.json"):  # which nnU-Net's own commands look for beside predictions
        shutil.copyfile(model.folder / name, out / name)
    left = {name: files for name, files in cases.items() if not is_complete(out, name, ending, save_probabilities)}
    if len(left) < len(cases):
        console.print(f"{description}: {len(cases) - len(left)} of {len(cases)} cases are there already")
    if previous and (missing := previous_labels_missing(previous, list(left), ending)):
        raise UserError(f"{previous} lacks the previous stage's label maps of {', '.join(missing)}")
    settings = (predictor.configuration_manager, predictor.plans_manager, predictor.dataset_json)
    if not left:
        return
    workers = min(mode.workers, len(left))
    with background(workers) as writing, progress_bar(description, len(left), console) as advance:
        items = preprocess(predictor, left, previous, workers)
        for _ in left:
            with profile.step("preprocess"):
                name, data, properties = next(items)
                data = predictor.stored(data, out)
            with profile.step("predict"):
                logits = predictor.predict_average(data, properties).numpy()
            with profile.step("write"):
                writing.run(write_prediction, logits, properties, settings, out, name, save_probabilities)
            del logits  # which the next case would have beside its own
            profile.finish_case(name)
            advance()
    if mode.profile:
        profile.show(console, f"{description}: {model.folder.name}, {model.label}")
        profile.write(out / "profile.json", f"{model.folder.name}, {model.label}")
    elif mode.low_memory_mb:
        kind = "device memory" if predictor.device.type == "cuda" else "resident memory above the start"
        console.print(f"{description}: at most {profile.peak_mb:.0f} MB of {kind}, of {mode.low_memory_mb:.0f} MB")


def claim(file: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Note in `file` what its folder holds; predictions made otherwise are not continued but refused, or go."""
    out, settings = file.parent, json.loads(json.dumps(settings))
    if file.is_file() and not overwrite and (found := read_json(file)) != settings:
        differing = [key for key in settings if found.get(key) != settings[key]]
        raise UserError(
            f"{out} holds predictions made with other settings ({', '.join(differing)}); choose another folder, "
            "or predict anew with --overwrite"
        )
    if not file.is_file() and out.is_dir() and any(_predictions_in(out)):
        raise UserError(f"{out} holds predictions made by something else; choose another folder")
    if overwrite and file.is_file():
        for path in _predictions_in(out):
            path.unlink()
        for folder in ("members", "previous_stage", "before_rules"):
            shutil.rmtree(out / folder, ignore_errors=True)
    write_text(file, json.dumps(settings, indent=2) + "\n")


def settings_of(
    model: TrainedModel,
    mode: Mode,
    previous: TrainedModel | Sequence[Path] | None,
    images: Path,
    rules: RuleSet | None,
) -> dict[str, Any]:
    before: list[Any] = list(previous) if isinstance(previous, Sequence) else [previous] if previous else []
    return {
        "images": str(images.resolve()),
        "model": described(model),
        "rules": json.loads(rules.to_json()) if rules else None,
        "previous": [described(one) if isinstance(one, TrainedModel) else str(one.resolve()) for one in before],
        **mode.deciding,
    }


def described(model: TrainedModel) -> dict[str, Any]:
    """The checkpoints of a model with size and time, by which a new training is told from the one before."""
    files = [model.folder / f"fold_{fold}" / name for name in model.checkpoints for fold in model.folds]
    return {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def _predictions_in(out: Path) -> Iterable[Path]:
    return [path for path in out.iterdir() if path.is_file() and path.suffix in (".gz", ".npz", ".pkl", ".nii")]


def _previous_predictions(
    cases: Mapping[str, list[str]],
    out: Path,
    model: TrainedModel,
    mode: Mode,
    previous: TrainedModel | Sequence[Path] | None,
) -> list[Path | None]:
    """The folders of label maps that the model refines, made now if `previous` is a model; [None] for a first stage."""
    if previous is None:
        if stage := model.previous_stage:
            raise UserError(f"{model.folder.name} refines the predictions of {stage}: name the model or the folders")
        return [None]
    if not isinstance(previous, TrainedModel):
        return list(previous)
    # The first stage is tiled and averaged by what its own trainer names, not as asked for the last one.
    own = replace(mode, tiling=FROM_TRAINER, test_time_augmentation=FROM_TRAINER, patch_size=None)
    folders: list[Path | None] = []
    models = previous.members if mode.combine == "vote" else [previous]
    for i, one in enumerate(models):
        folder = out / "previous_stage" / (one.label if mode.combine == "vote" else previous.names[2])
        count = f" {i + 1} of {len(models)}" if len(models) > 1 else ""
        run(cases, folder, one, own, None, False, f"Previous stage{count}")
        folders.append(folder)
    return folders
