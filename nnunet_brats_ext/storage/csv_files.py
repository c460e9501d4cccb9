"""CSV tables as text, for `write_texts`; every table of the package is written by this function."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any


def to_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV, the first one usually the names of the columns; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
