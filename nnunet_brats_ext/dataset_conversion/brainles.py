"""The one place that calls brainles-preprocessing: registration, an atlas's space, brain extraction, and back.

Kofler et al. 2025, BrainLesion Suite, https://arxiv.org/abs/2507.09036. It registers rigidly with ANTs. The package is
an optional extra and loads torch, so it is imported in functions.
"""

import importlib
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import ENDINGS

PACKAGE = "brainles_preprocessing"
CITATION = "https://github.com/BrainLesion/preprocessing#citation"
HD_BET, SYNTHSTRIP, NONE = EXTRACTORS = ("hd-bet", "synthstrip", "none")
ATLASES = {  # name -> the package's names of its file with the skull, and without
    "sri24": ("BRATS_SRI24", "BRATS_SRI24_SKULLSTRIPPED"),
    "mni152": ("BRATS_MNI152", "BRATS_MNI152"),
}
HD_BET_FOLDS = 5


class Tools(NamedTuple):
    """What patients are prepared with. atlas: its file. extractor: of `EXTRACTORS`. device: cuda or cpu."""

    atlas: Path
    extractor: str
    device: str


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the package's banner, log and warnings; what goes wrong is an exception."""
    os.environ["BRAINLES_PREPROCESSING_CITATION_REMINDER"] = "false"  # the command ends with it
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as those of other registration programs that are not installed
        yield


def _module(name: str) -> Any:
    """A module of the package; a UserError where the package is not installed."""
    try:
        with _quiet():
            module = importlib.import_module(f"{PACKAGE}.{name}")
            importlib.import_module("loguru").logger.disable(PACKAGE)
    except ImportError as error:
        raise UserError(
            f"prepare works with brainles-preprocessing ({error}): pip install 'nnunet-brats-ext[prepare]'"
        ) from error
    return module


def require() -> None:
    """A UserError where the package is not installed."""
    _module("preprocessor")


def find_tools(atlas: str, extractor: str, device: str | None) -> Tools:
    """The package with all that it downloads on first use; a UserError says what to fetch where that fails.

    atlas: of `ATLASES`, or a file. device: None is a GPU where torch sees one.
    """
    require()
    if device is None:
        device = "cuda" if importlib.import_module("torch").cuda.is_available() else "cpu"
    tools = Tools(_find_atlas(atlas, stripped=extractor == NONE), extractor, device)
    if extractor == HD_BET:
        _find_hd_bet(device)
    elif extractor == SYNTHSTRIP:
        zenodo = _module("utils.zenodo")
        _module("brain_extraction.synthstrip")
        _fetch(zenodo.fetch_synthstrip, "SynthStrip's weights", zenodo.SYNTHSTRIP_RECORD_ID, zenodo.SYNTHSTRIP_FOLDER)
    return tools


def _find_atlas(name: str, stripped: bool) -> Path:
    if name not in ATLASES:
        if not (path := Path(name)).is_file() or not name.endswith(ENDINGS):
            raise UserError(f"--atlas {name}: expected {', '.join(ATLASES)}, or an image file")
        return path
    zenodo = _module("utils.zenodo")
    folder = _fetch(zenodo.fetch_atlases, "its atlases", zenodo.ATLASES_RECORD_ID, zenodo.ATLASES_FOLDER)
    return folder / getattr(_module("constants").Atlas, ATLASES[name][stripped]).value


def _fetch(fetch: Any, what: str, record: str, folder: Path) -> Path:
    try:
        with _quiet():
            return fetch()
    except _module("utils.zenodo").ZenodoException as error:
        raise UserError(
            f"brainles-preprocessing could not fetch {what} ({error}). Where there is a network, download the files of "
            f"https://zenodo.org/records/{record}, unpack them, and put them into {folder}/{record}_v1.0.0"
        ) from error


def _find_hd_bet(device: str) -> None:
    weights = importlib.import_module("brainles_hd_bet.utils")
    for fold in range(1 if device == "cpu" else HD_BET_FOLDS):
        try:
            with _quiet():
                weights.maybe_download_parameters(fold)
        except OSError as error:
            names = "0.model" if device == "cpu" else f"0.model to {HD_BET_FOLDS - 1}.model"
            raise UserError(
                f"HD-BET's weights could not be fetched ({error}). Where there is a network, download {names} from "
                f"https://zenodo.org/records/2540695 and put them into {weights.folder_with_parameter_files}; or take "
                "scans whose brains are extracted already, with --brain-extraction none"
            ) from error


def _registrator() -> Any:
    """Rigid registration by ANTs, with linear interpolation; the package's own default is the nearest voxel."""

    class Linear(_module("registration").ANTsRegistrator):  # type: ignore[misc]
        def transform(self, *arguments: Any, interpolator: str = "linear", **named: Any) -> None:
            super().transform(*arguments, interpolator=interpolator, **named)

    return Linear()


def _extractor(tools: Tools) -> Any:
    """HD-BET as its authors run it: five networks and mirror images on a GPU, one network without on a CPU."""
    if tools.extractor == SYNTHSTRIP:
        return _module("brain_extraction.synthstrip").SynthStripExtractor()
    on_cpu = {"mode": "fast", "do_tta": False, "device": "cpu"} if tools.device == "cpu" else {}

    class HDBet(_module("brain_extraction").HDBetExtractor):  # type: ignore[misc]
        def extract(self, *arguments: Any, **named: Any) -> None:
            super().extract(*arguments, **{**named, **on_cpu})

    return HDBet()


def prepare_images(images: Mapping[str, Path], center: str, folder: Path, tools: Tools, scratch: Path) -> None:
    """Write SEQUENCE.nii.gz in the space of the atlas into a folder, and the transforms into `transforms` in it.

    images: sequence -> file with one volume. center: the sequence to which the others are registered, and which is
    registered to the atlas.
    """
    modality = _module("modality")
    output = "raw_skull_output_path" if tools.extractor == NONE else "raw_bet_output_path"

    def described(kind: Any, name: str) -> Any:
        return kind(modality_name=name, input_path=images[name], **{output: folder / f"{name}.nii.gz"})

    with _quiet():
        preprocessor = _module("preprocessor").AtlasCentricPreprocessor(
            center_modality=described(modality.CenterModality, center),
            moving_modalities=[described(modality.Modality, name) for name in images if name != center],
            registrator=_registrator(),
            brain_extractor=None if tools.extractor == NONE else _extractor(tools),
            atlas_image_path=tools.atlas,
            temp_folder=scratch,
            use_gpu=tools.device != "cpu",
        )
        preprocessor.run(save_dir_transformations=folder / TRANSFORMS, log_file=scratch / "log.txt")


TRANSFORMS = "transforms"


def transform_labels(
    labels: Path, sequence: str, transforms: Path, reference: Path, out: Path, scratch: Path, inverse: bool = False
) -> None:
    """Move a label map as a sequence was moved, onto the grid of a reference; inverse: from the atlas to the scan."""
    with _quiet():
        _module("transform").Transform(transforms, _registrator()).apply(
            target_modality_name=sequence,
            target_modality_img=reference,
            moving_image=labels,
            output_img_path=out,
            log_file_path=scratch / "log.txt",
            interpolator="genericLabel",
            inverse=inverse,
        )
