"""How fast a case is scored, next to the libraries and scripts that score it elsewhere, in one run on one core.

    python benchmarks/evaluation.py                                             # on a full-size pair made here
    python benchmarks/evaluation.py REFERENCE PREDICTION --labels glioma_2017   # on two label maps
    python benchmarks/evaluation.py --official-2023 FOLDER                      # and the challenge's own script

FOLDER is a checkout of BraTS-2023-Metrics, which needs cc3d and pandas. Peers are skipped where they are not installed:
medpy, monai, surface-distance. These get ready-made masks of WT, TC and ET and compute HD95 alone; ours gets label maps
and computes all that a preset scores. Times are CPU seconds, the best of several rounds in which all take turns, so
that a busy machine disturbs them alike.
"""

import argparse
import contextlib
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
import SimpleITK as sitk  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from nnunet_brats_ext.brats import ED, ET, LABEL_SCHEMES, NCR, remap, to_regions  # noqa: E402
from nnunet_brats_ext.evaluation.evaluate import evaluate_folders  # noqa: E402
from nnunet_brats_ext.evaluation.presets import PRESETS  # noqa: E402
from nnunet_brats_ext.evaluation.scoring import evaluate_case  # noqa: E402

Masks = dict[str, tuple[np.ndarray, np.ndarray]]
OURS = [
    ("brats2020", "gli"), ("brats2023", "gli"), ("brats2024", "ssa"), ("brats2024", "gli"), ("brats2026", "men"),
]  # fmt: skip
SPACING_MM = (1.0, 1.0, 1.0)


