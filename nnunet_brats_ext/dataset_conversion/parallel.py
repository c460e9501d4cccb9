"""One function over many cases, in several processes, with a progress bar."""

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(work: Callable[[Item], Result], items: Sequence[Item], processes: int, title: str) -> list[Result]:
    """The results in the order of the items. One process means this one; an error in any stops the rest."""

    def watched(results: Iterable[Result]) -> list[Result]:
        return list(track(results, title, total=len(items), console=Console(stderr=True)))

    if processes <= 1 or len(items) <= 1:
        return watched(map(work, items))
    # Spawned, not forked: ITK has threads, and a fork in the middle of one hangs.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(items)), mp_context=context) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return watched(future.result() for future in futures)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
