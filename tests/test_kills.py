"""Commands killed in the middle of their work and started again: the same final files, and nothing left of the try.

A child process ends, as if the power went, just before it changes a file for the n-th time. A whole run is killed and
moved in `workflow/test_whole_runs.py`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from spoiling import copy_of, restore, run, verb_of
from tiny_trainers import build, same, state
from tiny_trainers import run as train
from untrained_models import save_untrained, small_plans

from nnunet_brats_ext.cli import main
from nnunet_brats_ext.inference import BraTSPredictor
from nnunet_brats_ext.storage.images import read_image
from nnunet_brats_ext.training.environment import EPOCHS, ITERATIONS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

KILLED = 9
CHANGES = ("os.rename", "os.remove", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "shutil.copyfile")
POINTS = [  # command -> after which share of its changes to files it is killed
    ("convert", 0.3),
    ("convert", 0.95),
    ("predict", 0.7),
    ("predict (vote, rules)", 0.6),
    ("choose", 0.6),
    ("ensemble", 0.5),
    ("ensemble", 0.95),
]


NETWORKS = ("predict", "choose")


class Changes:
    """Counts changes to files in this process while it is on, and ends the process at one of them."""

    def __init__(self):
        self.on, self.count, self.kill_at = False, 0, None
        sys.addaudithook(self.watch)  # which cannot be removed

    def watch(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if event in CHANGES or writes:
            self.count += 1
            if self.count == self.kill_at:
                os._exit(KILLED)

    def of(self, work: Callable[[], object], kill_at: int | None = None) -> int:
        """How often the work changes a file."""
        self.on, self.count, self.kill_at = True, 0, kill_at
        try:
            work()
        finally:
            self.on = False
        return self.count


CHANGED = Changes()


def kill_fork(work: Callable[[], object], kill_at: int) -> int:
    """Do the work in a forked process, killed at a change; its exit status."""
    if (child := os.fork()) == 0:
        torch.set_num_threads(1)
        try:
            CHANGED.of(work, kill_at)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_interpreter(command: str, kill_at: int) -> int:
    """The same of a command in an interpreter of its own: ITK's threads do not survive a fork."""
    return kill_python(
        "import pytest, tiny_trainers; from nnunet_brats_ext import trainers\n"
        "tiny_trainers.make_tiny(getattr(trainers, spoiling.TRAINER), pytest.MonkeyPatch())",
        f"spoiling.run({command!r})",
        kill_at,
    )


def kill_python(prepare: str, work: str, kill_at: int) -> int:
    """Do the work, an expression in Python, in a new interpreter, killed at a change; its exit status."""
    code = f"import spoiling, test_kills as this\n{prepare}\nthis.CHANGED.of(lambda: {work}, {kill_at})"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}).returncode


def files_in(root: Path) -> dict[str, object]:
    """All files that a command has made, hidden ones included, with their content where it can be compared."""
    made: dict[str, object] = {}
    before = {path.relative_to(copy_of(root)) for path in copy_of(root).rglob("*")}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if name in before or path.is_dir():
            continue
        made[str(name)] = content_of(path)
    return made


def content_of(path: Path) -> object:
    """The content of a file, where it can be compared."""
    if path.name.endswith(".nii.gz"):
        return read_image(path).array.tobytes()
    return blosc2.open(str(path))[:].tobytes() if path.suffix == ".b2nd" else path.suffix


WHOLE: dict[str, tuple[dict[str, object], int]] = {}


@pytest.mark.parametrize(("command", "share"), POINTS)
def test_a_command_that_was_killed_ends_the_same_when_it_is_given_again(command, share, everything):
    if command not in WHOLE:
        changes = CHANGED.of(lambda: run(command))
        WHOLE[command] = files_in(everything), changes
        restore(everything, copy_of(everything))
    whole, changes = WHOLE[command]
    point = max(1, int(share * changes))
    killed = (
        kill_interpreter(command, point) if verb_of(command) in NETWORKS else kill_fork(lambda: run(command), point)
    )
    assert killed == KILLED
    done = command == "ensemble" and whole.keys() <= files_in(everything).keys()  # then it stays, and is no input
    assert run(command) == (1 if done else 0)
    assert files_in(everything) == whole


# ---- predictions by several networks ---------------------------------------------------------------------------------

