"""The networks of a prediction, loaded once each, and what the members of a system make of a case with them."""

import warnings
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_brats_ext.inference.cases import Case, preprocessing
from nnunet_brats_ext.inference.checkpoints import warn_of_code
from nnunet_brats_ext.inference.logits import Logits, ModelDescription, Segmentation
from nnunet_brats_ext.inference.options import InferenceOptions
from nnunet_brats_ext.inference.predictor import BraTSPredictor, find_device
from nnunet_brats_ext.inference.profiling import MemoryMeter, Profile
from nnunet_brats_ext.inference.systems import Member, Passes, System, of_each_model
from nnunet_brats_ext.predictions import fusion
from nnunet_brats_ext.predictions.heads import convert_head, label_probabilities, paint
from nnunet_brats_ext.storage.errors import Notice
from nnunet_brats_ext.storage.shared_memory import too_little_shared


@dataclass(frozen=True)
class Machine:
    """What a prediction runs on, which does not change its result.

    low_memory_mb: results stay off the device, one set of weights is in memory while it predicts, and for a 2-D
    network as many slices as fit, of a volume that lies in a file in the output folder. profile: measure time and
    memory of every step; all of them are then done in this process. processes: that preprocess, and as many that write;
    0 is this one. trusted: checkpoints may run code, without a word.
    """

    device: str
    low_memory_mb: float | None = None
    profile: bool = False
    processes: int = 3
    symmetries_at_once: int = 1
    trusted: bool = False

    @classmethod
    def from_options(cls, options: InferenceOptions) -> "Machine":
        device = find_device(options.device).type
        processes = options.processes
        if processes and (reason := too_little_shared()):
            warnings.warn(reason, Notice, stacklevel=2)
            processes = 0
        return cls(
            device,
            options.low_memory_mb,
            options.profile,
            processes,
            options.symmetries_at_once,
            options.trusted,
        )

    @property
    def workers(self) -> int:
        return 0 if self.profile else min(self.processes, 1) if self.low_memory_mb else self.processes

    def predictor(self, passes: Passes) -> BraTSPredictor:
        return BraTSPredictor(
            passes.tiling,
            passes.symmetries,
            "probabilities" if passes.combine == "probabilities" else "logits",
            passes.patch_size,
            self.low_memory_mb,
            precision=passes.precision,
            skip_empty=passes.skip_empty,
            symmetries_at_once=self.symmetries_at_once,
            device=torch.device(self.device),
            tile_step_size=passes.step_size,
            perform_everything_on_device=self.device != "cpu" and self.low_memory_mb is None,
        )


class Networks:
    """A predictor for each model of a prediction; members that differ in folds and checkpoints share one."""

    def __init__(self, machine: Machine):
        self.machine = machine
        self.meter = MemoryMeter(torch.device(machine.device))  # before anything of size is in memory
        self.load_profile = Profile(self.meter.device, self.meter)
        self._predictors: dict[tuple[Path, Passes], BraTSPredictor] = {}

    def load(self, systems: Collection[System]) -> None:
        """Load the models of all members, as far as they are not; a UserError names checkpoints that cannot be used."""
        if not self.machine.trusted:
            warn_of_code(file for member in all_networks(systems) for file in member.model.files)
        with self.load_profile.step("load"):
            for model, passes in of_each_model(all_networks(systems)):
                loaded = self._predictors.get((model.folder, passes))
                if loaded and set(model.files) <= set(loaded.checkpoints):
                    continue
                predictor = self._predictors[model.folder, passes] = self.machine.predictor(passes)
                predictor.meter = self.meter
                predictor.load(model)
        self.load_profile.finish_load()

    def of(self, member: Member) -> BraTSPredictor:
        return self._predictors[member.model.folder, member.passes]

    @property
    def models(self) -> list[ModelDescription]:
        return [one.description for one in self._predictors.values()]


