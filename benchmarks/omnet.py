"""OM-Net against the three networks it replaces, in training; and its paper's tiles against large ones, in prediction.

    python benchmarks/omnet.py                                   # on the CPU: 2 patches per task, 40 x 96 x 96 voxels
    python benchmarks/omnet.py --volume 130 168 136 --tile 144 184 152 --predict OM-Net         # a whole brain
    python benchmarks/omnet.py --device cuda --batch 20 --volume 130 168 136 --tile 144 184 152

Training: patches of 16 x 32 x 32 per second with loss, clipping and optimiser as the trainers have them, in mixed
precision on CUDA. Prediction: seconds for a volume in tiles of 16 x 32 x 32, of which the central 5 x 20 x 20 are kept,
and in tiles of --tile with the same margins. All weights are random, which costs the same. What is compared takes
turns, so that a machine that drifts is unfair to none; only the ratios mean something.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nnunet_brats_ext.architectures.omnet.networks import ModelCascade, OMNet, TaskNetwork
from nnunet_brats_ext.inference.tilings import Volume
from nnunet_brats_ext.losses.multi_task import TRANSFER, MultiTaskCrossEntropy
from nnunet_brats_ext.trainers.zhou2020.tilings import CENTRAL_PARTS
from nnunet_brats_ext.training.seams import fastest_memory_format

CHANNELS, CLASSES = 4, 5
PATCH, KEPT = (16, 32, 32), (5, 20, 20)
NETWORKS: Mapping[str, Callable[..., TaskNetwork]] = {
    "MC3": ModelCascade,
    "OM-Net": OMNet,
    "OM-Net+CGA": partial(OMNet, guidance="full"),
}


def prepare(name: str, device: torch.device) -> TaskNetwork:
    network = NETWORKS[name](CHANNELS)
    return network.to(device, memory_format=fastest_memory_format(device, len(PATCH), network))


def training_step(network: TaskNetwork, batch: int) -> Callable[[], None]:
    """One batch of `batch` patches for each task, as the trainers take it."""
    device = next(network.parameters()).device
    on_gpu = device.type == "cuda"
    loss = MultiTaskCrossEntropy(transfer=TRANSFER if isinstance(network, OMNet) else {})
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.99, weight_decay=5e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=on_gpu)
    x = torch.randn(network.tasks * batch, CHANNELS, *PATCH, device=device)
    labels = torch.randint(0, CLASSES, (len(x), 1, *PATCH), device=device)

    def step() -> None:
        network.train()
        for tasks in network.steps(network.tasks):
            network.active_tasks = tasks
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, enabled=on_gpu):
                value = loss(network(x), [labels, labels])
            scaler.scale(value).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
            scaler.step(optimizer)
            scaler.update()

    return step


def prediction(network: TaskNetwork, data: Tensor, tile: tuple[int, ...]) -> Callable[[], None]:
    """A volume in overlapping tiles; of each, all but the margins of the paper's tile is kept."""
    kept = tuple(length - (patch - keep) for length, patch, keep in zip(tile, PATCH, KEPT, strict=True))
    volume = Volume(data, {}, tile, (8, 8, 8), CHANNELS, regions=(), outputs=3, kept=kept)
    device = next(network.parameters()).device

    def predict() -> None:
        network.eval()
        with torch.inference_mode(), torch.autocast(device.type, enabled=device.type == "cuda"):
            network.gives_scores = True
            network.fuse(CENTRAL_PARTS(lambda x: network(x.to(device)), volume)[None])

    return predict


def take_turns(runs: Mapping[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each run, round by round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - begin)
    return {name: each[1:] for name, each in seconds.items()}


def show(title: str, work: str, seconds: Mapping[str, list[float]], facts: Mapping[str, str], units: int) -> None:
    """One row per run; ratios are of speed, to the first run, as the median and the range over the rounds."""
    table = Table("", work, "seconds", "times as fast", "from ... to", title=title, box=SIMPLE)
    first = next(iter(seconds.values()))
    for name, each in seconds.items():
        median = statistics.median(each)
        ratios = sorted(a / b for a, b in zip(first, each, strict=True))
        speed = f"{units / median:.1f}/s" if units else ""
        shown = f"{ratios[0]:.2f} ... {ratios[-1]:.2f}"
        table.add_row(name, f"{facts[name]} {speed}", f"{median:.2f}", f"{statistics.median(ratios):.2f}", shown)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--batch", type=int, default=2, help="patches per task in a training step (the paper: 20)")
    parser.add_argument("--volume", type=int, nargs=3, default=(40, 96, 96), metavar=("Z", "Y", "X"))
    parser.add_argument("--tile", type=int, nargs=3, default=(56, 112, 112), metavar=("Z", "Y", "X"))
    parser.add_argument("--predict", nargs="+", choices=("OM-Net", "OM-Net+CGA"), default=["OM-Net", "OM-Net+CGA"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True

    networks = {name: prepare(name, options.device) for name in NETWORKS}
    parameters = {name: f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M" for name, net in networks.items()}
    steps = {name: training_step(network, options.batch) for name, network in networks.items()}
    title = f"Training on {options.device}, {options.batch} patches per task"
    show(title, "parameters, patches", take_turns(steps, options.rounds, options.device), parameters, 3 * options.batch)

    data = torch.randn(CHANNELS, *options.volume)
    tiles = {"the paper's": PATCH, "large": tuple(options.tile)}
    shown = {name: " x ".join(map(str, tile)) for name, tile in tiles.items()}
    for name in options.predict:
        runs = {each: prediction(networks[name], data, tile) for each, tile in tiles.items()}
        title = f"{name}: a volume of {' x '.join(map(str, options.volume))} on {options.device}"
        show(title, "tiles", take_turns(runs, max(options.rounds // 2, 1), options.device), shown, 0)


if __name__ == "__main__":
    main()
