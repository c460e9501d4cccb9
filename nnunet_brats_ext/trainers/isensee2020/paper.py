"""Isensee et al. 2020 as data: nnU-Net's variants for BraTS 2020, and the rule for ET."""

from nnunet_brats_ext.papers import Configuration, Footprint, Paper, PublishedResult, TrainerFacts

PATCH = (128, 128, 128)

PAPER = Paper(
    title="nnU-Net for Brain Tumor Segmentation",
    authors="Isensee et al.",
    year=2020,
    link="https://arxiv.org/abs/2011.00848",
    configurations=(
        Configuration(
            "isensee_2020",
            PATCH,
            batch_size=5,
            poolings=5,
            footprint=Footprint(31_198_991, 1, {"fp32": 1980, "mixed": 1130}),
        ),
        Configuration(  # instance normalisation keeps more
            "isensee_2020_instance",
            PATCH,
            batch_size=5,
            poolings=5,
            footprint=Footprint(31_198_991, 1, {"fp32": 2237, "mixed": 1387}),
        ),
    ),
    trainers=(
        TrainerFacts("BraTSIsensee2020Trainer", "isensee_2020_instance", "nnU-Net on regions with a batch of 5"),
        TrainerFacts("BraTSIsensee2020BNTrainer", "isensee_2020", "the same with batch normalisation"),
        TrainerFacts("BraTSIsensee2020DA3BNTrainer", "isensee_2020", "the same with more augmentation"),
        TrainerFacts(
            "BraTSIsensee2020DA3BNBDTrainer", "isensee_2020", "first of the ensemble: the same, Dice over the batch"
        ),
        TrainerFacts(
            "BraTSIsensee2020DA4BNTrainer",
            "isensee_2020",
            "second of the ensemble: more rotation and fewer shifts of brightness, Dice per sample",
        ),
        TrainerFacts(
            "BraTSIsensee2020DA4BNBDTrainer", "isensee_2020", "third of the ensemble: the same, Dice over the batch"
        ),
    ),
    rules={"isensee2020": [{"rule": "small-et", "min_voxels": 200}]},
    results=(
        PublishedResult(
            "ensemble of three",
            "test cases of BraTS 2020",
            prediction="final",
            scores={
                "WT": {"dice": 0.8895, "hd95": 8.498},
                "TC": {"dice": 0.8506, "hd95": 17.337},
                "ET": {"dice": 0.8203, "hd95": 17.805},
            },
        ),
    ),
)
