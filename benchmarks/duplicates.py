"""How similar `nnunet_brats distill` finds a case to changed copies of it and to other people: what --similarity means.

    python benchmarks/duplicates.py T1.nii.gz T1CE.nii.gz T2.nii.gz FLAIR.nii.gz [--other T1 T1CE T2 FLAIR]...

The last rows must stay below the threshold: the two halves of one head, compared without the flips that
`similar_pairs` tries, and other cases.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import binary_erosion, rotate, shift, zoom

from nnunet_brats_ext.dataset_conversion.distillation.fingerprints import content_hash, pattern, similar_pairs


def interpolated(move: Callable) -> Callable:
    """Move a volume by linear interpolation, and its background by the nearest."""

    def change(volume: np.ndarray) -> np.ndarray:
        inside = move((volume != 0).astype(np.float32), order=0) > 0.5
        return np.where(inside, move(volume.astype(np.float32), order=1), 0)

    return change


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "flipped, as floats, scaled": lambda v: v[::-1, :, ::-1].astype(np.float32) * 0.37,
    "resampled by 1/1.2": interpolated(lambda v, order: zoom(v, 1 / 1.2, order=order)),
    "resampled by 1/2": interpolated(lambda v, order: zoom(v, 1 / 2, order=order)),
    "resampled to 128^3": interpolated(lambda v, order: zoom(v, np.array((128,) * 3) / v.shape, order=order)),
    "moved by 1 to 2 voxels": interpolated(lambda v, order: shift(v, (1.5, 2.3, 1.1), order=order)),
    "8 bits, clipped": lambda v: (np.clip(v, 0, None) / np.percentile(v, 99.9) * 255).clip(0, 255).astype(np.uint8),
    "mask eroded by 2 voxels": lambda v: np.where(binary_erosion(v != 0, iterations=2), v, 0),
    "turned by 3 degrees": interpolated(lambda v, order: rotate(v, 3, (1, 2), reshape=False, order=order)),
    "turned by 6 degrees": interpolated(lambda v, order: rotate(v, 6, (1, 2), reshape=False, order=order)),
}


def volumes(paths: Sequence[Path]) -> list[np.ndarray]:
    return [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in paths]


def patterns(case: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([pattern(volume) for volume in case])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--other", nargs="+", type=Path, action="append", default=[])
    options = parser.parse_args()
    case = volumes(options.images)
    own = patterns(case)
    for name, change in CHANGES.items():
        changed = [change(volume) for volume in case]
        ((*_, similarity),) = similar_pairs([own, patterns(changed)], -1)
        same = sum(content_hash(a) == content_hash(b) for a, b in zip(case, changed, strict=True))
        print(f"{name:28} similarity {similarity:.3f}, {same} of {len(case)} content hashes equal")
    mirrored = patterns([volume[..., ::-1] for volume in case])
    unflipped = (own.astype(float) * mirrored).sum((1, 2, 3)).mean()
    print(f"{'its mirror image':28} similarity {unflipped:.3f} without flips")
    for other in options.other:
        ((*_, similarity),) = similar_pairs([own, patterns(volumes(other))], -1)
        print(f"{other[0].name:28} similarity {similarity:.3f}")


if __name__ == "__main__":
    main()
