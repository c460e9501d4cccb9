"""Processes that preprocess cases ahead of the network and write predictions behind it.

`storage.parallel` runs one function over items that are all known beforehand. Here cases come one by one, in order,
and only a few may wait: the logits of a case are hundreds of megabytes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.parallel import KILLED, SpawnedPool

Item = TypeVar("Item")
Result = TypeVar("Result")
WAITING = 2  # more than there are processes


class Workers:
    """Functions run in other processes, with few results or arguments waiting; in this process if there are none.

    An error of a function is raised here, as soon as its result is looked at.
    """

    def __init__(self, processes: int):
        self.processes = processes
        self.pool = SpawnedPool(processes) if processes else None
        self.running: list[Future] = []

    def run(self, function: Callable[..., object], *arguments: Any) -> None:
        """Start a function; waits while too many are running."""
        if self.pool is None:
            function(*arguments)
            return
        self._collect(self.processes + WAITING - 1)
        self.running.append(self.pool.submit(function, *arguments))

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The results of a function in the order of the items, of which few are computed ahead."""
        if self.pool is None:
            yield from map(function, items)
            return
        ahead: deque[Future] = deque()
        for item in items:
            ahead.append(self.pool.submit(function, item))
            if len(ahead) > self.processes:
                yield _result(ahead.popleft())
        while ahead:
            yield _result(ahead.popleft())

    def finish(self) -> None:
        """Wait until all functions have run."""
        self._collect(0)

    def _collect(self, most: int) -> None:
        """Wait until no more than so many functions are running; errors of the others are raised."""
        while True:
            for future in [one for one in self.running if one.done()]:
                self.running.remove(future)
                _result(future)
            if len(self.running) <= most:
                return
            wait(self.running, return_when=FIRST_COMPLETED)


def _result(future: Future) -> Any:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise UserError(KILLED) from error


@contextmanager
def workers(processes: int) -> Iterator[Workers]:
    """Workers whose functions have all ended, well, when the block ends; what has not begun by an error is dropped."""
    them = Workers(processes)
    try:
        yield them
        them.finish()
    finally:
        if them.pool is not None:
            them.pool.shutdown(cancel_futures=True)
