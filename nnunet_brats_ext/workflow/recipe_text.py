"""The text of a recipe: YAML whose every key knows its line, checked against `recipe.schema.json`."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from nnunet_brats_ext.storage.errors import UserError, did_you_mean, raise_problems
from nnunet_brats_ext.storage.json_files import read_json

HERE = Path(__file__).parent
NAME = r"[A-Za-z][A-Za-z0-9_-]*"  # as in recipe.schema.json
RULE_OF_NAMES = "a letter, then letters, digits, - and _ only"
LARGEST_BYTES, MOST_VALUES = 1_000_000, 20_000  # of a file, and of what its aliases make of it
KeyPath = tuple[str | int, ...]


@dataclass
class RecipeText:
    """The text of a recipe, where every key and value knows its line."""

    path: Path
    content: Any = field(init=False)
    lines: dict[KeyPath, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        text = self._read()
        try:
            node, self.content = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:  # a ValueError: a date such as 2020-13-99
            raise UserError(f"{self.path} is no YAML: {error}") from error
        except RecursionError:
            raise UserError(f"{self.path} is nested too deeply for a recipe") from None
        if node is not None:
            self._note_lines(node, (), ())
        if not isinstance(self.content, dict):
            raise UserError(f"{self.path} should hold keys and values; `nnunet_brats run baseline --copy` writes such")

    def _read(self) -> str:
        if (size := self.path.stat().st_size) > LARGEST_BYTES:
            raise UserError(f"{self.path} has {size:,} bytes, far more than a recipe; is it the right file?")
        try:
            return self.path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path} is no text in UTF-8, as a recipe is: {error}") from error

    def _note_lines(self, node: yaml.Node, path: KeyPath, above: tuple[yaml.Node, ...]) -> None:
        line = node.start_mark.line + 1
        if node in above:
            raise UserError(f"{self.path}:{line}: a value that holds itself")
        if len(self.lines) > MOST_VALUES:
            raise UserError(f"{self.path} has more than {MOST_VALUES} values, too many for a recipe")
        self.lines.setdefault(path, line)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here, line = (*path, key.value), key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith((":str", ":merge")):
                    shown = key.value if isinstance(key, yaml.ScalarNode) else "a list"
                    raise UserError(f"{self.path}:{line}: {shown} is no name; {RULE_OF_NAMES}")
                if here in self.lines:
                    first = self.lines[here]
                    raise UserError(f"{self.path}:{line}: {key.value!r} is given twice, in line {first} already")
                self.lines[here] = line
                self._note_lines(value, here, (*above, node))
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                self._note_lines(value, (*path, i), (*above, node))

    def problems_of_form(self) -> Iterator[tuple[KeyPath, str]]:
        schema = read_json(HERE / "recipe.schema.json")
        for error in Draft202012Validator(schema).iter_errors(self.content):
            yield from _explained(error)
        yield from _not_finite(self.content, ())

    def raise_problems(self, problems: Iterable[tuple[KeyPath, str]]) -> None:
        """One error with all of them, in the order of their lines."""
        found = sorted({(self._line(path), message) for path, message in problems})
        raise_problems("the recipe cannot run as it is", [f"{self.path}:{line}: {message}" for line, message in found])

    def _line(self, path: KeyPath) -> int:
        """Of the key, or of what it would stand in if the recipe said it."""
        return self.lines[path] if path in self.lines else self._line(path[:-1])


def _not_finite(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Numbers that no limit of a schema refuses: .nan, .inf."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, f"{'.'.join(map(str, path))}: {value} is no number to work with"
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _not_finite(one, (*path, key))
    elif isinstance(value, list):
        for i, one in enumerate(value):
            yield from _not_finite(one, (*path, i))


def _explained(error: ValidationError) -> Iterator[tuple[KeyPath, str]]:
    """An error of the schema in a reader's words, at the key that causes it."""
    path = tuple(error.absolute_path)
    where = ".".join(map(str, path)) or "the recipe"
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        for key in set(error.instance) - set(known):
            hint = did_you_mean(str(key), known) or f"; known are {', '.join(known)}"
            yield (*path, key), f"unknown key {key!r}{hint}"
    elif error.validator == "oneOf" and not path:
        yield path, "give `models` and `submission`, or `include` other recipes"
    elif error.validator == "oneOf":
        yield path, f"{where} needs one of `rules`, `rule` and `tune`"
    elif error.validator == "anyOf" and path == ("include",):
        yield path, f"{where}: {error.instance!r} is neither a list of recipes nor the word all"
    elif error.validator == "required":
        missing = [repr(key) for key in error.validator_value if key not in error.instance]
        yield path, f"{where} lacks {', '.join(missing)}"
    elif error.validator == "pattern":
        yield (*path, error.instance), f"name {error.instance!r}: {RULE_OF_NAMES}"
    else:
        yield path, f"{where}: {error.message}"
