"""How much memory one pass of a network takes, counted without data, and how much there is."""

import copy
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_brats_ext.training.cpu_memory import return_freed_memory

CONTROL_GROUPS = Path("/sys/fs/cgroup")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that live, `live`, and the most there have been, `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if (key := storage._cdata) not in self.known:
            self.known.add(key)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


@torch.no_grad()  # tensors of inference mode know no version, which `meta` needs
def bytes_of_pass(network: nn.Module, shape: Sequence[int]) -> int:
    """The most that a network in eval mode holds beside its weights while it sees an input of this shape, in fp32."""
    weights = {id(one): nn.Parameter(torch.empty_like(one, device="meta"), False) for one in network.parameters()}
    described = copy.deepcopy(network, weights).to("meta").eval()  # weights are not copied, only described
    with LiveBytes() as counted:
        described(torch.empty(tuple(shape), device="meta"))
    return counted.peak


def free_bytes(device: torch.device) -> int:
    """What this process may still take on a device; on a CPU of the machine and of its control group."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    import psutil  # here, so that counting needs torch alone

    return_freed_memory()
    return min([psutil.virtual_memory().available, *_left_in_control_groups()])


def _left_in_control_groups() -> list[int]:
    """What the limits of containers and batch systems leave: https://docs.kernel.org/admin-guide/cgroup-v2.html."""
    left = []
    try:
        own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        group = CONTROL_GROUPS / own.strip("/")
        while group.is_relative_to(CONTROL_GROUPS):
            limit = group / "memory.max"
            if limit.is_file() and (most := limit.read_text().strip()) != "max":
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                used = int((group / "memory.current").read_text()) - int(stat["inactive_file"])
                left.append(int(most) - used)
            group = group.parent
    except (OSError, StopIteration, KeyError, ValueError):  # no such system
        return left
    return left
