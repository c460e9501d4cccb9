"""Which cases enter the new data set: pure decisions on what was read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nnunet_brats_ext.dataset_conversion.distillation.examination import Examination
from nnunet_brats_ext.dataset_conversion.distillation.fingerprints import alike
from nnunet_brats_ext.dataset_conversion.distillation.sources import EXCLUDED, MANUAL, Candidate, Exclusion

NAMED, SAME_IMAGES, DUPLICATE, UNSURE = "excluded by name", "excluded by images", "duplicate", "low confidence"


@dataclass(frozen=True)
class Twin:
    """Two cases with the same images: `similarity` is 1 where a channel is the same voxel for voxel."""

    key: str
    similarity: float
    channels: tuple[int, ...] = ()  # that are the same; empty where the two only look alike


@dataclass(frozen=True)
class Dropped:
    """A case that was left out. `because` quotes what speaks against it."""

    key: str
    reason: str
    because: str


@dataclass
class Selection:
    """kept: keys in the order given. same_patient: kept cases that look like another one, and which (near twins)."""

    kept: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    same_patient: dict[str, set[str]] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)


def find_twins(examined: Mapping[str, Examination], similarity: float | None) -> dict[str, list[Twin]]:
    """Case -> the cases that are the same images, in both directions; all those that look alike if a number is given.

    One channel that is the same makes two cases twins: their other channels may have been registered anew.
    """
    twins: dict[str, list[Twin]] = {key: [] for key in examined}
    holders: dict[str, dict[str, int]] = {}
    for key, found in examined.items():
        for channel, content in enumerate(found.contents):
            if content:
                holders.setdefault(content, {}).setdefault(key, channel)
    same: dict[tuple[str, str], set[int]] = {}
    for cases in holders.values():
        for key, channel in cases.items():
            for other in cases.keys() - {key}:
                same.setdefault((key, other), set()).add(channel)
    for (key, other), channels in same.items():
        twins[key].append(Twin(other, 1.0, tuple(sorted(channels))))
    if similarity is not None:
        keys = list(examined)
        for i, j, value in alike([examined[key].patterns for key in keys], similarity):
            if (keys[i], keys[j]) not in same:
                twins[keys[i]].append(Twin(keys[j], value))
                twins[keys[j]].append(Twin(keys[i], value))
    return twins


def select(
    candidates: Mapping[str, Candidate],
    exclusion: Exclusion,
    examined: Mapping[str, Examination],
    twins: Mapping[str, Sequence[Twin]],
    drop_near_twins: bool = True,
    min_confidence: float | None = None,
) -> Selection:
    """Decide case by case, in the order given: a case yields to its twins before it.

    candidates: manual ones first, then foreign, then pseudo-labelled; the images of `exclusion` before all, as kind
    `excluded`. Manual cases yield to excluded ones only. Excluded cases keep out their twins, too.
    """
    result = Selection()
    standing: dict[str, bool] = {}  # case that keeps out its twins -> whether it is itself kept out
    for key, case in candidates.items():
        if case.kind == EXCLUDED:
            standing[key] = True
            continue
        before = [twin for twin in twins[key] if twin.key in standing]
        binding = [twin for twin in before if twin.channels or drop_near_twins]
        if named := sorted(case.names & set(exclusion.names)):
            standing[key] = True
            result.dropped.append(Dropped(key, NAMED, f"{named[0]} in {exclusion.names[named[0]]}"))
        elif kept_out := next((twin for twin in binding if standing[twin.key]), None):
            standing[key] = True
            result.dropped.append(Dropped(key, SAME_IMAGES, describe(kept_out)))
        elif case.kind != MANUAL and binding:
            result.dropped.append(Dropped(key, DUPLICATE, describe(binding[0])))
        elif (sure := examined[key].confidence) is not None and min_confidence is not None and sure < min_confidence:
            result.dropped.append(Dropped(key, UNSURE, f"{sure:.3f} is below {min_confidence:g}"))
        else:
            standing[key] = False
            result.kept.append(key)
            if before:
                result.same_patient[key] = {twin.key for twin in before}
                result.remarks[key] = [f"kept beside {describe(twin)}" for twin in before]
    return result


def describe(twin: Twin) -> str:
    if twin.channels:
        return f"{twin.key}: the same voxels in channel {', '.join(map(str, twin.channels))}"
    return f"{twin.key}: looks the same ({twin.similarity:.3f})"
