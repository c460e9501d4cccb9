"""Cases for a prediction: image files that are preprocessed on the way, or what nnU-Net has preprocessed for training.

A case is read and preprocessed once, whatever number of members sees it. Images whose axes are not those of the
training data are turned to them; what comes of a case is turned back by `in_file_axes`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from torch import Tensor

from nnunet_brats_ext.brats import derive_channel
from nnunet_brats_ext.inference.case_files import CaseFiles, axes_seen
from nnunet_brats_ext.inference.logits import TURNED, ModelDescription
from nnunet_brats_ext.inference.normalisation import preprocessor_of
from nnunet_brats_ext.inference.workers import Workers
from nnunet_brats_ext.storage.datasets import NORMALISATION_KEY
from nnunet_brats_ext.storage.images import ENDINGS, read_grid, read_image, read_label_map, turn
from nnunet_brats_ext.storage.json_files import to_json
from nnunet_brats_ext.storage.nnunet import PREPROCESSING_KEYS

OUTSIDE = -1  # nnU-Net's label of voxels outside the brain, in what it makes beside the images
Preprocessed = tuple[np.ndarray, np.ndarray, dict[str, Any]]
"""Images (c, z, y, x) in fp32, where the brain is not, and nnU-Net's properties of the case."""


class Case(Protocol):
    """A case that any model can see."""

    @property
    def name(self) -> str: ...

    def seen_by(
        self, model: ModelDescription, previous: np.ndarray | Path | None = None, last: bool = False
    ) -> tuple[Tensor, dict[str, Any]]:
        """What a model's network takes, (c, z, y, x) in fp32, and nnU-Net's properties.

        previous: the label map of the stage before, (z, y, x) on the grid of the image files, or the folder of its
        file, whose axes may be others; it comes behind the images, one-hot. last: no other model will see the same
        images, so that their memory can be freed.
        """


class CaseSource(Protocol):
    """Some cases, and how to read them."""

    @property
    def names(self) -> Sequence[str]: ...

    def read(self, models: Sequence[ModelDescription], names: Sequence[str], ahead: Workers) -> Iterator[Case]:
        """Those of these names, one by one, preprocessed for all of these models."""


# ---- images --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageCases:
    """Cases as image files."""

    files: CaseFiles

    @property
    def names(self) -> Sequence[str]:
        return list(self.files)

    def read(self, models: Sequence[ModelDescription], names: Sequence[str], ahead: Workers) -> Iterator[Case]:
        different = {preprocessing(model): model for model in models}
        items = ((name, self.files[name]) for name in names)
        yield from ahead.map(partial(_preprocess, different), items)


@dataclass(frozen=True)
class ImageCase:
    """A case as image files, by channel. preprocessed: for each way of preprocessing."""

    name: str
    files: Mapping[int, Path]
    preprocessed: dict[str, Preprocessed] = field(repr=False)

    def seen_by(
        self, model: ModelDescription, previous: np.ndarray | Path | None = None, last: bool = False
    ) -> tuple[Tensor, dict[str, Any]]:
        key = preprocessing(model)
        images, brain, properties = self.preprocessed.pop(key) if last else self.preprocessed[key]
        if previous is None:
            return torch.from_numpy(images), properties
        if isinstance(previous, Path):
            previous = read_labels(previous / f"{self.name}{model.description.ending}", model)
        elif TURNED in properties:
            previous = turn(previous, *properties[TURNED])
        forward = model.plans.transpose_forward
        box = tuple(slice(*side) for side in properties["bbox_used_for_cropping"])
        labels = previous.transpose(forward)[box]
        if brain.shape != labels.shape or np.any(labels[brain == OUTSIDE]):
            # nnU-Net resamples labels, and counts voxels with a label as brain where it normalises.
            images, labels = self._with_labels(model, previous)
        one_hot = convert_labelmap_to_one_hot(labels, model.label_manager.foreground_labels, images.dtype)
        return torch.from_numpy(np.vstack((images, one_hot))), properties

    def _with_labels(self, model: ModelDescription, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels by nnU-Net's whole preprocessing of both."""
        images, properties = read_images(self.files, model)
        preprocessor = preprocessor_of(model.configuration)
        images, labels, _ = preprocessor.run_case_npy(
            images, labels[None].astype(np.float32), properties, *_arguments(model)
        )
        return images.astype(np.float32, copy=False), labels[0]


READ_OF_PLANS = ("image_reader_writer", "transpose_forward", "foreground_intensity_properties_per_channel")


def preprocessing(model: ModelDescription) -> str:
    """All that decides how images are preprocessed: models of which it is the same see the same images."""
    configuration = dict(model.configuration.configuration)
    if model.configuration.preprocessor_class is DefaultPreprocessor:
        configuration = {name: configuration.get(name) for name in (*PREPROCESSING_KEYS, NORMALISATION_KEY)}
    plans = {name: model.plans.plans.get(name) for name in READ_OF_PLANS}
    description = model.description
    channels = {"channels": description.channel_names, "derived": description.derived}
    return to_json({"configuration": configuration, "plans": plans, **channels})


def _preprocess(models: Mapping[str, ModelDescription], item: tuple[str, Mapping[int, Path]]) -> ImageCase:
    """Read the files of a case once for each way of reading, and preprocess them as each of the models needs."""
    name, files = item
    # A second reading, after `check_images`: nnU-Net's own reader takes files, and checks neither bytes nor grids.
    preprocessed: dict[str, Preprocessed] = {}
    images: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}
    for key, model in models.items():
        reading = _reading(model)
        if reading not in images:
            images[reading] = read_images(files, model)
        image, properties = images[reading]
        preprocessor = preprocessor_of(model.configuration)
        seen, brain, own = preprocessor.run_case_npy(image, None, dict(properties), *_arguments(model))
        # Arrays, because torch sends tensors to other processes through /dev/shm, which is small in containers.
        preprocessed[key] = seen.astype(np.float32, copy=False), brain[0], own
    return ImageCase(name, files, preprocessed)


