"""Normalisations that plans name beside nnU-Net's."""

import numpy as np
import pytest
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_brats_ext.dataset_conversion.normalisation import ZSCORE_NONZERO
from nnunet_brats_ext.inference.normalisation import OF_PLANS, preprocessor_of
from nnunet_brats_ext.storage.datasets import NORMALISATION_KEY
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.weights.plans import configuration


def planned(**more: str) -> ConfigurationManager:
    return ConfigurationManager(configuration((8, 8, 8), ((1, 1, 1), (2, 2, 2)), **more))


def test_the_preprocessor_is_nnunets_unless_the_plans_name_a_normalisation():
    hole = np.ones((5, 6, 7), np.float32)
    hole[1:4, 1:5, 1:6] = np.random.default_rng(0).integers(0, 4, (3, 4, 5))
    brain = np.zeros((1, 5, 6, 7))
    for more in ({}, {NORMALISATION_KEY: ZSCORE_NONZERO}):
        plans = planned(**more)
        scaled = preprocessor_of(plans)._normalize(np.stack([hole] * 4), brain, plans, {str(n): {} for n in range(4)})
        assert (scaled[0][hole == 0] == 0).all() == bool(more)


def test_a_normalisation_that_is_not_there_is_named():
    for name in ("minmax", "zscore-volume"):
        with pytest.raises(UserError, match=f"'{name}'; there is {', '.join(OF_PLANS)}"):
            preprocessor_of(planned(**{NORMALISATION_KEY: name}))
