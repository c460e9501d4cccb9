"""Predicting one full-size patient: nnU-Net's command against ours, and cascades whose members vote, side by side.

    python benchmarks/inference.py [--release FOLDER] [--before CHECKOUT] [--threads 2] [--only network cascade]

Lyu & Shu's networks with random weights, whose last biases are set so that their label maps lie within the brain. Both
commands predict the same patient with the same weights, one process, as users start them: start-up, reading and writing
are part of the seconds. For the cascade a network is one convolution, so that what is not network shows: the overhead
of a case is a third of what the same case three times more adds to the command, without the seconds of its networks.
CHECKOUT is another version of this package, which predicts the same. Without a release, the patient is a phantom of
240 x 240 x 155. nnU-Net's command starts one process that reads and one that writes, its least; ours does all in one.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from time import perf_counter

DATASET = "907"
PLANS = {"3d_fullres": "nnUNetPlans", "lyu_stage1": "BraTSPlans", "lyu_stage2": "BraTSPlans"}
SHARES = (0.06, 0.03, 0.01)  # of the brain that WT, TC, ET take
FOLDS = 5
FURTHER = 3  # cases
NARROW = """
from torch import nn
from nnunet_brats_ext.trainers import BraTSAttentionVAETrainer, BraTSVAETrainer


class Pointwise(nn.Module):
    def __init__(self, input_channels, num_classes, conv_op, strides):
        super().__init__()
        self.head = conv_op(input_channels, num_classes, 1)

    def forward(self, x):
        return self.head(x)


class NarrowVAETrainer(BraTSVAETrainer):
    architecture = Pointwise


class NarrowAttentionVAETrainer(BraTSAttentionVAETrainer):
    architecture = Pointwise
"""


def set_environment(folder: Path, threads: int) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir()
        os.environ[name] = str(folder / name)
    (folder / "own").mkdir()
    (folder / "own" / "narrow.py").write_text(NARROW)
    os.environ["nnUNet_extTrainer"] = str(folder / "own")
    # nnU-Net's predictor computes with no more threads than it would start processes.
    os.environ |= {"nnUNet_def_n_proc": str(threads), "nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": str(threads)}
    os.environ["nnUNet_compile"] = "f"


# A process of its own, because the memory that a command is said to have held at most is never less than that of the
# process which starts it.
MEASURING = """
import os, sys, time
start = time.perf_counter()
_, status, used = os.wait4(os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ), 0)
with open(sys.argv[1], "w") as file:
    print(time.perf_counter() - start, used.ru_maxrss / 1024, file=file)
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


def run(*words: object, checkout: Path | None = None) -> tuple[float, float]:
    """Seconds of a command, and the most memory that its process held, in MB."""
    environment = {**os.environ, **({"PYTHONPATH": str(checkout)} if checkout else {})}
    command = [str(Path(sys.executable).parent / str(words[0])), *map(str, words[1:])]
    with tempfile.TemporaryDirectory() as temporary:
        measured = Path(temporary) / "measured"
        done = subprocess.run(
            [sys.executable, "-S", "-c", MEASURING, measured, *command], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-3000:]}")
        seconds, peak = map(float, measured.read_text().split())
    return seconds, peak


def prepare(folder: Path, release: Path | None) -> Path:
    """A planned data set; the folder of its images."""
    if release is None:
        release = folder / "release"
        run("nnunet_brats", "phantom", release, "--cases", 4, "--anatomy", "procedural", "--size", 240, 240, 155)
    run("nnunet_brats", "convert", release, "-d", DATASET, "--name", "Patients", "--folds", 2)
    run("nnUNetv2_extract_fingerprint", "-d", DATASET, "-np", 1)
    run("nnUNetv2_plan_experiment", "-d", DATASET)
    run("nnunet_brats", "plan", DATASET)
    return next((folder / "nnUNet_raw").glob("Dataset*")) / "imagesTr"


def take(images: Path, count: int, place: Path) -> Path:
    """A folder with the first case, so many times."""
    place.mkdir()
    case = min(path.name.rsplit("_", 1)[0] for path in images.iterdir())
    for number in range(count):
        for path in images.glob(f"{case}_*"):
            shutil.copyfile(path, place / f"Case_{number}_{path.name.rsplit('_', 1)[1]}")
    return place


