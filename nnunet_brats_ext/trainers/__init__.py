"""All trainers, a folder per paper. Their class names are public: checkpoints store them.

A trainer is imported when it is asked for (`from nnunet_brats_ext.trainers import BraTSVAETrainer`), so that what a
paper says about it in `paper.py` can be read without torch.
"""

import importlib
from typing import Any

from nnunet_brats_ext import papers

OURS = {one.name: one for paper in papers.find_papers(external="").values() for one in paper.trainers}
__all__ = list(OURS)


def __getattr__(name: str) -> Any:
    if name not in OURS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nnunet_brats_ext.plugin.requirements import require_nnunet

    require_nnunet()  # before anything fails with an obscure message
    return getattr(importlib.import_module(f"{__name__}.{OURS[name].paper}.trainers"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
