"""Scores of checkpoints on the cases of their own fold, kept beside them in `fold_*/scores`."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from nnunet_brats_ext.evaluation.presets import Preset
from nnunet_brats_ext.evaluation.results import CaseScores
from nnunet_brats_ext.evaluation.scoring import evaluate_case
from nnunet_brats_ext.inference.cases import read_labels
from nnunet_brats_ext.inference.logits import TURNED, Logits, Segmentation
from nnunet_brats_ext.inference.models import TrainedModel
from nnunet_brats_ext.inference.networks import Machine
from nnunet_brats_ext.inference.outputs import RunSettings
from nnunet_brats_ext.inference.work import Outcome
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import to_labels, turn
from nnunet_brats_ext.storage.json_files import JsonEntry, read_json, to_json, write_json
from nnunet_brats_ext.storage.output import writing

FOLDER = "scores"
NOTE = ".settings.json"


@dataclass(frozen=True)
class ScoreTarget:
    """The scores of one checkpoint on cases of its fold, in one file; label maps are scored and not kept.

    file: fold_0/scores/checkpoint_final.json. Until all cases are in it, each has a file in a hidden folder beside it.
    settings: all that decides the scores; those that were made with others are made anew. references: case -> label map
    as trained.
    """

    file: Path
    settings: Mapping[str, Any]
    references: Mapping[str, Path]
    preset: Preset

    @property
    def out(self) -> Path:
        return self.file.with_name(f".{self.file.stem}")

    def unfinished(self, cases: Sequence[str]) -> list[str]:
        known = self.read()
        return [case for case in cases if case not in known]

    def prepare(self, model: TrainedModel, cases: Sequence[str]) -> list[str]:
        if not self._is_ours(note := self.out / NOTE):
            shutil.rmtree(self.out, ignore_errors=True)
            with writing(self.out):
                self.out.mkdir(parents=True)
            write_json(note, self.settings)
        return []

    def write(self, case: str, prediction: Logits | Segmentation) -> None:
        if isinstance(prediction, Logits):
            prediction = prediction.segmentation()
        file, properties, labels = self.references[case], prediction.properties, prediction.whole_labels
        if TURNED in properties:  # the files of the images may have other axes than that of the reference
            labels = turn(labels, *properties[TURNED])
        reference = to_labels(read_labels(file, prediction.model), file)
        if reference.shape != labels.shape:
            raise UserError(f"{file} has the shape {reference.shape}, and the images of the case {labels.shape}")
        scores = evaluate_case(reference, labels, properties["spacing"], self.preset)
        content = {
            region: {metric: value if isfinite(value) else None for metric, value in metrics.items()}
            for region, metrics in scores.items()
        }
        write_json(self.out / f"{case}.json", content)

    def read(self) -> CaseScores:
        """Case -> region -> metric -> value, of the cases that are scored."""
        known = {}
        if self.file.is_file() and self._same(read_json(self.file).get("settings")):
            known = {case: _scores(entry) for case, entry in JsonEntry.read(self.file)["cases"].items()}
        if self._is_ours(self.out / NOTE):
            files = sorted(self.out.glob("[!.]*.json"))
            known |= {file.stem: _scores(JsonEntry.read(file)) for file in files}
        return known

    def finish(self) -> None:
        """All cases into one file."""
        if self.out.is_dir():
            write_json(self.file, {"settings": self.settings, "cases": self.read()})
            shutil.rmtree(self.out)

    def _is_ours(self, note: Path) -> bool:
        return note.is_file() and self._same(read_json(note))

    def _same(self, noted: Any) -> bool:
        return noted == json.loads(to_json(self.settings))


def _scores(entry: JsonEntry) -> dict[str, dict[str, float | None]]:
    return {
        region: {metric: None if one.value is None else one.number() for metric, one in metrics.items()}
        for region, metrics in entry.items()
    }


@dataclass(frozen=True)
class FinishScores:
    """The last step of scoring a fold: one file per checkpoint."""

    targets: Sequence[ScoreTarget]

    def run(self, machine: Machine, settings: RunSettings | None, outcome: Outcome) -> None:
        for target in self.targets:
            target.finish()
