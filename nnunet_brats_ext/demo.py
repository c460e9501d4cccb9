"""`nnunet_brats demo`: the whole way from a BraTS folder to a submission, by real commands on synthetic patients.

Every command is printed as it would be typed, so the demo is also the shortest tutorial. It runs on two CPU cores in
minutes, because heads are coarse and training is brief: its scores say that everything works, not how well.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nnunet_brats_ext.dataset_conversion.layouts import LAYOUTS
from nnunet_brats_ext.papers import find_papers
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.options import Options, argument, option
from nnunet_brats_ext.storage.shared_options import device_option
from nnunet_brats_ext.training.environment import EPOCHS, ITERATIONS

MARK = ".nnunet_brats_demo"  # a folder that has it was made by the demo and may be made anew
DATASET = "998"
NAME = f"Dataset{DATASET}_BraTSDemo"
CONFIGURATION = "3d_fullres"
OURS, BASELINE = (find_papers(external="")[name].trainers[0].name for name in ("lyu2020", "baseline"))
# The lines of nnU-Net's output that are shown while it runs.
NEWS = re.compile(r"Epoch \d+|train_loss -?[\d.]+|Pseudo dice|[Pp]redicting|Preprocessing|fingerprint|\d+%")


@dataclass(frozen=True)
class DemoOptions(Options):
    """Where and how much. The default takes about eight minutes on two cores; tests take less."""

    folder: Path = argument("folder of the demo, made anew", Path("brats_demo"), writes="folder")
    device: str = device_option("cpu", aliases=("--device",))
    cases: int = option(default=16, at_least=4, help="synthetic patients, held-out ones included")
    held_out: int = option(default=4, at_least=1, help="of them not for training")
    size: tuple[int, int, int] = option(
        default=(40, 48, 40), at_least=32, metavar=("X", "Y", "Z"), help="voxels of a head"
    )
    contrast: float = option(default=1.8, above=0, help="of tumours, for brief training; 1 is that of patients")
    epochs: int = option(default=8, at_least=1, help="of each training")
    iterations: int = option(default=11, at_least=1, help="per epoch")
    folds: tuple[int, ...] = option(default=(0, 1), at_least=0, at_most=4, help="to train")
    memory_gb: float = option(default=0.1, above=0, help="makes nnU-Net plan patches that a CPU can train in seconds")


class Demo:
    """Runs the commands in a folder of its own, and keeps the full output of each in `logs/`."""

    def __init__(self, options: DemoOptions):
        self.folder, self.scale, self.device = options.folder.resolve(), options, options.device
        self.console = Console(soft_wrap=True, highlight=False)
        self.settings = {
            name: str(self.folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        }
        self.begin = time.monotonic()
        self.commands_run = 0

    def run(self) -> None:
        self.prepare_folder()
        self.make_data()
        first, folds = self.scale.folds[:1], self.scale.folds
        for trainer, its_folds in ((OURS, folds), (BASELINE, first)):
            for fold in its_folds:
                self.train(trainer, fold)
                self.predict(trainer, fold)
        self.ensemble(OURS)
        # One fold of each is the fair comparison; the folds together are what one would submit.
        entries = [OURS, *(name_of(trainer, first[0]) for trainer in (OURS, BASELINE))]
        scores = {entry: self.submit(entry) for entry in entries}
        picture = draw_cases(
            self.folder / "nnUNet_raw" / NAME / "imagesTs",
            {"reference": self.folder / "references"} | {e: self.folder / "submission" / e for e in entries},
            self.folder / "predictions.png",
        )
        self.print_scores(scores)
        self.console.print(f"\npictures: {picture}")
        for curve in sorted(self.folder.glob("nnUNet_results/*/*/*/progress.png")):
            self.console.print(f"          {curve}")
        self.console.print(f"all in {(time.monotonic() - self.begin) / 60:.1f} minutes")

    # ---- the steps -------------------------------------------------------------------------------------------------

    def prepare_folder(self) -> None:
        if self.folder.exists() and any(self.folder.iterdir()) and not (self.folder / MARK).exists():
            raise UserError(f"{self.folder} exists and is not of an earlier demo: choose another folder")
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "logs").mkdir(parents=True)
        (self.folder / MARK).touch()
        self.console.rule("where nnU-Net keeps its files")
        for name, path in self.settings.items():
            Path(path).mkdir()
            self.console.print(f"$ export {name}={shlex.quote(path)}", style="cyan")
        self.console.print(f"everything below runs in {self.folder}")

    def make_data(self) -> None:
        scale = self.scale
        self.step(
            "synthetic patients, laid out as BraTS 2020",
            *("nnunet_brats", "phantom", "release", "--cases", scale.cases, "--unlabelled", scale.held_out),
            "--size",
            *scale.size,
            *("--contrast", scale.contrast, "--references", "references"),
        )
        self.step("from BraTS to nnU-Net", "nnunet_brats", "convert", "release", "-d", DATASET, "--name", "BraTSDemo")
        self.step(
            "nnU-Net plans and preprocesses; the memory target makes patches small enough for a CPU",
            *("nnUNetv2_plan_and_preprocess", "-d", DATASET, "-c", CONFIGURATION, "--verify_dataset_integrity"),
            *("-gpu_memory_target", scale.memory_gb, "-npfp", 2, "-np", 2),
        )

    def train(self, trainer: str, fold: int) -> None:
        self.step(
            f"{trainer}, fold {fold}: {self.scale.epochs} short epochs",
            *("nnUNetv2_train", DATASET, CONFIGURATION, fold, "-tr", trainer, "-device", self.device),
            environment={
                EPOCHS: str(self.scale.epochs),
                ITERATIONS: str(self.scale.iterations),
            },
        )

    def predict(self, trainer: str, fold: int) -> None:
        self.step(
            f"held-out patients by {trainer}, fold {fold}",
            *("nnUNetv2_predict", "-i", f"nnUNet_raw/{NAME}/imagesTs", "-o", f"predictions/{name_of(trainer, fold)}"),
            *("-d", DATASET, "-c", CONFIGURATION, "-f", fold, "-tr", trainer, "-device", self.device),
            *("--save_probabilities", "--disable_tta", "-npp", 1, "-nps", 1),
        )

    def ensemble(self, trainer: str) -> None:
        folders = [f"predictions/{name_of(trainer, fold)}" for fold in self.scale.folds]
        together = f"predictions/{trainer}"
        self.step(f"{trainer}: the folds together", "nnUNetv2_ensemble", "-i", *folders, "-o", together, "-np", 1)

    def submit(self, entry: str) -> dict:
        """Restore the release's labels and names, and score the submission as the challenge would."""
        self.step(
            "back to the release's labels and names, checked against its rules",
            *("nnunet_brats", "restore", f"predictions/{entry}", "-o", f"submission/{entry}", "-d", DATASET),
        )
        self.step(
            f"{entry} as the challenge scores it",
            *("nnunet_brats", "evaluate", "references", f"submission/{entry}", "--preset", "brats2020"),
            *("--labels", "released", "-o", f"scores/{entry}.json"),
        )
        return read_json(self.folder / "scores" / f"{entry}.json")

    def print_scores(self, scores: Mapping[str, dict]) -> None:
        steps = self.scale.epochs * self.scale.iterations
        table = Table(title=f"Dice on {self.scale.held_out} held-out patients after {steps} steps per fold")
        table.add_column("prediction")
        regions = list(next(iter(scores.values()))["summary"])
        for region in regions:
            table.add_column(region, justify="right")
        for entry, results in scores.items():
            table.add_row(entry, *(f"{results['summary'][region]['dice']['mean']:.3f}" for region in regions))
        self.console.print(table)

    # ---- running commands ------------------------------------------------------------------------------------------

    def step(self, title: str, *command: str | int | float, environment: Mapping[str, str] | None = None) -> None:
        """Print a command as one would type it, run it with a line of news, keep its output, stop if it fails."""
        words = [str(word) for word in command]
        extra = dict(environment or {})
        self.commands_run += 1
        log = self.folder / "logs" / f"{self.commands_run:02d}_{words[0]}.txt"
        self.console.rule(title)
        prefix = "".join(f"{name}={value} " for name, value in extra.items())
        self.console.print(f"$ {prefix}{shlex.join(words)}", style="cyan")
        begin = time.monotonic()
        # One worker each: on few cores, and with small heads, more of nnU-Net's processes cost more than they give.
        workers = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / words[0]), *words[1:]],
            cwd=self.folder,
            env={**workers, **os.environ, **self.settings, **extra},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,  # with universal newlines: a progress bar's carriage returns end lines, too
        )
        assert process.stdout is not None
        with log.open("w") as file, self.console.status("starting") as status:
            lines: list[str] = []
            for line in process.stdout:
                file.write(line)
                lines = [*lines[-30:], line.rstrip()]
                if NEWS.search(line):
                    status.update(line.strip()[-100:].replace("[", r"\["))
        if process.wait() != 0:
            raise UserError("\n".join([*lines, f"`{shlex.join(words)}` failed; its whole output is in {log}"]))
        if words[0] == "nnunet_brats":
            self.console.print("\n".join(line for line in lines if line and "━" not in line), markup=False, style="dim")
        self.console.print(f"done in {time.monotonic() - begin:.0f} s", style="green")


