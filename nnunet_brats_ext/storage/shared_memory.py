"""/dev/shm, through which processes hand tensors over: containers often give it 64 MB, too little for a batch."""

import shutil
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
LEAST_GB = 1.0


def shared_gb() -> float | None:
    """How much there is; None where the system has none of its own."""
    return shutil.disk_usage(SHARED_MEMORY).total / 1e9 if SHARED_MEMORY.is_dir() else None


def too_little_shared() -> str | None:
    """Why no worker processes are used, in a sentence; None where there is enough."""
    size = shared_gb()
    if size is None or size >= LEAST_GB:
        return None
    return (
        f"{SHARED_MEMORY} has {size * 1000:.0f} MB, too little for worker processes: all is done in this one. "
        "--shm-size=8g (docker) or --ipc=host gives more"
    )
