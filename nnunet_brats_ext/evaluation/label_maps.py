"""Which label maps a folder holds, of which cases, and whether a dataset.json says how they are numbered."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_brats_ext.brats import LABEL_SCHEMES
from nnunet_brats_ext.dataset_conversion.layouts import LABEL
from nnunet_brats_ext.dataset_conversion.scan import scan
from nnunet_brats_ext.evaluation.numbering import TRAINED, Numberings
from nnunet_brats_ext.evaluation.numbering_checks import infer_numbering
from nnunet_brats_ext.evaluation.presets import Preset
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import Notice, UserError, shorten
from nnunet_brats_ext.storage.images import ENDINGS

_RELEASE_SUFFIX = re.compile(r"[-_](seg|gtv)$", re.IGNORECASE)  # of the label files of a release


@dataclass(frozen=True)
class LabelMaps:
    """The label maps in a folder or, of a release, in its case folders; or one file. files: case -> label map."""

    source: Path
    files: Mapping[str, Path]

    @property
    def numbered_as_trained(self) -> bool:
        """Whether a dataset.json in the folder, or in one of the two above it, has regions that `convert` writes.

        Files that are named as in a release are not, wherever they lie.
        """
        if any(_RELEASE_SUFFIX.search(_stem(path)) for path in self.files.values()):
            return False
        folders = (self.source, *list(self.source.absolute().parents)[:2])
        return any(_has_our_regions(folder) for folder in folders)


def find_label_maps(source: Path) -> LabelMaps:
    """The label maps in a folder, else those of the case folders below it; or the one file itself."""
    if not source.exists():
        raise UserError(f"there is no {source}; give a label map, or a folder of them, that exists")
    files = [source] if source.is_file() else sorted(path for path in source.iterdir() if _is_label_map(path))
    if not files and (released := _label_maps_of_release(source)):
        return LabelMaps(source, released)
    if not files:
        inside = (path for path in source.rglob("*") if _is_label_map(path))
        files = sorted(path for path in inside if _RELEASE_SUFFIX.search(_stem(path)))
    cases: dict[str, Path] = {}
    for path in files:
        case = _RELEASE_SUFFIX.sub("", _stem(path))
        if case in cases:
            raise UserError(f"two label maps of case {case}: {cases[case]} and {path}; move one of them away")
        cases[case] = path
    if not cases:
        raise UserError(f"{source} holds no label maps ({', '.join(ENDINGS)}); choose the folder that does")
    return LabelMaps(source, cases)


def match_cases(references: LabelMaps, predictions: LabelMaps, partial: bool) -> dict[str, tuple[Path, Path]]:
    """Case -> reference and prediction; two single files are a pair whatever their names.

    partial: of the cases that both hold; otherwise a case that only one holds is an error.
    """
    if references.source.is_file() and predictions.source.is_file():
        (prediction,) = predictions.files.values()
        return {case: (path, prediction) for case, path in references.files.items()}
    both = {
        case: (path, predictions.files[case]) for case, path in references.files.items() if case in predictions.files
    }
    if not both:
        raise UserError(
            f"{references.source} and {predictions.source} share no case; they hold, for example, "
            f"{next(iter(references.files))} and {next(iter(predictions.files))}"
        )
    problems = [
        f"{len(cases)} cases in {here.source} are missing in {there.source}: {shorten(cases)}"
        for here, there in ((references, predictions), (predictions, references))
        if (cases := sorted(set(here.files) - set(there.files)))
    ]
    if problems and not partial:
        raise UserError("\n  ".join(problems) + "\n  To score only the cases that both hold, add --partial.")
    return both


def find_numberings(references: LabelMaps, predictions: LabelMaps, preset: Preset) -> Numberings:
    """What a dataset.json beside each of the two says, else what the values leave; otherwise an error says what to add.

    What the values left is a `Notice`.
    """
    found = [TRAINED if maps.numbered_as_trained else None for maps in (references, predictions)]
    for side, maps in enumerate((references, predictions)):
        if found[side] is None and (name := infer_numbering(maps.files.values(), preset)):
            found[side] = name
            if name != TRAINED:
                numbers = LABEL_SCHEMES[name].numbers
                message = f"{maps.source} is read as {name} ({numbers}), because of its values; --labels says otherwise"
                warnings.warn(message, Notice, stacklevel=2)
    silent = [maps.source for maps, name in zip((references, predictions), found, strict=True) if name is None]
    if silent:
        raise UserError(
            f"no dataset.json beside {' or '.join(map(str, silent))} says how the files number the labels; add "
            f"--labels trained (1 ED, 2 NCR, 3 ET), --labels released, or one of {', '.join(LABEL_SCHEMES)}; where "
            "references and predictions differ, both: --labels released,trained"
        )
    return Numberings(str(found[0]), str(found[1]))


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


def _has_our_regions(folder: Path) -> bool:
    """Whether the dataset.json of a folder has the regions of a label scheme; not so another program's."""
    try:
        description = DatasetDescription.find(folder)
        return description is not None and description.scheme_name is not None
    except UserError:
        return False


def _is_label_map(path: Path) -> bool:
    return bool(_stem(path)) and not path.is_dir()


def _stem(path: Path) -> str:
    """The name without its ending; nothing for hidden files and those that hold no image."""
    ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
    return "" if ending is None or path.name.startswith(".") else path.name.removesuffix(ending)
