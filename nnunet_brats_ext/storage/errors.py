"""The one kind of error that a user can fix."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches


class UserError(ValueError):
    """What is wrong with the user's input; the sentence quotes it and says what to do. Shown without traceback.

    advice: what to do, where many inputs may have the same problem: a list of these states it once.
    """

    def __init__(self, problem: str, advice: str = ""):
        super().__init__(f"{problem}; {advice}" if advice else problem)
        self.problem, self.advice = problem, advice


class Notice(UserWarning):
    """What the user should know although the work is done, such as inputs that may be wrong. Shown as one sentence."""


@contextmanager
def each_notice_once() -> Iterator[None]:
    """Where the same is done several times, what the user should know of it is said the first time."""
    with warnings.catch_warnings():
        warnings.simplefilter("once", Notice)
        yield


def raise_problems(summary: str, problems: Sequence[str], advice: Iterable[str] = ()) -> None:
    """Raise one UserError that lists every problem below a summary; without problems nothing happens.

    advice: sentences to end with, each once.
    """
    if problems:
        listed = "\n  ".join([f"{summary}:", *problems])
        raise UserError("\n".join([listed, *dict.fromkeys(filter(None, advice))]))


def refuse(problems: Sequence[str], action: str) -> None:
    """Raise one UserError that lists every problem that keeps a command from an action, before it writes anything."""
    raise_problems(f"cannot {action}; nothing was written", problems)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What to append to a message about an unknown name: the closest known one, or nothing where none is close."""
    close = get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def shorten(names: Sequence[str], most: int = 10) -> str:
    """Names for a message: all of them, or the first `most` and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
