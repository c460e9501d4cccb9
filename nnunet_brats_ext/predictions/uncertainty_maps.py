"""Prediction folders in, a folder of uncertainty maps out, and with a reference their scores."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_brats_ext.brats import LABEL_SCHEMES, LabelScheme, to_regions
from nnunet_brats_ext.predictions.folders import (
    PredictionFolder,
    find_cases,
    open_folders,
    problems_between,
    problems_with_heads,
)
from nnunet_brats_ext.predictions.heads import convert_head, paint
from nnunet_brats_ext.predictions.uncertainty import (
    MEASURES,
    filtered_curves,
    mean_and_uncertainty,
    mean_over_cases,
    qu_brats_score,
    to_percent,
)
from nnunet_brats_ext.storage.errors import UserError, refuse
from nnunet_brats_ext.storage.images import read_grid, read_label_map, require_labels, write_image
from nnunet_brats_ext.storage.options import Options, option
from nnunet_brats_ext.storage.output import staged, write_text
from nnunet_brats_ext.storage.parallel import for_each_case
from nnunet_brats_ext.storage.shared_options import overwrite_option, processes_option

SUFFIXES = {"WT": "whole", "TC": "core", "ET": "enhance"}  # QU-BraTS's names of files; other regions keep theirs


@dataclass(frozen=True)
class UncertaintyOptions(Options):
    """Options of `map_uncertainty`."""

    inputs: tuple[Path, ...] = option("-i", help="prediction folders, of members or folds")
    out: Path = option("-o", writes="folder", help="output folder")
    measure: str = option(
        default="entropy", choices=MEASURES, help="entropy of the mean, or disagreement of the inputs"
    )
    reference: Path | None = option(default=None, help="reference label maps as trained, to score the maps")
    images: Path | None = option(
        default=None, help="with --reference: images as nnU-Net names them; true negatives count in the brain"
    )
    scheme: str = option(default="glioma_2017", choices=LABEL_SCHEMES, metavar="SCHEME", help="whose regions")
    overwrite: bool = overwrite_option()
    processes: int | None = processes_option()


def map_uncertainty(inputs: Sequence[Path | str], out: Path | str, **options: Any) -> dict[str, Any]:
    """Write one map per case and region, CASE_unc_whole.nii.gz and so on; options as in `UncertaintyOptions`.

    Probabilities are used where every folder has them; of label maps alone, the share of votes stands for the
    probability. With a reference also uncertainty.json is written. Gives its content: what the maps were made from,
    and with a reference the scores per case and their means, `summary`.
    """
    given = UncertaintyOptions(**dict(options, inputs=inputs, out=out))
    if given.images and not given.reference:
        raise UserError(f"--images {given.images}: only the scores need them, and those need --reference")
    folders = open_folders(given.inputs, "if complete")
    if given.measure == "mutual-information" and len(folders) < 2:
        raise UserError("--measure mutual-information is disagreement: it takes two folders or more")
    scheme = LABEL_SCHEMES[given.scheme]
    refuse(problems_with_heads(folders, scheme.head), f"bring to the regions of {given.scheme}")
    first = folders[0]
    references = _find_references(first, given.reference) if given.reference else {}
    if given.images:
        folders[0] = first.with_images(given.images, "find the brain")
    content: dict[str, Any] = {
        "measure": given.measure,
        "members": [str(folder.path) for folder in folders],
        "from": "probabilities" if first.head else "votes",
    }
    names = [f"{case}_unc_{_suffix(region)}" for case in first.cases for region in scheme.regions]
    with staged(given.out, names, given.inputs, overwrite=given.overwrite) as stage:
        work = partial(_write_case, folders, scheme, given.measure, references, stage)
        results = for_each_case(work, first.cases, "Uncertainty", given.processes)
        if references:
            content["true_negatives"] = "within the brain" if given.images else "everywhere"
            content |= {"summary": mean_over_cases(results), "cases": results}
            write_text(stage / "uncertainty.json", json.dumps(content) + "\n")  # long curves: no line per number
    return content


def _find_references(folder: PredictionFolder, path: Path) -> dict[str, Path]:
    """Case -> reference label map, on the grid of its prediction; the reference may hold more cases."""
    found = {case: file for case, file in find_cases(path, folder.ending).items() if case in folder.cases}
    refuse(problems_between({str(folder.path): folder.cases, str(path): found}), "score the uncertainty")
    return found


def _suffix(region: str) -> str:
    return SUFFIXES.get(region, region)


def _write_case(
    folders: Sequence[PredictionFolder],
    scheme: LabelScheme,
    measure: str,
    references: Mapping[str, Path],
    stage: Path,
    case: str,
) -> dict[str, Any]:
    first, head = folders[0], scheme.head
    mean, uncertainty = mean_and_uncertainty((_region_probabilities(one, scheme, case) for one in folders), measure)
    maps = to_percent(uncertainty)
    grid = read_grid(first.cases[case])
    for region, values in zip(head.names, maps, strict=True):
        write_image(stage / f"{case}_unc_{_suffix(region)}.nii.gz", values, grid)
    if case not in references:
        return {}
    reference, _ = read_label_map(references[case])
    require_labels(reference, scheme.names, references[case])
    expected = to_regions(reference, scheme.regions)
    predicted = to_regions(paint(mean, head), scheme.regions)
    brain = (first.read_images(case) != 0).any(0) if first.images else None
    results = {}
    for region, values in zip(head.names, maps, strict=True):
        curves = filtered_curves(expected[region], predicted[region], values, brain)
        results[region] = {"scores": qu_brats_score(curves), "curves": curves}
    return results


def _region_probabilities(folder: PredictionFolder, scheme: LabelScheme, case: str) -> np.ndarray:
    labels, _, probabilities = folder.read(case)
    if probabilities is not None and folder.head:
        return convert_head(probabilities, folder.head, scheme.head)
    require_labels(labels, scheme.names, folder.cases[case])
    return np.stack(list(to_regions(labels, scheme.regions).values())).astype(np.float32)
