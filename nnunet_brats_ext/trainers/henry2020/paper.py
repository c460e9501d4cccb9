"""Henry et al. 2020 as data: both pipelines' configurations, trainers, test-time augmentation, published scores."""

from nnunet_brats_ext.papers import (
    Configuration,
    Footprint,
    Paper,
    Prediction,
    PublishedResult,
    Symmetry,
    TrainerFacts,
)

STRIDES = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))  # whole brains are padded to what these divide
PATCH = (128, 128, 128)
WHOLE_BRAIN = Prediction(tiling="brain", symmetries="henry16")
CROSS_VALIDATION = "cross-validation, four folds of BraTS 2020"


def _over_folds(system: str, kind: str, prediction: str, *by_region: tuple[float, float]) -> PublishedResult:
    """A row of Table 3: Dice of WT, TC and ET, each with its standard deviation over folds."""
    pairs = dict(zip(("WT", "TC", "ET"), by_region, strict=True))
    return PublishedResult(
        system,
        CROSS_VALIDATION,
        {region: {"dice": mean} for region, (mean, _) in pairs.items()},
        f"BraTSDeepSupervision{kind}Trainer",
        "Table 3",
        prediction,
        deviations={region: {"dice": deviation} for region, (_, deviation) in pairs.items()},
        over="folds",
    )


PAPER = Paper(
    title="Brain tumor segmentation with self-ensembled, deeply-supervised 3D U-net neural networks",
    authors="Henry et al.",
    year=2020,
    link="https://arxiv.org/abs/2011.01045",
    configurations=(
        # Ranger keeps slow weights beside Adam's two moments. Counted with attention; without it a little less.
        Configuration(
            "henry",
            PATCH,
            batch_size=1,
            poolings=3,
            strides=STRIDES,
            footprint=Footprint(23_207_760, 3, {"fp32": 3537, "mixed": 2404}),
        ),
        Configuration(
            "henry_b",
            PATCH,
            batch_size=3,
            poolings=3,
            strides=STRIDES,
            footprint=Footprint(23_154_735, 2, {"fp32": 3375, "mixed": 2120}),
        ),
    ),
    trainers=(
        TrainerFacts(
            "BraTSDeepSupervisionTrainer",
            "henry",
            "pipeline A: U-Net with a dilated bottom and full-size deep supervision; Ranger; stochastic weight "
            "averaging over five cycles",
            parameters=23_154_735,
            prediction=WHOLE_BRAIN,
        ),
        TrainerFacts(
            "BraTSDeepSupervisionCBAMTrainer",
            "henry",
            "pipeline A with attention (CBAM) in the encoder",
            parameters=23_207_760,
            prediction=WHOLE_BRAIN,
        ),
        TrainerFacts(
            "BraTSDeepSupervisionBTrainer",
            "henry_b",
            "pipeline B: the same network with instance norm; Adam; lowest validation loss",
            parameters=23_154_735,
            prediction=WHOLE_BRAIN,
        ),
    ),
    # One flip or none, then a turn by one of four angles: 16 maps, of which four occur twice, because a turn by 180
    # degrees is both in-plane flips. Twelve forward passes with weights give the same mean as the paper's sixteen.
    symmetries={
        "henry16": (
            *(Symmetry((), turns) for turns in range(4)),
            *(Symmetry((-3,), turns) for turns in range(4)),
            *(Symmetry((-2,), turns, weight=2.0) for turns in range(4)),
        )
    },
    results=(
        PublishedResult(
            "A and B merged",
            "125 validation cases of BraTS 2020",
            table="Table 1",
            prediction="merged",
            scores={
                "WT": {"dice": 0.91148, "hd95": 4.30103, "sensitivity": 0.91938, "specificity": 0.99915},
                "TC": {"dice": 0.85416, "hd95": 5.69298, "sensitivity": 0.84485, "specificity": 0.99963},
                "ET": {"dice": 0.80585, "hd95": 20.55756, "sensitivity": 0.81488, "specificity": 0.99970},
            },
        ),
        PublishedResult(
            "A alone, without the second pass",
            "125 validation cases of BraTS 2020",
            {"WT": {"dice": 0.89518}, "TC": {"dice": 0.85415}, "ET": {"dice": 0.80585}},
            table="Table 1",
            prediction="a",
        ),
        PublishedResult(
            "A and B merged",
            "test cases of BraTS 2020",
            table="Table 2",
            prediction="merged",
            scores={
                "WT": {"dice": 0.88595, "hd95": 6.66665, "sensitivity": 0.91690, "specificity": 0.99905},
                "TC": {"dice": 0.84273, "hd95": 19.54915, "sensitivity": 0.85934, "specificity": 0.99964},
                "ET": {"dice": 0.78507, "hd95": 20.36071, "sensitivity": 0.81308, "specificity": 0.99967},
            },
        ),
        _over_folds("U-Net", "", "a_unet", (0.9070, 0.006), (0.8705, 0.013), (0.8077, 0.011)),
        _over_folds("U-Net, patients removed", "", "a_filtered", (0.9043, 0.005), (0.8686, 0.012), (0.8126, 0.019)),
        _over_folds("U-Net with attention", "CBAM", "a_cbam", (0.9037, 0.008), (0.8701, 0.018), (0.8144, 0.022)),
    ),
)
