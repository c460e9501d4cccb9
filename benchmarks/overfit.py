"""Whether training and inference belong together: each system learns one patient by heart and predicts it.

    python benchmarks/overfit.py OUT PATIENT [--systems baseline lyu2020 ...] [--epochs 1.0] [--seed 1] [--bf16]
        [--threads 2]

PATIENT is the folder of one patient of BraTS 2021 (CASE_t1.nii.gz and so on). Its images are brought to 2 mm; each
system is trained on it as the paper trains, with batch and patch for a CPU, and predicts it by the paper's inference. A
Dice of 0.9 for WT, TC and ET says that what training sees and what prediction sees are the same; less has a reason to
be found. Systems whose learning rate is too low for some hundred steps train at ten times that rate, by the trainers in
benchmarks/studies/trainers/overfit.py. OUT/overfit.md is the table, with the loss of the last tenth of the epochs
beside that of the tenth before it.

Every command is logged in OUT/log.txt. A system that is done is not done again and an interrupted training goes on, so
that the command can be stopped and given anew at any time. --epochs multiplies the number of epochs of all trainings,
for losses that are not flat; such a run needs an OUT of its own, and so does another --seed. --bf16 trains in bfloat16,
about twice as fast on a processor that computes in it; prediction is in fp32 in any case. With --epochs 0.7 and --bf16,
a 3-D model trains in 13 to 21 minutes on one core; with --threads 1, two runs share two cores, each with some of the
systems and its own OUT.
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import SimpleITK as sitk
import torch
from studies.workbench import FOLDERS, PLANS, REGIONS, Workbench

from nnunet_brats_ext.storage.nnunet import FINAL, model_name
from nnunet_brats_ext.training.environment import EPOCHS, ITERATIONS, PRECISION, SEED

SPACING_MM = 2.0
STEPS = 10  # per epoch
ZSCORE, MINMAX = "940", "941"
PATCH = [64, 80, 64]  # of a brain of some 73 x 86 x 68, where that is not seen whole
SMALL = {  # what suits a CPU; all else is as planned
    "3d_fullres": dict(batch_size=1, patch_size=PATCH),
    "lyu_stage1": dict(batch_size=1, patch_size=PATCH),
    "lyu_stage2": dict(batch_size=1, patch_size=PATCH),
    "henry": dict(patch_size=PATCH),
    "henry_b": dict(batch_size=1, patch_size=PATCH),
    "lachinov_128": dict(batch_size=1, patch_size=PATCH),
    "lachinov_144": dict(batch_size=1, patch_size=PATCH),
    "lachinov_brain": dict(batch_size=1),
    "omnet": dict(batch_size=4),
    "hashemi_2d": dict(batch_size=4),
    "isensee_2020": dict(batch_size=2, patch_size=PATCH),
    "luu_2021_axial": dict(batch_size=1, patch_size=PATCH),
    "mednext_s": dict(batch_size=1, patch_size=PATCH),
    "myronenko_2023": dict(batch_size=1, patch_size=PATCH),
}


@dataclass(frozen=True)
class Trained:
    """A trainer on a configuration, for so many epochs. bf16: whether a CPU can train it in bfloat16."""

    trainer: str
    configuration: str
    epochs: int
    data: str = ZSCORE
    bf16: bool = True
    plans: str = PLANS

    @property
    def words(self) -> tuple[str, ...]:
        return ("-d", self.data, "-tr", self.trainer, "-c", self.configuration, "-p", self.plans)


@dataclass(frozen=True)
class System:
    """Models, in the order of their training, and how their predictions become one.

    predicted: the models that predict; None is all. options: of their `predict`. ensemble: words of `ensemble`.
    """

    models: tuple[Trained, ...]
    predicted: tuple[int, ...] | None = None
    options: tuple[str, ...] = ()
    ensemble: tuple[str, ...] = ()


SYSTEMS = {
    "baseline": System((Trained("BraTSBaselineTrainer", "3d_fullres", 30),)),
    "lyu2020": System(
        (Trained("BraTSVAETrainer", "lyu_stage1", 30), Trained("BraTSAttentionVAETrainer", "lyu_stage2", 30)),
        predicted=(1,),
        options=("--combine", "vote", "-prev_f", "all"),
    ),
    "henry2020": System(
        (
            Trained("QuickHenryATrainer", "henry", 30, MINMAX),
            Trained("QuickHenryBTrainer", "henry_b", 30),
        ),
        ensemble=("--method", "two-pass"),
    ),
    "lachinov2019 U-Net": System((Trained("QuickNoNewNetTrainer", "lachinov_128", 30),)),
    "lachinov2019 residual U-Net": System((Trained("QuickResUNetVAETrainer", "lachinov_144", 30),)),
    "lachinov2019 cascade": System((Trained("BraTSCascadedUNetTrainer", "lachinov_brain", 50),)),
    "lachinov2019 student": System((Trained("QuickStudentTrainer", "lachinov_144", 30),)),
    "zhou2020": System((Trained("QuickOMNetCGATrainer", "omnet", 60, bf16=False),)),
    "hashemi2021": System(
        tuple(
            Trained(f"BraTS2D{name}Trainer", "hashemi_2d", 40) for name in ("WholeTumor", "TumorCore", "EnhancingTumor")
        ),
        ensemble=("--method", "nested"),
    ),
    "isensee2020": System((Trained("BraTSIsensee2020DA4BNBDTrainer", "isensee_2020", 30),)),
    "luu2021": System((Trained("BraTSLuu2021AxialTrainer", "luu_2021_axial", 30),)),
    "roy2023": System((Trained("BraTSMedNeXtSTrainer", "mednext_s", 30),)),
    "myronenko2023": System((Trained("BraTSMyronenko2023Trainer", "myronenko_2023", 30),)),
}


class Overfit:
    """One patient, and what the systems make of it."""

    def __init__(self, bench: Workbench, share: float, seed: int, bf16: bool, threads: int):
        self.bench, self.share, self.seed, self.precision = bench, share, str(seed), "bf16" if bf16 else ""
        self.threads = {"OMP_NUM_THREADS": str(threads)}

    def prepare(self, patient: Path) -> None:
        """The patient at 2 mm, as a release, as two data sets, planned and preprocessed."""
        release = self.bench.folder / "release" / patient.name
        release.mkdir(parents=True, exist_ok=True)
        for file in sorted(patient.glob("*.nii.gz")):
            if not (target := release / file.name).exists():
                sitk.WriteImage(coarse(sitk.ReadImage(str(file)), file.name.endswith("_seg.nii.gz")), str(target))
        for data, options in ((ZSCORE, ()), (MINMAX, ("--normalise", "percentile-minmax"))):
            self.bench.convert("release", data, *options)
            words = ("-d", data, "-c", "2d", "3d_fullres", "-npfp", "1", "-np", "1")
            self.bench.run("nnUNetv2_plan_and_preprocess", *words)
            self.bench.run("nnunet_brats", "plan", data)
            file = self.folder("nnUNet_preprocessed", data) / f"{PLANS}.json"
            plans = json.loads(file.read_text())
            for name, change in SMALL.items():
                plans["configurations"][name] |= change
            file.write_text(json.dumps(plans, indent=2))
        self.bench.run("nnUNetv2_preprocess", "-d", ZSCORE, "-plans_name", PLANS, "-c", "lachinov_brain", "-np", "1")

    def run(self, name: str) -> dict:
        """Train and predict with a system, and its row of the table."""
        system = SYSTEMS[name]
        curves = [self.train(model) for model in system.models]
        chosen = [system.models[i] for i in system.predicted or range(len(system.models))]
        folders = [self.predict(name, model, system) for model in chosen]
        out = folders[0]
        if system.ensemble:
            out = f"predictions/{word(name)}"
            self.bench.run("nnunet_brats", "ensemble", "-i", *folders, "-o", out, *system.ensemble, "-np", "1")
        scores = f"scores/{word(name)}.json"
        labels = str(self.folder("nnUNet_raw", system.models[0].data) / "labelsTr")
        self.bench.run("nnunet_brats", "evaluate", labels, out, "-o", scores, "-np", "1")
        summary = json.loads((self.bench.folder / scores).read_text())["summary"]
        return {
            "dice": {region: summary[region]["dice"]["mean"] for region in REGIONS},
            "steps": [STEPS * len(losses) for losses, _ in curves],
            "minutes": sum(seconds for _, seconds in curves) / 60,
            "losses": [last_tenths(losses) for losses, _ in curves],
        }

    def train(self, model: Trained) -> tuple[list[float], float]:
        """The losses of all epochs, and the seconds that they took."""
        fold = self.folder("nnUNet_results", model.data)
        fold = fold / model_name(model.trainer, model.plans, model.configuration) / "fold_all"
        short = {
            EPOCHS: str(max(2, round(model.epochs * self.share))),
            ITERATIONS: str(STEPS),
            SEED: self.seed,
            PRECISION: self.precision if model.bf16 else "",
            "nnUNet_n_proc_DA": "0" if self.threads["OMP_NUM_THREADS"] == "1" else "1",
            **self.threads,
        }
        words = [model.data, model.configuration, "all", "-tr", model.trainer, "-p", model.plans, "-device", "cpu"]
        begun = any((fold / f"checkpoint_{name}.pth").is_file() for name in ("latest", "best"))
        finished = (fold / FINAL).is_file()
        if not (fold / "validation" / "summary.json").is_file():
            self.bench.run("nnUNetv2_train", *words, *(["--val"] if finished else ["--c"] if begun else []), **short)
        logging = torch.load(fold / FINAL, map_location="cpu", weights_only=False)["logging"]
        starts, ends = logging["epoch_start_timestamps"], logging["epoch_end_timestamps"]
        return list(map(float, logging["train_losses"])), sum(
            end - start for start, end in zip(starts, ends, strict=True)
        )

    def predict(self, name: str, model: Trained, system: System) -> str:
        out = f"predictions/{word(name)}_{model.trainer}"
        images = str(self.folder("nnUNet_raw", model.data) / "imagesTr")
        place = ("-i", images, "-o", out, "-f", "all", "-device", "cpu", "-np", "0")
        wanted = ("--save_probabilities",) if system.ensemble else ()
        self.bench.run("nnunet_brats", "predict", *place, *model.words, *system.options, *wanted, **self.threads)
        return out

    def folder(self, kind: str, data: str) -> Path:
        assert kind in FOLDERS
        return self.bench.folder / kind / f"Dataset{data}_Study"


def coarse(image: sitk.Image, labels: bool) -> sitk.Image:
    """An image at 2 mm, or a label map by its nearest voxels."""
    size = [round(n * mm / SPACING_MM) for n, mm in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    how = sitk.sitkNearestNeighbor if labels else sitk.sitkLinear
    spacing = [SPACING_MM] * 3
    return sitk.Resample(image, size, sitk.Transform(), how, image.GetOrigin(), spacing, image.GetDirection())


def last_tenths(losses: Sequence[float]) -> tuple[float, float]:
    """The mean loss of the last tenth of the epochs but one, and that of the last."""
    n = max(1, len(losses) // 10)
    return mean(losses[-2 * n : -n]), mean(losses[-n:])


def word(name: str) -> str:
    return name.replace(" ", "_")


def table(rows: dict[str, dict]) -> str:
    lines = [
        "| system | WT | TC | ET | steps | loss of the last two tenths | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        dice = [f"{row['dice'][region]:.3f}" for region in REGIONS]
        losses = "; ".join(f"{before:.3f}, {last:.3f}" for before, last in row["losses"])
        steps = " + ".join(map(str, row["steps"]))
        lines.append(f"| {' | '.join([name, *dice, steps, losses, str(round(row['minutes']))])} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("patient", type=Path)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="SYSTEM")
    parser.add_argument("--epochs", type=float, default=1.0, metavar="FACTOR", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all trainings (default: %(default)s)")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    bench = Workbench(options.out)
    further = (f", seed {options.seed}" if options.seed != 1 else "") + (", bf16" if options.bf16 else "")
    bench.keep_to(f"overfit, {options.patient.name}, {options.epochs:g} times the epochs{further}")
    overfit = Overfit(bench, options.epochs, options.seed, options.bf16, options.threads)
    overfit.prepare(options.patient)
    noted = bench.folder / "overfit.json"
    for name in options.systems:
        rows = json.loads(noted.read_text()) if noted.exists() else {}
        if name not in rows:
            rows[name] = overfit.run(name)
            noted.write_text(json.dumps(rows, indent=2))
        (bench.folder / "overfit.md").write_text(table(rows) + "\n")
        say(table({name: rows[name]}))
    say(f"written: {bench.folder / 'overfit.md'}")


if __name__ == "__main__":
    main()
