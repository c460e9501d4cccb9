"""`python -m nnunet_brats_ext.workflow.collect FOLD/validation ... -o OUT`: the folds' own predictions as one folder.

Label maps, probabilities and their properties are links, relative where the given path is; dataset.json and plans.json
of the model come along, by which ensembling and post-processing know what the probabilities are.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from nnunet_brats_ext.storage.errors import refuse

ENDINGS = (".nii.gz", ".npz", ".pkl")


def collect(validations: Sequence[Path], out: Path) -> int:
    """Link what the validation of each fold predicted; a case that two folds predicted is an error. How many cases."""
    first: dict[str, Path] = {}
    problems = []
    for validation in validations:
        for path in sorted(path for path in validation.iterdir() if path.name.endswith(ENDINGS)):
            if other := first.setdefault(path.name, path):
                problems += [f"{path.name} is in {other.parent} and {validation}"] if other != path else []
    refuse(problems, "collect the folds")
    out.mkdir(parents=True)
    model = validations[0].parents[1]
    for name, path in {**first, **{name: model / name for name in ("dataset.json", "plans.json")}}.items():
        (out / name).symlink_to(path if path.is_absolute() else os.path.relpath(path, out))
    return sum(name.endswith(".nii.gz") for name in first)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("validations", nargs="+", type=Path)
    parser.add_argument("-o", dest="out", type=Path, required=True)
    options = parser.parse_args()
    print(collect(options.validations, options.out), "cases in", options.out)
