"""What of a job is there already, so that only the rest is done: a training is never repeated, but continued.

Trainings and preprocessed data lie in nnU-Net's own folders, which outlive a run and are shared by several. So each
leaves a note there with the settings that decide its result, and is taken for done only under the same ones.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from nnunet_brats_ext.dataset_conversion.case_filtering import SPLITS_FILE
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json, write_json
from nnunet_brats_ext.storage.nnunet import ALL, FINAL, PREPROCESSING_KEYS, SPLITS, read_splits
from nnunet_brats_ext.storage.plans import find_configuration, read_plans
from nnunet_brats_ext.training.environment import SNAPSHOTS
from nnunet_brats_ext.workflow.state import Job

NOTE = "nnunet_brats_run.json"
NEXT_STAGE = "next_stage"  # of a configuration; which stages follow does not change its own training


def commands_left(job: Job) -> list[list[str]]:
    """The command lines that are left of a job; none if it is done. Puts aside what other settings have left there."""
    if job.kind == "train":
        return _training_left(job)
    if job.kind == "preprocess":
        return _preprocessing_left(job)
    if job.kind == "plan":
        return _planning_left(job)
    return [list(job.command)]


def note_done(job: Job) -> None:
    """Leave the note of a preprocessing, which is good only once it is whole."""
    if job.kind == "preprocess":
        note, settings = _preprocessing(job)
        write_json(note, settings)


# ---- training ------------------------------------------------------------------------------------------------------


def _training_left(job: Job) -> list[list[str]]:
    fold, settings = job.result, training_settings(job)
    note = fold / NOTE
    checkpoints = {path.name for path in fold.glob("checkpoint_*.pth")}
    # A fold without a note was trained by hand: its settings are the user's business.
    if checkpoints and note.is_file() and (changed := _changes(read_json(note), settings)):
        aside = fold.with_name(time.strftime(f"earlier_{fold.name}_%Y%m%d-%H%M%S"))
        fold.replace(aside)
        print(f"{fold} was trained with other settings ({', '.join(changed)}); it is kept as {aside}", flush=True)
        checkpoints = set()
    fold.mkdir(parents=True, exist_ok=True)
    write_json(note, settings)
    command = list(job.command)
    if FINAL not in checkpoints:
        return [[*command, "--c"] if checkpoints & {"checkpoint_latest.pth", "checkpoint_best.pth"} else command]
    # nnU-Net writes the summary once every case of the fold is predicted, for the next stage as well.
    validated = (fold / "validation" / "summary.json").is_file()
    return [] if validated else [[*command, "--val"]]


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The settings that differ; one that another version of this package did not note is no difference."""
    before.get("configuration", {}).pop(NEXT_STAGE, None)  # which version 0.1 has noted
    return sorted(key for key in before.keys() & now.keys() if before[key] != now[key])


def training_settings(job: Job) -> dict[str, Any]:
    """What decides the result of a training: its configuration, cases, length, and what the previous stage said."""
    plans_file, fold = Path(str(job.facts["plans"])), str(job.facts["fold"])
    configuration = find_configuration(read_plans(plans_file), str(job.facts["configuration"]), plans_file)
    configuration = {key: value for key, value in configuration.items() if key != NEXT_STAGE}
    splits = read_splits(splits_file := plans_file.with_name(configuration.get(SPLITS_FILE, SPLITS)))
    if fold == ALL:
        cases: Any = sorted({case for split in splits for part in split.values() for case in part})
    elif int(fold) >= len(splits):
        raise UserError(f"{splits_file} has {len(splits)} folds, so there is no fold {fold}; leave it out of --folds")
    else:
        cases = splits[int(fold)]
    previous: list[str] = job.facts.get("previous", [])  # type: ignore[assignment]
    start = job.facts.get("start")
    deciding = {name: value for name, value in job.environment.items() if name.startswith("nnUNet_brats")}
    deciding.pop(SNAPSHOTS, None)  # of the same training, more or fewer are kept
    return {
        "configuration": configuration,
        "cases": _digest(cases),
        "environment": deciding,
        "maps": job.facts.get("maps", []),
        "start": _hash(Path(str(start), "validation", "summary.json").read_text()) if start else None,
        "previous_stage": [_hash(Path(folder, "validation", "summary.json").read_text()) for folder in previous],
    }


def _digest(content: Any) -> str:
    return _hash(json.dumps(content, indent=2) + "\n")  # notes outlive versions: never written otherwise


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- plans and preprocessing ---------------------------------------------------------------------------------------


def _planning_left(job: Job) -> list[list[str]]:
    """Plans of these very cases are kept: somebody may have made them with other options, and trained with them."""
    dataset = Path(str(job.facts["dataset"]))
    if job.result.is_file() and job.result.stat().st_mtime >= dataset.stat().st_mtime:
        print(f"{job.result} is there already, and younger than the data set", flush=True)
        return []
    return [list(job.command)]


def _preprocessing_left(job: Job) -> list[list[str]]:
    note, settings = _preprocessing(job)
    if note.is_file() and read_json(note) == settings:
        return []
    note.unlink(missing_ok=True)
    return [list(job.command)]


def _preprocessing(job: Job) -> tuple[Path, dict[str, Any]]:
    """Where the note on preprocessed data lies, beside their folder, and what decides what is in that."""
    plans_file = Path(str(job.facts["plans"]))
    configuration = find_configuration(read_plans(plans_file), str(job.facts["configuration"]), plans_file)
    labels = sorted(Path(str(job.facts["labels"])).glob("*.nii.gz"))
    # Label files may be links; what they point to shows whether a conversion has replaced them.
    stamps = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in labels]
    settings = {key: configuration.get(key) for key in PREPROCESSING_KEYS} | {"cases": _digest(stamps)}
    return plans_file.with_name(f"{configuration['data_identifier']}.{NOTE}"), settings
