"""Options: brought into their types, checked, quoted in errors, the same from Python as from the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.options import Options, argument, option


@dataclass(frozen=True)
class AllOptions(Options):
    """One field of every kind."""

    source: Path = argument("a path", metavar="SOURCE")
    number: int = option("-n", help="a number", default=1, at_least=1, at_most=999)
    share: float = option(help="a share", default=0.5, above=0, below=1)
    more: tuple[Path, ...] = option("-m", help="paths", default=())
    size: tuple[int, int, int] | None = option(help="three", default=None, at_least=32)
    pairs: tuple[tuple[Path, Path], ...] = option(help="pairs", default=(), repeat=True)
    way: Literal["hard", "soft"] = option(help="a choice", default="hard")
    model: str | None = option(help="a choice", default=None, choices=lambda: ["a", "b"])
    several: tuple[str, ...] = option(help="choices", default=(), choices=("x", "y"))
    threshold: float | None = option(help="a limit", default=None, at_least=0, at_most=1)
    factor: float = option(help="without limit above", default=1.0, at_least=0)
    folds: tuple[int, ...] | None = option("-f", help="folds", default=None, at_least=0)


def make(source="a", **options) -> AllOptions:
    return AllOptions(source, **options)


def test_values_come_into_the_declared_types():
    made = make(more=["a", Path("b")], size=[40, 41, 42], pairs=[("a", "b"), ["c", "d"]], share=0.25, folds=[0, 1])
    assert made.source == Path("a")
    assert made.more == (Path("a"), Path("b"))
    assert (made.size, made.folds) == ((40, 41, 42), (0, 1))
    assert made.pairs == ((Path("a"), Path("b")), (Path("c"), Path("d")))
    assert make(more="a").more == (Path("a"),), "one path is a list of one"
    assert make(folds=2).folds == (2,)
    assert make(folds=range(2)).folds == (0, 1)
    assert make(size=None).size is None
    assert type(make(threshold=1).threshold) is float
    assert type(make(number=np.int64(5)).number) is int


REFUSED = [
    (dict(number=0), r"-n 0: expected at least 1 and at most 999"),
    (dict(number=1000), r"-n 1000: expected at least 1 and at most 999"),
    (dict(number="5"), r"-n '5': expected a whole number"),
    (dict(number=2.5), r"-n 2.5: expected a whole number"),
    (dict(number=True), r"-n True: expected a whole number"),
    (dict(share=0), r"--share 0.0: expected more than 0 and less than 1"),
    (dict(share=1), r"--share 1.0: expected more than 0 and less than 1"),
    (dict(share=float("nan")), r"--share nan: expected more than 0 and less than 1"),
    (dict(threshold=float("nan")), r"--threshold nan: expected at least 0 and at most 1"),
    (dict(threshold=-0.1), r"--threshold -0.1: expected at least 0 and at most 1"),
    (dict(threshold=float("inf")), r"--threshold inf: expected at least 0 and at most 1"),
    (dict(factor=float("inf")), r"--factor inf: expected a finite number"),
    (dict(threshold="high"), r"--threshold 'high': expected a number"),
    (dict(size=(40, 31, 40)), r"--size 31: expected at least 32"),
    (dict(size=(40, 40)), r"--size \(40, 40\): expected 3 values"),
    (dict(size=40), r"--size 40: expected 3 values"),
    (dict(pairs=["ab"]), r"--pairs ab: expected 2 values"),
    (dict(pairs=[("a",)]), r"--pairs \('a',\): expected 2 values"),
    (dict(way="lazy"), r"--way lazy: expected one of hard, soft"),
    (dict(model="c"), r"--model c: expected one of a, b"),
    (dict(several=["x", "z"]), r"--several z: expected one of x, y"),
    (dict(folds=[0, -1]), r"-f -1: expected at least 0"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_what_cannot_be_is_refused_with_the_option_and_what_can(options, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        make(**options)


@pytest.mark.parametrize(
    "options", [dict(number=1), dict(number=999), dict(threshold=0), dict(threshold=1), dict(share=0.999)]
)
def test_the_limits_themselves_are_allowed_where_they_are_said_to_be(options):
    make(**options)


def test_a_name_that_is_no_option_is_a_defect_of_the_caller():
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        make(colour="red")
    with pytest.raises(TypeError, match="source"):
        AllOptions()
