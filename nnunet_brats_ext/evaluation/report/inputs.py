"""The files behind a report's pictures: images, label maps and uncertainty maps of the cases to draw."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_brats_ext.brats import LABEL_SCHEMES, SEQUENCES
from nnunet_brats_ext.dataset_conversion.releases import LABEL, STACK
from nnunet_brats_ext.dataset_conversion.scan import scan
from nnunet_brats_ext.evaluation.evaluate import find_label_maps
from nnunet_brats_ext.evaluation.presets import find_preset
from nnunet_brats_ext.evaluation.report.overlays import CaseFiles
from nnunet_brats_ext.prediction_folders.runs import read_json

SHOWN = ("FLAIR", "T1ce")  # of the sequences, where a case has them


def find_case_files(
    cases: Sequence[str],
    results: Mapping[str, Mapping[str, Any]],
    images: Path,
    reference: Path | None,
    predictions: Mapping[str, Path],
    uncertainty: Path | None,
    notes: list[str],
) -> dict[str, CaseFiles]:
    """Case -> its files, for the cases that have images and a label map; a sentence for all else goes to the notes.

    results: model -> content of its results.json. predictions: model -> folder.
    """
    found_images = find_images(images)
    label_maps = {name: find_label_maps(folder) for name, folder in predictions.items()}
    references = find_label_maps(reference) if reference else {}
    if not reference:
        notes.append("No reference was given: pictures show predictions alone.")
    if absent := [name for name in results if name not in predictions]:
        notes.append(f"No predictions were given for {', '.join(absent)}: they are not drawn.")
    first = next(iter(results.values()))
    preset = find_preset(first["preset"], first["cohort"])
    regions = {region: preset.regions[region] for region in first["summary"]}
    to_trained = numbering(first.get("labels", "trained"), preset.scheme)
    files = {}
    for case in cases:
        predicted = {name: maps[case] for name, maps in label_maps.items() if case in maps}
        lacking = [str(predictions[name]) for name in predictions if name not in predicted]
        lacking += [str(reference)] if reference and case not in references else []
        if lacking:
            notes.append(f"{case} is missing in {', '.join(lacking)}.")
        if case not in found_images:
            notes.append(f"{case} is not drawn: {images} has no images of it.")
        elif case not in references and not predicted:
            notes.append(f"{case} is not drawn: there is neither a reference nor a prediction of it.")
        else:
            doubts = tuple(sorted(uncertainty.glob(f"{case}_unc_*.nii.gz"))) if uncertainty else ()
            if uncertainty and not doubts:
                notes.append(f"{case} has no uncertainty maps in {uncertainty}.")
            files[case] = CaseFiles(
                case, regions, to_trained, found_images[case], references.get(case), predicted, doubts
            )
    return files


def find_images(folder: Path) -> dict[str, dict[str, Path]]:
    """Case -> sequence -> file, of the sequences to show, from nnU-Net's images (CASE_0000...) or a BraTS release."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder of images")
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
        for case in scan(folder).cases:
            files = {role: path for role, path in case.files.items() if role not in (LABEL, STACK)}
            if files:
                cases[case.name] = files
    if not cases:
        raise ValueError(f"{folder} keeps its sequences in 4-D files; convert it, and give imagesTr or imagesTs")
    return {case: _to_show(files) for case, files in cases.items()}


def _to_show(files: Mapping[str, Path]) -> dict[str, Path]:
    wanted = [name for name in SHOWN if name in files] or list(files)[: len(SHOWN)]
    return {name: files[name] for name in wanted}


def match_predictions(given: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    """Model -> folder, from NAME=FOLDER, or from folders in the order of the models."""
    pairs = {name: Path(folder) for name, equals, folder in (text.partition("=") for text in given) if equals}
    if pairs and len(pairs) < len(given):
        raise ValueError("give all predictions as NAME=FOLDER, each name once, or all as FOLDER")
    if unknown := [name for name in pairs if name not in names]:
        raise ValueError(f"--predictions names {', '.join(unknown)}, but the results are {', '.join(names)}")
    if not pairs and given and len(given) != len(names):
        raise ValueError(
            f"{len(given)} folders of predictions for {len(names)} results; give NAME=FOLDER to leave some out"
        )
    return pairs or dict(zip(names, map(Path, given), strict=False))


def numbering(labels: str, scheme: str) -> Mapping[int, int]:
    """Value in the files -> value as trained, for the numbering that `evaluate` noted in its results."""
    if labels == "trained":
        return {value: value for value in (0, *LABEL_SCHEMES[scheme].names)}
    return LABEL_SCHEMES[scheme if labels == "released" else labels].released
