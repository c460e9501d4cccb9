"""`python -m nnunet_brats_ext.workflow.shrink PLANS.json`: one case per step, so that trial runs suit a CPU."""

import sys
from pathlib import Path

from nnunet_brats_ext.planning.configurations import CONFIGURATIONS
from nnunet_brats_ext.prediction_folders.runs import read_json, write_text_whole
from nnunet_brats_ext.workflow.state import as_json


def shrink(plans: dict) -> dict:
    """Plans with a batch of one in every configuration of a paper."""
    ours = {row.name for row in CONFIGURATIONS}
    configurations = {
        name: {**one, "batch_size": 1} if name in ours else one for name, one in plans["configurations"].items()
    }
    return {**plans, "configurations": configurations}


if __name__ == "__main__":
    file = Path(sys.argv[1])
    write_text_whole(file, as_json(shrink(read_json(file))))
