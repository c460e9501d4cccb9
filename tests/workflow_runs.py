"""What tests of the workflow share: graphs of recipes, jobs that take no time, papers of the user's own."""

import os
import runpy
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from graphlib import TopologicalSorter
from importlib.metadata import entry_points
from pathlib import Path

import psutil
import pytest
from conftest import threads_for_processes

from nnunet_brats_ext.papers import find_paper
from nnunet_brats_ext.workflow import perform
from nnunet_brats_ext.workflow.engine import engine_options, follow
from nnunet_brats_ext.workflow.graph import build_graph
from nnunet_brats_ext.workflow.jobs import Setting
from nnunet_brats_ext.workflow.recipe import find_recipe, load_recipe, restricted
from nnunet_brats_ext.workflow.resources import Needs
from nnunet_brats_ext.workflow.state import Job, Run, open_run  # noqa: F401  for a process that imports this module

SMALL = """title: small
models:
  one: {trainer: BraTSBaselineTrainer, configuration: 3d_fullres, plans: nnUNetPlans}
submission: one
"""


def graph_of(recipe: str | Path, only: Sequence[str] = (), **setting) -> dict[str, Job]:
    given = dict(
        raw=Path("raw"), preprocessed=Path("pre"), results=Path("res"), dataset_id=137, release="BraTS2020",
        unlabelled=True, source=Path("/release"), gpus=8, cpus=64,
    )  # fmt: skip
    loaded = load_recipe(find_recipe(str(recipe)))
    return build_graph(restricted(loaded, only) if only else loaded, Setting(**given | setting))


def kinds(jobs: dict[str, Job]) -> Counter:
    return Counter(job.kind for job in jobs.values())


# ---- the engine, on jobs that take no time ---------------------------------------------------------------------------

WRITE = "out.parent.mkdir(exist_ok=True); out.write_text('x')"


def perform_here(run: Run) -> None:
    """Every job of a run, one after the other, by its command in this process, which imports torch once for all."""
    order = TopologicalSorter({name: one.after for name, one in run.jobs.items()}).static_order()
    with pytest.MonkeyPatch.context() as patch, threads_for_processes():
        patch.chdir(run.folder)
        patch.setattr(perform, "run_all", _run_all_here)
        for name in order:
            assert perform.perform(run, run.jobs[name]) == 0, name


def _run_all_here(commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> int:
    for words in commands:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", list(words if words[0] != "python" else words[2:]))
            try:
                if words[0] == "python":
                    runpy.run_module(words[2], run_name="__main__")
                else:
                    (script,) = entry_points(group="console_scripts", name=words[0])
                    if code := script.load()():
                        return code
            except SystemExit as end:
                if end.code:
                    return 1
    return 0


def job(name: str, code: str, *after: str) -> Job:
    result = Path("made", name.replace("/", "_"))
    words = ("python", "-c", f"from pathlib import Path; out = Path({str(result)!r}); {code}")
    return Job(name, words, result, after, Needs(1, 0.1, 0.1))


def small_run(folder: Path, second: str = WRITE) -> Run:
    """Four jobs: b and d after a, c after b; `second` is what b does."""
    jobs = [
        job("convert/a", WRITE),
        job("tune/b", second, "convert/a"),
        job("evaluate/c", WRITE, "tune/b"),
        job("evaluate/d", WRITE, "convert/a"),
    ]
    run = Run(folder, {one.name: one for one in jobs})
    run.write()
    return run


def start(run: Run) -> bool:
    return follow(run, engine_options(run), lambda line: None)


def start_elsewhere(folder: Path) -> psutil.Popen:
    """The run of a folder in a process of its own, which ends with 0 if a signal stops it."""
    code = "import pathlib, workflow_runs as this; assert this.start(this.open_run(pathlib.Path.cwd()))"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return psutil.Popen([sys.executable, "-c", code], cwd=folder, env={**os.environ, "PYTHONPATH": path})


def wait_for(there: Callable[[], object], process: psutil.Popen) -> None:
    """Until something holds; an error, and no process is left, if that ends before or half an hour passes."""
    begin = time.monotonic()
    while not there():
        if process.poll() is not None or time.monotonic() - begin > 1800:
            kill(process)
            raise TimeoutError(f"ended with {process.returncode}")
        time.sleep(0.1)


def kill(process: psutil.Popen) -> None:
    """End a process and every one below it without a word, as a power cut would."""
    family = [process, *process.children(recursive=True)] if process.is_running() else []
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=10)


