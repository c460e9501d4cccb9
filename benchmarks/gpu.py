"""What a GPU makes of the networks: training steps, memory against the planner's estimate, volumes per second.

    PYTHONPATH=. python benchmarks/gpu.py                       # on a GPU: the papers' sizes, in 8 minutes
    PYTHONPATH=. python benchmarks/gpu.py --device cpu --small  # the same rows at small sizes, on any machine
    PYTHONPATH=. python benchmarks/gpu.py --device cpu --size 64 64 64 --tables training

Needs torch, this checkout, which need not be installed, and `pip install --no-deps dynamic-network-architectures`.
Myronenko's network and SegResNetVAE have rows where MONAI is installed; a new paper's networks where nnunetv2 is, until
trainings.py builds them. What is worth knowing first comes first, every network in its plain form before any is
compiled; what the minutes do not allow is named, and so is what fails, with the reason.

Training: a step of forward, loss, backward and optimiser in mixed precision, as nnU-Net trains on CUDA (in fp32 on a
CPU); then the same channels-last and with torch.compile, on a CPU with --small alone, where no code is generated.
Peak: what torch allocates, on a CPU what the step holds. `plan` is the planner's estimate without its reserve.
Prediction: one volume of 144 x 176 x 144, a brain of BraTS after nnU-Net's crop, in one pass and in windows, once and
in eight mirror images: what other tilings and symmetries cost is their number of passes. The windows of the package are
nnU-Net's own, which are placed here without it. CPU: whether logits are those of the CPU in fp32.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import product
from math import prod
from textwrap import shorten
from typing import Any

import torch
from memory import NETWORKS
from torch import Tensor
from trainings import CHANNELS, IN_SLICES, REGIONS, Training

from nnunet_brats_ext.inference.choices import find_symmetries
from nnunet_brats_ext.inference.memory import LiveBytes, bytes_of_pass
from nnunet_brats_ext.inference.symmetries import average_probabilities
from nnunet_brats_ext.inference.tilings import predict_padded
from nnunet_brats_ext.papers import GIB, Precision, configurations

BRAIN = (144, 176, 144)
DIVISOR = (16, 16, 16)
SMALL, SMALL_OF = 32, {"lachinov_brain": 64}  # the edge of a small patch
WARM_UP, COUNTED = 3, 5
COMPILING = 60  # seconds that must be left where a network is yet to be compiled
AUXILIARY = 0.1
MONAI = "MONAI SegResNetVAE"


class Machine:
    """The device, and the minutes that are left on it."""

    def __init__(self, device: str, minutes: float, networks: Sequence[str], size: Sequence[int] | None, small: bool):
        self.device, self.networks, self.size, self.small = torch.device(device), networks, size, small
        self.ends = time.monotonic() + 60 * minutes
        self.left_out: list[str] = []
        self.plain: dict[str, float] = {}  # network -> seconds of its step, neither channels-last nor compiled

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def allows(self, row: str, seconds: float = 0) -> bool:
        """Whether more than so many seconds are left for a row; one that may not start is named."""
        if time.monotonic() + seconds < self.ends:
            return True
        self.left_out.append(row)
        return False

    def leave_out(self, row: str, error: Exception, size: Sequence[int]) -> None:
        """Name a row that failed, with the reason; it must not cost the others their minutes."""
        words = shorten(f"{type(error).__name__}: {error}", 300)  # torch's errors have many lines
        missing = isinstance(error, ImportError)
        reason = f"{error.name} is not installed" if missing else f"{shown(size)}: {words}"
        self.left_out.append(f"{row} ({reason})")

    def mixed(self) -> Any:
        return torch.autocast("cuda") if self.is_cuda else nullcontext()

    def seconds(self, work: Callable[[], object], counted: int = COUNTED) -> float:
        """The median of some calls after a warm-up; at small sizes, one call."""
        taken = []
        for number in range(1 if self.small else WARM_UP + counted):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - start)
            if number >= WARM_UP and time.monotonic() > self.ends:
                break
        warm = taken[WARM_UP:] or taken
        return sorted(warm)[len(warm) // 2]

    def wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def peak_gb(self, work: Callable[[], object], held: Sequence[Tensor] = ()) -> float:
        """What torch allocates at most; on a CPU these tensors and what the work makes."""
        if not self.is_cuda:
            with LiveBytes() as bytes_:
                _ = [tensor.detach() for tensor in held]  # a view, by which they are counted
                work()
            return bytes_.peak / GIB
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        work()
        self.wait()
        return torch.cuda.max_memory_allocated() / GIB


# ---- a training step -----------------------------------------------------------------------------------------------


def size_of(name: str, machine: Machine, small: bool) -> tuple[int, ...]:
    """Of the patch: the paper's, the one that was asked for, or a small one."""
    known = configurations().get("lyu_stage1" if name == MONAI else name)
    paper = (known.patch_size if known else None) or (128, 128, 128)
    if name in IN_SLICES:
        return (2 * SMALL,) * 2 if small else (240, 240)
    if name == "omnet":
        return paper
    return (SMALL_OF.get(name, SMALL),) * 3 if small else tuple(machine.size or paper)


