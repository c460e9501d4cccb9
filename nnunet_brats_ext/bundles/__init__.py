"""Trained systems to hand on: one file with models, stages and rules; a patient in, a label map out; containers.

Imported when asked for, so that options and help never wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_brats_ext.bundles.archive import open_bundle
    from nnunet_brats_ext.bundles.segmentation import segment
    from nnunet_brats_ext.bundles.writing import bundle

__all__ = ["bundle", "open_bundle", "segment"]
PLACES = {"bundle": "writing", "open_bundle": "archive", "segment": "segmentation"}


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{PLACES[name]}"), name)
