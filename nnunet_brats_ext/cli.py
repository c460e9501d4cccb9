"""`nnunet_brats <verb>`: arguments in, one function call out.

Every verb imports its function when it runs, so that `nnunet_brats evaluate` never waits for torch.
"""

import argparse
import sys
from collections.abc import Callable

from nnunet_brats_ext import __version__

Run = Callable[[argparse.Namespace], int | None]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nnunet_brats", description="What nnU-Net lacks for BraTS.")
    parser.add_argument("--version", action="version", version=f"nnunet-brats-ext {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="verb", required=True)
    for add_verb in (add_doctor,):
        add_verb(verbs)
    options = parser.parse_args(arguments)
    run: Run = options.run
    try:
        return run(options) or 0
    except (OSError, ValueError, RuntimeError) as error:
        # What the user can mend is told in a sentence; anything else is a defect of ours and keeps its traceback.
        print(f"nnunet_brats {options.verb}: {error}", file=sys.stderr)
        return 1


def add_doctor(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("doctor", help="check versions, folders, trainer lookup and labels; say how to mend them")

    def run(options: argparse.Namespace) -> int:
        from nnunet_brats_ext.plugin.doctor import examine

        return examine()

    parser.set_defaults(run=run)


if __name__ == "__main__":
    sys.exit(main())
