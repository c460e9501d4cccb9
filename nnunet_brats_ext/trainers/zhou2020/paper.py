"""Zhou et al. 2020 as data: OM-Net's configuration, trainers, tiling, post-processing, published scores."""

from collections.abc import Mapping

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
P = "OM-Net + CGA, post-processed"
TEN = "OM-Net + CGA, ten models"
TEN_P = f"{TEN}, post-processed"
Three = tuple[float, float, float]
TILES = Prediction(tiling="overlap", symmetries="none", kept=(5, 20, 20))  # the centre of a tile of 16 x 32 x 32
CHANNELS = "channel_maps.py:ATTENTION"
COMPONENTS = {"rule": "small-components", "region": "WT", "min_ml": 2.0, "fraction_of_largest": 0.1}


def _row(name: str, summary: str, parameters: int, attention: str | None = None) -> TrainerFacts:
    return TrainerFacts(f"BraTS{name}Trainer", "omnet", summary, parameters, TILES, attention=attention)


def _published(
    table: str, data: str, name: str, trainer: str, prediction: str, scores: Mapping[str, Mapping[str, float]]
) -> PublishedResult:
    """A row of one of the paper's tables. scores: metric -> region -> value."""
    by_region = {region: {metric: values[region] for metric, values in scores.items()} for region in ("WT", "TC", "ET")}
    return PublishedResult(name, data, by_region, f"BraTS{trainer}Trainer", table, prediction)


def _percent(wt: float, tc: float, et: float) -> dict[str, float]:
    """Shares that are printed in percent, from the complete tumour to the enhancing part."""
    return {"WT": round(wt / 100, 4), "TC": round(tc / 100, 4), "ET": round(et / 100, 4)}


def _local(name: str, trainer: str, prediction: str, *dice: float) -> PublishedResult:
    return _published("Table I", LOCAL, name, trainer, prediction, {"dice": _percent(*dice)})


def _of_2015(name: str, trainer: str, prediction: str, dice: Three, ppv: Three, sensitivity: Three) -> PublishedResult:
    scores = {"dice": _percent(*dice), "ppv": _percent(*ppv), "sensitivity": _percent(*sensitivity)}
    return _published("Table II", "test set of BraTS 2015", name, trainer, prediction, scores)


def _online(year: int, name: str, trainer: str, prediction: str, dice: Three, hd95: Three) -> PublishedResult:
    """Of the validation set of a year, as printed: ET, WT, TC."""
    printed = {"dice": dice, "hd95": hd95}
    scores = {metric: dict(zip(("ET", "WT", "TC"), values, strict=True)) for metric, values in printed.items()}
    table = {2017: "Table III", 2018: "Table IV"}[year]
    return _published(table, f"validation set of BraTS {year}", name, trainer, prediction, scores)


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
        "curriculum": Difference("tasks are added one after the other", "all three from the start", "text"),
        "transfer_share": Difference("at least 0.4 of a patch is tumour", "6553 of 16,384 voxels are", "text"),
    },
    rules={"zhou2020": [COMPONENTS], "zhou2020-kmeans": [COMPONENTS, {"rule": "oedema-to-core"}]},
    tilings={"overlap": "tilings.py:CENTRAL_PARTS"},
    results=(
        _local("MC1", "MC1", "mc1", 90.41, 78.48, 72.91),
        _local("MC2", "MC2", "mc2", 91.08, 79.11, 75.14),
        _local("MC3", "MC3", "mc3", 91.08, 79.11, 79.53),
        _local("OM-Net", "OMNet", "omnet", 91.10, 79.87, 80.87),
        _local("OM-Net0", "OMNet0", "omnet_0", 90.40, 79.41, 79.96),
        _local("OM-Netd", "OMNetD", "omnet_d", 91.11, 79.93, 80.26),
        _local("OM-Net + SE", "OMNetSE", "omnet_se", 91.03, 80.20, 80.72),
        _local("OM-Net + CGA", "OMNetCGA", "cga", 91.34, 82.15, 80.73),
        _local("OM-Net + CGA-", "OMNetCGAMinus", "cga_minus", 91.06, 80.28, 80.78),
        _local("OM-Net + CGAt", "OMNetCGATumor", "cga_tumour", 90.65, 80.27, 80.10),
        _local("OM-Net + CGAn", "OMNetCGANonTumor", "cga_non_tumour", 89.75, 79.87, 76.00),
        _local("OM-Net, post-processed", "OMNet", "omnet_p", 91.28, 82.50, 80.84),
        _local(P, "OMNetCGA", "cga_p", 91.59, 82.74, 80.73),
        _of_2015("MC3", "MC3", "mc3", (86, 70, 63), (86, 82, 60), (88, 67, 72)),
        _of_2015("OM-Net", "OMNet", "omnet", (86, 71, 64), (86, 83, 61), (88, 68, 72)),
        _of_2015("OM-Net + CGA", "OMNetCGA", "cga", (86, 71, 65), (87, 84, 63), (88, 67, 70)),
        _of_2015(P, "OMNetCGA", "cga_p", (87, 75, 65), (89, 85, 63), (88, 73, 70)),
        _online(2017, "MC3", "MC3", "mc3", (0.7424, 0.8991, 0.7937), (4.9901, 4.6085, 8.5537)),
        _online(2017, "OM-Net", "OMNet", "omnet", (0.7534, 0.9007, 0.7934), (3.6547, 7.2524, 8.4676)),
        _online(2017, "OM-Net + SE", "OMNetSE", "omnet_se", (0.7416, 0.8997, 0.7938), (3.5115, 6.2859, 7.0154)),
        _online(2017, "OM-Net + CGA", "OMNetCGA", "cga", (0.7743, 0.8988, 0.8122), (3.8820, 4.8380, 6.7953)),
        _online(2017, P, "OMNetCGA", "cga_p", (0.7743, 0.9016, 0.8320), (3.8820, 4.6663, 6.7312)),
        _online(2017, TEN, "OMNetCGA", "cga_10", (0.7852, 0.9065, 0.8274), (3.2991, 4.4886, 6.9896)),
        _online(2017, TEN_P, "OMNetCGA", "final", (0.7852, 0.9071, 0.8422), (3.2991, 4.3815, 7.5614)),
        _online(2018, "MC3", "MC3", "mc3", (0.7732, 0.9015, 0.8233), (4.1624, 4.7198, 7.6082)),
        _online(2018, "OM-Net", "OMNet", "omnet", (0.7882, 0.9034, 0.8273), (3.1003, 6.5218, 7.1974)),
        _online(2018, "OM-Net + SE", "OMNetSE", "omnet_se", (0.7791, 0.9034, 0.8259), (2.9950, 5.7685, 6.4289)),
        _online(2018, "OM-Net + CGA", "OMNetCGA", "cga", (0.8027, 0.9033, 0.8399), (3.4437, 4.7609, 6.4339)),
        _online(2018, P, "OMNetCGA", "cga_p", (0.8027, 0.9052, 0.8536), (3.4437, 4.6236, 6.3892)),
        _online(2018, TEN, "OMNetCGA", "cga_10", (0.8112, 0.9074, 0.8461), (2.8697, 4.9105, 6.6243)),
        _online(2018, TEN_P, "OMNetCGA", "final", (0.8111, 0.9078, 0.8575), (2.8810, 4.8840, 6.9322)),
    ),
)
