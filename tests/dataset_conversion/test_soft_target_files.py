"""Soft targets as files: what was written is read, and what is damaged or no soft target is refused."""

import numpy as np
import pytest

from nnunet_brats_ext.dataset_conversion.distillation.targets import LEVELS, read_soft_target, write_soft_target
from nnunet_brats_ext.storage.errors import UserError


def test_a_soft_target_is_read_as_it_was_written(tmp_path):
    regions = np.random.default_rng(0).random((3, 4, 5, 6))
    write_soft_target(tmp_path / "a.npz", regions)
    levels = read_soft_target(tmp_path / "a.npz")
    assert levels.dtype == np.uint8
    np.testing.assert_allclose(levels / LEVELS, regions, atol=0.5 / LEVELS)


def test_a_truncated_soft_target_is_named_with_what_to_do(tmp_path):
    file = tmp_path / "a.npz"
    write_soft_target(file, np.random.default_rng(0).random((3, 4, 5, 6)))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"a\.npz holds no array .*; run `nnunet_brats distill` again"):
        read_soft_target(file)


def test_probabilities_of_nnunet_are_no_soft_target(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", probabilities=np.zeros((3, 4, 5, 6), np.float32))
    with pytest.raises(UserError, match=r"holds float32 numbers of shape \(3, 4, 5, 6\), which are no soft target"):
        read_soft_target(tmp_path / "a.npz")
