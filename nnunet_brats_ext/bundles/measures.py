"""What a label map says of a patient in numbers, and how those change from session to session. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nnunet_brats_ext.evaluation.diameters import Diameters, axial_diameters


class Measure(NamedTuple):
    """A label or region of a patient. kind: label, or region."""

    name: str
    kind: str
    ml: float
    diameters: Diameters


def measure(
    labels: np.ndarray, spacing_mm: tuple[float, ...], names: Mapping[int, str], regions: Mapping[str, Sequence[int]]
) -> list[Measure]:
    """Volumes and axial diameters of every label and region of a label map (z, y, x) with the axes LPS.

    spacing_mm: x, y, z. A region of one label is stated once, as a region.
    """
    ml = float(np.prod(spacing_mm)) / 1000
    single = {labels[0] for labels in regions.values() if len(labels) == 1}
    parts: list[tuple[str, str, tuple[int, ...]]] = [
        ("label", name, (label,)) for label, name in names.items() if label not in single
    ]
    parts += [("region", name, tuple(values)) for name, values in regions.items()]
    found = []
    for kind, name, values in parts:
        mask = np.isin(labels, values)
        found.append(Measure(name, kind, int(mask.sum()) * ml, axial_diameters(mask, spacing_mm)))
    return found


VOLUME_COLUMNS = (
    "patient", "session", "case", "kind", "name", "volume_ml", "longest_axial_diameter_mm",
    "perpendicular_diameter_mm", "product_mm2", "axial_slice",
)  # fmt: skip


def volume_rows(cases: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Any]]:
    """The table of all cases, as `segment` notes them: a row for each label and region."""
    yield VOLUME_COLUMNS
    for case in cases:
        for one in case["measures"]:
            yield (
                case["patient"], case["session"], case["case"], one["kind"], one["name"], f"{one['ml']:.3f}",
                f"{one['longest_mm']:.1f}", f"{one['perpendicular_mm']:.1f}", f"{one['product_mm2']:.0f}",
                one["slice"],
            )  # fmt: skip


# ---- over time ------------------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """A region in one session of a patient. Changes are in percent of the volume before; None where that was zero.

    since_nadir: since the smallest volume of all sessions before, as response criteria compare it.
    """

    patient: str
    session: str
    case: str
    name: str
    ml: float
    baseline_ml: float
    nadir_ml: float
    since_baseline: float | None
    since_nadir: float | None


CHANGE_COLUMNS = (
    "patient", "session", "case", "name", "volume_ml", "baseline_ml", "change_since_baseline_ml",
    "change_since_baseline_percent", "nadir_ml", "change_since_nadir_ml", "change_since_nadir_percent",
)  # fmt: skip


def in_order(sessions: Sequence[str]) -> list[str]:
    """Sessions as time goes on: numbers in names count as numbers, dates as they are written in ISO 8601."""

    def key(name: str) -> list[tuple[bool, int, str]]:
        return [(word.isdigit(), int(word) if word.isdigit() else 0, word) for word in re.findall(r"\d+|\D+", name)]

    return sorted(sessions, key=key)


def changes(cases: Sequence[Mapping[str, Any]]) -> list[Change]:
    """The regions of all patients with more than one session, in the order of their sessions."""
    found = []
    patients = dict.fromkeys(case["patient"] for case in cases)
    for patient in patients:
        own = {case["session"]: case for case in cases if case["patient"] == patient}
        if len(own) < 2:
            continue
        before: dict[str, list[float]] = {}
        for session in in_order(list(own)):
            for one in own[session]["measures"]:
                if one["kind"] != "region":
                    continue
                earlier = before.setdefault(one["name"], [])
                baseline, nadir = (earlier[0], min(earlier)) if earlier else (one["ml"], one["ml"])
                percents = _percent(one["ml"], baseline), _percent(one["ml"], nadir)
                case = own[session]["case"]
                found.append(Change(patient, session, case, one["name"], one["ml"], baseline, nadir, *percents))
                earlier.append(one["ml"])
    return found


def _percent(now: float, before: float) -> float | None:
    return 100 * (now - before) / before if before else None


def change_rows(found: Sequence[Change]) -> Iterator[Sequence[Any]]:
    yield CHANGE_COLUMNS
    for one in found:
        yield (
            one.patient, one.session, one.case, one.name, f"{one.ml:.3f}", f"{one.baseline_ml:.3f}",
            f"{one.ml - one.baseline_ml:.3f}", _shown(one.since_baseline), f"{one.nadir_ml:.3f}",
            f"{one.ml - one.nadir_ml:.3f}", _shown(one.since_nadir),
        )  # fmt: skip


def _shown(percent: float | None) -> str | None:
    return None if percent is None else f"{percent:.1f}"
