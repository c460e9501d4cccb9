"""Normalisations that plans name beside nnU-Net's."""

import numpy as np
import pytest
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_brats_ext.inference.normalisation import (
    NORMALISATION_KEY,
    ZSCORE_NONZERO,
    preprocessor_of,
    z_scores_of_own_voxels,
)
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.weights.plans import configuration


def planned(**more: str) -> ConfigurationManager:
    return ConfigurationManager(configuration((8, 8, 8), ((1, 1, 1), (2, 2, 2)), **more))


def test_z_scores_are_of_the_voxels_that_are_not_zero_and_can_be_taken_twice():
    image = np.random.default_rng(0).integers(-3, 4, (5, 6, 7)).astype(np.float32)
    scaled = z_scores_of_own_voxels(image)
    assert np.array_equal(scaled == 0, image == 0)
    assert scaled[image != 0].mean() == pytest.approx(0, abs=1e-6) and scaled[image != 0].std() == pytest.approx(1)
    assert np.allclose(z_scores_of_own_voxels(scaled), scaled, atol=1e-6)
    for flat in (np.zeros((3, 3, 3)), np.full((3, 3, 3), 7.0)):
        assert not z_scores_of_own_voxels(flat).any()


def test_the_preprocessor_is_nnunets_unless_the_plans_name_a_normalisation():
    hole = np.ones((5, 6, 7), np.float32)
    hole[1:4, 1:5, 1:6] = np.random.default_rng(0).integers(0, 4, (3, 4, 5))
    brain = np.zeros((1, 5, 6, 7))
    for more in ({}, {NORMALISATION_KEY: ZSCORE_NONZERO}):
        plans = planned(**more)
        scaled = preprocessor_of(plans)._normalize(np.stack([hole] * 4), brain, plans, {str(n): {} for n in range(4)})
        assert (scaled[0][hole == 0] == 0).all() == bool(more)


def test_a_normalisation_that_is_not_there_is_named():
    with pytest.raises(UserError, match="'minmax'; there is zscore-nonzero"):
        preprocessor_of(planned(**{NORMALISATION_KEY: "minmax"}))
