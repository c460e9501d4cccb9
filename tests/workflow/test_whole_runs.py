"""Whole recipes on phantoms, from release to report and submission, with networks of few channels."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

pytest.importorskip("snakemake", reason="Snakemake 9 needs Python 3.11")

import torch
from workflow_runs import kill, perform_here, wait_for, write_narrow, write_own

from nnunet_brats_ext.bundles import bundle
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.papers import EXTERNAL
from nnunet_brats_ext.workflow.perform import environment_of
from nnunet_brats_ext.workflow.run import RunOptions, plan_run
from nnunet_brats_ext.workflow.state import Run, open_run, states_of

pytestmark = pytest.mark.end_to_end
PAPERS = {"lyu2020": "final", "hashemi2021": "nested"}  # two stages with maps in between; three 2-D models as one


def command(*words: str | Path) -> list[str]:
    return [str(Path(sys.executable).with_name(str(words[0]))), *map(str, words[1:])]


def smoke(recipe: str | Path, folder: Path, *options: str) -> list[str]:
    words = ("nnunet_brats", "run", recipe, "--scale", "smoke", "-device", "cpu", "--folds", "0", "-o", folder)
    return command(*words, *options)


@contextmanager
def searching(folder: Path) -> Iterator[None]:
    """nnU-Net searches a folder for trainers before all others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(EXTERNAL, os.pathsep.join([str(folder), os.environ.get(EXTERNAL, "")]))
        yield


