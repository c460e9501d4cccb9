"""TOML files that users write: read with errors that name the file and the line."""

import sys
from pathlib import Path
from typing import Any

from nnunet_brats_ext.storage.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file."""
    if not path.is_file():
        raise UserError(f"{path} {'is no file' if path.exists() else 'does not exist'}")
    try:
        return parse_toml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8; save it as such") from error


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """The content of a text in TOML; source: what errors quote."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{source} is no TOML: {error}") from error
