"""What each BraTS challenge scores, and how: one table per year and cohort, in the numbering as trained.

Sources: 2017-21 CBICA's portal (CaPTk); 2023 and 2024 the official scripts BraTS-2023-Metrics and BraTS-2024-Metrics;
2026 BraTS_evaluation 0.0.10 on panoptica 2.1.7. Their quirks are kept where they move a score a challenge ranks by, and
named where they are coded. Not kept: for most cohorts the script of 2024 computes the HD95, sensitivity and specificity
of whole regions on lesion numbers instead of masks, so that they are wrong from the second lesion on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf, nan
from typing import Any

from nnunet_brats_ext.brats import ED, LABEL_SCHEMES, NCR
from nnunet_brats_ext.evaluation.metrics import HD95, NSD, Overlap
from nnunet_brats_ext.evaluation.surfaces import SurfaceDistances
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.options import option


@dataclass(frozen=True)
class Measure:
    """A reduction of surface distances, and what stands for it where there is no surface to measure.

    agreed: its value where both masks are empty. missed: where one is; infinity stands for the preset's penalty.
    """

    surfaces: Callable[..., SurfaceDistances]
    reduce: Callable[[SurfaceDistances], float]
    agreed: float
    missed: float


@dataclass(frozen=True)
class DilationRule:
    """How BraTS 2023 and 2024 cut a region into lesions and match them.

    A lesion is what the `dilation`-fold 18-neighbourhood joins in the reference; it owns every predicted component that
    touches its dilation, and is scored against their union. Predicted components that touch none are false positives.

    min_volume: only reference lesions larger than this (mm³) count.
    filter_prediction: as well, the prediction is cut into lesions by the same dilation, and those not larger than
        `min_volume`, in this unit ("voxels" or "mm3"), are removed; if None, each 26-connected component counts.
    joined_by: regions whose lesions, in this order, join the lesions of this region that touch them.
    false_positives_count: whether they enter the mean (with Dice 0 and the penalty distance).
    """

    dilation: int
    min_volume: float
    filter_prediction: str | None = None
    joined_by: tuple[str, ...] = ()
    false_positives_count: bool = True


@dataclass(frozen=True)
class MatchingRule:
    """How panoptica, as BraTS 2026 configures it, matches 26-connected components: one to one, for the largest Dice.

    min_volume: only reference components of at least this size (mm³) count; a case without one has no score.
    unmatched_count: whether false negatives and false positives enter the mean (with Dice 0 and the penalty distance)
        or, as everywhere but in metastases, only matched pairs do.
    measures: what stands for the preset's own measures on a pair.
    """

    min_volume: float
    unmatched_count: bool
    measures: Mapping[str, Measure]


_OVERLAPS: Mapping[str, Callable[[Overlap], float]] = {
    "dice": Overlap.dice,
    "sensitivity": Overlap.sensitivity,
    "specificity": Overlap.specificity,
}


@dataclass(frozen=True)
class Preset:
    """All that one challenge fixes about scoring one cohort.

    name, cohort: as results name them.
    scheme: name in `LABEL_SCHEMES` of the numbering of the cohort's released files.
    regions: name -> labels as trained.
    measures: metric -> how it is made of surface distances.
    penalty_mm: the distance where a mask is empty; None is the diagonal of the case's volume, in voxels.
    overlaps: metric -> how it is made of voxel counts.
    whole_in_voxels: whole regions are measured as if voxels were 1 mm wide; lesions are always measured in mm.
    disjoint_is_missed: masks that share no voxel score as if one of them were empty.
    lesions: region -> rule; empty where a challenge scores whole regions only.
    unscored: further regions, name -> labels as trained, cut into lesions only because these join those of others.
    """

    scheme: str
    regions: Mapping[str, tuple[int, ...]]
    measures: Mapping[str, Measure]
    penalty_mm: float | None
    overlaps: Mapping[str, Callable[[Overlap], float]] = field(default_factory=lambda: _OVERLAPS)
    whole_in_voxels: bool = False
    disjoint_is_missed: bool = False
    lesions: Mapping[str, DilationRule | MatchingRule] = field(default_factory=dict)
    unscored: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    name: str = "custom"
    cohort: str = "custom"


def _hd95(variant: str) -> Measure:
    return Measure(*HD95[variant], agreed=0.0, missed=inf)


def _nsd(variant: str, tolerance_mm: float | None) -> Measure:
    surfaces, reduce = NSD[variant]
    return Measure(surfaces, partial(reduce, tolerance_mm=tolerance_mm), agreed=1.0, missed=0.0)


# NSD was no metric of a challenge before 2024; up to then it is measured on the surface of the year's own HD95.
_MEASURES_2020 = {
    "hd95": _hd95("directed"),
    "hd95_pooled": _hd95("pooled"),
    "nsd": _nsd("voxels", 1.0),
}
_MEASURES_2023 = {
    "hd95": _hd95("surfels"),
    "nsd": _nsd("surfels", 1.0),
}
# 2024 took HD95 from one library and NSD from another, so there are two kinds of surface.
_MEASURES_2024 = {
    "hd95": _hd95("surfels"),
    "nsd": _nsd("balanced", 1.0),
    "nsd_0.5mm": _nsd("balanced", 0.5),
}
# Nothing to find and nothing found is no score at all in 2026. Whole regions are measured without their spacing, for
# which panoptica's NSD tolerates half a voxel; lesions are measured with it, and tolerate one (the finest spacing).
# Where no lesion is matched, its parser leaves the lesion-wise HD95 infinite (metastases excepted); here it is 373.
_MEASURES_2026 = {
    "hd95": replace(_hd95("pooled"), agreed=nan),
    "nsd": replace(_nsd("balanced", 0.5), agreed=nan),
}
_PAIR_MEASURES_2026 = {
    **_MEASURES_2026,
    "nsd": replace(_nsd("balanced", None), agreed=nan),
}

_GLIOMA = LABEL_SCHEMES["glioma_2023"].regions
_METASTASES = LABEL_SCHEMES["resected_2024"].regions
_RESECTED = {**_METASTASES, "NETC": (NCR,), "SNFH": (ED,)}
_PAEDIATRIC = {**LABEL_SCHEMES["paediatric_2024"].regions, "NETC": (NCR,), "ED": (ED,)}
_RADIOTHERAPY = LABEL_SCHEMES["radiotherapy_2024"].regions


def _preset_2023(dilation: int, min_volume: float) -> Preset:
    rule = DilationRule(dilation, min_volume)
    return Preset("glioma_2023", _GLIOMA, _MEASURES_2023, penalty_mm=374, lesions=dict.fromkeys(_GLIOMA, rule))


def _preset_2024(
    scheme: str, regions: Mapping[str, tuple[int, ...]], penalty_mm: float | None, rule: DilationRule
) -> Preset:
    return Preset(scheme, regions, _MEASURES_2024, penalty_mm, lesions=dict.fromkeys(regions, rule))


def _preset_2026(
    scheme: str, regions: Mapping[str, tuple[int, ...]], min_volume: float = 0, unmatched_count: bool = False
) -> Preset:
    rule = MatchingRule(min_volume, unmatched_count, _PAIR_MEASURES_2026)
    return Preset(
        scheme,
        regions,
        _MEASURES_2026,
        penalty_mm=373,
        overlaps={"dice": partial(Overlap.dice, agreed=nan)},
        whole_in_voxels=True,
        disjoint_is_missed=True,
        lesions=dict.fromkeys(regions, rule),
    )


def _with_lesions(preset: Preset, **rules: DilationRule) -> Preset:
    unscored = {"NETC": (NCR,)} if "NETC" not in preset.regions else {}
    return replace(preset, lesions={**preset.lesions, **rules}, unscored=unscored)


_BRATS_2020 = {"gli": Preset("glioma_2017", _GLIOMA, _MEASURES_2020, penalty_mm=None)}
_BRATS_2023 = {
    "gli": _preset_2023(dilation=3, min_volume=50),
    "ssa": _preset_2023(dilation=3, min_volume=50),
    "ped": _preset_2023(dilation=3, min_volume=50),
    "men": _preset_2023(dilation=1, min_volume=50),
    "met": _preset_2023(dilation=1, min_volume=2),
}
_BRATS_2024 = {
    # SNFH was to be dilated five times, as NETC and RC are, but the script spells it SFNH: it is dilated three times.
    "gli": _with_lesions(
        _preset_2024("resected_2024", _RESECTED, 337, DilationRule(3, 20, "voxels")),
        ET=DilationRule(3, 10, "voxels", joined_by=("NETC", "RC")),
        NETC=DilationRule(5, 20, "voxels", joined_by=("ET", "RC")),
        RC=DilationRule(5, 20, "voxels", joined_by=("ET", "NETC")),
        SNFH=DilationRule(3, 20, "voxels", joined_by=("ET", "RC", "NETC")),
    ),
    "ped": _preset_2024("paediatric_2024", _PAEDIATRIC, 374, DilationRule(5, 10, "voxels")),
    "men": _preset_2024("glioma_2023", _GLIOMA, 374, DilationRule(1, 50)),
    "men-rt": _preset_2024(
        "radiotherapy_2024", _RADIOTHERAPY, None, DilationRule(1, 50, "mm3", false_positives_count=False)
    ),
    # NETC is cut into lesions only to join those of ET.
    "ssa": _with_lesions(
        _preset_2024("glioma_2023", _GLIOMA, 374, DilationRule(3, 50, "voxels")),
        ET=DilationRule(3, 50, "voxels", joined_by=("NETC",)),
        NETC=DilationRule(3, 50, "voxels"),
    ),
    "met": _with_lesions(
        _preset_2024("resected_2024", _METASTASES, None, DilationRule(1, 2, "voxels")),
        ET=DilationRule(1, 2, "voxels", joined_by=("NETC",)),
        NETC=DilationRule(1, 2, "voxels"),
    ),
}
_BRATS_2024["goat"] = _BRATS_2023["gli"]  # the generalisability task kept the rules of 2023
_BRATS_2026 = {
    "gli": _preset_2026("resected_2024", _RESECTED),
    "ped": _preset_2026("paediatric_2024", _PAEDIATRIC),
    "met": _preset_2026("resected_2024", _METASTASES, min_volume=27, unmatched_count=True),
    "men": _preset_2026("glioma_2023", _GLIOMA),
    "men-rt": _preset_2026("radiotherapy_2024", _RADIOTHERAPY),
    "goat": _preset_2026("glioma_2023", _GLIOMA),
}

_YEARS = {
    **{f"brats{year}": _BRATS_2020 for year in range(2017, 2022)},
    "brats2023": _BRATS_2023,
    "brats2024": _BRATS_2024,
    "brats2026": _BRATS_2026,
}
PRESETS: Mapping[str, Mapping[str, Preset]] = {
    year: {cohort: replace(preset, name=year, cohort=cohort) for cohort, preset in cohorts.items()}
    for year, cohorts in _YEARS.items()
}
COHORTS = tuple(dict.fromkeys(cohort for cohorts in PRESETS.values() for cohort in cohorts))


def preset_names() -> tuple[str, ...]:
    """The challenge years, by the names that `find_preset` takes."""
    return tuple(PRESETS)


def find_preset(preset: str | Preset, cohort: str = "gli") -> Preset:
    """The preset of a challenge year and cohort, by name; a Preset stands for itself.

    An unknown name is a UserError that lists those there are.
    """
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        raise UserError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    if cohort not in PRESETS[preset]:
        raise UserError(f"{preset} has no cohort {cohort!r}; it has {', '.join(PRESETS[preset])}")
    return PRESETS[preset][cohort]


def preset_option(use: str = "") -> Any:
    """`--preset`, for the commands that score. use: what for, at the beginning of its help."""
    return option(default="brats2020", choices=preset_names, help=f"{use}the challenge year")


def cohort_option(use: str = "") -> Any:
    """`--cohort`, beside it."""
    return option(default="gli", choices=COHORTS, help=f"{use}the patients of that year's challenge")
