"""Cross-validation folds that keep a patient together and each fold alike in grade.

nnU-Net's own folds go by case, so that the time points of one patient land on both sides of a fold.
First the pure functions, then those that read and write splits_final.json.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from nnunet_brats_ext.dataset_conversion.scan import Case
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json, write_json
from nnunet_brats_ext.storage.nnunet import MANIFEST, SPLITS, Split, find_splits, nnunet_folder, read_splits


def group_patients(identities: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Case -> patient: cases that share any identity, directly or through other cases, are one patient.

    identities: case -> all names its patient goes by; at least one. The patient is called by the first in the alphabet.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    for names in identities.values():
        first, *others = sorted(names)
        for other in others:
            low, high = sorted((root(first), root(other)))
            parent[high] = low
    return {case: root(min(names)) for case, names in identities.items()}


def assign_folds(
    patients: Mapping[str, str],
    strata: Mapping[str, str],
    folds: int,
    seed: int = 12345,
    fixed: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Patient -> fold: the patients with most cases first, each to the fold that has least of their stratum.

    Deterministic on every platform and version: patients of one size come in the order of a hash of seed and name.
    No fold stays empty while there are as many patients as folds.
    patients: case -> patient; strata: case -> stratum; fixed: patients whose fold is decided, say by another data set.
    """
    cases_of: dict[str, list[str]] = defaultdict(list)
    for case in sorted(patients):
        cases_of[patients[case]].append(case)
    assigned: dict[str, int] = {patient: fold for patient, fold in (fixed or {}).items() if patient in cases_of}
    in_stratum: Counter[tuple[int, str]] = Counter()
    in_fold: Counter[int] = Counter()

    def put(patient: str, fold: int) -> None:
        assigned[patient] = fold
        in_fold[fold] += len(cases_of[patient])
        in_stratum.update((fold, strata[case]) for case in cases_of[patient])

    for patient, fold in list(assigned.items()):
        put(patient, fold)
    free = [patient for patient in cases_of if patient not in assigned]
    for patient in sorted(free, key=lambda name: (-len(cases_of[name]), _shuffled(name, seed))):
        stratum = Counter(strata[case] for case in cases_of[patient]).most_common(1)[0][0]
        put(patient, min(range(folds), key=lambda fold: (in_stratum[fold, stratum], in_fold[fold], fold)))
    return assigned


def make_splits(patients: Mapping[str, str], fold_of: Mapping[str, int], folds: int) -> list[Split]:
    """What nnU-Net reads from splits_final.json: for each fold its training and validation cases, sorted."""
    return [
        {
            "train": sorted(case for case, patient in patients.items() if fold_of[patient] != fold),
            "val": sorted(case for case, patient in patients.items() if fold_of[patient] == fold),
        }
        for fold in range(folds)
    ]


def _shuffled(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def split_cases(
    cases: Sequence[Case], patients: Mapping[str, str], folds: int, seed: int, model: Path | None = None
) -> list[Split]:
    """The folds of the labelled cases: stratified by grade or else by site, fewer where there are fewer patients.

    With the folder of another data set as `model`, its patients stay in the folds they have there. One patient alone
    gives no folds.
    """
    labelled = [case for case in cases if case.labelled]
    patient_of = {case.name: patients[case.name] for case in labelled}
    strata = {case.name: case.grade or case.site or "" for case in labelled}
    folds, fixed = min(folds, len(set(patient_of.values()))), {}
    if model:
        folds, elsewhere = folds_in(model)
        fixed = _follow(labelled, patients, elsewhere, model)
    if folds < 2:
        return []
    return make_splits(patient_of, assign_folds(patient_of, strata, folds, seed, fixed), folds)


def folds_in(dataset: Path) -> tuple[int, dict[str, set[int]]]:
    """How many folds a data set has, and the folds of each patient under each of their names."""
    found = find_splits(dataset.name, dataset)
    if found is None or not (dataset / MANIFEST).is_file():
        raise UserError(f"{dataset} has no {SPLITS} and {MANIFEST}, which --same-patients-as follows; convert it again")
    (path, splits), cases = found, read_json(dataset / MANIFEST)["cases"]
    folds: dict[str, set[int]] = defaultdict(set)
    for fold, split in enumerate(splits):
        for case in split["val"]:
            if case not in cases:
                raise UserError(f"{path} lists {case}, which {dataset / MANIFEST} does not know")
            for name in (cases[case]["patient"], *cases[case]["known_as"]):
                folds[name].add(fold)
    return len(splits), folds


def _follow(
    cases: Sequence[Case], patients: Mapping[str, str], elsewhere: Mapping[str, set[int]], model: Path
) -> dict[str, int]:
    """Patient -> the fold they have elsewhere; a patient with two there cannot be followed."""
    folds: dict[str, set[int]] = defaultdict(set)
    for case in cases:
        for name in (case.patient, *case.known_as):
            folds[patients[case.name]] |= elsewhere.get(name, set())
    if torn := sorted(patient for patient, found in folds.items() if len(found) > 1):
        shared = ", ".join(case.name for case in cases if patients[case.name] == torn[0])
        raise UserError(
            f"{model.name} has {len(torn)} patients in several folds: {shared}, for one, share a patient or an image "
            f"here. Leave cases out, or convert {model.name} again with the --name-mapping that knows its patients"
        )
    return {patient: found.pop() for patient, found in folds.items() if found}


def publish_splits(dataset: Path, wanted: int, overwrite: bool) -> str:
    """Copy the folds of a data set to where nnU-Net reads them; gives a sentence on what became of them."""
    if not (dataset / SPLITS).is_file():
        return "[bold red]none[/]: they need two patients with labels; train with fold `all`"
    splits, preprocessed = read_splits(dataset / SPLITS), nnunet_folder("nnUNet_preprocessed")
    number = str(len(splits))
    if len(splits) != wanted:
        number = f"[bold red]{len(splits)} instead of {wanted}[/], because there are fewer patients or as asked"
    if preprocessed is None:
        return f"{number}; nnUNet_preprocessed is not set, so copy {dataset / SPLITS} there before you train"
    place = preprocessed / dataset.name / SPLITS
    there = read_splits(place) if place.is_file() else None
    if there not in (None, splits) and not overwrite:
        return f"[bold red]{place} holds other folds and was kept[/]; copy {dataset / SPLITS} there to use these"
    if there != splits:  # jobs that train read it
        write_json(place, splits)
    return f"{number}, in {place}"
