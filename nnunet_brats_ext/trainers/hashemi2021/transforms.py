"""Several random maps of a slice in one interpolation: Hashemi et al. 2021, https://github.com/Nima-Hs/BraTS.

Coordinates are (x, y) in pixels from the slice's centre.
"""

from collections.abc import Sequence
from functools import cache, reduce

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.nn.functional import grid_sample

FLIP_PROBABILITY = 0.5
TRANSLATION = 0.1  # of the axis, at most, to either side; so are the others
SCALING = 0.1
SHEAR = 0.05
ROTATION_DEGREES = 15.0
ELASTIC_ALPHA, ELASTIC_SIGMA = 600.0, 30.0  # moves a pixel by about 3


class ComposedWarp(BasicTransform):
    """The nine transforms of Hashemi et al. 2021 (https://github.com/Nima-Hs/BraTS), interpolated once.

    Left-right flip, translation, scaling and shear along either axis, rotation, elastic deformation: each maps the
    coordinates of the one before it, and the last coordinates are interpolated. Image (c, y, x) linearly, segmentation
    (s, y, x) by the nearest pixel. Beyond the border the value on the border is taken, because zero is not the
    background of normalised images.

    truncated: as the authors' release, which keeps coordinates as whole pixels from the corner, cut towards zero after
    every transform, and looks images up by the nearest pixel too.

    Random numbers are numpy's: nnU-Net's worker processes would all draw the same from torch.
    """

    def __init__(self, truncated: bool = False):
        super().__init__()
        self.truncated = truncated

    def get_parameters(self, **data_dict) -> dict:
        size = tuple(data_dict["image"].shape[1:])
        rng = np.random.default_rng(np.random.randint(2**31, size=4))
        steps, displacement = random_steps(rng, size), random_displacement(rng, size)
        grid = truncated_grid(steps, displacement) if self.truncated else sampling_grid(compose(steps), displacement)
        return {"grid": grid}

    def _apply_to_image(self, img: Tensor, grid: Tensor) -> Tensor:  # type: ignore[override]
        mode = "nearest" if self.truncated else "bilinear"
        return grid_sample(img[None], grid, mode=mode, padding_mode="border", align_corners=True)[0]

    def _apply_to_segmentation(self, segmentation: Tensor, grid: Tensor) -> Tensor:  # type: ignore[override]
        warped = grid_sample(
            segmentation[None].float(), grid, mode="nearest", padding_mode="border", align_corners=True
        )
        return warped[0].to(segmentation.dtype)


def random_steps(rng: np.random.Generator, size: tuple[int, int]) -> list[np.ndarray]:
    """Flip, translation, scaling, shear along x, along y, and rotation, in turn: matrices (3, 3) for (x, y, 1).

    Together they map a pixel of the result to its source in the slice. Translation and scaling are of both axes.
    """
    height, width = size
    flip = -1 if rng.random() < FLIP_PROBABILITY else 1
    scale_x, scale_y = rng.uniform(1 - SCALING, 1 + SCALING, 2)
    shear_x, shear_y = rng.uniform(-SHEAR, SHEAR, 2)
    angle = np.deg2rad(rng.uniform(-ROTATION_DEGREES, ROTATION_DEGREES))
    cos, sin = np.cos(angle), np.sin(angle)
    shift_x, shift_y = rng.uniform(-TRANSLATION, TRANSLATION, 2) * (width, height)
    steps = (
        [[flip, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 0, shift_x], [0, 1, shift_y], [0, 0, 1]],
        [[1 / scale_x, 0, 0], [0, 1 / scale_y, 0], [0, 0, 1]],
        [[1, shear_x, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 0, 0], [shear_y, 1, 0], [0, 0, 1]],
        [[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]],
    )
    return [np.array(step) for step in steps]


def compose(steps: Sequence[np.ndarray]) -> np.ndarray:
    """All steps, from the first to the last, as one matrix."""
    return reduce(lambda done, step: step @ done, steps)


def random_displacement(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Elastic deformation of Simard et al. 2003 in pixels, (2, y, x): uniform noise, smoothed with zeros around it."""
    noise = rng.random((2, *size), dtype=np.float32) * 2 - 1
    rows, columns = (smoothing_matrix(length, ELASTIC_SIGMA) for length in size)
    return np.float32(ELASTIC_ALPHA) * (rows @ noise @ columns.T)


@cache
def smoothing_matrix(length: int, sigma: float) -> np.ndarray:
    """Gaussian smoothing of one axis as a matrix: at this width, faster than filtering by an order of magnitude."""
    return gaussian_filter1d(np.eye(length, dtype=np.float32), sigma, axis=0, mode="constant")


def sampling_grid(affine: np.ndarray, displacement: np.ndarray) -> Tensor:
    """The coordinates `affine` of every pixel plus `displacement` (2, y, x), for torch's `grid_sample`."""
    height, width = displacement.shape[1:]
    x, y = (np.arange(length) - (length - 1) / 2 for length in (width, height))
    grid = np.empty((1, height, width, 2), np.float32)
    for axis, half in enumerate((x[-1], y[-1])):  # torch counts from -1 at the first pixel to 1 at the last
        along_x, along_y, shift = affine[axis] / half
        row, column = (along_x * x + shift).astype(np.float32), (along_y * y).astype(np.float32)
        grid[0, ..., axis] = displacement[axis] / np.float32(half) + row + column[:, None]
    return torch.from_numpy(grid)


def truncated_grid(steps: Sequence[np.ndarray], displacement: np.ndarray) -> Tensor:
    """As `sampling_grid`, in whole pixels from the corner, cut towards zero after every step and the displacement."""
    last = np.array(displacement.shape[:0:-1]).reshape(2, 1, 1) - 1  # x, y
    pixels = np.indices(displacement.shape[1:])[::-1].astype(float)
    for step in steps:
        pixels = np.trunc(np.tensordot(step[:2, :2], pixels - last / 2, 1) + step[:2, 2, None, None] + last / 2)
    grid = np.trunc(pixels + displacement) / last * 2 - 1
    return torch.from_numpy(np.moveaxis(grid, 0, -1)[None].astype(np.float32))
