"""What the second stage of a cascade needs from the first."""

import json
from collections.abc import Iterable
from pathlib import Path


def missing_cases(folder: Path, cases: Iterable[str]) -> list[str]:
    """The cases without a segmentation in the folder where the previous stage leaves them, in any format."""
    present = {path.name.split(".")[0] for path in folder.iterdir()} if folder.is_dir() else set()
    return sorted(set(cases) - present)


def require_previous_stage(
    folder: Path, cases: Iterable[str], splits_file: Path, dataset_name: str, trainer: str, plans: str, stage: str
) -> None:
    """Raise an error that names the cases which the previous stage has not segmented, and the commands that do it.

    The validation of a fold segments its validation cases, so all folds of the previous stage are needed.
    """
    if not (missing := missing_cases(folder, cases)):
        return
    splits = json.loads(splits_file.read_text()) if splits_file.is_file() else []
    folds = [fold for fold, split in enumerate(splits) if set(missing) & set(split["val"])]
    commands = [f"nnUNetv2_train {dataset_name} {stage} {fold} -tr {trainer} -p {plans}" for fold in folds]
    shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
    raise FileNotFoundError(
        f"{len(missing)} cases have no segmentation of the previous stage in {folder}: {shown}. "
        "Train, or only validate (--val) where training is done, the folds that hold them:\n  "
        + "\n  ".join(commands or [f"nnUNetv2_train {dataset_name} {stage} all -tr {trainer} -p {plans}"])
    )
