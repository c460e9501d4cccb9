"""Imports point down only, and what works on arrays and folders never loads torch (the layers of CONTRIBUTING.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nnunet_brats_ext"
LAYERS = (
    {"brats", "papers", "storage"},
    {"architectures", "losses", "dataset_conversion", "planning", "predictions", "evaluation", "trainers/*/paper"},
    {"training"},
    {"inference"},
    {"weights"},
    {"trainers"},
    {"workflow", "bundles"},
    {"cli", "demo"},
)
TENSORS = {"architectures", "losses"}  # of the second layer; the others there work on arrays and folders
LIGHT = {"plugin", "__init__"}  # belong to no layer and import nothing heavy
HEAVY = ("torch", "nnunetv2", "numpy", "SimpleITK", "batchgenerators", "matplotlib")
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if "shim" not in path.parts)


def package_of(module: Path) -> str:
    if module.parts[0] == "trainers" and module.name in ("paper.py", "__init__.py"):
        return "trainers/*/paper"
    return module.parts[0].removesuffix(".py")


def layer(package: str) -> int:
    return next(number for number, packages in enumerate(LAYERS) if package in packages)


def dotted(module: Path) -> str:
    parts = [part for part in module.with_suffix("").parts if part != "__init__"]
    return ".".join(["nnunet_brats_ext", *parts])


def imported(module: Path) -> set[Path]:
    """All modules of ours that a file imports anywhere, functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    known = {dotted(other): other for other in MODULES}
    return {known[name] for name in names if name in known} - {module, Path("__init__.py")}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_down(module):
    here = package_of(module)
    if here in LIGHT:
        return  # tests of their own below
    for there in {package_of(other) for other in imported(module)} - {here, *LIGHT}:
        assert layer(there) <= layer(here), f"{module} imports {there}, which lies above it"
        if layer(there) == layer(here) == 1:
            assert (here in TENSORS) == (there in TENSORS), f"{module} imports {there}: tensors and files do not mix"


def test_arrays_and_folders_load_no_torch():
    """One interpreter imports all such modules; torch must not be among what they brought along."""
    light = [
        m for m in MODULES
        if package_of(m) not in LIGHT and layer(package_of(m)) < 2 and package_of(m) not in TENSORS
    ]  # fmt: skip
    code = (
        "import importlib, sys\n"
        f"for name in {[dotted(m) for m in light]!r}:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules: sys.exit(f'importing {name} loads torch')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "module", ["nnunet_brats_ext", "nnunet_brats_ext.cli", "nnunet_brats_ext.plugin.startup", "nnunet_brats_ext.papers"]
)
def test_the_plugin_and_the_command_line_start_light(module):
    code = f"import sys, {module}; sys.exit(','.join(m for m in {HEAVY} if m in sys.modules) or 0)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0, f"importing {module} loads something heavy"
