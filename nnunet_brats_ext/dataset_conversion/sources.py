"""One data set of several folders: their numberings, what they have in common, and images that are there twice."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_brats_ext.brats import LABEL_SCHEMES, LabelScheme
from nnunet_brats_ext.dataset_conversion.cases import Inspection, check_labels
from nnunet_brats_ext.dataset_conversion.layouts import LAYOUTS, PRESENT_SCHEME, Layout
from nnunet_brats_ext.dataset_conversion.scan import Source, scan
from nnunet_brats_ext.storage.errors import UserError


@dataclass(frozen=True)
class DatasetFacts:
    """What the sources of a data set have in common. name: of all of them."""

    name: str
    numbering: LabelScheme
    sequences: tuple[str, ...]


LAYOUT_FILE = "layout.toml"  # in a source, where no option names another


def find_source(
    root: Path,
    release: str | None = None,
    layout: Path | None = None,
    scheme: str | None = None,
    any_name: bool = False,
    overlays: Sequence[Path] = (),
    name_mapping: Path | None = None,
    allow_missing: bool = False,
) -> Source:
    """The cases of a folder by the layout that is named, that lies in it as layout.toml, or that is recognised."""
    if layout and release:
        raise UserError("--layout FILE and --release NAME: name one of the two")
    if not layout and not release and (root / LAYOUT_FILE).is_file():
        layout = root / LAYOUT_FILE
    asked = Layout.read(layout) if layout else release
    if isinstance(asked, Layout) and asked.name in LAYOUTS:
        raise UserError(f"{layout}: {asked.name} is the name of a known release; choose another name")
    source = scan(root, asked, overlays, name_mapping, any_name, allow_missing)
    return with_layout(source, source.layout.with_scheme(scheme)) if scheme else source


def with_layout(source: Source, layout: Layout, evidence: str = "") -> Source:
    """The same cases read by another layout."""
    for case in source.cases:
        case.layout = layout
    return replace(source, layout=layout, evidence=evidence or source.evidence)


def with_numbering(source: Source, inspected: Sequence[Inspection]) -> Source:
    """The source with a numbering, decided by its label maps where its layout leaves it open.

    inspected: the source's own cases, whose labels are checked then.
    """
    if source.layout.scheme:
        return source
    name, why = decide_numbering(inspected, source.root)
    layout = source.layout.with_scheme(name)
    for found in inspected:
        found.case.layout = layout  # of the copy that a worker has sent back
        check_labels(found)
    return with_layout(source, layout, f"{source.evidence}; {why}")


def decide_numbering(inspected: Sequence[Inspection], root: Path) -> tuple[str, str]:
    """The numbering of the label maps by their values, and why; an error asks where the values fit several.

    Only the glioma labels of 2017 to 2022 have a 4 and no 3. Without any label map there is nothing to read, and
    predictions are written as BraTS numbers them since 2023.
    """
    values = sorted({value for found in inspected for value in found.label_counts})
    shown = ", ".join(map(str, values))
    if not values:
        return PRESENT_SCHEME, f"no label maps; predictions are numbered as in {PRESENT_SCHEME}"
    if 4 in values and set(values) <= {0, 1, 2, 4}:
        return "glioma_2017", f"labels {shown}, as in glioma_2017"
    fitting = {name: scheme for name, scheme in LABEL_SCHEMES.items() if set(values) <= set(scheme.released)}
    choices = "".join(f"\n  --scheme {name:<18} {scheme.numbers}" for name, scheme in fitting.items())
    if not fitting:
        raise UserError(
            f"{root} has the labels {shown}, which no numbering has; state them in a layout, as a table [labels]: "
            f"`nnunet_brats layout {root}` writes one"
        )
    raise UserError(
        f"{root} has the labels {shown}, which fit several numberings; name the one that it is:{choices}\n"
        "Another numbering is stated in a layout, as a table [labels]: `nnunet_brats layout` writes one."
    )


def unite(sources: Sequence[Source]) -> DatasetFacts:
    """What all sources have in common; an error where labels or sequences of one data set cannot be made of them.

    Labels as trained mean the same in all sources, and the source with most labels has the regions of all: glioma
    before and after treatment become WT, TC, ET and RC.
    """
    widest = max((source.layout for source in sources), key=lambda layout: len(layout.numbering.names))
    wide = widest.numbering
    for source in sources:
        layout, scheme = source.layout, source.layout.numbering
        shared = {name: tuple(label for label in wide.regions[name] if label in scheme.names) for name in wide.regions}
        fits = scheme.names.items() <= wide.names.items() and all(
            shared.get(name) == tuple(labels) for name, labels in scheme.regions.items()
        )
        if not fits:
            raise UserError(
                f"{layout.name} ({scheme.numbers}; regions {', '.join(scheme.regions)}) and {widest.name} "
                f"({wide.numbers}; regions {', '.join(wide.regions)}) have no common labels; convert each on its own"
            )
        if layout.sequences != widest.sequences:
            raise UserError(
                f"{layout.name} has {', '.join(layout.sequences)} and {widest.name} {', '.join(widest.sequences)}; "
                "a data set has the same sequences throughout"
            )
    names = list(dict.fromkeys(source.layout.name for source in sources))
    return DatasetFacts(" + ".join(names), wide, widest.sequences)


def keep_once(inspected: Sequence[Inspection], roots: Sequence[Path]) -> tuple[list[Inspection], dict[str, str]]:
    """The cases without those whose images are all those of a case of another source; dropped case -> kept case.

    The labelled one is kept, of two the one that comes first. It gets the other's patient as a name of its own, so that
    folds and later data sets know both, and a remark where the two labels differ.
    """
    by_images: dict[tuple, list[Inspection]] = defaultdict(list)
    for found in inspected:
        if len(found.voxels) == len(found.case.layout.sequences):
            by_images[tuple(sorted(found.voxels.items()))].append(found)
    dropped: dict[int, str] = {}
    for same in by_images.values():
        kept = next((found for found in same if found.case.labelled), same[0])
        for other in same:
            if other.case.source == kept.case.source:
                continue
            place = f"{roots[other.case.source].name}, as {other.case.name}"
            kept.case.remarks.append(f"the same images in {place}, which is left out")
            kept.case.known_as += [other.case.patient, *other.case.known_as]
            if other.case.labelled and _as_trained(other) != _as_trained(kept):
                kept.case.remarks.append(f"its label differs from that in {place}")
            dropped[id(other)] = kept.case.name
    left = [found for found in inspected if id(found) not in dropped]
    return left, {found.case.name: dropped[id(found)] for found in inspected if id(found) in dropped}


def _as_trained(found: Inspection) -> Mapping[int, int]:
    mapping = found.case.layout.numbering.released
    return {mapping[value]: count for value, count in found.label_counts.items() if value in mapping}


def refuse_same_names(inspected: Sequence[Inspection], roots: Sequence[Path]) -> None:
    """An error where two cases of different images have one name."""
    first: dict[str, Inspection] = {}
    for found in inspected:
        other = first.setdefault(found.case.name, found)
        if other is not found:
            here, there = roots[other.case.source], roots[found.case.source]
            raise UserError(
                f"{found.case.name} is a case of {here} and of {there}, with other images; give one of the folders a "
                f'{LAYOUT_FILE} with names of its own, such as case = "B_{{patient}}"'
            )


def source_number(about: Mapping[str, Any]) -> int:
    """Which of `sources_of` a case is from, by what a manifest says of it; `distill` notes a folder there instead."""
    number = about.get("source", 0)
    return number if isinstance(number, int) else 0


def sources_of(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The part of a manifest about each source; of a data set of one source, all of it."""
    return manifest.get("sources") or [manifest]
