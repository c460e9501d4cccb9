"""The house has floors: imports point down only. The right wing (arrays and folders) never loads torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nnunet_brats_ext"
FLOORS = {
    "brats": 0,
    "architectures": 1,
    "losses": 1,
    "dataset_conversion": 1,
    "planning": 1,
    "prediction_folders": 1,
    "ensembling": 1,
    "postprocessing": 1,
    "evaluation": 1,
    "uncertainty": 1,
    "training": 2,
    "inference": 2,
    "trainers": 3,
    "workflow": 3,
    "demo": 3,
    "cli": 3,
}
LEFT_WING = {"architectures", "losses"}  # tensors, no files
RIGHT_WING = {  # arrays and folders, no torch
    "dataset_conversion",
    "planning",
    "prediction_folders",
    "ensembling",
    "postprocessing",
    "evaluation",
    "uncertainty",
}
HEAVY = ("torch", "nnunetv2", "numpy", "SimpleITK", "batchgenerators", "matplotlib")
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if "shim" not in path.parts)


def room(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def imported(module: Path) -> set[str]:
    """All modules that a file imports anywhere, functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_used(module: Path) -> set[str]:
    ours = {name.split(".")[1] for name in imported(module) if name.startswith("nnunet_brats_ext.")}
    return ours - {"__version__"}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_down(module):
    here = room(module)
    if here in ("__init__", "plugin"):
        return  # the package itself and the plugin have tests of their own below
    assert here in FLOORS, f"{module} is in no room of the house"
    for there in rooms_used(module) - {here, "plugin"}:
        assert FLOORS[there] <= FLOORS[here], f"{module} imports {there}, a floor above it"
        if FLOORS[there] == FLOORS[here] == 1:
            assert {here, there} <= LEFT_WING or {here, there} <= RIGHT_WING, f"{module} reaches into the other wing"


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in RIGHT_WING | {"brats"}], ids=str)
def test_the_right_wing_loads_no_torch(module):
    name = "nnunet_brats_ext." + ".".join(module.with_suffix("").parts)
    code = f"import sys, importlib; importlib.import_module({name!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0, f"importing {name} loads torch"


@pytest.mark.parametrize("module", ["nnunet_brats_ext", "nnunet_brats_ext.cli", "nnunet_brats_ext.plugin.startup"])
def test_the_plugin_and_the_command_line_start_light(module):
    code = f"import sys, {module}; sys.exit(','.join(m for m in {HEAVY} if m in sys.modules) or 0)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0, f"importing {module} loads something heavy"
