"""How a command runs: case by case in several processes, with a progress bar, and nothing written half-way."""

import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Result = TypeVar("Result")
ABOUT_A_RUN = ("dataset.json", "plans.json", "ensemble.json", "postprocessing_rules.json", "uncertainty.json")


def refuse(problems: Sequence[str], action: str) -> None:
    """Raise one error that names every problem; none, and nothing happens."""
    if problems:
        raise ValueError("\n  ".join([f"cannot {action}; nothing was written:", *problems]))


@contextmanager
def staged(out: Path, cases: Sequence[str], sources: Sequence[Path] = (), ending: str = ".nii.gz") -> Iterator[Path]:
    """A temporary folder whose files move into `out` when the block ends well, and vanish when it does not.

    `out` may exist from an earlier run over the same cases, of which nothing is left that would contradict this one.
    It must be none of `sources`, and hold no other case: a folder that mixes two runs would be scored as one.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"the output folder {out} is a file; choose another")
    if any(out.resolve() == source.resolve() for source in sources):
        raise ValueError(f"the output folder {out} is also an input; choose another")
    strangers = sorted({path.name for path in out.glob(f"[!.]*{ending}")} - {case + ending for case in cases})
    if strangers:
        raise ValueError(f"{out} already holds other cases ({', '.join(strangers)}); choose an empty folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield stage
        out.mkdir(exist_ok=True)
        for name in (*(f"{case}{suffix}" for case in cases for suffix in (".npz", ".pkl")), *ABOUT_A_RUN):
            (out / name).unlink(missing_ok=True)
        for path in sorted(stage.iterdir()):
            path.replace(out / path.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def write_text_whole(path: Path, text: str) -> None:
    """Write a text file at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; anything else is an error that names the file."""
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold a JSON object, not {type(content).__name__}")
    return content


@contextmanager
def progress_bar(description: str, total: int, console: Console | None = None) -> Iterator[Callable[[], None]]:
    """A bar of `total` steps, and what to call after each."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)


def for_each_case(
    function: Callable[[str], Result], cases: Sequence[str], description: str, processes: int | None = None
) -> dict[str, Result]:
    """`function` of every case, in several processes and with a progress bar; the results in the order of `cases`.

    function: picklable, say a `functools.partial` of a module's function. Cases that fail with an error that the user
    can mend do not stop the others; they are all named in the one error at the end. One process runs in this one.
    """
    processes = min(processes or default_processes(), len(cases)) or 1
    results: dict[str, Result] = {}
    failures: dict[str, Exception] = {}
    with progress_bar(description, len(cases)) as advance:
        for case, outcome in _outcomes(function, cases, processes):
            try:
                results[case] = outcome()
            except (OSError, ValueError, RuntimeError) as error:
                failures[case] = error
            advance()
    refuse([f"{case}: {failures[case]}" for case in cases if case in failures], description.lower())
    return {case: results[case] for case in cases}


def default_processes() -> int:
    """As many as there are cores for us, but no more than 8: a case in full size takes about half a gigabyte."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)


def _outcomes(
    function: Callable[[str], Result], cases: Sequence[str], processes: int
) -> Iterator[tuple[str, Callable[[], Result]]]:
    if processes == 1:
        for case in cases:
            yield case, lambda case=case: function(case)  # type: ignore[misc]
        return
    # The function goes to every worker once and not along with every case: it knows the files of all cases.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_receive, initargs=(function,)) as pool:
        futures = {pool.submit(_run, case): case for case in cases}
        try:
            for future in as_completed(futures):
                if isinstance(future.exception(), BrokenProcessPool):
                    raise RuntimeError("a process was killed, most likely for want of memory; use fewer with -np")
                case = futures.pop(future)  # a finished future keeps its result alive
                yield case, future.result
        finally:
            pool.shutdown(cancel_futures=True)


_received: Callable[[str], Any]


def _receive(function: Callable[[str], Any]) -> None:
    global _received
    _received = function


def _run(case: str) -> Any:
    return _received(case)
