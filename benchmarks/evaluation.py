"""How fast cases are scored, next to the libraries and scripts that score them elsewhere, in one run on one core.

    python benchmarks/evaluation.py                                             # on full-size pairs made here
    python benchmarks/evaluation.py REFERENCE PREDICTION --labels glioma_2017   # on two label maps, or folders of them
    python benchmarks/evaluation.py REFERENCE PREDICTION --cohort met --peers ENV/bin/python --official-2023 FOLDER

First, arrays in memory: the peers that are installed here (medpy, monai, surface-distance) get ready-made masks of WT,
TC and ET and compute HD95 alone; ours gets label maps and computes all that a preset scores, and makes the rows of its
lesions. Then, with `--peers`, whole commands on compressed files: what the first case takes with the start-up of the
command, and what each further one takes. ENV is an environment of its own, made with

    python -m venv ENV && ENV/bin/pip install brats-evaluation==0.0.10 panoptica==2.1.7

and FOLDER a checkout of https://github.com/rachitsaluja/BraTS-2023-Metrics, which runs in ENV too. Times are CPU
seconds, of the process and of those it starts, the best of several rounds in which all take turns, so that a busy
machine disturbs them alike.
"""

import argparse
import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from nnunet_brats_ext.brats import ED, ET, LABEL_SCHEMES, NCR, remap, to_regions  # noqa: E402
from nnunet_brats_ext.evaluation import lesion_table  # noqa: E402
from nnunet_brats_ext.evaluation.label_maps import find_label_maps, match_cases  # noqa: E402
from nnunet_brats_ext.evaluation.presets import PRESETS, find_preset  # noqa: E402
from nnunet_brats_ext.evaluation.scoring import evaluate_case  # noqa: E402
from nnunet_brats_ext.storage.images import Grid, read_label_map, write_label_map  # noqa: E402

Masks = dict[str, tuple[np.ndarray, np.ndarray]]
OURS = [
    ("brats2020", "gli"), ("brats2023", "gli"), ("brats2024", "ssa"), ("brats2024", "gli"), ("brats2025", "met"),
    ("brats2026", "men"), ("brats2026", "met"),
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


def read_cases(paths: list[Path], labels: str) -> dict[str, tuple[np.ndarray, np.ndarray, Grid]]:
    """Case -> its label maps as trained, and their grid."""
    references, predictions = map(find_label_maps, paths)
    found = match_cases(references, predictions, partial=True)
    cases = {}
    for case, pair in found.items():
        (reference, grid), (prediction, _) = map(read_label_map, pair)
        to_trained = LABEL_SCHEMES[labels].released
        cases[case] = remap(reference, to_trained), remap(prediction, to_trained), grid
    return cases


def made_cases(number: int) -> dict[str, tuple[np.ndarray, np.ndarray, Grid]]:
    grid = Grid((240, 240, 155), SPACING_MM, (0.0, 0.0, 0.0), tuple(np.eye(3).ravel().tolist()))
    return {f"made here {seed}": (*make_pair(seed=seed), grid) for seed in range(number)}


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
            lesion_table if PRESETS[preset][cohort].lesions else evaluate_case, *pair, SPACING_MM, preset, cohort
        )
        for preset, cohort in OURS
    }
    times = take_turns({**ours, **peers}, rounds)
    show(console, "arrays in memory; peers: HD95 of three regions", times, [peer for peer in peers if peer in times])


# ---- whole commands -------------------------------------------------------------------------------------------------

# The configuration of 2026, which scores the same regions as our preset, and the cohort and the dilation of 2023.
COHORTS = {"gli": ("gli", "gli", 3), "goat": ("GoAT", "gli", 3), "met": ("mets", "met", 1)}
SCRIPT_2023 = """
import os, sys
import numpy
numpy.Inf = numpy.inf  # the script is older than NumPy 2
sys.path.insert(0, sys.argv[1])
import metrics
for name in sorted(os.listdir(sys.argv[2])):
    for region in ("WT", "TC", "ET"):
        paths = os.path.join(sys.argv[3], name), os.path.join(sys.argv[2], name)
        metrics.get_LesionWiseScores(*paths, region, int(sys.argv[4]))
"""
PANOPTICA = """
import os, sys
from panoptica import ConnectedComponentsInstanceApproximator, InputType, MaxBipartiteMatching, Panoptica_Evaluator
from panoptica.metrics import Metric
from panoptica.utils.edge_case_handling import EdgeCaseHandler, EdgeCaseResult, MetricZeroTPEdgeCaseHandling
from panoptica.utils.label_group import LabelMergeGroup
from panoptica.utils.segmentation_class import SegmentationClassGroups
groups = {"et": [3], "tc": [1, 3], "wt": [1, 2, 3]} | ({} if sys.argv[3] == "goat" else {"rc": [4]})
groups |= {"netc": [1], "snfh": [2]} if sys.argv[3] == "gli" else {}
measures = [Metric.DSC, Metric.NSD, Metric.HD95]
nothing = MetricZeroTPEdgeCaseHandling(EdgeCaseResult.ZERO)
evaluator = Panoptica_Evaluator(
    InputType.SEMANTIC, ConnectedComponentsInstanceApproximator(), MaxBipartiteMatching(Metric.DSC, 1e-6),
    segmentation_class_groups=SegmentationClassGroups({name: LabelMergeGroup(g) for name, g in groups.items()}),
    instance_metrics=measures, global_metrics=measures,
    edge_case_handler=EdgeCaseHandler(dict.fromkeys(measures, nothing)),
)
for name in sorted(os.listdir(sys.argv[1])):
    for result in evaluator.evaluate(os.path.join(sys.argv[2], name), os.path.join(sys.argv[1], name)).values():
        result.to_dict()
"""


