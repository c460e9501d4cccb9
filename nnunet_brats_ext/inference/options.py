"""The options of `predict` and `attention`, stated once for Python and for the command line. Loads no torch."""

from dataclasses import dataclass
from pathlib import Path

from nnunet_brats_ext.evaluation.presets import cohort_option, preset_option
from nnunet_brats_ext.inference.choices import FROM_TRAINER, symmetry_names, tiling_names
from nnunet_brats_ext.papers import Source
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.nnunet import FINAL
from nnunet_brats_ext.storage.options import Options, option
from nnunet_brats_ext.storage.shared_options import device_option, ties_option

COMBINATIONS = ("logits", "probabilities", "vote")
PRECISIONS = ("default", "bf16")
LOW_MEMORY_MB = 630.0  # what Hashemi et al. 2021 predict with
OF_PREVIOUS_STAGE = {"previous", "previous_trainer", "previous_folds", "previous_checkpoints"}  # fields


def check_ties(ties: Source, combine: str | None) -> None:
    """A rule for ties goes with a vote alone."""
    if ties != "release" and combine != "vote":
        raise UserError(f"--ties {ties}: has no meaning without --combine vote")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Which trained model, some of its folds and checkpoints, and the device that it runs on."""

    dataset: str | None = option("-d", default=None, help="number or name of the data set")
    trainer: str | None = option("-tr", default=None, help="trainer")
    configuration: str | None = option("-c", default=None, help="configuration")
    plans: str = option("-p", default="nnUNetPlans", help="plans")
    model: Path | None = option(
        "-m", default=None, metavar="FOLDER", help="folder of a trained model, instead of -d, -tr, -c and -p"
    )
    folds: tuple[str, ...] = option(
        "-f", default=(), metavar="FOLD", help="numbers, or all; default: all numbered ones that are trained"
    )
    checkpoints: tuple[str, ...] = option(
        "-chk",
        default=(FINAL,),
        metavar="NAME",
        help="checkpoints of each fold; chosen: those that `choose` has chosen; chosen:2: the best two of them",
    )
    device: str | None = device_option(None, "default: cuda where there is a GPU, else cpu")
    trusted: bool = option(
        default=False, help="the checkpoints come from people you trust: do not say that reading them runs code"
    )


@dataclass(frozen=True, kw_only=True)
class InferenceOptions(ModelOptions):
    """How a model, or several of them, see cases: what `predict` and `choose` share."""

    images: Path | None = option("-i", default=None, metavar="FOLDER", help="images as nnU-Net names them")
    models: tuple[str, ...] = option(
        default=(),
        metavar="TRAINER:CONFIGURATION",
        help="several models instead of -tr and -c, of which those enter that are best in each fold",
    )
    by: str = option(
        default="dice",
        metavar="SCORE",
        help="what is chosen by: dice, the mean over regions; a region, such as ET, by its Dice; another metric of "
        "the preset; or ranking, the mean rank as BraTS ranks",
    )
    preset: str = preset_option("to choose by: ")
    cohort: str = cohort_option("to choose by: ")
    combine: str = option(
        default="logits",
        choices=COMBINATIONS,
        help="folds and checkpoints: mean of their logits, as nnU-Net, of their probabilities, or a vote",
    )
    ties: Source = ties_option("(--combine vote)")
    missing: bool = option(
        default=False, help="take cases that lack sequences, whose files CASE_0002.nii.gz and so on are absent"
    )
    sequences: tuple[str, ...] = option(
        default=(), metavar="SEQUENCE", help="look at these sequences only, as if cases lacked the others"
    )
    tiling: str = option(
        default=FROM_TRAINER,
        choices=lambda: [FROM_TRAINER, *tiling_names()],
        help="how volumes are cut; paper: as the trainer's paper does",
    )
    symmetries: str = option(
        "--tta",
        default=FROM_TRAINER,
        choices=lambda: [FROM_TRAINER, *symmetry_names()],
        help="test-time augmentation; mirror is nnU-Net's",
    )
    disable_tta: bool = option(
        "--disable_tta", default=False, help="the same as --tta none", aliases=("--disable-tta",)
    )
    precision: str = option(
        default="default",
        choices=PRECISIONS,
        help="default: fp32 on a CPU, mixed with fp16 on a GPU, as nnU-Net; bf16: mixed with bfloat16, about twice as "
        "fast on a CPU that computes it",
    )
    skip_empty: bool = option(
        default=False,
        help="windows that hold nothing but background are background without a look; label maps stay the same unless "
        "a network finds tumour in air",
    )
    symmetries_at_once: int = option(
        default=1, at_least=1, metavar="N", help="mirror images or turns of a window in one batch: more memory, on GPUs"
    )
    step_size: float = option(
        "-step_size",
        default=0.5,
        above=0,
        at_most=1,
        help="of the sliding window, as a share of the patch",
        aliases=("--step_size", "--step-size"),
    )
    patch_size: tuple[int, ...] = option(
        default=(), at_least=1, metavar="N", help="another size of windows than in training"
    )
    previous: tuple[Path, ...] = option(
        "-prev_stage_predictions",
        default=(),
        metavar="FOLDER",
        help="label maps of the previous stage, one folder per source; default: predicted on the way",
    )
    previous_trainer: str | None = option("-prev_tr", default=None, help="default: the one that the trainer names")
    previous_folds: tuple[str, ...] = option(
        "-prev_f", default=(), metavar="FOLD", help="default: all numbered ones that are trained"
    )
    previous_checkpoints: tuple[str, ...] = option(
        "-prev_chk", default=(FINAL,), metavar="NAME", help="checkpoints of each fold of the previous stage"
    )
    low_memory_mb: float | None = option(
        "--low-memory",
        default=None,
        const=LOW_MEMORY_MB,
        above=0,
        metavar="MB",
        help=f"stay within this much device memory, if the model allows it, and say how much it was; "
        f"default {LOW_MEMORY_MB:.0f}",
    )
    profile: bool = option(default=False, help="report seconds and peak memory of every step")
    processes: int = option(
        "-np", default=3, at_least=0, help="processes that preprocess, and as many that write; 0 does all in one"
    )


@dataclass(frozen=True, kw_only=True)
class PredictOptions(InferenceOptions):
    """What to predict, by which models, and how."""

    out: Path | None = option("-o", writes="folder", default=None, metavar="FOLDER", help="output folder")
    cross_validation: bool = option(
        default=False,
        help="the labelled cases of the data set, each by the models of its own fold; -i: another folder of the images",
    )
    best: int | None = option(
        default=None,
        at_least=1,
        help="with --models: how many enter in each fold, by their mean probability; default 2. They are chosen as by "
        "`choose`, which is done first where scores are missing",
    )
    for_next_stage: bool = option(
        default=False,
        help="label maps of all training cases by a first stage, of which the training of the second draws one per "
        "case; by default one map for each checkpoint, by the fold that did not train on the case",
    )
    next_stages: tuple[str, ...] = option(
        default=(),
        metavar="CONFIGURATION",
        help="with --for-next-stage: the second stages that the maps are for; default: all that follow",
    )
    in_sample: bool = option(
        default=False, help="with --for-next-stage: a map for each fold and checkpoint, also of cases it trained on"
    )
    add: bool = option(default=False, help="with --for-next-stage: keep the maps of other runs beside these")
    by_sequences: bool = option(
        default=False,
        help="predict with every set of the sequences, such as T1+FLAIR, into a folder of that name in -o; "
        "`evaluate --by-sequences` makes one table of them",
    )
    rules: tuple[str, ...] = option(
        default=(), help="post-processing: a file, a name saved beside the model, or a paper, as in `postprocess`"
    )
    save_probabilities: bool = option(
        "--save_probabilities",
        default=False,
        help="also CASE.npz, as nnU-Net writes it",
        aliases=("--save-probabilities",),
    )
    half_probabilities: bool = option(
        default=False, help="CASE.npz in float16: about half of the size, exact to 0.0005"
    )
    overwrite: bool = option(default=False, help="predict again what is there")
    keep_members: bool = option(default=False, help="keep what was voted over or averaged")


@dataclass(frozen=True, kw_only=True)
class ChooseOptions(InferenceOptions):
    """Among which checkpoints and models to choose, and by what score."""

    checkpoints: tuple[str, ...] = option(
        "-chk",
        default=(),
        metavar="NAME",
        help="the candidates; default: all that are kept, or with --models the final",
    )
    best: int = option(default=1, at_least=1, help="how many to choose in each fold")
    out: Path | None = option(
        "-o", writes="file", ending=".json", default=None, metavar="FILE", help="the scores and the choice of all folds"
    )


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(ModelOptions):
    """Which cases and slices to show, and over what."""

    images: Path = option("-i", metavar="FOLDER", help="images as nnU-Net names them")
    out: Path = option("-o", writes="folder", metavar="FOLDER", help="output folder")
    previous: Path | None = option(
        "-prev_stage_predictions",
        default=None,
        metavar="FOLDER",
        help="label maps of the previous stage, for the second one of a cascade",
    )
    cases: tuple[str, ...] = option(default=(), metavar="CASE", help="default: all")
    slices: tuple[int, ...] = option(
        default=(),
        at_least=1,
        metavar="N",
        help="axial slices to draw, counted from 1 at the feet; default: the one with most tumour",
    )
    background: str | None = option(
        default=None, metavar="SEQUENCE", help="what to draw the maps over; default FLAIR, or the first channel"
    )
    reference: Path | None = option(
        default=None,
        metavar="FOLDER",
        help="label maps as trained, to outline; default: what each checkpoint predicts",
    )
