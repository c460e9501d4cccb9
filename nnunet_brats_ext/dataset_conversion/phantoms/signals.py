"""MRI signals for phantoms: what each sequence shows of brain and tumour, with texture, blur, bias field and noise.

Signals are relative to white matter, with values as in images of glioma patients. They vary from case to case so much
that no threshold separates tumour from healthy tissue.
"""

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from nnunet_brats_ext.dataset_conversion.phantoms.anatomy import CSF, WM, VoxelGrid, smooth_noise

HEALTHY = ("CSF", "GM", "WM")
# part -> signal in T1, T1ce, T2, FLAIR. A `solid` core is one that does not enhance: tumour, not yet necrosis.
# Vessels are bright after contrast and hyperintensities of the ageing white matter on FLAIR: neither is tumour.
SIGNALS: Mapping[str, tuple[float, float, float, float]] = {
    "CSF": (0.36, 0.45, 2.70, 0.32),
    "GM": (0.79, 0.83, 1.30, 1.15),
    "WM": (1.00, 1.00, 1.00, 1.00),
    "hyperintensity": (0.90, 0.92, 1.50, 1.45),
    "vessel": (0.75, 1.60, 0.70, 0.70),
    "ED": (0.76, 0.84, 1.75, 1.62),
    "NCR": (0.58, 0.66, 2.10, 1.30),
    "solid": (0.70, 0.76, 1.90, 1.65),
    "ET": (0.72, 1.42, 1.65, 1.50),
    "NET": (0.68, 0.78, 1.85, 1.55),
    "CC": (0.45, 0.52, 2.40, 0.80),
    "RC": (0.40, 0.47, 2.45, 0.50),
}


def compose(
    rng: np.random.Generator, grid: VoxelGrid, tissues: np.ndarray, regions: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """How much of each part of SIGNALS a voxel shows, summing to 1, from tissue fractions and masks of the lesions.

    Borders of lesions are soft, oedema is patchy, and vessels and hyperintensities of white matter are added.
    """
    patches, spots, tubes = rng.spawn(3)
    parts = {
        "hyperintensity": tissues[WM] * np.clip(smooth_noise(spots, grid, 7) - spots.uniform(1.6, 2.6), 0, 1),
        "vessel": draw_vessels(tubes, grid, tissues[CSF]),
    }
    for name, region in regions.items():
        soft = ndimage.gaussian_filter(region.astype(np.float32), 0.8 / grid.spacing_mm)
        parts = {other: weight * (1 - soft) for other, weight in parts.items() if name not in parts}
        parts[name] = soft
    if "ED" in parts:
        parts["ED"] *= np.clip(0.78 + 0.2 * smooth_noise(patches, grid, 9), 0.35, 1)
    rest = np.clip(1 - sum(parts.values()), 0, 1)
    return {**dict(zip(HEALTHY, tissues * rest, strict=True)), **parts}


def draw_vessels(rng: np.random.Generator, grid: VoxelGrid, csf: np.ndarray) -> np.ndarray:
    """Weight of thin tubes in and near CSF: two smooth fields are zero together along winding curves."""
    first, second = rng.spawn(2)
    tubes = np.exp(-(smooth_noise(first, grid, 16) ** 2 + smooth_noise(second, grid, 16) ** 2) / (2 * 0.1**2))
    return tubes * np.clip(2 * ndimage.gaussian_filter(csf, 1.5 / grid.spacing_mm), 0, 1)


def acquire(
    rng: np.random.Generator,
    grid: VoxelGrid,
    channel: int,
    parts: Mapping[str, np.ndarray],
    mask: np.ndarray,
    conspicuity: float = 1,
) -> np.ndarray:
    """The image of one sequence, int16: positive in the mask, 0 outside, in arbitrary units as MRI has them.

    conspicuity: contrast of everything but healthy tissue against white matter; 1 is that of SIGNALS.
    """
    means, texture, sharpness, bias, noise = rng.spawn(5)
    signal = np.zeros(grid.shape, np.float32)
    for name, weight in parts.items():
        contrast = SIGNALS[name][channel] - 1
        contrast *= 1 + means.normal(0, 0.08) if name in HEALTHY else conspicuity * means.uniform(0.75, 1.2)
        signal += np.float32(1 + contrast) * weight
    grain = np.where(sum(parts[name] for name in HEALTHY) > 0.5, np.float32(0.025), np.float32(0.08))
    signal *= 1 + grain * smooth_noise(texture, grid, 4)
    blur_mm = np.full(3, sharpness.uniform(0.4, 0.7))
    blur_mm[sharpness.integers(3)] *= sharpness.uniform(1, 3)  # thick slices, resampled
    signal = ndimage.gaussian_filter(signal, blur_mm / grid.spacing_mm, truncate=3)
    signal *= np.exp(bias.uniform(0.03, 0.12) * smooth_noise(bias, grid, 70))
    sigma = noise.uniform(0.012, 0.035)
    real, imaginary = sigma * noise.standard_normal((2, *grid.shape), dtype=np.float32)
    signal = np.hypot(signal + real, imaginary)  # Rician
    signal *= np.exp(means.uniform(*np.log((120, 1200))))
    return np.where(mask, np.clip(np.rint(signal), 1, np.iinfo(np.int16).max), 0).astype(np.int16)
