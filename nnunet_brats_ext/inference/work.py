"""A prediction as a plan of work, made in full before anything is written, and the one loop that does it.

Cascades, votes, pools, cross-validation and the maps for a next stage differ in their systems, cases and targets alone.
Cases come one after the other, and all members predict a case before the next one.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nnunet_brats_ext.inference.cases import CaseSource
from nnunet_brats_ext.inference.logits import Logits
from nnunet_brats_ext.inference.networks import CasePrediction, Machine, Networks, all_networks
from nnunet_brats_ext.inference.outputs import RunSettings, Target, locked
from nnunet_brats_ext.inference.profiling import PROFILE, Profile
from nnunet_brats_ext.inference.systems import Member, System
from nnunet_brats_ext.inference.workers import workers
from nnunet_brats_ext.predictions.postprocess import Changes, apply_rules
from nnunet_brats_ext.predictions.rule_sets import RuleSet
from nnunet_brats_ext.storage.parallel import progress_bar

if TYPE_CHECKING:
    from nnunet_brats_ext.inference.selection import Selection


@dataclass
class Outcome:
    """What came of a plan.

    label_maps: case -> file. maps: folders of maps for a next stage. finished_before: cases that were there already.
    notes: sentences that the user should read. profiles: what was measured of each model, by a title. changes: what
    post-processing changed.
    """

    out: Path | None = None
    label_maps: dict[str, Path] = field(default_factory=dict)
    maps: list[Path] = field(default_factory=list)
    finished_before: int = 0
    notes: list[str] = field(default_factory=list)
    profiles: list[tuple[str, Profile]] = field(default_factory=list)
    changes: Changes | None = None


class Step(Protocol):
    """A part of a plan. What an interrupted run has finished of it is not done again."""

    def run(self, machine: Machine, settings: RunSettings | None, outcome: Outcome) -> None: ...


@dataclass(frozen=True)
class PredictionStep:
    """Predict cases, one after the other, by systems; what is in the target of a system already stays as it is.

    out: the folder for a profile and, with a memory budget, for images while they are predicted. kept: members whose
    own predictions are written as well, and where.
    """

    description: str
    cases: CaseSource
    systems: Mapping[System, Target]
    networks: Networks
    out: Path
    kept: Mapping[Member, Target] = field(default_factory=dict)

    def run(self, machine: Machine, settings: RunSettings | None, outcome: Outcome) -> None:
        left = self._prepare(outcome)
        if not left:
            return
        profile = replace(self.networks.load_profile, cases={}, steps={})
        count = min(machine.workers, len(left))
        passes = sum(len(all_networks(systems)) for systems in left.values())

        @cache
        def note() -> None:  # before anything of these settings is in the folder, and not before it is known to work
            if settings:
                settings.note()

        with workers(count) as ahead, workers(count) as behind, progress_bar(self.description, passes) as advance:
            cases = iter(self.cases.read(self.networks.models, list(left), ahead))
            for _ in left:
                with profile.step("preprocess"):
                    case = next(cases)

                def seen(member: Member, logits: Logits, name: str = case.name) -> None:
                    if member in self.kept:
                        note()
                        behind.run(self.kept[member].write, name, logits)
                    advance()

                by = CasePrediction(case, left[case.name], self.networks, self.out, seen)
                for system in left[case.name]:
                    with profile.step("predict"):
                        prediction = by.system(system)
                    note()
                    with profile.step("write"):
                        if self.kept:  # a label map means that all of the case is there
                            behind.finish()
                        behind.run(self.systems[system].write, case.name, prediction)
                    del prediction  # which the next case would have beside its own
                profile.finish_case(case.name)
        outcome.profiles.append((self.description, profile))
        if machine.profile:
            profile.write(self.out / PROFILE, self.description)

    def _prepare(self, outcome: Outcome) -> dict[str, list[System]]:
        """Make the targets ready; the cases that are left, and the systems that are to predict each."""
        names = list(self.cases.names)
        left: dict[str, list[System]] = {name: [] for name in names}
        for system, target in self.systems.items():
            outcome.notes += target.prepare(system.members[0].model, names)
            for name in target.unfinished(names):
                left[name].append(system)
        left = {name: systems for name, systems in left.items() if systems}
        if 0 < len(left) < len(names):
            before = f"{len(names) - len(left)} of {len(names)}"
            outcome.notes.append(f"{self.description}: {before} cases were there already")
        for member, target in self.kept.items() if left else ():
            target.prepare(member.model, names)
        return left


@dataclass(frozen=True)
class RulesStep:
    """Post-processing of a folder of label maps into another."""

    source: Path
    out: Path
    rules: RuleSet
    images: Path

    def run(self, machine: Machine, settings: RunSettings | None, outcome: Outcome) -> None:
        if settings:  # of an interrupted run, all cases may have been predicted before
            settings.note()
        outcome.changes = apply_rules(
            self.source, self.out, self.rules, self.images, overwrite=True, processes=machine.processes or 1
        )


@dataclass(frozen=True)
class WorkPlan:
    """All that is to be done for one prediction.

    folders: that this run alone may write into. outcome: what is known of its outcome beforehand. chosen: of a pool,
    by fold.
    """

    steps: Sequence[Step]
    machine: Machine
    outcome: Outcome
    folders: Sequence[Path]
    settings: RunSettings | None = None
    chosen: "Mapping[int, Selection] | None" = None

    def run(self) -> Outcome:
        """Do all steps in order. An interrupted run goes on when the same plan is made and run again."""
        if not self.steps:
            return self.outcome
        with ExitStack() as stack:
            for folder in self.folders:
                stack.enter_context(locked(folder))
            if self.settings:
                self.settings.check()  # again, now that no other run writes
                self.settings.clear()
            for step in self.steps:
                step.run(self.machine, self.settings, self.outcome)
        return self.outcome
