"""JSON files: read with errors that name the file, written at once or not at all."""

import json
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


def to_json(content: Any) -> str:
    """JSON text as all our files have it; paths and other objects become their text."""
    return json.dumps(content, indent=2, default=str) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file at once or not at all."""
    write_text(path, to_json(content))
