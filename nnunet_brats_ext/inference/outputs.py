"""Output folders of predictions: label maps and probabilities, or maps for the training of a next stage."""

import errno
import json
import pickle
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape,
    resample_and_save,
)
from nnunetv2.training.dataloading.nnunet_dataset import file_ending_dataset_mapping, infer_dataset_class

from nnunet_brats_ext.inference.chosen import digest_of
from nnunet_brats_ext.inference.logits import Logits, Segmentation, in_file_axes
from nnunet_brats_ext.inference.models import TrainedModel
from nnunet_brats_ext.inference.profiling import PROFILE
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import ENDINGS, probabilities_shape, read_label_map
from nnunet_brats_ext.storage.json_files import read_json, to_json, write_json
from nnunet_brats_ext.storage.locks import AlreadyLocked, lock
from nnunet_brats_ext.storage.output import LOCK, PARTIAL, partial_file, refuse_maps, writing
from nnunet_brats_ext.training.cascade import made_by, missing_cases, note_of_makers

PASSES = "passes"  # in the note of maps for a next stage: those of each checkpoint, beside its stamp
BESIDE = ("dataset.json", "plans.json")  # which nnU-Net's own commands look for beside predictions


class Target(Protocol):
    """A folder that predictions are written into, each of them whole or not at all."""

    @property
    def out(self) -> Path: ...

    def unfinished(self, cases: Sequence[str]) -> list[str]:
        """Those of the cases that it lacks."""

    def prepare(self, model: TrainedModel, cases: Sequence[str]) -> list[str]:
        """Make the folder ready for what a model predicts of the cases; what the user should know of that."""

    def write(self, case: str, prediction: Logits | Segmentation) -> None:
        """Write a case."""


@dataclass(frozen=True)
class PredictionTarget:
    """CASE.nii.gz, with CASE.npz and CASE.pkl on request, as nnU-Net writes them. half: probabilities in float16."""

    out: Path
    ending: str
    probabilities: bool = False
    half: bool = False

    @property
    def suffixes(self) -> list[str]:
        """The label map last, so that it means "complete"."""
        return [*([".npz", ".pkl"] if self.probabilities else []), self.ending]

    def label_maps(self, cases: Iterable[str]) -> dict[str, Path]:
        return {case: self.out / f"{case}{self.ending}" for case in cases}

    def files(self, case: str) -> list[Path]:
        return [self.out / f"{case}{suffix}" for suffix in self.suffixes]

    def unfinished(self, cases: Sequence[str]) -> list[str]:
        """Those of the cases of which a file is missing or damaged."""
        return [case for case in cases if not all(map(is_whole, self.files(case)))]

    def prepare(self, model: TrainedModel, cases: Sequence[str]) -> list[str]:
        with writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            for partial in self.out.glob(f"{PARTIAL}*"):
                partial.unlink()
            for name in BESIDE:
                shutil.copyfile(model.folder / name, self.out / name)
        return []

    def write(self, case: str, prediction: Logits | Segmentation) -> None:
        with partial_file(self.out / case, self.suffixes) as partial:
            export(prediction, str(partial), self.ending, self.probabilities, self.half)
            if not all(is_whole(Path(f"{partial}{suffix}")) for suffix in self.suffixes):
                # ITK writes NIfTI to a full disk without an error.
                raise OSError(errno.ENOSPC, "only a part of it was written; is there no space left on the device?")


def export(prediction: Logits | Segmentation, place: str, ending: str, probabilities: bool, half: bool = False) -> None:
    """Write a prediction as nnU-Net does, in the axes of the image files. place: the path without its ending."""
    plans, configuration, _ = prediction.model
    properties = prediction.properties
    if isinstance(prediction, Logits):
        converted = convert_predicted_logits_to_segmentation_with_correct_shape(
            prediction.values, plans, configuration, prediction.model.label_manager, properties, probabilities
        )
        labels, whole = converted if probabilities else (converted, None)
        labels = in_file_axes(labels, properties)
        whole = None if whole is None else in_file_axes(whole, properties)
    else:
        labels, whole = prediction.whole_labels, prediction.whole_probabilities if probabilities else None
    if whole is not None:
        np.savez_compressed(f"{place}.npz", probabilities=whole.astype(np.float16) if half else whole)
        Path(f"{place}.pkl").write_bytes(pickle.dumps(properties))
    plans.image_reader_writer_class().write_seg(labels, place + ending, properties)


def is_whole(file: Path) -> bool:
    """Whether a file of a prediction is there and whole."""
    if not file.is_file():
        return False
    try:
        if file.suffix == ".npz":
            probabilities_shape(file)
        elif file.suffix == ".pkl":
            return file.read_bytes().endswith(pickle.STOP)
        elif file.name.endswith(ENDINGS):
            read_label_map(file)
    except UserError:
        return False
    return True


