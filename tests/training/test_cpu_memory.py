"""Memory that is kept between the passes of a network on a CPU. In processes of their own: it is for good."""

import platform
import subprocess
import sys

import pytest
import torch

from nnunet_brats_ext.inference import predictor

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
PASSES = """
import resource, torch
from nnunet_brats_ext.training.cpu_memory import keep_freed_memory, return_freed_memory
{before}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20
def run():
    block = [torch.ones(16 << 20) for _ in range(4)]  # 64 MiB each
for _ in range(8):
    run()  # an aligned block fits into a freed one of its size only where both have room beside them
first = faults()
run()
again, kept = faults() - first, resident()
return_freed_memory()
print(again, kept - resident())
"""


def passes(before: str) -> list[int]:
    """Page faults of a pass after others like it, and the MiB that `return_freed_memory` returns after it."""
    words = [sys.executable, "-c", PASSES.format(before=before)]
    return [int(word) for word in subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()]


def test_a_pass_takes_the_memory_of_those_before_it():
    faults, returned = passes("keep_freed_memory()")
    assert faults < 1000, "of 65,536 pages, where they are of 4 KiB"
    assert returned > 200, "what was kept can be given back"
    assert passes("")[1] < 50, "else nothing needs to be kept"


@pytest.mark.parametrize(("budget", "kept"), [(None, True), (1000.0, False)])
def test_prediction_on_a_cpu_keeps_memory_unless_there_is_a_budget(budget, kept, monkeypatch):
    called = []
    monkeypatch.setattr(predictor, "keep_freed_memory", lambda: called.append(True))
    predictor.BraTSPredictor(device=torch.device("cpu"), memory_budget_mb=budget)
    assert bool(called) == kept