MODEL = "-d 901 -tr BraTSBaselineTrainer -p SmallPlans -device cpu -np 0 --tta none"
SEVERAL = {  # a prediction by several networks -> its words, and the files of which each is finished for good
    "cascade": (f"predict {MODEL} -c second -f 0 -prev_f 0 -i images -o out", "out/*.nii.gz"),
    "members": (
        f"predict {MODEL} -c second -f 0 1 -prev_f 0 1 --combine vote --keep-members -i images -o out",
        "out/*.nii.gz",
    ),
    "maps for the next stage": (
        f"predict {MODEL} -c first -f 0 --for-next-stage --in-sample",
        "nnUNet_results/*/*/predicted_next_stage/*/*/*.b2nd",
    ),
}


@pytest.fixture(scope="module")
def two_stages(world_on_disk, tmp_path_factory) -> Path:
    """An untrained cascade with two folds of each stage, and images."""
    root = tmp_path_factory.mktemp("two_stages")
    plans = small_plans(
        world_on_disk, "SmallPlans", {"first": {"next_stage": "second"}, "second": {"previous_stage": "first"}}
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (world_on_disk.settings | {"nnUNet_results": str(root / "nnUNet_results")}).items():
            patch.setenv(name, value)
        for seed, stage in enumerate(("first", "second")):
            save_untrained(world_on_disk, plans, stage, folds=(0, 1), seed=seed)
    shutil.copytree(world_on_disk.raw / "imagesTs", root / "images")
    return root


@pytest.mark.parametrize(("name", "share"), [("cascade", 0.8), ("members", 0.8), ("maps for the next stage", 0.7)])
def test_a_prediction_that_was_killed_does_what_is_left_and_no_more(
    name, share, two_stages, world, tmp_path, monkeypatch
):
    root, passes, predict = tmp_path / "root", [], BraTSPredictor.predict_average
    monkeypatch.setattr(BraTSPredictor, "predict_average", lambda *given: (passes.append(given), predict(*given))[1])
    monkeypatch.setenv("nnUNet_results", str(root / "nnUNet_results"))
    words, finished = SEVERAL[name]

    def begin() -> None:
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(two_stages, root)
        monkeypatch.chdir(root)

    def work() -> None:
        assert main(words.split()) == 0

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in root.glob(finished) if path.name[0] != "."}

    def made() -> dict[str, object]:
        return {str(path.relative_to(root)): content_of(path) for path in root.rglob("*") if path.is_file()}

    def probabilities() -> list[np.ndarray]:
        return [np.load(path)["probabilities"] for path in sorted(root.rglob("*.npz"))]

    begin()
    changes = CHANGED.of(work)
    whole, expected, number, each = made(), probabilities(), len(times()), len(passes) // len(times())
    begin()
    assert kill_python("", f"this.main({words.split()!r})", int(share * changes)) == KILLED
    done = times()
    assert 0 < len(done) < number, "to be killed while some are finished"
    passes.clear()
    work()
    assert made() == whole
    for found, known in zip(probabilities(), expected, strict=True):
        assert np.abs(found - known).max() < 1e-6, "the last bits depend on where a process has its memory"
    assert len(passes) == each * (number - len(done))
    assert {path: time for path, time in times().items() if path in done} == done


def go_on(folder: Path) -> str | None:
    """The checkpoint from which `nnUNetv2_train --c` goes on."""
    names = (f"checkpoint_{name}.pth" for name in ("final", "latest", "best"))
    return next((str(folder / name) for name in names if (folder / name).is_file()), None)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8, 0.97])
def test_a_training_that_was_killed_ends_with_the_same_weights(share, world, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv(EPOCHS, "3")
    monkeypatch.setenv(ITERATIONS, "1")

    def begin():
        np.random.seed(0)
        torch.manual_seed(0)
        return build(world, "BraTSBaselineTrainer", patch_size=[16, 16, 16])

    def work():
        train(begin())

    if "train" not in WHOLE:
        changes = CHANGED.of(work)
        (final,) = tmp_path.rglob("checkpoint_final.pth")
        WHOLE["train"] = torch.load(final, weights_only=False)["network_weights"], changes
        final.unlink()
        for file in final.parent.glob("*.pth"):
            file.unlink()
    weights, changes = WHOLE["train"]
    assert kill_fork(work, int(share * changes)) == KILLED
    trainer = begin()
    if checkpoint := go_on(Path(trainer.output_folder)):
        trainer.load_checkpoint(checkpoint)
    assert same(state(train(trainer)), weights)
    assert not list(Path(trainer.output_folder).glob(".partial-*"))
