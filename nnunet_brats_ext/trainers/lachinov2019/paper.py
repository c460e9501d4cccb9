"""Lachinov et al. 2019 as data: configurations of teachers and student, trainers, post-processing, published scores."""

from nnunet_brats_ext.papers import (
    Configuration,
    Footprint,
    Paper,
    Prediction,
    PublishedResult,
    Symmetry,
    TrainerFacts,
)

WHOLE_BRAIN = Prediction(tiling="brain", symmetries="inplane-mirror")
CASES = {"Table 1": "26 training cases of BraTS 2019", "Table 2": "125 validation cases of BraTS 2019"}


def _row(
    table: str, system: str, trainer: str | None, prediction: str, wt: float, tc: float, et: float
) -> PublishedResult:
    scores = {"WT": {"dice": wt}, "TC": {"dice": tc}, "ET": {"dice": et}}
    named = f"BraTS{trainer}Trainer" if trainer else None
    return PublishedResult(system, CASES[table], scores, named, table, prediction)


PAPER = Paper(
    title="Knowledge Distillation for Brain Tumor Segmentation",
    authors="Lachinov et al.",
    year=2019,
    link="https://arxiv.org/abs/2002.03688",
    configurations=(
        Configuration(
            "lachinov_128",
            patch_size=(128, 128, 128),
            batch_size=2,
            poolings=4,
            footprint=Footprint(14_490_753, 2, {"fp32": 2055, "mixed": 1261}),
        ),
        # Counted for the second teacher, with its VAE branch: an upper bound for the student, which shares it.
        Configuration(
            "lachinov_144",
            patch_size=(128, 144, 144),
            batch_size=2,
            poolings=4,
            footprint=Footprint(4_875_991, 2, {"fp32": 1538, "mixed": 983}, parameters_per_voxel=3.015625),
        ),
        # Three scales, the coarsest pooled twice and halved three times.
        Configuration(
            "lachinov_brain",
            patch_size=(128, 128, 128),
            batch_size=4,
            poolings=5,
            resampled=True,
            footprint=Footprint(9_557_124, 1, {"fp32": 1144, "mixed": 641}),
        ),
    ),
    trainers=(
        TrainerFacts(
            "BraTSNoNewNetTrainer",
            "lachinov_128",
            "first teacher: the U-Net of No New-Net",
            parameters=14_490_753,
            prediction=WHOLE_BRAIN,
        ),
        TrainerFacts(
            "BraTSResUNetVAETrainer",
            "lachinov_144",
            "second teacher: a residual U-Net with a VAE branch in training",
            parameters=4_509_939,
            prediction=WHOLE_BRAIN,
        ),
        TrainerFacts(
            "BraTSCascadedUNetTrainer",
            "lachinov_brain",
            "third teacher: three scales with an encoder per modality, on labels and whole brains",
            parameters=9_557_124,
            prediction=Prediction(symmetries="mirror-y"),  # one window, padded as in training; as the release of 2018
        ),
        TrainerFacts(
            "BraTSStudentTrainer",
            "lachinov_144",
            "student: learns from manual labels and from the teachers' pseudo-labels, which `nnunet_brats distill` "
            "makes a data set of",
            parameters=4_509_939,
            prediction=WHOLE_BRAIN,
        ),
    ),
    rules={
        "lachinov2019": [
            {"rule": "small-et", "min_voxels": 33},
            {"rule": "small-components", "region": "WT", "fraction_of_region": 0.1},
        ]
    },
    symmetries={
        "inplane-mirror": (Symmetry(), Symmetry((-1,)), Symmetry((-2,)), Symmetry((-2, -1))),
        "mirror-y": (Symmetry(), Symmetry((-2,))),
    },
    results=(
        _row("Table 1", "U-Net", "NoNewNet", "no_new_net", 0.9152, 0.8743, 0.7836),
        _row("Table 1", "residual U-Net", "ResUNetVAE", "resunet_vae", 0.9204, 0.8754, 0.7392),
        _row("Table 1", "cascade", "CascadedUNet", "cascaded", 0.8925, 0.8719, 0.9235),
        _row("Table 1", "student", "Student", "student", 0.9218, 0.8835, 0.7440),
        _row("Table 2", "U-Net", "NoNewNet", "no_new_net", 0.8974, 0.8349, 0.7402),
        _row("Table 2", "residual U-Net", "ResUNetVAE", "resunet_vae", 0.9018, 0.8278, 0.7424),
        _row("Table 2", "cascade", "CascadedUNet", "cascaded", 0.8997, 0.8335, 0.7307),
        _row("Table 2", "ensemble", None, "teachers", 0.9072, 0.8435, 0.7562),
        _row("Table 2", "student", "Student", "student", 0.9045, 0.8420, 0.7563),
    ),
)
