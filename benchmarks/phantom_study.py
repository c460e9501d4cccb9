"""A paper's claim in miniature, on synthetic patients: train its variants over seeds, predict, score, compare.

    python benchmarks/phantom_study.py henry2020 OUT [--seeds 3] [--epochs 28] [--iterations 12]

Every command is logged in OUT/log.txt, and none that succeeded is run again: a study goes on where it was stopped, and
more seeds add to those that are there. Scored are held-out patients. A new study is a row in `STUDIES`; trainers that
only it needs lie in `study_trainers/`. Phantoms, few steps and small networks: a study tells whether the parts do what
they should to each other, not what a method is worth on patients.
"""

import argparse
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
TRAINERS = Path(__file__).parent / "study_trainers"


@dataclass(frozen=True)
class Model:
    """What is trained, on fold 0: a trainer on a configuration of the plans, whose entry `changes` replaces in part."""

    trainer: str
    configuration: str
    changes: Mapping[str, Any]
    normalise: str | None = None  # as `nnunet_brats convert` has it


@dataclass(frozen=True)
class Study:
    """Models by name; predictions by name, each of a model with options of `nnunet_brats predict`.

    ensembles: by name, the options of `nnunet_brats ensemble` and the predictions it takes.
    """

    models: Mapping[str, Model]
    predictions: Mapping[str, tuple[str, Sequence[str]]]
    ensembles: Mapping[str, tuple[Sequence[str], Sequence[str]]]


def henry(trainer: str, batch_size: int, configuration: str, normalise: str | None = None) -> Model:
    return Model(trainer, configuration, dict(patch_size=[32, 32, 32], batch_size=batch_size), normalise)


STUDIES = {
    "henry2020": Study(
        models={
            "A": henry("StudyHenryATrainer", 1, "henry", "percentile-minmax"),
            "A without averaging": henry("StudyHenryAWithoutAveragingTrainer", 1, "henry", "percentile-minmax"),
            "B": henry("StudyHenryBTrainer", 3, "henry_b"),
        },
        predictions={
            "A": ("A", ("--tta", "none")),
            "A, TTA": ("A", ("--tta", "henry16")),
            "A without averaging": ("A without averaging", ("--tta", "none")),
            "A without averaging, TTA": ("A without averaging", ("--tta", "henry16")),
            "B": ("B", ("--tta", "none")),
            "B, TTA": ("B", ("--tta", "henry16")),
        },
        ensembles={"A and B merged, TTA": (("--method", "two-pass"), ("A, TTA", "B, TTA"))},
    ),
}


