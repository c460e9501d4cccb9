"""Data sets: BraTS releases become data sets of nnU-Net, predictions become submissions, and what else makes data.

    from nnunet_brats_ext.dataset_conversion import convert

    dataset = convert("MICCAI_BraTS2020_TrainingData", 137).folder

The functions print nothing, take paths as text, and load when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_brats_ext.dataset_conversion.case_filtering import filter_cases
    from nnunet_brats_ext.dataset_conversion.checking import check
    from nnunet_brats_ext.dataset_conversion.conversion import convert
    from nnunet_brats_ext.dataset_conversion.distillation.distill import distill
    from nnunet_brats_ext.dataset_conversion.phantoms.folder import write_phantoms
    from nnunet_brats_ext.dataset_conversion.preparation import prepare
    from nnunet_brats_ext.dataset_conversion.restoration import restore

__all__ = ["check", "convert", "distill", "filter_cases", "prepare", "restore", "write_phantoms"]

_MODULES = {
    "check": "checking",
    "convert": "conversion",
    "distill": "distillation.distill",
    "filter_cases": "case_filtering",
    "prepare": "preparation",
    "restore": "restoration",
    "write_phantoms": "phantoms.folder",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
