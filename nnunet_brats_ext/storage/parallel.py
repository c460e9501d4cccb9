"""One function over many cases, in several processes, with a progress bar."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nnunet_brats_ext.storage.errors import UserError, raise_problems

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_PROCESSES = 8  # unless more are asked for: a case takes about half a gigabyte
KILLED = (
    "a process was killed, most likely because memory ran out; use fewer with -np. In a script of your own, call this "
    'below `if __name__ == "__main__":`, or use processes=1'
)
_shown: ContextVar[bool] = ContextVar("progress_shown", default=False)


@contextmanager
def progress_shown(shown: bool = True) -> Iterator[None]:
    """Show progress bars within the block; without it, as in a script of the user's, functions print nothing."""
    token = _shown.set(shown)
    try:
        yield
    finally:
        _shown.reset(token)


@contextmanager
def progress_bar(description: str, total: int, console: Console | None = None) -> Iterator[Callable[[], None]]:
    """A bar of `total` steps on the error stream, and the function to call after each step."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console or Console(stderr=True), disable=not _shown.get()) as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)


def for_each(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    description: str,
    processes: int | None = None,
    name: Callable[[Item], str] = str,
) -> list[Result]:
    """`function` of every item, in several processes and with a progress bar; the results in the order of the items.

    function: picklable, such as a `functools.partial` of a module's function. Items that fail with an error that the
    user can fix do not stop the others: one UserError names them all in the end. Any other error stops the work.
    processes: None is `default_processes`; 1 is this process. name: of an item in messages.
    """
    processes = min(default_processes() if processes is None else processes, len(items))
    results: dict[int, Result] = {}
    failures: dict[int, Exception] = {}
    with progress_bar(description, len(items)) as advance:
        for index, outcome in _outcomes(function, items, max(processes, 1)):
            try:
                results[index] = outcome()
            except (OSError, UserError) as error:
                failures[index] = error
            advance()
    problems = [f"{name(items[index])}: {failures[index]}" for index in sorted(failures)]
    raise_problems(f"{description}: {len(failures)} of {len(items)} cases failed", problems)
    return [results[index] for index in range(len(items))]


def for_each_case(
    function: Callable[[str], Result], cases: Iterable[str], description: str, processes: int | None = None
) -> dict[str, Result]:
    """The same for case names: case -> result."""
    names = list(cases)
    return dict(zip(names, for_each(function, names, description, processes), strict=True))


def default_processes() -> int:
    """As many as there are cores for this process, but no more than `MOST_PROCESSES`."""
    return min(available_cores(), MOST_PROCESSES)


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _outcomes(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int
) -> Iterator[tuple[int, Callable[[], Result]]]:
    if processes == 1:
        for index, item in enumerate(items):
            yield index, lambda item=item: function(item)  # type: ignore[misc]
        return
    # Spawned, not forked: ITK and torch have threads, and a fork in the middle of one hangs. The function goes to every
    # worker once and not along with every item: it knows the files of all cases.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_receive, initargs=(function,)) as pool:
        futures = {pool.submit(_run, item): index for index, item in enumerate(items)}
        try:
            for future in as_completed(futures):
                if isinstance(future.exception(), BrokenProcessPool):
                    raise UserError(KILLED) from future.exception()
                yield futures.pop(future), future.result  # a finished future keeps its result alive
        finally:
            pool.shutdown(cancel_futures=True)


_received: Callable[[Any], Any]


def _receive(function: Callable[[Any], Any]) -> None:
    global _received
    _received = function


def _run(item: Any) -> Any:
    return _received(item)
