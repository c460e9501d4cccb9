"""Scores for every set of sequences that a patient may have: a folder of predictions per set, all in one table."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from nnunet_brats_ext.evaluation.evaluate import evaluate_models
from nnunet_brats_ext.evaluation.results import Results, summary_rows
from nnunet_brats_ext.storage.csv_files import to_csv
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import to_json
from nnunet_brats_ext.storage.output import write_texts

JOINED = "+"


def sets_of(sequences: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Name of a set -> its sequences, of all sets but the empty one, the largest first: T1+T2 -> T1, T2."""
    sets = (one for size in range(len(sequences), 0, -1) for one in combinations(sequences, size))
    return {JOINED.join(one): one for one in sets}


def evaluate_by_sequences(reference: Path | str, predictions: Path | str, **options: Any) -> dict[str, Results]:
    """Score the folders that `predict --by-sequences` writes -> name of the set -> what `evaluate_folders` gives.

    options: those of `evaluate_models`. A UserError where the folder of a set is missing.
    """
    folder = Path(predictions)
    found = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    largest = max(found, key=lambda name: name.count(JOINED), default="")
    names = list(sets_of(largest.split(JOINED)))
    if JOINED not in largest or (lacking := [name for name in names if name not in found]):
        lacks = f"lacks {', '.join(lacking)}" if JOINED in largest else "has no folders such as T1+FLAIR"
        raise UserError(f"{folder} {lacks}; `nnunet_brats predict --by-sequences` writes a folder per set of sequences")
    options = {**options, "lesions": False}
    return evaluate_models(reference, [folder / name for name in names], names=names, **options)


def save_by_sequences(results: Mapping[str, Results], path: Path) -> list[Path]:
    """Write `path` (JSON, the results of each set) and a table beside it, a row per set, region and metric."""
    files = {path: to_json(results), path.with_name(f"{path.stem}_summary.csv"): to_csv(_rows(results))}
    write_texts(files)
    return list(files)


def _rows(results: Mapping[str, Results]) -> Iterable[Sequence[Any]]:
    for number, (name, one) in enumerate(results.items()):
        head, *rows = summary_rows(one)
        if number == 0:
            yield ("sequences", *head)
        yield from ((name, *row) for row in rows)
