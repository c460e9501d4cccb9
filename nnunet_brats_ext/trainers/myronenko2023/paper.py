"""Myronenko et al. 2023 as data: Auto3DSeg's SegResNet for the cohorts of 2023."""

from nnunet_brats_ext.papers import Configuration, Footprint, Paper, Prediction, TrainerFacts

PAPER = Paper(
    title="Auto3DSeg for Brain Tumor Segmentation from 3D MRI in BraTS 2023 Challenge",
    authors="Myronenko et al.",
    year=2023,
    link="https://arxiv.org/abs/2510.25058",
    configurations=(
        Configuration(
            "myronenko_2023",
            (144, 192, 176),  # the template's 224 x 224 x 144, cut to brains
            batch_size=1,
            poolings=4,
            footprint=Footprint(87_167_276, 2, {"fp32": 2425, "mixed": 1487}),
        ),
    ),
    trainers=(
        TrainerFacts(
            "BraTSMyronenko2023Trainer",
            "myronenko_2023",
            "Auto3DSeg's SegResNet, loss, schedule and augmentation; needs the extra `monai`",
            parameters=87_167_276,
            prediction=Prediction(symmetries="none"),
            needs="monai",
        ),
    ),
)
