"""argparse from option dataclasses (`storage.options`): one argument per field, help from the same place."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from nnunet_brats_ext.storage.errors import did_you_mean
from nnunet_brats_ext.storage.options import Options, element_type, shown_name, spec_of


class Parser(argparse.ArgumentParser):
    """argparse whose errors name the option that a misspelt one may stand for."""

    def __init__(self, prog: str, description: str):
        self.flags: list[str] = []  # all that are accepted
        self.shown_flags: list[str] = []
        self.words: list[str] = []
        super().__init__(prog=prog, description=description, argument_default=argparse.SUPPRESS)

    def add_argument(self, *flags: str, **settings: Any) -> argparse.Action:  # type: ignore[override]
        self.flags += flags
        if settings.get("help") is not argparse.SUPPRESS:
            self.shown_flags += flags
        return super().add_argument(*flags, **settings)

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> Any:  # type: ignore[override]
        self.words = list(args)
        return super().parse_intermixed_args(args, namespace)  # also `segment FILE -o OUT PATIENT`

    def error(self, message: str) -> NoReturn:
        given = [word.partition("=")[0] for word in self.words if word.startswith("-")]
        unknown = [word for word in given if not any(flag.startswith(word) for flag in self.flags)]
        hints = {word: did_you_mean(word, self.shown_flags) for word in unknown}
        super().error(message + "".join(f"; {word}: {hint.removeprefix('; ')}" for word, hint in hints.items() if hint))


def build_parser(options: type[Options], prog: str, description: str) -> Parser:
    """A parser whose result has a value for every field that was given."""
    parser = Parser(prog, description)
    hints = get_type_hints(options)
    for field in fields(options):
        add_field(parser, field, hints[field.name])
    return parser


def parse(options: type[Options], prog: str, description: str, words: Sequence[str]) -> Options:
    """The options that a command line gives; argparse itself ends the process where it cannot be read."""
    parser = build_parser(options, prog, description)
    given = vars(parser.parse_args(words))
    if missing := [shown_name(field) for field in fields(options) if is_required(field) and field.name not in given]:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return options(**given)


def is_required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def add_field(parser: Parser, field: Field, hint: Any) -> None:
    spec = spec_of(field)
    kind, many = element_type(hint)
    settings: dict[str, Any] = {"help": described(field)}
    if kind is bool:
        settings["action"] = "store_false" if field.default is True else "store_true"
    else:
        settings |= {"type": value_type(kind), "metavar": metavar(field, kind)}
        if (choices := choices_of(field, kind)) is not None:
            settings["choices"] = choices
        if get_origin(kind) is tuple:
            settings["nargs"] = len(get_args(kind))
            settings["type"] = value_type(get_args(kind)[0])
        elif many and not spec.repeat:
            settings |= {"nargs": "+", "action": "extend"}  # an option given twice adds to itself
        elif spec.const is not None:
            settings |= {"nargs": "?", "const": spec.const}
        if spec.repeat:
            settings["action"] = "append"
    if spec.positional:
        settings.pop("action", None)
        if field.default is not MISSING:
            settings |= {"nargs": "*" if many else "?", "default": field.default}
        parser.add_argument(field.name, **settings)
        return
    flags = spec.flags or (shown_name(field),)
    if spec.aliases:  # argparse would show them all; they share the destination, and `parse` asks for one of them
        parser.add_argument(*flags, dest=field.name, **settings)
        hidden = settings | {"help": argparse.SUPPRESS}
        if not spec.aliases[0].startswith("-"):  # it was positional
            parser.add_argument(field.name, nargs="?", **hidden | {"type": unless_suppressed(hidden["type"])})
        else:
            parser.add_argument(*spec.aliases, dest=field.name, **hidden)
        return
    parser.add_argument(*flags, dest=field.name, required=is_required(field), **settings)


def value_type(kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return type(get_args(kind)[0])
    return kind if kind in (int, float, Path) else str


def unless_suppressed(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """The type of a positional argument that may be left out: argparse also converts the mark of one that was."""

    def value(text: str) -> Any:
        return text if text is argparse.SUPPRESS else kind(text)

    value.__name__ = kind.__name__  # which argparse quotes
    return value


def choices_of(field: Field, kind: Any) -> list[Any] | None:
    return list(get_args(kind)) if get_origin(kind) is Literal else spec_of(field).known


def metavar(field: Field, kind: Any) -> Any:
    spec = spec_of(field)
    if spec.metavar or choices_of(field, kind) is not None:
        return spec.metavar
    if get_origin(kind) is tuple:
        return None
    return {int: "N", float: "X", Path: "PATH"}.get(kind, field.name.upper())


def described(field: Field) -> str:
    """The help of a field, with its default where that says something."""
    text = spec_of(field).help
    default = field.default
    if default is MISSING or default in (None, (), "") or isinstance(default, bool) or "default" in text:
        return text.replace("%", "%%")
    values = default if isinstance(default, tuple) else (default,)
    shown = " ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in values)
    return f"{text} (default: {shown})".replace("%", "%%")
