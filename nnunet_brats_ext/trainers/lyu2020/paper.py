"""Lyu & Shu 2020 as data: configurations of both stages, trainers, post-processing, published scores."""

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


def _scores(et: tuple[float, float], wt: tuple[float, float], tc: tuple[float, float]) -> dict[str, dict[str, float]]:
    return {
        region: {"dice": dice, "hd95": hd95} for region, (dice, hd95) in (("WT", wt), ("TC", tc), ("ET", et))
    }  # fmt: skip


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
            next_stage="lyu_stage2",
            footprint=Footprint(20_152_439, 2, {"fp32": 2029, "mixed": 1402}, parameters_per_voxel=5.03125),
        ),
        Configuration(
            "lyu_stage2",
            patch_size=(128, 128, 128),
            batch_size=4,
            poolings=4,
            previous_stage="lyu_stage1",
            footprint=Footprint(20_371_648, 2, {"fp32": 2110, "mixed": 1477}, parameters_per_voxel=5.03125),
        ),
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
        PublishedResult(
            "stage 1, one model (epoch 254)",
            VALIDATION,
            _scores((0.7930, 26.516), (0.8980, 5.958), (0.8258, 6.565)),
            trainer="BraTSVAETrainer",
        ),
        PublishedResult("stage 1, 9 models", VALIDATION, _scores((0.7946, 23.651), (0.9022, 5.176), (0.8282, 6.307))),
        PublishedResult(
            "stage 2, 21 models",
            VALIDATION,
            _scores((0.7958, 23.608), (0.9041, 4.953), (0.8350, 6.299)),
            trainer="BraTSAttentionVAETrainer",
        ),
    ),
)