@dataclass
class Interrupted:
    """A run that was killed twice and moved once, before it ended."""

    folder: Path
    finished: dict[Path, int] = field(default_factory=dict)  # what was there before: file -> when it was written, in ns

    @property
    def run(self) -> Run:
        return open_run(self.folder)

    def log(self, job: str) -> str:
        return self.run.log(job).read_text()


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Iterator[Interrupted]:
    """Two published recipes side by side, killed in a training, moved, killed in a prediction, and ended."""
    place = tmp_path_factory.mktemp("workflow")
    hold = write_narrow(place / "narrow", list(PAPERS), "BraTSAttentionVAETrainer:lyu_stage2")
    (recipe := place / "both.yaml").write_text(f"title: Two papers\ninclude: [{', '.join(PAPERS)}]\n")
    first, folder = place / "a b Ü", place / "moved {x}"
    with searching(hold):
        (hold / "train").touch()
        process = start(smoke(recipe, first))
        wait_for((hold / "held_train").exists, process)
        kill(process)
        (hold / "train").unlink()

        first.rename(folder)
        finished = {path: path.stat().st_mtime_ns for path in folder.glob("nnUNet_results/**/checkpoint_final.pth")}
        (hold / "predict").touch()
        process = start(smoke(recipe, folder))
        wait_for((hold / "held_predict").exists, process)
        kill(process)
        (hold / "predict").unlink()

        done = subprocess.run(smoke(recipe, folder), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        yield Interrupted(folder, finished)


def start(words: list[str]) -> psutil.Popen:
    return psutil.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_published_recipes_run_from_phantoms_to_report_and_submission(published, capsys):
    folder = published.folder
    assert {state for state, _ in states_of(published.run).values()} == {"done"}
    for paper, submitted in PAPERS.items():
        name = f"{paper}.{submitted}"
        results = json.loads((folder / "results" / f"{name}.json").read_text())
        assert set(results["summary"]) == {"WT", "TC", "ET"}
        assert len(results["cases"]) == 2
        assert len(list((folder / "submission" / name).glob("*.nii.gz"))) == 2
    assert (folder / "report.html").stat().st_size > 10_000
    assert (folder / "ranking.json").is_file()
    assert main(["status", str(folder)]) == 0
    assert f"{len(published.run.jobs)} done" in capsys.readouterr().out


def test_a_run_that_was_killed_goes_on_where_it_was(published):
    assert "--c" in published.log("train/lyu2020.stage2/fold_0").split()
    predicted = published.log("predict/lyu2020.stage2")
    assert predicted.count("nnunet_brats predict") == 2
    assert "2 cases predicted into predictions/test/lyu2020.stage2, 1 of them before" in predicted
    assert published.log("train/lyu2020.stage1/fold_0").count("nnUNetv2_train") == 1
    assert published.finished
    assert all(path.stat().st_mtime_ns == written for path, written in published.finished.items())


def test_it_ends_with_what_an_uninterrupted_one_makes(published, tmp_path):
    """The training and the prediction that were killed, once more and without a break; between them the choice."""
    run = published.run
    training, choosing, predicting = (
        run.jobs[name] for name in ("train/lyu2020.stage2/fold_0", "choose/lyu2020.stage2", "predict/lyu2020.stage2")
    )
    results = tmp_path / "nnUNet_results"
    model = training.result.parent
    (results / model.parent.name).mkdir(parents=True)
    for other in (published.folder / model.parent).iterdir():
        if other.name != model.name:
            (results / model.parent.name / other.name).symlink_to(other)
    environment = environment_of(run, training) | {"nnUNet_results": str(results)}
    for words in (
        training.command,
        choosing.command,
        [str(tmp_path / "again") if word == str(predicting.result) else word for word in predicting.command],
    ):
        subprocess.run(command(*words), cwd=published.folder, env=environment, check=True, capture_output=True)

    interrupted = weights(published.folder / training.result)
    again = weights(results / model.parent.name / model.name / "fold_0")
    assert all(torch.equal(again[name], interrupted[name]) for name in again)
    expected = files(tmp_path / "again")
    assert len(expected) == 2
    assert files(published.folder / predicting.result) == expected


def test_a_run_as_a_bundle_gives_its_submissions_in_an_empty_environment(published, tmp_path):
    """Two stages with votes and rules, and three binary models as one: byte for byte, with another home."""
    folder = published.folder
    empty = {
        name: os.environ[name] for name in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS", EXTERNAL) if name in os.environ
    }
    patient = folder / "release" / "MICCAI_BraTS2020_ValidationData" / "BraTS20_Validation_005"
    for paper, submitted in PAPERS.items():
        name, out = f"{paper}.{submitted}", tmp_path / paper
        bundle(folder, out=tmp_path / f"{paper}.zip", prediction=name, trusted=True)
        words = ("nnunet_brats", "segment", tmp_path / f"{paper}.zip", patient, "-o", out, "-device", "cpu")
        environment = {**empty, "HOME": str(tmp_path / "home")}
        done = subprocess.run(
            command(*words, "--labels", "brats-before-2023"), env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (segmented,) = out.glob("*.nii.gz")
        assert segmented.read_bytes() == (folder / "submission" / name / segmented.name).read_bytes()


def every_row(paper: str, place: Path) -> Run:
    """A recipe whole, on phantoms with networks of few channels; each of its rows has scores of all three regions."""
    with searching(write_narrow(place / "narrow", [paper], "")):
        recipe, run = plan_run(RunOptions(paper, folder=place / "run", scale="smoke", device="cpu", folds=(0,)))
        run.write()
        perform_here(run)
    assert {path.stem for path in (run.folder / "results").glob("*.json")} == set(recipe.evaluated)
    for row in recipe.evaluated:
        results = json.loads((run.folder / "results" / f"{row}.json").read_text())
        for one in results.get("models", {row: results}).values():
            assert set(one["summary"]) == {"WT", "TC", "ET"}
    assert (run.folder / "report.html").stat().st_size > 10_000
    return run


def test_every_row_of_a_cascade_of_votes_and_snapshots(tmp_path):
    """Lyu & Shu 2020: single models, ensembles by the best snapshots and a row of each, in both stages."""
    run = every_row("lyu2020", tmp_path)
    each = json.loads((run.folder / "results" / "stage2_each.json").read_text())["models"]
    assert len(each) == len([name for name in run.jobs if name.startswith("predict/cv/stage2_each.")]) > 2


def test_every_row_of_a_recipe_that_holds_cases_out_by_the_checkpoints_that_others_have_chosen(tmp_path):
    """Zhou et al. 2020: eleven networks of all other cases, and a twelfth by the best snapshot of a fold."""
    run = every_row("zhou2020", tmp_path)
    (held_out,) = {path.name.removesuffix(".nii.gz") for path in run.folder.glob("nnUNet_raw/Dataset*/labelsTs/*")}
    for file in (run.folder / "results").glob("*.json"):
        assert set(json.loads(file.read_text())["cases"]) == {held_out}
    chosen = json.loads((run.folder / "choices" / "cga_10.json").read_text())
    assert set(chosen["scores"]["0"]) == {f"BraTSOMNetCGATrainer:omnet{name}" for name in (" epoch_1", " epoch_2", "")}
    assert "chosen:1" in run.jobs["predict/cga_10"].command
    submitted = {path.name for path in (run.folder / "submission").glob("*.nii.gz")}
    assert len(submitted) == 2
    assert not any(held_out in name for name in submitted)


def weights(fold: Path) -> dict[str, torch.Tensor]:
    return torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)["network_weights"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.nii.gz"))}


@pytest.mark.skipif(
    not (shutil.which("slurmctld") and shutil.which("munged") and hasattr(os, "geteuid") and os.geteuid() == 0)
    or Path("/etc/slurm/slurm.conf").exists(),
    reason="needs root, Debian's slurm-wlm and munge, and no other Slurm: see tests/slurm/one_node.sh",
)
def test_slurm_runs_a_paper_of_the_users_own_though_a_job_is_cancelled(tmp_path):
    here, folder = Path(__file__).parents[1] / "slurm", tmp_path / "run"
    slurm = Path("/tmp", f"nnunet_brats_slurm_{os.getpid()}")  # munge's user has to get at it; pytest's are closed
    subprocess.run([here / "one_node.sh", "start", slurm], check=True)
    try:
        with searching(write_own(tmp_path / "own")):
            options = ("--executor", "slurm", "--profile", str(here / "profile"))
            process = subprocess.Popen(smoke("narrow2030", folder, *options), stdout=subprocess.PIPE, text=True)
            cancelled = False
            while process.poll() is None:
                if not cancelled and list(folder.glob("nnUNet_results/*/*/fold_0/checkpoint_best.pth")):
                    listed = subprocess.run(["squeue", "-h", "-o", "%i %k"], capture_output=True, text=True).stdout
                    number = next(line.split()[0] for line in listed.splitlines() if "narrow_fold_0" in line)
                    subprocess.run(["scancel", number], check=True)
                    cancelled = True
                time.sleep(0.2)
        assert cancelled
        assert process.returncode == 0, process.stdout.read() if process.stdout else ""
        log = (folder / "logs" / "train" / "narrow" / "fold_0.log").read_text()
        assert {"--c", "--val"} & set(log.split()), "a second attempt begins where the first was cancelled"
        assert len(list((folder / "submission").glob("*.nii.gz"))) == 2
    finally:
        subprocess.run([here / "one_node.sh", "stop", slurm], check=False)
        shutil.rmtree(slurm, ignore_errors=True)
