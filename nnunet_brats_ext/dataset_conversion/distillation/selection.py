"""Which cases enter the new data set: pure decisions on what was read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nnunet_brats_ext.dataset_conversion.distillation.examination import Examination
from nnunet_brats_ext.dataset_conversion.distillation.fingerprints import similar_pairs
from nnunet_brats_ext.dataset_conversion.distillation.sources import EXCLUDED, MANUAL, Candidate, Exclusion

NAMED, SAME_IMAGES, DUPLICATE = "excluded by name", "excluded by images", "duplicate"  # reasons
LOW_CONFIDENCE = "low confidence"


@dataclass(frozen=True)
class Duplicate:
    """Another case with the same images: `similarity` is 1 where a channel is the same voxel for voxel.

    channels: those that are the same; empty where the two only look the same.
    """

    key: str
    similarity: float
    channels: tuple[int, ...] = ()

    def describe(self) -> str:
        if self.channels:
            return f"{self.key}: the same voxels in channel {', '.join(map(str, self.channels))}"
        return f"{self.key}: looks the same ({self.similarity:.3f})"


@dataclass(frozen=True)
class Dropped:
    """A case that was left out. `because` quotes the evidence."""

    key: str
    reason: str
    because: str


@dataclass
class Selection:
    """kept: keys in the order given. same_patient: kept case -> the cases that it is a duplicate of."""

    kept: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    same_patient: dict[str, set[str]] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)


def find_duplicates(examined: Mapping[str, Examination], similarity: float | None) -> dict[str, list[Duplicate]]:
    """Case -> the cases with the same images, in both directions; also those that look the same, if a number is given.

    One equal channel makes two cases duplicates: their other channels may have been registered again.
    """
    duplicates: dict[str, list[Duplicate]] = {key: [] for key in examined}
    same = _same_channels(examined)
    for (key, other), channels in same.items():
        duplicates[key].append(Duplicate(other, 1.0, tuple(sorted(channels))))
    if similarity is not None:
        keys = list(examined)
        for i, j, value in similar_pairs([examined[key].patterns for key in keys], similarity):
            if (keys[i], keys[j]) not in same:
                duplicates[keys[i]].append(Duplicate(keys[j], value))
                duplicates[keys[j]].append(Duplicate(keys[i], value))
    return duplicates


def _same_channels(examined: Mapping[str, Examination]) -> dict[tuple[str, str], set[int]]:
    """(case, other case) -> the channels of the case whose content the other one has in some channel, too."""
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
    return same


def select(
    candidates: Mapping[str, Candidate],
    exclusion: Exclusion,
    examined: Mapping[str, Examination],
    duplicates: Mapping[str, Sequence[Duplicate]],
    drop_near_duplicates: bool = True,
    min_confidence: float | None = None,
) -> Selection:
    """Decide case by case, in the order given: of duplicates the first one stays.

    candidates: the images of `exclusion` first, as kind `excluded`, then manual, foreign and pseudo-labelled cases.
    Manual cases are dropped only if they are excluded. A duplicate of an excluded case is excluded, too.
    """
    result = Selection()
    seen: dict[str, bool] = {}  # case whose duplicates are dropped -> whether it is excluded itself
    for key, case in candidates.items():
        if case.kind == EXCLUDED:
            seen[key] = True
            continue
        before = [duplicate for duplicate in duplicates[key] if duplicate.key in seen]
        counted = [duplicate for duplicate in before if duplicate.channels or drop_near_duplicates]
        if named := sorted(case.names & set(exclusion.names)):
            seen[key] = True
            result.dropped.append(Dropped(key, NAMED, f"{named[0]} in {exclusion.names[named[0]]}"))
        elif excluded := next((duplicate for duplicate in counted if seen[duplicate.key]), None):
            seen[key] = True
            result.dropped.append(Dropped(key, SAME_IMAGES, excluded.describe()))
        elif case.kind != MANUAL and counted:
            result.dropped.append(Dropped(key, DUPLICATE, counted[0].describe()))
        elif (sure := examined[key].confidence) is not None and min_confidence is not None and sure < min_confidence:
            result.dropped.append(Dropped(key, LOW_CONFIDENCE, f"{sure:.3f} is below {min_confidence:g}"))
        else:
            seen[key] = False
            result.kept.append(key)
            if before:
                result.same_patient[key] = {duplicate.key for duplicate in before}
                result.remarks[key] = [f"kept beside {duplicate.describe()}" for duplicate in before]
    return result
