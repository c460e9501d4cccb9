"""Cross-validation folds: the cases of a patient stay in one fold, and every fold has its share of each grade.

nnU-Net's own folds go by case, so that time points of one patient train and validate the same fold.
First the pure functions, then those that read and write splits_final.json.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_brats_ext.dataset_conversion.dataset_folder import read_manifest
from nnunet_brats_ext.dataset_conversion.layouts import LABEL
from nnunet_brats_ext.dataset_conversion.scan import SourceCase
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import write_json
from nnunet_brats_ext.storage.nnunet import MANIFEST, SPLITS, Split, find_splits, nnunet_folder, read_splits


def group_patients(identities: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Case -> patient: cases that share any identity, directly or through other cases, are one patient.

    identities: case -> all names of its patient, at least one. The patient gets the first of them in the alphabet.
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
    patients: case -> patient; strata: case -> stratum; fixed: patients whose fold another data set has decided.
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


def draw_patients(patients: Mapping[str, str], strata: Mapping[str, str], number: int, seed: int = 12345) -> set[str]:
    """Patients with about so many cases, exactly as many where each has one; every stratum gives its share.

    Systematic sampling of the patients in the order of their strata, and within a stratum of a hash of seed and name.
    Where that meets none, as it may where patients have several cases each, one patient is drawn all the same.
    patients: case -> patient; strata: case -> stratum.
    """
    stratum = {patients[case]: strata[case] for case in sorted(patients, reverse=True)}
    every = sorted(stratum, key=lambda name: (stratum[name], _shuffled(name, seed)))
    start = int(_shuffled("start", seed), 16) % max(len(patients), 1)
    drawn = set()
    for place, patient in enumerate(every):
        before = start + place * number
        if (before + number) // len(patients) > before // len(patients):
            drawn.add(patient)
    return drawn or ({every[start % len(every)]} if every and number > 0 else set())


def number_of_cases(asked: float, cases: int) -> int:
    """What a share below 1, or a number, of so many cases is."""
    return round(asked * cases) if asked < 1 else round(asked)


def number_of_folds(wanted: int, patients: int) -> int:
    """How many folds a data set gets: no more than it has patients with labels, and none of one patient."""
    return min(wanted, patients) if patients > 1 else 0


def count_patients(cases: Sequence[SourceCase]) -> int:
    """How many patients with labels a release has by its names; `convert` also sees who shares an image."""
    patients = group_patients({case.name: [case.patient, *case.known_as] for case in cases})
    return len({patients[case.name] for case in cases if case.labelled})


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
    cases: Sequence[SourceCase],
    patients: Mapping[str, str],
    folds: int,
    seed: int,
    model: Path | None = None,
    contents: Mapping[str, Sequence[str]] | None = None,
    strata: Mapping[str, str] | None = None,
    validation: int = 0,
) -> list[Split]:
    """The folds of the cases that train: stratified by grade, site or source, fewer where there are fewer patients.

    model: the folder of another data set, whose patients stay in the folds they have there. contents: case -> digests
    of its images, by which a patient with other names there is known. strata: of all cases, for a finer stratification.
    validation: a single fold, with about so many validation cases. One patient alone gives no folds.
    """
    training = [case for case in cases if case.trains]
    patient_of = {case.name: patients[case.name] for case in training}
    strata = strata or {case.name: coarse_stratum(case) for case in training}
    folds, fixed = number_of_folds(folds, len(set(patient_of.values()))), {}
    if model:
        folds, elsewhere = folds_in(model)
        fixed = _follow(training, patients, elsewhere, model, contents or {})
    elif validation:
        folds, fixed = 1, dict.fromkeys(draw_patients(patient_of, strata, validation, seed), 0)
    if folds == 1 and fixed:  # all others train
        fold_of = {patient: fixed.get(patient, -1) for patient in patient_of.values()}
        return make_splits(patient_of, fold_of, folds)
    if folds < 2:
        return []
    return make_splits(patient_of, assign_folds(patient_of, strata, folds, seed, fixed), folds)


def coarse_stratum(case: SourceCase) -> str:
    return case.grade or case.site or case.layout.name


def hold_out(
    cases: Sequence[SourceCase],
    patients: Mapping[str, str],
    strata: Mapping[str, str],
    number: int,
    seed: int,
    model: Path | None = None,
    contents: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Mark the labelled cases of some patients as held out, to test on; model: a data set that has decided which."""
    labelled = [case for case in cases if case.labelled]
    if model:
        elsewhere = held_out_in(model)
        known = _follow(labelled, patients, {name: {0} for name in elsewhere}, model, contents or {})
        drawn = set(known)
    else:
        drawn = draw_patients({case.name: patients[case.name] for case in labelled}, strata, number, seed)
    for case in labelled:
        case.held_out = patients[case.name] in drawn


