"""CSV tables as text, for `write_texts`; every table of the package is written by this function."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


class _Line:
    def write(self, line: str) -> str:
        return line


def csv_lines(rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Rows as lines of CSV, the first one usually the names of the columns; None is an empty cell."""
    writer = csv.writer(_Line(), lineterminator="\n")
    return (writer.writerow(row) for row in rows)  # what the line's `write` gives


def to_csv(rows: Iterable[Sequence[Any]]) -> str:
    """The same in one text."""
    return "".join(csv_lines(rows))
