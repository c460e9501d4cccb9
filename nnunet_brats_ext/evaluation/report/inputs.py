"""What goes into a report, and the files behind its pictures: images, label maps, uncertainty maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_brats_ext.brats import SEQUENCES
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, STACK
from nnunet_brats_ext.dataset_conversion.scan import scan
from nnunet_brats_ext.evaluation.label_maps import find_label_maps
from nnunet_brats_ext.evaluation.numbering import Numberings
from nnunet_brats_ext.evaluation.presets import find_preset
from nnunet_brats_ext.evaluation.report.overlays import CaseFiles, LabelFile
from nnunet_brats_ext.evaluation.report.published import papers_with_results
from nnunet_brats_ext.evaluation.report.tables import ModelResults
from nnunet_brats_ext.evaluation.results import Results, read_models
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError, did_you_mean
from nnunet_brats_ext.storage.options import Options, argument, option
from nnunet_brats_ext.storage.shared_options import processes_option

SHOWN = ("FLAIR", "T1ce")  # of the sequences, where a case has them


@dataclass(frozen=True)
class ReportOptions(Options):
    """What `nnunet_brats report` can be asked for."""

    sources: tuple[Path, ...] = argument(
        "results.json files of `evaluate`, of one or several models", metavar="RESULTS"
    )
    out: Path = option("-o", writes="file", default=Path("report.html"), help="the page to write")
    names: tuple[str, ...] | None = option(
        default=None, help="what to call the models; default: where their paths differ"
    )
    title: str = option(default="Segmentation report", help="of the page")
    reference: Path | None = option(
        default=None, metavar="DIR", help="reference label maps, to draw; default: those that the results name"
    )
    predictions: tuple[str, ...] = option(
        default=(),
        metavar="[NAME=]DIR",
        help="predicted label maps, to draw: in the order of the results, or with the model's name; default: those "
        "that the results name",
    )
    images: Path | None = option(
        default=None,
        metavar="DIR",
        help="imagesTr or imagesTs, or a BraTS release; without them label maps alone are drawn",
    )
    sequences: tuple[str, ...] = option(
        default=(), metavar="SEQUENCE", help="of the images to draw, such as T1ce T1 T2 FLAIR; default: FLAIR T1ce"
    )
    release: str | None = option(
        default=None, metavar="NAME", help="which release the images are, where their names do not say"
    )
    cases: int = option(default=3, metavar="N", at_least=0, help="to draw, from best to worst")
    metric: str = option(default="dice", help="by which they are chosen")
    region: str | None = option(default=None, help="by whose score; default: the mean over regions")
    models: tuple[Path, ...] = option(
        default=(), metavar="DIR", help="model folders of nnU-Net: training curves, and what their papers published"
    )
    paper: tuple[str, ...] = option(
        default=(), choices=papers_with_results, help="papers whose published scores are set beside these"
    )
    spreads: tuple[str, ...] = option(
        default=(),
        metavar="NAME=RESULTS",
        help="results of several models each, for published rows that are over models, such as a standard deviation",
    )
    uncertainty: Path | None = option(default=None, metavar="DIR", help="what `nnunet_brats uncertainty` wrote")
    figures: Path | None = option(
        default=None, metavar="DIR", writes="folder", help="write every chart as PDF and PNG into this folder, too"
    )
    filled: bool = option(
        default=False, help="in the figures of cases, label maps in colour (ED green, NCR blue, ET red), not outlined"
    )
    processes: int | None = processes_option()


def find_case_files(
    failing: Mapping[str, str],
    results: ModelResults,
    regions: Sequence[str],
    options: ReportOptions,
    notes: list[str],
) -> dict[str, CaseFiles]:
    """Case -> its files, for the cases that have a label map; a sentence for all else goes to the notes.

    failing: case -> the region to look at. Label maps are those that the options name, else those that the results do.
    """
    images = find_sequence_files(options.images, options.release, options.sequences) if options.images else {}
    references, predictions = _label_maps(results, options, notes)
    first = next(iter(results.values()))
    preset = find_preset(first["preset"], first["cohort"])
    files = {}
    for case in failing:
        found = {name: maps[case] for name, maps in predictions.items() if case in maps}
        uncertain = sorted(options.uncertainty.glob(f"{case}_unc_*.nii.gz")) if options.uncertainty else []
        for what, missing in (
            *((f"prediction of {name}", name not in found) for name in predictions),
            ("reference", references and case not in references),
            ("uncertainty map", options.uncertainty and not uncertain),
        ):
            if missing:
                notes.append(f"{case} has no {what}.")
        if options.images and case not in images:
            notes.append(f"{case} is not drawn: {options.images} has no images of it.")
        elif case not in references and not found:
            notes.append(f"{case} is not drawn: there is neither a reference nor a prediction of it.")
        else:
            files[case] = CaseFiles(
                case,
                {region: preset.regions[region] for region in regions},
                images.get(case, {}),
                references.get(case),
                found,
                tuple(uncertain),
                preset.scheme,
                failing[case],
            )
    return files


Maps = dict[str, LabelFile]  # case -> file


def _label_maps(results: ModelResults, options: ReportOptions, notes: list[str]) -> tuple[Maps, dict[str, Maps]]:
    """The references, and the predictions of each model, read and recognised as the results say."""
    scored: Maps = {}
    for one in results.values():
        scored = {**_scored_files(one, 0), **scored}
    if options.reference:
        references = _given(options.reference, next(iter(results.values())), scored, 0)
    else:
        references = _there(scored)
    folders = match_predictions(options.predictions, list(results))
    predictions = {}
    for name, one in results.items():
        files = _scored_files(one, 1)
        if name in folders:
            predictions[name] = _given(folders[name], one, files, 1)
        elif not options.predictions and (found := _there(files)):
            predictions[name] = found
    if not references:
        gone = scored and f"The references are no longer in {next(iter(results.values()))['references']['folder']}"
        notes.append(f"{gone or 'No reference was given'}: pictures show predictions alone.")
    if absent := [name for name in results if name not in predictions]:
        notes.append(f"No predictions were given for {', '.join(absent)}: they are not drawn.")
    return references, predictions


def _scored_files(one: Results, side: int) -> Maps:
    """The references (0) or predictions (1) that results name. A reference is known by what it shows."""
    how = _as_scored(one, side)
    files = one[("references", "predictions")[side]]["files"].items()
    return {
        case: LabelFile(Path(file.get("path", "")), *how, file.get("sha256", ""), file.get("tumour", ""))
        for case, file in files
    }


def _as_scored(one: Results, side: int) -> tuple[Mapping[int, int], tuple[str, ...]]:
    """How the files of results are numbered, and what their channels are."""
    preset = find_preset(one["preset"], one["cohort"])
    return Numberings.parse(one["labels"]).to_trained(preset)[side], tuple(one["channels"])


def _given(folder: Path, one: Results, scored: Maps, side: int) -> Maps:
    """The label maps of a folder, which must show what was scored; a reference may be another file of the same."""
    unknown = LabelFile(Path(), *_as_scored(one, side))
    maps = {}
    for case, path in find_label_maps(folder).files.items():
        known = scored.get(case, unknown)
        maps[case] = known._replace(path=path, sha256="" if side == 0 else known.sha256)
    return maps


def _there(files: Maps) -> Maps:
    """Those of the files that results name which are still where they were."""
    return {case: file for case, file in files.items() if file.path.is_file()}


def find_sequence_files(
    folder: Path, release: str | None = None, wanted: Sequence[str] = ()
) -> dict[str, dict[str, Path]]:
    """Case -> sequence -> file, of the sequences to show, from nnU-Net's images (CASE_0000...) or a BraTS release.

    The dataset.json above nnU-Net's images says what each channel shows; without it they are T1, T1ce, T2, FLAIR.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of images; name one that exists")
    description = DatasetDescription.find(folder.parent)
    ending: str = ".nii.gz"
    sequences: tuple[str, ...] = SEQUENCES
    if description and description.is_of_nnunet:
        ending, sequences = description.ending, description.sequences
    cases: dict[str, dict[str, Path]] = {}
    if any(folder.glob(f"*_0000{ending}")):
        for channel, sequence in enumerate(sequences):
            suffix = f"_{channel:04d}{ending}"
            for path in folder.glob(f"[!.]*{suffix}"):
                cases.setdefault(path.name.removesuffix(suffix), {})[sequence] = path
    else:
        for case in scan(folder, release).cases:
            files = {role: path for role, path in case.files.items() if role not in (LABEL, STACK)}
            if files:
                cases[case.name] = files
    if not cases:
        raise UserError(f"{folder} keeps its sequences in 4-D files; convert it, and give imagesTr or imagesTs")
    there = list(dict.fromkeys(name for files in cases.values() for name in files))
    if unknown := [name for name in wanted if name not in there]:
        raise UserError(f"--sequences {unknown[0]}: {folder} has {', '.join(there)}{did_you_mean(unknown[0], there)}")
    return {case: _to_show(files, wanted or SHOWN) for case, files in cases.items()}


