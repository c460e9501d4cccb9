"""Where a study happens: a folder of synthetic patients, data sets, trained models, predictions and scores."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from nnunet_brats_ext.plugin import SHIM

PLANS = "BraTSPlans"
REGIONS = ("WT", "TC", "ET")
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
TRAINERS = Path(__file__).parent / "trainers"


@dataclass(frozen=True)
class Model:
    """A trainer on a configuration of a data set."""

    dataset: str
    trainer: str
    configuration: str

    @property
    def words(self) -> tuple[str, ...]:
        return ("-d", self.dataset, "-tr", self.trainer, "-c", self.configuration, "-p", PLANS)


class Workbench:
    """A study's folder: runs commands there, each once, with nnU-Net's folders inside."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        for name in ("done", *FOLDERS):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def keep_to(self, what: str) -> None:
        """Note what the folder is for; another study there is an error."""
        note = self.folder / "study.txt"
        if note.exists() and note.read_text() != what:
            raise SystemExit(f"{self.folder} holds {note.read_text()}, not {what}; choose another folder")
        note.write_text(what)

    def run(self, *words: str, **settings: str) -> None:
        """One command, its output in the log."""
        done = self.folder / "done" / hashlib.sha256(repr([words, sorted(settings.items())]).encode()).hexdigest()[:20]
        if done.exists():
            return
        environment = {
            **os.environ,
            **{name: str(self.folder / name) for name in FOLDERS},
            "nnUNet_extTrainer": os.pathsep.join([str(TRAINERS), SHIM]),
            "nnUNet_def_n_proc": "1",
            "OMP_NUM_THREADS": "1",
            **settings,
        }
        print("+", shlex.join(words), flush=True)
        with (self.folder / "log.txt").open("a") as log:
            program = str(Path(sys.executable).parent / words[0])
            code = subprocess.run([program, *words[1:]], cwd=self.folder, env=environment, stdout=log, stderr=log)
        if code.returncode:
            raise SystemExit(f"failed; the reason is at the end of {self.folder / 'log.txt'}")
        done.write_text(shlex.join(words))

    def phantoms(self, release: str, labelled: int, unlabelled: int, seed: int = 0) -> None:
        """Patients; the labels of those that come without are in references_RELEASE."""
        size = ("--size", "48", "56", "48", "--contrast", "1.8", "--anatomy", "procedural", "--seed", str(seed))
        patients = ("--cases", str(labelled + unlabelled), "--unlabelled", str(unlabelled))
        self.run("nnunet_brats", "phantom", release, *patients, *size, "--references", f"references_{release}")

    def convert(self, release: str, dataset: str, *options: str) -> None:
        self.run("nnunet_brats", "convert", release, "-d", dataset, "--name", "Study", *options)

    def plan(self, dataset: str, changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Plan and preprocess; then change configurations, say to small patches, or add some."""
        self.run("nnUNetv2_plan_and_preprocess", "-d", dataset, "-c", "3d_fullres", "-npfp", "1", "-np", "1")
        self.run("nnunet_brats", "plan", dataset)
        file = self.folder / "nnUNet_preprocessed" / f"Dataset{dataset}_Study" / f"{PLANS}.json"
        plans = json.loads(file.read_text())
        for name, change in changes.items():
            plans["configurations"][name] = plans["configurations"].get(name, {}) | change
        file.write_text(json.dumps(plans, indent=2))

    def split(self, dataset: str, folds: int) -> None:
        """Every so many-th case validates; nnU-Net would make five folds."""
        preprocessed = self.folder / "nnUNet_preprocessed" / f"Dataset{dataset}_Study"
        cases = sorted(path.name.split(".")[0] for path in (preprocessed / "gt_segmentations").iterdir())
        parts = [cases[fold::folds] for fold in range(folds)]
        splits = [{"train": sorted(set(cases) - set(part)), "val": part} for part in parts]
        (preprocessed / "splits_final.json").write_text(json.dumps(splits))


@dataclass(frozen=True)
class Trial:
    """All models of one seed, each trained for as many steps, with what they predict and how that scores."""

    bench: Workbench
    seed: int
    epochs: int
    iterations: int

    @property
    def settings(self) -> dict[str, str]:
        """Trained models are kept apart by seed."""
        results = self.bench.folder / f"nnUNet_results_{self.seed}"
        results.mkdir(exist_ok=True)
        return {"nnUNet_results": str(results)}

    def train(self, model: Model, *folds: int, **settings: str) -> None:
        short = {
            "nnUNet_brats_seed": str(self.seed),
            "nnUNet_brats_epochs": str(self.epochs),
            "nnUNet_brats_iterations": str(self.iterations),
            "nnUNet_n_proc_DA": "0",  # patches are drawn between the steps, from seeded numbers
        }
        how = ("-tr", model.trainer, "-p", PLANS, "-device", "cpu")
        for fold in folds or (0,):
            words = (model.dataset, model.configuration, str(fold), *how)
            self.bench.run("nnUNetv2_train", *words, **self.settings, **short, **settings)

    def predict(self, name: str, model: Model, *options: str, images: str | None = None) -> str:
        """The images without labels of the model's data set, unless others are given."""
        images = images or f"nnUNet_raw/Dataset{model.dataset}_Study/imagesTs"
        out = self.place("predictions", name)
        place = ("-i", images, "-o", out, "-device", "cpu", "-np", "0")
        self.bench.run("nnunet_brats", "predict", *place, *model.words, *options, **self.settings)
        return out

    def ensemble(self, name: str, members: Sequence[str], *options: str) -> str:
        folders = [self.place("predictions", member) for member in members]
        out = self.place("predictions", name)
        self.bench.run("nnunet_brats", "ensemble", "-i", *folders, "-o", out, *options, "-np", "1")
        return out

    def restore(self, name: str, dataset: str) -> str:
        out = self.place("submissions", name)
        self.bench.run("nnunet_brats", "restore", self.place("predictions", name), "-o", out, "-d", dataset)
        return out

    def score(self, name: str, dataset: str, references: str) -> str:
        """Dice of a prediction; `dataset` is what its images were converted to. The row's name."""
        return self._evaluate(name, references, self.restore(name, dataset))

    def agreement(self, name: str, other: str, dataset: str) -> str:
        """Dice between two predictions. The row's name."""
        return self._evaluate(f"{name} against {other}", self.restore(other, dataset), self.restore(name, dataset))

    def _evaluate(self, row: str, references: str, submission: str) -> str:
        words = ("--preset", "brats2020", "--labels", "released", "-o", f"{self.place('scores', row)}.json")
        self.bench.run("nnunet_brats", "evaluate", references, submission, *words)
        return row

    def place(self, kind: str, name: str) -> str:
        return f"{kind}/{file_name(name)}_{self.seed}"


def file_name(name: str) -> str:
    return name.replace(",", "").replace("+", "and").replace(" ", "_")


def table(folder: Path, names: Sequence[str], seeds: Sequence[int]) -> str:
    """Mean Dice of the scored patients: mean and deviation over the seeds, as a table in Markdown."""
    lines = [f"| {len(seeds)} seeds | WT | TC | ET |", "|---|---|---|---|"]
    for name in names:
        files = [folder / "scores" / f"{file_name(name)}_{seed}.json" for seed in seeds]
        summaries = [json.loads(file.read_text())["summary"] for file in files]
        cells = [summarise([summary[region]["dice"]["mean"] for summary in summaries]) for region in REGIONS]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def summarise(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
