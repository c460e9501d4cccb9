#!/usr/bin/env python3
"""From a clean clone: `python3 make.py demo` runs the demo, `test` the tests, `docs` builds the pages.

Each needs nothing but Python 3.10 or newer and a package index. Everything is installed into .venv beside this file.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")


def run(*command: str | Path) -> None:
    print("$", *command, flush=True)
    code = subprocess.run([str(word) for word in command], cwd=ROOT).returncode
    if code:
        sys.exit(code)


def set_up(extras: str) -> None:
    """Create the environment, and install into it whenever what is declared has changed."""
    declared = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + (ROOT / "setup.py").read_bytes()).hexdigest()
    stamp = VENV / f"installed-{extras}"
    if stamp.exists() and stamp.read_text() == declared:
        return
    print(f"installing nnunet_brats_ext[{extras}] into {VENV} (torch is large: some minutes)", flush=True)
    if not (BIN / "python").exists():
        venv.create(VENV, with_pip=True)
    run(BIN / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable", f".[{extras}]")
    stamp.write_text(declared)


def demo(arguments: list[str]) -> None:
    set_up("demo")
    run(BIN / "nnunet_brats", "demo", *arguments)


def test(arguments: list[str]) -> None:
    set_up("test")
    if not arguments:
        run(BIN / "ruff", "check", ".")
        run(BIN / "ruff", "format", "--check", ".")
        run(BIN / "codespell", "nnunet_brats_ext", "tests", "docs", "benchmarks", *PAGES)
        run(BIN / "mypy")
        os.environ["OMP_NUM_THREADS"] = "1"  # one core for each of the processes that share the files of tests
        arguments = ["-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder"]
    run(BIN / "python", "-m", "pytest", *arguments)


def setup(arguments: list[str]) -> None:
    """The environment of the tests, without running them."""
    set_up("test")


def docs(arguments: list[str]) -> None:
    """The pages with an API reference, in site/; a broken link is an error."""
    set_up("docs")
    run(BIN / "mkdocs", "build", "--strict", *arguments)


COMMANDS = {"demo": demo, "test": test, "setup": setup, "docs": docs}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=COMMANDS)
    options, rest = parser.parse_known_args()  # whatever follows is for `nnunet_brats demo` or pytest
    COMMANDS[options.what](rest)
