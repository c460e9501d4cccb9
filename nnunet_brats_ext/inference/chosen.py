"""Which checkpoints of a fold were chosen, as the file in the fold that `-chk chosen` reads. Loads no torch.

A fold's cases choose its checkpoints, and in a cross-validation the same cases are scored. So that no case is scored by
checkpoints that it has chosen itself, the file also holds what each half of the cases chooses for the other half.
"""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import JsonEntry

CHOSEN, CHOSEN_FILE = "chosen", "chosen.json"
AGAIN = "`nnunet_brats choose` writes it anew"


def is_chosen(checkpoint: str) -> bool:
    """Whether the name of a checkpoint stands for those that were chosen: `chosen`, or `chosen:2`, the best two."""
    return checkpoint.partition(":")[0] == CHOSEN


def number_of_chosen(checkpoint: str) -> int | None:
    """How many such a name asks for; None is all."""
    _, colon, number = checkpoint.partition(":")
    if colon and not (number.isdecimal() and int(number)):
        raise UserError(f"{checkpoint}: expected {CHOSEN}, or {CHOSEN}:2 for the best two of them")
    return int(number) if colon else None


@dataclass(frozen=True)
class FoldChoice:
    """The checkpoints of a fold, the best first; a model none of whose checkpoints is among the best has none.

    checkpoints: chosen by all cases of the fold. halves: cases -> the checkpoints that the other cases have chosen.
    """

    checkpoints: tuple[str, ...]
    halves: Mapping[tuple[str, ...], tuple[str, ...]]

    def without(self, case: str) -> tuple[str, ...]:
        """What was chosen without this case of the fold."""
        for cases, checkpoints in self.halves.items():
            if case in cases:
                return checkpoints
        raise UserError(f"{CHOSEN_FILE} was written for other cases than {case}; {AGAIN}")

    def first(self, number: int) -> "FoldChoice":
        """The best so many, by all cases and by each half of them."""
        halves = {cases: checkpoints[:number] for cases, checkpoints in self.halves.items()}
        return replace(self, checkpoints=self.checkpoints[:number], halves=halves)


def read_choice(fold: Path, number: int | None = None) -> FoldChoice:
    """The choice in the folder of a fold, or the best `number` of it, whatever number was chosen then.

    A UserError where there is none, or fewer, or a checkpoint was trained again since.
    """
    file = fold / CHOSEN_FILE
    if not file.is_file():
        raise UserError(f"{file} does not exist; `nnunet_brats choose -m {fold.parent}` writes it")
    content = JsonEntry.read(file)
    for name, digest in content["digests"].items():
        if digest.text() != digest_of(fold / name):
            raise UserError(f"{fold / name} is not the one that {file} was written for; {AGAIN}")
    halves = {_texts(half["cases"]): _texts(half["checkpoints"]) for half in content["halves"].list()}
    choice = FoldChoice(_texts(content["checkpoints"]), halves)
    if number is None or not choice.checkpoints:
        return choice
    fewest = min(map(len, (choice.checkpoints, *halves.values())))
    if number > fewest:
        there = f"{file} holds {fewest or 'none'}"
        more = f"`nnunet_brats choose -m {fold.parent} --best {number}` writes as many"
        raise UserError(f"{CHOSEN}:{number}: {there}; {more}")
    return choice.first(number)


def _texts(entry: JsonEntry) -> tuple[str, ...]:
    return tuple(one.text() for one in entry.list())


def choice_content(fold: Path, choice: FoldChoice) -> dict[str, Any]:
    """A choice as its file has it."""
    named: Sequence[str] = [*choice.checkpoints, *(name for names in choice.halves.values() for name in names)]
    return {
        "checkpoints": choice.checkpoints,
        "halves": [{"cases": cases, "checkpoints": names} for cases, names in choice.halves.items()],
        "digests": {name: digest_of(fold / name) for name in dict.fromkeys(named)},
    }


def digest_of(checkpoint: Path) -> str:
    """A digest of a checkpoint's content, by the checksums that torch writes; a copy of the file has the same."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            parts = [f"{one.filename.partition('/')[2]} {one.CRC}" for one in archive.infolist()]
    except FileNotFoundError:
        raise UserError(f"{checkpoint} does not exist") from None
    except zipfile.BadZipFile as error:
        raise UserError(f"{checkpoint} is damaged, or no checkpoint ({error})") from error
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
