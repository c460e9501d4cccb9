"""Time and memory of a prediction, case by case, so that a clinic can see whether its machine suffices."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from time import perf_counter

import psutil
import torch

from nnunet_brats_ext.storage.json_files import read_json, write_json
from nnunet_brats_ext.training.cpu_memory import return_freed_memory

MB = 2**20
SAMPLING_S = 0.005
PROFILE = "profile.json"  # in the folder of the predictions


class MemoryMeter:
    """Bytes in use on a device: allocated by torch on a GPU, resident above what the process had at first on a CPU."""

    def __init__(self, device: torch.device):
        self.device, self.process = device, psutil.Process()
        if device.type == "cpu":
            return_freed_memory()  # of an earlier prediction, which this one would take without a trace
        self.baseline = 0 if device.type == "cuda" else self._resident()

    def _resident(self) -> int:
        return self.process.memory_info().rss

    def now(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return self._resident() - self.baseline

    @contextmanager
    def peak(self) -> Iterator[list[int]]:
        """A list that holds the highest use within the block, once the block has ended."""
        highest: list[int] = []
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            yield highest
            highest.append(torch.cuda.max_memory_allocated(self.device))
            return
        done, seen = Event(), [self.now()]

        def watch() -> None:
            while not done.wait(SAMPLING_S):
                seen.append(max(seen.pop(), self.now()))

        watcher = Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield highest
        finally:
            done.set()
            watcher.join()
            highest.append(max(seen[0], self.now()))


@dataclass
class Profile:
    """What each step of each case took, and loading the models before them: seconds, and the peak in bytes."""

    device: torch.device
    meter: MemoryMeter
    load: tuple[float, int] = (0.0, 0)
    cases: dict[str, dict[str, tuple[float, int]]] = field(default_factory=dict)
    steps: dict[str, tuple[float, int]] = field(default_factory=dict)  # of the case at hand

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a step of the case at hand, or a further part of it."""
        before, highest = self.steps.get(name, (0.0, 0))
        start = perf_counter()
        with self.meter.peak() as peak:
            yield
        self.steps[name] = (before + perf_counter() - start, max(highest, peak[0]))

    def finish_load(self) -> None:
        self.load = self.steps.pop("load")

    def finish_case(self, name: str) -> None:
        self.cases[name], self.steps = self.steps, {}

    @property
    def peak_mb(self) -> float:
        return max([self.load[1], *(peak for steps in self.cases.values() for _, peak in steps.values())]) / MB

    def write(self, file: Path, title: str) -> None:
        """Write seconds and megabytes as JSON, beside what the file holds of other parts and cases."""

        def shown(taken: tuple[float, int]) -> dict[str, float]:
            return {"seconds": round(taken[0], 3), "peak_mb": round(taken[1] / MB, 1)}

        known = read_json(file) if file.is_file() else {}
        parts = known.get("parts", {})
        cases = {case: {step: shown(s) for step, s in steps.items()} for case, steps in self.cases.items()}
        cases = {**parts.get(title, {}).get("cases", {}), **cases}
        content = {
            "device": self.describe_device(),
            "peak_mb": max(known.get("peak_mb", 0.0), round(self.peak_mb, 1)),
            "parts": {**parts, title: {"load": shown(self.load), "cases": cases}},
        }
        write_json(file, content)

    def describe_device(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{self.device.type}, {torch.get_num_threads()} threads (memory above what the process had at first)"
