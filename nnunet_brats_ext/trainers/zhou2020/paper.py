"""Zhou et al. 2020 as data: OM-Net's configuration, trainers, tiling, post-processing, published scores."""

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

LOCAL = "25 cases of the training set of BraTS 2018"
TILES = Prediction(tiling="overlap", symmetries="none", kept=(5, 20, 20))  # the centre of a tile of 16 x 32 x 32
CHANNELS = "channel_maps.py:ATTENTION"
COMPONENTS = {"rule": "small-components", "region": "WT", "min_ml": 2.0, "fraction_of_largest": 0.1}


def _row(name: str, summary: str, parameters: int, attention: str | None = None) -> TrainerFacts:
    return TrainerFacts(f"BraTS{name}Trainer", "omnet", summary, parameters, TILES, attention=attention)


def _published(name: str, wt: float, tc: float, et: float, trainer: str | None = None) -> PublishedResult:
    scores = {region: {"dice": round(value / 100, 4)} for region, value in (("WT", wt), ("TC", tc), ("ET", et))}
    return PublishedResult(name, LOCAL, scores, f"BraTS{trainer}Trainer" if trainer else None)


OMNET = _row("OMNet", "OM-Net: three tasks in one network, learnt by a curriculum with data transfer", 13_879_212)
CGA = _row("OMNetCGA", "OM-Net with cross-task guided attention", 13_823_991, CHANNELS)
MC3 = _row("MC3", "model cascade of three networks, which OM-Net replaces", 41_470_380)

PAPER = Paper(
    title="One-pass Multi-task Networks with Cross-task Guided Attention for Brain Tumor Segmentation",
    authors="Zhou et al.",
    year=2020,
    link="https://arxiv.org/abs/1906.01796",
    configurations=(
        # nnU-Net would not halve 16 three times, as OM-Net does. Counted with guided attention, three rows per sample.
        Configuration(
            "omnet",
            patch_size=(16, 32, 32),
            batch_size=20,
            poolings=3,
            strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
            footprint=Footprint(13_823_991, 1, {"fp32": 14338, "mixed": 7615}),
        ),
    ),
    trainers=(
        OMNET,
        CGA,
        _row("OMNetSE", "OM-Net with squeeze-and-excitation", 13_879_698),
        _row("MC1", "model cascade of one network: all labels in one task", 13_823_493),
        _row("MC2", "model cascade of two networks", 27_646_986),
        MC3,
        _row("OMNet0", "ablation: neither curriculum nor data transfer", 13_879_212),
        _row("OMNetD", "ablation: data transfer without curriculum", 13_879_212),
        _row("OMNetCGAMinus", "ablation CGA-: scores added up, not composed by voxel", 13_823_991, CHANNELS),
        _row("OMNetCGATumor", "ablation CGAt: attention to the tumour alone", 13_823_760, CHANNELS),
        _row("OMNetCGANonTumor", "ablation CGAn: attention to the rest alone", 13_823_760, CHANNELS),
        *map(as_written, (OMNET, CGA, MC3)),
    ),
    differences={
        "residual_blocks": Difference("the sum after the last ReLU (figure 2)", "the sum before it"),
        "rows_of_heads": Difference("transferred rows alone pass a head", "all rows do, and enter its statistics"),
    },
    rules={"zhou2020": [COMPONENTS], "zhou2020-kmeans": [COMPONENTS, {"rule": "oedema-to-core"}]},
    tilings={"overlap": "tilings.py:CENTRAL_PARTS"},
    results=(
        _published("MC1", 90.41, 78.48, 72.91, "MC1"),
        _published("MC2", 91.08, 79.11, 75.14, "MC2"),
        _published("MC3", 91.08, 79.11, 79.53, "MC3"),
        _published("OM-Net0", 90.40, 79.41, 79.96, "OMNet0"),
        _published("OM-Netd", 91.11, 79.93, 80.26, "OMNetD"),
        _published("OM-Net", 91.10, 79.87, 80.87, "OMNet"),
        _published("OM-Net + SE", 91.03, 80.20, 80.72, "OMNetSE"),
        _published("OM-Net + CGA", 91.34, 82.15, 80.73, "OMNetCGA"),
        _published("OM-Net + CGA-", 91.06, 80.28, 80.78, "OMNetCGAMinus"),
        _published("OM-Net + CGAt", 90.65, 80.27, 80.10, "OMNetCGATumor"),
        _published("OM-Net + CGAn", 89.75, 79.87, 76.00, "OMNetCGANonTumor"),
        _published("OM-Net, post-processed", 91.28, 82.50, 80.84),
        _published("OM-Net + CGA, post-processed", 91.59, 82.74, 80.73),
    ),
)
