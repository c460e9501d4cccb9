"""The papers' configurations as data: one row each. Sizes are (z, y, x), as nnU-Net's arrays lie."""

from dataclasses import dataclass

HALVED = ((2, 2, 2),)
FULL_SIZE = ((1, 1, 1),)


@dataclass(frozen=True)
class PaperConfiguration:
    """What a paper trains on, on top of a configuration of nnU-Net; unless resampled, it shares its preprocessed data.

    patch_size: None is the whole slice or volume, that is the largest case. Never more than that in any case.
    batch_size: of all GPUs together, as nnU-Net counts it.
    poolings: halvings that the paper's network, branches included, needs its patch to allow.
    strides: where the network's own must be kept; None follows nnU-Net's rule for the patch.
    resampled: on data of its own, resampled so that the largest case fills the patch and every case is whole in it.
    footprint: name of its constants in `memory.FOOTPRINTS`; None until its trainer exists and has been counted.
    """

    name: str
    paper: str
    trainers: tuple[str, ...]
    patch_size: tuple[int, ...] | None
    batch_size: int
    poolings: int
    base: str = "3d_fullres"
    strides: tuple[tuple[int, ...], ...] | None = None
    previous_stage: str | None = None
    next_stage: str | None = None
    resampled: bool = False
    footprint: str | None = None


LYU, HENRY = "Lyu & Shu 2020", "Henry 2020"
LACHINOV, ZHOU, HASHEMI = "Lachinov 2019", "Zhou 2020", "Hashemi 2021"
OM_NETS = (
    "OMNet", "OMNetCGA", "OMNetSE", "MC1", "MC2", "MC3",
    "OMNet0", "OMNetD", "OMNetCGAMinus", "OMNetCGATumor", "OMNetCGANonTumor",
)  # fmt: skip
REGION_MODELS = ("WholeTumor", "TumorCore", "EnhancingTumor")

CONFIGURATIONS = (
    # The VAE halves the deepest features once more: four halvings, where the U-Net itself has three.
    PaperConfiguration(
        "lyu_stage1", LYU, ("BraTSVAETrainer",), (128, 192, 160), 4, poolings=4,
        next_stage="lyu_stage2", footprint="lyu_stage1",
    ),
    PaperConfiguration(
        "lyu_stage2", LYU, ("BraTSAttentionVAETrainer",), (128, 128, 128), 4, poolings=4,
        previous_stage="lyu_stage1", footprint="lyu_stage2",
    ),
    # Whole brains are padded to what the strides divide: no more than the three halvings of the network.
    PaperConfiguration(
        "henry", HENRY, ("BraTSDeepSupervisionTrainer", "BraTSDeepSupervisionCBAMTrainer"), (128, 128, 128), 1,
        poolings=3, strides=FULL_SIZE + 3 * HALVED, footprint="henry",
    ),
    PaperConfiguration(
        "henry_b", HENRY, ("BraTSDeepSupervisionBTrainer",), (128, 128, 128), 3,
        poolings=3, strides=FULL_SIZE + 3 * HALVED, footprint="henry_b",
    ),
    PaperConfiguration(
        "lachinov_128", LACHINOV, ("BraTSNoNewNetTrainer",), (128, 128, 128), 2, poolings=4, footprint="no_new_net"
    ),
    PaperConfiguration(
        "lachinov_144", LACHINOV, ("BraTSResUNetVAETrainer", "BraTSStudentTrainer"), (128, 144, 144), 2, poolings=4,
        footprint="lachinov_vae",
    ),
    # Three scales, the coarsest pooled twice and halved three times.
    PaperConfiguration(
        "lachinov_brain", LACHINOV, ("BraTSCascadedUNetTrainer",), (128, 128, 128), 4, poolings=5, resampled=True,
        footprint="cascaded_unet",
    ),
    # nnU-Net would not halve 16 three times, as OM-Net does.
    PaperConfiguration(
        "omnet", ZHOU, tuple(f"BraTS{name}Trainer" for name in OM_NETS), (16, 32, 32), 20, poolings=3,
        strides=FULL_SIZE + 3 * HALVED, footprint="omnet",
    ),
    PaperConfiguration(
        "hashemi_2d",
        HASHEMI,
        ("BraTS2DTrainer", *(f"BraTS2D{name}{au}Trainer" for name in REGION_MODELS for au in ("", "Augmented"))),
        None, 10, poolings=4, base="2d", footprint="hashemi_2d",
    ),
)  # fmt: skip
