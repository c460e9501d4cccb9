"""Rewrite the numbering in a folder of label maps, such as ET from 4 to 3; headers stay."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_brats_ext.brats import BACKGROUND, LABEL_SCHEMES, remap
from nnunet_brats_ext.evaluation.label_maps import find_label_maps
from nnunet_brats_ext.evaluation.numbering import TRAINED
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import ending, read_label_map, write_label_map
from nnunet_brats_ext.storage.options import Options, option
from nnunet_brats_ext.storage.output import staged
from nnunet_brats_ext.storage.parallel import for_each_case
from nnunet_brats_ext.storage.shared_options import overwrite_option, processes_option


def numbering_names() -> list[str]:
    return [TRAINED, *LABEL_SCHEMES]


@dataclass(frozen=True)
class RelabelOptions(Options):
    """What `nnunet_brats relabel` can be asked for."""

    inputs: Path = option("-i", help="folder of label maps, or of case folders")
    out: Path = option("-o", writes="folder", help="output folder")
    source: str | None = option("--from", default=None, choices=numbering_names, help="how they are numbered")
    target: str | None = option("--to", default=None, choices=numbering_names, help="how to number them")
    map: tuple[str, ...] = option(
        default=(), metavar="OLD=NEW", help="single values instead, such as 4=3; others stay as they are"
    )
    overwrite: bool = overwrite_option()
    processes: int | None = processes_option()


def relabel(inputs: Path | str, out: Path | str, **options: Any) -> dict[int, int]:
    """Write the label maps of a folder in another numbering; options as in `RelabelOptions`. Gives old -> new value.

    A value that the old numbering does not have, or a label that the new one lacks, is an error.
    """
    asked = RelabelOptions(inputs, out, **options)  # type: ignore[arg-type]
    mapping = numbers_between(asked.source, asked.target, asked.map)
    cases = find_label_maps(asked.inputs).files
    endings = sorted({ending(path) for path in cases.values()})
    if len(endings) > 1:
        raise UserError(f"{asked.inputs} holds label maps with the endings {', '.join(endings)}; give those of one")
    with staged(asked.out, list(cases), [asked.inputs], endings[0], asked.overwrite) as stage:
        for_each_case(partial(_rewrite, cases, mapping, stage, endings[0]), cases, "Relabel", asked.processes)
    return mapping


def numbers_between(source: str | None, target: str | None, changes: tuple[str, ...] = ()) -> dict[int, int]:
    """Old -> new value, from two numberings or from single changes such as `4=3`, which leave other values alone.

    Two releases are matched by what their labels are called; `trained` is the numbering as trained of the other one.
    """
    if bool(changes) == bool(source or target) or (not changes and not (source and target)):
        raise UserError("say --from and --to, or --map OLD=NEW ...")
    if changes:
        pairs = [re.fullmatch(r"(\d{1,3})=(\d{1,3})", text) for text in changes]
        if not all(pairs) or any(int(value) > 255 for pair in pairs if pair for value in pair.groups()):
            raise UserError(f"--map {' '.join(changes)}: expected OLD=NEW, whole numbers from 0 to 255")
        return {value: value for value in range(256)} | {int(pair[1]): int(pair[2]) for pair in pairs if pair}
    schemes = [LABEL_SCHEMES[name] for name in (source, target) if name and name != TRAINED]
    if not schemes or source == target:
        raise UserError(f"--from {source} --to {target}: choose two different numberings")
    names = dict(schemes[0].names)  # as trained, of the release that is not
    old = schemes[0].released if source != TRAINED else {label: label for label in (BACKGROUND, *names)}
    if len(schemes) == 1:
        new = schemes[0].trained if target != TRAINED else {label: label for label in (BACKGROUND, *names)}
        return {value: new[label] for value, label in old.items()}
    by_name = {schemes[1].names[label]: value for value, label in schemes[1].released.items() if label != BACKGROUND}
    return {BACKGROUND: BACKGROUND} | {
        value: by_name[names[label]] for value, label in old.items() if label != BACKGROUND and names[label] in by_name
    }


def _rewrite(cases: Mapping[str, Path], mapping: Mapping[int, int], stage: Path, ending: str, case: str) -> None:
    labels, grid = read_label_map(cases[case])
    try:
        changed: np.ndarray = remap(labels, mapping)
    except UserError as error:
        raise UserError(f"{cases[case]}: {error}", "--from says how the files are numbered") from error
    write_label_map(stage / f"{case}{ending}", changed, grid)