def save_models(trainer: str, configuration: str, folds: int, image: Path) -> float:
    """Random networks where nnU-Net looks for trained ones; the seconds that one takes for the patient."""
    import torch
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_brats_ext.inference import BraTSPredictor
    from nnunet_brats_ext.inference.case_files import find_image_files
    from nnunet_brats_ext.inference.cases import ImageCases
    from nnunet_brats_ext.inference.workers import Workers

    dataset = next(Path(os.environ["nnUNet_preprocessed"]).glob("Dataset*"))
    plans = json.loads((dataset / f"{PLANS[configuration]}.json").read_text())
    dataset_json = json.loads((Path(os.environ["nnUNet_raw"]) / dataset.name / "dataset.json").read_text())
    manager = PlansManager(plans)
    with redirect_stdout(StringIO()):  # where it looks
        found = recursive_find_trainer_class_by_name(trainer)
    channels = 4 + 3 * (configuration == "lyu_stage2")
    model = Path(os.environ["nnUNet_results"]) / dataset.name / f"{trainer}__{PLANS[configuration]}__{configuration}"
    for fold in range(folds):
        torch.manual_seed(fold)
        network = found.build_network_architecture(
            manager, manager.get_configuration(configuration), channels, 3, False
        )
        (file := model / f"fold_{fold}" / "checkpoint_final.pth").parent.mkdir(parents=True)
        for name, content in (("plans", plans), ("dataset", dataset_json)):
            (model / f"{name}.json").write_text(json.dumps(content))
        checkpoint = {
            "network_weights": network.state_dict(),
            "trainer_name": trainer,
            "init_args": {"configuration": configuration, "plans": {"plans_name": PLANS[configuration]}},
            "inference_allowed_mirroring_axes": None,
        }
        torch.save(checkpoint, file)
        predictor = BraTSPredictor("sliding" if channels == 4 else "tumour", "none", device=torch.device("cpu"))
        predictor.initialize_from_trained_model_folder(model, [fold])
        files = find_image_files(image, predictor.description.description)
        (case,) = ImageCases(files).read([predictor.description], list(files), Workers(0))
        data, properties = case.seen_by(predictor.description)
        brain = (data != 0).any(0)
        if channels > 4:
            data = torch.cat([data, (data[:3] > 2).float()])
        start = perf_counter()
        logits = predictor.predict_average(data, properties).float()
        seconds = perf_counter() - start
        inside = logits[:, brain] if channels == 4 else logits[:, (logits.abs() < 14).all(0)]
        shifts = torch.stack([each.quantile(1 - share) for each, share in zip(inside[:, ::37], SHARES, strict=True)])
        last = [name for name, values in network.state_dict().items() if values.shape == (3,)][-1]
        checkpoint["network_weights"][last] -= shifts
        torch.save(checkpoint, file)
    return seconds


def label_maps(folder: Path):
    from nnunet_brats_ext.storage.images import read_label_map

    return [read_label_map(path)[0] for path in sorted(folder.glob("*.nii.gz"))]


def compare_networks(folder: Path, image: Path) -> None:
    """nnU-Net's command and ours, with one network of the paper's width in nnU-Net's own windows."""
    save_models("BraTSVAETrainer", "3d_fullres", 1, image)
    words = ("-i", image, "-d", DATASET, "-tr", "BraTSVAETrainer", "-c", "3d_fullres", "-f", 0, "-device", "cpu")
    ours = ("nnunet_brats", "predict", *words, "-np", 0)
    rows = {
        "nnUNetv2_predict": ("nnUNetv2_predict", *words, "-npp", 1, "-nps", 1),
        "predict": ours,
        "predict --precision bf16": (*ours, "--precision", "bf16"),
        "predict --tiling brain": (*ours, "--tiling", "brain"),
        "predict --tiling brain --precision bf16": (*ours, "--tiling", "brain", "--precision", "bf16"),
    }
    reference = None
    print("| command | s | times as fast | MB | tumour voxels with the same label |\n|---|---|---|---|---|")
    for name, command in rows.items():
        (out := folder / name.replace(" ", "_")).mkdir()
        shutil.rmtree(out)
        seconds, peak = run(*command, "-o", out)
        (labels,) = label_maps(out)
        reference = reference or (seconds, labels)
        tumour = (labels > 0) | (reference[1] > 0)
        same = (labels == reference[1])[tumour].mean()
        print(f"| {name} | {seconds:.1f} | {reference[0] / seconds:.2f} | {peak:.0f} | {same:.4%} |", flush=True)


def compare_cascades(folder: Path, images: Path, image: Path, before: Path | None) -> None:
    """Members of stage 2 on every source of stage 1, all of which vote."""
    one = save_models("NarrowVAETrainer", "lyu_stage1", FOLDS, image)
    two = save_models("NarrowAttentionVAETrainer", "lyu_stage2", FOLDS, image)
    more = take(images, 1 + FURTHER, folder / "more")
    print(f"\nnetworks: stage 1 {one:.2f} s, stage 2 {two:.2f} s")
    print(
        "| version | sources x members | s for one case | overhead of a further case, s | MB |\n|---|---|---|---|---|"
    )
    maps = {}
    for version, checkout in (("before", before), ("this", Path(__file__).parents[1])):
        if checkout is None:
            continue
        for sources, members in ((1, 1), (2, 5), (5, 5)):
            command = ["nnunet_brats", "predict", "-d", DATASET, "-tr", "NarrowAttentionVAETrainer"]
            command += ["-c", "lyu_stage2", "-p", "BraTSPlans", "-prev_tr", "NarrowVAETrainer", "-device", "cpu"]
            command += ["--combine", "vote", "-f", *range(members), "-prev_f", *range(sources), "-np", 0]
            outs = [folder / f"{version}_{sources}_{members}_{count}" for count in ("one", "more")]
            single, peak = run(*command, "-i", image, "-o", outs[0], checkout=checkout)
            several, _ = run(*command, "-i", more, "-o", outs[1], checkout=checkout)
            overhead = (several - single) / FURTHER - sources * one - sources * members * two
            print(f"| {version} | {sources} x {members} | {single:.1f} | {overhead:.2f} | {peak:.0f} |", flush=True)
            maps[version, sources, members] = label_maps(outs[1])
    if before:
        alike = all(
            (old == new).all()
            for (version, sources, members), found in maps.items()
            if version == "this"
            for old, new in zip(maps["before", sources, members], found, strict=True)
        )
        print("label maps of both versions are", "the same" if alike else "NOT the same")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=("network", "cascade"), default=["network", "cascade"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        set_environment(folder, options.threads)
        images = prepare(folder, options.release)
        image = take(images, 1, folder / "image")
        if "network" in options.only:
            compare_networks(folder, image)
        if "cascade" in options.only:
            compare_cascades(folder, images, image, options.before)


if __name__ == "__main__":
    main()
