"""A small distillation: a labelled data set, and predictions on its unlabelled cases."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from conftest import FOLDERS, World
from scipy.ndimage import gaussian_filter

from nnunet_brats_ext.brats import to_regions
from nnunet_brats_ext.cli import main

REGIONS = {"WT": (1, 2, 3), "TC": (2, 3), "ET": (3,)}
SURE, UNSURE = "BraTS20_Validation_007", "BraTS20_Validation_008"  # the world's unlabelled cases


@dataclass(frozen=True)
class Bench:
    """A folder for nnU-Net with the world's labelled data set, and predictions on its unlabelled cases."""

    root: Path

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw"

    @property
    def labelled(self) -> Path:
        return self.raw / "Dataset901_World"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions"

    def distill(self, *words: object, dataset: str = "950") -> Path:
        """Run the command; the data set. On an error that is not expected, the error."""
        words = ("--pseudo", self.predictions, self.labelled / "imagesTs", *words, "-np", 1)
        assert main(["distill", "-d", dataset, "--labelled", "901", *map(str, words)]) == 0
        return self.raw / f"Dataset{dataset}_WorldDistilled"

    def refusal(self, capsys, *words: object, pseudo: bool = True) -> str:
        sources = ("--pseudo", self.predictions, self.labelled / "imagesTs") if pseudo else ()
        capsys.readouterr()
        assert main(["distill", "-d", "950", "--labelled", "901", *map(str, (*sources, *words)), "-np", "1"]) == 1
        assert not list(self.raw.glob("*950*")), "a refused distillation leaves nothing"
        return capsys.readouterr().err


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def save(array: np.ndarray, path: Path, like: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(sitk.ReadImage(str(like)))
    sitk.WriteImage(image, str(path))


def load(path: Path) -> dict:
    return json.loads(path.read_text())


def digest(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def make_bench(world: World, root: Path) -> Bench:
    """Predictions in nnU-Net's form: labels of other cases, blurred into probabilities; the second hardly decided."""
    bench = Bench(root)
    for name in FOLDERS:
        (root / name).mkdir()
    shutil.copytree(world.raw, bench.labelled)
    bench.predictions.mkdir()
    shutil.copy(bench.labelled / "dataset.json", bench.predictions)
    (bench.predictions / "plans.json").write_text(json.dumps({"image_reader_writer": "SimpleITKIO"}))
    labels = sorted((bench.labelled / "labelsTr").iterdir())
    for case, source, sharpness in ((SURE, labels[0], 1.0), (UNSURE, labels[1], 0.2)):
        regions = np.stack(list(to_regions(read(source), REGIONS).values())).astype(np.float32)
        blurred = gaussian_filter(regions, (0, 0.5, 0.5, 0.5))
        probabilities = 0.5 + sharpness * (blurred - 0.5)
        np.savez_compressed(bench.predictions / f"{case}.npz", probabilities=probabilities)
        painted = np.zeros(regions.shape[1:], np.uint8)
        for label, region in enumerate(probabilities, start=1):
            painted[region > 0.5] = label
        save(painted, bench.predictions / f"{case}.nii.gz", bench.labelled / "imagesTs" / f"{case}_0000.nii.gz")
    return bench