def make_pair(shape: tuple[int, int, int] = (155, 240, 240), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A main tumour with two satellites, and a good prediction of them (WT Dice about 0.94) with false positives."""
    random = np.random.default_rng(seed)
    reference, prediction = np.zeros((2, *shape), np.uint8)
    for scale in (1.0, 0.35, 0.35):
        centre = random.uniform(0.3, 0.7, 3) * shape
        radii = random.uniform(20, 40, 3) * scale
        waves, ripples = random.uniform(0, 2 * np.pi, (2, 3))
        paint_lesion(reference, centre, radii, waves, ripples, roughness=0)
        shifted, stretched = centre + random.uniform(-1, 1, 3), radii * random.uniform(0.97, 1.05, 3)
        paint_lesion(prediction, shifted, stretched, waves, ripples, roughness=0.025)
    for corner in random.integers(40, 110, (3, 3)):
        prediction[tuple(slice(at, at + 4) for at in corner)] = ET
    return reference, prediction


def paint_lesion(labels, centre, radii, waves, ripples, roughness) -> None:
    """An ellipsoid with a wavy surface: oedema outside, enhancing tumour within, a necrotic core."""
    axes = np.ogrid[tuple(slice(0, size) for size in labels.shape)]
    scaled = [(axis - at) / radius for axis, at, radius in zip(axes, centre, radii, strict=True)]
    depth = np.sqrt(sum(axis**2 for axis in scaled))
    depth = depth * (1 + 0.1 * sum(np.sin(3 * axis + phase) for axis, phase in zip(scaled, waves, strict=True)))
    depth = depth + roughness * sum(np.sin(9 * axis + phase) for axis, phase in zip(scaled, ripples, strict=True))
    labels[(depth < 1) & (labels == 0)] = ED
    labels[depth < 0.65] = ET
    labels[depth < 0.35] = NCR


def medpy_full_volume(masks: Masks) -> None:
    from medpy.metric.binary import hd95

    for reference, prediction in masks.values():
        hd95(prediction, reference, SPACING_MM)


def deepmind_surface_distance(masks: Masks) -> None:
    from surface_distance import compute_robust_hausdorff, compute_surface_distances

    for reference, prediction in masks.values():
        compute_robust_hausdorff(compute_surface_distances(reference, prediction, SPACING_MM), 95)


def monai_hausdorff(masks: Masks) -> None:
    import torch
    from monai.metrics import compute_hausdorff_distance

    torch.set_num_threads(1)
    reference, prediction = (torch.from_numpy(np.stack(side))[None] for side in zip(*masks.values(), strict=True))
    compute_hausdorff_distance(prediction, reference, include_background=True, percentile=95)


def official_2023(script: Path, reference: Path, prediction: Path) -> Callable[[], None]:
    """The three regions of one case by the script of the challenge, from files as it takes them."""
    np.Inf = np.inf  # the script is older than NumPy 2
    others = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("surface_distance")}
    sys.path.insert(0, str(script))  # it brings a surface_distance of its own
    metrics = importlib.import_module("metrics")
    sys.path.remove(str(script))
    for name in [name for name in sys.modules if name.startswith("surface_distance")]:
        del sys.modules[name]
    sys.modules.update(others)

    def score() -> None:
        for region in ("WT", "TC", "ET"):
            metrics.get_LesionWiseScores(str(prediction), str(reference), region, 3)

    return score


def take_turns(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The best CPU time of each in seconds; those that cannot be imported drop out."""
    best: dict[str, float] = {}
    for name, run in list(contestants.items()):
        try:
            with contextlib.redirect_stderr(None):
                run()  # imports, caches
        except ImportError as error:
            print(f"skipped {name}: {error}")
            del contestants[name]
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.process_time()
            run()
            best[name] = min(best.get(name, np.inf), time.process_time() - start)
    return best


def show(console: Console, title: str, times: dict[str, float], peers: list[str]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("seconds", justify="right")
    for peer in peers:
        table.add_column(f"times as fast as {peer}", justify="right")
    for name, seconds in times.items():
        table.add_row(name, f"{seconds:.4f}", *(f"{times[peer] / seconds:.2f}" for peer in peers))
    console.print(table)


def read_pair(paths: list[Path], labels: str) -> tuple[np.ndarray, np.ndarray]:
    reference, prediction = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in paths)
    return remap(reference, LABEL_SCHEMES[labels].released), remap(prediction, LABEL_SCHEMES[labels].released)


def compare_cores(pair: tuple[np.ndarray, np.ndarray], rounds: int, console: Console) -> None:
    """HD95 of three regions from arrays in memory."""
    regions = [to_regions(labels, LABEL_SCHEMES["glioma_2023"].regions) for labels in pair]
    masks = {name: (regions[0][name], regions[1][name]) for name in regions[0]}
    peers = {
        "surface-distance": partial(deepmind_surface_distance, masks),
        "MedPy, full volume": partial(medpy_full_volume, masks),
        "MONAI": partial(monai_hausdorff, masks),
    }
    ours = {
        f"ours, {preset} {cohort} ({len(PRESETS[preset][cohort].regions)} regions)": partial(
            evaluate_case, *pair, SPACING_MM, preset, cohort
        )
        for preset, cohort in OURS
    }
    times = take_turns({**ours, **peers}, rounds)
    show(console, "arrays in memory; peers: HD95 of three regions", times, [peer for peer in peers if peer in times])


def compare_official(pair: tuple[np.ndarray, np.ndarray], script: Path, console: Console) -> None:
    """A whole case from compressed files."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.nii.gz" for name in ("reference", "prediction")]
        for path, labels in zip(paths, pair, strict=True):
            released = remap(labels, LABEL_SCHEMES["glioma_2023"].trained)
            sitk.WriteImage(sitk.GetImageFromArray(released), str(path))
        contestants = {
            "ours, brats2023 gli": partial(evaluate_folders, *paths, "brats2023", "gli", "released"),
            "official script": official_2023(script, *paths),
        }
        times = take_turns(contestants, rounds=2)
    show(console, "a case from .nii.gz files, lesion-wise as in 2023", times, ["official script"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", nargs="*", type=Path, metavar="REFERENCE PREDICTION", help="default: a pair made here")
    parser.add_argument("--labels", default="glioma_2023", choices=LABEL_SCHEMES, help="numbering of the two files")
    parser.add_argument("--official-2023", type=Path, metavar="FOLDER", help="where the official metrics.py lies")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if len(options.pair) not in (0, 2):
        parser.error("give a reference and a prediction, or neither")
    console = Console(width=max(Console().width, 150))
    pair = read_pair(options.pair, options.labels) if options.pair else make_pair()
    shared = np.count_nonzero((pair[0] > 0) & (pair[1] > 0))
    dice = 2 * shared / sum(map(np.count_nonzero, pair))
    console.print(f"{pair[0].shape}, tumours of {np.count_nonzero(pair[0])} and {np.count_nonzero(pair[1])} voxels,")
    console.print(f"WT Dice {dice:.3f}")
    compare_cores(pair, options.rounds, console)
    if options.official_2023:
        compare_official(pair, options.official_2023, console)


if __name__ == "__main__":
    main()
