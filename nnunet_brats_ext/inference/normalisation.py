"""Normalisations that a model's plans name and that nnU-Net does not have, when images are preprocessed for it.

nnU-Net looks its schemes up in its own package alone. So the plans of an imported model name one of nnU-Net's, for its
own commands, and beside it, under `NORMALISATION_KEY`, the one that the model was trained with.
"""

from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_brats_ext.dataset_conversion.normalisation import NORMALISATIONS, Normalisation
from nnunet_brats_ext.storage.datasets import NORMALISATION_KEY
from nnunet_brats_ext.storage.errors import UserError

# Others depend on the zeros around the brain, which nnU-Net has cropped before it normalises.
OF_PLANS = {name: one for name, one in NORMALISATIONS.items() if one.keeps_zeros}


class NormalisingPreprocessor(DefaultPreprocessor):
    """nnU-Net's preprocessing with another normalisation, channel by channel."""

    def __init__(self, normalisation: Normalisation):
        super().__init__(verbose=False)
        self.normalisation = normalisation

    def _normalize(self, data: np.ndarray, *of_the_plans: Any) -> np.ndarray:
        return np.stack([self.normalisation.function(channel) for channel in data])


def preprocessor_of(configuration: ConfigurationManager) -> DefaultPreprocessor:
    """The preprocessor that the plans name, with their normalisation of ours if they name one."""
    name = configuration.configuration.get(NORMALISATION_KEY)
    if name is None:
        return configuration.preprocessor_class(verbose=False)
    if name not in OF_PLANS:
        raise UserError(f"the plans name a normalisation {name!r}; there is {', '.join(OF_PLANS)}")
    return NormalisingPreprocessor(OF_PLANS[name])
