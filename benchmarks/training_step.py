"""One training step of Lyu & Shu's stage 1 against MONAI's SegResNetVAE of the same widths: throughput, peak memory.

    pip install -e .[benchmark]
    python benchmarks/training_step.py                           # 64 x 96 x 80 on the CPU
    python benchmarks/training_step.py --device cuda --size 128 192 160
    python benchmarks/training_step.py --profile                 # and what the time of a step is spent on
    python benchmarks/training_step.py --variants                # and what each trade of time for memory does

Both train with the same Dice loss, optimiser and precision: mixed on CUDA, as nnU-Net trains; with --compile, compiled.
Each network lives in a process of its own; the two take turns, so that a machine that drifts is unfair to neither.
Only the ratios mean something. Peak memory is what the steps add to the process before the first of them.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType

BATCH, REGIONS, CHANNELS = 1, 3, 4
KINDS = {  # of torch's operations, by parts of their names; the first that fits
    "convolution, backward": ("convolution_backward",),
    "convolution, forward": ("convolution",),
    "normalisation": ("norm", "moments"),
    "interpolation": ("upsample",),
    "optimiser": ("optimizer", "adam", "addcdiv", "lerp", "addcmul"),
    "copies and new memory": ("copy", "clone", "fill", "zero", "cat"),
}


def ours(size: tuple[int, ...], device: torch.device) -> nn.Module:
    """As our trainers train it: freed memory is kept, normalisations and activations are computed twice."""
    from nnunet_brats_ext.training.cpu_memory import keep_freed_memory

    if device.type == "cpu":
        keep_freed_memory()
    return ours_returning_memory(size, device)


def ours_computing_once(size: tuple[int, ...], device: torch.device) -> nn.Module:
    from nnunet_brats_ext.architectures import blocks

    blocks.recomputed = lambda part, x: part(x)
    return ours(size, device)


def ours_returning_memory(size: tuple[int, ...], device: torch.device) -> nn.Module:
    from nnunet_brats_ext.architectures.residual_unet import PreActivationResidualUNet
    from nnunet_brats_ext.architectures.vae import VAEBranch
    from nnunet_brats_ext.training.branches import NetworkWithBranch, VAERegularisation
    from nnunet_brats_ext.training.seams import fastest_memory_format

    network = PreActivationResidualUNet(CHANNELS, REGIONS)
    branch = VAERegularisation(VAEBranch(CHANNELS, network.endpoint_size(size)), CHANNELS)
    return NetworkWithBranch(network, branch).to(memory_format=fastest_memory_format(device, len(size), network))


def ours_contiguous(size: tuple[int, ...], device: torch.device) -> nn.Module:
    return ours(size, device).to(memory_format=torch.contiguous_format)


def monai(size: tuple[int, ...], device: torch.device) -> nn.Module:
    from monai.networks.nets import SegResNetVAE

    return SegResNetVAE(
        size, vae_nz=128, init_filters=32, in_channels=CHANNELS, out_channels=REGIONS, dropout_prob=0.2,
        blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1),
    )  # fmt: skip


def monai_keeping_memory(size: tuple[int, ...], device: torch.device) -> nn.Module:
    from nnunet_brats_ext.training.cpu_memory import keep_freed_memory

    keep_freed_memory()
    return monai(size, device)


PEER, OURS = "MONAI SegResNetVAE", "nnunet_brats_ext"
NETWORKS: dict[str, Callable[..., nn.Module]] = {OURS: ours, PEER: monai}
VARIANTS: dict[str, Callable[..., nn.Module]] = {
    f"{OURS}, freed memory returned": ours_returning_memory,
    f"{OURS}, nothing computed twice": ours_computing_once,
    f"{OURS}, contiguous": ours_contiguous,
    f"{OURS}, compiled": lambda size, device: torch.compile(ours(size, device)),
    f"{PEER}, freed memory kept": monai_keeping_memory,
    f"{PEER}, compiled": lambda size, device: torch.compile(monai(size, device)),
}


def total_loss(output: tuple, target: Tensor, dice: nn.Module) -> Tensor:
    logits, auxiliary = output
    terms = auxiliary.values() if isinstance(auxiliary, dict) else [0.1 * auxiliary]
    return dice(logits, target) + sum(terms)


def serve(name: str, size: tuple[int, ...], device_name: str, threads: int, compiled: bool, pipe: Connection) -> None:
    """Answer each message with the seconds of one step; on None, with the peak memory in MiB and the parameters."""
    import psutil

    from nnunet_brats_ext.losses.dice import SoftDiceLoss

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    network = (NETWORKS | VARIANTS)[name](size, device).to(device).train()
    parameters = sum(p.numel() for p in network.parameters())
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, weight_decay=1e-5)
    x = torch.randn(BATCH, CHANNELS, *size, device=device)
    target = torch.rand(BATCH, REGIONS, *size, device=device) > 0.5
    dice = SoftDiceLoss()
    forward = torch.compile(network) if compiled else network
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    resident = psutil.Process().memory_info().rss

    def step() -> float:
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, enabled=device.type == "cuda"):
            loss = total_loss(forward(x), target, dice)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    while (message := pipe.recv()) is not None:
        pipe.send(shares(step, device) if message == "profile" else step())
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident
    pipe.send((peak / 2**20, parameters))


def shares(step: Callable[[], float], device: torch.device) -> dict[str, float]:
    """What a step spends its time on, largest first: kind of operation -> share, without what it calls."""
    with torch.profiler.profile() as profile:
        step()
    time_of = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    found: dict[str, float] = {}
    for event in profile.key_averages():
        if event.device_type != DeviceType.CPU:  # a kernel, whose time its operation has as well
            continue
        kinds = (kind for kind, parts in KINDS.items() if any(part in event.key.lower() for part in parts))
        kind = next(kinds, "all else")
        found[kind] = found.get(kind, 0) + getattr(event, time_of)
    total = sum(found.values())
    return {kind: found[kind] / total for kind in sorted(found, key=found.__getitem__, reverse=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(64, 96, 80), metavar=("Z", "Y", "X"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile both, as nnU-Net does on CUDA")
    parser.add_argument("--rounds", type=int, default=7, help="counted steps of each network, after two warm-ups")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--variants", action="store_true", help="with what trades time for memory turned off, or on")
    parser.add_argument("--profile", action="store_true", help="what a further step of each spends its time on")
    options = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name in NETWORKS | VARIANTS if options.variants else NETWORKS:
        pipes[name], theirs = context.Pipe()
        arguments = (name, tuple(options.size), options.device, options.threads, options.compile, theirs)
        context.Process(target=serve, args=arguments, daemon=True).start()

    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(options.rounds + 2):
        for name, pipe in pipes.items():
            pipe.send("step")
            seconds[name].append(pipe.recv())
    for name, pipe in pipes.items() if options.profile else ():
        pipe.send("profile")
        print(f"{name}:", ", ".join(f"{kind} {share:.0%}" for kind, share in pipe.recv().items()))
    peaks, parameters = {}, {}
    for name, pipe in pipes.items():
        pipe.send(None)
        peaks[name], parameters[name] = pipe.recv()

    print(f"{' x '.join(map(str, options.size))} on {options.device}, {options.rounds} rounds, beside {PEER}")
    print("| | parameters | throughput | in the rounds | peak memory |\n|---|---|---|---|---|")
    for name, taken in seconds.items():
        ratios = sorted(peer / own for own, peer in zip(taken[2:], seconds[PEER][2:], strict=True))
        print(
            f"| {name} | {parameters[name]:,} | {statistics.median(ratios):.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} "
            f"| {peaks[name] / peaks[PEER]:.2f} ({peaks[name]:.0f} MiB) |"
        )


if __name__ == "__main__":
    main()
