"""The options of a command as a dataclass: stated once, for Python, for the command line and for its help.

    @dataclass(frozen=True)
    class EnsembleOptions(Options):
        inputs: tuple[Path, ...] = option("-i", help="prediction folders")
        out: Path = option("-o", writes="folder", help="output folder")
        size: int = option("-n", default=1, at_least=1, help="how many")

A field without flags is `--name-with-hyphens`; `argument` makes a positional one. Text becomes paths and lists become
tuples. A value of another type, out of range or not among the choices is a UserError that quotes the option, from
Python as from the command line; so is an output that cannot be written. What several commands have is in
`shared_options`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.output import OutputKind, check_output

Choices = Iterable[Any] | Callable[[], Iterable[Any]]


@dataclass(frozen=True)
class Spec:
    """How a field of `Options` is given and checked.

    flags: the first one is shown and quoted. aliases: old spellings, accepted and not shown. choices: the values there
    are, or a function that lists them. repeat: the option is given once per value, not once with all of them.
    writes: the path is one that the command writes, to such a place; an impossible one is an error before the work.
    ending: of the name of a file that it writes.
    """

    help: str
    flags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    metavar: str | tuple[str, ...] | None = None
    choices: Choices | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    repeat: bool = False
    positional: bool = False
    writes: OutputKind | None = None
    ending: str = ""
    const: Any = None  # the value of an option that is given without one

    @property
    def known(self) -> list[Any] | None:
        return None if self.choices is None else list(self.choices() if callable(self.choices) else self.choices)


def option(
    *flags: str, help: str, default: Any = MISSING, aliases: Sequence[str] = (), **spec: Any
) -> Any:  # typed as the field's own type where it is declared
    """An option of a command; without a default it is required. `spec`: the other fields of `Spec`."""
    metadata = {"spec": Spec(help, flags, tuple(aliases), **spec)}
    return dataclasses.field(default=default, metadata=metadata)


def argument(help: str, default: Any = MISSING, **spec: Any) -> Any:
    """A positional argument of a command."""
    return dataclasses.field(default=default, metadata={"spec": Spec(help, positional=True, **spec)})


@dataclass(frozen=True)
class Options:
    """Base of all option dataclasses: brings values into their declared types and checks their ranges."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            if "spec" in field.metadata:
                kind, many = element_type(hints[field.name])
                value = converted(field, getattr(self, field.name), kind, many)
                object.__setattr__(self, field.name, value)
                check(field, value, kind)


def spec_of(field: Field) -> Spec:
    return field.metadata["spec"]


def shown_name(field: Field) -> str:
    """What a message calls a field: its first flag, or its name."""
    spec = spec_of(field)
    if spec.positional:
        return str(spec.metavar or field.name.upper())
    return spec.flags[0] if spec.flags else "--" + field.name.replace("_", "-")


def element_type(hint: Any) -> tuple[Any, bool]:
    """The type of one value, and whether there are many of them: `tuple[Path, ...] | None` gives (Path, True)."""
    if get_origin(hint) in (Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is tuple and get_args(hint)[1:] == (Ellipsis,):
        return get_args(hint)[0], True
    return hint, False


def converted(field: Field, value: Any, kind: Any, many: bool = False) -> Any:
    """A value in the declared type: text as a path, a list as a tuple."""
    if value is None:
        return None
    if many:
        items = value if isinstance(value, Iterable) and not isinstance(value, str | Path) else [value]
        return tuple(converted(field, item, kind) for item in items)
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if isinstance(value, str | Path) or not isinstance(value, Iterable) or len(value := tuple(value)) != len(parts):
            raise UserError(f"{shown_name(field)} {value}: expected {len(parts)} values")
        return tuple(converted(field, item, part) for item, part in zip(value, parts, strict=True))
    if kind is Path and isinstance(value, str):
        return Path(value)
    for number, accepted, words in ((int, Integral, "a whole number"), (float, Real, "a number")):
        if kind is number:
            if isinstance(value, bool) or not isinstance(value, accepted):
                raise UserError(f"{shown_name(field)} {value!r}: expected {words}")
            return number(value)
    return value


def check(field: Field, value: Any, kind: Any) -> None:
    """A UserError that quotes the option where a value is not among its choices or out of its range."""
    spec, name = spec_of(field), shown_name(field)
    values = value if isinstance(value, tuple) else () if value is None else (value,)
    known = list(get_args(kind)) if get_origin(kind) is Literal else spec.known
    limits = [
        (spec.at_least, lambda x, y: x >= y, "at least"),
        (spec.above, lambda x, y: x > y, "more than"),
        (spec.at_most, lambda x, y: x <= y, "at most"),
        (spec.below, lambda x, y: x < y, "less than"),
    ]
    limits = [limit for limit in limits if limit[0] is not None]
    for one in values:
        if spec.writes:
            check_output(name, one, spec.writes, spec.ending)
        if known is not None and one not in known:
            raise UserError(f"{name} {one}: expected one of {', '.join(map(str, known))}")
        if isinstance(one, Real) and not all(holds(one, limit) for limit, holds, _ in limits):  # NaN holds nowhere
            raise UserError(
                f"{name} {one}: expected {' and '.join(f'{words} {limit:g}' for limit, _, words in limits)}"
            )
        if isinstance(one, Real) and not isfinite(one):
            raise UserError(f"{name} {one}: expected a finite number")
