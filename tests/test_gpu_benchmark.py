"""benchmarks/gpu.py runs with torch and dynamic-network-architectures alone, here on a CPU at small sizes."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALLOWED = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"nnunetv2", "SimpleITK", "acvl_utils", "rich", "psutil", "scipy", "monai"}:
            raise ImportError(name, name=name)

sys.meta_path.insert(0, Refuse())
import gpu
gpu.main(["--device", "cpu", "--small", *sys.argv[1:]])
"""


def run(*words: str) -> list[str]:
    folders = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    environment = os.environ | {"PYTHONPATH": folders, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ALLOWED, *words]
    return subprocess.run(command, check=True, text=True, capture_output=True, env=environment).stdout.splitlines()


def test_every_table_has_rows_and_what_is_not_installed_is_named():
    printed = run("--networks", "lachinov_144", "nnunet", "--minutes", "60")
    for begin in ("| lachinov_144 | 32 x 32 x 32 | channels last | ", "| windows | mirror8, in one batch | fp32 | "):
        assert any(line.startswith(begin) for line in printed), begin
    (difference,) = [line.split("|") for line in printed if line.startswith("| lachinov_144 |") and "x" not in line]
    assert float(difference[2]) == 0, "this is the CPU"
    left_out = [line for line in printed if line.startswith("left out: ")]
    assert left_out == ["left out: training nnunet (nnunetv2 is not installed)"] * 2 + [
        "left out: CPU nnunet (nnunetv2 is not installed)"
    ]


def test_what_the_minutes_do_not_allow_is_named():
    left_out = [line.removeprefix("left out: ") for line in run("--minutes", "0") if line.startswith("left out: ")]
    assert {"training lyu_stage1, eager", "prediction brain, mirror8, fp32", "CPU omnet"} <= set(left_out)