class Workbench:
    """A study's folder: runs commands there, each once, with nnU-Net's folders inside."""

    def __init__(self, folder: Path, study: Study):
        self.folder, self.study = folder.resolve(), study
        # One data set per way of normalising, numbered in the order of the models.
        ways = dict.fromkeys(model.normalise for model in study.models.values())
        self.datasets = {way: str(910 + number) for number, way in enumerate(ways)}
        for name in ("done", *FOLDERS[:2]):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def run(self, *words: str, seed: int | None = None, **settings: str) -> None:
        """One command, its output in the log; results, and so trained models, are kept apart by seed."""
        results = self.folder / ("nnUNet_results" if seed is None else f"nnUNet_results_{seed}")
        key = hashlib.sha256(repr([words, seed, sorted(settings.items())]).encode()).hexdigest()[:20]
        if (self.folder / "done" / key).exists():
            return
        results.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            **{name: str(self.folder / name) for name in FOLDERS},
            "nnUNet_results": str(results),
            "nnUNet_extTrainer": os.pathsep.join([str(TRAINERS), SHIM]),
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "1",
            **settings,
        }
        print("+", shlex.join(words), flush=True)
        with (self.folder / "log.txt").open("a") as log:
            program = str(Path(sys.executable).parent / words[0])
            done = subprocess.run([program, *words[1:]], cwd=self.folder, env=environment, stdout=log, stderr=log)
        if done.returncode:
            raise SystemExit(f"failed; the reason is at the end of {self.folder / 'log.txt'}")
        (self.folder / "done" / key).write_text(shlex.join(words))

    def prepare(self, cases: int, held_out: int) -> None:
        """Patients; a data set per normalisation, planned and preprocessed, with the study's patches and batches."""
        size = ("--size", "48", "56", "48", "--contrast", "1.8", "--anatomy", "procedural")
        patients = ("--cases", str(cases + held_out), "--unlabelled", str(held_out))
        self.run("nnunet_brats", "phantom", "release", *patients, *size, "--references", "references")
        for way, dataset in self.datasets.items():
            normalise = ("--normalise", way) if way else ()
            self.run("nnunet_brats", "convert", "release", "-d", dataset, "--name", "Study", *normalise)
            self.run("nnUNetv2_plan_and_preprocess", "-d", dataset, "-c", "3d_fullres", "-npfp", "1", "-np", "1")
            self.run("nnunet_brats", "plan", dataset)
            file = self.folder / "nnUNet_preprocessed" / f"Dataset{dataset}_Study" / f"{PLANS}.json"
            plans = json.loads(file.read_text())
            for model in self.study.models.values():
                if model.normalise == way:
                    plans["configurations"][model.configuration] |= model.changes
            file.write_text(json.dumps(plans, indent=2))

    def run_seed(self, seed: int, epochs: int, iterations: int) -> None:
        short = {
            "nnUNet_brats_seed": str(seed),
            "nnUNet_brats_epochs": str(epochs),
            "nnUNet_brats_iterations": str(iterations),
        }
        for model in self.study.models.values():
            dataset = self.datasets[model.normalise]
            train = (dataset, model.configuration, "0", "-tr", model.trainer, "-p", PLANS, "-device", "cpu")
            self.run("nnUNetv2_train", *train, seed=seed, **short)
        for name, (key, options) in self.study.predictions.items():
            model = self.study.models[key]
            dataset = self.datasets[model.normalise]
            images = f"nnUNet_raw/Dataset{dataset}_Study/imagesTs"
            trained = ("-d", dataset, "-tr", model.trainer, "-c", model.configuration, "-p", PLANS, "-f", "0")
            place = ("-i", images, "-o", self.place("predictions", name, seed), "-device", "cpu", "-np", "0")
            self.run("nnunet_brats", "predict", *place, *trained, *options, seed=seed)
        for name, (options, members) in self.study.ensembles.items():
            folders = [self.place("predictions", member, seed) for member in members]
            out = self.place("predictions", name, seed)
            self.run("nnunet_brats", "ensemble", "-i", *folders, "-o", out, *options, "-np", "1")
        for name in (*self.study.predictions, *self.study.ensembles):
            prediction, submission = (self.place(kind, name, seed) for kind in ("predictions", "submissions"))
            scores = self.place("scores", name, seed) + ".json"
            self.run("nnunet_brats", "restore", prediction, "-o", submission, "-d", next(iter(self.datasets.values())))
            self.run(
                "nnunet_brats",
                "evaluate",
                "references",
                submission,
                "--preset",
                "brats2020",
                "--labels",
                "released",
                "-o",
                scores,
            )

    @staticmethod
    def place(kind: str, name: str, seed: int) -> str:
        return f"{kind}/{name.replace(', ', '_').replace(' ', '_')}_{seed}"

    def table(self, seeds: Sequence[int]) -> str:
        """Mean Dice of the held-out patients: mean and deviation over the seeds, as a table in Markdown."""
        lines = [f"| {len(seeds)} seeds | Dice WT | TC | ET |", "|---|---|---|---|"]
        for name in (*self.study.predictions, *self.study.ensembles):
            files = [self.folder / f"{self.place('scores', name, seed)}.json" for seed in seeds]
            summaries = [json.loads(file.read_text())["summary"] for file in files]
            cells = [summarise([summary[region]["dice"]["mean"] for summary in summaries]) for region in REGIONS]
            lines.append(f"| {' | '.join([name, *cells])} |")
        return "\n".join(lines)


def summarise(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=28, help="(default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=12, help="per epoch (default: %(default)s)")
    parser.add_argument("--cases", type=int, default=15, help="that train and validate (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=8, help="that are scored (default: %(default)s)")
    options = parser.parse_args()
    bench = Workbench(options.out, STUDIES[options.study])
    bench.prepare(options.cases, options.held_out)
    for seed in range(options.seeds):
        bench.run_seed(seed, options.epochs, options.iterations)
        print(bench.table(range(seed + 1)), flush=True)


if __name__ == "__main__":
    main()
