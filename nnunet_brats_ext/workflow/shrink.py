"""`python -m nnunet_brats_ext.workflow.shrink PLANS.json`: one case per step, so that trial runs suit a CPU."""

import sys
from pathlib import Path

from nnunet_brats_ext import papers
from nnunet_brats_ext.storage.json_files import read_json, write_json


def shrink(plans: dict) -> dict:
    """Plans with a batch of one in every configuration of a paper."""
    ours = papers.configurations()
    configurations = {
        name: {**one, "batch_size": 1} if name in ours else one for name, one in plans["configurations"].items()
    }
    return {**plans, "configurations": configurations}


if __name__ == "__main__":
    file = Path(sys.argv[1])
    write_json(file, shrink(read_json(file)))
