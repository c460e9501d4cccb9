"""A paper's claim in miniature, on synthetic patients: train its variants over seeds, predict, score, compare.

    python benchmarks/phantom_study.py henry2020 OUT [--seeds 3] [--epochs 20] [--iterations 10]

Every command is logged in OUT/log.txt, and none that succeeded is run again: a study goes on where it was stopped, and
more seeds add to those that are there. Scored are held-out patients. What a study compares is a module of `studies/`;
its trainers, with narrow networks and learning rates for few steps, are in `studies/trainers/`. A study shows whether
the parts do to each other what they should, not what a method is worth on patients. Everything is seeded and runs on
one core, so that two studies suit a machine with two.
"""

import argparse
from importlib import import_module
from pathlib import Path

from studies.workbench import Trial, Workbench, table

STUDIES = sorted(file.stem for file in (Path(__file__).parent / "studies").glob("*20[0-9][0-9].py"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=10, help="per epoch (default: %(default)s)")
    options = parser.parse_args()
    study = import_module(f"studies.{options.study}")
    bench = Workbench(options.out)
    bench.keep_to(f"{options.study}, {options.epochs} epochs of {options.iterations} iterations")
    study.prepare(bench)
    for seed in range(options.seeds):
        rows = study.run(Trial(bench, seed, options.epochs, options.iterations))
        print(table(bench.folder, rows, range(seed + 1)), flush=True)


if __name__ == "__main__":
    main()