@dataclass(frozen=True)
class NextStageTarget:
    """One map per training case on the grid of the next stage's data, as nnU-Net's validation leaves them.

    out: a folder of one map per case. stage: the configuration of the next stage. preprocessed: the folder of the data
    set in nnUNet_preprocessed. passes: how the model sees a case, which is noted beside the folder.
    """

    out: Path
    stage: str
    preprocessed: Path
    passes: Mapping[str, Any] = field(hash=False)

    def unfinished(self, cases: Sequence[str]) -> list[str]:
        return missing_cases(self.out, cases)

    def prepare(self, model: TrainedModel, cases: Sequence[str]) -> list[str]:
        """Remove maps that other checkpoints or other passes have made, such as those before a training anew.

        Notes beside the folder say which have made those that are there.

        The training of the next stage compares the digests; times of files, which need not be read, decide here.
        """
        with writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        makers = {f"{file.parent.name}/{file.name}": digest_of(file) for file in model.files}
        write_json(note_of_makers(self.out), {**made_by(self.out), **makers})
        note = self.out.with_name(f".{self.out.name}.json")
        noted, now = read_json(note) if note.is_file() else {}, model.file_stamps
        noted_passes, passes = noted.get(PASSES, {}), json.loads(to_json(self.passes))
        if all(noted.get(file) == now[file] and noted_passes.get(file, passes) == passes for file in now):
            return []
        wanted = set(cases)
        others = [path for path in self.out.iterdir() if path.name.split(".")[0] in wanted]
        for path in others:
            path.unlink()
        write_json(note, {**noted, **now, PASSES: {**noted_passes, **dict.fromkeys(now, passes)}})
        which = f"are not of the present {model.label}, or were predicted otherwise"
        words = f"{self.out}: {len(others)} maps {which}; they are predicted anew"
        return [words] if others else []

    def write(self, case: str, prediction: Logits | Segmentation) -> None:
        """nnU-Net's own writing of a map for the next stage, in one rename."""
        assert isinstance(prediction, Logits), "a map for the next stage is of one network"
        plans, configuration, dataset_json = prediction.model
        place = str(self.preprocessed / plans.get_configuration(self.stage).data_identifier)
        cases = infer_dataset_class(place)
        shape = cases(place, [case]).load_case(case)[0].shape[1:]
        ending = next(f".{name}" for name, known in file_ending_dataset_mapping.items() if known is cases)
        with partial_file(self.out / case, [ending]) as partial:
            resample_and_save(
                prediction.values, shape, str(partial), plans, configuration, prediction.properties, dataset_json,
                dataset_class=cases,
            )  # fmt: skip


# ---- what a folder holds -------------------------------------------------------------------------------------------

MEMBERS, PREVIOUS_STAGE, BEFORE_RULES = SUBFOLDERS = ("members", "previous_stage", "before_rules")


@dataclass(frozen=True)
class RunSettings:
    """What decides the predictions in a folder, noted there, so that they are not continued with other settings.

    file: of the note, in that folder.
    """

    file: Path
    content: Mapping[str, Any]
    overwrite: bool = False

    @property
    def out(self) -> Path:
        return self.file.parent

    def check(self) -> None:
        """A UserError where the folder holds predictions made with other settings."""
        if not self.file.is_file():
            refuse_maps(self.out, [path.name for path in predictions_in(self.out)])
            return
        noted, content = read_json(self.file), json.loads(to_json(self.content))
        if noted != content and not self.overwrite and any(predictions_in(folder) for folder in self._folders()):
            differing = [key for key in {**content, **noted} if noted.get(key) != content.get(key)]
            raise UserError(
                f"{self.out} holds predictions made with other settings ({', '.join(differing)}); choose another "
                "folder, or predict anew with --overwrite"
            )

    def clear(self) -> None:
        """Remove the predictions that are to be overwritten."""
        if self.overwrite and self.file.is_file():
            for path in [*predictions_in(self.out), self.out / PROFILE]:
                path.unlink(missing_ok=True)
            for name in SUBFOLDERS:
                shutil.rmtree(self.out / name, ignore_errors=True)

    def note(self) -> None:
        """Write the note, once something was predicted with these settings."""
        write_json(self.file, self.content)

    def _folders(self) -> list[Path]:
        parts = (self.out / name for name in SUBFOLDERS)
        return [self.out, *(path for part in parts for path in (part, *part.rglob("*")) if path.is_dir())]


def predictions_in(folder: Path) -> list[Path]:
    """The label maps and probabilities in a folder; none where there is no folder."""
    if not folder.is_dir():
        return []
    endings = (*ENDINGS, ".npz", ".pkl")
    return [path for path in folder.iterdir() if path.name.endswith(endings) and path.name[0] != "."]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other runs, which would remove what this one is writing; made, if need be."""
    existed = folder.is_dir()
    with ExitStack() as stack:
        try:
            with writing(folder):
                stack.enter_context(lock(folder / LOCK))
        except AlreadyLocked:
            raise UserError(f"another run is predicting into {folder}; wait for it, or choose another folder") from None
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no file that is open
                (folder / LOCK).unlink()
            if not existed and not any(folder.iterdir()):
                folder.rmdir()
