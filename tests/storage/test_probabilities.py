"""Probabilities in .npz files: what nnU-Net writes is read, and what is no probability is refused."""

import numpy as np
import pytest

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import probabilities_shape, read_probabilities


def half(**changes) -> np.ndarray:
    values = np.full((3, 2, 2, 2), 0.5, changes.pop("dtype", np.float32))
    for value in changes.values():
        values[1, 0, 0, 0] = value
    return values


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
def test_probabilities_are_read_as_float32(tmp_path, dtype):
    stored = np.random.default_rng(0).integers(0, 2, (3, 4, 5, 6)).astype(dtype)
    np.savez_compressed(tmp_path / "a.npz", probabilities=stored)
    found = read_probabilities(tmp_path / "a.npz")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, stored)
    assert probabilities_shape(tmp_path / "a.npz") == (3, 4, 5, 6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (half(value=np.nan), "holds probabilities that are not a number; predict that case again"),
        (half(value=np.inf, dtype=np.float16), "holds probabilities that are not a number"),  # an overflow
        (half(value=3.2), "holds values from 0 to 3.2, which are no probabilities; are they logits?"),
        (half(value=-7), "holds values from -7 to 0.5, which are no probabilities"),
        (half(dtype=np.complex64), "holds complex64 numbers instead of probabilities"),
        (half(dtype=bool), "holds bool numbers instead of probabilities"),
        (half()[0], r"holds probabilities of shape \(2, 2, 2\); expected \(channel, z, y, x\)"),
        (np.array(["a"]), "holds <U1 numbers instead of probabilities"),
    ],
)
def test_what_is_no_probability_is_refused(tmp_path, values, message):
    np.savez_compressed(tmp_path / "a.npz", probabilities=values)
    with pytest.raises(UserError, match=f"a.npz {message}"):
        read_probabilities(tmp_path / "a.npz")


def test_rounding_outside_the_range_is_accepted(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", probabilities=half(low=-0.0005, high=1.0009))
    read_probabilities(tmp_path / "a.npz")


def test_archives_that_cannot_be_read_are_named(tmp_path):
    np.savez(tmp_path / "whole.npz", probabilities=half())
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "text.npz").write_bytes(b"no archive")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    (tmp_path / "damaged.npz").write_bytes(damaged)
    np.savez(tmp_path / "other.npz", softmax=half())
    np.savez(tmp_path / "objects.npz", probabilities=np.array([object()]))
    for name in ("text", "empty", "cut", "damaged", "other", "objects"):
        with pytest.raises(UserError, match=rf"{name}.npz holds no array 'probabilities' that can be read: "):
            read_probabilities(tmp_path / f"{name}.npz")
    for name in ("text", "empty", "cut", "other"):
        with pytest.raises(UserError, match=rf"{name}.npz holds no array 'probabilities' that can be read: "):
            probabilities_shape(tmp_path / f"{name}.npz")
    for read in (read_probabilities, probabilities_shape):
        with pytest.raises(UserError, match=r"gone.npz does not exist; predict with --save_probabilities"):
            read(tmp_path / "gone.npz")
