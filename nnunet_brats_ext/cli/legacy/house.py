"""Verbs on the whole: is everything there, the way through it, and whole papers."""

import argparse
from pathlib import Path


def add_run(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "run",
        help="a recipe, from BraTS folder to report and submission, on this machine or a cluster",
        description="A paper as a graph of nnU-Net's and these commands, run by Snakemake. Started again, it goes on "
        "where it stopped: finished folds are kept, interrupted ones continued. Recipes: baseline, compare, lyu2020, "
        "henry2020, lachinov2019, zhou2020, hashemi2021, or a YAML file of yours.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a name or a file; --copy gives one to edit")
    parser.add_argument("source", nargs="?", type=Path, metavar="SOURCE", help="the release; smoke can do without")
    parser.add_argument("--copy", type=Path, metavar="FILE", help="write the recipe there to edit it, and run nothing")
    parser.add_argument("-d", dest="dataset_id", type=int, default=137, metavar="ID", help="first ID (default: 137)")
    parser.add_argument("-o", dest="folder", type=Path, metavar="FOLDER", help="default: runs/RECIPE")
    parser.add_argument(
        "--scale",
        choices=("full", "smoke"),
        default="full",
        help="smoke: tiny cases, two folds, two epochs, in folders of its own",
    )
    parser.add_argument("--dry-run", action="store_true", help="print every job and what it needs, and run nothing")
    parser.add_argument("--executor", choices=("local", "slurm", "kubernetes"), default="local")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="Snakemake profile of your cluster")
    parser.add_argument("--jobs", type=int, metavar="N", help="at most so many at once")
    parser.add_argument("--gpus", type=int, metavar="N", help="at most so many at once (default: all there are)")
    parser.add_argument("--gpu-memory-gb", type=float, metavar="N", help="of each GPU: fits the papers' patches to it")
    parser.add_argument("--folds", type=int, nargs="+", metavar="FOLD", help="only these, but for stages before others")
    parser.add_argument("-device", choices=("cuda", "cpu"), default="cuda")

    def run(options: argparse.Namespace) -> int:
        from nnunet_brats_ext.workflow.run import Options, copy_recipe, run_recipe

        if options.copy:
            print("written:", copy_recipe(options.recipe, options.copy))
            return 0
        given = {name: value for name, value in vars(options).items() if name in Options.__dataclass_fields__}
        return run_recipe(Options(**given | {"folds": tuple(options.folds) if options.folds else None}))

    parser.set_defaults(run=run)


def add_status(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("status", help="what of a run is done, running or failed, with the log of each job")
    parser.add_argument("folder", type=Path, help="of `nnunet_brats run`")

    def run(options: argparse.Namespace) -> int:
        from nnunet_brats_ext.workflow.status import show_status

        return show_status(options.folder)

    parser.set_defaults(run=run)
