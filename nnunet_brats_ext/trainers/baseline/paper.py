"""nnU-Net as data: Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z."""

from collections.abc import Mapping

from nnunet_brats_ext.papers import Configuration, Footprint, Paper, Precision, Prediction, TrainerFacts

PATCH = (128, 128, 128)
PRIMUS = {"S": 72_050_998, "B": 151_534_014, "M": 206_826_526, "L": 390_696_166}  # size -> weights at that patch
BYTES_PER_VOXEL: dict[str, Mapping[Precision, float]] = {  # with a kernel that keeps no matrix of attention
    "S": {"fp32": 2082, "mixed": 1292},
    "B": {"fp32": 3076, "mixed": 1969},
    "M": {"fp32": 3939, "mixed": 2535},
    "L": {"fp32": 6236, "mixed": 4112},
}

PAPER = Paper(
    title="nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
    authors="Isensee et al.",
    year=2021,
    link="https://doi.org/10.1038/s41592-020-01008-z",
    configurations=tuple(
        Configuration(
            f"primus_{size.lower()}",
            PATCH,
            batch_size=2,
            poolings=3,
            footprint=Footprint(weights, 2, BYTES_PER_VOXEL[size]),
        )
        for size, weights in PRIMUS.items()
    ),
    trainers=(
        TrainerFacts(
            "BraTSBaselineTrainer",
            "3d_fullres",
            "nothing: nnU-Net's network, loss, augmentation and schedule on our base trainer, to compare with",
        ),
        TrainerFacts(
            "BraTSBaselineSequenceDropoutTrainer",
            "3d_fullres",
            "the same for patients who lack sequences: takes sequences away at random in training",
        ),
        *(
            TrainerFacts(
                f"BraTSPrimus{size}Trainer",
                f"primus_{size.lower()}",
                f"nnU-Net's transformer Primus, third version, size {size}; AdamW with a warm-up",
                parameters=weights,
            )
            for size, weights in PRIMUS.items()
        ),
        TrainerFacts(
            "BraTSNNUNetV1Trainer",
            "3d_fullres",
            "imported models of nnU-Net v1: predicts as v1 does, and trains on as nnU-Net v2",
            prediction=Prediction(tiling="gaussian", symmetries="mirror8"),
        ),
        TrainerFacts(
            "BraTSMonaiTrainer",
            "3d_fullres",
            "imported networks of MONAI: predicts whole images as MONAI does, and trains on as nnU-Net, without deep "
            "supervision",
            prediction=Prediction(tiling="monai", symmetries="none"),
            needs="monai",
        ),
    ),
    tilings={"gaussian": "tilings.py:GAUSSIAN", "monai": "tilings.py:MONAI"},
)
