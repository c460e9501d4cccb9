"""The code blocks of the pages in docs, for tests that run them."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a language without a title, in order."""
    found = BLOCK.findall((DOCS / page).read_text())
    return [code for name, title, code in found if name == language and not title]


def files(page: str) -> dict[str, str]:
    """Title -> content of the blocks that are files."""
    return {title: code for _, title, code in BLOCK.findall((DOCS / page).read_text()) if title}


def write_files(page: str, folder: Path) -> list[Path]:
    """Write the page's files into a folder; their paths."""
    written = []
    for name, content in files(page).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        written.append(path)
    return written
