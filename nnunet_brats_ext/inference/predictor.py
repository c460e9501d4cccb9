"""nnU-Net's predictor with what the papers do differently: tilings, symmetries, several checkpoints of a fold."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import cache, partial
from io import StringIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import Tensor

from nnunet_brats_ext.inference.profiling import MB, MemoryMeter
from nnunet_brats_ext.inference.symmetries import average_probabilities, find_symmetries, logits_of, probabilities_of
from nnunet_brats_ext.inference.tilings import SLIDING, StoredVolume, Volume, find_tiling, predict_padded, slices
from nnunet_brats_ext.papers import facts_of_class
from nnunet_brats_ext.storage.errors import UserError

FROM_TRAINER = "paper"


class Weights(Sequence[dict[str, Any]]):
    """The weights of several checkpoints; kept in memory, or left in their files, mapped whenever their turn comes."""

    def __init__(self, files: Sequence[Path], keep: bool = True):
        self.files = list(files)
        self.read = cache(self._read) if keep else partial(self._read, mmap=True)

    @staticmethod
    def _read(file: Path, mmap: bool = False) -> dict[str, Any]:
        return torch.load(file, map_location="cpu", weights_only=False, mmap=mmap)["network_weights"]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        return self.read(self.files[index])


class BraTSPredictor(nnUNetPredictor):
    """nnUNetPredictor (https://doi.org/10.1038/s41592-020-01008-z) that can tile and average as a paper does.

    tiling: `sliding` (nnU-Net's), a name of `TILINGS`, or `paper`, what the trainer names. test_time_augmentation:
    likewise a name of `MODES`. `sliding` with `mirror` and logits averaged is nnU-Net, bit for bit.
    average: `logits`, as nnU-Net does over folds, or `probabilities`.
    memory_budget_mb: keep one set of weights in memory, while it predicts, and as many slices of a 2-D network as fit.
    """

    def __init__(
        self,
        tiling: str = FROM_TRAINER,
        test_time_augmentation: str = FROM_TRAINER,
        average: str = "logits",
        patch_size: Sequence[int] | None = None,
        memory_budget_mb: float | None = None,
        device: torch.device = torch.device("cuda"),  # noqa: B008
        **options: Any,
    ):
        with redirect_stdout(StringIO()):  # nnU-Net tells of what is not asked for
            super().__init__(device=device, allow_tqdm=False, **options)
        self.tiling, self.test_time_augmentation, self.average = tiling, test_time_augmentation, average
        self.requested_patch_size, self.memory_budget_mb = patch_size, memory_budget_mb
        self.meter = MemoryMeter(device)  # before anything of size is in memory
        self.properties: dict[str, Any] = {}  # of the case at hand
        self.checkpoints: list[Path] = []

    def load(self, model: Path, folds: Sequence[int | str], checkpoints: Sequence[str]) -> None:
        """Make ready the checkpoints of these names in these folds of a trained model's folder."""
        self.checkpoints = [model / f"fold_{fold}" / name for name in checkpoints for fold in folds]
        if missing := [str(file) for file in self.checkpoints if not file.is_file()]:
            raise UserError(f"no trained model in {', '.join(missing)}; train it, or choose -f and -chk")
        with redirect_stdout(StringIO()):  # and of where it looks for the trainer
            self.initialize_from_trained_model_folder(str(model), [folds[0]], checkpoints[0])
            trainer = recursive_find_trainer_class_by_name(self.trainer_name)
        self.list_of_parameters = Weights(self.checkpoints, keep=self.memory_budget_mb is None)
        self._release_weights()
        style = facts_of_class(trainer).prediction
        if self.tiling == FROM_TRAINER:
            self.tiling = style.tiling
            tiling = find_tiling(self.tiling)
            if tiling and tiling.needs_previous_stage and self.configuration_manager.previous_stage_name is None:
                self.tiling = SLIDING  # a second stage's trainer, trained alone
        if self.test_time_augmentation == FROM_TRAINER:
            self.test_time_augmentation = style.symmetries
        kept = style.kept or ()
        fits = len(kept) == len(self.patch_size) and all(k <= n for k, n in zip(kept, self.patch_size, strict=True))
        self.kept = kept if fits else tuple(max(1, n // 2) for n in self.patch_size)
        if self.requested_patch_size:
            self._resize(self.requested_patch_size)

    @property
    def exclusive(self) -> bool:
        """Whether outputs are labels that exclude each other, as those of nnU-Net's own models without regions."""
        return not self.label_manager.has_regions

    @property
    def patch_size(self) -> tuple[int, ...]:
        return tuple(self.configuration_manager.patch_size)

    @property
    def divisor(self) -> tuple[int, ...]:
        return tuple(int(n) for n in np.prod(self.configuration_manager.pool_op_kernel_sizes, axis=0))

    def _resize(self, patch_size: Sequence[int]) -> None:
        """Predict with windows of another size; a network without fixed sizes allows it."""
        if len(patch_size) != len(self.patch_size):
            raise UserError(f"--patch-size {tuple(patch_size)}: this model has {len(self.patch_size)} axes")
        if bad := [n for n, divisor in zip(patch_size, self.divisor, strict=True) if n < 1 or n % divisor]:
            raise UserError(f"--patch-size {tuple(patch_size)}: {bad[0]} is no multiple of the strides {self.divisor}")
        # A larger tile throws away no wider a margin than the trained one.
        margins = [old - kept for old, kept in zip(self.patch_size, self.kept, strict=True)]
        self.kept = tuple(max(1, new - margin) for new, margin in zip(patch_size, margins, strict=True))
        self.configuration_manager.configuration["patch_size"] = list(patch_size)

    # ---- one case --------------------------------------------------------------------------------------------------

    def predict_each(self, data: Tensor, properties: dict[str, Any]) -> Iterator[Tensor]:
        """The logits (k, z, y, x) of each checkpoint in turn for a preprocessed case."""
        self.properties = properties
        for weights in self.list_of_parameters:
            self._take(weights)
            yield self.predict_sliding_window_return_logits(data).to("cpu")
        self._release_weights()

    def _take(self, weights: dict[str, Any]) -> None:
        """Give the network these weights; with a budget not as a copy, but themselves, from their file when used."""
        network = getattr(self.network, "_orig_mod", self.network)
        network.load_state_dict(weights, assign=self.memory_budget_mb is not None)

    def _release_weights(self) -> None:
        """With a budget, let go of what the network has read; it is mapped anew."""
        if self.memory_budget_mb is not None:
            self._take(self.list_of_parameters[0])

    def stored(self, data: Tensor, folder: Path) -> Tensor:
        """A preprocessed case in a file in `folder`, if a budget lets it be read slice by slice; else as it is."""
        return cast(Tensor, StoredVolume(data, folder)) if self._fits_slices(data) else data

    def predict_average(self, data: Tensor, properties: dict[str, Any]) -> Tensor:
        """The average over all checkpoints, as logits."""
        total: Tensor | None = None
        for logits in self.predict_each(data, properties):
            share = probabilities_of(logits, self.exclusive, axis=0) if self.average == "probabilities" else logits
            total = share if total is None else total + share  # not in place: they are inference tensors
        assert total is not None
        if len(self.checkpoints) > 1:
            total /= len(self.checkpoints)
        return logits_of(total, self.exclusive) if self.average == "probabilities" else total

    @torch.inference_mode()
    def predict_sliding_window_return_logits(self, input_image: Tensor) -> Tensor:
        by_slices = self._fits_slices(input_image)
        tiling = find_tiling(self.tiling)
        if tiling is None and not by_slices:
            return super().predict_sliding_window_return_logits(input_image)
        predict = partial(slices, slices_at_once=self._slices_within_budget) if tiling is None else tiling
        self.network: torch.nn.Module = self.network.to(self.device).eval()
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            try:
                return predict(self._predict_windows, self._volume(input_image))
            except torch.OutOfMemoryError:
                if tiling is None or not tiling.may_exceed_memory:
                    raise
        print("a whole brain does not fit on the device: sliding window instead, from here on")
        self.tiling = SLIDING
        return super().predict_sliding_window_return_logits(input_image)

    def _fits_slices(self, data: Tensor) -> bool:
        covers = all(size <= extent for size, extent in zip(data.shape[2:], self.patch_size, strict=False))
        frugal = self.tiling == SLIDING and self.memory_budget_mb is not None
        return frugal and len(self.patch_size) == 2 and covers

    def _slices_within_budget(self, predict_slices: Callable[[int], object]) -> int:
        """How many slices fit, by what one and two of them take beyond what is in memory already."""
        assert self.memory_budget_mb is not None
        budget, before = self.memory_budget_mb * MB, self.meter.now()
        with self.meter.peak() as one:
            predict_slices(1)
        if one[0] + (one[0] - before) > budget:
            return 1
        with self.meter.peak() as two:
            predict_slices(2)
        # A CPU's allocator keeps what the first took, so that the second seems to need less than it does.
        each = max(two[0] - one[0], (one[0] - before) // 2, 1)
        return 1 + int((budget - one[0]) // each)

    def _predict_windows(self, x: Tensor) -> Tensor:
        return self._internal_maybe_mirror_and_predict(x.to(self.device))

    @torch.inference_mode()
    def _internal_maybe_mirror_and_predict(self, x: Tensor) -> Tensor:
        symmetries = find_symmetries(self.test_time_augmentation)
        if symmetries is None:
            return super()._internal_maybe_mirror_and_predict(x)
        # What a quarter turn has laid along an axis need not be a multiple of that axis's strides.
        predict = partial(predict_padded, self.network, divisor=self.divisor)
        return average_probabilities(predict, x, symmetries, self.exclusive)

    def _volume(self, data: Tensor) -> Volume:
        labels = list(self.label_manager.foreground_labels)
        regions = labels if self.exclusive else self.label_manager.foreground_regions
        members = [region if isinstance(region, list | tuple) else (region,) for region in regions]
        return Volume(
            data=data,
            properties=self.properties,
            patch_size=self.patch_size,
            divisor=self.divisor,
            image_channels=len(self.dataset_json["channel_names"]),
            regions=tuple(tuple(labels.index(label) for label in each) for each in members),
            outputs=self.label_manager.num_segmentation_heads,
            kept=self.kept,
        )
