"""Hashemi et al. 2021 as data: one 2-D configuration, its trainers, published scores."""

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

ONCE = Prediction(symmetries="none")
OWN_TEST = "37 test cases of the authors' own, from the training data of BraTS 2020"
REGIONS = {"WholeTumor": "WT", "TumorCore": "TC", "EnhancingTumor": "ET"}


def _dice(wt: float, tc: float, et: float) -> dict[str, dict[str, float]]:
    return {"WT": {"dice": wt}, "TC": {"dice": tc}, "ET": {"dice": et}}


def _binary(augmented: bool) -> list[TrainerFacts]:
    kind, what = ("Augmented", "2C AU: the same on ten warps of every slice") if augmented else (
        "", "2C: a binary 2-D network")  # fmt: skip
    return [
        TrainerFacts(f"BraTS2D{name}{kind}Trainer", "hashemi_2d", f"{what}, {region}", 31_045_186, prediction=ONCE)
        for name, region in REGIONS.items()
    ]


TRAINERS = (
    TrainerFacts(
        "BraTS2DTrainer",
        "hashemi_2d",
        "3C: 2-D U-Net of slices for small GPUs; batch Dice weighted by frequency",
        31_045_763,
        prediction=ONCE,
    ),
    *_binary(augmented=False),
    *_binary(augmented=True),
)

PAPER = Paper(
    title="A Memory-efficient Deep Framework for Multi-Modal MRI-based Brain Tumor Segmentation",
    authors="Hashemi et al.",
    year=2021,
    link="https://github.com/Nima-Hs/BraTS",
    configurations=(
        Configuration(
            "hashemi_2d",
            patch_size=None,
            batch_size=10,
            poolings=4,
            base="2d",
            footprint=Footprint(31_045_763, 2, {"fp32": 8411, "mixed": 4471}),  # per pixel, at 240 x 240
        ),
    ),
    trainers=(*TRAINERS, *map(as_written, TRAINERS)),
    differences={
        "loss": Difference("equation 1: of each slice, added up", "equation 2: of the batch as one volume"),
        "channel_weights": Difference("one minus the channel's share", "the shares in reverse order", "text"),
        "final_relu": Difference("none before the softmax", "a ReLU before it", "text"),
        "interpolation": Difference("once, linear", "pixels truncated after each transform, the nearest one", "text"),
    },
    results=(
        PublishedResult(
            "U-Net 3C", OWN_TEST, _dice(0.884, 0.867, 0.813), trainer="BraTS2DTrainer", prediction="three_class"
        ),
        PublishedResult("U-Net 2C", OWN_TEST, _dice(0.900, 0.877, 0.813), prediction="nested_2c"),
        PublishedResult("U-Net 2C AU", OWN_TEST, _dice(0.905, 0.903, 0.822), prediction="nested"),
    ),
)
