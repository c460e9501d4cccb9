"""Scores as the BraTS challenges compute them: of two masks, of a case, of folders; rankings, and a report.

    from nnunet_brats_ext.evaluation import dice, evaluate_case, evaluate_folders, hd95

    dice(reference == 3, prediction == 3)
    hd95(reference == 3, prediction == 3, spacing_mm=(1.0, 1.0, 1.0))
    evaluate_case(reference, prediction, (1.0, 1.0, 1.0), preset="brats2023")["ET"]["lesionwise_dice"]
    evaluate_folders("labelsTs", "predictions")["summary"]["WT"]["dice"]["mean"]
    evaluate_folders("labelsTs", "predictions", preset=find_preset("brats2024", "met"), labels="released")

Arrays are (z, y, x), spacings in mm in the same order. `preset_names()` lists the presets; `find_preset` gives one to
look into or to change, which stands for its name everywhere. The functions that end in `_table` answer one question
each, in rows that `pandas.DataFrame` takes as they are.
"""

from nnunet_brats_ext.evaluation.by_sequences import evaluate_by_sequences
from nnunet_brats_ext.evaluation.evaluate import evaluate_folders, evaluate_models
from nnunet_brats_ext.evaluation.metrics import dice, hd95, nsd, ppv, sensitivity, specificity
from nnunet_brats_ext.evaluation.presets import Preset, find_preset, preset_names
from nnunet_brats_ext.evaluation.scoring import evaluate_case, lesionwise
from nnunet_brats_ext.evaluation.tables import (
    case_table,
    detection_table,
    lesion_table,
    lesions_of,
    region_table,
    summary_table,
    volume_table,
)

__all__ = [
    "Preset",
    "case_table",
    "detection_table",
    "dice",
    "evaluate_by_sequences",
    "evaluate_case",
    "evaluate_folders",
    "evaluate_models",
    "find_preset",
    "hd95",
    "lesion_table",
    "lesions_of",
    "lesionwise",
    "nsd",
    "ppv",
    "preset_names",
    "region_table",
    "sensitivity",
    "specificity",
    "summary_table",
    "volume_table",
]
