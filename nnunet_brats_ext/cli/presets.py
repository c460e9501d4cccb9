"""What `nnunet_brats presets` prints: the challenges whose scores can be computed, from the table of presets itself."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isnan

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from nnunet_brats_ext.brats import LABEL_SCHEMES
from nnunet_brats_ext.evaluation.metric_facts import facts_of_metric
from nnunet_brats_ext.evaluation.presets import (
    COHORTS,
    PRESETS,
    DilationRule,
    MatchingRule,
    Preset,
    find_preset,
    preset_names,
)
from nnunet_brats_ext.evaluation.scoring import columns_of
from nnunet_brats_ext.storage.options import Options, argument, option

WIDE = 160  # columns of text, where the output is no terminal
HEADINGS = ("preset", "cohort", "regions", "whole regions", "lesions", "HD95 if one mask is empty", "ranked by")
SHORT = [name for name in HEADINGS if name != "whole regions"]  # which would make the table too wide for a terminal


@dataclass(frozen=True)
class PresetsOptions(Options):
    """What `presets` shows."""

    preset: str | None = argument("one year in full, with its columns", None, choices=preset_names)
    cohort: str | None = option(default=None, choices=COHORTS, help="one cohort alone")
    markdown: bool = option(default=False, help="the table of docs/scores.md")


def show_presets(options: PresetsOptions) -> None:
    if options.markdown:
        print(markdown_table())
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    if not options.preset:
        table = Table(*SHORT, box=SIMPLE_HEAD, pad_edge=False)
        for row in preset_rows():
            if options.cohort in (None, row["cohort"]):
                table.add_row(*(row[name] for name in SHORT))
        console.print(table)
        console.print("`nnunet_brats presets brats2026` lists the columns of that year")
        return
    cohorts = [options.cohort] if options.cohort else list(PRESETS[options.preset])
    for cohort in cohorts:
        _print_preset(find_preset(options.preset, cohort), console)


def preset_rows() -> Iterator[dict[str, str]]:
    """A row per cohort, by `HEADINGS`; years with the same cohorts and rules share theirs."""
    years = list(PRESETS)
    while years:
        first = years[0]
        alike = [year for year in years if _nameless(year) == _nameless(first)]
        years = [year for year in years if year not in alike]
        for cohort, preset in PRESETS[first].items():
            cells = (
                first if len(alike) == 1 else f"{first} to {alike[-1]}",
                cohort,
                ", ".join(preset.regions),
                ", ".join((*preset.overlaps, *preset.measures)),
                describe_lesions(preset),
                "the volume's diagonal" if preset.penalty_mm is None else f"{preset.penalty_mm:g}",
                ", ".join(preset.ranked),
            )
            yield dict(zip(HEADINGS, cells, strict=True))


def _nameless(year: str) -> list[Preset]:
    return [replace(preset, name="", cohort=cohort) for cohort, preset in PRESETS[year].items()]


def markdown_table() -> str:
    """All presets as the table of docs/scores.md."""
    lines = [HEADINGS, ["---"] * len(HEADINGS)]
    for row in preset_rows():
        codes = {
            name: separator.join(f"`{one}`" for one in row[name].split(between))
            for name, between, separator in (
                ("preset", " to ", " to "),
                ("cohort", ", ", " "),
                ("whole regions", ", ", " "),
                ("ranked by", ", ", " "),
            )
        }
        lines.append([codes.get(name, row[name]) for name in HEADINGS])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def describe_lesions(preset: Preset) -> str:
    """How the challenge cuts and matches lesions; one phrase per kind of region."""
    kinds: dict[str, list[str]] = {}
    for region in preset.regions:
        if rule := preset.lesions.get(region):
            kinds.setdefault(_describe_rule(rule), []).append(region)
    if len(kinds) < 2:
        return next(iter(kinds), "")
    return "; ".join(f"{' '.join(regions)}: {kind}" for kind, regions in kinds.items())


def _describe_rule(rule: DilationRule | MatchingRule) -> str:
    if isinstance(rule, MatchingRule):
        return "matching" + (f", from {rule.min_volume:g} mm³" if rule.min_volume else "")
    return f"dilation {rule.dilation}, above {rule.min_volume:g} mm³"


def _print_preset(preset: Preset, console: Console) -> None:
    console.print(f"[bold]{preset.name} {preset.cohort}[/]", highlight=False)
    scheme = LABEL_SCHEMES[preset.scheme]
    agreed = columns_of(preset)["dice"]
    facts = {
        "numbering as released": f"{scheme.numbers} ({preset.scheme})",
        "regions": ", ".join(preset.regions),
        "lesions": describe_lesions(preset) or "none",
        "nothing there, nothing predicted": "no score" if isnan(agreed) else f"Dice {agreed:g}",
        "HD95 if one mask is empty": "the volume's diagonal, in voxels"
        if preset.penalty_mm is None
        else f"{preset.penalty_mm:g} mm",
        "ranked by": ", ".join(preset.ranked),
    }
    for name, fact in facts.items():
        console.print(f"  {name}: {fact}", highlight=False)
    table = Table("column", "what it is", box=SIMPLE_HEAD, pad_edge=False)
    for name in columns_of(preset):
        table.add_row(name, facts_of_metric(name).title)
    console.print(table)
