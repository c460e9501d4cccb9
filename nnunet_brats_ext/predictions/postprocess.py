"""Rules on a folder: label maps in, label maps out."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_brats_ext.brats import LABEL_SCHEMES, SEQUENCES
from nnunet_brats_ext.predictions.folders import PLANS, PredictionFolder, open_folders, problems_with_heads
from nnunet_brats_ext.predictions.heads import convert_head
from nnunet_brats_ext.predictions.rule_sets import DEFAULT_SCHEME, RuleSet, collect_rules, rules_file, save_rules
from nnunet_brats_ext.predictions.rules import RuleInput
from nnunet_brats_ext.storage.errors import UserError, refuse
from nnunet_brats_ext.storage.images import read_grid, require_labels, write_label_map
from nnunet_brats_ext.storage.options import Options, option
from nnunet_brats_ext.storage.output import staged, write_text
from nnunet_brats_ext.storage.parallel import for_each_case
from nnunet_brats_ext.storage.shared_options import overwrite_option, processes_option


@dataclass(frozen=True)
class PostprocessOptions(Options):
    """Options of `postprocess`."""

    predictions: Path = option("-i", aliases=("IN",), help="folder of label maps as trained")
    out: Path = option("-o", writes="folder", help="output folder")
    rules: tuple[str, ...] = option(
        default=(),
        metavar="RULES",
        help="files, names of rules saved beside -m, or published rules, such as lyu2020",
    )
    rule: tuple[str, ...] = option(
        default=(),
        metavar="RULE",
        help="single rules, after those: small-et=500 (voxels), small-et=0.5ml, small-components:WT=50, "
        "small-region:TC=20, unlikely-components:ET=0.6 (mean probability), oedema-to-core",
    )
    scheme: str | None = option(
        default=None,
        choices=LABEL_SCHEMES,
        metavar="SCHEME",
        help=f"whose regions --rule names; default {DEFAULT_SCHEME}",
    )
    model: Path | None = option(
        "-m",
        default=None,
        aliases=("--model",),
        metavar="FOLDER",
        help="folder of a trained model, beside which rules are found and saved by name",
    )
    save: str | None = option(default=None, metavar="NAME", help="save the rules beside -m under this name")
    images: Path | None = option(default=None, help="images as nnU-Net names them, for rules that look at them")
    overwrite: bool = overwrite_option()
    processes: int | None = processes_option()


@dataclass(frozen=True)
class Changes:
    """What rules changed in a folder. voxels: case -> how many each rule changed. saved: the file of the rules."""

    rule_set: RuleSet
    voxels: Mapping[str, Sequence[int]]
    saved: Path | None = None


def postprocess(predictions: Path | str, out: Path | str, **options: Any) -> Changes:
    """Apply rules, given by name or one by one, to every label map of a folder; options as in `PostprocessOptions`.

    Probabilities are read from the .npz of the same folder, for rules that look at them; they are not copied, because
    they would contradict the new label maps.
    """
    given = PostprocessOptions(**dict(options, predictions=predictions, out=out))
    rule_set = collect_rules(given.rules, given.rule, given.model, given.scheme)
    if given.save is not None:  # what is wrong here is said before the work
        if given.model is None:
            raise UserError(f"--save {given.save} needs -m, the folder beside which the rules are saved")
        rules_file(given.model, given.save)
    changes = apply_rules(given.predictions, given.out, rule_set, given.images, given.overwrite, given.processes)
    if given.save is None or given.model is None:
        return changes
    return replace(changes, saved=save_rules(rule_set, given.model, given.save))


def apply_rules(
    predictions: Path,
    out: Path,
    rule_set: RuleSet,
    images: Path | None = None,
    overwrite: bool = False,
    processes: int | None = None,
) -> Changes:
    """Apply a rule set to every label map of a folder; `postprocess` for rules that were read already."""
    (folder,) = open_folders([predictions], "needed" if rule_set.needs_probabilities else "ignored")
    folder = with_images_for(rule_set, folder, images)
    refuse(problems_with_heads([folder], rule_set.scheme.head), "postprocess")
    with staged(out, list(folder.cases), [predictions], folder.ending, overwrite) as stage:
        work = partial(_write_case, folder, rule_set, stage)
        voxels = for_each_case(work, folder.cases, "Postprocess", processes)
        write_text(stage / "postprocessing_rules.json", rule_set.to_json())
        for name in ("dataset.json", PLANS):
            if (predictions / name).is_file():
                shutil.copyfile(predictions / name, stage / name)
    return Changes(rule_set, voxels)


def with_images_for(rule_set: RuleSet, folder: PredictionFolder, images: Path | None) -> PredictionFolder:
    """The folder with the images that the rules look at; as it is where none does."""
    if not rule_set.needs_images:
        return folder
    if images is None:
        rules = ", ".join(rule_set.needing_images)
        raise UserError(f"{rules} needs the images: give --images with CASE_0000{folder.ending} and so on")
    folder = folder.with_images(images, "postprocess")
    _channel_of_t1ce(folder)  # an error comes before the work
    return folder


def read_rule_input(folder: PredictionFolder, rule_set: RuleSet, case: str) -> RuleInput:
    """All that the rules need of one case; a label that their scheme lacks is an error."""
    labels, grid, probabilities = folder.read(case)
    require_labels(labels, rule_set.scheme.names, folder.cases[case])
    details: dict[str, Any] = {}
    if rule_set.needs_images:
        details["images"] = folder.read_images(case)
        details["t1ce"] = _channel_of_t1ce(folder)
    if probabilities is not None and folder.head:
        target = rule_set.scheme.head
        converted = convert_head(probabilities, folder.head, target)
        details["probabilities"] = dict(zip(target.names, converted, strict=True))
    return RuleInput(labels, grid.voxel_volume_mm3, scheme=rule_set.scheme, **details)


def _channel_of_t1ce(folder: PredictionFolder) -> int:
    number = folder.description.channel("T1ce") if folder.description else SEQUENCES.index("T1ce")
    if number >= (channels := len(next(iter(folder.images.values())))):
        raise UserError(f"T1ce is channel {number} of {folder.path}, but its images have {channels} channels")
    return number


def _write_case(folder: PredictionFolder, rule_set: RuleSet, stage: Path, case: str) -> list[int]:
    labels, changed = rule_set.apply(read_rule_input(folder, rule_set, case))
    write_label_map(stage / f"{case}{folder.ending}", labels, read_grid(folder.cases[case]))
    return changed
