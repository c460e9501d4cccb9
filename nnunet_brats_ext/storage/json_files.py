"""JSON files: read with errors that name the file and the key, written at once or not at all."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.output import write_text

KINDS: dict[type, str] = {dict: "an object", list: "a list"}


def read_json(path: Path, kind: type = dict) -> Any:
    """The content of a JSON file whose outermost value is of `kind`: dict, list, or object for anything.

    A missing file, one that is not JSON, or one of another kind is a UserError that names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, kind):
        raise UserError(f"{path} should hold {KINDS[kind]}, not {type(content).__name__}")
    return content


def check_schema(content: Any, schema: Mapping[str, Any], file: Path, advice: str = "") -> None:
    """A UserError with file and key where a content is not as a JSON schema has it; numbers must be finite."""
    from jsonschema import Draft202012Validator, validators  # which takes a tenth of a second

    kinds = Draft202012Validator.TYPE_CHECKER.redefine_many({"number": _is_number, "integer": _is_integer})
    for error in validators.extend(Draft202012Validator, type_checker=kinds)(schema).iter_errors(content):
        place = ".".join(map(str, error.absolute_path)) or "as a whole"
        problem = error.message if len(error.message) < 200 else f"{error.message[:200]}..."
        raise UserError(f"{file}, {place}: {problem}{advice}")


def _is_number(_: Any, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _is_integer(_: Any, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class JsonEntry:
    """A value in a JSON file with its file and keys, so that an error about it can quote them."""

    value: Any
    file: Path
    keys: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> "JsonEntry":
        return cls(read_json(path), path)

    def __getitem__(self, key: str) -> "JsonEntry":
        if not isinstance(self.value, dict):
            raise self.error("an object")
        if key not in self.value:
            raise UserError(f"{self} lacks {key!r}")
        return JsonEntry(self.value[key], self.file, (*self.keys, key))

    def get(self, key: str, default: Any) -> "JsonEntry":
        """The entry of an object, or in its place the default."""
        return self[key] if not isinstance(self.value, dict) or key in self.value else JsonEntry(default, self.file)

    def items(self) -> Iterator[tuple[str, "JsonEntry"]]:
        """The entries of an object."""
        if not isinstance(self.value, dict):
            raise self.error("an object")
        return ((key, self[key]) for key in self.value)

    def list(self) -> "list[JsonEntry]":
        """The entries of a list, which are quoted by their number."""
        if not isinstance(self.value, list):
            raise self.error("a list")
        return [JsonEntry(value, self.file, (*self.keys, str(i))) for i, value in enumerate(self.value)]

    def number(self, low: float = -inf, high: float = inf) -> float:
        """A number, null excluded, between two limits."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise self.error("a number")
        if not low <= value <= high:
            raise self.error(f"a number from {low:g} to {high:g}" if high < inf else f"a number from {low:g} on")
        return value

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.error("a text")
        return self.value

    def error(self, expected: str) -> UserError:
        found = json.dumps(self.value)
        return UserError(f"{self} is {found if len(found) < 80 else found[:80] + '...'}; expected {expected}")

    def __str__(self) -> str:
        first, *others = self.keys or ("",)
        return f"{self.file}" + (f": {first}" if first else "") + "".join(f'["{key}"]' for key in others)


def to_json(content: Any) -> str:
    """JSON text as all our files have it; paths and other objects become their text."""
    return json.dumps(content, indent=2, default=str) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file at once or not at all."""
    write_text(path, to_json(content))
