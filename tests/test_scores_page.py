"""docs/scores.md: its tables are those of the presets and label schemes."""

import re

import numpy as np
from page_blocks import DOCS

from nnunet_brats_ext.brats import LABEL_SCHEMES
from nnunet_brats_ext.evaluation import Preset, evaluate_case
from nnunet_brats_ext.evaluation.metrics import HD95, NSD
from nnunet_brats_ext.evaluation.presets import PRESETS, DilationRule

PAGE = (DOCS / "scores.md").read_text()
DIAGONAL = "the volume's diagonal"
GLIOMA = ["WT", "TC", "ET"]


def rows(heading: str) -> list[list[str]]:
    """The cells of the table that begins with this heading."""
    table = PAGE[PAGE.index(f"| {heading} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def coded(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def as_cells(preset: Preset) -> tuple[list[str], str, str, str]:
    """What the table has to say: metrics, regions in addition, penalty, kind of lesions."""
    further = [region for region in preset.regions if region not in GLIOMA]
    addition = ", ".join(further) if set(GLIOMA) <= set(preset.regions) else f"{', '.join(further)} alone"
    penalty = DIAGONAL if preset.penalty_mm is None else str(preset.penalty_mm)
    kinds = {"dilation" if isinstance(rule, DilationRule) else "matching" for rule in preset.lesions.values()}
    return [*preset.overlaps, *preset.measures], addition, penalty, "".join(kinds)


def test_the_table_of_presets_is_that_of_the_presets():
    described, metrics = {}, []
    for years, cohorts, whole, addition, penalty, lesions in rows("preset"):
        first, last = int(coded(years)[0][-4:]), int(coded(years)[-1][-4:])
        metrics = coded(whole) or (
            [*PRESETS["brats2023"]["gli"].overlaps, "hd95", "nsd"] if "2023" in whole else metrics
        )
        for year in range(first, last + 1):
            for cohort in coded(cohorts):
                described[f"brats{year}", cohort] = (metrics, addition, penalty, lesions)
        metrics = described[f"brats{first}", coded(cohorts)[0]][0]
    presets = {(year, cohort): as_cells(one) for year, cohorts in PRESETS.items() for cohort, one in cohorts.items()}
    assert described == presets


def test_the_table_of_numberings_is_that_of_the_label_schemes():
    table = {coded(name)[0]: numbers for name, numbers in rows("scheme")}
    assert table == {
        name: ", ".join(
            f"{scheme.names[trained]} {value}" for value, trained in sorted(scheme.released.items()) if value
        )
        for name, scheme in LABEL_SCHEMES.items()
    }


def test_the_variants_are_those_there_are():
    assert [coded(row[0])[0] for row in rows("variant")] == list(HD95)
    sentence = next(line for line in PAGE.splitlines() if line.startswith("`nsd("))
    assert set(coded(sentence)[1:]) == set(NSD)


def test_absent_regions_score_as_the_page_says():
    nothing = np.zeros((8, 8, 8), dtype=np.uint8)
    for year, cohorts in PRESETS.items():
        for cohort in cohorts:
            for region, scores in evaluate_case(nothing, nothing, preset=year, cohort=cohort).items():
                expected = (np.nan, np.nan) if year == "brats2026" else (1, 0)
                assert np.array_equal((scores["dice"], scores["hd95"]), expected, equal_nan=True), (
                    year,
                    cohort,
                    region,
                )
