"""Lyu & Shu 2020 as data: configurations of both stages, trainers, post-processing, published scores."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nnunet_brats_ext.papers import (
    Configuration,
    Difference,
    Footprint,
    Paper,
    Prediction,
    PublishedResult,
    TrainerFacts,
    as_written,
)

VALIDATION = "125 validation cases of BraTS 2020"
TESTING = "166 test cases of BraTS 2020"
COLUMNS = [(region, metric) for metric in ("dice", "hd95") for region in ("ET", "WT", "TC")]  # of all tables


def _by_region(values: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """The values of a printed row."""
    found: dict[str, dict[str, Any]] = {}
    for (region, metric), value in zip(COLUMNS, values, strict=True):
        found.setdefault(region, {})[metric] = value
    return found


def _row(stage: int, method: str, prediction: str, *values: float, table: str = "Table 1") -> PublishedResult:
    return PublishedResult(
        f"stage {stage}, {method}",
        TESTING if table == "Table 3" else VALIDATION,
        _by_region(values),
        TRAINERS[stage],
        table,
        prediction,
    )


def _spread(
    stage: int, models: int, deviations: Sequence[float], ranges: Sequence[tuple[float, float]]
) -> PublishedResult:
    return PublishedResult(
        f"stage {stage}, {models} models without post-processing",
        VALIDATION,
        trainer=TRAINERS[stage],
        table="Table 2",
        prediction=f"stage{stage}_each",
        deviations=_by_region(deviations),
        ranges=_by_region(ranges),
        over="models",
    )


TRAINERS = {1: "BraTSVAETrainer", 2: "BraTSAttentionVAETrainer"}
ON_TUMOUR = Configuration(
    "lyu_stage2",
    patch_size=(128, 128, 128),
    batch_size=4,
    poolings=4,
    previous_stage="lyu_stage1",
    footprint=Footprint(20_371_648, 2, {"fp32": 2110, "mixed": 1477}, parameters_per_voxel=5.03125),
)
STAGE_1 = TrainerFacts(
    "BraTSVAETrainer",
    "lyu_stage1",
    "stage 1: residual U-Net with a VAE branch that exists only in training; soft Dice per region; Adam",
    parameters=18_802_115,
    prediction=Prediction(symmetries="none"),
    snapshot_epochs=(165, 184, 190, 205, 244, 254, 261, 271, 289, 294),  # of the ensembles and expanded data
)
STAGE_2 = TrainerFacts(
    "BraTSAttentionVAETrainer",
    "lyu_stage2",
    "stage 2: the same with attention gates; refines the labels of stage 1 in a window on the tumour; also works alone",
    parameters=19_021_324,
    prediction=Prediction(tiling="tumour", symmetries="none"),
    snapshot_epochs=(57, 66, 67, 69, 77, 100, 115),
    previous_stage="BraTSVAETrainer",
    attention="gate_maps.py:ATTENTION",
)

PAPER = Paper(
    title="A Two-Stage Cascade Model with Variational Autoencoders and Attention Gates for MRI Brain Tumor "
    "Segmentation",
    authors="Lyu & Shu",
    year=2020,
    link="https://arxiv.org/abs/2011.02881",
    configurations=(
        # The VAE halves the deepest features once more: four halvings, where the U-Net itself has three.
        Configuration(
            "lyu_stage1",
            patch_size=(128, 192, 160),
            batch_size=4,
            poolings=4,
            footprint=Footprint(20_152_439, 2, {"fp32": 2029, "mixed": 1402}, parameters_per_voxel=5.03125),
        ),
        ON_TUMOUR,
        replace(ON_TUMOUR, name="lyu_stage2_single"),  # trained on one map per case, beside the one on six
    ),
    trainers=(
        STAGE_1,
        STAGE_2,
        as_written(STAGE_1),
        as_written(STAGE_2, parameters=18_869_670, previous_stage="BraTSVAEAsWrittenTrainer"),
    ),
    differences={
        "vae_losses": Difference("a sum of squares, and a divergence over the number of voxels", "means of both"),
        "vae_gradient": Difference("the sample carries the gradient", "no gradient through the sample", "text"),
        "augmented_sequences": Difference("intensities of all change", "those of FLAIR do not", "text"),
        "gates": Difference("1x1x1 convolutions, no normalisation", "2x2x2 on the skip, batch normalisation"),
        "stage2_dice": Difference("regions count alike", "they count 0.10, 0.45, 0.45"),
        "stage2_schedule": Difference("300 epochs from 1e-4", "200 from 5e-5 where cases have several maps"),
        "windows": Difference("where most tumour is", "eight windows", "text"),
    },
    rules={"lyu2020": [{"rule": "small-et", "min_voxels": 500}]},
    tilings={"tumour": "tilings.py:TUMOUR_WINDOW", "lyu8": "tilings.py:EIGHT_WINDOWS"},
    results=(
        _row(1, "model ep190", "model_190", 0.7881, 0.8992, 0.8206, 23.716, 5.657, 6.664),
        _row(1, "model ep254", "model_254", 0.7930, 0.8980, 0.8258, 26.516, 5.958, 6.565),
        _row(1, "model ep289", "model_289", 0.7902, 0.8973, 0.8286, 24.146, 6.174, 7.042),
        _row(1, "ensemble 9", "ensemble_9", 0.7946, 0.9022, 0.8282, 23.651, 5.176, 6.307),
        _row(2, "model ep190: single", "single_190", 0.7925, 0.9012, 0.8241, 23.752, 5.159, 6.692),
        _row(2, "model ep190: multiple", "multiple_190", 0.7897, 0.9016, 0.8291, 29.327, 5.288, 6.632),
        _row(2, "model ep254: multiple", "multiple_254", 0.7769, 0.9010, 0.8316, 32.505, 5.558, 6.557),
        _row(2, "model ep289: multiple", "multiple_289", 0.7896, 0.9002, 0.8361, 21.383, 5.521, 6.459),
        _row(2, "ensemble 15: multiple", "ensemble_15", 0.7960, 0.9039, 0.8345, 23.630, 4.959, 6.331),
        _row(2, "ensemble 21: multiple", "ensemble_21", 0.7958, 0.9041, 0.8350, 23.608, 4.953, 6.299),
        _row(2, "ensemble 27: multiple", "ensemble_27", 0.7952, 0.9039, 0.8350, 23.590, 4.962, 6.303),
        _spread(
            1, 9, (0.0128, 0.0013, 0.0110, 4.097, 0.236, 1.427),
            ((0.714, 0.750), (0.894, 0.899), (0.798, 0.835), (30.535, 42.452), (5.657, 6.433), (6.566, 10.502)),
        ),
        _spread(
            2, 37, (0.0070, 0.0012, 0.0035, 2.337, 0.184, 0.102),
            ((0.715, 0.742), (0.898, 0.902), (0.822, 0.838), (33.457, 42.546), (5.191, 6.024), (6.168, 6.741)),
        ),
        _row(2, "ensemble 21: multiple", "final", 0.8205, 0.8729, 0.8357, 15.6711, 11.4288, 19.9690, table="Table 3"),
    ),
)  # fmt: skip
