"""Lachinov et al. 2019 as data: configurations of teachers and student, trainers, post-processing, published scores."""

from nnunet_brats_ext.papers import (
    Configuration,
    Difference,
    Footprint,
    Paper,
    Prediction,
    PublishedResult,
    Symmetry,
    TrainerFacts,
    as_written,
)

WHOLE_BRAIN = Prediction(tiling="brain", symmetries="inplane-mirror")
CASES = {"Table 1": "26 training cases of BraTS 2019", "Table 2": "125 validation cases of BraTS 2019"}


def _row(
    table: str, system: str, trainer: str | None, prediction: str, wt: float, tc: float, et: float
) -> PublishedResult:
    scores = {"WT": {"dice": wt}, "TC": {"dice": tc}, "ET": {"dice": et}}
    named = f"BraTS{trainer}Trainer" if trainer else None
    return PublishedResult(system, CASES[table], scores, named, table, prediction)


NO_NEW_NET = TrainerFacts(
    "BraTSNoNewNetTrainer",
    "lachinov_128",
    "first teacher: the U-Net of No New-Net",
    parameters=14_490_753,
    prediction=WHOLE_BRAIN,
)
RESUNET_VAE = TrainerFacts(
    "BraTSResUNetVAETrainer",
    "lachinov_144",
    "second teacher: a residual U-Net with a VAE branch in training",
    parameters=4_509_939,
    prediction=WHOLE_BRAIN,
)
CASCADED = TrainerFacts(
    "BraTSCascadedUNetTrainer",
    "lachinov_brain",
    "third teacher: three scales with an encoder per modality, on labels and whole brains",
    parameters=9_557_124,
    prediction=Prediction(symmetries="mirror-y"),  # one window, padded as in training; as the release of 2018
)
STUDENT = TrainerFacts(
    "BraTSStudentTrainer",
    "lachinov_144",
    "student: learns from manual labels and from the teachers' pseudo-labels, which `nnunet_brats distill` makes a "
    "data set of",
    parameters=4_509_939,
    prediction=WHOLE_BRAIN,
)

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
        NO_NEW_NET,
        RESUNET_VAE,
        CASCADED,
        STUDENT,
        *(as_written(one) for one in (NO_NEW_NET, RESUNET_VAE, CASCADED, STUDENT)),
    ),
    differences={
        "activation": Difference("ReLU in the residual U-Net", "LeakyReLU"),
        "patches": Difference("anywhere, with a labelled voxel", "around the box of the label grown by 50 voxels"),
        "mirrored_axes": Difference("x and y", "z as well", "text"),
        "student_loss": Difference("Dice plus cross-entropy", "half of it, background weighs 0.01", "text"),
        "student_rate": Difference(
            "1e-4, a tenth after 120,000 updates", "2e-5, halved every 16,000 updates, AMSGrad", "text"
        ),
        "student_head": Difference("not stated; biases start at 0", "biases start from N(0, 1)", "text"),
        "cascade_rate": Difference("0.1, times 0.99 every epoch", "0.025 in effect, every fourth epoch", "text"),
        "cascade_scales": Difference("weights 0.4, 0.3, 0.2, as its code prints", "equal weights in effect", "text"),
        "cascade_noise": Difference("none", "a tenth of channels are replaced by noise", "text"),
    },
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
        PublishedResult(
            "student",
            "test cases of BraTS 2019, as https://github.com/lachinov/brats2019 has them",
            {"WT": {"dice": 0.887}, "TC": {"dice": 0.829}, "ET": {"dice": 0.794}},
            "BraTSStudentTrainer",
            "Table 3",
            absent="the labels of the test set are not public",
        ),
    ),
)
