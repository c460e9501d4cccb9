"""What a distillation would refuse once its teachers are trained, as far as names of cases and layouts tell it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_brats_ext.dataset_conversion.distillation.distill import nothing_left
from nnunet_brats_ext.dataset_conversion.distillation.selection import NAMED
from nnunet_brats_ext.dataset_conversion.distillation.sources import can_learn_labels, names_of, names_to_exclude
from nnunet_brats_ext.dataset_conversion.scan import Source, SourceCase
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.workflow.recipe_parts import Data, Recipe, base_data


@dataclass(frozen=True)
class Folders:
    """The folders that a run is given. source: the release; None for phantoms. also: those of `--also`, by name.

    further: what was found in those that the recipe takes cases from.
    """

    source: Source | None
    also: Mapping[str, Path]
    further: Mapping[str, Source]

    def option(self, name: str) -> str:
        return f"--also {name}={self.also[name]}"


def check_distilled(recipe: Recipe, jobs: Collection[str], folders: Folders) -> None:
    """A UserError where one of the jobs is to distill a data set, and could not.

    recipe: with the further folders that are given, and no others.
    """
    for data in recipe.data.values():
        if f"distill/{data.name}" in jobs:
            for problem in _problems(recipe, data, folders):
                raise UserError(problem)


def _problems(recipe: Recipe, data: Data, folders: Folders) -> Iterator[str]:
    base = base_data(recipe, recipe.models_of(str(data.distill))[0])
    names = (base.name,) if data.unlabelled is None else data.unlabelled
    unlabelled = {name: _cases(recipe.data[name], folders, labelled=False) for name in names}
    foreign = {name: _cases(recipe.data[name], folders, labelled=True) for name in data.foreign}
    for kind, found in (("without label", unlabelled), ("with a label", foreign)):
        for further in (recipe.data[name].source for name, cases in found.items() if cases == []):
            if further:
                words = f"no case {kind}, which {data.name!r} is to learn from; give a release that has some"
                yield f"{folders.option(further)}: {words}"
    for further in (recipe.data[name].source for name in data.foreign):
        here = folders.further[further].layout.scheme if further else None
        there = folders.source.layout.scheme if folders.source else None
        if further and here and there and not can_learn_labels(here, there):
            words = f"its labels, {here.numbers}, cannot join those of the source, {there.numbers}"
            yield f"{folders.option(further)}: {words}; give a release with the same labels"
    excluded = {name for folder in data.exclude for name in names_to_exclude(folders.also[folder])}
    learnt, manual = [*unlabelled.values(), *foreign.values()], [_cases(base, folders, labelled=True)]
    for kind, groups in (("to distill", learnt), ("with manual labels", manual)):
        cases = [case for group in groups for case in group or ()]
        if None not in groups and cases and all(names_of(case) & excluded for case in cases):
            options = " ".join(map(folders.option, data.exclude))
            yield f"{nothing_left(kind, {NAMED: len(cases)})} ({options}); leave it out, or give further cases"


def _cases(data: Data, folders: Folders, labelled: bool) -> Sequence[SourceCase] | None:
    """The cases of a data set with or without labels; None of phantoms, which are not made yet."""
    source = folders.further[data.source] if data.source else folders.source
    return None if source is None else [case for case in source.cases if case.labelled == labelled]
