"""The window of stage 2 of Lyu & Shu 2020 (https://arxiv.org/abs/2011.02881) on the tumour that stage 1 has found."""

from collections.abc import Sequence

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.training.sampling import Case, CaseView, centred

STEP = 16  # voxels between candidate windows, in y and x

NATIVE_SHAPE = (155, 240, 240)
STRICT_SHAPE = (128, 128, 128)
STRICT_STARTS = [(13, y, x) for y in (24, 40, 56, 72) for x in (40, 56)]  # "lyu8", on the uncropped BraTS grid


def tumour_window(tumour: np.ndarray, window: Sequence[int]) -> tuple[int, ...]:
    """The start (z, y, x) of the window with most tumour, on a grid of 16 voxels in y and x.

    tumour: boolean (z, y, x). In z the window is centred on the tumour's range. Among equal windows the one closest to
    the tumour's centre of mass is taken, and without tumour the central one. Starts are negative where the volume is
    smaller than the window.
    """
    sizes = [max(0, size - extent) for size, extent in zip(tumour.shape, window, strict=True)]
    padding = [max(0, extent - size) // 2 for size, extent in zip(tumour.shape, window, strict=True)]
    if not tumour.any():
        return tuple(size // 2 - pad for size, pad in zip(sizes, padding, strict=True))
    slices = np.flatnonzero(tumour.any((1, 2)))
    z = min(max((slices[0] + slices[-1] + 1) // 2 - window[0] // 2, 0), sizes[0])
    grid = [(z, y, x) for y in _steps(sizes[1]) for x in _steps(sizes[2])]
    start = _fullest(tumour, window, grid)
    return tuple(int(s) - pad for s, pad in zip(start, padding, strict=True))


def strict_window(tumour: np.ndarray, bounding_box: Sequence[Sequence[int]], shape: Sequence[int]) -> tuple[int, ...]:
    """The same among the authors' eight windows on the BraTS grid, as a start in the volume cropped to `bounding_box`.

    tumour: in the cropped volume. shape: of the uncropped one; another one than 155 x 240 x 240 is an error.
    """
    if tuple(shape) != NATIVE_SHAPE:
        raise UserError(f"the eight windows of the paper lie on a grid of {NATIVE_SHAPE}, not {tuple(shape)}")
    corner = [low for low, _ in bounding_box]
    if tuple(tumour.shape) != tuple(high - low for low, high in bounding_box):
        raise UserError(f"the eight windows of the paper need voxels of 1 mm, not a resampled volume {tumour.shape}")
    grid = [tuple(s - c for s, c in zip(start, corner, strict=True)) for start in STRICT_STARTS]
    return tuple(int(s) for s in _fullest(tumour, STRICT_SHAPE, grid))


class TumourWindows(CaseView):
    """Draws every patch at `tumour_window`; needs `oversample_foreground_percent = 1.0` in the trainer.

    first: the cases with the map that the window is taken from, always the same one, as in the paper.
    strict: the authors' eight windows.
    """

    def __init__(
        self,
        cases: nnUNetBaseDataset,
        first: nnUNetBaseDataset,
        window: Sequence[int],
        strict: bool = False,
    ):
        super().__init__(cases)
        self.first, self.window, self.strict = first, tuple(window), strict
        self.starts: dict[str, tuple[int, ...]] = {}  # found once per case and worker process

    def load_case(self, identifier: str) -> Case:
        if identifier not in self.starts:
            _, _, previous, properties = self.first.load_case(identifier)
            tumour = previous[:] > 0
            if self.strict:
                box, shape = properties["bbox_used_for_cropping"], properties["shape_before_cropping"]
                self.starts[identifier] = strict_window(tumour, box, shape)
            else:
                self.starts[identifier] = tumour_window(tumour, self.window)
        centre = [start + extent // 2 for start, extent in zip(self.starts[identifier], self.window, strict=True)]
        return centred(self.cases.load_case(identifier), centre)


def _steps(last: int) -> list[int]:
    return sorted({*range(0, last, STEP), last})


def _fullest(tumour: np.ndarray, window: Sequence[int], grid: Sequence[Sequence[int]]) -> Sequence[int]:
    """The start with most tumour in its window, the closest to the tumour's centre of mass among equals."""
    voxels = np.argwhere(tumour)
    centre = voxels.mean(0)
    # All candidates share their z: count along z once, then sum each window from a summed-area table.
    z = grid[0][0]
    flat = tumour[max(z, 0) : max(z + window[0], 0)].sum(0, dtype=np.int64)
    table = np.pad(flat.cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def rank(start: Sequence[int]) -> tuple[float, float]:
        (y0, y1), (x0, x1) = (
            np.clip((s, s + extent), 0, size) for s, extent, size in zip(start[1:], window[1:], flat.shape, strict=True)
        )
        inside = table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]
        distance = np.linalg.norm(np.array(start) + np.array(window) / 2 - 0.5 - centre)
        return -float(inside), float(distance)

    return min(grid, key=rank)
