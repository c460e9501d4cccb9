"""A small world that all tests of training share: phantoms, converted, planned and preprocessed by nnU-Net itself."""

import contextlib
import io
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
LONGEST = (
    "test_whole_runs", "test_end_to_end", "test_cascade", "test_zhou2020", "test_hashemi2021", "test_lachinov2019",
    "test_contract", "test_distributed", "test_henry2020",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no process is left alone with one of them in the end."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@dataclass(frozen=True)
class World:
    """A dataset of six labelled phantoms and two without label, ready to train on."""

    root: Path
    dataset: str = "Dataset901_World"

    @property
    def settings(self) -> dict[str, str]:
        """The environment of nnU-Net's commands, with as few processes as they allow."""
        folders = {name: str(self.root / name) for name in FOLDERS}
        return folders | {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw" / self.dataset

    @property
    def dataset_json(self) -> dict:
        return json.loads((self.raw / "dataset.json").read_text())

    @property
    def plans(self) -> dict:
        return json.loads((self.root / "nnUNet_preprocessed" / self.dataset / "nnUNetPlans.json").read_text())


@contextlib.contextmanager
def threads_for_processes() -> Iterator[None]:
    """nnU-Net's pools of processes become pools of threads: each process takes seconds to import torch or to fork."""
    import nnunetv2.utilities.utils

    class Context:
        Pool = ThreadPool

        def __getattr__(self, name: str) -> Any:
            return getattr(multiprocessing, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda method=None: Context())
        patch.setattr(nnunetv2.utilities.utils, "Pool", ThreadPool)
        yield


def plan_and_preprocess(dataset_id: int, *configurations: str) -> None:
    """What nnUNetv2_plan_and_preprocess does, for a small network, in this process and with a quick fingerprint."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiments,
        preprocess,
    )

    class FewSamples(DatasetFingerprintExtractor):
        def __init__(self, *arguments: Any, **options: Any):
            super().__init__(*arguments, **options)
            self.num_foreground_voxels_for_intensitystats = 1e5  # nnU-Net's 1e8 take half a minute to sort

    with threads_for_processes(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", "1")  # the planner cannot do with none
        extract_fingerprint_dataset(dataset_id, FewSamples, num_processes=1, check_dataset_integrity=True)
        plan_experiments([dataset_id], gpu_memory_target_in_gb=0.1)
        preprocess([dataset_id], configurations=configurations, num_processes=[1] * len(configurations))


@pytest.fixture(scope="session")
def world_on_disk(tmp_path_factory) -> World:
    from nnunet_brats_ext.cli import main

    world = World(tmp_path_factory.mktemp("world"))
    for name in FOLDERS:
        (world.root / name).mkdir()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        for name, value in world.settings.items():
            patch.setenv(name, value)
        release = str(world.root / "release")
        size = ("--size", "32", "36", "32", "--anatomy", "procedural", "-np", "1")
        assert main(["phantom", release, "--cases", "8", "--unlabelled", "2", *size]) == 0
        assert main(["convert", release, "-d", "901", "--name", "World", "-np", "1"]) == 0
        plan_and_preprocess(901, "3d_fullres", "2d")
    return world


@pytest.fixture
def world(world_on_disk, monkeypatch) -> World:
    """The world with its environment set, and nothing else of ours in it."""
    for name in list(os.environ):
        if name.startswith("nnUNet_brats"):
            monkeypatch.delenv(name)
    for name, value in world_on_disk.settings.items():
        monkeypatch.setenv(name, value)
    return world_on_disk


@pytest.fixture(scope="session")
def everything_on_disk(world_on_disk, tmp_path_factory) -> Path:
    """One folder with everything that the commands read, made once."""
    from spoiling import build, copy_of

    root = tmp_path_factory.mktemp("everything")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        enter(root, world_on_disk, patch)
        build(world_on_disk, root)
    shutil.copytree(root, copy_of(root), symlinks=True)
    return root


@pytest.fixture
def everything(everything_on_disk, world_on_disk, monkeypatch) -> Iterator[Path]:
    """That folder as the current one, with its environment. What a test makes, changes or removes is undone."""
    from spoiling import copy_of, restore

    enter(everything_on_disk, world_on_disk, monkeypatch)
    yield everything_on_disk
    restore(everything_on_disk, copy_of(everything_on_disk))


def enter(root: Path, world: World, patch: pytest.MonkeyPatch) -> None:
    """Work in a folder with nnU-Net's folders of its own, and with a small network for its model's trainer."""
    from spoiling import TRAINER
    from tiny_trainers import make_tiny

    from nnunet_brats_ext import trainers

    for name, value in world.settings.items():
        patch.setenv(name, str(root / name) if name in FOLDERS else value)
    patch.chdir(root)
    make_tiny(getattr(trainers, TRAINER), patch)