def monai_training(size: Sequence[int]) -> Training:
    """MONAI's network of Lyu & Shu's stage 1, with the same loss and optimiser."""
    from monai.networks.nets import SegResNetVAE

    from nnunet_brats_ext.losses.dice import SoftDiceLoss

    network = SegResNetVAE(
        tuple(size), vae_nz=128, init_filters=32, in_channels=CHANNELS, out_channels=REGIONS,
        dropout_prob=0.2, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1),
    )  # fmt: skip
    dice = SoftDiceLoss()
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, weight_decay=1e-5)

    def loss(output: Any, targets: Sequence[Tensor]) -> Tensor:
        logits, auxiliary = output
        return dice(logits, targets[0]) + AUXILIARY * auxiliary

    return Training(network, loss, optimizer, CHANNELS, ((1, 1, 1),))


def training_rows(machine: Machine, last: bool = False, compiled: bool = False) -> Iterator[list[str]]:
    if compiled and not (machine.is_cuda or machine.small):
        return
    form = "compiled" if compiled else "channels last" if last else "plain"
    for name in sorted(machine.networks, key=["lyu_stage1", MONAI].__contains__, reverse=True):
        if not machine.allows(f"training {name}, {form}", COMPILING if compiled else 0):
            continue
        size = size_of(name, machine, machine.small)
        try:
            taken, peak = train(machine, NETWORKS.get(name, monai_training), size, last, compiled)
        except torch.OutOfMemoryError:
            yield [name, shown(size), "does not fit", "", "", ""]
            continue
        except Exception as error:
            machine.leave_out(f"training {name}, {form}", error, size)
            continue
        row = [name, shown(size), f"{1000 * taken:.0f}", f"{prod(size) / taken / 1e6:.2f}", f"{peak:.2f}"]
        if form == "plain":
            machine.plain[name] = taken
            yield [*row, planned_gb(name, size, "mixed" if machine.is_cuda else "fp32")]
        else:
            yield [*row, f"{machine.plain[name] / taken:.2f}" if name in machine.plain else ""]


def planned_gb(name: str, size: Sequence[int], precision: Precision) -> str:
    """The planner's estimate, without the reserve of a GPU; empty where there is none."""
    footprint = configurations()[name].footprint if name in configurations() else None
    return f"{footprint.step_bytes(size, 1, precision) / GIB:.2f}" if footprint else ""


