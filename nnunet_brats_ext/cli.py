"""`nnunet_brats <verb>`: arguments in, one function call out.

Every verb imports its function when it runs, so that `nnunet_brats evaluate` never waits for torch.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from nnunet_brats_ext import __version__
from nnunet_brats_ext.plugin.requirements import require_nnunet

Run = Callable[[argparse.Namespace], int | None]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nnunet_brats", description="What nnU-Net lacks for BraTS.")
    parser.add_argument("--version", action="version", version=f"nnunet-brats-ext {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="verb", required=True)
    for add_verb in (add_doctor, add_ensemble, add_phantom):
        add_verb(verbs)
    options = parser.parse_args(arguments)
    run: Run = options.run
    try:
        if options.verb != "doctor":  # which reports it with everything else
            require_nnunet()
        return run(options) or 0
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        # What the user can mend is told in a sentence; anything else is a defect of ours and keeps its traceback.
        print(f"nnunet_brats {options.verb}: {error}", file=sys.stderr)
        return 1


def add_doctor(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("doctor", help="check versions, folders, trainer lookup and labels; say how to mend them")

    def run(options: argparse.Namespace) -> int:
        from nnunet_brats_ext.plugin.doctor import examine

        return examine()

    parser.set_defaults(run=run)


def add_ensemble(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "ensemble",
        help="several prediction folders -> one: mean, vote, or the merges of papers",
        description="mean: of probabilities (.npz), any trainers and heads. majority: of label maps, with the tie rule "
        "of Lyu and Shu. two-pass: A decides ET and NCR, B oedema. nested: binary models of WT, TC, ET, in this order.",
    )
    parser.add_argument("-i", dest="inputs", nargs="+", type=Path, required=True, help="prediction folders")
    parser.add_argument("-o", dest="out", type=Path, required=True, help="output folder")
    parser.add_argument("--method", choices=("mean", "majority", "two-pass", "nested"), default="mean")
    parser.add_argument("--weights", nargs="+", type=float, help="one per folder (mean, majority)")
    parser.add_argument("--space", choices=("regions", "labels"), help="where mixed heads meet (mean); default regions")
    parser.add_argument(
        "--order", nargs="+", type=int, help="labels from outermost to innermost (majority); default as trained: 1 2 3"
    )
    parser.add_argument(
        "--save-probabilities", action="store_true", default=None, help="write .npz and .pkl too (mean, nested)"
    )
    parser.add_argument("--dtype", choices=("float32", "float16"), help="of saved probabilities; default float32")
    parser.add_argument("-np", dest="processes", type=int, help="processes; default one per core, at most 8")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.ensembling.folders import ensemble

        given = {name: value for name, value in vars(options).items() if value is not None}
        for name in ("verb", "run", "method", "inputs", "out"):
            given.pop(name)
        ensemble(options.method, options.inputs, options.out, **given)

    parser.set_defaults(run=run)


def add_phantom(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("phantom", help="synthetic gliomas in BraTS form, deterministic by seed")
    parser.add_argument("out", type=Path, help="folder to write; what a release unpacks to lies in it")
    parser.add_argument("--release", default="BraTS2020", help="whose layout, names and labels (default: %(default)s)")
    parser.add_argument("--cases", type=int, default=12, help="how many (default: %(default)s)")
    parser.add_argument("--unlabelled", type=int, default=0, metavar="N", help="leave the last N without label file")
    parser.add_argument("--size", type=int, nargs=3, metavar=("X", "Y", "Z"), help="voxels (default: the release's)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--anatomy",
        choices=("auto", "mni152", "procedural"),
        default="auto",
        help="mni152 needs nilearn; auto takes it where it is installed (default: %(default)s)",
    )
    parser.add_argument("--processes", type=int, help="(default: one per core, at most 8)")
    parser.add_argument("--overwrite", action="store_true", help="replace the phantoms that OUT holds")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.dataset_conversion.phantoms import write_phantoms

        write_phantoms(
            options.out,
            options.release,
            cases=options.cases,
            unlabelled=options.unlabelled,
            shape=options.size,
            seed=options.seed,
            anatomy=options.anatomy,
            processes=options.processes,
            overwrite=options.overwrite,
        )

    parser.set_defaults(run=run)


if __name__ == "__main__":
    sys.exit(main())
