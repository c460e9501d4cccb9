"""docs/python.md: its code runs from top to bottom, prints nothing by itself, and its comments are true."""

import ast
import re
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_blocks import DOCS, blocks
from untrained_models import SMALL_UNET, save_untrained

from nnunet_brats_ext.inference import PredictOptions
from nnunet_brats_ext.storage.images import read_label_map
from nnunet_brats_ext.storage.json_files import read_json, write_json

PAGE = "python.md"
DATASET = "Dataset137_BraTS2020"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


class Page:
    """The page's code after a run. names: its variables. values: line -> value, of each line that is an expression.

    printed: what the code itself prints. output: what anything else has printed.
    """

    def __init__(self) -> None:
        self.printed: list[str] = []
        self.names: dict[str, Any] = {"__name__": "__main__", "print": lambda word: self.printed.append(str(word))}
        self.values: dict[str, Any] = {}
        self.output = StringIO()

    def run(self) -> None:
        with redirect_stdout(self.output):
            for block in blocks(PAGE, "python"):
                for statement in ast.parse(block).body:
                    code = compile(ast.unparse(statement), PAGE, "eval" if isinstance(statement, ast.Expr) else "exec")
                    value = eval(code, self.names)
                    if isinstance(statement, ast.Expr):
                        self.values[block.splitlines()[statement.end_lineno - 1]] = value


@pytest.fixture(scope="module")
def page(world_on_disk, tmp_path_factory) -> Page:
    """Run in a folder with what nnU-Net's commands on the page would make: plans, and two models, which are untrained.

    The world's data set is of the same phantoms as that of the page.
    """
    folder = tmp_path_factory.mktemp("python")
    world = Path(world_on_disk.settings["nnUNet_preprocessed"], world_on_disk.dataset)
    preprocessed = Path(shutil.copytree(world, folder / "nnUNet_preprocessed" / DATASET))
    plans = world_on_disk.plans | {"dataset_name": DATASET}
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= SMALL_UNET
    write_json(preprocessed / "nnUNetPlans.json", plans)
    page = Page()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in (world_on_disk.settings | {name: str(folder / name) for name in FOLDERS}).items():
            patch.setenv(name, value)
        for seed, trainer in enumerate(("BraTSBaselineTrainer", "BraTSNoNewNetTrainer")):
            save_untrained(world_on_disk, plans, "3d_fullres", trainer, seed=seed)
        page.run()
    page.names["folder"] = folder
    return page


def test_the_functions_print_nothing(page):
    assert page.output.getvalue() == ""


def test_the_error_quotes_the_input(page):
    assert len(page.printed) == 1
    assert "no/such/folder" in page.printed[0]


def test_values_in_comments_are_those_of_their_lines(page):
    checked = 0
    for line, value in page.values.items():
        comment = line.partition("#")[2].strip()
        try:
            expected = ast.literal_eval(comment)
        except (SyntaxError, ValueError):
            continue  # words
        assert value == expected, line
        checked += 1
    assert checked > 5


def test_every_step_has_left_its_files(page):
    folder = page.names["folder"]
    names = {"BraTS20_Validation_007.nii.gz", "BraTS20_Validation_008.nii.gz"}
    for step in ("truth", "baseline", "no_new_net", "together", "final", "submission", "cleaned"):
        assert {path.name for path in (folder / step).glob("*.nii.gz")} == names, step
    assert (folder / "nnUNet_preprocessed" / DATASET / "BraTSPlans.json").is_file()
    assert len(list((folder / "uncertainty").glob("*_unc_whole.nii.gz"))) == 2
    assert "<html" in (folder / "report.html").read_text()
    assert read_json(folder / "final.json")["summary"]["WT"]["dice"]["n"] == 2


def test_nnunets_call_gives_what_predict_gives(page):
    predicted, _ = read_label_map(page.names["folder"] / "no_new_net" / "BraTS20_Validation_007.nii.gz")
    assert np.array_equal(page.names["labels"], predicted)


def test_the_masks_scores_are_those_of_their_boxes(page):
    a, b, shared = 10 * 12 * 12, 10 * 12 * 14, 9 * 12 * 12
    assert page.values["dice(reference, prediction)"] == pytest.approx(2 * shared / (a + b))
    distances = [value for line, value in page.values.items() if line.startswith("hd95(")]
    assert distances == pytest.approx([2, 2], abs=0.5)  # two voxels too far along x


def test_options_that_the_text_names_exist():
    named = set(re.findall(r"`(\w+)=", (DOCS / PAGE).read_text()))
    assert "previous_trainer" in named
    assert named <= set(PredictOptions.__dataclass_fields__)
