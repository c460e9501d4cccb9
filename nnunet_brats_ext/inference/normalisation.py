"""Normalisations that a model's plans name and that nnU-Net does not have, when images are preprocessed for it.

nnU-Net looks its schemes up in its own package alone. So the plans of an imported model name one of nnU-Net's, for its
own commands, and beside it, under `NORMALISATION_KEY`, the one that the model was trained with.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_brats_ext.storage.errors import UserError

NORMALISATION_KEY = "brats_normalisation"
ZSCORE_NONZERO = "zscore-nonzero"


def z_scores_of_own_voxels(image: np.ndarray) -> np.ndarray:
    """Z-scores over the image's own non-zero voxels, 0 elsewhere: MONAI's NormalizeIntensity(nonzero=True).

    An image without deviation becomes 0. Gives float32.
    """
    inside = image != 0
    values = image[inside].astype(np.float64)
    scaled = np.zeros(image.shape, np.float32)
    if values.size and (deviation := values.std()) > 0:
        scaled[inside] = (values - values.mean()) / deviation
    return scaled


NORMALISATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {ZSCORE_NONZERO: z_scores_of_own_voxels}


class NormalisingPreprocessor(DefaultPreprocessor):
    """nnU-Net's preprocessing with another normalisation, a function of each channel (z, y, x)."""

    def __init__(self, normalise: Callable[[np.ndarray], np.ndarray]):
        super().__init__(verbose=False)
        self.normalise = normalise

    def _normalize(self, data: np.ndarray, *of_the_plans: Any) -> np.ndarray:
        return np.stack([self.normalise(channel) for channel in data])


def preprocessor_of(configuration: ConfigurationManager) -> DefaultPreprocessor:
    """The preprocessor that the plans name, with their normalisation of ours if they name one."""
    name = configuration.configuration.get(NORMALISATION_KEY)
    if name is None:
        return configuration.preprocessor_class(verbose=False)
    if name not in NORMALISATIONS:
        raise UserError(f"the plans name a normalisation {name!r}; there is {', '.join(NORMALISATIONS)}")
    return NormalisingPreprocessor(NORMALISATIONS[name])
