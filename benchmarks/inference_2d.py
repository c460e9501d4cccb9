"""Seconds and peak memory per volume: Hashemi's 2-D networks and nnU-Net's own 2d configuration, side by side.

    python benchmarks/inference_2d.py [--size 256 256 155] [--budget 630] [-device cpu]

One synthetic patient of that size, networks of random weights (time and memory do not depend on them), each predicted
by `nnunet_brats predict --profile` in a process of its own, with and without `--low-memory`. Ratios are to nnU-Net's.
Memory is what the process holds above its start on a CPU, and what torch has allocated on a GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import SimpleITK as sitk
import torch

DATASET = "906"
MODELS = {  # row of the table -> trainers that predict one after the other
    "nnU-Net 2d": ("nnUNetTrainer",),
    "3C": ("BraTS2DTrainer",),
    "2C, three networks": ("BraTS2DWholeTumorTrainer", "BraTS2DTumorCoreTrainer", "BraTS2DEnhancingTumorTrainer"),
}


def run(folder: Path, *words: str) -> None:
    paths = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    environment = {**os.environ, **paths, "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
    program = Path(sys.executable).parent / words[0]
    done = subprocess.run([program, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def prepare(folder: Path, size: list[int]) -> None:
    """A patient and nnU-Net's plans for such patients."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir()
    cases = ("--cases", "3", "--unlabelled", "1", "--anatomy", "procedural")
    run(folder, "nnunet_brats", "phantom", "release", *cases, "--size", *map(str, size))
    for file in folder.glob("release/**/*.nii.gz"):
        if "seg" not in file.name:
            uncrop(file)
    run(folder, "nnunet_brats", "convert", "release", "-d", DATASET, "--name", "Volumes")
    run(folder, "nnUNetv2_extract_fingerprint", "-d", DATASET)
    run(folder, "nnUNetv2_plan_experiment", "-d", DATASET)
    run(folder, "nnunet_brats", "plan", DATASET)


def uncrop(file: Path) -> None:
    """Light two opposite corners, so that nnU-Net's crop to the head leaves the whole volume, as the paper had it."""
    image = sitk.ReadImage(str(file))
    for corner in ([0, 0, 0], [size - 1 for size in image.GetSize()]):
        image[corner] = 1
    sitk.WriteImage(image, str(file))


def save_random_model(folder: Path, trainer: str) -> tuple[str, str]:
    """A checkpoint of a fresh network where nnU-Net looks for trained ones; plans and configuration of the model."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    dataset = next((folder / "nnUNet_preprocessed").glob("Dataset*"))
    name, configuration = ("nnUNetPlans", "2d") if trainer == "nnUNetTrainer" else ("BraTSPlans", "hashemi_2d")
    plans = json.loads((dataset / f"{name}.json").read_text())
    dataset_json = json.loads((dataset / "dataset.json").read_text())
    manager = PlansManager(plans)
    with redirect_stdout(StringIO()):  # where it looks
        found = recursive_find_trainer_class_by_name(trainer)
    network = found.build_network_architecture(manager, manager.get_configuration(configuration), 4, 3, False)
    model = folder / "nnUNet_results" / dataset.name / f"{trainer}__{name}__{configuration}"
    (model / "fold_0").mkdir(parents=True)
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset_json))
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": trainer,
        "init_args": {"configuration": configuration},
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth")
    return name, configuration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=[256, 256, 155])
    parser.add_argument("--budget", type=float, default=630)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("-device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    rows: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, options.size)
        images = str(next((folder / "nnUNet_raw").glob("Dataset*")) / "imagesTs")
        for row in options.models:
            for budget in (None, options.budget):
                seconds, peak = 0.0, 0.0
                for trainer in MODELS[row]:
                    existing = list((folder / "nnUNet_results").glob(f"*/{trainer}__*"))
                    plans, configuration = (
                        existing[0].name.split("__")[1:] if existing else save_random_model(folder, trainer)
                    )
                    out = f"out_{trainer}_{budget}"
                    words = ("-i", images, "-o", out, "-d", DATASET, "-tr", trainer, "-p", plans, "-c", configuration)
                    low = ("--low-memory", str(budget)) if budget else ()
                    run(folder, "nnunet_brats", "predict", *words, "-device", options.device, "--profile", *low)
                    profile = json.loads((folder / out / "profile.json").read_text())
                    case = next(iter(profile["parts"]["Predict"]["cases"].values()))
                    seconds += case["predict"]["seconds"]
                    peak = max(peak, case["predict"]["peak_mb"])
                rows.setdefault(row, []).append((seconds, peak))
                print(f"{row}, budget {budget}: {seconds:.1f} s, {peak:.0f} MB", flush=True)
    reference = rows[options.models[0]]
    print(f"\n| {options.device}, {options.size} | time | memory | MB | --low-memory {options.budget:.0f}: time | MB |")
    print("|---|---|---|---|---|---|")
    for row, ((seconds, peak), (low_seconds, low_peak)) in rows.items():
        (base_seconds, base_peak), _ = reference
        print(
            f"| {row} | {seconds / base_seconds:.2f} | {peak / base_peak:.2f} | {peak:.0f} "
            f"| {low_seconds / base_seconds:.2f} | {low_peak:.0f} |"
        )


if __name__ == "__main__":
    main()
