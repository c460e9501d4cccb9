"""nnU-Net's plans: checked when they are read, and a configuration of them with all that it inherits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import check_schema, read_json

OF_A_MODEL = (  # what nnU-Net's prediction needs of a configuration
    "data_identifier", "preprocessor_name", "patch_size", "spacing", "normalization_schemes", "use_mask_for_norm",
    "resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities",
)  # fmt: skip
LONGEST = 100_000  # voxels along an axis, cases in a batch and features of a stage stay far below


def _lists(item: Mapping[str, Any], least: int = 0, most: int = 1000) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": least, "maxItems": most}


_TEXT, _OBJECT = {"type": "string"}, {"type": "object"}
_COUNT = {"type": "integer", "minimum": 1, "maximum": LONGEST}
_LENGTH = {"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST}
_COUNTS_PER_STAGE = {"anyOf": [_COUNT, _lists({"type": "integer", "minimum": 0, "maximum": LONGEST})]}
_STEPS = _lists({"anyOf": [_COUNT, _lists(_COUNT, 1, 3)]})
_AXES = _lists({"enum": [0, 1, 2]}, 3, 3)
_CONFIGURATION = {
    "type": "object",
    "properties": {
        "inherits_from": _TEXT,
        "data_identifier": _TEXT,
        "preprocessor_name": _TEXT,
        "batch_size": _COUNT,
        "patch_size": _lists(_COUNT, 2, 3),
        "spacing": _lists(_LENGTH, 2, 3),
        "median_image_size_in_voxels": _lists(_LENGTH, 2, 3),
        "normalization_schemes": _lists(_TEXT),
        "use_mask_for_norm": _lists({"type": "boolean"}),
        "resampling_fn_data": _TEXT,
        "resampling_fn_seg": _TEXT,
        "resampling_fn_probabilities": _TEXT,
        "resampling_fn_data_kwargs": _OBJECT,
        "resampling_fn_seg_kwargs": _OBJECT,
        "resampling_fn_probabilities_kwargs": _OBJECT,
        "architecture": {
            "type": "object",
            "required": ["network_class_name", "arch_kwargs"],
            "properties": {
                "network_class_name": _TEXT,
                "arch_kwargs": {
                    "type": "object",
                    "properties": {
                        "n_stages": _COUNT,
                        "features_per_stage": _COUNTS_PER_STAGE,
                        "n_conv_per_stage": _COUNTS_PER_STAGE,
                        "n_blocks_per_stage": _COUNTS_PER_STAGE,
                        "n_conv_per_stage_decoder": _COUNTS_PER_STAGE,
                        "strides": _STEPS,
                        "kernel_sizes": _STEPS,
                        "conv_op": _TEXT,
                        "norm_op": {"type": ["string", "null"]},
                        "nonlin": {"type": ["string", "null"]},
                        "dropout_op": {"type": ["string", "null"]},
                        "norm_op_kwargs": {"type": ["object", "null"]},
                        "nonlin_kwargs": {"type": ["object", "null"]},
                        "dropout_op_kwargs": {"type": ["object", "null"]},
                        "conv_bias": {"type": "boolean"},
                    },
                },
                "_kw_requires_import": _lists(_TEXT),
            },
        },
        "previous_stage": {"type": ["string", "null"]},
        "next_stage": {"anyOf": [{"type": ["string", "null"]}, _lists(_TEXT)]},
        "batch_dice": {"type": "boolean"},
        "splits_file": _TEXT,
    },
}
SCHEMA = {
    "type": "object",
    "required": ["configurations"],
    "properties": {
        "plans_name": _TEXT,
        "dataset_name": _TEXT,
        "configurations": {"type": "object", "additionalProperties": _CONFIGURATION},
        "transpose_forward": _AXES,
        "transpose_backward": _AXES,
        "image_reader_writer": _TEXT,
        "label_manager": _TEXT,
        "foreground_intensity_properties_per_channel": {"type": "object", "additionalProperties": _OBJECT},
    },
}


def read_plans(file: Path) -> dict[str, Any]:
    """The plans in a file; a UserError names the key that is not as nnU-Net writes it."""
    plans = read_json(file)
    check_schema(plans, SCHEMA, file)
    for name in plans["configurations"]:
        line = [name]
        while parent := plans["configurations"][line[-1]].get("inherits_from"):
            if parent not in plans["configurations"] or parent in line:
                raise UserError(f"{file}: configuration {name!r} inherits from {parent!r}, which cannot be followed")
            line.append(parent)
    return plans


def resolve(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with everything it inherits, as nnU-Net's PlansManager resolves it (which loads torch)."""
    configuration = dict(configurations[name])
    parent = configuration.pop("inherits_from", None)
    return resolve(configurations, parent) | configuration if parent else configuration


def find_configuration(plans: Mapping[str, Any], name: str, file: Path) -> dict[str, Any]:
    """The same, of the plans in a file; a UserError lists what there is where the name is not among them."""
    if name not in plans["configurations"]:
        raise UserError(f"{file} has no configuration {name!r}; it has {', '.join(plans['configurations'])}")
    return resolve(plans["configurations"], name)
