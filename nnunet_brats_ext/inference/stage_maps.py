"""`nnunet_brats predict-stage`: several maps per training case for a second stage to draw from."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.export_prediction import resample_and_save
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_brats_ext.inference.cases import background
from nnunet_brats_ext.inference.models import TrainedModel
from nnunet_brats_ext.inference.predict import described
from nnunet_brats_ext.inference.predictor import BraTSPredictor
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.output import write_text
from nnunet_brats_ext.storage.parallel import progress_bar
from nnunet_brats_ext.training.cascade import expanded_folder, expanded_maps, missing_cases
from nnunet_brats_ext.training.seams import fastest_memory_format

Job = tuple[str, TrainedModel, list[str]]  # name of the map, single fold and checkpoint, cases


def predict_stage(
    model: TrainedModel,
    in_sample: bool = False,
    add: bool = False,
    test_time_augmentation: str = "paper",
    device: str = "cuda",
    processes: int = 3,
) -> list[Path]:
    """Predict all training cases with every checkpoint of a stage 1: Lyu & Shu 2020, https://arxiv.org/abs/2011.02881.

    Out-of-fold, each checkpoint name is one map per case, from the fold that had it for validation; all folds are
    needed. in_sample: each fold and checkpoint is a map of all cases, as in the paper, also of those it trained on.
    add: leave maps that other runs have made; without it they are an error, for stage 2 would draw from them as well.
    The maps go to `predicted_next_stage/STAGE2.maps/NAME`, where the second stage finds them; what an
    interrupted run has finished is kept, unless the checkpoints are others now. Returns the folders.
    """
    plans = PlansManager(model.plans)
    stages = plans.get_configuration(model.names[2]).next_stage_names
    if not stages:
        raise UserError(f"{model.names[2]} is no first stage: nothing in {model.folder}/plans.json follows it")
    preprocessed = Path(nnUNet_preprocessed, plans.dataset_name)
    jobs = _in_sample(model, preprocessed) if in_sample else _out_of_fold(model, preprocessed)
    folders = []
    for stage in stages:
        maps = expanded_folder(model.folder / "predicted_next_stage" / stage)
        strangers = sorted({path.name for path in maps.glob("[!.]*")} - {name for name, *_ in jobs})
        if strangers and not add:
            raise UserError(
                f"{maps} already holds {', '.join(strangers)}, which this command would not make and stage 2 would "
                "draw from as well; delete what is too much, or keep it with --add"
            )
        for name, one, cases in jobs:
            _predict_maps(one, plans, stage, cases, maps / name, test_time_augmentation, device, processes)
        folders += [maps / name for name in dict.fromkeys(name for name, *_ in jobs)]
    for maps in dict.fromkeys(folder.parent for folder in folders):
        print(
            f"{len(expanded_maps(maps.with_suffix('')))} maps per case in {maps}; training of stage 2 draws from them"
        )
    return folders


def _out_of_fold(model: TrainedModel, preprocessed: Path) -> list[Job]:
    splits = _splits(preprocessed)
    if len(model.folds) < len(splits):
        lacking = sorted(set(range(len(splits))) - set(model.folds))
        raise UserError(
            f"maps of all cases out of fold need all {len(splits)} folds; missing or not chosen: {lacking}. "
            "Train them, or predict --in-sample"
        )
    return [
        (name.removesuffix(".pth"), TrainedModel(model.folder, (fold,), (name,)), splits[fold]["val"])
        for name in model.checkpoints
        for fold in range(len(splits))
    ]


def _in_sample(model: TrainedModel, preprocessed: Path) -> list[Job]:
    cases = sorted({case for split in _splits(preprocessed) for case in (*split["train"], *split["val"])})
    return [(one.label, one, cases) for one in model.members]


def _splits(preprocessed: Path) -> list[dict[str, list[str]]]:
    file = preprocessed / "splits_final.json"
    if not file.is_file():
        raise UserError(f"{file} does not exist; nnUNetv2_train or `nnunet_brats convert` makes it")
    return json.loads(file.read_text())


def _predict_maps(
    model: TrainedModel,
    plans: PlansManager,
    stage: str,
    cases: Sequence[str],
    out: Path,
    test_time_augmentation: str,
    device: str,
    processes: int,
) -> None:
    """Predict those of the cases that `out` lacks, on the grid of the second stage's preprocessed data."""
    out.mkdir(parents=True, exist_ok=True)
    _forget_other_maps(model, cases, out)
    left = missing_cases(out, cases)
    if not left:
        return
    predictor = BraTSPredictor("sliding", test_time_augmentation, device=torch.device(device))
    predictor.load(model.folder, model.folds, model.checkpoints)
    # The order in memory that training has: the maps are then those of the trainer's own validation, bit for bit.
    spatial_axes = len(predictor.patch_size)
    predictor.network.to(memory_format=fastest_memory_format(predictor.device, spatial_axes))
    folder = Path(nnUNet_preprocessed, plans.dataset_name)
    data_folder = folder / predictor.configuration_manager.data_identifier
    target_folder = folder / plans.get_configuration(stage).data_identifier
    target_class = infer_dataset_class(str(target_folder))
    targets = target_class(str(target_folder), list(left))
    data = infer_dataset_class(str(data_folder))(str(data_folder), list(left))
    labels = predictor.label_manager.foreground_labels
    description = f"{out.name}, {model.label}"
    with background(min(processes, len(left))) as writing, progress_bar(description, len(left)) as advance:
        for case in left:
            image, _, previous, properties = data.load_case(case)
            image = image[:]
            if previous is not None:
                image = np.vstack((image, convert_labelmap_to_one_hot(previous[:], labels, output_dtype=image.dtype)))
            logits = predictor.predict_average(torch.from_numpy(image), properties).numpy()
            shape = targets.load_case(case)[0].shape[1:]
            writing.run(_write_map, logits, shape, out, case, predictor.plans_manager,
                        predictor.configuration_manager, properties, predictor.dataset_json, target_class)  # fmt: skip
            advance()


def _forget_other_maps(model: TrainedModel, cases: Sequence[str], out: Path) -> None:
    """Remove the maps that other checkpoints have made, say before a training anew; a note beside `out` tells whose."""
    note = out.with_name(f".{out.name}.json")
    noted, now = read_json(note) if note.is_file() else {}, described(model)
    if all(noted.get(file) == stamp for file, stamp in now.items()):
        return
    if others := [path for path in out.iterdir() if path.name.split(".")[0] in cases]:
        print(f"{out}: {len(others)} maps are not of the present {model.label}; they are predicted anew")
    for path in others:
        path.unlink()
    write_text(note, json.dumps({**noted, **now}, indent=2) + "\n")


def _write_map(logits, shape, out: Path, case: str, plans_manager, configuration_manager, properties, dataset_json,
               dataset_class) -> None:  # fmt: skip
    """nnU-Net's own writing of a map for the next stage, in one rename."""
    partial = out / f".{case}"
    resample_and_save(
        logits, shape, str(partial), plans_manager, configuration_manager, properties, dataset_json,
        dataset_class=dataset_class,
    )  # fmt: skip
    for written in out.glob(f".{case}.*"):
        written.replace(out / written.name.removeprefix("."))
