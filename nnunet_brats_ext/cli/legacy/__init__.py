"""`nnunet_brats <verb>`: arguments in, one function call out. One module per kind of verb.

Every verb imports its function when it runs, so that `nnunet_brats evaluate` never waits for torch.
"""

import argparse
import sys
from collections.abc import Callable

from nnunet_brats_ext import __version__
from nnunet_brats_ext.cli.legacy import house, models
from nnunet_brats_ext.plugin.requirements import require_nnunet

Run = Callable[[argparse.Namespace], int | None]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nnunet_brats", description="What nnU-Net lacks for BraTS.")
    parser.add_argument("--version", action="version", version=f"nnunet-brats-ext {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="verb", required=True)
    for add_verb in (
        models.add_plan,
        house.add_run,
        house.add_status,
    ):
        add_verb(verbs)
    options = parser.parse_args(arguments)
    run: Run = options.run
    try:
        if options.verb != "doctor":  # which reports it with everything else
            require_nnunet()
        return run(options) or 0
    except (OSError, ValueError, ImportError) as error:
        # What the user can mend is told in a sentence; anything else is a defect of ours and keeps its traceback.
        print(f"nnunet_brats {options.verb}: {error}", file=sys.stderr)
        return 1
