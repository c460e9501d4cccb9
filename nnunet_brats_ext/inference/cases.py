"""Cases on their way into a network, preprocessed by nnU-Net: from image files, or from its data for training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from nnunetv2.inference.data_iterators import PreprocessAdapter
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from torch import Tensor

from nnunet_brats_ext.inference.case_files import CaseFiles
from nnunet_brats_ext.inference.workers import Workers
from nnunet_brats_ext.storage.datasets import DatasetDescription

PreprocessedCase = tuple[str, Tensor, dict[str, Any]]
"""Name; images (c, z, y, x) in fp32 and behind them the one-hot labels of a previous stage; nnU-Net's properties."""


class CaseSource(Protocol):
    """Some cases, and how to read them."""

    @property
    def names(self) -> Sequence[str]: ...

    def read(self, predictor: nnUNetPredictor, names: Sequence[str], ahead: Workers) -> Iterator[PreprocessedCase]:
        """Those of these names, one by one, preprocessed for the predictor's model."""


@dataclass(frozen=True)
class ImageCases:
    """Cases as image files. previous: folder of the label maps that a second stage refines."""

    files: CaseFiles
    previous: Path | None = None

    @property
    def names(self) -> Sequence[str]:
        return list(self.files)

    def read(self, predictor: nnUNetPredictor, names: Sequence[str], ahead: Workers) -> Iterator[PreprocessedCase]:
        ending = DatasetDescription(predictor.dataset_json).ending
        settings = predictor.plans_manager, predictor.dataset_json, predictor.configuration_manager
        previous = {name: str(self.previous / f"{name}{ending}") if self.previous else None for name in names}
        items = ((name, [str(file) for file in self.files[name]], previous[name]) for name in names)
        for case in ahead.map(partial(_preprocess, settings), items):
            # Nothing here keeps the data, so that who takes them can free their memory.
            yield case["name"], torch.from_numpy(case.pop("data")), case["properties"]


def _preprocess(settings: tuple, item: tuple[str, list[str], str | None]) -> dict[str, Any]:
    plans_manager, dataset_json, configuration_manager = settings
    name, files, previous = item
    # A second reading, after `check_images`: nnU-Net's own reader takes files, and checks neither bytes nor grids.
    preprocessor = configuration_manager.preprocessor_class(verbose=False)
    case = next(
        PreprocessAdapter([files], [previous], preprocessor, [name], plans_manager, dataset_json, configuration_manager)
    )
    # An array, because torch sends tensors to other processes through /dev/shm, which is small in containers.
    data = case["data"].to(torch.float32).numpy()
    return {"name": name, "data": data, "properties": case["data_properties"]}


@dataclass(frozen=True)
class TrainingCases:
    """Cases that nnU-Net has preprocessed for training. folder: of the data set in nnUNet_preprocessed."""

    names: Sequence[str]
    folder: Path

    def read(self, predictor: nnUNetPredictor, names: Sequence[str], ahead: Workers) -> Iterator[PreprocessedCase]:
        place = str(self.folder / predictor.configuration_manager.data_identifier)
        cases = infer_dataset_class(place)(place, list(names))
        for name in names:
            image, _, previous, properties = cases.load_case(name)
            image = image[:]
            if previous is not None:
                labels = predictor.label_manager.foreground_labels
                image = np.vstack((image, convert_labelmap_to_one_hot(previous[:], labels, output_dtype=image.dtype)))
            yield name, torch.from_numpy(image), properties
