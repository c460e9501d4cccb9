"""What tests of the workflow share: graphs of recipes, a run of jobs that take no time, a paper of the user's own."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from nnunet_brats_ext.workflow.engine import engine_options, follow
from nnunet_brats_ext.workflow.graph import build_graph
from nnunet_brats_ext.workflow.jobs import Job, Setting
from nnunet_brats_ext.workflow.recipe import find_recipe, load_recipe
from nnunet_brats_ext.workflow.resources import Needs
from nnunet_brats_ext.workflow.state import Run, open_run  # noqa: F401  for a process that imports this module

SMALL = """title: small
models:
  one: {trainer: BraTSBaselineTrainer, configuration: 3d_fullres, plans: nnUNetPlans}
submission: one
"""


def graph_of(recipe: str | Path, **setting) -> dict[str, Job]:
    given = dict(
        raw=Path("raw"), preprocessed=Path("pre"), results=Path("res"), dataset_id=137, release="BraTS2020",
        unlabelled=True, source=Path("/release"), gpus=8, cpus=64,
    )  # fmt: skip
    return build_graph(load_recipe(find_recipe(str(recipe))), Setting(**given | setting))


def kinds(jobs: dict[str, Job]) -> Counter:
    return Counter(job.kind for job in jobs.values())


# ---- the engine, on jobs that take no time ---------------------------------------------------------------------------

WRITE = "out.parent.mkdir(exist_ok=True); out.write_text('x')"


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
    """Until something holds, and an error if the process ends before or a long time passes."""
    for _ in range(3000):
        if there():
            return
        assert process.poll() is None, "the process ended before"
        time.sleep(0.1)
    raise TimeoutError


def kill(process: psutil.Popen) -> None:
    """End a process and every one below it without a word, as a power cut would."""
    family = [process, *process.children(recursive=True)]
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
import time
from functools import partial
from pathlib import Path

from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunet_brats_ext.training.base import BraTSTrainer
from torch import nn


class NarrowTrainer(BraTSTrainer):
    @classmethod
    def architecture_for(cls, configuration):
        strides = configuration.pool_op_kernel_sizes
        return partial(
            PlainConvUNet, n_stages=len(strides), features_per_stage=4, conv_op=nn.Conv3d, kernel_sizes=3,
            strides=strides, n_conv_per_stage=1, n_conv_per_stage_decoder=1, norm_op=nn.InstanceNorm3d,
            nonlin=nn.LeakyReLU,
        )

    def on_epoch_start(self):
        super().on_epoch_start()
        while self.current_epoch == 1 and Path({hold!r}).exists():  # for a test that ends the training here
            time.sleep(0.1)
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


def write_own(place: Path, hold: Path = Path("/nowhere")) -> Path:
    """A folder for `nnUNet_extTrainer`: a paper `narrow2030` with everything that a paper can have, and a subclass.

    hold: while this file is there, a training of the paper stays at the beginning of its second epoch.
    """
    paper = place / "narrow2030"
    paper.mkdir(parents=True)
    (paper / "__init__.py").touch()
    (paper / "paper.py").write_text(OWN_PAPER)
    (paper / "trainers.py").write_text(OWN_TRAINER.format(hold=str(hold)))
    (paper / "recipe.yaml").write_text(OWN_RECIPE)
    (place / "my_trainers.py").write_text(OWN_SUBCLASS)
    return place
