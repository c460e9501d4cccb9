"""One small folder with everything that the commands read, and ways to spoil its files."""

import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from conftest import FOLDERS, World
from untrained_models import save_untrained, small_plans
from workflow_runs import SMALL, small_run

from nnunet_brats_ext.cli import main
from nnunet_brats_ext.dataset_conversion.case_filtering import case_losses_line

TRAINER = "BraTSAttentionVAETrainer"
MODEL = f"nnUNet_results/Dataset901_World/{TRAINER}__SmallPlans__small"
RAW, PREPROCESSED = "nnUNet_raw/Dataset901_World", "nnUNet_preprocessed/Dataset901_World"
CASES = ("BraTS20_Validation_007", "BraTS20_Validation_008")  # without labels
CASE = CASES[1]
HELD_OUT = "BraTS20_Training_002"  # of fold 0
RELEASE = "release/MICCAI_BraTS2020_TrainingData/BraTS20_Training_001/BraTS20_Training_001"
RELEASE_CASE = str(Path(RELEASE).parent)
ON_CPU = "-device cpu -np 0 --tta none"

COMMANDS = {  # a verb, or a form of one in brackets -> its words, in the folder; all write into `out`
    "convert": "convert release -o out -d 902 --name Other -np 1",
    "restore": "restore A -o out -d 901 -np 1",
    "restore (by its dataset.json)": "restore A -o out -np 1",
    "distill": "distill -d 903 --labelled 901 --pseudo A images --min-confidence 0.01 --near-duplicates off -np 1",
    "filter-cases": f"filter-cases 901 -tr {TRAINER} -c small -p SmallPlans -f 0 1",
    "plan": "plan 901 -p SmallPlans --name OtherPlans",
    "predict": f"predict -m {MODEL} -f 0 -i images -o out {ON_CPU}",
    "predict (vote, rules)": f"predict -m {MODEL} -f 0 1 --combine vote --rules rules.json -i images -o out {ON_CPU}",
    "choose": f"choose -m {MODEL} -f 0 {ON_CPU}",
    "attention": f"attention -m {MODEL} -f 0 -i images -o out -device cpu --reference references",
    "ensemble": "ensemble -i A B -o out -np 1",
    "ensemble (majority)": "ensemble --method majority -i A B -o out -np 1",
    "ensemble (staple)": "ensemble --method staple -i A B -o out -np 1",
    "ensemble (two-pass)": "ensemble --method two-pass -i A B -o out -np 1",
    "postprocess": "postprocess -i A --rules rules.json -o out -np 1",
    "postprocess (probabilities)": "postprocess -i A --rule unlikely-components:ET=0.1 -o out -np 1",
    "postprocess (images)": "postprocess -i A --rule oedema-to-core --images images -o out -np 1",
    "relabel": "relabel -i A -o out --from trained --to glioma_2017 -np 1",
    "uncertainty": "uncertainty -i A B --reference references --images images -o out -np 1",
    "evaluate": "evaluate references A --labels trained -o out/out.json -np 1",
    "rank": "rank A B --reference references --labels trained -o out/out.json -np 1",
    "rank (results)": "rank one.json two.json -o out/out.json -np 1",
    "tune": "tune references A --splits splits.json -o out/out.json -np 1",
    "report": "report one.json two.json -o out/out.html -np 1 --reference references --predictions A B --images images "
    f"--models {MODEL} --uncertainty maps --names A B",
    "export": f"export -m {MODEL} --torchscript out/out.pt --patch-size 16 16 16",
    "run": "run recipe.yaml release --dry-run -o run -device cpu",
    "status": "status run",
    "layout": "layout release",
    "bundle": f"bundle {MODEL} -o out/system.zip",
    "inspect": "inspect system",
    "segment": f"segment system {RELEASE_CASE} -o out -device cpu",
    "container": "container system -o out --challenge plain",
    "doctor": "doctor",
    "papers": "papers",
    "presets": "presets",
    "phantom": "phantom out --cases 1 --size 32 32 32 --anatomy procedural -np 1",
    "demo": "demo --device cpu",
}


def verb_of(command: str) -> str:
    return command.split(" (")[0]


def run(command: str, *more: str) -> int:
    """The exit code of a command; an error that is not the user's passes through, as a traceback would."""
    return main([*COMMANDS[command].split(), *more])


