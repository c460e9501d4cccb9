"""Memory of one training step: what the planner estimates against what a step holds.

    python benchmarks/memory.py                              # counted at the papers' sizes, on any machine, in seconds
    python benchmarks/memory.py --resident --size 64 64 64   # a real step on the CPU, as the process grows
    python benchmarks/memory.py --device cuda                # real steps on a GPU, fp32 and mixed precision

Counted: every storage that a step creates, from forward to optimiser, on tensors that have sizes but no data; so the
papers' patches need no big machine. In fp32 that is the peak of the whole step. Mixed precision casts as CUDA does,
where no backward runs without a GPU: its forward is counted, and the surplus of the backward taken from fp32, a bound.
Neither sees the workspaces of cuDNN nor torch.compile, which nnU-Net uses on CUDA. The footprints of the papers'
configurations come from these counts; --device cuda shows how far a real GPU is from them.
"""

import argparse
import multiprocessing
import os
import resource
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from functools import cache, partial
from io import StringIO
from math import prod
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import trainings
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from trainings import CHANNELS, IN_SLICES, REGIONS, Training

from nnunet_brats_ext.inference.memory import LiveBytes
from nnunet_brats_ext.papers import GIB, Footprint, Precision, configurations, trainers

CASES = (((64, 64, 64), 1), ((64, 64, 64), 2), ((128, 128, 128), 1), ((128, 128, 128), 4), ((128, 192, 160), 1))
SLICES = (((192, 176), 1), ((192, 176), 10), ((240, 240), 1), ((240, 240), 10))  # for networks in `IN_SLICES`


def of_configuration(name: str, size: Sequence[int]) -> Training:
    """As the largest network of a paper's configuration trains, the last of equals: on plans made for the size."""
    from nnunet_brats_ext import trainers as classes
    from nnunet_brats_ext.planning.topology import deepest_topology
    from nnunet_brats_ext.training.branches import NetworkWithBranch

    facts = max(
        (one for one in reversed(trainers().values()) if one.configuration == name), key=lambda one: one.parameters or 0
    )
    topology = deepest_topology((1.0, 1.0, 1.0), size, configurations()[name].poolings)
    stages = len(topology.strides)
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages, "features_per_stage": [min(32 * 2**stage, 320) for stage in range(stages)],
            "conv_op": "torch.nn.Conv3d", "kernel_sizes": topology.kernel_sizes, "strides": topology.strides,
            "n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1), "conv_bias": True,
            "norm_op": "torch.nn.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
    }  # fmt: skip
    scheme = {"normalization_schemes": ["ZScoreNormalization"] * CHANNELS, "spacing": [1.0] * 3, "batch_dice": False}
    entry = {"patch_size": size, "batch_size": 1, "data_identifier": "none", "architecture": architecture} | scheme
    plans = {"dataset_name": "Dataset001_None", "plans_name": "Plans", "configurations": {name: entry}}
    labels = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3}
    channels = {str(i): sequence for i, sequence in enumerate(("T1", "T1ce", "T2", "FLAIR"))}
    dataset = {"channel_names": channels, "labels": labels, "regions_class_order": [1, 2, 3], "file_ending": ".nii.gz"}
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()), patch.dict(os.environ):
        os.environ |= {"nnUNet_results": folder, "nnUNet_preprocessed": folder, "nnUNet_compile": "f"}
        cpu = torch.device("cpu")
        trainer = getattr(classes, facts.name)(plans | {"continue_training": False}, name, 0, dataset, cpu)
        trainer.network = bare = type(trainer).build_network_architecture(
            trainer.plans_manager, trainer.configuration_manager, CHANNELS, REGIONS, trainer.enable_deep_supervision
        )
        if (branch := trainer.training_branch(bare)) is not None:
            trainer.network = NetworkWithBranch(bare, branch)
        optimizer, _ = trainer.configure_optimizers()
        loss, scales = trainer._build_loss(), trainer._get_deep_supervision_scales()
    if scales is None:
        return Training(
            trainer.network, lambda output, targets: loss(output, targets[0]), optimizer, CHANNELS, [[1] * 3]
        )
    return Training(trainer.network, loss, optimizer, CHANNELS, [[round(1 / n) for n in scale] for scale in scales])


