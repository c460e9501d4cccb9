"""Post-processing rules: pure functions of a case that return its new label map (z, y, x), numbered as trained.

Most of them give an implausible part of a region to the region around it. ET that is dropped becomes NCR, a dropped
core becomes oedema, a dropped tumour becomes background; so the regions around it never change.
A volume must be *below* its threshold to be dropped. Thresholds in voxels count voxels whatever their size (1 mm^3 in
BraTS); those in ml use the spacing. Components touch by a face, an edge or a corner (26 neighbours).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage
from scipy.cluster.vq import kmeans, vq

from nnunet_brats_ext.brats import BACKGROUND, ED, LABEL_SCHEMES, NCR, SEQUENCES, LabelScheme
from nnunet_brats_ext.storage.errors import UserError

CONNECTIVITY = np.ones((3, 3, 3), dtype=bool)
ROUNDING = 1e-9  # 0.1 * 30 is a little more than 3: a component of exactly a tenth must not fall below it


@dataclass(frozen=True)
class RuleInput:
    """The arrays of one case that a rule may look at.

    labels (z, y, x) as trained. probabilities: region -> (z, y, x), empty where there are none. images (channel, z, y,
    x), with `t1ce` the channel of the contrast-enhanced T1; None where no rule needs them.
    """

    labels: np.ndarray
    voxel_volume_mm3: float = 1.0
    probabilities: Mapping[str, np.ndarray] = field(default_factory=dict)
    images: np.ndarray | None = None
    t1ce: int = SEQUENCES.index("T1ce")
    scheme: LabelScheme = LABEL_SCHEMES["glioma_2017"]

    def mask(self, region: str) -> np.ndarray:
        if region not in self.scheme.regions:
            raise UserError(f"no region {region} among {', '.join(self.scheme.regions)}")
        return np.isin(self.labels, self.scheme.regions[region])

    def probability(self, region: str) -> np.ndarray:
        if region not in self.probabilities:
            raise UserError(f"the rule needs the probabilities of {region}: predict with --save_probabilities")
        return self.probabilities[region]


def small_region(
    case: RuleInput,
    *,
    region: str = "ET",
    min_voxels: float | None = None,
    min_ml: float | None = None,
    unless_mean_probability: float | None = None,
) -> np.ndarray:
    """Drop a region that is implausibly small as a whole; an empty one stays empty.

    For ET: relabelled as NCR below 500 voxels by Lyu & Shu 2020 (https://arxiv.org/abs/2011.02881), up to 32, that is
    below 33, by Lachinov et al. 2019 (https://arxiv.org/abs/2002.03688). They leave what the other regions say there;
    a label map holds that only inside TC. unless_mean_probability: keep a region with this mean probability or more.
    """
    mask = case.mask(region)
    small = mask.sum() < _threshold(case, min_voxels, min_ml)
    if small and unless_mean_probability is not None and mask.any():
        small = case.probability(region)[mask].mean(dtype=np.float64) < unless_mean_probability
    return _dropped(case, region, mask) if small else case.labels


def small_components(
    case: RuleInput,
    *,
    region: str = "WT",
    min_voxels: float | None = None,
    min_ml: float | None = None,
    fraction_of_largest: float | None = None,
    fraction_of_region: float | None = None,
    unless_mean_probability: float | None = None,
) -> np.ndarray:
    """Drop the connected components of a region that are implausibly small; the smallest threshold given applies.

    Zhou et al. 2020 (https://arxiv.org/abs/1906.01796, step 1): min(2000, a tenth of the largest). Lachinov et al.
    2019 (https://arxiv.org/abs/2002.03688): a tenth of all foreground (more than ten equal components
    all go). unless_mean_probability: as in `small_region`.
    """
    mask = case.mask(region)
    components, volumes = _components(mask)
    if not len(volumes):
        return case.labels
    relative = [(fraction_of_largest, volumes.max()), (fraction_of_region, volumes.sum())]
    limits = [fraction * volume for fraction, volume in relative if fraction is not None]
    drop = volumes < _threshold(case, min_voxels, min_ml, *limits)
    if unless_mean_probability is not None:
        drop &= _mean_of_components(case.probability(region), components, volumes) < unless_mean_probability
    return _dropped(case, region, _chosen(components, drop))


def unlikely_components(case: RuleInput, *, region: str, min_mean_probability: float) -> np.ndarray:
    """Drop the connected components of a region whose mean probability of that region is below a threshold."""
    components, volumes = _components(case.mask(region))
    if not len(volumes):
        return case.labels
    means = _mean_of_components(case.probability(region), components, volumes)
    return _dropped(case, region, _chosen(components, means < min_mean_probability))


def oedema_to_core(
    case: RuleInput,
    *,
    max_et_fraction: float = 0.1,
    max_component_et_fraction: float = 0.05,
    max_component_et_ml: float = 1.0,
) -> np.ndarray:
    """Relabel the darker half of the oedema as NCR in tumours with little ET: Zhou et al. 2020, step 2.

    https://arxiv.org/abs/1906.01796. Where ET makes up less than a tenth of the tumour, the oedema of each component
    with less than 5 % and less than 1 ml of ET is split in two by K-means over all sequences, and the cluster
    that is darker on T1ce becomes NCR. The split is made whether or not there are two clusters, so about half the
    oedema of such a component becomes core: test the rule first (`nnunet_brats tune`).

    WT and ET stay as they are, and TC only grows. No tumour, fewer than two oedema voxels or no two different ones:
    unchanged. K-means starts from the two sides of the mean along the principal axis and needs no random numbers.
    """
    if case.images is None:
        raise UserError("oedema-to-core needs the images of the case: give --images")
    tumour, et = case.mask("WT"), case.mask("ET")
    if not tumour.any() or et.sum() >= max_et_fraction * tumour.sum() * (1 - ROUNDING):
        return case.labels
    labels = case.labels.copy()
    brain = [_z_scored(channel) for channel in case.images]
    components, volumes = _components(tumour)
    et_volumes = np.bincount(components[et], minlength=len(volumes) + 1)[1:]
    limits = np.minimum(max_component_et_fraction * volumes, _threshold(case, None, max_component_et_ml))
    chosen = et_volumes < limits * (1 - ROUNDING)
    for component in np.flatnonzero(chosen) + 1:
        oedema = np.nonzero((components == component) & (case.labels == ED))
        cluster = _two_clusters(np.stack([channel[oedema] for channel in brain], axis=1))
        if cluster is None:
            continue
        t1ce = case.images[case.t1ce][oedema]
        darker = np.argmin([t1ce[cluster == 0].mean(), t1ce[cluster == 1].mean()])
        labels[tuple(axis[cluster == darker] for axis in oedema)] = NCR
    return labels


def _threshold(case: RuleInput, min_voxels: float | None, min_ml: float | None, *others: float) -> float:
    """The smallest of the thresholds that were given, in voxels."""
    in_ml = None if min_ml is None else min_ml * 1000 / case.voxel_volume_mm3
    given = [value for value in (min_voxels, in_ml, *others) if value is not None]
    if not given:
        raise UserError("the rule needs a threshold, such as min_voxels or min_ml")
    return min(given) * (1 - ROUNDING)


def _dropped(case: RuleInput, region: str, part: np.ndarray) -> np.ndarray:
    """The label map with a part of a region given to the smallest region around it, or to the background."""
    regions = case.scheme.regions
    around = [name for name in regions if set(regions[name]) > set(regions[region])]
    paint = dict(zip(regions, case.scheme.paint, strict=True))
    label = paint[min(around, key=lambda name: len(regions[name]))] if around else BACKGROUND
    return np.where(part, np.uint8(label), case.labels)


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Component numbers (z, y, x) from 1, and the volume of each in voxels."""
    numbers = np.zeros(mask.shape, dtype=np.int32)
    for box in ndimage.find_objects(mask.astype(np.uint8)):  # one box at most; labelling only that is much faster
        ndimage.label(mask[box], CONNECTIVITY, output=numbers[box])
    return numbers, np.bincount(numbers[mask])[1:]


def _chosen(components: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return np.concatenate([[False], chosen])[components]


def _mean_of_components(probability: np.ndarray, components: np.ndarray, volumes: np.ndarray) -> np.ndarray:
    inside = components > 0
    return np.bincount(components[inside], weights=probability[inside])[1:] / volumes


def _z_scored(channel: np.ndarray) -> np.ndarray:
    """Zero mean and unit deviation over the non-zero voxels, so that every sequence counts alike in the distances."""
    brain = channel[channel != 0]
    deviation = brain.std() if brain.size else 0
    if not deviation:
        return np.zeros_like(channel)
    return (channel - brain.mean()) / deviation


def _two_clusters(features: np.ndarray) -> np.ndarray | None:
    """The cluster (0 or 1) of each row of (voxel, channel); None where there are no two different rows."""
    features = features.astype(np.float64)
    if len(features) < 2 or (features == features[0]).all():
        return None
    centre = features.mean(0)
    _, _, axes = np.linalg.svd(np.cov(features, rowvar=False).reshape(features.shape[1], -1))
    side = (features - centre) @ axes[0] > 0
    centres, _ = kmeans(features, np.stack([features[~side].mean(0), features[side].mean(0)]))
    return vq(features, centres)[0]