def _reading(model: ModelDescription) -> str:
    """All that decides how images are read; of the models of a system some may have derived channels."""
    description = model.description
    reader = model.plans.plans.get("image_reader_writer")
    return to_json([reader, description.axes, description.channel_names, description.derived])


def read_images(files: Mapping[int, Path], model: ModelDescription) -> tuple[np.ndarray, dict[str, Any]]:
    """Images (c, z, y, x) in fp32 by nnU-Net's reader, and its properties, in the axes of the model's training data.

    files: by channel; those that the case lacks are zeros, which they stay in nnU-Net's normalisation of MR images.
    Derived channels are computed. Where a file has other axes, it is turned, and the properties note those of the first
    file and what they became.
    """
    images, properties = _read_turned([str(file) for file in files.values()], model)
    description = model.description
    if len(files) == (channels := len(description.channel_names)):
        return images, properties
    every = np.zeros((channels, *images.shape[1:]), images.dtype)
    every[list(files)] = images
    of_sequence = dict(zip(description.sequences, every, strict=True))
    for name, weights in description.derived.items():
        of_sequence[name][:] = derive_channel(of_sequence, weights)
    return every, properties


def _read_turned(files: Sequence[str], model: ModelDescription) -> tuple[np.ndarray, dict[str, Any]]:
    reader = model.plans.image_reader_writer_class()
    axes = axes_seen(model.description, type(reader).__name__)
    if axes is None or not all(file.endswith(ENDINGS) for file in files):
        return reader.read_images(files)
    grids = [read_grid(Path(file)) for file in files]
    if any(len(grid.size) != 3 for grid in grids) or all(grid.axes == axes for grid in grids):
        return reader.read_images(files)
    images = [read_image(Path(file)).turned(axes).array for file in files]
    _, properties = reader.read_images(files[:1])
    properties["spacing"] = list(grids[0].turned(axes).spacing_mm[::-1])
    properties[TURNED] = grids[0].axes, axes
    return np.stack(images).astype(np.float32), properties


def _arguments(model: ModelDescription) -> tuple:
    return model.plans, model.configuration, model.dataset_json


def read_labels(file: Path, model: ModelDescription) -> np.ndarray:
    """A label map (z, y, x) as nnU-Net reads it, turned to the axes of the training data as images are."""
    reader = model.plans.image_reader_writer_class()
    axes = axes_seen(model.description, type(reader).__name__)
    if axes is not None and file.name.endswith(ENDINGS):
        grid = read_grid(file)
        if len(grid.size) == 3 and grid.axes != axes:
            return turn(read_label_map(file)[0], grid.axes, axes)
    labels, _ = reader.read_seg(str(file))
    return labels[0]


# ---- training data -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingCases:
    """Cases that nnU-Net has preprocessed for training. folder: of the data set in nnUNet_preprocessed."""

    names: Sequence[str]
    folder: Path

    def read(self, models: Sequence[ModelDescription], names: Sequence[str], ahead: Workers) -> Iterator[Case]:
        for name in names:
            yield TrainingCase(name, self.folder)


@dataclass(frozen=True)
class TrainingCase:
    """A case that nnU-Net has preprocessed for training, the label map of a previous stage included."""

    name: str
    folder: Path

    def seen_by(
        self, model: ModelDescription, previous: np.ndarray | Path | None = None, last: bool = False
    ) -> tuple[Tensor, dict[str, Any]]:
        place = str(self.folder / model.configuration.data_identifier)
        image, _, stage_before, properties = infer_dataset_class(place)(place, [self.name]).load_case(self.name)
        image = image[:]
        if stage_before is not None:
            labels = model.label_manager.foreground_labels
            image = np.vstack((image, convert_labelmap_to_one_hot(stage_before[:], labels, output_dtype=image.dtype)))
        return torch.from_numpy(image), properties
