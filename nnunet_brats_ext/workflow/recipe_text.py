"""The text of a recipe: YAML whose every key knows its line, checked against `recipe.schema.json`."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from nnunet_brats_ext.storage.errors import UserError

try:
    import yaml
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError
except ImportError as error:
    raise ImportError(f"{error}; recipes need more: pip install 'nnunet-brats-ext[workflow]'") from error

HERE = Path(__file__).parent
KeyPath = tuple[str | int, ...]


@dataclass
class RecipeText:
    """The text of a recipe, where every key and value knows its line."""

    path: Path
    content: Any = field(init=False)
    lines: dict[KeyPath, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        text = self.path.read_text()
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            self.content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{self.path} is no YAML: {error}") from error
        if not isinstance(self.content, dict):
            raise UserError(f"{self.path} should hold keys and values, as the recipes in {HERE / 'recipes'} do")
        self._note_lines(node, ())

    def _note_lines(self, node: yaml.Node, path: KeyPath) -> None:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here, line = (*path, key.value), key.start_mark.line + 1
                if here in self.lines:
                    first = self.lines[here]
                    raise UserError(f"{self.path}:{line}: {key.value!r} is given twice, in line {first} already")
                self.lines[here] = line
                self._note_lines(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                self._note_lines(value, (*path, i))

    def problems_of_form(self) -> Iterator[tuple[KeyPath, str]]:
        schema = json.loads((HERE / "recipe.schema.json").read_text())
        for error in Draft202012Validator(schema).iter_errors(self.content):
            yield from _explained(error)

    def raise_problems(self, problems: Iterable[tuple[KeyPath, str]]) -> None:
        """One error with all of them, in the order of their lines."""
        if found := sorted({(self._line(path), message) for path, message in problems}):
            lines = [f"{self.path}:{line}: {message}" for line, message in found]
            raise UserError("\n  ".join(["the recipe has to be mended:", *lines]))

    def _line(self, path: KeyPath) -> int:
        """Of the key, or of what it would stand in if the recipe said it."""
        return self.lines[path] if path in self.lines else self._line(path[:-1])


def _explained(error: ValidationError) -> Iterator[tuple[KeyPath, str]]:
    """An error of the schema in a reader's words, at the key that causes it."""
    path = tuple(error.absolute_path)
    where = ".".join(map(str, path)) or "the recipe"
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        for key in set(error.instance) - set(known):
            close = get_close_matches(str(key), known, 1)
            yield (*path, key), f"unknown key {key!r}" + (f"; did you mean {close[0]!r}?" if close else
                                                           f"; known are {', '.join(known)}")  # fmt: skip
    elif error.validator == "oneOf" and not path:
        yield path, "give `models` and `submission`, or `include` other recipes"
    elif error.validator == "oneOf":
        yield path, f"{where} needs one of `rules`, `rule` and `tune`"
    elif error.validator == "required":
        missing = [repr(key) for key in error.validator_value if key not in error.instance]
        yield path, f"{where} lacks {', '.join(missing)}"
    elif error.validator == "pattern":
        yield (*path, error.instance), f"name {error.instance!r}: a letter, then letters, digits, - and _ only"
    else:
        yield path, f"{where}: {error.message}"
