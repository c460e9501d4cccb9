"""Rules on predictions: probabilities and label maps of networks become better ones, or maps of their uncertainty.

On arrays: `mean`, `majority`, `two_pass`, `nested` combine predictions, `small_region` and its like post-process one
(`RuleInput`), `mean_and_uncertainty` and `filtered_curves` say how sure an ensemble is and how right it is to be so.
On folders, as nnU-Net writes them: `ensemble`, `postprocess`, `map_uncertainty`. They print nothing; torch is not
loaded.
"""

from nnunet_brats_ext.predictions.ensemble import ensemble
from nnunet_brats_ext.predictions.folders import PredictionFolder, open_folders
from nnunet_brats_ext.predictions.fusion import majority, mean, nested, paint_masks, two_pass
from nnunet_brats_ext.predictions.heads import convert_head, label_probabilities, paint
from nnunet_brats_ext.predictions.postprocess import apply_rules, postprocess
from nnunet_brats_ext.predictions.rule_sets import RuleSet, collect_rules, find_rules
from nnunet_brats_ext.predictions.rules import (
    RuleInput,
    oedema_to_core,
    small_components,
    small_region,
    unlikely_components,
)
from nnunet_brats_ext.predictions.uncertainty import (
    binary_entropy,
    filtered_curves,
    mean_and_uncertainty,
    qu_brats_score,
)
from nnunet_brats_ext.predictions.uncertainty_maps import map_uncertainty

__all__ = [
    "PredictionFolder",
    "RuleInput",
    "RuleSet",
    "apply_rules",
    "binary_entropy",
    "collect_rules",
    "convert_head",
    "ensemble",
    "filtered_curves",
    "find_rules",
    "label_probabilities",
    "majority",
    "map_uncertainty",
    "mean",
    "mean_and_uncertainty",
    "nested",
    "oedema_to_core",
    "open_folders",
    "paint",
    "paint_masks",
    "postprocess",
    "qu_brats_score",
    "small_components",
    "small_region",
    "two_pass",
    "unlikely_components",
]