def build(world: World, root: Path) -> None:
    """Make the folder: a data set with release, a model with two folds, their predictions, and scores of these."""
    release = root / "release"
    shutil.copytree(world.root / "release", release)
    for folder in release.glob("*/*_00[4-8]"):
        shutil.rmtree(folder)
    for name in FOLDERS:
        (root / name).mkdir()
    shutil.copytree(world.raw, root / RAW)
    (root / PREPROCESSED).mkdir()
    for file in (world.root / PREPROCESSED).glob("*.json"):
        shutil.copy(file, root / PREPROCESSED)
    data = f"{PREPROCESSED}/nnUNetPlans_3d_fullres"
    (root / data).symlink_to(world.root / data)
    shutil.copytree(world.raw / "imagesTs", root / "images")
    plans = small_plans(world, "SmallPlans", {"small": {"patch_size": [16, 16, 16]}})
    (root / PREPROCESSED / "SmallPlans.json").write_text(json.dumps(plans))
    model = save_untrained(world, plans, "small", TRAINER, folds=(0, 1))
    splits = json.loads((root / PREPROCESSED / "splits_final.json").read_text())
    for fold in (0, 1):
        losses = {case: [0.1 + 0.01 * i] for i, case in enumerate(splits[fold]["train"])}
        (model / f"fold_{fold}" / "case_losses.jsonl").write_text(case_losses_line(0, losses))
        words = f"predict -m {MODEL} -f {fold} -i images -o {'AB'[fold]} --save_probabilities {ON_CPU}"
        assert main(words.split()) == 0
    (root / "references").mkdir()
    for case in CASES:
        shutil.copy(root / "A" / f"{case}.nii.gz", root / "references")
    for name, folder in (("one.json", "A"), ("two.json", "B")):
        assert main(f"evaluate references {folder} --labels trained -o {name} -np 1".split()) == 0
    assert main(["uncertainty", "-i", "A", "B", "--reference", "references", "-o", "maps", "-np", "1"]) == 0
    (root / "rules.json").write_text('{"rules": [{"rule": "small-et", "min_voxels": 5}]}')
    folds = [{"train": [CASES[1 - i]], "val": [CASES[i]]} for i in range(2)]
    (root / "splits.json").write_text(json.dumps(folds))
    (root / "recipe.yaml").write_text(SMALL)
    assert main(["bundle", MODEL, "-f", "0", "-o", "system.zip", "--trusted"]) == 0
    shutil.unpack_archive("system.zip", "system")
    small_run(root / "run")


def copy_of(root: Path) -> Path:
    return root.with_name(f"{root.name}.copy")


def restore(root: Path, copy: Path) -> None:
    """Make a folder what its copy is."""

    def stamp(path: Path) -> tuple:
        state = path.lstat()
        return (path.is_dir(), 0, 0) if path.is_dir() else (False, state.st_size, state.st_mtime_ns)

    wanted = {path.relative_to(copy): stamp(path) for path in copy.rglob("*")}
    for path in sorted(root.rglob("*"), reverse=True):
        if wanted.get(path.relative_to(root)) != stamp(path):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    for name in sorted(wanted):
        if not (root / name).exists():
            (root / name).mkdir() if (copy / name).is_dir() else shutil.copy2(copy / name, root / name)


def changed_since(before: dict[Path, int], root: Path) -> list[str]:
    """The files below a folder that are new or have another size."""
    return [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and before.get(p) != p.stat().st_size]


# ---- ways to spoil a file ------------------------------------------------------------------------------------------


def cut(file: Path, share: float = 0.6) -> None:
    os.truncate(file, int(file.stat().st_size * share))


def almost_whole(file: Path) -> None:
    cut(file, 0.99)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def text(file: Path) -> None:
    file.write_text("not found")


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def half_the_voxels(file: Path) -> None:
    """A sound gzip file of half the content."""
    content = gzip.decompress(file.read_bytes())
    file.write_bytes(gzip.compress(content[: len(content) // 2]))


def retyped(file: Path, kind: type) -> None:
    image = sitk.ReadImage(str(file))
    array = sitk.GetArrayFromImage(image).astype(kind)
    if kind is np.float32:
        array[5] = np.nan
    other = sitk.GetImageFromArray(array)
    other.CopyInformation(image)
    sitk.WriteImage(other, str(file))


def with_nan(file: Path) -> None:
    retyped(file, np.float32)


def complex_numbers(file: Path) -> None:
    retyped(file, np.complex64)


def resized(file: Path) -> None:
    sitk.WriteImage(sitk.ReadImage(str(file))[:, :, 1:], str(file))


def other_spacing(file: Path) -> None:
    image = sitk.ReadImage(str(file))
    image.SetSpacing([2 * length for length in image.GetSpacing()])
    sitk.WriteImage(image, str(file))


def flipped(file: Path) -> None:
    sitk.WriteImage(sitk.Flip(sitk.ReadImage(str(file)), (True, False, False)), str(file))


DAMAGE = (cut, almost_whole, empty, flip_a_byte, half_the_voxels, with_nan)
OTHER_GRIDS = (resized, other_spacing, flipped)
