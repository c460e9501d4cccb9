"""Roy et al. 2023 (MedNeXt) as data: four sizes with two kernels each."""

from collections.abc import Mapping

from nnunet_brats_ext.papers import Configuration, Footprint, Paper, Precision, TrainerFacts

PATCH = (128, 128, 128)
STRIDES = ((1, 1, 1), *((2, 2, 2),) * 4)
WEIGHTS = {  # by size, with kernel 3 and 5; the authors' networks have one more, which does nothing
    "S": (5_553_935, 5_983_567),
    "B": (10_529_327, 10_958_959),
    "M": (17_551_983, 18_263_855),
    "L": (61_782_287, 62_995_919),
}
BYTES_PER_VOXEL: dict[str, Mapping[Precision, float]] = {  # M and L compute their blocks again instead of storing them
    "S": {"fp32": 7527, "mixed": 4439},
    "B": {"fp32": 8193, "mixed": 4772},
    "M": {"fp32": 3250, "mixed": 2528},
    "L": {"fp32": 4082, "mixed": 3319},
}


def trainers_of(size: str, kernel_3: int, kernel_5: int) -> tuple[TrainerFacts, TrainerFacts]:
    name, configuration = f"BraTSMedNeXt{size}Trainer", f"mednext_{size.lower()}"
    words = f"MedNeXt, size {size}, kernel 3: a U-Net of ConvNeXt blocks; deep supervision at every scale; AdamW"
    upkern = f"size {size} with kernel 5, from the weights with kernel 3 (UpKern)"
    return (
        TrainerFacts(name, configuration, words, parameters=kernel_3),
        TrainerFacts(f"BraTSMedNeXt{size}Kernel5Trainer", configuration, upkern, parameters=kernel_5, starts_from=name),
    )


PAPER = Paper(
    title="MedNeXt: Transformer-driven Scaling of ConvNets for Medical Image Segmentation",
    authors="Roy et al.",
    year=2023,
    link="https://arxiv.org/abs/2303.09975",
    configurations=tuple(
        Configuration(
            f"mednext_{size.lower()}",
            PATCH,
            batch_size=2,
            poolings=4,
            strides=STRIDES,
            footprint=Footprint(kernel_5, 2, BYTES_PER_VOXEL[size]),
        )
        for size, (_, kernel_5) in WEIGHTS.items()
    ),
    trainers=tuple(one for size, weights in WEIGHTS.items() for one in trainers_of(size, *weights)),
)