class CasePrediction:
    """A case and what members have made of it, so that none predicts it twice.

    systems: all that are to predict it. folder: for what a memory budget keeps on disk. seen: called with what each
    member gives.
    """

    def __init__(
        self,
        case: Case,
        systems: Collection[System],
        networks: Networks,
        folder: Path,
        seen: Callable[[Member, Logits], None],
    ):
        self.case, self.networks, self.folder, self.seen = case, networks, folder, seen
        self._left = Counter(self._images(one) for one in all_networks(systems))
        self._sources: dict[Member, np.ndarray] = {}  # each until all members that refine it have predicted
        self._refining = Counter(member.previous for system in systems for member in system.members)
        self._latest: tuple[Any, Tensor, dict[str, Any]] | None = None

    def system(self, system: System) -> Logits | Segmentation:
        """What a system makes of the case: the logits of a single member, else what all members come to."""
        if len(system.members) == 1:
            return self.logits(system.members[0])
        return vote(system, self.logits) if system.vote else mean(system, self.logits)

    def logits(self, member: Member) -> Logits:
        """The average over the folds and checkpoints of a member."""
        predictor = self.networks.of(member)
        data, properties = self._seen_by(member)
        values = predictor.predict_average(data, properties, member.model.files).numpy()
        logits = Logits(values, properties, predictor.description)
        if isinstance(source := member.previous, Member):
            self._refining[source] -= 1
            if not self._refining[source]:
                del self._sources[source]
        self.seen(member, logits)
        return logits

    def source(self, member: Member) -> np.ndarray:
        """The label map (z, y, x) of a member whose label maps others refine, on the grid of the image files."""
        if member not in self._sources:
            self._sources[member] = self.logits(member).segmentation().whole_labels
        return self._sources[member]

    def _seen_by(self, member: Member) -> tuple[Tensor, dict[str, Any]]:
        """What the network of a member takes; kept for the next members, which often take the same."""
        predictor, key = self.networks.of(member), (member.model.folder, member.passes, member.previous)
        known = self._latest is not None and self._latest[0] == key
        previous = None if known else self._previous(member)  # which may predict, and so comes before the count
        self._left[images := self._images(member)] -= 1
        if self._latest is None or not known:
            self._latest = None  # before another takes memory
            data, properties = self.case.seen_by(predictor.description, previous, last=not self._left[images])
            self._latest = key, predictor.stored(data, self.folder), properties
        _, data, properties = self._latest
        if not self._left[images]:
            self._latest = None
        return data, properties

    def _previous(self, member: Member) -> np.ndarray | Path | None:
        """The label map that a member refines, or the folder of its file."""
        return self.source(member.previous) if isinstance(member.previous, Member) else member.previous

    def _images(self, member: Member) -> str:
        return preprocessing(self.networks.of(member).description)


def all_networks(systems: Collection[System]) -> list[Member]:
    """What networks predict for a case by several systems: label maps that are refined once, all else as it is."""
    sources = dict.fromkeys(one for system in systems for one in system.sources)
    return [*sources, *(one for system in systems for one in system.members)]


# ---- several members into one --------------------------------------------------------------------------------------


# `predict` gives the logits of a member; they are dropped before the next member predicts.


def mean(system: System, predict: Callable[[Member], Logits]) -> Segmentation:
    """The weighted mean of probabilities, in the regions or labels of the first member."""
    first: tuple[dict[str, Any], ModelDescription] | None = None

    def probabilities(member: Member) -> np.ndarray:
        nonlocal first
        logits = predict(member)
        first = first or (logits.properties, logits.model)
        return convert_head(logits.probabilities(), logits.model.head, first[1].head)

    averaged = fusion.mean(map(probabilities, system.members), [member.weight for member in system.members])
    assert first is not None
    properties, model = first
    return Segmentation(paint(averaged, model.head), averaged, properties, model)


def vote(system: System, predict: Callable[[Member], Logits]) -> Segmentation:
    """The vote of label maps, with the rule of `fusion.Votes` for ties."""
    votes = None
    for member in system.members:
        logits = predict(member)
        if votes is None:
            votes = fusion.Votes(logits.in_box.shape[1:], logits.model.description.paint, member.passes.ties)
        head = logits.model.head
        box = () if votes.by_text else logits.box_of_labels()
        probabilities = logits.probabilities(box)
        of_labels = label_probabilities(probabilities, head)[[head.labels.index(label) for label in votes.labels]]
        votes.add(logits.labels(probabilities), of_labels, member.weight, box)
        properties, model = logits.properties, logits.model
        del logits, probabilities, of_labels
    assert votes is not None
    return Segmentation(votes.winners(), None, properties, model)