def name_of(trainer: str, fold: int) -> str:
    return f"{trainer}_fold{fold}"


def draw_cases(images: Path, label_maps: Mapping[str, Path], out: Path) -> Path:
    """One row per case: the slice with most tumour of T1ce and FLAIR, with the outlines of WT, TC and ET.

    images: a folder of a data set in nnUNet_raw.
    """
    from nnunet_brats_ext.evaluation.pictures import HeadImage, PicturePanel, draw_grid, find_slices, read_upright

    scheme = LAYOUTS["BraTS2020"].numbering
    in_release = {name: tuple(scheme.trained[label] for label in labels) for name, labels in scheme.regions.items()}
    cases = sorted(path.name.removesuffix(".nii.gz") for path in label_maps["reference"].glob("*.nii.gz"))
    description = DatasetDescription.read(images.parent)
    channels = [description.channel(sequence) for sequence in ("T1ce", "FLAIR")]
    rows = []
    for case in cases:
        t1ce, flair = (HeadImage.read(case, images / f"{case}_{channel:04d}.nii.gz") for channel in channels)
        maps = {name: read_upright(folder / f"{case}.nii.gz")[0] for name, folder in label_maps.items()}
        index, *_ = find_slices([maps["reference"]], flair.box)
        grey = flair.grey(flair.crop(flair.image[index]))
        rows.append(
            [
                PicturePanel(t1ce.grey(flair.crop(t1ce.image[index])), "T1ce"),
                *(PicturePanel(grey, name, flair.crop(labels[index])) for name, labels in maps.items()),
            ]
        )
    draw_grid(rows, cases, in_release).savefig(out)
    return out
