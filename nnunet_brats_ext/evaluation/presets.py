"""What each BraTS challenge scores, and how: one table per year and cohort, in the numbering as trained.

Sources: 2012-16 the Virtual Skeleton Database, which listed Dice, PPV and sensitivity (Menze et al. 2015,
https://doi.org/10.1109/TMI.2014.2377694), here with the distances of 2017; 2017-21 CBICA's portal (CaPTk); 2023 and
2024 the official scripts BraTS-2023-Metrics and BraTS-2024-Metrics; 2025 panoptica's configuration for metastases, and
for Africa the lesions of 2024 with the metrics that its teams report; 2026 BraTS_evaluation 0.0.10 on panoptica 2.1.7.
Their quirks are kept where they move a score a challenge ranks by, and named where they are coded. Not kept: for most
cohorts the script of 2024 computes the HD95, sensitivity and specificity of whole regions on lesion numbers instead of
masks, so that they are wrong from the second lesion on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf, nan
from typing import Any

from nnunet_brats_ext.brats import ED, LABEL_SCHEMES, NCR
from nnunet_brats_ext.evaluation.distances import SurfaceDistances
from nnunet_brats_ext.evaluation.metric_facts import LESIONWISE, WHOLE
from nnunet_brats_ext.evaluation.metrics import HD95, NSD, Overlap
from nnunet_brats_ext.evaluation.surfaces import SurfaceKind
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.options import option

Spacing = tuple[float, ...]


def in_mm(spacing_mm: Spacing) -> Spacing:
    return spacing_mm


def in_voxels(spacing_mm: Spacing) -> Spacing:
    """As if voxels were 1 mm wide."""
    return (1.0,) * len(spacing_mm)


def turned_round(spacing_mm: Spacing) -> Spacing:
    """panoptica 2.1.7 reads arrays as (z, y, x) and their spacing as (x, y, z), and does not turn it round."""
    return spacing_mm[::-1]


@dataclass(frozen=True)
class Measure:
    """A reduction of surface distances, and what stands for it where there is no surface to measure.

    agreed: its value where both masks are empty. missed: where one is; infinity stands for the preset's penalty.
    spacing: how far apart voxels are taken to be, of the case's spacing.
    """

    surface: SurfaceKind
    reduce: Callable[[SurfaceDistances], float]
    agreed: float
    missed: float
    spacing: Callable[[Spacing], Spacing] = in_mm


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

    min_volume: only reference components of at least this size (mm³), which are called large, count; a case without
        one has no score.
    unmatched_count: whether false negatives and false positives enter the mean (with Dice 0 and the penalty distance)
        or, as everywhere but in the metastases of 2026, only matched pairs do.
    measures: what stands for the preset's own measures on a pair.
    found_from: a large or a small component is found if its Dice is at least this.
    """

    min_volume: float
    unmatched_count: bool
    measures: Mapping[str, Measure]
    found_from: float = 0


