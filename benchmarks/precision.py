"""What training in bfloat16 on a CPU does to loss curves: the same training in fp32, in bfloat16 and from another seed.

    python benchmarks/precision.py OUT [--epochs 20] [--iterations 10]

Networks, data and steps are those of the studies on synthetic patients. Two seeds in fp32 show how far apart curves are
that should be alike. Every command is logged in OUT/*/log.txt, and none that succeeded is run again.
"""

import argparse
from pathlib import Path
from statistics import mean
from types import ModuleType

import torch
from studies import henry2020, lyu2020
from studies.workbench import PLANS, Model, Trial, Workbench

from nnunet_brats_ext.storage.nnunet import FINAL, model_name
from nnunet_brats_ext.training.environment import PRECISION

MODELS = {
    "Lyu & Shu, stage 1": (lyu2020, lyu2020.STAGE_1),
    "Henry et al., pipeline B": (henry2020, henry2020.MODELS["B"]),
}
RUNS = {"fp32": (0, {}), "bf16": (0, {PRECISION: "bf16"}), "fp32, another seed": (1, {})}


def losses(folder: Path, study: ModuleType, model: Model, run: str, epochs: int, iterations: int) -> list[float]:
    """The training loss after each epoch."""
    seed, settings = RUNS[run]
    bench = Workbench(folder)
    bench.keep_to(f"{model.trainer} in {run}, {epochs} epochs of {iterations} iterations")
    study.prepare(bench)
    trial = Trial(bench, seed, epochs, iterations)
    trial.train(model, **settings)
    dataset = Path(trial.settings["nnUNet_results"]) / f"Dataset{model.dataset}_Study"
    checkpoint = dataset / model_name(model.trainer, PLANS, model.configuration) / "fold_0" / FINAL
    return list(map(float, torch.load(checkpoint, map_location="cpu", weights_only=False)["logging"]["train_losses"]))


def table(curves: dict[str, list[float]]) -> str:
    """The mean loss of each quarter of the training, and the mean distance of a curve to the first, epoch by epoch."""
    (first, *_) = curves.values()
    quarter = max(1, len(first) // 4)
    ends = [slice(start, start + quarter) for start in range(0, 4 * quarter, quarter)]
    lines = ["| | quarters of the training | | | | distance to fp32 |", "|---|---|---|---|---|---|"]
    for run, curve in curves.items():
        distance = mean(abs(one - other) for one, other in zip(curve, first, strict=True))
        lines.append(f"| {run} | {' | '.join(f'{mean(curve[end]):.4f}' for end in ends)} | {distance:.4f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=10, help="per epoch (default: %(default)s)")
    options = parser.parse_args()
    for name, (study, model) in MODELS.items():
        curves = {}
        for run in RUNS:
            folder = options.out / f"{model.trainer}_{run.replace(', ', '_').replace(' ', '_')}"
            curves[run] = losses(folder, study, model, run, options.epochs, options.iterations)
        print(f"\n{name}\n\n{table(curves)}", flush=True)


if __name__ == "__main__":
    main()
