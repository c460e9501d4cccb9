"""A small stand-in for brainles-preprocessing, for where it is not installed: what `prepare` uses of it, and no more.

Registration finds that nothing has moved: images are resampled onto the fixed one's grid where they lie. Brain
extraction takes everything that is not zero. `test_preparation` compares its signatures with the package's own.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import SimpleITK as sitk

CALLED: list[tuple[str, Any]] = []


def resample(moving: Any, fixed: Any, out: Any, interpolator: str) -> None:
    kinds = {"linear": sitk.sitkLinear, "genericLabel": sitk.sitkNearestNeighbor}
    image = sitk.Resample(
        sitk.ReadImage(str(moving)), sitk.ReadImage(str(fixed)), sitk.Transform(), kinds[interpolator]
    )
    sitk.WriteImage(sitk.Cast(image, sitk.sitkFloat32), str(out))  # as ANTs writes


class ANTsRegistrator:
    def register(self, fixed_image_path, moving_image_path, transformed_image_path, matrix_path, log_file_path):
        Path(matrix_path).with_suffix(".mat").write_text("identity")
        self.transform(fixed_image_path, moving_image_path, transformed_image_path, matrix_path, log_file_path)

    def transform(
        self, fixed_image_path, moving_image_path, transformed_image_path, matrix_path, log_file_path,
        interpolator="nearestNeighbor",
    ):  # fmt: skip
        resample(moving_image_path, fixed_image_path, transformed_image_path, interpolator)


class HDBetExtractor:
    def extract(self, input_image_path, masked_image_path, brain_mask_path, mode="accurate", device=0, do_tta=True):
        CALLED.append(("hd-bet", (mode, device, do_tta)))
        image = sitk.ReadImage(str(input_image_path))
        sitk.WriteImage(image, str(masked_image_path))


class Modality:
    def __init__(self, modality_name, input_path, raw_bet_output_path=None, raw_skull_output_path=None):
        self.name, self.input_path = modality_name, Path(input_path)
        self.stripped, self.out = bool(raw_bet_output_path), Path(raw_bet_output_path or raw_skull_output_path)


class CenterModality(Modality):
    pass


class AtlasCentricPreprocessor:
    def __init__(
        self, center_modality, moving_modalities, registrator=None, brain_extractor=None,
        atlas_image_path=None, temp_folder=None, use_gpu=True,
    ):  # fmt: skip
        print("Thank you for using a stand-in")
        self.images, self.registrator, self.extractor = (
            [center_modality, *moving_modalities],
            registrator,
            brain_extractor,
        )
        self.atlas, self.temp_folder = atlas_image_path, Path(temp_folder)

    def run(self, save_dir_transformations=None, log_file=None):
        self.temp_folder.mkdir()
        for image in self.images:
            folder = Path(save_dir_transformations, image.name)
            folder.mkdir(parents=True)
            moved = self.temp_folder / image.out.name
            self.registrator.register(self.atlas, image.input_path, moved, folder / f"2_M_{image.name}", "log")
            if image.stripped:
                mask = self.temp_folder / "mask.nii.gz"
                self.extractor.extract(moved, image.out, mask, device="cuda")
            else:
                image.out.write_bytes(moved.read_bytes())


class Transform:
    def __init__(self, transformations_dir, registrator=None):
        self.folder, self.registrator = transformations_dir, registrator

    def apply(
        self, target_modality_name, target_modality_img, moving_image, output_img_path, log_file_path,
        interpolator=None, inverse=False,
    ):  # fmt: skip
        matrices = sorted(Path(self.folder, target_modality_name).iterdir())
        CALLED.append(("apply", (target_modality_name, inverse)))
        self.registrator.transform(
            target_modality_img, moving_image, output_img_path, matrices, log_file_path, interpolator=interpolator
        )


class ZenodoException(Exception):
    pass


def fetch() -> Path:
    raise ZenodoException("Zenodo could not be reached")


def download(fold: int) -> None:
    raise OSError("no network")


CONTENTS: dict[str, dict[str, Any]] = {
    "brainles_preprocessing": {},
    "brainles_preprocessing.preprocessor": {"AtlasCentricPreprocessor": AtlasCentricPreprocessor},
    "brainles_preprocessing.modality": {"Modality": Modality, "CenterModality": CenterModality},
    "brainles_preprocessing.registration": {"ANTsRegistrator": ANTsRegistrator},
    "brainles_preprocessing.brain_extraction": {"HDBetExtractor": HDBetExtractor},
    "brainles_preprocessing.transform": {"Transform": Transform},
    "brainles_preprocessing.utils": {},
    "brainles_preprocessing.utils.zenodo": {
        "ZenodoException": ZenodoException, "fetch_atlases": fetch, "fetch_synthstrip": fetch,
        "ATLASES_RECORD_ID": "1", "ATLASES_FOLDER": Path("atlases"),
        "SYNTHSTRIP_RECORD_ID": "2", "SYNTHSTRIP_FOLDER": Path("weights"),
    },
    "brainles_hd_bet": {},
    "brainles_hd_bet.utils": {"maybe_download_parameters": download, "folder_with_parameter_files": Path("hd-bet")},
    "loguru": {"logger": type("Logger", (), {"disable": staticmethod(lambda name: None)})},
}  # fmt: skip


def install(monkeypatch) -> None:
    CALLED.clear()
    for name, content in CONTENTS.items():
        module = ModuleType(name)
        module.__path__ = []  # type: ignore[attr-defined]
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