# ---- papers of one's own ---------------------------------------------------------------------------------------------

OWN_PAPER = """
from nnunet_brats_ext.papers import Configuration, Paper, TrainerFacts

PAPER = Paper(
    title="A narrow network", authors="Somebody", year=2030, link="https://example.org",
    configurations=(Configuration("narrow", patch_size=(32, 32, 32), batch_size=2, poolings=3),),
    trainers=(TrainerFacts("NarrowTrainer", "narrow", "nnU-Net in small", snapshot_epochs=(1, 2)),),
    rules={"narrow2030": [{"rule": "small-et", "min_voxels": 5}]},
)
"""
OWN_TRAINER = """
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunet_brats_ext.training.base import BraTSTrainer
from torch import nn


class NarrowTrainer(BraTSTrainer):
    @classmethod
    def build_network_architecture(
        cls, plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
    ):
        strides = configuration_manager.pool_op_kernel_sizes
        return PlainConvUNet(
            num_input_channels, len(strides), 4, nn.Conv3d, 3, strides, 1, num_output_channels, 1,
            norm_op=nn.InstanceNorm3d, nonlin=nn.LeakyReLU, deep_supervision=enable_deep_supervision,
        )
"""
OWN_RECIPE = """title: A narrow network
models:
  narrow:
    trainer: NarrowTrainer
    configuration: narrow
    checkpoints: [1, 2]
    combine: vote
postprocessing:
  final: {of: narrow, rules: [narrow2030]}
evaluation: {of: [final]}
submission: final
"""
OWN_SUBCLASS = """
from nnunet_brats_ext.trainers import BraTSVAETrainer


class MyVAETrainer(BraTSVAETrainer):
    hyperparameters = dict(initial_lr=1e-3)
"""


def write_own(place: Path) -> Path:
    """A folder for `nnUNet_extTrainer`: a paper `narrow2030` with everything that a paper can have, and a subclass."""
    paper = place / "narrow2030"
    paper.mkdir(parents=True)
    (paper / "__init__.py").touch()
    for name, text in (("paper.py", OWN_PAPER), ("trainers.py", OWN_TRAINER), ("recipe.yaml", OWN_RECIPE)):
        (paper / name).write_text(text)
    (place / "my_trainers.py").write_text(OWN_SUBCLASS)
    return place


# ---- narrow networks for published recipes ---------------------------------------------------------------------------

NARROW = """
import multiprocessing.dummy
import time
from pathlib import Path
from unittest.mock import patch

from nnunet_brats_ext import trainers

HOLD = Path({hold!r})
WIDTHS = (8, 8, 8, 16, 16)  # of stages


def hold(what):
    while (HOLD / what).exists():
        (HOLD / f"held_{{what}}").touch()
        time.sleep(0.1)


def hold_after_a_case(network, inputs):
    if list(Path("predictions/test").glob("*.stage2/*.nii.gz")):
        hold("predict")


class Narrow:
    network_options = dict(features_per_stage=WIDTHS)

    @classmethod
    def build_network_architecture(
        cls, plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
    ):
        network = super().build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        if cls.holds:
            network.register_forward_pre_hook(hold_after_a_case)
        return network

    def on_epoch_start(self):
        super().on_epoch_start()
        if self.holds and self.configuration_name == {configuration!r} and self.current_epoch == 1:
            hold("train")

    def perform_actual_validation(self, *arguments, **options):
        # nnU-Net writes from a pool of processes, each of which takes seconds to import torch.
        with patch.object(multiprocessing, "get_context", lambda kind: multiprocessing.dummy):
            super().perform_actual_validation(*arguments, **options)


for name in {names!r}:
    globals()[name] = type(name, (Narrow, getattr(trainers, name)), dict(holds=name == {holding!r}))
"""


def write_narrow(place: Path, papers: Sequence[str], holding: str) -> Path:
    """A folder that stands before ours in `nnUNet_extTrainer`: the trainers of papers, with networks of few channels.

    holding: TRAINER:CONFIGURATION. While `place/train` is there, its training stays at the beginning of its second
    epoch and makes `place/held_train`; while `place/predict` is, the prediction of `stage2` does so once it has
    predicted a case.
    """
    place.mkdir()
    names = [trainer.name for paper in papers for trainer in find_paper(paper).trainers]
    trainer, _, configuration = holding.partition(":")
    content = NARROW.format(hold=str(place), names=names, holding=trainer, configuration=configuration)
    (place / f"narrow_{'_'.join(papers)}.py").write_text(content)  # a module of its own where several are imported
    return place
