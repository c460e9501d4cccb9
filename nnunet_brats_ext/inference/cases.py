"""Cases on their way through a model: images in, preprocessed by nnU-Net, predictions out, each written whole."""

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.pool import AsyncResult
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.data_iterators import PreprocessAdapter, preprocessing_iterator_fromfiles
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.file_path_utilities import check_workers_alive_and_busy
from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder

from nnunet_brats_ext.storage.errors import UserError


def find_images(folder: Path, dataset_json: Mapping[str, Any]) -> dict[str, list[str]]:
    """Case name -> its channel files CASE_0000.nii.gz, CASE_0001.nii.gz, ... in order, none missing."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of images")
    ending = dataset_json["file_ending"]
    lists = create_lists_from_splitted_dataset_folder(str(folder), ending)
    if not lists:
        raise UserError(f"{folder} holds no images named CASE_0000{ending}, as `nnunet_brats convert` makes them")
    cases = {Path(files[0]).name[: -len(f"_0000{ending}")]: files for files in lists}
    expected = len(dataset_json["channel_names"])
    if short := [f"{case} ({len(files)})" for case, files in cases.items() if len(files) != expected]:
        raise UserError(f"{folder}: the model needs {expected} channels per case; not so: {', '.join(short)}")
    return cases


def preprocess(
    predictor: nnUNetPredictor, cases: Mapping[str, list[str]], previous_stage: Path | None, processes: int
) -> Iterator[tuple[str, torch.Tensor, dict[str, Any]]]:
    """Name, preprocessed data and properties of each case; in this process if `processes` is 0, else ahead in others.

    previous_stage: folder of the label maps that a second stage refines; they come one-hot behind the images.
    """
    names, files = list(cases), list(cases.values())
    ending = predictor.dataset_json["file_ending"]
    previous = [str(previous_stage / f"{name}{ending}") if previous_stage else None for name in names]
    settings = (predictor.plans_manager, predictor.dataset_json, predictor.configuration_manager)
    if processes:
        items = preprocessing_iterator_fromfiles(
            files, previous, names, *settings, processes, predictor.device.type == "cuda"
        )
    else:
        items = PreprocessAdapter(files, previous, settings[2].preprocessor_class(verbose=False), names, *settings)
    for item in items:  # of which nothing here holds the data, so that whoever takes them can let them go
        yield item["ofile"], item.pop("data").to(torch.float32), item["data_properties"]


def write_prediction(
    logits: np.ndarray, properties: dict, predictor_settings: tuple, out: Path, case: str, save_probabilities: bool
) -> None:
    """Write CASE.nii.gz, with CASE.npz and CASE.pkl on request; the label map last, so that it means "complete"."""
    configuration_manager, plans_manager, dataset_json = predictor_settings
    partial = out / f".partial-{case}"
    ending = dataset_json["file_ending"]
    export_prediction_from_logits(
        logits, properties, configuration_manager, plans_manager, dataset_json, str(partial), save_probabilities
    )
    for suffix in ([".npz", ".pkl"] if save_probabilities else []) + [ending]:
        Path(f"{partial}{suffix}").replace(out / f"{case}{suffix}")


def is_complete(out: Path, case: str, ending: str, save_probabilities: bool) -> bool:
    suffixes = [ending, ".npz", ".pkl"] if save_probabilities else [ending]
    return all((out / f"{case}{suffix}").is_file() for suffix in suffixes)


class Background:
    """Functions run in other processes, no more waiting than there are workers; in this one if there are none."""

    def __init__(self, processes: int):
        self.pool = multiprocessing.get_context("spawn").Pool(processes) if processes else None
        self.workers = list(self.pool._pool) if self.pool else []  # type: ignore[attr-defined]
        self.results: list[AsyncResult] = []

    def run(self, function: Any, *arguments: Any) -> None:
        if self.pool is None:
            function(*arguments)
            return
        while check_workers_alive_and_busy(self.pool, self.workers, self.results, allowed_num_queued=2):
            sleep(0.05)
        self.results.append(self.pool.apply_async(function, arguments))

    def finish(self) -> None:
        for result in self.results:
            while not result.ready():
                if not all(worker.is_alive() for worker in self.workers):
                    raise UserError("a writing process was killed, most likely for want of memory; try fewer: -np")
                result.wait(0.1)
            result.get()


@contextmanager
def background(processes: int) -> Iterator[Background]:
    work = Background(processes)
    try:
        yield work
        work.finish()
    finally:
        if work.pool is not None:
            work.pool.terminate()


def previous_labels_missing(folder: Path, cases: Sequence[str], ending: str) -> list[str]:
    return [case for case in cases if not (folder / f"{case}{ending}").is_file()]
