"""Prediction with trained models: `predict` as a function, and nnU-Net's predictor with what the papers do differently.

Imported when asked for, so that options and help never wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_brats_ext.inference.attention import show_attention
    from nnunet_brats_ext.inference.options import AttentionOptions, ChooseOptions, PredictOptions
    from nnunet_brats_ext.inference.prediction import predict
    from nnunet_brats_ext.inference.predictor import BraTSPredictor
    from nnunet_brats_ext.inference.selection import choose

__all__ = [
    "AttentionOptions",
    "BraTSPredictor",
    "ChooseOptions",
    "PredictOptions",
    "choose",
    "predict",
    "show_attention",
]
PLACES = {
    "AttentionOptions": "options",
    "BraTSPredictor": "predictor",
    "ChooseOptions": "options",
    "PredictOptions": "options",
    "choose": "selection",
    "predict": "prediction",
    "show_attention": "attention",
}


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{PLACES[name]}"), name)
