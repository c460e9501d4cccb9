"""Whole recipes on phantoms, from release to report and submission: a paper of the user's own, and published ones."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

pytest.importorskip("snakemake", reason="Snakemake 9 needs Python 3.11")

import torch
from workflow_runs import kill, wait_for, write_own

from nnunet_brats_ext.cli import main
from nnunet_brats_ext.papers import EXTERNAL
from nnunet_brats_ext.workflow.state import open_run, states_of

pytestmark = pytest.mark.end_to_end


def smoke(recipe: str, folder: Path, *options: str) -> list[str]:
    words = ["run", recipe, "--scale", "smoke", "-device", "cpu", "-o", str(folder), *options]
    return [str(Path(sys.executable).with_name("nnunet_brats")), *words]


def run_smoke(recipe: str, folder: Path, *options: str) -> None:
    done = subprocess.run(smoke(recipe, folder, *options), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {state for state, _ in states_of(open_run(folder)).values()} == {"done"}
    assert len(list(folder.glob("submission/**/*.nii.gz"))) >= 2
    assert (folder / "report.html").stat().st_size > 10_000


def start_smoke(recipe: str, folder: Path) -> psutil.Popen:
    return psutil.Popen(smoke(recipe, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob(pattern))}


def weights(fold: Path) -> dict[str, torch.Tensor]:
    return torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)["network_weights"]


@pytest.fixture(scope="module")
def hold(tmp_path_factory) -> Iterator[Path]:
    """A file that is not there; while it is, trainings of the user's own paper, which nnU-Net finds, wait."""
    place = tmp_path_factory.mktemp("own")
    write_own(place / "trainers", place / "hold")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(EXTERNAL, os.pathsep.join([str(place / "trainers"), os.environ.get(EXTERNAL, "")]))
        yield place / "hold"


@pytest.fixture(scope="module")
def narrow(hold, tmp_path_factory) -> Path:
    """A whole run of the user's own paper."""
    folder = tmp_path_factory.mktemp("workflow") / "a b Ü"
    run_smoke("narrow2030", folder)
    return folder


def test_a_paper_of_the_users_own_runs_from_phantoms_to_report_and_submission(narrow):
    results = json.loads((narrow / "results" / "final.json").read_text())
    assert set(results["summary"]) == {"WT", "TC", "ET"}
    assert len(results["cases"]) == 4
    assert len(list(narrow.glob("nnUNet_results/*/NarrowTrainer__*/fold_*/checkpoint_epoch_[12].pth"))) == 4
    assert main(["status", str(narrow)]) == 0


def test_a_run_killed_in_training_and_in_prediction_and_moved_ends_with_the_same_result(narrow, hold):
    (model,) = narrow.glob("nnUNet_results/*/NarrowTrainer__*")
    fold = model / "fold_1"
    results = ("submission/*.nii.gz", "predictions/cv/narrow/*.nii.gz")
    expected, trained = [files(narrow, pattern) for pattern in results], weights(fold)
    untouched = (model / "fold_0" / "checkpoint_final.pth").stat().st_mtime_ns

    shutil.rmtree(fold)
    (narrow / "jobs" / "train" / "narrow" / "fold_1.done").unlink()
    hold.touch()
    process = start_smoke("narrow2030", narrow)
    wait_for((fold / "checkpoint_epoch_1.pth").is_file, process)
    wait_for(lambda: (fold / "checkpoint_best.pth").is_file() and not is_writing(process), process)
    kill(process)
    hold.unlink()
    assert not (fold / "checkpoint_final.pth").exists()

    moved = narrow.rename(narrow.with_name("moved {x}"))
    fold, predictions = moved / fold.relative_to(narrow), moved / "predictions" / "test" / "narrow"
    begun = (predictions / "predict.json").stat().st_mtime_ns
    process = start_smoke("narrow2030", moved)
    wait_for(lambda: newer(predictions, begun) and list(predictions.glob("members/*/*.nii.gz")), process)
    kill(process)
    run_smoke("narrow2030", moved)

    assert "--c" in (moved / "logs" / "train" / "narrow" / "fold_1.log").read_text().split()
    assert "are there already" in (moved / "logs" / "predict" / "narrow.log").read_text()
    resumed = weights(fold)
    assert all(torch.equal(trained[name], resumed[name]) for name in trained)
    assert [files(moved, pattern) for pattern in results] == expected
    assert (fold.with_name("fold_0") / "checkpoint_final.pth").stat().st_mtime_ns == untouched


def is_writing(process: psutil.Popen) -> bool:
    """Whether a process below this one holds a checkpoint open."""
    for member in process.children(recursive=True):
        with suppress(psutil.Error):
            if any(file.path.endswith(".pth") for file in member.open_files()):
                return True
    return False


def newer(folder: Path, than_ns: int) -> bool:
    with suppress(FileNotFoundError):  # the job takes the old folder away in between
        return (folder / "predict.json").stat().st_mtime_ns > than_ns
    return False


def test_published_recipes_run_side_by_side(tmp_path):
    """Two stages with maps in between, and three 2-D networks as one: all ways in which models depend on others."""
    both = tmp_path / "both.yaml"
    both.write_text("title: Two papers\ninclude: [lyu2020, hashemi2021]\n")
    folder = tmp_path / "run"
    run_smoke(str(both), folder, "--folds", "0")
    for name in ("lyu2020.final", "hashemi2021.nested"):
        assert len(json.loads((folder / "results" / f"{name}.json").read_text())["cases"]) == 2
        assert len(list((folder / "submission" / name).glob("*.nii.gz"))) == 2
    assert len(json.loads((folder / "ranking.json").read_text())) > 0


@pytest.mark.skipif(
    not (shutil.which("slurmctld") and shutil.which("munged") and hasattr(os, "geteuid") and os.geteuid() == 0)
    or Path("/etc/slurm/slurm.conf").exists(),
    reason="needs root, Debian's slurm-wlm and munge, and no other Slurm: see tests/slurm/one_node.sh",
)
def test_slurm_runs_a_recipe_though_a_job_is_cancelled(hold, tmp_path):
    here, folder = Path(__file__).parents[1] / "slurm", tmp_path / "run"
    slurm = Path("/tmp", f"nnunet_brats_slurm_{os.getpid()}")  # munge's user has to get at it; pytest's are closed
    subprocess.run([here / "one_node.sh", "start", slurm], check=True)
    try:
        hold.touch()
        options = ("--folds", "0", "--executor", "slurm", "--profile", str(here / "profile"))
        process = psutil.Popen(smoke("narrow2030", folder, *options), stdout=subprocess.PIPE, text=True)
        wait_for(lambda: list(folder.glob("nnUNet_results/*/*/fold_0/checkpoint_best.pth")), process)
        time.sleep(1)
        listed = subprocess.run(["squeue", "-h", "-o", "%i %k"], capture_output=True, text=True).stdout
        number = next(line.split()[0] for line in listed.splitlines() if "narrow_fold_0" in line)
        subprocess.run(["scancel", number], check=True)
        hold.unlink()
        said = process.communicate()[0]
        assert process.returncode == 0, said
        log = (folder / "logs" / "train" / "narrow" / "fold_0.log").read_text()
        assert {"--c", "--val"} & set(log.split()), "a second attempt begins where the first was cancelled"
        assert len(list((folder / "submission").glob("*.nii.gz"))) == 2
    finally:
        hold.unlink(missing_ok=True)
        subprocess.run([here / "one_node.sh", "stop", slurm], check=False)
        shutil.rmtree(slurm, ignore_errors=True)
