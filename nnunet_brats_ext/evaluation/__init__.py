"""Scores as the BraTS challenges compute them: of two masks, of a case, of folders; rankings, and a report.

    from nnunet_brats_ext.evaluation import dice, evaluate_case, evaluate_folders, hd95

    dice(reference == 3, prediction == 3)
    hd95(reference == 3, prediction == 3, spacing_mm=(1.0, 1.0, 1.0))
    evaluate_case(reference, prediction, (1.0, 1.0, 1.0), preset="brats2023")["ET"]["lesionwise_dice"]
    evaluate_folders("labelsTs", "predictions")["summary"]["WT"]["dice"]["mean"]
    evaluate_folders("labelsTs", "predictions", preset=find_preset("brats2024", "met"), labels="released")

Arrays are (z, y, x), spacings in mm in the same order. `preset_names()` lists the presets; `find_preset` gives one to
look into or to change, which stands for its name everywhere.
"""

from nnunet_brats_ext.evaluation.by_sequences import evaluate_by_sequences
from nnunet_brats_ext.evaluation.evaluate import evaluate_folders
from nnunet_brats_ext.evaluation.metrics import dice, hd95, nsd, sensitivity, specificity
from nnunet_brats_ext.evaluation.presets import Preset, find_preset, preset_names
from nnunet_brats_ext.evaluation.scoring import evaluate_case, lesionwise

__all__ = [
    "Preset",
    "dice",
    "evaluate_by_sequences",
    "evaluate_case",
    "evaluate_folders",
    "find_preset",
    "hd95",
    "lesionwise",
    "nsd",
    "preset_names",
    "sensitivity",
    "specificity",
]
