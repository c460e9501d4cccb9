"""benchmarks/gpu.py runs with torch and dynamic-network-architectures alone, here on a CPU at small sizes."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_brats_ext import papers

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu  # noqa: E402
import memory  # noqa: E402
import trainings  # noqa: E402

SHAPED_BY_DATA = {  # maps of a stage before, slices, tasks or values -> a configuration whose trainers count weights
    "lyu_stage2": "lyu_stage2",
    "lyu_stage2_single": "lyu_stage2",
    "hashemi_2d": "hashemi_2d",
    "omnet": "omnet",
    "lachinov_brain": "lachinov_brain",
}
ALLOWED = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"nnunetv2", "SimpleITK", "acvl_utils", "rich", "psutil", "scipy", "monai"}:
            raise ImportError(name, name=name)

sys.meta_path.insert(0, Refuse())
import gpu
{before}
gpu.main(["--device", "cpu", "--small", *sys.argv[1:]])
"""
FAILING = """
def fail(*arguments, **options):
    raise RuntimeError("it broke\\nin two lines")

gpu.NETWORKS["lachinov_144"] = gpu.predict_padded = fail
"""


def run(*words: str, before: str = "") -> list[str]:
    """What is printed; before: code that runs first."""
    folders = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    environment = os.environ | {"PYTHONPATH": folders, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ALLOWED.replace("{before}", before), *words]
    return subprocess.run(command, check=True, text=True, capture_output=True, env=environment).stdout.splitlines()


def test_every_table_has_rows_and_what_is_not_installed_is_named():
    printed = run("--networks", "lachinov_144", "myronenko_2023", "--minutes", "60")
    (trained, last, compiled) = [
        line.split("|") for line in printed if line.startswith("| lachinov_144 | 32 x 32 x 32 | ")
    ]
    held, planned = float(trained[5]), float(trained[6])
    assert held == pytest.approx(planned, rel=0.1)
    assert float(last[5]) == held
    assert float(compiled[6]) > 0
    assert any(line.startswith("| windows | mirror8, in one batch | fp32 | ") for line in printed)
    (difference,) = [line.split("|") for line in printed if line.startswith("| lachinov_144 |") and "x" not in line]
    assert float(difference[2]) == 0, "this is the CPU"
    left_out = [line for line in printed if line.startswith("left out: ")]
    assert left_out == [
        "left out: training myronenko_2023, plain (monai is not installed)",
        "left out: CPU myronenko_2023 (monai is not installed)",
        "left out: training myronenko_2023, channels last (monai is not installed)",
        "left out: training myronenko_2023, compiled (monai is not installed)",
    ]


def test_what_the_minutes_do_not_allow_is_named():
    left_out = [line.removeprefix("left out: ") for line in run("--minutes", "0") if line.startswith("left out: ")]
    assert {"training lyu_stage1, plain", "prediction brain, mirror8, fp32", "CPU omnet"} <= set(left_out)


def test_what_fails_is_named_with_its_reason_and_the_other_networks_have_their_rows():
    tables = ("training", "prediction", "cpu", "channels-last")
    printed = run("--networks", "lachinov_144", "hashemi_2d", "--tables", *tables, before=FAILING)
    assert [line.split(" | ")[0] for line in printed if "hashemi_2d" in line] == ["| hashemi_2d"] * 3
    left_out = [line.removeprefix("left out: ") for line in printed if line.startswith("left out: ")]
    small = "(32 x 32 x 32: RuntimeError: it broke in two lines)"
    assert [one for one in left_out if not one.startswith("prediction")] == [
        f"training lachinov_144, plain {small}",
        f"CPU lachinov_144 {small}",
        f"training lachinov_144, channels last {small}",
    ]
    assert "prediction brain, none, fp32 (16 x 32 x 16: RuntimeError: it broke in two lines)" in left_out


def test_nothing_is_compiled_where_less_than_a_minute_is_left():
    words = ("--networks", "lachinov_144", "--tables", "training", "compiled", "--minutes", "0.9")
    printed = run(*words)
    assert len([line for line in printed if line.startswith("| lachinov_144 | ")]) == 1
    assert [line for line in printed if "left out" in line] == ["left out: training lachinov_144, compiled"]


def test_the_cpus_table_leaves_the_precision_of_multiplications_as_it_was():
    kinds = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [kind.allow_tf32 for kind in kinds]
    with gpu.without_tf32():
        assert not any(kind.allow_tf32 for kind in kinds)
    assert [kind.allow_tf32 for kind in kinds] == before


# ---- the networks that it measures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in trainings.NETWORKS if name not in {"nnunet", *SHAPED_BY_DATA}])
def test_they_are_built_and_trained_as_the_trainers_do(name):
    size = (64, 64, 64)
    with FakeTensorMode():
        ours, theirs = trainings.NETWORKS[name](size), memory.of_configuration(name, size)
    assert shapes(ours.network) == shapes(theirs.network)
    assert list(map(list, ours.scales)) == list(map(list, theirs.scales))
    assert type(ours.optimizer) is type(theirs.optimizer)
    for key, value in ours.optimizer.defaults.items():
        assert theirs.optimizer.defaults[key] == value, key


@pytest.mark.parametrize("name", SHAPED_BY_DATA)
def test_those_shaped_by_their_data_have_the_weights_of_their_trainers(name):
    size = (240, 240) if name in trainings.IN_SLICES else (64, 64, 64)
    with FakeTensorMode() if name != "lachinov_brain" else nullcontext():
        network = trainings.NETWORKS[name](size).network
    bare = getattr(network, "network", network)
    known = {one.parameters for one in papers.trainers().values() if one.configuration == SHAPED_BY_DATA[name]}
    assert sum(parameter.numel() for parameter in bare.parameters()) in known


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in network.state_dict().items()}