def train(
    machine: Machine, build: Callable[[Sequence[int]], Training], size: Sequence[int], last: bool, compiled: bool
) -> tuple[float, float]:
    """Seconds of a step with one sample, and its peak in GB."""
    torch.manual_seed(0)
    with machine.device:
        training = build(size)
        x = torch.randn(1, training.input_channels, *size)
        shapes = [[n // s for n, s in zip(size, scale, strict=True)] for scale in training.scales]
        targets = [torch.rand(1, REGIONS, *shape) > 0.7 for shape in shapes]
    network = training.network.train()
    if last:
        network.to(memory_format=torch.channels_last if len(size) == 2 else torch.channels_last_3d)
    torch.compiler.reset()  # or a module of the same class, of another size, would be compiled for sizes that change
    backend = "inductor" if machine.is_cuda else "eager"  # whether it can be compiled, not what it gains
    forward = torch.compile(network, backend=backend) if compiled else network
    scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.is_cuda)

    def step() -> None:
        training.optimizer.zero_grad(set_to_none=True)
        with machine.mixed():
            loss = training.loss(forward(x), targets)
        scaler.scale(loss).backward()
        scaler.step(training.optimizer)
        scaler.update()

    taken = machine.seconds(step)
    state = [value for each in training.optimizer.state.values() for value in each.values()]
    held = [one for one in (x, *targets, *network.parameters(), *network.buffers(), *state) if isinstance(one, Tensor)]
    return taken, machine.peak_gb(step, held)


# ---- a volume ------------------------------------------------------------------------------------------------------


def sliding(predict: Callable[[Tensor], Tensor], volume: Tensor, patch: Sequence[int], step: float = 0.5) -> Tensor:
    """The mean of windows over a volume (1, c, z, y, x), where nnU-Net puts them, without its Gaussian weights."""
    starts = []
    for length, extent in zip(volume.shape[2:], patch, strict=True):
        number = max(0, -int(-(length - extent) // (extent * step))) + 1
        starts.append(sorted({round(n * (length - extent) / max(number - 1, 1)) for n in range(number)}))
    total: Tensor | None = None
    for start in product(*starts):
        inside = (..., *(slice(s, s + extent) for s, extent in zip(start, patch, strict=True)))
        logits = predict(volume[inside])
        if total is None:
            total = logits.new_zeros(1, logits.shape[1], *volume.shape[2:], dtype=torch.float32)
            count = logits.new_zeros(volume.shape[2:], dtype=torch.float32)
        total[inside] += logits
        count[inside[1:]] += 1
    assert total is not None
    return total / count


def prediction_rows(machine: Machine) -> Iterator[list[str]]:
    from nnunet_brats_ext.architectures.residual_unet import PreActivationResidualUNet

    size = (SMALL // 2, SMALL, SMALL // 2) if machine.small else BRAIN
    patch = (SMALL // 2,) * 3 if machine.small else (128, 128, 128)
    precisions = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
    try:
        with machine.device:
            torch.manual_seed(0)
            network = PreActivationResidualUNet(CHANNELS, REGIONS).eval()
            volume = torch.randn(1, CHANNELS, *size)
        counted = bytes_of_pass(network, volume.shape) / GIB
    except Exception as error:
        machine.leave_out("prediction", error, size)
        return
    ways = product(("brain", "windows"), ("none", "mirror8"), (1, 8), precisions.items())
    for tiling, symmetries, at_once, (precision, kind) in ways:
        if (symmetries == "none" and at_once > 1) or (not machine.is_cuda and precision != "fp32"):
            continue
        row = [tiling, f"{symmetries}{', in one batch' if at_once > 1 else ''}", precision]
        if not machine.allows(f"prediction {', '.join(row)}"):
            continue
        padded = partial(predict_padded, network, divisor=DIVISOR)
        averaged = partial(average_probabilities, padded, symmetries=find_symmetries(symmetries), at_once=at_once)
        way = averaged if tiling == "brain" else partial(sliding, averaged, patch=patch)

        @torch.inference_mode()
        def predict(way: Callable = way, kind: torch.dtype | None = kind) -> Tensor:
            with torch.autocast(machine.device.type, kind) if kind else nullcontext():
                return way(x=volume) if way.func is not sliding else way(volume=volume)

        try:
            taken, peak = machine.seconds(predict, counted=3), machine.peak_gb(predict)
        except torch.OutOfMemoryError:
            yield [*row, "does not fit", "", ""]
            continue
        except Exception as error:
            machine.leave_out(f"prediction {', '.join(row)}", error, size)
            continue
        known = f"{counted:.2f}" if tiling == "brain" and at_once == 1 else ""
        yield [*row, f"{taken:.3f}", f"{peak:.2f}", known]


# ---- the same as on a CPU ------------------------------------------------------------------------------------------


def difference_rows(machine: Machine) -> Iterator[list[str]]:
    with without_tf32():
        for name, build in NETWORKS.items():
            if name not in machine.networks or not machine.allows(f"CPU {name}"):
                continue
            size = size_of(name, machine, small=True)
            try:
                shares = differences(machine, build, size)
            except Exception as error:
                machine.leave_out(f"CPU {name}", error, size)
                continue
            yield [name, *(f"{share:.1e}" for share in shares)]


@contextmanager
def without_tf32() -> Iterator[None]:
    """Multiply in whole fp32 within the block; afterwards as before."""
    kinds = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [kind.allow_tf32 for kind in kinds]
    try:
        for kind in kinds:
            kind.allow_tf32 = False
        yield
    finally:
        for kind, allowed in zip(kinds, before, strict=True):
            kind.allow_tf32 = allowed


def differences(
    machine: Machine, build: Callable[[Sequence[int]], Training], size: Sequence[int]
) -> tuple[float, float]:
    """The largest difference of logits from those of the CPU, in fp32 and mixed, as shares of their spread."""
    torch.manual_seed(0)
    training = build(size)
    network = getattr(training.network, "network", training.network).eval()
    x = torch.randn(1, training.input_channels, *size)
    with torch.inference_mode():
        expected = first(network(x))
        network.to(machine.device)
        found = first(network(x.to(machine.device))).cpu()
        with machine.mixed():
            mixed = first(network(x.to(machine.device))).float().cpu()
    spread = float(expected.std())
    return float((found - expected).abs().max()) / spread, float((mixed - expected).abs().max()) / spread


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, list | tuple) else output


# ---- tables --------------------------------------------------------------------------------------------------------

TRAINED = ("network", "patch", "ms", "M voxels/s", "peak GB")
TABLES: dict[str, tuple[str, Sequence[str], Callable[[Machine], Iterator[list[str]]]]] = {
    "training": ("A training step of one sample", (*TRAINED, "plan GB"), training_rows),
    "prediction": (
        "One volume by Lyu & Shu's stage 1",
        ("tiling", "symmetries", "precision", "s", "peak GB", "counted GB"),
        prediction_rows,
    ),
    "cpu": ("Largest difference from the CPU, as a share of the spread", ("network", "fp32", "mixed"), difference_rows),
    "channels-last": ("Channels-last", (*TRAINED, "times as fast"), partial(training_rows, last=True)),
    "compiled": ("With torch.compile", (*TRAINED, "times as fast"), partial(training_rows, compiled=True)),
}


def shown(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=8, help="(default: %(default)s)")
    parser.add_argument(
        "--size", type=int, nargs=3, metavar="N", help="z y x of 3-D networks but OM-Net's; not with --small"
    )
    parser.add_argument("--small", action="store_true", help="small sizes: whether it runs, not how fast")
    every = [*NETWORKS, MONAI]
    parser.add_argument("--networks", nargs="+", choices=every, default=every, metavar="NAME")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    options = parser.parse_args(words)
    machine = Machine(options.device, options.minutes, options.networks, options.size, options.small)
    torch.backends.cudnn.benchmark = True
    device = torch.cuda.get_device_name() if machine.is_cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {device}")
    for title, columns, rows in map(TABLES.__getitem__, options.tables):
        print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for row in rows(machine):
            print(f"| {' | '.join(row)} |", flush=True)
    for row in machine.left_out:
        print(f"left out: {row}")


if __name__ == "__main__":
    main()
