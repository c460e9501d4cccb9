"""Luu & Park 2021 as data: variants of the winner of 2021, and the rule for ET."""

from nnunet_brats_ext.papers import Configuration, Footprint, Paper, TrainerFacts

PAPER = Paper(
    title="Extending nn-UNet for brain tumor segmentation",
    authors="Luu & Park",
    year=2021,
    link="https://arxiv.org/abs/2112.04653",
    configurations=tuple(
        Configuration(
            name,
            (128, 128, 128),
            batch_size=2,
            poolings=4,  # a smaller patch leaves out the deepest stage
            strides=((1, 1, 1), *((2, 2, 2),) * 5),
            footprint=Footprint(weights, 1, {"fp32": fp32, "mixed": mixed}),
        )
        for name, weights, fp32, mixed in (
            ("luu_2021", 31_198_176, 2021, 1170),
            ("luu_2021_large", 87_413_760, 3382, 3660),  # group norm in mixed precision works in fp32 on CUDA
            ("luu_2021_axial", 50_561_760, 3003, 1665),
        )
    ),
    trainers=(
        TrainerFacts(
            "BraTSLuu2021Trainer",
            "luu_2021_large",
            "of the ensemble: nnU-Net with an encoder twice as wide, up to 512 channels, and group norm",
            parameters=87_413_760,
        ),
        TrainerFacts(
            "BraTSLuu2021BaselineTrainer",
            "luu_2021",
            "of the ensemble: nnU-Net's width with batch norm, more augmentation, Dice over the batch",
            parameters=31_198_176,
        ),
        TrainerFacts(
            "BraTSLuu2021AxialTrainer",
            "luu_2021_axial",
            "nnU-Net's width with batch norm and axial attention in the decoder",
            parameters=50_561_760,
        ),
    ),
    rules={"luu2021": [{"rule": "small-et", "min_voxels": 200}]},
)