NETWORKS: dict[str, Callable[[Sequence[int]], Training]] = {  # of a configuration that has none there, its trainers'
    **{name: partial(of_configuration, name) for name, one in configurations().items() if one.base == "3d_fullres"},
    **trainings.NETWORKS,
}


@cache
def footprint_of(name: str) -> Footprint:
    """The footprint that the planner estimates with; of one that has none yet, without its bytes per voxel."""
    if name == "nnunet":
        from nnunet_brats_ext.planning.fitting import PLAIN_UNET  # here, because it loads nnU-Net

        return PLAIN_UNET
    found = configurations()[name].footprint
    if found is not None:
        return found
    with FakeTensorMode():
        training, *_ = prepare(name, configurations()[name].patch_size or (64, 64, 64), 1, "cpu")
        give_state(training)
        weights = sum(p.numel() for p in training.network.parameters())
        state = [value for each in training.optimizer.state.values() for value in each.values()]
        numbers = sum(value.numel() for value in state if isinstance(value, Tensor) and value.ndim)
    print(f"{name} has no footprint yet: Footprint({weights}, {round(numbers / weights)}, bytes per voxel as below)")
    return Footprint(weights, round(numbers / weights), {"fp32": 0, "mixed": 0})


def prepare(name: str, size: Sequence[int], batch: int, device: str) -> tuple[Training, Tensor, list[Tensor]]:
    with torch.device(device):
        training = NETWORKS[name](size)
        training.network.train()
        shapes = [[n // s for n, s in zip(size, scale, strict=True)] for scale in training.scales]
        targets = [torch.rand(batch, REGIONS, *shape) > 0.7 for shape in shapes]
        return training, torch.randn(batch, training.input_channels, *size), targets


def step(
    training: Training, x: Tensor, targets: list[Tensor], after_forward: Callable[[], None] = lambda: None
) -> None:
    training.optimizer.zero_grad(set_to_none=True)
    loss = training.loss(training.network(x), targets)
    after_forward()
    loss.backward()
    training.optimizer.step()


def give_state(training: Training) -> None:
    """Let the optimiser make its state, without a step of the network."""
    for parameter in training.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    training.optimizer.step()


class Count(NamedTuple):
    """Bytes of a step when the optimiser has its state; the first is smaller."""

    peak: int
    after_forward: int


@cache
def count_fp32(name: str, size: tuple[int, ...], batch: int, fake: bool = True) -> Count:
    """The whole step; `fake`: without data, at any size; else a real one, counted in the same way."""
    forward: list[int] = []
    with FakeTensorMode() if fake else nullcontext(), LiveBytes() as bytes_:
        training, x, targets = prepare(name, size, batch, "cpu")
        give_state(training)
        bytes_.peak = bytes_.live
        step(training, x, targets, lambda: forward.append(bytes_.live))
    return Count(bytes_.peak, forward[-1])


def flash_attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
    """The kernel that torch takes on CUDA in 16 bits, on channels padded to eights; without a GPU it takes another."""
    padded = [nn.functional.pad(one, (0, -one.shape[-1] % 8)) for one in (query, key, value)]
    return torch.ops.aten._scaled_dot_product_flash_attention(*padded)[0][..., : value.shape[-1]]


def count_mixed(name: str, size: tuple[int, ...], batch: int) -> Count:
    """The forward under CUDA's autocast, plus the optimiser's state and the surplus of the backward from fp32."""
    enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    flash = patch("torch.nn.functional.scaled_dot_product_attention", flash_attention)
    with FakeTensorMode(), LiveBytes() as bytes_, flash:
        training, x, targets = prepare(name, size, batch, "cuda")
        weights = sum(p.numel() for p in training.network.parameters())
        state = footprint_of(name).optimiser_state * 4 * weights
        try:  # not torch.autocast: it declines where there is no GPU
            torch.set_autocast_enabled("cuda", True)
            torch.set_autocast_dtype("cuda", torch.float16)
            torch.autocast_increment_nesting()
            loss = training.loss(training.network(x), targets)  # noqa: F841  keeps the graph alive
        finally:
            torch.autocast_decrement_nesting()
            torch.set_autocast_enabled("cuda", enabled)
            torch.set_autocast_dtype("cuda", dtype)
        after_forward = bytes_.live + state
    fp32 = count_fp32(name, size, batch)
    return Count(after_forward + fp32.peak - fp32.after_forward, after_forward)


def measure_cuda(name: str, size: Sequence[int], batch: int, precision: Precision) -> int:
    """Peak bytes that torch allocates on the GPU, in eager mode and with the workspaces that nnU-Net lets cuDNN try."""
    torch.backends.cudnn.benchmark = True
    training, x, targets = prepare(name, size, batch, "cuda")
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        with torch.autocast("cuda", enabled=precision == "mixed"):
            loss = training.loss(training.network(x), targets)
        training.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        training.optimizer.step()
    return torch.cuda.max_memory_allocated()


def measure_resident(name: str, size: Sequence[int], batch: int) -> int:
    """By how many bytes a process grows in two real fp32 steps on the CPU."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=_grow, args=(name, tuple(size), batch, theirs))
    worker.start()
    grown = ours.recv()
    worker.join()
    return grown


def _grow(name: str, size: tuple[int, ...], batch: int, pipe) -> None:
    import psutil

    small = (32, 32) if len(size) == 2 else (16, 16, 16)
    step(*prepare(name, small, 1, "cpu"))  # whatever torch loads on first use is no memory of the step
    before = psutil.Process().memory_info().rss
    prepared = prepare(name, size, batch, "cpu")
    for _ in range(2):
        step(*prepared)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--size", type=int, nargs="+", metavar="N", help="one size, z y x or y x, instead of several")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", choices=("none", "cuda"), default="none", help="cuda: measure there as well")
    parser.add_argument("--resident", action="store_true", help="measure real steps on the CPU as well (fp32)")
    options = parser.parse_args()

    from rich import box
    from rich.console import Console
    from rich.table import Column, Table

    columns = ["network", "patch", "batch", "precision", "estimate", "counted", "B/voxel"]
    measured = [*(["GPU"] if options.device == "cuda" else []), *(["resident"] if options.resident else [])]
    title = "Peak memory of a training step in GB, without the reserve of a GPU"
    table = Table(*(Column(name, no_wrap=True) for name in (*columns, *measured)), title=title, box=box.SIMPLE)
    for name in options.networks:
        cases = SLICES if name in IN_SLICES else CASES
        if options.size and len(options.size) != len(cases[0][0]):
            continue  # slices, where volumes were asked for
        for size, batch in [(tuple(options.size), options.batch)] if options.size else cases:
            for precision, count in (("fp32", count_fp32), ("mixed", count_mixed)):
                peak, footprint = count(name, size, batch).peak, footprint_of(name)
                per_voxel = (peak - footprint.constant_bytes(size, precision)) / prod(size) / batch
                sizes = [footprint.step_bytes(size, batch, precision), peak]
                if options.device == "cuda":
                    sizes.append(measure_cuda(name, size, batch, precision))
                if options.resident and precision == "fp32":
                    sizes.append(measure_resident(name, size, batch))
                estimate, counted, *others = (f"{value / GIB:.2f}" for value in sizes)
                shown = "x".join(map(str, size))
                table.add_row(name, shown, str(batch), precision, estimate, counted, f"{per_voxel:.0f}", *others)
    Console().print(table)


if __name__ == "__main__":
    main()
