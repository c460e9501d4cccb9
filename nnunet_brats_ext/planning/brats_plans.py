"""nnU-Net's plans with the papers' configurations in them; every function here is free of files."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from math import ceil
from typing import Any

from nnunet_brats_ext.papers import Configuration, configurations, stages_of
from nnunet_brats_ext.planning.fitting import Cases, Fit, fit
from nnunet_brats_ext.planning.topology import Topology
from nnunet_brats_ext.storage.plans import resolve

MOST_FEATURES = {2: 512, 3: 320}  # nnU-Net's own networks, by the number of axes


def add_configurations(
    plans: Mapping[str, Any],
    name: str,
    fingerprint: Mapping[str, Any] | None = None,
    gpu_memory_gb: float | None = None,
    gpus: Mapping[str, int] = {},
) -> tuple[dict[str, Any], dict[str, Fit]]:
    """The plans under a new name, every configuration kept and the papers' added; and what was chosen for each.

    fingerprint: nnU-Net's, for the size of the largest case; without it the median counts as the largest. gpus: how
    many share a batch of a paper's configuration, if not one.
    A paper's configuration whose base the plans lack, such as 3d_fullres of 2-D data, is left out.
    """
    result = deepcopy(dict(plans)) | {"plans_name": name}
    fits = {}
    for paper in configurations().values():
        if paper.base in plans["configurations"]:
            base = resolve(plans["configurations"], paper.base)
            cases = cases_of(base, plans["transpose_forward"], fingerprint)
            fits[paper.name] = fit(paper, cases, gpu_memory_gb, gpus.get(paper.name, 1))
            entry = as_configuration(paper, fits[paper.name], base)
            if paper.resampled:
                entry |= resampled_data(base, cases, entry["patch_size"], f"{name}_{paper.name}")
            result["configurations"][paper.name] = entry
    return result, fits


def cases_of(base: Mapping[str, Any], transpose: Sequence[int], fingerprint: Mapping[str, Any] | None) -> Cases:
    """The sizes of the cases at the configuration's spacing; of their slices, if the configuration is 2-D."""
    spacing, median = tuple(base["spacing"]), tuple(base["median_image_size_in_voxels"])
    axes = list(transpose)[-len(spacing) :]
    sizes = [
        [round(case[axis] * old[axis] / new) for axis, new in zip(axes, spacing, strict=True)]
        for case, old in zip(fingerprint["shapes_after_crop"], fingerprint["spacings"], strict=True)
    ] if fingerprint else [[ceil(length) for length in median]]  # fmt: skip
    return Cases(spacing, median, tuple(max(lengths) for lengths in zip(*sizes, strict=True)))


def as_configuration(paper: Configuration, chosen: Fit, base: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of the plans: what differs from its base; the rest, preprocessed data included, is inherited."""
    return {
        "inherits_from": paper.base,
        **stages_of(paper.name),
        "patch_size": list(chosen.topology.patch_size),
        "batch_size": chosen.batch_size,
        "architecture": rebuild(base["architecture"], chosen.topology),
    }


def resampled_data(
    base: Mapping[str, Any], cases: Cases, patch_size: Sequence[int], data_identifier: str
) -> dict[str, Any]:
    """Preprocessed data of a configuration's own, at a spacing at which the largest case just fills the patch.

    The ratio of the axes is not kept. Images are interpolated linearly and labels take the nearest, as Lachinov 2019.
    """
    zoom = [length / largest for length, largest in zip(patch_size, cases.largest, strict=True)]
    orders = {"resampling_fn_data_kwargs": 1, "resampling_fn_seg_kwargs": 0}
    return {
        "data_identifier": data_identifier,
        "spacing": [old / factor for old, factor in zip(cases.spacing, zoom, strict=True)],
        "median_image_size_in_voxels": [old * factor for old, factor in zip(cases.median, zoom, strict=True)],
        **{key: {**base[key], "order": order} for key, order in orders.items() if "order" in base.get(key, {})},
    }


def rebuild(architecture: Mapping[str, Any], topology: Topology) -> dict[str, Any]:
    """nnU-Net's own network for other strides: more stages go on as the last one did, fewer are cut."""
    given = architecture["arch_kwargs"]
    stages, axes = len(topology.strides), len(topology.patch_size)
    features = list(given["features_per_stage"])
    while len(features) < stages:
        features.append(min(2 * features[-1], MOST_FEATURES[axes]))
    # PlainConvUNet counts convolutions per stage and ResidualEncoderUNet blocks; both count those of the decoder.
    lengths = {"n_conv_per_stage": stages, "n_blocks_per_stage": stages, "n_conv_per_stage_decoder": stages - 1}
    counts = {key: _stretch(given[key], length) for key, length in lengths.items() if key in given}
    changed = {
        "n_stages": stages,
        "features_per_stage": features[:stages],
        "kernel_sizes": [list(kernel) for kernel in topology.kernel_sizes],
        "strides": [list(stride) for stride in topology.strides],
        **counts,
    }
    return {**architecture, "arch_kwargs": {**given, **changed}}


def _stretch(counts: Sequence[int], length: int) -> list[int]:
    last = counts[-1] if counts else 1  # a base of one stage has no decoder
    return [*counts, *[last] * length][:length]