_OVERLAPS: Mapping[str, Callable[[Overlap], float]] = {
    "dice": Overlap.dice,
    "sensitivity": Overlap.sensitivity,
    "ppv": Overlap.ppv,
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
    disjoint_is_missed: masks that share no voxel score as if one of them were empty.
    lesions: region -> rule; empty where a challenge scores whole regions only.
    unscored: further regions, name -> labels as trained, cut into lesions only because these join those of others.
    ranked: the metrics that the challenge ranks by; by default lesion-wise Dice and HD95, or those of whole regions.
    """

    scheme: str
    regions: Mapping[str, tuple[int, ...]]
    measures: Mapping[str, Measure]
    penalty_mm: float | None
    overlaps: Mapping[str, Callable[[Overlap], float]] = field(default_factory=lambda: _OVERLAPS)
    disjoint_is_missed: bool = False
    lesions: Mapping[str, DilationRule | MatchingRule] = field(default_factory=dict)
    unscored: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    name: str = "custom"
    cohort: str = "custom"
    ranked: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranked", self.ranked or (LESIONWISE if self.lesions else WHOLE))

    def with_nsd(self, tolerances_mm: Sequence[float]) -> "Preset":
        """The preset with further NSD, at these tolerances in mm, of whole regions and of lesions."""
        if not all(0 < tolerance < inf for tolerance in tolerances_mm):
            raise UserError(f"NSD tolerances {list(tolerances_mm)} should be positive numbers of mm")
        lesions = {
            region: replace(rule, measures=_with_nsd(rule.measures, tolerances_mm))
            if isinstance(rule, MatchingRule)
            else rule
            for region, rule in self.lesions.items()
        }
        return replace(self, measures=_with_nsd(self.measures, tolerances_mm), lesions=lesions)


def _with_nsd(measures: Mapping[str, Measure], tolerances_mm: Sequence[float]) -> Mapping[str, Measure]:
    own = next(measure for name, measure in measures.items() if name.startswith("nsd_"))
    further = {}
    for tolerance in tolerances_mm:
        reduce = partial(own.reduce.func, tolerance_mm=float(tolerance))  # type: ignore[attr-defined]  # of `_nsd`
        further[nsd_name(tolerance)] = replace(own, reduce=reduce, spacing=in_mm)
    return {**measures, **{name: measure for name, measure in further.items() if name not in measures}}


def nsd_name(tolerance_mm: float) -> str:
    """The name of NSD in results, which says its tolerance: nsd_0.5mm."""
    return f"nsd_{tolerance_mm:g}mm"


def _hd95(variant: str) -> Measure:
    return Measure(*HD95[variant], agreed=0.0, missed=inf)


def _nsd(variant: str, tolerance_mm: float | None) -> Measure:
    surface, reduce = NSD[variant]
    return Measure(surface, partial(reduce, tolerance_mm=tolerance_mm), agreed=1.0, missed=0.0)


# NSD was no metric of a challenge before 2024; up to then it is measured on the surface of the year's own HD95.
_MEASURES_2020 = {
    "hd95": _hd95("directed"),
    "hd95_pooled": _hd95("pooled"),
    "nsd_1mm": _nsd("voxels", 1.0),
}
_MEASURES_2023 = {
    "hd95": _hd95("surfels"),
    "nsd_1mm": _nsd("surfels", 1.0),
}
# 2024 took HD95 from one library and NSD from another, so there are two kinds of surface.
_MEASURES_2024 = {
    "hd95": _hd95("surfels"),
    "nsd_1mm": _nsd("balanced", 1.0),
    "nsd_0.5mm": _nsd("balanced", 0.5),
}
# panoptica measures without spacing unless it is given one, and its NSD tolerates half a voxel of whole regions and one
# of instances. In 2025 it was given none. Its configuration has HD95 0 and an infinite NSD where there is only a
# prediction, as if the two had been exchanged; the challenge ranks by neither, and here they are as elsewhere.
_MEASURES_2025 = {
    "hd95": replace(_hd95("pooled"), spacing=in_voxels),
    "nsd_0.5voxel": replace(_nsd("balanced", 0.5), spacing=in_voxels),
}
_PAIR_MEASURES_2025 = {
    "hd95": replace(_hd95("pooled"), spacing=in_voxels),
    "nsd_1voxel": replace(_nsd("balanced", 1.0), spacing=in_voxels),
}
# Nothing to find and nothing found is no score at all in 2026. Lesions are measured with their spacing, and one voxel
# is the finest spacing. Where no lesion is matched, the parser of 2026 leaves the lesion-wise HD95 infinite (metastases
# excepted); here it is 373.
_MEASURES_2026 = {name: replace(measure, agreed=nan) for name, measure in _MEASURES_2025.items()}
_PAIR_MEASURES_2026 = {
    "hd95": replace(_hd95("pooled"), agreed=nan, spacing=turned_round),
    "nsd_1voxel": replace(_nsd("balanced", None), agreed=nan, spacing=turned_round),
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


def _preset_2025(scheme: str, regions: Mapping[str, tuple[int, ...]]) -> Preset:
    rule = MatchingRule(min_volume=0, unmatched_count=False, measures=_PAIR_MEASURES_2025)
    return Preset(
        scheme,
        regions,
        _MEASURES_2025,
        penalty_mm=374,
        overlaps={"dice": Overlap.dice},
        disjoint_is_missed=True,
        lesions=dict.fromkeys(regions, rule),
        ranked=LESIONWISE[:1],
    )


def _preset_2026(
    scheme: str,
    regions: Mapping[str, tuple[int, ...]],
    min_volume: float = 0,
    unmatched_count: bool = False,
    found_from: float = 0,
) -> Preset:
    rule = MatchingRule(min_volume, unmatched_count, _PAIR_MEASURES_2026, found_from)
    return Preset(
        scheme,
        regions,
        _MEASURES_2026,
        penalty_mm=373,
        overlaps={"dice": partial(Overlap.dice, agreed=nan)},
        disjoint_is_missed=True,
        lesions=dict.fromkeys(regions, rule),
    )


def _with_lesions(preset: Preset, **rules: DilationRule) -> Preset:
    unscored = {"NETC": (NCR,)} if "NETC" not in preset.regions else {}
    return replace(preset, lesions={**preset.lesions, **rules}, unscored=unscored)


def _preset_2013(scheme: str) -> dict[str, Preset]:
    regions, ranked = LABEL_SCHEMES[scheme].regions, ("dice", "ppv", "sensitivity")
    return {"gli": Preset(scheme, regions, _MEASURES_2020, penalty_mm=None, ranked=ranked)}


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
_BRATS_2025 = {
    "met": _preset_2025("resected_2024", _METASTASES),
    "ssa": replace(_BRATS_2024["ssa"], ranked=("lesionwise_dice", "lesionwise_nsd_0.5mm", "lesionwise_nsd_1mm")),
}
_BRATS_2026 = {
    "gli": _preset_2026("resected_2024", _RESECTED),
    "ped": _preset_2026("paediatric_2024", _PAEDIATRIC),
    "met": _preset_2026("resected_2024", _METASTASES, min_volume=27, unmatched_count=True, found_from=0.2),
    "men": _preset_2026("glioma_2023", _GLIOMA),
    "men-rt": _preset_2026("radiotherapy_2024", _RADIOTHERAPY),
    # The generalisability task ranks without HD95.
    "goat": replace(
        _preset_2026("glioma_2023", _GLIOMA).with_nsd([1.0]), ranked=("lesionwise_dice", "lesionwise_nsd_1mm")
    ),
}

_YEARS = {
    "brats2012": _preset_2013("glioma_2012"),
    **{f"brats{year}": _preset_2013("glioma_2013") for year in range(2013, 2017)},
    **{f"brats{year}": _BRATS_2020 for year in range(2017, 2022)},
    "brats2023": _BRATS_2023,
    "brats2024": _BRATS_2024,
    "brats2025": _BRATS_2025,
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


def fitting_preset(preset: str, cohort: str, scheme: str | None, release: str) -> tuple[str, str]:
    """The preset for label maps of a scheme: the one that is given, or that of the release's own challenge.

    The latter where the given one does not know all labels of the scheme, or scores one that the scheme lacks, as
    brats2020 does with BraTS2015 or BraTS2012. Where there is no such challenge the given one stays.
    """
    if scheme is None:
        return preset, cohort
    given, names = find_preset(preset, cohort), set(LABEL_SCHEMES[scheme].names)
    if names <= set(LABEL_SCHEMES[given.scheme].names) and all(names & {*labels} for labels in given.regions.values()):
        return preset, cohort
    year, _, patients = release.lower().partition("-")
    own = PRESETS.get(year, {}).get(patients or "gli")
    return (own.name, own.cohort) if own and own.scheme == scheme else (preset, cohort)


def ranked_metrics(results: Mapping[str, Any]) -> tuple[str, ...] | None:
    """What the challenge of some results ranks by, by their preset and cohort; None where that is not known.

    Results of earlier versions may lack a metric that was added; of these nothing is known.
    """
    preset = PRESETS.get(results["preset"], {}).get(results["cohort"])
    regions = next(iter(results["cases"].values()))
    known = preset is not None and all(name in scores for scores in regions.values() for name in preset.ranked)
    return preset.ranked if preset is not None and known else None


def preset_option(use: str = "") -> Any:
    """`--preset`, for the commands that score. use: what for, at the beginning of its help."""
    return option(default="brats2020", choices=preset_names, help=f"{use}the challenge year")


def cohort_option(use: str = "") -> Any:
    """`--cohort`, beside it."""
    return option(default="gli", choices=COHORTS, help=f"{use}the patients of that year's challenge")
