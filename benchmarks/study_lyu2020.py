"""Lyu & Shu 2020 in miniature: does stage 2 help on synthetic patients, and do several stage-1 maps per case?

    python benchmarks/study_lyu2020.py OUT [--seeds 0 1 2] [--epochs 20] [--cases 12] [--held-out 8]

Per seed: stage 1 in two folds with two snapshots each, stage 2 (one fold) on the single map of the last weights, and
again on the two out-of-fold maps of the snapshots, for the same number of steps. Scored are the held-out patients. It
goes on where it was stopped; the table at the end is over all seeds in OUT. On two CPU cores a seed takes minutes.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

DATASET, PLANS = "905", "BraTSPlans"
STAGE_1 = ("BraTSVAETrainer", "lyu_stage1")
STAGE_2 = ("BraTSAttentionVAETrainer", "lyu_stage2")
REGIONS = ("WT", "TC", "ET")


def run(folder: Path, *words: str, **settings: str) -> None:
    """One command, its output in a log beside the data; no command is run twice."""
    done = folder / "done"
    done.mkdir(exist_ok=True)
    key = done / ("_".join([*words, *settings.values()]).replace("/", "-")[-200:])
    if key.exists():
        return
    paths = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    environment = {**os.environ, **paths, "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", **settings}
    program = Path(sys.executable).parent / words[0]
    print("+", *words, flush=True)
    with (folder / "log.txt").open("a") as log:
        subprocess.run([program, *words[1:]], cwd=folder, env=environment, stdout=log, stderr=log, check=True)
    key.touch()


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """Patients, two folds, and plans with small batches."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    cases = str(options.cases + options.held_out)
    size = ("--size", "48", "56", "48", "--contrast", "1.8", "--references", "references")
    run(folder, "nnunet_brats", "phantom", "release", "--cases", cases, "--unlabelled", str(options.held_out), *size)
    run(folder, "nnunet_brats", "convert", "release", "-d", DATASET, "--name", "Study")
    run(folder, "nnUNetv2_plan_and_preprocess", "-d", DATASET, "-c", "3d_fullres")
    run(folder, "nnunet_brats", "plan", DATASET, "--gpu-memory-gb", "4")
    preprocessed = next((folder / "nnUNet_preprocessed").glob("Dataset*"))
    names = sorted(path.name.split(".")[0] for path in (preprocessed / "gt_segmentations").iterdir())
    halves = (names[::2], names[1::2])
    splits = [{"train": halves[1 - fold], "val": halves[fold]} for fold in (0, 1)]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    file = preprocessed / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    for _, configuration in (STAGE_1, STAGE_2):
        plans["configurations"][configuration] |= {"batch_size": 2, "patch_size": [32, 32, 32]}
    file.write_text(json.dumps(plans, indent=2))


def one_seed(folder: Path, seed: int, epochs: int) -> None:
    """All models of a seed, each with as many steps, and their scores."""
    scores = folder / "scores"
    results = folder / f"results_{seed}"
    short = {"nnUNet_brats_seed": str(seed), "nnUNet_brats_epochs": str(epochs), "nnUNet_brats_iterations": "6"}
    snapshots = {"nnUNet_brats_snapshots": f"{epochs * 3 // 4} {epochs}"}
    paths = {"nnUNet_results": str(results)}
    results.mkdir(exist_ok=True)
    for fold in ("0", "1"):
        train(folder, STAGE_1, fold, **paths, **short, **snapshots)
    predict(folder, STAGE_1, f"stage1_{seed}", **paths)
    evaluate(folder, f"stage1_{seed}", scores)
    model = results / "Dataset905_Study" / "__".join([STAGE_2[0], PLANS, STAGE_2[1]])
    for variant in ("single", "expanded"):
        if variant == "expanded" and not (folder / "done" / f"expanded_{seed}").exists():
            if model.exists():
                model.rename(results / "single")  # the same name in nnUNet_results for both
            names = [f"checkpoint_epoch_{epoch}.pth" for epoch in (epochs * 3 // 4, epochs)]
            stage(folder, "predict-stage", STAGE_1, "-np", "1", "-chk", *names, **paths)
            (folder / "done" / f"expanded_{seed}").touch()
        train(folder, STAGE_2, "0", **paths, **short, variant=variant)
        predict(folder, STAGE_2, f"stage2_{variant}_{seed}", "--tiling", "tumour", **paths)
        evaluate(folder, f"stage2_{variant}_{seed}", scores)
    shutil.rmtree(results)  # gigabytes; the predictions and scores stay


def train(folder: Path, stage_: tuple[str, str], fold: str, **settings: str) -> None:
    trainer, configuration = stage_
    run(
        folder,
        "nnUNetv2_train",
        DATASET,
        configuration,
        fold,
        "-tr",
        trainer,
        "-p",
        PLANS,
        "-device",
        "cpu",
        **settings,
    )


def stage(folder: Path, verb: str, stage_: tuple[str, str], *words: str, **settings: str) -> None:
    trainer, configuration = stage_
    model = ("-d", DATASET, "-tr", trainer, "-c", configuration, "-p", PLANS, "-device", "cpu")
    run(folder, "nnunet_brats", verb, *model, *words, **settings)


def predict(folder: Path, stage_: tuple[str, str], name: str, *words: str, **settings: str) -> None:
    images = str(folder / "nnUNet_raw" / "Dataset905_Study" / "imagesTs")
    stage(folder, "predict", stage_, "-i", images, "-o", f"predictions/{name}", "-np", "0", *words, **settings)


def evaluate(folder: Path, name: str, scores: Path) -> None:
    run(folder, "nnunet_brats", "restore", f"predictions/{name}", "-o", f"submissions/{name}", "-d", DATASET)
    words = ("--preset", "brats2020", "--labels", "released", "-o", str(scores / f"{name}.json"))
    run(folder, "nnunet_brats", "evaluate", "references", f"submissions/{name}", *words)


def table(folder: Path) -> None:
    print("| model | Dice WT | TC | ET | seeds |\n|---|---|---|---|---|")
    for name in ("stage1", "stage2_single", "stage2_expanded"):
        files = sorted((folder / "scores").glob(f"{name}_[0-9]*.json"))
        summaries = [json.loads(file.read_text())["summary"] for file in files]
        cells = []
        for region in REGIONS:
            values = [summary[region]["dice"]["mean"] for summary in summaries]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3f}{spread}" if values else "-")
        print(f"| {name} | " + " | ".join(cells) + f" | {len(files)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20, help="of six steps each")
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--held-out", type=int, default=8)
    options = parser.parse_args()
    folder = options.out.resolve()
    prepare(folder, options)
    for seed in options.seeds:
        if not (folder / "scores" / f"stage2_expanded_{seed}.json").exists():
            one_seed(folder, seed, options.epochs)
        table(folder)


if __name__ == "__main__":
    main()