def _to_show(files: Mapping[str, Path], wanted: Sequence[str]) -> dict[str, Path]:
    names = [name for name in wanted if name in files] or list(files)[: len(SHOWN)]
    return {name: files[name] for name in names}


def find_spreads(given: Sequence[str]) -> dict[str, ModelResults]:
    """Name -> the models of a results.json, from NAME=RESULTS."""
    pairs = [(name, path) for name, _, path in (text.partition("=") for text in given)]
    if wrong := [text for text, (name, path) in zip(given, pairs, strict=True) if not (name and path)]:
        raise UserError(f"--spreads {wrong[0]}: expected NAME=RESULTS, such as stage1_each=results/stage1_each.json")
    return {name: read_models(Path(path)) for name, path in pairs}


def match_predictions(given: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    """Model -> folder, from NAME=FOLDER, or from folders in the order of the models."""
    pairs = {name: Path(folder) for name, equals, folder in (text.partition("=") for text in given) if equals}
    if pairs and len(pairs) < len(given):
        raise UserError(f"--predictions {' '.join(given)}: give all as NAME=FOLDER, each name once, or all as FOLDER")
    if unknown := [name for name in pairs if name not in names]:
        raise UserError(f"--predictions names {', '.join(unknown)}, but the results are {', '.join(names)}")
    if not pairs and given and len(given) != len(names):
        raise UserError(
            f"{len(given)} folders of predictions for {len(names)} results; give NAME=FOLDER to leave some out"
        )
    return pairs or dict(zip(names, map(Path, given), strict=False))