def held_out_in(dataset: Path) -> set[str]:
    """The patients that a data set holds out, under each of their names and images' digests."""
    cases = (read_manifest(dataset) or {}).get("cases", {})
    return {name for about in cases.values() if about.get("held_out") for name in _names_of(about)}


def _names_of(about: Mapping[str, Any]) -> list[str]:
    """All that a patient is known by, from what the manifest says of a case."""
    digests = [file["sha256"] for role, file in about["files"].items() if role != LABEL]
    return [about["patient"], *about["known_as"], *digests, *about.get("voxels", {}).values()]


def folds_in(dataset: Path) -> tuple[int, dict[str, set[int]]]:
    """How many folds a data set has, and the folds of each patient under each of their names and images' digests."""
    found, manifest = find_splits(dataset.name, dataset), read_manifest(dataset)
    if found is None or manifest is None:
        raise UserError(f"{dataset} has no {SPLITS} and {MANIFEST}, which --same-patients-as follows; convert it again")
    (path, splits), cases = found, manifest["cases"]
    folds: dict[str, set[int]] = defaultdict(set)
    for fold, split in enumerate(splits):
        for case in split["val"]:
            if case not in cases:
                raise UserError(f"{path} lists {case}, which {dataset / MANIFEST} does not know; convert it again")
            for name in _names_of(cases[case]):
                folds[name].add(fold)
    return len(splits), folds


def _follow(
    cases: Sequence[SourceCase],
    patients: Mapping[str, str],
    elsewhere: Mapping[str, set[int]],
    model: Path,
    contents: Mapping[str, Sequence[str]],
) -> dict[str, int]:
    """Patient -> the fold that the other data set has them in; a patient with two folds there is an error."""
    folds: dict[str, set[int]] = defaultdict(set)
    for case in cases:
        for name in (case.patient, *case.known_as, *contents.get(case.name, ())):
            folds[patients[case.name]] |= elsewhere.get(name, set())
    if split := sorted(patient for patient, found in folds.items() if len(found) > 1):
        shared = ", ".join(case.name for case in cases if patients[case.name] == split[0])
        raise UserError(
            f"{model.name} has {len(split)} patients in several folds: {shared}, for example, share a patient or an "
            f"image here. Leave cases out, or convert {model.name} again with a --name-mapping that lists its patients"
        )
    return {patient: found.pop() for patient, found in folds.items() if found}


@dataclass(frozen=True)
class PublishedFolds:
    """The folds of a data set, and where nnU-Net reads them.

    number: 0 where there are fewer than two patients with labels. wanted: as asked for. source: beside the data set.
    place: where nnU-Net reads them; None where nnUNet_preprocessed is not set. others_kept: other folds were there
    before, and stayed.
    """

    number: int
    wanted: int
    source: Path
    place: Path | None = None
    others_kept: bool = False


def publish_splits(dataset: Path, wanted: int, overwrite: bool) -> PublishedFolds:
    """Copy the folds of a data set to where nnU-Net reads them; other folds that are there stay, unless overwritten."""
    source, preprocessed = dataset / SPLITS, nnunet_folder("nnUNet_preprocessed")
    splits = read_splits(source) if source.is_file() else []
    if preprocessed is None or not splits:
        return PublishedFolds(len(splits), wanted, source)
    place = preprocessed / dataset.name / SPLITS
    there = read_splits(place) if place.is_file() else None
    others_kept = there not in (None, splits) and not overwrite
    if there != splits and not others_kept:  # a file that is right is not written: running trainings read it
        write_json(place, splits)
    return PublishedFolds(len(splits), wanted, source, place, others_kept)
