"""docs/scores.md: its tables are those of the presets and label schemes."""

import ast
import re

import numpy as np
from label_maps import make_pair
from page_blocks import DOCS, blocks

from nnunet_brats_ext.brats import LABEL_SCHEMES
from nnunet_brats_ext.cli.presets import markdown_table
from nnunet_brats_ext.evaluation import evaluate_case, lesion_table
from nnunet_brats_ext.evaluation.metrics import HD95, NSD
from nnunet_brats_ext.evaluation.presets import PRESETS

PAGE = (DOCS / "scores.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table that begins with this heading."""
    table = PAGE[PAGE.index(f"| {heading} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def coded(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_the_table_of_presets_is_that_of_the_presets():
    assert PAGE.split("--markdown` -->\n")[1].split("\n<!-- presets end -->")[0] == markdown_table()


def test_the_columns_of_lesions_are_those_of_their_rows():
    described = [name for cells in rows("column") for name in coded(cells[0])]
    row = lesion_table(*make_pair("glioma_2023"), preset="brats2023")[0]
    assert described == [name for name in row if name != "region"]


def test_the_code_of_the_page_runs_and_its_comments_are_true():
    (block,) = blocks("scores.md", "python")
    names: dict[str, object] = {}
    checked = 0
    for statement in ast.parse(block).body:
        if not isinstance(statement, ast.Expr):
            exec(ast.unparse(statement), names)
            continue
        value = eval(ast.unparse(statement), names)
        if comment := block.splitlines()[statement.end_lineno - 1].partition("#")[2].strip():
            assert value == ast.literal_eval(comment)
            checked += 1
    assert checked == 2


def test_the_table_of_numberings_is_that_of_the_label_schemes():
    table = {coded(name)[0]: numbers for name, numbers in rows("scheme")}
    assert table == {
        name: ", ".join(
            f"{scheme.names[trained]} {value}" for value, trained in sorted(scheme.released.items()) if value
        )
        for name, scheme in LABEL_SCHEMES.items()
    }


def test_the_variants_are_those_there_are():
    assert [coded(row[0])[0] for row in rows("variant")] == list(HD95)
    sentence = next(line for line in PAGE.splitlines() if line.startswith("`nsd("))
    assert set(coded(sentence)[1:]) == set(NSD)


def test_absent_regions_score_as_the_page_says():
    nothing = np.zeros((8, 8, 8), dtype=np.uint8)
    for year, cohorts in PRESETS.items():
        for cohort in cohorts:
            for region, scores in evaluate_case(nothing, nothing, preset=year, cohort=cohort).items():
                expected = (np.nan, np.nan) if year == "brats2026" else (1, 0)
                assert np.array_equal((scores["dice"], scores["hd95"]), expected, equal_nan=True), (
                    year,
                    cohort,
                    region,
                )
