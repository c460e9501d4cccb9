"""What predicts a case: the members of a prediction, the label maps that they refine, and how they become one.

Loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from nnunet_brats_ext.inference.choices import FROM_TRAINER, NONE, find_symmetries
from nnunet_brats_ext.inference.models import Previous, TrainedModel
from nnunet_brats_ext.inference.options import InferenceOptions
from nnunet_brats_ext.papers import Source, find_trainer


@dataclass(frozen=True)
class Passes:
    """How a model sees a case, which decides the result; fields as in `PredictOptions`."""

    tiling: str = FROM_TRAINER
    symmetries: str = FROM_TRAINER
    combine: str = "logits"
    step_size: float = 0.5
    patch_size: tuple[int, ...] = ()
    precision: str = "default"
    skip_empty: bool = False
    ties: Source = "release"

    @classmethod
    def from_options(cls, options: InferenceOptions) -> Passes:
        symmetries = NONE if options.disable_tta else options.symmetries
        return cls(
            options.tiling,
            symmetries,
            options.combine,
            options.step_size,
            options.patch_size,
            options.precision,
            options.skip_empty,
            options.ties,
        )

    @property
    def of_previous_stage(self) -> Passes:
        """Those of the stage before: what its own trainer names, not what is asked for the last one."""
        return replace(self, tiling=FROM_TRAINER, symmetries=FROM_TRAINER, patch_size=())

    @property
    def settings(self) -> dict[str, Any]:
        """The same under the names that predict.json has had from the first version on."""
        return {
            "tiling": self.tiling,
            "test_time_augmentation": self.symmetries,
            "combine": self.combine,
            "tile_step_size": self.step_size,
            "patch_size": self.patch_size or None,
            **({"precision": self.precision} if self.precision != "default" else {}),
            **({"skip_empty": True} if self.skip_empty else {}),
            **({"ties": self.ties} if self.ties != "release" else {}),
        }


@dataclass(frozen=True)
class Member:
    """One prediction of a case: the average over the folds and checkpoints of a model.

    previous: what a second stage refines, the label map of another member or the one in a folder.
    """

    model: TrainedModel
    passes: Passes
    previous: Member | Path | None = None
    weight: float = 1.0

    @property
    def name(self) -> str:
        """A name for files of this member: fold_0__checkpoint_final__on__fold_1__checkpoint_final."""
        if self.previous is None:
            return self.model.label
        return f"{self.model.label}__on__{self.previous.name}"

    @property
    def passes_per_case(self) -> int:
        """How many times networks see a case, its mirror images and turns included: what its time goes with."""
        name = self.passes.symmetries
        if name == FROM_TRAINER:
            name = find_trainer(self.model.names[0]).prediction.symmetries
        symmetries = find_symmetries(name)
        images = len(symmetries) if symmetries else 2 ** len(self.model.patch_size)
        return images * len(self.model.files)


@dataclass(frozen=True)
class System:
    """The members of a prediction. Several become one by a vote, or by the weighted mean of their probabilities."""

    members: tuple[Member, ...]
    vote: bool = False

    @property
    def sources(self) -> tuple[Member, ...]:
        """The members whose label maps others refine, each once."""
        return tuple(dict.fromkeys(one.previous for one in self.members if isinstance(one.previous, Member)))

    @property
    def folders(self) -> list[Path]:
        """The folders of label maps that members refine."""
        return list(dict.fromkeys(one.previous for one in self.members if isinstance(one.previous, Path)))


def system_of(
    model: TrainedModel, previous: Previous, passes: Passes, held_out: tuple[int, str] | None = None
) -> System:
    """The members of a prediction by one model.

    Each source of previous label maps is a member of its own, and with `vote` each fold and checkpoint of both stages.
    held_out: a fold and one of its cases, in a cross-validation.
    """
    if held_out is not None:
        model = model.held_out(*held_out)
        previous = previous.held_out(*held_out) if isinstance(previous, TrainedModel) else previous
    vote = passes.combine == "vote"
    sources: Sequence[Member | Path | None] = [None]
    if isinstance(previous, TrainedModel):
        models = previous.members if vote else [previous]
        sources = [Member(one, passes.of_previous_stage) for one in models]
    elif previous is not None:
        sources = previous
    pairs = product(sources, model.members if vote else [model])
    return System(tuple(Member(one, passes, source) for source, one in pairs), vote)


def pooled(models: Sequence[tuple[TrainedModel, TrainedModel | None, float]], passes: Passes) -> System:
    """The weighted mean of models, each with the one of the stage before that it refines, and its weight."""
    return System(
        tuple(
            Member(model, passes, Member(previous, passes.of_previous_stage) if previous else None, weight)
            for model, previous, weight in models
        )
    )


def of_each_model(members: Iterable[Member]) -> Iterator[tuple[TrainedModel, Passes]]:
    """Each model with all folds and checkpoints that members have of it, for each way in which it sees a case."""
    groups: dict[tuple[Path, Passes], list[TrainedModel]] = {}
    for member in members:
        groups.setdefault((member.model.folder, member.passes), []).append(member.model)
    for (_, passes), models in groups.items():
        yield replace(models[0], weights=tuple(dict.fromkeys(one for model in models for one in model.weights))), passes
