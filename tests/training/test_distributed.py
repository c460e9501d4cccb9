"""Trainings on several GPUs, as nnU-Net's `-num_gpus` starts them: here two processes on a CPU, with gloo for NCCL."""

import contextlib
import hashlib
import io
import json
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as nnunet
import numpy as np
import pytest
import torch
from conftest import World, threads_for_processes
from tiny_trainers import CPU, build, distinct_trainers, make_tiny, random_batch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_brats_ext import trainers
from nnunet_brats_ext.dataset_conversion.case_filtering import CASE_LOSSES
from nnunet_brats_ext.training.base import BraTSTrainer
from nnunet_brats_ext.training.environment import EPOCHS, ITERATIONS

RANKS = 2
DISTINCT = distinct_trainers()
TRAINED = (
    "BraTSVAETrainer",  # a branch that only training has
    "BraTSDeepSupervisionTrainer",  # averaged weights, losses of cases
    "BraTSDeepSupervisionBTrainer",  # weights of the lowest validation loss
    "BraTSOMNetCGATrainer",  # tasks that wait
    "BraTS2DTrainer",  # a learning rate that follows the training loss
)
VALIDATED = "BraTSVAETrainer"


@contextlib.contextmanager
def process_group(rank: int, rendezvous: Path) -> Iterator[None]:
    distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=RANKS, timeout=timedelta(seconds=120)
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def build_here(world: World, name: str, **changes: Any) -> BraTSTrainer:
    """A trainer with two samples in the batch of all processes, on the CPU, where nnU-Net expects a GPU for each."""
    trainer = build(world, name, batch_size=RANKS, **changes)
    trainer.device, trainer.grad_scaler = CPU, None
    trainer.initialize()
    return trainer


def gradients(trainer: BraTSTrainer, batch: dict) -> Tensor:
    """Of one training step, late in the curricula, with nothing random in it and batch normalisation as in inference.

    Its statistics are nnU-Net's to bring together, by a layer that exists on GPUs only.
    """
    trainer.current_epoch = trainer.num_epochs - 1
    trainer.network.train()
    for module in trainer.network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    trainer.train_step(batch)
    parameters = trainer.bare_network.parameters()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def compare_gradients(world: World, name: str, rank: int, rendezvous: Path) -> dict[str, float]:
    """Those of all processes with a part of a batch each, and in the first those of the whole batch in one process."""
    changes = {} if "2D" in name else {"patch_size": [8, 16, 16]}
    with double_precision():
        torch.manual_seed(rank)  # all start from the weights of the first
        with process_group(rank, rendezvous):
            trainer = build_here(world, name, **changes)
            samples = trainer.batch_size
            trainer.batch_size *= RANKS
            batch = random_batch(trainer)
            trainer.batch_size = samples
            rows = slice(rank, None, RANKS)  # of every task of OM-Net, whose rows lie one behind the other
            target = batch["target"]
            part = [scale[rows] for scale in target] if isinstance(target, list) else target[rows]
            found = gradients(trainer, {"data": batch["data"][rows], "target": part})
        if rank:
            return {}
        torch.manual_seed(0)
        expected = gradients(build_here(world, name, **changes), batch)
    return {"norm": float(expected.norm()), "difference": float((found - expected).norm())}


def train(world: World, name: str, rank: int, rendezvous: Path) -> dict[str, Any]:
    """A short training, of one trainer with its validation; and another that goes on from a checkpoint of it."""
    torch.manual_seed(rank)
    np.random.seed(rank)
    with process_group(rank, rendezvous):
        trainer = build_here(world, name)
        trainer.run_training()
        if name == VALIDATED:
            trainer.perform_actual_validation()
        folder = Path(trainer.output_folder)
        continued = build_here(world, name)
        continued.load_checkpoint(str(folder / "checkpoint_best.pth"))
        continued.on_train_start()
        losses = folder / CASE_LOSSES
        return {
            "weights": digest(trainer.bare_network.state_dict()),
            "stored": digest(torch.load(folder / "checkpoint_final.pth", weights_only=False)["network_weights"]),
            "continued": digest(continued.bare_network.state_dict()),
            "random": torch.randint(2**31, ()).item(),
            "validated": sorted(path.name for path in (folder / "validation").glob("*.nii.gz")),
            "cases": sorted(f"{case}.nii.gz" for case in trainer.do_split()[1]),
            "losses": [len(json.loads(line)["losses"]) for line in losses.open()] if losses.is_file() else None,
        }


def digest(weights: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(b"".join(value.contiguous().numpy().tobytes() for value in weights.values())).hexdigest()


def run(rank: int, world: World, folder: Path) -> None:
    """What one process does; it leaves a file per training for the tests."""
    os.environ |= world.settings | {EPOCHS: "2", ITERATIONS: "1"}
    torch.set_num_threads(1)
    nnunet.DDP = lambda network, device_ids: DistributedDataParallel(network)  # there are no GPUs to name
    nn.SyncBatchNorm.convert_sync_batchnorm = lambda network: network
    with contextlib.redirect_stdout(io.StringIO()), pytest.MonkeyPatch.context() as patch, threads_for_processes():
        for name in DISTINCT:
            make_tiny(getattr(trainers, name), patch)
        for name in TRAINED:
            note(partial(train, world, name), rank, folder / f"training-{name}")
        torch.randn_like = torch.zeros_like  # the noise of VAE branches, which a batch and its parts do not share
        for name in DISTINCT:
            note(partial(compare_gradients, world, name), rank, folder / f"gradients-{name}")


def note(work: Callable[[int, Path], dict], rank: int, file: Path) -> None:
    try:
        found = work(rank, file)  # where the processes meet
    except Exception:
        found = {"error": traceback.format_exc()}
    Path(f"{file}-{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def results(world_on_disk, tmp_path_factory) -> Callable[[str], list[dict]]:
    folder = tmp_path_factory.mktemp("distributed")
    torch.multiprocessing.spawn(run, (world_on_disk, folder), RANKS)

    def read(name: str) -> list[dict]:
        found = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(RANKS)]
        errors = [one["error"] for one in found if "error" in one]
        assert not errors, "\n".join(errors)
        return found

    return read


@pytest.mark.parametrize("name", DISTINCT)
def test_a_step_of_two_processes_has_the_gradients_of_one_with_the_whole_batch(name, results):
    found, _ = results(f"gradients-{name}")
    assert found["norm"] > 0
    assert found["difference"] < 1e-5 * found["norm"]  # nnU-Net adds 1e-6 of its coarsest scale in this case


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_train_and_validate_one_model(name, results):
    first, second = results(f"training-{name}")
    assert first["weights"] == second["weights"] == first["stored"]
    assert first["validated"] == (first["cases"] if name == VALIDATED else [])
    if first["losses"] is not None:
        assert len(first["losses"]) == 2, "one line per epoch, from one process"


@pytest.mark.parametrize("name", TRAINED)
def test_processes_go_on_with_the_same_weights_and_with_random_numbers_of_their_own(name, results):
    first, second = results(f"training-{name}")
    assert first["continued"] == second["continued"]
    assert first["random"] != second["random"]
