"""Samples per second and core of Hashemi's nine transforms: composed in one interpolation, and with scipy.

    python benchmarks/augmentation.py                     # slices of 240 x 240, four sequences and the labels
    python benchmarks/augmentation.py --size 192 176
    python benchmarks/augmentation.py --figure warps.png --image CASE_t1.nii.gz --label CASE_seg.nii.gz --slice 75

The last draws the paper's figure 2: a slice and five of its warps, with the outline of the tumour.

composed: `ComposedWarp`, as nnU-Net's loader workers run it. scipy, once: the same coordinates through scipy's filter
and one `map_coordinates` per channel. scipy, step by step: an interpolation per transform and channel, images of order
1 and labels of order 0, each with the fastest function that scipy has for it. The three take turns, so that a machine
that drifts is unfair to none; each has one thread, and its processor time counts. Only the ratios mean something.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.ndimage import affine_transform, gaussian_filter, map_coordinates, shift
from threadpoolctl import threadpool_limits

from nnunet_brats_ext.evaluation.pictures import HeadImage, PicturePanel, draw_grid, read_upright
from nnunet_brats_ext.trainers.hashemi2021 import transforms
from nnunet_brats_ext.trainers.hashemi2021.transforms import ComposedWarp, compose, random_steps

CHANNELS = 4
Warp = Callable[[np.ndarray, np.ndarray], object]


def composed(image: np.ndarray, labels: np.ndarray) -> object:
    return ComposedWarp()(image=torch.from_numpy(image), segmentation=torch.from_numpy(labels))


def scipy_displacement(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Of y and x, in pixels."""
    noise = rng.uniform(-1, 1, (2, *size)).astype(np.float32)
    smooth = [gaussian_filter(field, transforms.ELASTIC_SIGMA, mode="constant") for field in noise]
    return transforms.ELASTIC_ALPHA * np.stack(smooth)


def look_up(image: np.ndarray, labels: np.ndarray, coordinates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    warped = np.stack([map_coordinates(channel, coordinates, order=1, mode="nearest") for channel in image])
    return warped, map_coordinates(labels[0], coordinates, order=0, mode="nearest")[None]


def scipy_once(image: np.ndarray, labels: np.ndarray) -> object:
    rng, size = np.random.default_rng(), image.shape[1:]
    y, x = (np.arange(length) - (length - 1) / 2 for length in size)
    (xx, xy, dx), (yx, yy, dy), _ = compose(random_steps(rng, size))
    coordinates = np.stack([yx * x + yy * y[:, None] + dy - y[0], xx * x + xy * y[:, None] + dx - x[0]])
    return look_up(image, labels, coordinates + scipy_displacement(rng, size))


def scipy_step_by_step(image: np.ndarray, labels: np.ndarray) -> object:
    rng, size = np.random.default_rng(), image.shape[1:]
    if rng.random() < transforms.FLIP_PROBABILITY:
        image, labels = np.flip(image, -1), np.flip(labels, -1)
    for axis in (1, 0):
        by = rng.uniform(-transforms.TRANSLATION, transforms.TRANSLATION) * size[axis]
        image, labels = each(shift, image, labels, by * np.eye(2)[axis])
    turn = np.deg2rad(rng.uniform(-1, 1) * transforms.ROTATION_DEGREES)
    for axis in (1, 0):
        scales = np.ones(2)
        scales[axis] = 1 / rng.uniform(1 - transforms.SCALING, 1 + transforms.SCALING)
        image, labels = about_the_centre(image, labels, scales)
    for axis in (1, 0):
        sheared = np.eye(2)
        sheared[axis, 1 - axis] = rng.uniform(-transforms.SHEAR, transforms.SHEAR)
        image, labels = about_the_centre(image, labels, sheared)
    image, labels = about_the_centre(
        image, labels, np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    )
    return look_up(image, labels, np.mgrid[: size[0], : size[1]] + scipy_displacement(rng, size))


def about_the_centre(image: np.ndarray, labels: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`matrix`: (2, 2), or its diagonal, for which scipy has a shorter way."""
    centre = (np.array(image.shape[1:]) - 1) / 2
    moved = matrix * centre if matrix.ndim == 1 else matrix @ centre
    return each(affine_transform, image, labels, matrix, centre - moved)


def each(
    function: Callable, image: np.ndarray, labels: np.ndarray, *parameters: object
) -> tuple[np.ndarray, np.ndarray]:
    warped = np.stack([function(channel, *parameters, order=1, mode="nearest") for channel in image])
    return warped, function(labels[0], *parameters, order=0, mode="nearest")[None]


WARPS: dict[str, Warp] = {
    "composed": composed,
    "scipy, once": scipy_once,
    "scipy, step by step": scipy_step_by_step,
}


def draw_warps(image: Path, labels: Path, number: int, seed: int) -> Figure:
    """A slice, counted from 1 at the feet, and five warps of it, as the loader's workers make them."""
    head = HeadImage.read(image.name, image)
    tumour = read_upright(labels)[0][number - 1] > 0
    slices = [head.image[number - 1].astype(np.float32)[None], tumour.astype(np.int16)[None]]
    np.random.seed(seed)
    warped = [slices]
    for _ in range(5):
        found = ComposedWarp()(image=torch.from_numpy(slices[0]), segmentation=torch.from_numpy(slices[1]))
        warped.append([found["image"].numpy(), found["segmentation"].numpy()])
    titles = [f"slice {number}", *(f"warp {n}" for n in range(1, 6))]
    panels = [PicturePanel(head.grey(x[0]), title, y[0]) for title, (x, y) in zip(titles, warped, strict=True)]
    return draw_grid([panels], [""], {"tumour": (1,)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(240, 240), metavar=("Y", "X"))
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--figure", type=Path, help="draw warps of a slice into this file, and measure nothing")
    parser.add_argument("--image", type=Path, help="of the figure")
    parser.add_argument("--label", type=Path, help="of the figure")
    parser.add_argument("--slice", type=int, default=75, help="of the figure, from 1 at the feet")
    parser.add_argument("--seed", type=int, default=0, help="of the figure")
    options = parser.parse_args()
    if options.figure:
        draw_warps(options.image, options.label, options.slice, options.seed).savefig(options.figure)
        return
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    image = rng.standard_normal((CHANNELS, *options.size), dtype=np.float32)
    labels = rng.integers(-1, 4, (1, *options.size), dtype=np.int16)

    seconds: dict[str, list[float]] = {name: [] for name in WARPS}
    with threadpool_limits(1):
        for repetition in range(options.repetitions + 1):
            for name, warp in WARPS.items():
                start = time.process_time()
                warp(image, labels)
                if repetition:  # the first one fills caches
                    seconds[name].append(time.process_time() - start)

    medians = {name: statistics.median(times) for name, times in seconds.items()}
    shown = " x ".join(map(str, options.size))
    table = Table(
        "warp", "samples/s per core", "ratio", title=f"{CHANNELS} channels and labels, {shown}", box=box.SIMPLE
    )
    for name, median in medians.items():
        table.add_row(name, f"{1 / median:.0f}", f"{median / medians['composed']:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
