"""Which label maps a folder holds, of which cases, and whether a dataset.json says how they are numbered."""

import csv
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from nnunet_brats_ext.brats import LABEL_NAMES, LABEL_SCHEMES
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS
from nnunet_brats_ext.dataset_conversion.scan import scan
from nnunet_brats_ext.evaluation.numbering import TRAINED, Numberings
from nnunet_brats_ext.evaluation.numbering_checks import infer_numbering
from nnunet_brats_ext.evaluation.presets import Preset
from nnunet_brats_ext.evaluation.reading import holds_channels
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import Notice, UserError, shorten
from nnunet_brats_ext.storage.images import ENDINGS, ending
from nnunet_brats_ext.storage.nnunet import fold_folders, read_splits

_RELEASE_SUFFIX = re.compile(r"[-_.](seg|gtv)$", re.IGNORECASE)  # of the label files of a release
_SERVER_ID = re.compile(r"\d{5}-\d{3}")  # by which the challenge's server of 2026 knows a case
CASE = "{case}"
TABLE_COLUMNS = ("reference", "prediction")


@dataclass(frozen=True)
class LabelMaps:
    """The label maps in a folder or, of a release, in its case folders; or one file. files: case -> label map.

    folds: case -> fold, of what a trained model predicted for the cases that each of its folds held out.
    """

    source: Path
    files: Mapping[str, Path]
    folds: Mapping[str, str] = field(default_factory=dict)

    @property
    def first(self) -> Path:
        return next(iter(self.files.values()))

    @property
    def numbered_as_trained(self) -> bool:
        """Whether a dataset.json in the folder, or in one of the two above it, has regions that `convert` writes.

        Files that are named as in a release are not, wherever they lie.
        """
        if any(_RELEASE_SUFFIX.search(_stem(path)) for path in self.files.values()):
            return False
        folders = (self.source, *list(self.source.absolute().parents)[:2])
        return any(_has_our_regions(folder) for folder in folders)


# ---- finding --------------------------------------------------------------------------------------------------------


def find_label_maps(source: Path, pattern: str | None = None) -> LabelMaps:
    """The label maps in a folder, else those of the case folders below it; or the one file itself.

    Of a trained model, or of one of its folds, those of `fold_N/validation`. pattern: names of files with `{case}` in
    them, such as `{case}_pred.nii.gz` or `{case}/pred.nii.gz`; `*` stands for anything.
    """
    if not source.exists():
        raise UserError(f"there is no {source}; give a label map, or a folder of them, that exists")
    if source.is_file():
        return LabelMaps(source, {_case_of(source): source})
    if pattern:
        return LabelMaps(source, _unique(_by_pattern(source, pattern)))
    if held_out := _validation_folders(source):
        maps = {fold: _unique(_named(_label_maps_in(folder))) for fold, folder in held_out.items()}
        cases = _unique((case, path) for found in maps.values() for case, path in found.items())
        return LabelMaps(source, cases, {case: fold for fold, found in maps.items() for case in found})
    if files := _label_maps_in(source):
        cases = _unique(_named(files))
    else:
        cases = _label_maps_of_release(source) or _in_case_folders(source)
    if not cases:
        raise UserError(f"{source} holds no label maps ({', '.join(ENDINGS)}); choose the folder that does")
    return LabelMaps(source, cases)


def with_folds(maps: LabelMaps, splits: Path) -> LabelMaps:
    """The same label maps, each of the fold whose validation case it is; a case of none is an error."""
    folds = {case: str(fold) for fold, split in enumerate(read_splits(splits)) for case in split["val"]}
    if unknown := [case for case in maps.files if case not in folds]:
        raise UserError(f"{splits} holds out none of {shorten(unknown)}, predicted in {maps.source}")
    return replace(maps, folds={case: folds[case] for case in maps.files})


def _label_maps_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_label_map(path))


def _named(files: Iterable[Path]) -> Iterable[tuple[str, Path]]:
    return ((_case_of(path), path) for path in files)


