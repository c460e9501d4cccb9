"""What goes into a report, and the files behind its pictures: images, label maps, uncertainty maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_brats_ext.brats import SEQUENCES
from nnunet_brats_ext.dataset_conversion.releases import LABEL, STACK
from nnunet_brats_ext.dataset_conversion.scan import scan
from nnunet_brats_ext.evaluation.evaluate import find_label_maps, numberings
from nnunet_brats_ext.evaluation.presets import find_preset
from nnunet_brats_ext.evaluation.report.overlays import CaseFiles
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json

SHOWN = ("FLAIR", "T1ce")  # of the sequences, where a case has them


@dataclass(frozen=True)
class Options:
    """What goes into a report beside the results.

    names: of the models; default: where the paths of their results differ. predictions: folders in the order of the
    results, or NAME=FOLDER. images: as nnU-Net names them, or a BraTS release; which, where its names do not tell, says
    `release`. cases: how many to draw, chosen by `metric` over `region`, or over all regions.
    """

    names: Sequence[str] | None = None
    title: str = "Segmentation report"
    reference: Path | None = None
    predictions: Sequence[str] = ()
    images: Path | None = None
    release: str | None = None
    models: Sequence[Path] = ()
    uncertainty: Path | None = None
    cases: int = 3
    metric: str = "dice"
    region: str | None = None
    processes: int | None = None


def find_case_files(
    cases: Sequence[str],
    results: Mapping[str, Mapping[str, Any]],
    regions: Sequence[str],
    options: Options,
    notes: list[str],
) -> dict[str, CaseFiles]:
    """Case -> its files, for the cases that have images and a label map; a sentence for all else goes to the notes."""
    assert options.images is not None, "without images there is nothing to draw"
    images = find_images(options.images, options.release)
    references = find_label_maps(options.reference) if options.reference else {}
    folders = match_predictions(options.predictions, list(results))
    predictions = {name: find_label_maps(folder) for name, folder in folders.items()}
    if not options.reference:
        notes.append("No reference was given: pictures show predictions alone.")
    if absent := [name for name in results if name not in folders]:
        notes.append(f"No predictions were given for {', '.join(absent)}: they are not drawn.")
    if len(different := {one["labels"] for one in results.values()}) > 1:
        raise UserError(
            f"the label maps are numbered in different ways ({', '.join(sorted(different))}): draw them apart"
        )
    first = next(iter(results.values()))
    preset = find_preset(first["preset"], first["cohort"])
    to_trained = numberings(first["labels"], preset)
    files = {}
    for case in cases:
        found = {name: maps[case] for name, maps in predictions.items() if case in maps}
        doubts = sorted(options.uncertainty.glob(f"{case}_unc_*.nii.gz")) if options.uncertainty else []
        for what, missing in (
            *((f"prediction of {name}", name not in found) for name in predictions),
            ("reference", options.reference and case not in references),
            ("uncertainty map", options.uncertainty and not doubts),
        ):
            if missing:
                notes.append(f"{case} has no {what}.")
        if case not in images:
            notes.append(f"{case} is not drawn: {options.images} has no images of it.")
        elif case not in references and not found:
            notes.append(f"{case} is not drawn: there is neither a reference nor a prediction of it.")
        else:
            files[case] = CaseFiles(
                case,
                {region: preset.regions[region] for region in regions},
                to_trained,
                images[case],
                references.get(case),
                found,
                tuple(doubts),
            )
    return files


def find_images(folder: Path, release: str | None = None) -> dict[str, dict[str, Path]]:
    """Case -> sequence -> file, of the sequences to show, from nnU-Net's images (CASE_0000...) or a BraTS release."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of images")
    dataset = folder.parent / "dataset.json"
    settings = read_json(dataset) if dataset.is_file() else {}
    ending = settings.get("file_ending", ".nii.gz")
    cases: dict[str, dict[str, Path]] = {}
    if any(folder.glob(f"*_0000{ending}")):
        names = settings.get("channel_names") or {str(i): name for i, name in enumerate(SEQUENCES)}
        for number, name in names.items():
            suffix = f"_{int(number):04d}{ending}"
            for path in folder.glob(f"[!.]*{suffix}"):
                cases.setdefault(path.name.removesuffix(suffix), {})[name] = path
    else:
        for case in scan(folder, release).cases:
            files = {role: path for role, path in case.files.items() if role not in (LABEL, STACK)}
            if files:
                cases[case.name] = files
    if not cases:
        raise UserError(f"{folder} keeps its sequences in 4-D files; convert it, and give imagesTr or imagesTs")
    return {case: _to_show(files) for case, files in cases.items()}


def _to_show(files: Mapping[str, Path]) -> dict[str, Path]:
    wanted = [name for name in SHOWN if name in files] or list(files)[: len(SHOWN)]
    return {name: files[name] for name in wanted}


def match_predictions(given: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    """Model -> folder, from NAME=FOLDER, or from folders in the order of the models."""
    pairs = {name: Path(folder) for name, equals, folder in (text.partition("=") for text in given) if equals}
    if pairs and len(pairs) < len(given):
        raise UserError("give all predictions as NAME=FOLDER, each name once, or all as FOLDER")
    if unknown := [name for name in pairs if name not in names]:
        raise UserError(f"--predictions names {', '.join(unknown)}, but the results are {', '.join(names)}")
    if not pairs and given and len(given) != len(names):
        raise UserError(
            f"{len(given)} folders of predictions for {len(names)} results; give NAME=FOLDER to leave some out"
        )
    return pairs or dict(zip(names, map(Path, given), strict=False))
