"""Options that several commands have, each stated once: flags, choices, limits and help."""

from dataclasses import MISSING
from pathlib import Path
from typing import Any

from nnunet_brats_ext.brats import LABEL_SCHEMES
from nnunet_brats_ext.storage.options import option
from nnunet_brats_ext.storage.parallel import MOST_PROCESSES

DEVICES = ("cuda", "cpu", "mps")  # torch's names, as nnU-Net's commands take them


def processes_option(**spec: Any) -> Any:
    """How many processes share the cases; None is `storage.parallel.default_processes`."""
    text = f"processes; default: one per core, at most {MOST_PROCESSES}"
    return option("-np", default=None, at_least=1, help=text, **spec)


def device_option(default: str | None, help: str = "what networks run on", **spec: Any) -> Any:
    """What networks run on. help: says so where the default is more than a name."""
    return option("-device", default=default, choices=DEVICES, help=help, **spec)


def gpu_memory_option() -> Any:
    """The memory that the papers' configurations are fitted to."""
    text = "memory of each GPU, which the papers' patches are fitted to; default: the papers' own settings"
    return option(default=None, metavar="GB", above=0, at_most=10_000, help=text)


def overwrite_option(help: str = "replace the maps that the output folder holds of the same cases") -> Any:
    """Whether what an output folder holds may be replaced."""
    return option(default=False, help=help)


def ties_option(where: str) -> Any:
    """Which rule of Lyu & Shu 2020 settles equal votes: that of their release or that of their text."""
    return option(
        default="release",
        help=f"what equal votes become {where}, by Lyu & Shu 2020; release: a tumour label before background, the most "
        "probable to its own voters; text: the category that is most probable to all",
    )


def scheme_option(help: str) -> Any:
    """How labels are numbered, by the names of `LABEL_SCHEMES`."""
    return option("--scheme", metavar="NAME", choices=LABEL_SCHEMES, default=None, help=help)


def dataset_id_option(help: str, default: Any = MISSING) -> Any:
    """A new data set's number, in the range of nnU-Net's folder names."""
    return option("-d", default=default, metavar="ID", at_least=1, at_most=999, help=help)


def results_option(name: str, help: str = "the file to write, with two CSV tables beside it") -> Any:
    """Where results go, as JSON; name: of the file by default."""
    return option("-o", writes="file", ending=".json", default=Path(name), help=help)
