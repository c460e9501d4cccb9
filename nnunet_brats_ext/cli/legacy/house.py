"""Verbs on the whole: is everything there, the way through it, and whole papers."""

import argparse
from pathlib import Path


def add_doctor(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("doctor", help="check versions, folders, trainer lookup and labels; say how to mend them")

    def run(options: argparse.Namespace) -> int:
        from nnunet_brats_ext.plugin.doctor import examine

        return examine()

    parser.set_defaults(run=run)


def add_demo(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("demo", help="the whole way, from a BraTS folder to a scored submission, on phantoms")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("brats_demo"), help="(default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu", help="(default: %(default)s)")
    parser.add_argument("--cases", type=int, help="synthetic patients, held-out ones included")
    parser.add_argument("--held-out", type=int, help="of them not for training")
    parser.add_argument("--size", type=int, nargs=3, metavar=("X", "Y", "Z"), help="voxels of a head")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--iterations", type=int, help="per epoch")
    parser.add_argument("--folds", type=int, nargs="+")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.demo import Demo, Scale

        asked = {
            name: getattr(options, name) for name in ("cases", "held_out", "size", "epochs", "iterations", "folds")
        }
        scale = Scale(**{name: value for name, value in asked.items() if value is not None})
        Demo(options.folder, scale, options.device).run()

    parser.set_defaults(run=run)
