"""One function over many cases, in several processes, with a progress bar."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
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
CAN_BLOCK_SIGNALS = hasattr(signal, "pthread_sigmask")
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
    failed = [(items[index], failures[index]) for index in sorted(failures)]
    raise_problems(
        f"{description}: {len(failures)} of {len(items)} cases failed",
        [f"{name(item)}: {error.problem if isinstance(error, UserError) else error}" for item, error in failed],
        (error.advice for _, error in failed if isinstance(error, UserError)),
    )
    return [results[index] for index in range(len(items))]


def for_each_case(
    function: Callable[[str], Result], cases: Iterable[str], description: str, processes: int | None = None
) -> dict[str, Result]:
    """The same for case names: case -> result."""
    names = list(cases)
    return dict(zip(names, for_each(function, names, description, processes), strict=True))


class SpawnedPool(ProcessPoolExecutor):
    """Spawned processes, which Ctrl-C ends at once and without a word: only the main process says that it stops.

    Spawned, not forked: ITK and torch have threads, and a fork in the middle of one hangs.
    """

    def __init__(self, processes: int, prepare: Callable[..., None] | None = None, *arguments: Any):
        """prepare: what each process calls first, with these arguments."""
        context = multiprocessing.get_context("spawn")
        handling = signal.SIG_IGN if _ignores_interrupts() else signal.SIG_DFL
        super().__init__(processes, context, initializer=_start_worker, initargs=(handling, prepare, *arguments))

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future:
        with _interrupts_held_back():  # here the processes start, and would be in the middle of their imports
            return super().submit(function, *arguments, **options)


def _ignores_interrupts() -> bool:
    """As a process that was started with nohup, or in the background of a script, does."""
    return signal.getsignal(signal.SIGINT) == signal.SIG_IGN


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Let Ctrl-C wait until the block ends, and in processes that start in it until they unblock it.

    Windows cannot block signals, and other threads than the main one are never interrupted.
    """
    arrived: list[int] = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    with ExitStack() as stack:
        if (
            in_main_thread and not _ignores_interrupts()
        ):  # of which a block alone would not do: the signal may come to another thread
            former = signal.signal(signal.SIGINT, lambda number, frame: arrived.append(number))
            stack.callback(signal.signal, signal.SIGINT, former)
        if CAN_BLOCK_SIGNALS:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        yield
    if arrived:
        signal.raise_signal(signal.SIGINT)


def _start_worker(handling: signal.Handlers, prepare: Callable[..., None] | None, *arguments: Any) -> None:
    signal.signal(signal.SIGINT, handling)
    if CAN_BLOCK_SIGNALS:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if prepare:
        prepare(*arguments)


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
    # The function goes to every worker once and not along with every item: it knows the files of all cases.
    with SpawnedPool(processes, _receive, function) as pool:
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