def cpu_seconds(command: list[str], folder: Path) -> float:
    """Of a command and all it starts; one that fails is an error with what it said."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    if "nnunet_brats_ext.cli" not in command:
        del environment["PYTHONPATH"]
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment, cwd=folder)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)[:200]} failed:\n{(folder / 'said.txt').read_text()[-2000:]}")
    return used.ru_utime + used.ru_stime


def compare_commands(
    cases: dict[str, tuple[np.ndarray, np.ndarray, Grid]],
    cohort: str,
    peers: Path,
    script_2023: Path | None,
    rounds: int,
    console: Console,
) -> None:
    """The first case with the start-up of the command, and each further one."""
    configuration, cohort_2023, dilation = COHORTS[cohort]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for number, (reference, prediction, grid) in enumerate(cases.values()):
            released = LABEL_SCHEMES[find_preset("brats2026", cohort).scheme].trained
            for side, labels in (("references", reference), ("predictions", prediction)):
                for folder in ("one", "all") if number == 0 else ("all",):
                    path = root / folder / side / f"BraTS-GLI-{number:05}-000.nii.gz"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_label_map(path, remap(labels, released), grid)

        def commands(folder: str) -> dict[str, list[str]]:
            sides = [str(root / folder / side) for side in ("references", "predictions")]
            ours = [
                sys.executable,
                "-m",
                "nnunet_brats_ext.cli",
                "evaluate",
                *sides,
                "--labels",
                "released",
                "-np",
                "1",
            ]
            ours += ["-o", str(root / "results.json")]
            found = {
                f"ours, {year}": [*ours, "--preset", year, "--cohort", own]
                for year, own in (("brats2023", cohort_2023), ("brats2026", cohort))
            }
            if script_2023:
                script = [str(peers), "-c", SCRIPT_2023, str(script_2023.absolute())]
                found["script of 2023"] = [*script, *sides, str(dilation)]
            options = ["--ref_path", sides[0], "--pred_path", sides[1], "--config", configuration]
            found["BraTS_evaluation"] = [str(peers), "-m", "brats_evaluation.evaluation", *options]
            found["panoptica"] = [str(peers), "-c", PANOPTICA, *sides, cohort]
            return found

        first: dict[str, float] = {}
        everything: dict[str, float] = {}
        for _ in range(rounds):
            for folder, best in (("one", first), ("all", everything)):
                for contestant, command in commands(folder).items():
                    best[contestant] = min(best.get(contestant, np.inf), cpu_seconds(command, root))
    further = {name: (everything[name] - first[name]) / max(len(cases) - 1, 1) for name in first}
    others = [name for name in first if not name.startswith("ours")]
    table = Table(title=f"whole commands, {len(cases)} cases, {cohort}; CPU seconds", title_justify="left")
    for heading in ("", "start-up and first case", "each further case", "all cases"):
        table.add_column(heading, justify="right" if heading else "left")
    for other in others:
        table.add_column(f"further cases, times as fast as {other}", justify="right")
    for name in first:
        ratios = [f"{further[other] / further[name]:.1f}" for other in others]
        table.add_row(name, f"{first[name]:.2f}", f"{further[name]:.3f}", f"{everything[name]:.2f}", *ratios)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", nargs="*", type=Path, metavar="REFERENCE PREDICTION", help="default: pairs made here")
    parser.add_argument("--labels", default="glioma_2023", choices=LABEL_SCHEMES, help="numbering of the files")
    parser.add_argument("--cohort", default="gli", choices=COHORTS, help="by whose rules whole commands score")
    parser.add_argument("--peers", type=Path, metavar="PYTHON", help="of an environment with the peers")
    parser.add_argument("--official-2023", type=Path, metavar="FOLDER", help="where the official metrics.py lies")
    parser.add_argument("--cases", type=int, default=4, help="how many pairs are made, or each given one repeated")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if len(options.pair) not in (0, 2):
        parser.error("give a reference and a prediction, or neither")
    console = Console(width=max(Console().width, 170))
    cases = read_cases(options.pair, options.labels) if options.pair else made_cases(options.cases)
    reference, prediction, _ = next(iter(cases.values()))
    shared = np.count_nonzero((reference > 0) & (prediction > 0))
    dice = 2 * shared / (np.count_nonzero(reference) + np.count_nonzero(prediction))
    voxels = [np.count_nonzero(labels) for labels in (reference, prediction)]
    console.print(f"{reference.shape}, tumours of {voxels[0]} and {voxels[1]} voxels, WT Dice {dice:.3f}")
    if importlib.util.find_spec("surface_distance") or not options.peers:
        compare_cores((reference, prediction), options.rounds, console)
    if options.peers:
        repeated = {f"{name} {again}": case for again in range(options.cases) for name, case in cases.items()}
        chosen = dict(list(repeated.items())[: max(options.cases, 2)])
        compare_commands(chosen, options.cohort, options.peers, options.official_2023, min(options.rounds, 3), console)


if __name__ == "__main__":
    main()