def _unique(named: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    cases: dict[str, Path] = {}
    for case, path in named:
        if case in cases:
            raise UserError(f"two label maps of case {case}: {cases[case]} and {path}; move one of them away")
        cases[case] = path
    return cases


def _validation_folders(source: Path) -> dict[str, Path]:
    """Fold -> the folder of its held-out predictions, of a model or of one fold; of fold `all` only if it is alone."""
    place = source.absolute()
    fold = place.parent if place.name == "validation" else place
    folds = [fold] if fold.name.startswith("fold_") else fold_folders(source).values()
    found = {fold.name.removeprefix("fold_"): fold / "validation" for fold in folds if (fold / "validation").is_dir()}
    return {fold: folder for fold, folder in found.items() if fold != "all" or len(found) == 1}


def _label_maps_of_release(source: Path) -> dict[str, Path]:
    """Case -> label map of a BraTS release, or nothing if it is not one, or not all of it."""
    try:
        release = scan(source)
    except (OSError, UserError):
        return {}
    unclear = any(case.problems for case in release.cases)
    if unclear or any(_RELEASE_SUFFIX.search(_stem(path)) for path in release.unrecognised):
        return {}
    return {case.name: case.files[LABEL] for case in release.cases if case.labelled}


def _in_case_folders(source: Path) -> dict[str, Path]:
    """Files that are named as a release's label maps, wherever they lie; else the one label map of each folder."""
    inside = sorted(path for path in source.rglob("*") if _is_label_map(path))
    if released := [path for path in inside if _RELEASE_SUFFIX.search(_stem(path))]:
        return _unique(_named(released))
    folders: dict[Path, list[Path]] = {}
    for path in inside:
        folders.setdefault(path.parent, []).append(path)
    cases = {}
    for folder, files in folders.items():
        called = [path for path in files if re.split(r"[-_.]", _stem(path).lower())[-1] in LABEL_NAMES]
        if len(chosen := called or files) != 1:
            raise UserError(
                f"{folder} holds {len(files)} images ({shorten([path.name for path in files], 3)}); say which of them "
                "is the label map with --pattern or --reference-pattern, such as '{case}/" + files[0].name + "'"
            )
        cases[folder.name] = chosen[0]
    return cases


def _by_pattern(source: Path, pattern: str) -> list[tuple[str, Path]]:
    """Case and file of every label map whose path in the folder is as the pattern has it."""
    if CASE not in pattern:
        raise UserError(f"pattern {pattern!r}: write {CASE} where the case's name stands, such as {CASE}_pred.nii.gz")
    parts = re.split(r"(\{case\}|\*)", pattern)
    seen: list[str] = []
    for number, part in enumerate(parts):
        first = part == CASE and CASE not in seen
        seen.append(part)
        named = "(?P<case>[^/]+)" if first else "(?P=case)"
        parts[number] = named if part == CASE else "[^/]*" if part == "*" else re.escape(part)
    whole = re.compile("".join(parts) + ("" if ending(Path(pattern)) else "(?:" + "|".join(ENDINGS) + ")"))
    files = [path for path in sorted(source.glob("/".join("*" * (pattern.count("/") + 1)))) if _is_label_map(path)]
    found = [(match["case"], path) for path in files if (match := whole.fullmatch(str(path.relative_to(source))))]
    if not found:
        example = f", but {files[0].relative_to(source)}" if files else ""
        raise UserError(f"{source} holds no label map that is named as in the pattern {pattern!r}{example}")
    return found


# ---- matching -------------------------------------------------------------------------------------------------------


def match_cases(references: LabelMaps, predictions: LabelMaps, partial: bool) -> dict[str, tuple[Path, Path]]:
    """Case -> reference and prediction; two single files are a pair whatever their names.

    partial: of the cases that both hold; otherwise a case that only one holds is an error, except against one single
    file or what the folds of a model held out. Where names differ, those of BraTS's releases inside them count.
    """
    if references.source.is_file() and predictions.source.is_file():
        (prediction,) = predictions.files.values()
        return {case: (path, prediction) for case, path in references.files.items()}
    names, there = {case: case for case in references.files}, predictions.files
    if set(names).isdisjoint(there):
        names, others = _release_names(names), _release_names(there)
        there = {others[case]: path for case, path in there.items()}
    both = {case: (references.files[case], there[name]) for case, name in names.items() if name in there}
    if not both:
        raise UserError(
            f"{references.source} and {predictions.source} share no case; they hold, for example, "
            f"{next(iter(references.files))} and {next(iter(predictions.files))}",
            _suggest_pattern(references, predictions),
        )
    optional = partial or references.source.is_file() or predictions.source.is_file()
    problems = [
        f"{len(cases)} cases in {first.source} are missing in {second.source}: {shorten(cases)}"
        for first, second, needed in (
            (references, predictions, not optional and not predictions.folds),
            (predictions, references, not optional),
        )
        if needed and (cases := sorted(set(first.files) - _used(both, first)))
    ]
    if problems:
        raise UserError("\n  ".join(problems) + "\n  To score only the cases that both hold, add --partial.")
    return both


def _used(both: Mapping[str, tuple[Path, Path]], maps: LabelMaps) -> set[str]:
    paths = {path for pair in both.values() for path in pair}
    return {case for case, path in maps.files.items() if path in paths}


def read_table(path: Path, references: Path, predictions: Path) -> dict[str, tuple[Path, Path]]:
    """Case -> reference and prediction, from a CSV file with the columns `reference`, `prediction`, perhaps `case`.

    Paths in it start from the two folders. Without a column of cases, the name of the reference is the case.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--table {path} cannot be read: {error}") from error
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    rows = list(csv.DictReader(text.splitlines(), delimiter=separator))
    found = [name.strip() for name in first.split(separator)]
    if not rows or not set(TABLE_COLUMNS) <= set(found):
        raise UserError(f"--table {path} has the columns {', '.join(found)}; expected {', '.join(TABLE_COLUMNS)}, case")
    pairs: dict[str, tuple[Path, Path]] = {}
    for number, row in enumerate(rows, 2):
        given = {str(name).strip(): (value or "").strip() for name, value in row.items() if isinstance(value, str)}
        if not all(given.get(name) for name in TABLE_COLUMNS):
            raise UserError(f"--table {path}, line {number}: a reference and a prediction are needed")
        case = given.get("case") or _case_of(Path(given["reference"]))
        if case in pairs:
            raise UserError(f"--table {path}, line {number}: case {case} is there twice")
        pairs[case] = (references / given["reference"], predictions / given["prediction"])
    return pairs


def _release_names(cases: Iterable[str]) -> dict[str, str]:
    """Case -> the name of a release's case that it holds; the case itself where these are not unique."""
    found = {case: _release_name(case) for case in cases}
    return found if len({*found.values()}) == len(found) else {case: case for case in found}


def _release_name(case: str) -> str:
    found = [name for layout in LAYOUTS.values() if (name := layout.case_in(case))]
    longest = max(found, key=len, default="")
    server = _SERVER_ID.search(longest or case)
    return server[0] if server else longest or case


def _suggest_pattern(references: LabelMaps, predictions: LabelMaps) -> str:
    """The pattern by which every prediction would have a reference, as advice; else that a table may say it."""
    example, path = next(iter(predictions.files.items()))
    for case in sorted(references.files, key=len, reverse=True):
        before, inside, after = example.partition(case)
        named = [f"{before}{one}{after}" for one in references.files]
        if inside and set(predictions.files) <= set(named):
            return f"add --pattern '{before}{CASE}{after}{ending(path)}'"
    return "say how files are named with --pattern, such as '{case}_pred.nii.gz', or list the pairs in a --table"


# ---- numbering ------------------------------------------------------------------------------------------------------


def find_numberings(references: LabelMaps, predictions: LabelMaps, preset: Preset) -> Numberings:
    """What a dataset.json beside each of the two says, else what the values leave; otherwise an error says what to add.

    What the values left is a `Notice`. Files that hold channels have no numbering, and are read as trained.
    """
    found: list[str | None] = []
    for maps in (references, predictions):
        trained = maps.numbered_as_trained or holds_channels(maps.first)
        name = TRAINED if trained else infer_numbering(maps.files.values(), preset)
        if name not in (None, TRAINED):
            numbers = LABEL_SCHEMES[name].numbers
            message = f"{maps.source} is read as {name} ({numbers}), because of its values; --labels says otherwise"
            warnings.warn(message, Notice, stacklevel=2)
        found.append(name)
    silent = [maps.source for maps, name in zip((references, predictions), found, strict=True) if name is None]
    if silent:
        raise UserError(
            f"no dataset.json beside {' or '.join(map(str, silent))} says how the files number the labels; add "
            f"--labels trained (1 ED, 2 NCR, 3 ET), --labels released, or one of {', '.join(LABEL_SCHEMES)}; where "
            "references and predictions differ, both: --labels released,trained"
        )
    return Numberings(str(found[0]), str(found[1]))


def _has_our_regions(folder: Path) -> bool:
    """Whether the dataset.json of a folder has the regions of a label scheme; not so another program's."""
    try:
        description = DatasetDescription.find(folder)
        return description is not None and description.scheme_name is not None
    except UserError:
        return False


# ---- names ----------------------------------------------------------------------------------------------------------


def _is_label_map(path: Path) -> bool:
    return bool(_stem(path)) and not path.is_dir()


def _case_of(path: Path) -> str:
    return _RELEASE_SUFFIX.sub("", _stem(path))


def _stem(path: Path) -> str:
    """The name without its ending; nothing for hidden files and those that hold no image."""
    known = ending(path)
    return "" if not known or path.name.startswith(".") else path.name[: -len(known)]
