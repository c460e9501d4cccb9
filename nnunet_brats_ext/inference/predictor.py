"""nnU-Net's predictor with what the papers do differently: tilings, symmetries, several checkpoints of a fold."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache, partial
from io import StringIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_brats_ext import papers
from nnunet_brats_ext.architectures.blocks import FusingNetwork
from nnunet_brats_ext.inference.checkpoints import (
    MIRROR_AXES,
    Weights,
    check_checkpoint,
    check_shapes,
    names_in,
    open_checkpoint,
)
from nnunet_brats_ext.inference.choices import FROM_TRAINER, SLIDING, find_symmetries, find_tiling, mirrors_along
from nnunet_brats_ext.inference.logits import ModelDescription
from nnunet_brats_ext.inference.memory import bytes_of_pass, free_bytes
from nnunet_brats_ext.inference.models import TrainedModel
from nnunet_brats_ext.inference.profiling import MB, MemoryMeter
from nnunet_brats_ext.inference.symmetries import average_logits, average_probabilities, logits_of, probabilities_of
from nnunet_brats_ext.inference.tilings import (
    CERTAIN,
    StoredVolume,
    Tiling,
    Volume,
    predict_padded,
    predict_slices,
)
from nnunet_brats_ext.papers import Prediction
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import Notice, UserError, raise_problems
from nnunet_brats_ext.storage.nnunet import FINAL, trained_folds
from nnunet_brats_ext.training.cpu_memory import keep_freed_memory
from nnunet_brats_ext.training.cpu_precision import computes_bf16
from nnunet_brats_ext.training.seams import fastest_memory_format

# What a pass on a CPU takes, as a share of what its tensors take at once: a convolution has more than its input and
# output, and freed memory that is kept has gaps. Measured: up to 2.0.
SCRATCH = 2.1


def find_device(asked: str | None = None) -> torch.device:
    """The device of that name; None is a GPU where torch sees one, else the CPU. A UserError where there is none."""
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if asked is None:
        return torch.device("cuda" if there["cuda"]() else "cpu")
    if asked in there and not there[asked]():
        raise UserError(f"-device {asked}: torch sees no such device on this machine; use -device cpu")
    return torch.device(asked)


def require_bf16(device: torch.device) -> None:
    """A UserError where the device does not compute in bfloat16, or only emulates it."""
    there = {
        "cuda": torch.cuda.is_bf16_supported,
        "cpu": computes_bf16,
    }
    if device.type not in there or not there[device.type]():
        raise UserError(f"--precision bf16: this {device.type} does not compute in bfloat16; leave it out")


class BraTSPredictor(nnUNetPredictor):
    """nnUNetPredictor (https://doi.org/10.1038/s41592-020-01008-z) that can tile and average as a paper does.

    Used as nnU-Net's: `initialize_from_trained_model_folder`, then any of `predict_from_files`,
    `predict_from_files_sequential`, `predict_from_list_of_npy_arrays` and `predict_single_npy_array`.

    tiling: `sliding` (nnU-Net's), another name of `choices.tiling_names()`, or `paper`, what the model's trainer names.
    symmetries: likewise of `choices.symmetry_names()`. `sliding` with `mirror` and logits averaged is nnU-Net, bit for
    bit.
    average: `logits`, as nnU-Net does over folds, or `probabilities`.
    patch_size: of windows, where it is not that of training.
    memory_budget_mb: keep one set of weights in memory, while it predicts, and as many slices of a 2-D network as fit.
    Without a budget, a process that predicts on a CPU keeps freed memory for the next pass (`training.cpu_memory`).
    precision: `default`, as nnU-Net; or `bf16`, networks under autocast to bfloat16, their logits in fp32. A UserError
    where the device does not compute in it.
    skip_empty: what holds nothing but background is background, and no network sees it.
    symmetries_at_once: how many mirror images or turns of a window the network sees in a batch.
    memory_format: of the network; None is that of training, which is the fastest on the device, and without a copy of
    the weights where there is a budget.
    options: those of nnUNetPredictor.
    """

    def __init__(
        self,
        tiling: str = FROM_TRAINER,
        symmetries: str = FROM_TRAINER,
        average: str = "logits",
        patch_size: Sequence[int] = (),
        memory_budget_mb: float | None = None,
        precision: str = "default",
        skip_empty: bool = False,
        symmetries_at_once: int = 1,
        memory_format: torch.memory_format | None = None,
        device: torch.device = torch.device("cuda"),  # noqa: B008
        **options: Any,
    ):
        with redirect_stdout(StringIO()):  # nnU-Net prints what it changes in its defaults
            super().__init__(device=device, **{"allow_tqdm": False, **options})
        self.requested_tiling, self.requested_symmetries, self.average = tiling, symmetries, average
        self.requested_patch_size, self.memory_budget_mb = patch_size, memory_budget_mb
        self.memory_format, self.precision = memory_format, precision
        self.skip_empty, self.symmetries_at_once = skip_empty, symmetries_at_once
        if precision == "bf16":
            require_bf16(device)
        if device.type == "cpu" and memory_budget_mb is None:
            keep_freed_memory()
        self.meter = MemoryMeter(device)  # before anything of size is in memory
        self.properties: dict[str, Any] = {}  # nnU-Net's, of the case at hand
        self.checkpoints: list[Path] = []
        self._adopt(Prediction())

    # ---- a model ---------------------------------------------------------------------------------------------------

    def initialize_from_trained_model_folder(
        self,
        model_training_output_dir: str | Path,
        use_folds: Sequence[int | str] | int | str | None = None,
        checkpoint_name: str = FINAL,
    ) -> None:
        """nnU-Net's own call: make ready one checkpoint of some folds; None is all that have it."""
        folder = Path(model_training_output_dir)
        if use_folds is None:
            folds: Sequence[int | str] = trained_folds(folder, checkpoint_name)
        else:
            folds = [use_folds] if isinstance(use_folds, int | str) else use_folds
        self.load(TrainedModel.of(folder, folds, (checkpoint_name,)))

    def load(self, model: TrainedModel) -> None:
        """Make ready all checkpoints of a model.

        A UserError names every checkpoint that is missing, damaged, or of another model.
        """
        if not model.files:
            raise UserError(f"no fold of {model.folder} holds such a checkpoint; train it, or choose -f and -chk")
        self.checkpoints = model.files
        self._check(lambda file: check_checkpoint(file, model.names))
        self._build(model)
        self._check(lambda file: check_shapes(file, self.bare_network))
        self.list_of_parameters = Weights(self.checkpoints)
        self._take(self.list_of_parameters[0])
        if self.memory_budget_mb is None:
            fastest = fastest_memory_format(self.device, len(self.patch_size), self.bare_network)
            self.bare_network.to(memory_format=self.memory_format or fastest)
        self._adopt(papers.find_trainer(self.trainer_name).prediction)
        if self.requested_patch_size:
            self._resize(self.requested_patch_size)

    def _build(self, model: TrainedModel) -> None:
        """The network of a model, by its trainer, as nnU-Net does it; from the first checkpoint only names are read."""
        first = open_checkpoint(model.files[0])
        name, _, configuration_name = names_in(first)
        plans, dataset_json = PlansManager(model.plans), dict(model.description.content)
        configuration = plans.get_configuration(configuration_name)
        trainer = papers.find_trainer_class(name)
        channels = determine_num_input_channels(plans, configuration, dataset_json)
        outputs = plans.get_label_manager(dataset_json).num_segmentation_heads
        known: tuple[Any, ...] = (plans, configuration)
        if "plans_manager" not in inspect.signature(trainer.build_network_architecture).parameters:
            known = (  # as trainers before nnU-Net 2.7 take it
                configuration.network_arch_class_name,
                configuration.network_arch_init_kwargs,
                configuration.network_arch_init_kwargs_req_import,
            )
        network = trainer.build_network_architecture(*known, channels, outputs, enable_deep_supervision=False)
        with redirect_stdout(StringIO()):  # it prints that it compiles
            super().manual_initialization(
                network, plans, configuration, None, dataset_json, name, first.get(MIRROR_AXES)
            )
        self._make_ready()

    def manual_initialization(self, network: nn.Module, *arguments: Any, **named: Any) -> None:
        """nnU-Net's own call: a network that is built already, its plans, and the name of its trainer."""
        super().manual_initialization(network, *arguments, **named)
        self._make_ready()
        self._adopt(papers.find_trainer(self.trainer_name).prediction if self.trainer_name else Prediction())

    def _make_ready(self) -> None:
        """What every network needs, whoever has built it."""
        self._bytes_of_pass = cache(partial(bytes_of_pass, self.bare_network))  # by the shape of the input
        if self.precision == "bf16":  # so that mirror images are averaged in fp32
            self.bare_network.register_forward_hook(lambda network, inputs, logits: logits.float())

    def _check(self, check: Callable[[Path], None]) -> None:
        problems = []
        for file in self.checkpoints:
            try:
                check(file)
            except UserError as error:
                problems.append(str(error))
        raise_problems("checkpoints that cannot be used", problems)

    def _adopt(self, own: Prediction) -> None:
        """Tile and average as requested, where that is `paper` as the trainer does; nothing of another model stays."""
        self.tiling = own.tiling if self.requested_tiling == FROM_TRAINER else self.requested_tiling
        self.symmetries = own.symmetries if self.requested_symmetries == FROM_TRAINER else self.requested_symmetries
        self.kept: tuple[int, ...] = own.kept or ()
        if self.configuration_manager is None:
            return
        tiling = find_tiling(self.tiling)
        if tiling and tiling.needs_previous_stage and self.configuration_manager.previous_stage_name is None:
            if self.requested_tiling != FROM_TRAINER:
                raise UserError(
                    f"--tiling {self.tiling} looks at the previous stage, which this model does not have; "
                    "leave --tiling out"
                )
            self.tiling = SLIDING  # the trainer of a second stage, trained alone
        fits = len(self.kept) == len(self.patch_size)
        if not fits or any(kept > size for kept, size in zip(self.kept, self.patch_size, strict=True)):
            self.kept = tuple(max(1, size // 2) for size in self.patch_size)

    @property
    def bare_network(self) -> nn.Module:
        """The module behind torch.compile."""
        return getattr(self.network, "_orig_mod", self.network)

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

    @property
    def description(self) -> ModelDescription:
        return ModelDescription(self.plans_manager, self.configuration_manager, self.dataset_json)

    def predict_each(
        self, data: Tensor, properties: dict[str, Any], checkpoints: Sequence[Path] | None = None
    ) -> Iterator[Tensor]:
        """The logits (k, z, y, x) of each checkpoint in turn for a preprocessed case; None is all of them."""
        self.properties = properties
        chosen = self.checkpoints.index
        for number in range(len(self.list_of_parameters)) if checkpoints is None else map(chosen, checkpoints):
            self._take(self.list_of_parameters[number])
            yield self.predict_sliding_window_return_logits(data).to("cpu")
        self._release_weights()
        self.properties = {}

    def predict_average(
        self, data: Tensor, properties: dict[str, Any], checkpoints: Sequence[Path] | None = None
    ) -> Tensor:
        """The average over some checkpoints, or all of them, as logits; those of a single one are as they are."""
        count = len(self.list_of_parameters if checkpoints is None else checkpoints)
        of_probabilities = self.average == "probabilities" and count > 1
        total: Tensor | None = None
        for logits in self.predict_each(data, properties, checkpoints):
            share = probabilities_of(logits, self.exclusive, axis=0) if of_probabilities else logits
            total = share if total is None else total + share  # not in place: they are inference tensors
        assert total is not None
        if count > 1:
            total = total / count
        return logits_of(total, self.exclusive) if of_probabilities else total

    def predict_logits_from_preprocessed_data(self, data: Tensor) -> Tensor:
        """nnU-Net's own step of all its calls: the average over all checkpoints, as logits."""
        return self.predict_average(data, self.properties)

    def predict_from_data_iterator(self, data_iterator: Any, *arguments: Any, **named: Any) -> list[Any]:
        """nnU-Net's own loop, in which tilings see the properties of each case."""

        def noted() -> Iterator[dict[str, Any]]:
            for item in data_iterator:
                self.properties = item["data_properties"]
                yield item

        return super().predict_from_data_iterator(noted(), *arguments, **named)

    def _take(self, weights: dict[str, Any]) -> None:
        """Give the network these weights; with a budget not a copy, but those in the file, which are read when used."""
        self.bare_network.load_state_dict(weights, assign=self.memory_budget_mb is not None)

    def _release_weights(self) -> None:
        """With a budget, free the memory of what the network has read, by mapping it again."""
        if self.memory_budget_mb is not None:
            self._take(self.list_of_parameters[0])

    def stored(self, data: Tensor, folder: Path) -> Tensor:
        """A preprocessed case in a file in `folder`, if a budget lets it be read slice by slice; else as it is."""
        return cast(Tensor, StoredVolume(data, folder)) if self._fits_slices(data) else data

    @torch.inference_mode()
    def predict_sliding_window_return_logits(self, input_image: Tensor) -> Tensor:
        by_slices = self._fits_slices(input_image)
        tiling = find_tiling(self.tiling)
        if tiling is None and not by_slices:
            return super().predict_sliding_window_return_logits(input_image)
        predict = partial(predict_slices, slices_at_once=self._slices_within_budget) if tiling is None else tiling
        self.network: nn.Module = self.network.to(self.device).eval()
        volume = self._volume(input_image)
        for at_once in dict.fromkeys((self.symmetries_at_once, 1)):
            if tiling is not None and not self._fits_memory(tiling, volume, at_once):
                continue
            with (
                self._giving_scores(tiling) as fuse,
                torch.autocast(self.device.type, enabled=self.device.type == "cuda"),
            ):
                try:
                    return fuse(predict(partial(self._predict_windows, at_once=at_once), volume))
                except torch.OutOfMemoryError:
                    if tiling is None or tiling.seen_at_once(volume) is None:
                        raise
        which = "is free" if self.memory_budget_mb is None else "--low-memory leaves"
        sentence = f"the tiling {self.tiling} does not fit into the memory that {which}; sliding windows instead"
        warnings.warn(sentence, Notice, stacklevel=2)
        return super().predict_sliding_window_return_logits(input_image)

    @contextmanager
    def _giving_scores(self, tiling: Tiling | None) -> Iterator[Callable[[Tensor], Tensor]]:
        """Where a tiling joins scores, the network gives them; yields what makes logits (k, *s) of what was joined."""
        network = self.bare_network
        if tiling is None or not tiling.joins_scores or not isinstance(network, FusingNetwork):
            yield lambda logits: logits
            return
        network.gives_scores = True
        try:
            yield lambda scores: network.fuse(scores[None])[0]
        finally:
            network.gives_scores = False

    @property
    def _network_of_scores(self) -> FusingNetwork | None:
        """The network, while it gives scores."""
        network = self.bare_network
        return network if isinstance(network, FusingNetwork) and network.gives_scores else None

    def _fits_memory(self, tiling: Tiling, volume: Volume, at_once: int) -> bool:
        """Whether what a network sees at once leaves memory; on a GPU, torch says so when it has tried."""
        shape = tiling.seen_at_once(volume)
        if shape is None or self.device.type != "cpu":
            return True
        batch, *rest = shape
        there = free_bytes(self.device)
        if self.memory_budget_mb is not None:
            there = min(there, int(self.memory_budget_mb * MB) - self.meter.now())
        return SCRATCH * self._bytes_of_pass((batch * min(at_once, self._images), *rest)) < there

    @property
    def _images(self) -> int:
        """How many mirror images and turns of a window are predicted."""
        if symmetries := find_symmetries(self.symmetries):
            return len(symmetries)
        axes = self.allowed_mirroring_axes if self.use_mirroring else None
        return 2 ** len(axes or ())

    def _fits_slices(self, data: Tensor) -> bool:
        covers = all(size <= extent for size, extent in zip(data.shape[2:], self.patch_size, strict=False))
        frugal = find_tiling(self.tiling) is None and self.memory_budget_mb is not None
        return frugal and len(self.patch_size) == 2 and covers

    def _slices_within_budget(self, predict: Callable[[int], object]) -> int:
        """How many slices fit, by what one and two of them take beyond what is in memory already."""
        assert self.memory_budget_mb is not None
        budget, before = self.memory_budget_mb * MB, self.meter.now()
        with self.meter.peak() as one:
            predict(1)
        if one[0] + (one[0] - before) > budget:
            return 1
        with self.meter.peak() as two:
            predict(2)
        # A CPU's allocator keeps what the first took, so that the second seems to need less than it does.
        each = max(two[0] - one[0], (one[0] - before) // 2, 1)
        return 1 + int((budget - one[0]) // each)

    def _predict_windows(self, x: Tensor, at_once: int | None = None) -> Tensor:
        return self._internal_maybe_mirror_and_predict(x.to(self.device), at_once)

    @torch.inference_mode()
    def _internal_maybe_mirror_and_predict(self, x: Tensor, at_once: int | None = None) -> Tensor:
        """nnU-Net's own step for each window. at_once: images in a batch, if not `symmetries_at_once`."""
        at_once = at_once or self.symmetries_at_once
        if self.skip_empty and (x.flatten(2).amin(2) == x.flatten(2).amax(2)).all():
            return self._background(x)
        if self.precision != "bf16":
            return self._predict_symmetric(x, at_once)
        with torch.autocast(self.device.type, torch.bfloat16):
            return self._predict_symmetric(x, at_once)

    def _predict_symmetric(self, x: Tensor, at_once: int) -> Tensor:
        symmetries = find_symmetries(self.symmetries)
        if symmetries is None and at_once > 1 and self.use_mirroring and self.allowed_mirroring_axes:
            mirrors = mirrors_along([axis - (x.ndim - 2) for axis in self.allowed_mirroring_axes])
            return average_logits(self.network, x, mirrors, at_once)
        if symmetries is None:
            return super()._internal_maybe_mirror_and_predict(x)
        # What a quarter turn has laid along an axis need not be a multiple of that axis's strides.
        predict = partial(predict_padded, self.network, divisor=self.divisor)
        if self._network_of_scores:  # which are no logits of probabilities, one by one
            return average_logits(predict, x, symmetries, at_once)
        return average_probabilities(predict, x, symmetries, self.exclusive, at_once)

    def _background(self, x: Tensor) -> Tensor:
        """Logits (b, k, *s) of no region, or of the label background, as certain as `logits_of` makes them."""
        if network := self._network_of_scores:
            return network.scores_of_background(x)
        logits = x.new_full((len(x), self.label_manager.num_segmentation_heads, *x.shape[2:]), -CERTAIN)
        if self.exclusive:
            logits[:, 0] = CERTAIN
        return logits

    def _volume(self, data: Tensor) -> Volume:
        labels = list(self.label_manager.foreground_labels)
        regions = labels if self.exclusive else self.label_manager.foreground_regions
        members = [region if isinstance(region, list | tuple) else (region,) for region in regions]
        return Volume(
            data=data,
            properties=self.properties,
            patch_size=self.patch_size,
            divisor=self.divisor,
            image_channels=len(DatasetDescription(self.dataset_json).channel_names),
            regions=tuple(tuple(labels.index(label) for label in each) for each in members),
            outputs=self.label_manager.num_segmentation_heads,
            kept=self.kept,
        )
