"""The options of `bundle`, `inspect`, `segment` and `container`. Loads no torch."""

from dataclasses import dataclass
from pathlib import Path

from nnunet_brats_ext.bundles.challenges import CHALLENGES, PLAIN
from nnunet_brats_ext.inference.options import COMBINATIONS, PRECISIONS
from nnunet_brats_ext.papers import Source
from nnunet_brats_ext.storage.nnunet import FINAL
from nnunet_brats_ext.storage.options import Options, argument, option
from nnunet_brats_ext.storage.shared_options import device_option, overwrite_option, ties_option

BRATS, BRATS_BEFORE_2023, TRAINED = LABELS = ("brats", "brats-before-2023", "trained")


NOTE = (
    "For research. It is no medical device; nobody has examined it for the care of patients. Look at every label map "
    "before you use it."
)


@dataclass(frozen=True)
class BundleOptions(Options):
    """Options of `bundle`."""

    sources: tuple[Path, ...] = argument(
        "the folder of a run of `nnunet_brats run`, or folders of trained models", metavar="RUN_OR_MODEL"
    )
    out: Path = option("-o", writes="file", ending=".zip", metavar="FILE", help="the bundle, such as system.zip")
    prediction: str | None = option(
        default=None, metavar="NAME", help="of a run: which of its predictions; default: its first submission"
    )
    folds: tuple[str, ...] = option(
        "-f", default=(), metavar="FOLD", help="of models: numbers, or all; default: all numbered ones that are trained"
    )
    checkpoints: tuple[str, ...] = option(
        "-chk", default=(FINAL,), metavar="NAME", help="of models: checkpoints of each fold"
    )
    previous_folds: tuple[str, ...] = option(
        "-prev_f", default=(), metavar="FOLD", help="the same of the stage before; default: all that are trained"
    )
    previous_checkpoints: tuple[str, ...] = option(
        "-prev_chk", default=(FINAL,), metavar="NAME", help="checkpoints of each fold of the stage before"
    )
    combine: str = option(
        default="logits", choices=COMBINATIONS, help="of models: folds and checkpoints of each, as in predict"
    )
    ties: Source = ties_option("(--combine vote)")
    weights: tuple[float, ...] = option(
        default=(), at_least=0, metavar="X", help="of several models: of the mean of their probabilities, one each"
    )
    rules: tuple[str, ...] = option(default=(), help="of models: post-processing, as in `postprocess`")
    title: str | None = option(default=None, metavar="TEXT", help="what the system is called")
    licence: str | None = option(default=None, metavar="TEXT", help="under which the weights are handed on")
    note: str = option(default=NOTE, metavar="TEXT", help="what users should know; default: for research only")
    trusted: bool = option(
        default=False, help="the checkpoints come from people you trust: do not say that reading them runs code"
    )
    overwrite: bool = overwrite_option("replace the bundle that is there")


@dataclass(frozen=True)
class InspectOptions(Options):
    """Options of `inspect`."""

    bundle: Path = argument("a bundle, or the folder that it was unpacked to", metavar="BUNDLE")
    nnunet: Path | None = option(
        default=None,
        writes="folder",
        metavar="FOLDER",
        help="write each model as a zip for nnUNetv2_install_pretrained_model_from_zip, with checkpoints that hold "
        "tensors and plain values only",
    )
    verify: bool = option(default=False, help="also compare every byte with the sums in the file")


@dataclass(frozen=True, kw_only=True)
class SegmentOptions(Options):
    """Options of `segment`."""

    bundle: Path = argument("a bundle, or the folder that it was unpacked to", metavar="BUNDLE")
    patients: tuple[Path, ...] = argument(
        "folders of one patient or of many, in any layout that `convert` reads", default=(), metavar="PATIENT"
    )
    out: Path = option("-o", writes="folder", metavar="FOLDER", help="output folder")
    t1: Path | None = option(default=None, metavar="FILE", help="of one patient, instead of folders: its T1")
    t1ce: Path | None = option(default=None, metavar="FILE", help="its T1 with contrast agent")
    t2: Path | None = option(default=None, metavar="FILE", help="its T2")
    flair: Path | None = option(default=None, metavar="FILE", help="its FLAIR")
    name: str | None = option(
        default=None,
        metavar="NAME",
        help="what a patient of named files is called; default: as its folder",
    )
    release: str | None = option(default=None, metavar="NAME", help="how files are named, where names leave it open")
    layout: Path | None = option(
        default=None, metavar="FILE", help="the layout of own folders, as `nnunet_brats layout` writes it"
    )
    any_name: bool = option(default=False, help="cases have any names; with --release or --layout")
    labels: str = option(
        default=BRATS,
        choices=LABELS,
        help="numbering: brats is 1 NCR, 2 ED, 3 ET for glioma; brats-before-2023 has ET as 4; trained is nnU-Net's "
        "own, 1 ED, 2 NCR, 3 ET",
    )
    probabilities: bool = option(default=False, help="also the probability of each region, as images")
    missing: bool = option(default=False, help="take patients who lack sequences")
    challenge: str | None = option(
        default=None,
        choices=lambda: CHALLENGES,
        metavar="NAME",
        help="write label maps as that challenge takes them, and nothing else; as in `container`",
    )
    time_limit: float | None = option(
        default=None,
        above=0,
        metavar="SECONDS",
        help="for all patients: leave out networks, in the order that `inspect` lists, rather than exceed it",
    )
    precision: str = option(default="default", choices=PRECISIONS, help="as of `predict`; bf16 is faster")
    device: str | None = device_option(None, "default: cuda where there is a GPU, else cpu")
    overwrite: bool = overwrite_option(
        "segment these patients again; what is there of them is removed first. Refused where the folder holds other "
        "patients, made with other settings"
    )


@dataclass(frozen=True)
class ContainerOptions(Options):
    """Options of `container`."""

    bundle: Path = argument("a bundle, or the folder that it was unpacked to", metavar="BUNDLE")
    out: Path = option("-o", writes="folder", metavar="FOLDER", help="a new folder, from which the container is built")
    challenge: str = option(
        default=PLAIN,
        choices=lambda: CHALLENGES,
        metavar="NAME",
        help="whose names, labels and grid it takes and writes; plain takes any folder of patients",
    )
    time_limit: float | None = option(
        default=None, above=0, metavar="SECONDS", help="for all patients of a call, as of `segment`"
    )
    trainers: tuple[Path, ...] = option(
        default=(), metavar="FOLDER", help="folders of nnUNet_extTrainer with trainers of your own"
    )
