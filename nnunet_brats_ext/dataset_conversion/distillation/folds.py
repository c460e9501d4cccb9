"""The folds of a distilled data set: the same validation cases, and no case trains the fold that validates its patient.

Pseudo-labelled cases and cases with foreign labels only train, in every fold that allows it.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from nnunet_brats_ext.dataset_conversion.splits import assign_folds, make_splits
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.nnunet import Split, find_splits


def manual_splits(
    dataset: Path, patients: Mapping[str, str], strata: Mapping[str, str], folds: int, seed: int
) -> tuple[list[Split], str]:
    """The folds of the labelled data set, and in words where they come from: as nnU-Net uses them, or new by patient.

    patients, strata: of all its cases. One patient alone gives no folds.
    """
    if found := find_splits(dataset.name, dataset):
        path, splits = found
        listed = {case for split in splits for part in split.values() for case in part}
        if unknown := sorted(listed - set(patients)):
            raise UserError(
                f"{path} lists {', '.join(unknown[:3])}, which {dataset} does not hold; convert the data set again"
            )
        return splits, str(path)
    if (number := min(folds, len(set(patients.values())))) < 2:
        return [], "too few patients"
    return make_splits(patients, assign_folds(patients, strata, number, seed), number), "new, by patient"


def student_splits(
    splits: Sequence[Split], kept: Collection[str], extra: Collection[str], patients: Mapping[str, str]
) -> list[Split]:
    """The folds of the manual cases that are kept, with the extra cases in the training of every fold.

    Extra cases do not train the fold that validates their patient. A fold without validation cases is left out.
    """
    result: list[Split] = []
    for split in splits:
        training, validation = ([case for case in split[part] if case in kept] for part in ("train", "val"))
        held_out = {patients[case] for case in validation}
        training += [case for case in extra if patients[case] not in held_out]
        if validation:
            result.append({"train": sorted(training), "val": sorted(validation)})
    return result
