"""The state of all random generators: seeded at the start, stored in checkpoints, restored when training resumes."""

import random
from typing import Any

import numpy as np
import torch


def seed_everything(number: int) -> None:
    """Start all random generators of this process from a number."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def random_state() -> dict[str, Any]:
    """The state of all random generators of this process."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
